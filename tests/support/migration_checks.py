"""Checks of rows of docs/migration.md whose meaning the forms of their code do not tell. Each takes a ``Bench``."""
import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image

import mindspore as ms
from mindspore.mindrecord import FileWriter

from mindseg.commands.evaluate import protocol_overrides
from mindseg.config import Config, load_config
from mindseg.data.datasets import CITYSCAPES, VOC, check_classes, dataset_info
from mindseg.data.loader import create_loader
from mindseg.errors import ConfigError
from mindseg.losses import create_loss
from mindseg.manifest import load_manifest
from mindseg.models import build_network, create_model
from mindseg.optim import create_optimizer
from mindseg.schedules import create_schedule
from tests.support import ROOT
from tests.support.migration import Bench, run_python


def recipe(bench: Bench, *overrides: str) -> Config:
    """The older project's configuration."""
    return load_config(bench.config, overrides)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def log_of(bench: Bench) -> str:
    """train.log of the project's run."""
    return next(bench.letter("RUN").rglob("train.log")).read_text(encoding="utf-8")


def quotes(page: str, *numbers: str) -> Callable[[Bench], None]:
    """A check that a page quotes numbers of the older project."""
    def check(bench: Bench) -> None:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [number for number in numbers if number not in text] == []
    return check


def batch_is_divided(bench: Bench) -> None:
    assert "global batch 2 = 1 devices x 1 micro-batches x 2" in log_of(bench)


def cosine_to_zero(bench: Bench) -> None:
    rates = create_schedule(recipe(bench).optim, 1000, 10)
    np.testing.assert_allclose(rates[[0, 500, 999]], [0.001, 0.0005, 0.0005 * (1 + np.cos(np.pi * 0.999))], rtol=1e-5,
                               atol=1e-9)


def best_is_logged(bench: Bench) -> None:
    (line,) = re.findall(r"evaluation mIoU .*\(best so far\)", log_of(bench))
    assert re.search(r"mIoU [\d.]+ % pixel accuracy [\d.]+ %", line)


def steps_are_logged(bench: Bench) -> None:
    text = log_of(bench)
    assert re.search(r"step (\d)/\1 loss [\d.]+ lr [\d.]+ data [\d.]+ ms step [\d.]+ ms [\d.]+ images/s eta", text)
    assert re.search(r"epoch 1 finished in [\d.]+ s, \d+ ms per step", text)
    with open(next(bench.letter("RUN").rglob("metrics.csv")), newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["phase"] == "train"]
    assert [row["step"] for row in rows] == ["1", "2"][:int(rows[0]["total_steps"])]
    assert all(float(row[name]) > 0 for row in rows for name in ("loss", "data_ms", "step_ms", "images_per_s"))


def device_is_named(bench: Bench) -> None:
    assert read_json(bench.letter("RUN") / "env.json")["device_target"] == "CPU"


def scores_are_complete(bench: Bench) -> None:
    scores = read_json(bench.letter("RUN") / "eval.json")
    matrix = np.array(scores["confusion"], float)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    present = union > 0
    assert scores["miou"] == pytest.approx((np.diag(matrix)[present] / union[present]).mean())
    assert scores["images"] == 3
    lines = (bench.letter("RUN") / "eval_results.txt").read_text().splitlines()
    assert lines[0] == f"validation pixAcc: {scores['pixel_accuracy']:.6f}, mIoU: {scores['miou']:.6f}"
    assert lines[1].startswith(f"class name: {scores['classes'][0]} iou: ")
    assert len(lines) == len(scores["iou"]) + 1


def one_output(bench: Bench) -> None:
    manifest = load_manifest(bench.letter("M"))
    assert len(onnx.load(manifest.model_path(manifest.find("onnx"))).graph.output) == 1


def masks_are_palettes(bench: Bench) -> None:
    names = {path.name.removesuffix("_leftImg8bit.png") for path in bench.letter("D").glob("leftImg8bit/val/*/*.png")}
    masks = list((bench.out / "masks_color").glob("*.png"))
    assert {path.stem for path in masks} == names
    for path in masks:
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert max(picture.getdata()) < 19


