"""docs/troubleshooting.md: every message it quotes is provoked here, or is a line of our log."""
import ast
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import cv2
import numpy as np
import pytest

from mindspore.mindrecord import FileWriter

from mindseg.checkpoint import Progress, load_weights
from mindseg.chips import check_atc_precision
from mindseg.commands.arguments import read_config
from mindseg.commands.train import divide_batch
from mindseg.config import load_config
from mindseg.data.bands import open_bands
from mindseg.data.datasets import list_samples
from mindseg.data.decode import check_sizes, decode_image, decode_label
from mindseg.data.labels import train_id_lut
from mindseg.data.sources import RecordSource
from mindseg.engine.trainer import Trainer
from mindseg.errors import UserError
from mindseg.inference import encoder
from mindseg.inference.inputs import Stream
from mindseg.inference.jobs import Job, Output
from mindseg.inference.streams import OpenStream
from mindseg.metrics import ConfusionMatrix, format_table
from mindseg.runtime import Runtime
from tests.support import ROOT, images
from tests.support.deploy import make_manifest
from tests.support.docs import blocks, headings
from tests.support.predictors import FunctionPredictor, info_of

PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTES = [block.text.strip() for block in blocks(PAGE) if block.language == "text"]
CAMVID = ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml"
SCHEMA = ROOT / "configs" / "_base_" / "defaults.yaml"


def png(pixels: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", pixels)[1].ravel()


def bad_label_value(tmp_path):
    label = np.zeros((40, 40), np.uint8)
    label[:5] = 7
    decode_label(png(label), "labels/0001.png", train_id_lut(3))


def background_ignored(tmp_path):
    load_config(CAMVID, ["data.ignore_id=0"])


def colour_label(tmp_path):
    decode_label(png(np.zeros((40, 40, 4), np.uint8)), "town_000000_000019_gtFine_color.png", train_id_lut(3))


def pnm_image(tmp_path):
    decode_image(cv2.imencode(".ppm", np.zeros((40, 40, 3), np.uint8))[1].ravel(), "0001.png")


def turned_image(tmp_path):
    data = images.with_exif(images.encode(".jpg", np.zeros((40, 24, 3), np.uint8)), images.exif(6), 24, 40)
    data = np.frombuffer(data, np.uint8)
    check_sizes(decode_image(data, "0001.jpg").shape, (40, 24), "0001.jpg", data)


def large_image(tmp_path):
    decode_image(np.frombuffer(images.png(20000, 20000), np.uint8), "0001.png")


def list_without_names(tmp_path):
    read_config(SCHEMA, ["data.name=list"])


def three_classes(tmp_path):
    read_config(CAMVID, ["data.class_names=[background, road, car]"])


def empty_list(tmp_path):
    (tmp_path / "train.txt").write_text("# nothing\n\n")
    list_samples({"name": "list", "root": str(tmp_path)}, "train")


def empty_split(tmp_path):
    list_samples({"name": "list", "root": str(tmp_path)}, "train")


def two_class_weights(tmp_path):
    load_config(SCHEMA, ["loss.class_weights=[1.0, 2.0]"])


def diverged(folder, step, overflows, loss):
    trainer = SimpleNamespace(progress=Progress(step=step), _save=lambda name: None, overflows=overflows,
                              job=SimpleNamespace(runtime=Runtime("CPU", 0), run_dir=folder))
    Trainer._check_finite(trainer, loss, True, ["a", "b"])


def loss_is_nan(tmp_path):
    diverged(tmp_path, 12, 0, float("nan"))


def every_step_overflows(tmp_path):
    diverged(tmp_path, 70, 63, 2.0)


def all_background(tmp_path):
    label = np.repeat(np.array([0, 1], np.uint8), [90, 10])
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros_like(label), label)
    return format_table(matrix.compute(), ("background", "crack"))


def absent_class(tmp_path):
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0, 0, 1, 1, 1], np.uint8), np.array([0, 0, 0, 0, 1, 1], np.uint8))
    matrix.update(np.array([1], np.uint8), np.array([1], np.uint8))
    return format_table(matrix.compute(), ("road", "sky", "car"))