def colours_are_official(bench: Bench) -> None:
    assert CITYSCAPES.palette[0] == (128, 64, 128)
    assert VOC.palette[1] == (128, 0, 0)
    palette = [[i, 255 - i, 7] for i in range(150)]       # as many as ADE has
    cfg = load_config(ROOT / "configs" / "_base_" / "camvid.yaml",
                      [f"data.palette={palette}", f"data.class_names={[f'class {i}' for i in range(150)]}",
                       "data.ignore_id=255", "model.num_classes=150"])
    assert dataset_info(cfg.data).palette[149] == (149, 106, 7)


def input_is_described(bench: Bench) -> None:
    manifest = load_manifest(bench.letter("M"))
    (tensor,) = onnx.load(manifest.model_path(manifest.find("onnx"))).graph.input
    assert tensor.name == manifest.input.name == "image"
    assert tuple(dim.dim_value for dim in tensor.type.tensor_type.shape.dim) == manifest.input.shape == (1, 3, 64, 128)
    assert (manifest.input.layout, manifest.input.dtype, manifest.input.color_order) == ("NCHW", "float32", "RGB")


def versions_are_noted(bench: Bench) -> None:
    assert {"project", "mindspore", "onnx"} <= set(load_manifest(bench.letter("M")).versions)


def relative_paths_work(bench: Bench) -> None:
    manifest, root, here = bench.letter("M"), bench.letter("D"), Path.cwd()
    os.chdir(root.parent)
    try:
        run_python("preprocess.py", ["--manifest", str(manifest), "--dataset", root.name, "--output", "relative"])
    finally:
        os.chdir(here)
    assert (root.parent / "relative" / "files.txt").read_text() == (bench.letter("BINS") / "files.txt").read_text()


def bins_are_plain_tensors(bench: Bench) -> None:
    shape = load_manifest(bench.letter("M")).input.shape
    names = (bench.letter("BINS") / "files.txt").read_text().split()
    assert len(names) == 3
    for name in names:
        assert np.fromfile(bench.letter("BINS") / f"{name}.bin", np.float32).reshape(shape).std() > 0


def results_of_ais_bench_are_scored(bench: Bench) -> None:
    expected = read_json(bench.letter("RESULT") / "eval.json")["confusion"]
    other = bench.folder / "ais_bench"
    other.mkdir()
    for path in bench.letter("RESULT").glob("*.png"):
        np.save(other / f"{path.stem}_0.npy", np.array(Image.open(path)))
    run_python("postprocess.py", ["--manifest", str(bench.letter("M")), "--result", str(other), "--dataset",
                                  str(bench.letter("D"))])
    assert read_json(other / "eval.json")["confusion"] == expected


def guides_lines_are_printed(bench: Bench) -> None:
    printed = bench.run("bash scripts/convert_om.sh M/deploy.yaml Ascend310P3 1 4 8 --dry_run")
    lines = [line for line in printed.splitlines() if line.startswith("atc ")]
    assert len(lines) == 3
    assert lines[0] == ('atc --framework=5 --model=fast_scnn.onnx --output=fast_scnn_bs1 --input_format=NCHW '
                        '--input_shape="image:1,3,64,128" --log=debug --soc_version=Ascend310P3')


def chip_is_asked_for(bench: Bench) -> None:
    assert "--soc_version=Ascend310P3" in bench.run("bash scripts/convert_om.sh M/deploy.yaml --dry_run")


def scores_are_printed(bench: Bench) -> None:
    printed = bench.run("python postprocess.py --manifest M/deploy.yaml --result RESULT --dataset D")
    assert re.search(r"mIoU [\d.]+ %, pixel accuracy [\d.]+ %", printed)
    assert "Total number of images: 3" in printed


def wrong_keys_are_named(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'data\.num_worker'; did you mean 'data\.num_workers'"):
        recipe(bench, "data.num_worker=4")


def wrong_class_count_is_an_error(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"model\.num_classes = 20.*set model\.num_classes=21"):
        check_classes(recipe(bench, "model.num_classes=20"))


def vgg16_is_loaded(bench: Bench) -> None:
    command = "python train.py --config C --set data.root=D --pretrained vgg16_bn.pth"
    printed = bench.run(command)
    assert re.search(r"\d+ of \d+ parameters loaded from .*vgg16_bn\.(pth|npz) \(torchvision's vgg16_bn\)", printed)
    assert "new, with random weights: fc6, fc7" in printed


def both_forms_of_lists(bench: Bench) -> None:
    root = bench.letter("D")
    names = bench.letter("L").read_text().split()
    old = bench.folder / "old layout"
    for folder, source, suffix in (("img", "JPEGImages", "jpg"), ("cls_png", "SegmentationClass", "png")):
        (old / folder).parent.mkdir(exist_ok=True)
        (old / folder).symlink_to(root / source)
        assert (old / folder / f"{names[0]}.{suffix}").is_file()
    (old / "names.txt").write_text("\n".join(names))
    (old / "pairs.txt").write_text("\n".join(f"img/{name}.jpg cls_png/{name}.png" for name in names))
    for form in ("names", "pairs"):
        cfg = recipe(bench, f"data.root={old}", f"data.train_list={old / form}.txt", "train.global_batch=2")
        assert create_loader(cfg, "train").num_samples == len(names)


def old_records_are_read(bench: Bench) -> None:
    """Written with the older project's schema, without our description beside it."""
    path = bench.folder / "old.mindrecord"
    writer = FileWriter(str(path), 1)
    writer.add_schema({"file_name": {"type": "string"}, "label": {"type": "bytes"}, "data": {"type": "bytes"}}, "seg")
    root = bench.letter("D")
    names = bench.letter("L").read_text().split()
    writer.write_raw_data([{"file_name": name, "data": (root / "JPEGImages" / f"{name}.jpg").read_bytes(),
                            "label": (root / "SegmentationClass" / f"{name}.png").read_bytes()} for name in names])
    writer.commit()
    cfg = recipe(bench, f"data.mindrecord={path}", "data.crop_size=[64, 64]", "train.global_batch=2")
    batches = list(create_loader(cfg, "train").epoch(0))
    assert sorted(name for batch in batches for name in batch["names"]) == sorted(names)
    assert set(np.unique(batches[0]["label"])) <= {*range(21), 255}


def parts_build_a_training(bench: Bench) -> None:
    cfg = recipe(bench, "model.fc_channels=16", f"data.root={bench.letter('D')}", "train.global_batch=2")
    loader, network = create_loader(cfg, "train"), build_network(cfg)
    assert callable(create_loss(cfg.loss, 255).construct)
    assert len(create_optimizer(cfg.optim, network, 10, loader.steps_per_epoch).parameters) == len(
        network.trainable_params())


def stage(number: int) -> Config:
    """ENet's configuration of one stage."""
    return load_config(ROOT / "configs" / "enet" / f"enet_cityscapes_stage{number}.yaml")


def stages_are_the_old_ones(bench: Bench) -> None:
    found = [(cfg.train.epochs, cfg.model.encoder_only, cfg.loss.label_stride, cfg.model.pretrained_part)
             for cfg in map(stage, (1, 2, 3))]
    assert found == [(65, True, 8, "all"), (85, True, 8, "all"), (100, False, 1, "encoder")]


def stages_share_a_curve(bench: Bench) -> None:
    rates = [create_schedule(stage(number).optim, 2 * stage(number).train.epochs, 2) for number in (1, 2)]
    expected = 5e-4 * (1 - np.arange(150) / 150) ** 0.9
    np.testing.assert_allclose(np.concatenate(rates), expected.repeat(2), rtol=1e-5)


def every_stage_has_weights(bench: Bench) -> None:
    tables = [stage(number).loss.class_weights for number in (1, 2, 3)]
    assert tables[0] == tables[1] != tables[2]
    assert [len(table) for table in tables] == [19, 19, 19]
    printed = bench.run("mindseg class-weights --config C --set data.root=D").splitlines()[-1]
    assert len(yaml.safe_load(printed)["class_weights"]) == 19


def loss_is_scored_too(bench: Bench) -> None:
    scores = read_json(bench.out / "eval.json")
    assert {"checkpoint", "miou", "loss", "iou"} <= set(scores)
    assert scores["loss"] > 0
    assert len(scores["iou"]) == 19


def protocol(name: str) -> Callable[[Bench], None]:
    """A check that a protocol says what the configuration C says."""
    def check(bench: Bench) -> None:
        other = load_config(ROOT / "configs" / "fast_scnn" / "fast_scnn_cityscapes.yaml", protocol_overrides(name))
        for key in ("mode", "resize", "label_size"):
            assert other.eval[key] == recipe(bench).eval[key]
    return check


def parameters_are_counted(bench: Bench) -> None:
    count = sum(param.size for param in create_model("enet", 20, variant="modelzoo").trainable_params())
    assert f"| {count / 1e6:.3f} |" in (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    assert 0.34e6 < count < 0.36e6


def wrong_number_of_weights_is_refused(bench: Bench) -> None:
    loss = create_loss(recipe(bench, "loss.weights=[1.0, 1.0]", "loss.class_weights=null").loss, 255)
    logits = ms.Tensor(np.zeros((1, 19, 4, 4), np.float32))
    with pytest.raises(ConfigError, match=r"loss\.weights"):
        loss((logits,) * 5, ms.Tensor(np.zeros((1, 4, 4), np.int32)))


def rates_are_those_of_the_old_log(bench: Bench) -> None:
    rates = create_schedule(recipe(bench).optim, 160000, 186)
    logged = [0.049997, 0.049995, 0.049992, 0.049989, 0.049986, 0.049983, 0.049981]
    np.testing.assert_allclose(rates[9:70:10], logged, atol=6e-7)


def versions_are_pinned(bench: Bench) -> None:
    assert re.search(r"^mindspore>=2\.7", (ROOT / "requirements.txt").read_text(), re.M)


ZOO = "docs/model_zoo.md"
CHECKS = {
    "FS-08": batch_is_divided, "FS-09": cosine_to_zero, "FS-14": best_is_logged, "FS-16": steps_are_logged,
    "FS-17": device_is_named, "FS-22": protocol("fast_scnn_modelzoo"), "FS-23": masks_are_palettes,
    "FS-24": scores_are_complete, "FS-27": one_output, "FS-38": colours_are_official,
    "FS-39": quotes(ZOO, "55.48", "157 ms"), "FS-40": quotes(ZOO, "123.5 FPS", "68.0"),
    "FG-01": input_is_described, "FG-03": versions_are_noted, "FG-05": relative_paths_work,
    "FG-09": chip_is_asked_for, "FG-10": guides_lines_are_printed, "FG-11": bins_are_plain_tensors,
    "FG-12": results_of_ais_bench_are_scored, "FG-17": scores_are_printed,
    "FG-18": quotes("docs/ascend.md", "10.2", "12.9", "39.2", "32.7", "37.6"),
    "FG-19": quotes("docs/ascend.md", "68.6667", "68.6666"),
    "FC-06": wrong_keys_are_named, "FC-10": wrong_class_count_is_an_error, "FC-14": vgg16_is_loaded,
    "FC-19": both_forms_of_lists, "FC-20": old_records_are_read, "FC-21": steps_are_logged,
    "FC-23": scores_are_complete, "FC-26": parts_build_a_training, "FC-28": quotes(ZOO, "64.67", "564.7"),
    "EN-07": stages_are_the_old_ones, "EN-10": stages_share_a_curve, "EN-12": every_stage_has_weights,
    "EN-22": loss_is_scored_too, "EN-23": protocol("enet_modelzoo"),
    "EN-30": quotes(ZOO, "62.19", "62.22", "59.5", "882 ms", "571 ms"), "EN-31": parameters_are_counted,
    "BS-03": versions_are_pinned, "BS-06": wrong_number_of_weights_is_refused, "BS-13": protocol("bisenetv2_modelzoo"),
    "BS-15": rates_are_those_of_the_old_log, "BS-21": steps_are_logged, "BS-24": scores_are_complete,
    "BS-32": quotes(ZOO, "728 ms", "73.10", "69.37"),
}