def three_devices(tmp_path):
    divide_batch(load_config(SCHEMA, ["train.global_batch=16"]), 3)


def odd_part(tmp_path):
    divide_batch(load_config(SCHEMA, ["train.global_batch=16", "train.device_batch=3"]), 1)


def batch_of_one(tmp_path):
    from mindseg.models.layers import _check_pooled_batch

    _check_pooled_batch(1, "Fast-SCNN's pyramid pooling")


def small_image(tmp_path):
    from mindseg.models.layers import _check_size

    _check_size(20, 64)


def damaged_checkpoint(tmp_path):
    for name in ("last.ckpt", "step100.ckpt"):
        (tmp_path / name).write_bytes(b"no checkpoint " + name.encode())
    Trainer._read(SimpleNamespace(), tmp_path / "last.ckpt")


def unknown_mode(tmp_path):
    load_config(SCHEMA, ["eval.mode=ss"])


def foreign_weights(tmp_path):
    names = ("early.weight", "late.weight", "classifier.weight", "classifier.bias")
    net = SimpleNamespace(get_parameters=lambda: [SimpleNamespace(name=name) for name in names])
    load_weights(net, {"classifier.bias": np.zeros(3)}, "best.ckpt")


def export_without_operator(tmp_path):
    import mindspore as ms

    from mindseg.deploy.exporter import _export_aside

    def refuse(*_, **__):
        raise RuntimeError("Can not find operator AdaptiveAvgPool2D.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ms, "export", refuse)
        _export_aside(None, [None], tmp_path / "net.onnx")


def other_image_size(tmp_path):
    from dataclasses import replace


    spec = replace(make_manifest(tmp_path).input, shape=(1, 3, 512, 1024),
                   resize={"rule": "none", "size": None, "pad": False})
    spec.prepare(np.zeros((720, 1280, 3), np.uint8), "street.png")


def precision_of_another_chip(tmp_path):
    check_atc_precision("Ascend310P3", "origin")


def export_differs(tmp_path):
    from mindseg.deploy.exporter import _compare

    reference = np.full((1, 2, 4, 4), 2.0, np.float32)
    _compare("fast_scnn.onnx", reference + 0.5, reference)


def older_enet(tmp_path):
    from mindseg.models.weights import convert_state_dict

    convert_state_dict("enet", {"encoder.initial_block.batch_norm.moving_mean": np.zeros(16, np.float32)})


def packed_twice(tmp_path):
    from mindseg.data.mindrecord import Packing, build_records

    (tmp_path / "train.mindrecord").write_bytes(b"x")
    build_records([], tmp_path / "train.mindrecord", None, None, Packing(), {})


def write_record(path):
    writer = FileWriter(str(path))
    writer.add_schema({"file_name": {"type": "string"}, "data": {"type": "bytes"}, "label": {"type": "bytes"}}, "x")
    writer.write_raw_data([{"file_name": "a", "data": b"1", "label": b"2"}])
    writer.commit()


def renamed_record(tmp_path):
    write_record(tmp_path / "old.mindrecord")
    for suffix in ("", ".db"):
        (tmp_path / f"old.mindrecord{suffix}").rename(tmp_path / f"train.mindrecord{suffix}")
    RecordSource(tmp_path / "train.mindrecord")


def mixed_record(tmp_path):
    for name in ("train", "val"):
        write_record(tmp_path / f"{name}.mindrecord")
    (tmp_path / "val.mindrecord.db").replace(tmp_path / "train.mindrecord.db")
    RecordSource(tmp_path / "train.mindrecord")


def failed_job(tmp_path):
    """The launcher with an msrun that fails; in a copy, because scripts prefer the project's own msrun."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "msrun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "msrun").chmod(0o755)
    # A bare Debian has python3 only; a link would not find the packages of this one.
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    done = subprocess.run(["bash", "scripts/run_distribute_train.sh", str(CAMVID), "2"], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
                                                    "PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == 1
    return done.stderr.splitlines()[0]


def mindspore_first(tmp_path):
    code = "import sys, types; sys.modules['mindspore'] = types.ModuleType('mindspore'); import mindseg"
    clean = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True).stderr


def far_size(tmp_path):
    predictor = FunctionPredictor(None, info_of(2))
    predictor.trained_size = (360, 480)
    with patch("mindseg.inference.jobs.log.warning") as warning:
        Job(predictor, Output(tmp_path), None).check_size((1440, 1920), "street.jpg")
    text, *values = warning.call_args.args
    return text % tuple(values)


def refused_stream(tmp_path):
    with pytest.raises(UserError) as error:
        OpenStream(Stream("rtsp://127.0.0.1:1/x", "rtsp://127.0.0.1:1/x"))
    return str(error.value)


def high_tiles(tmp_path):
    (tmp_path / "a.tif").write_bytes(images.tiff(np.zeros((32, 64), np.uint8), compression=8))
    with open_bands(tmp_path / "a.tif") as image:
        image.size = (20000, 20000)
        with pytest.raises(UserError) as error:
            image.rows(0, 16384)
    return str(error.value)


def dying_ffmpeg(tmp_path):
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\n[ $2 = -encoders ] && echo libx264 && exit\nexit 1\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    with patch.object(encoder, "find_ffmpeg", lambda: str(tmp_path / "ffmpeg")):
        video = encoder.create_video(tmp_path / "a.mp4", tmp_path / "b.mp4", (32, 32), 10.0)
    with pytest.raises(UserError) as error:
        video.close(finished=True)
    return str(error.value)


def logged(path: str):
    """The format strings of a file's log lines, as patterns."""

    def texts(tmp_path):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]

    return texts


PROVOKED = [bad_label_value, background_ignored, colour_label, pnm_image, turned_image, large_image, list_without_names,
            three_classes, empty_list, empty_split, two_class_weights, loss_is_nan,
            every_step_overflows, all_background,
            logged("src/mindseg/commands/train.py"), three_devices, odd_part, batch_of_one,
            logged("src/mindseg/engine/trainer.py"), damaged_checkpoint, absent_class, small_image, unknown_mode,
            far_size, foreign_weights,
            export_without_operator, other_image_size, export_differs, precision_of_another_chip,
            older_enet, packed_twice, renamed_record, mixed_record, failed_job, refused_stream,
            high_tiles, dying_ffmpeg, mindspore_first]


def as_pattern(quote: str) -> str:
    """``…`` is anything; runs of blanks are equal."""
    return re.escape(" ".join(quote.split())).replace("…", ".*")


def test_there_are_twenty_failures_with_a_message_each():
    numbers = [int(title.split(".")[0]) for level, title in headings(PAGE) if level == 3]
    assert numbers == list(range(1, 21))
    sections = re.split(r"^### .*$", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    assert all("```text" in section for section in sections)
    assert len(QUOTES) == len(PROVOKED)


@pytest.mark.parametrize("index", range(len(PROVOKED)), ids=lambda i: f"{i}-{PROVOKED[i].__name__}")
def test_the_quoted_message_is_the_one_we_print(index, tmp_path):
    provoke, quote = PROVOKED[index], QUOTES[index]
    if quote.startswith("error: ") and provoke is not failed_job:
        with pytest.raises(UserError) as error:
            provoke(tmp_path)
        assert re.fullmatch(as_pattern(quote.removeprefix("error: ")), " ".join(str(error.value).split())), error.value
        return
    found = provoke(tmp_path)
    if isinstance(found, list):
        wanted = " ".join(quote.replace("…", " ").split())
        forms = (re.escape(text).replace("%s", ".+").replace("%d", r"\d+") for text in found if "%d" in text)
        assert any(re.fullmatch(form, wanted) for form in forms), quote
    else:
        assert re.search(as_pattern(quote), " ".join(found.split())), found
