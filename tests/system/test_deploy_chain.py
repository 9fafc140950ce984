"""From an export to its mIoU with the C++ runner: in one command, and step by step."""
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mindseg.commands.postprocess import score
from mindseg.commands.preprocess import find_samples
from mindseg.config import load_config
from mindseg.deploy import exporter
from mindseg.inference.exported import open_exported
from tests.support import ROOT
from tests.support.data import make_cityscapes
from tests.support.networks import make_tiny_network
from tests.support.runner import build_folder

CONFIG = ROOT / "configs" / "fast_scnn" / "fast_scnn_cityscapes.yaml"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a blank in its name: ``data set`` and, for it, ``my export``."""
    folder = tmp_path_factory.mktemp("deploy") / "a folder"
    make_cityscapes(folder / "data set", np.random.default_rng(3), 4, "val", (64, 96))
    cfg = load_config(CONFIG, ["export.height=64", "export.width=96"])
    source = {"checkpoint": "best.ckpt", "checkpoint_sha256": "0" * 64}
    exporter.export_network(make_tiny_network(), cfg, source, ["ONNX"], folder / "my export")
    return folder


@pytest.fixture(scope="module")
def expected(work):
    """mIoU of the ONNX file in onnxruntime."""
    session = open_exported(work / "my export")
    spec = session.manifest.input
    scores = score(session.manifest, lambda sample, size: session(spec.read_image(sample.image)[None], size)[0],
                   find_samples(session.manifest, work / "data set"))
    assert 0 < scores["miou"] < 1
    return scores["miou"]


def run_script(work, *arguments, **variables):
    env = {**os.environ, "BACKEND": "openvino", "PYTHON": sys.executable, "OUTPUT": str(work / "out"),
           "RUNNER": str(build_folder() / "out" / "segment"), **variables}
    command = ["bash", str(ROOT / "scripts" / "run_infer_310.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=work, env=env)


@pytest.mark.parametrize("reads", ["bins", "images"])
def test_one_command(work, expected, tmp_path, reads):
    output = tmp_path / "work folder"
    # Relative paths in one case, absolute ones and the model's file in the other.
    arguments = ("my export", "data set")
    if reads == "images":
        arguments = (work / "my export" / "fast_scnn.onnx", work / "data set")
    done = run_script(work, *arguments, "0", "--set", f"runtime.output_dir={output}", "--save_masks", "color",
                      INPUT=reads)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert float(re.match(r"mIoU ([\d.]+) %", last)[1]) == pytest.approx(100 * expected, abs=0.01)
    record = json.loads((output / "eval.json").read_text())
    assert record["miou"] == pytest.approx(expected, abs=1e-4)
    assert record["images"] == 4
    assert record["runner"]["images"] == 4
    for name in ("build", "preprocess", "infer", "acc"):
        assert (output / f"{name}.log").stat().st_size > 0
    assert len(list((output / "masks").glob("*.png"))) == 4
    bins = list((output / "preprocess_Result").glob("*.bin"))
    assert len(bins) == (4 if reads == "bins" else 0)


def test_the_model_file_that_is_given_is_the_one_that_runs(work, expected, tmp_path):
    folder = tmp_path / "my export"
    cfg = load_config(CONFIG, ["export.height=64", "export.width=96", "export.batch_size=4"])
    source = {"checkpoint": "best.ckpt", "checkpoint_sha256": "0" * 64}
    shutil.copytree(work / "my export", folder)
    exporter.export_network(make_tiny_network(), cfg, source, ["ONNX"], folder)
    for name, batch in (("fast_scnn.onnx", 1), ("fast_scnn_bs4.onnx", 4)):
        done = run_script(work, folder / name, "data set", OUTPUT=str(tmp_path / "out"), BACKEND="auto")
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / "out" / "eval.json").read_text())
        assert (record["runner"]["model_file"], record["runner"]["batch"]) == (name, batch)
        assert record["miou"] == pytest.approx(expected, abs=1e-4)
    (folder / "other.onnx").write_bytes((folder / "fast_scnn.onnx").read_bytes())
    done = run_script(work, folder / "other.onnx", "data set", OUTPUT=str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stderr == (f"error: {folder}/other.onnx: not listed in {folder}/deploy.yaml; convert it with "
                           "scripts/convert_om.sh, or name a model file that is\n")
    assert not (tmp_path / "none").exists()


def test_step_by_step(work, expected, tmp_path):
    python, segment = [sys.executable], [build_folder() / "out" / "segment"]
    manifest = ["--manifest", "my export/deploy.yaml"]
    steps = [[*python, ROOT / "preprocess.py", *manifest, "--dataset", "data set", "--output", tmp_path / "bins"],
             [*segment, "run", *manifest, "--input", tmp_path / "bins", "--output", tmp_path / "result", "--backend",
              "openvino"],
             [*python, ROOT / "postprocess.py", *manifest, "--result", tmp_path / "result", "--dataset", "data set"]]
    for step in steps:
        done = subprocess.run([str(word) for word in step], capture_output=True, text=True, cwd=work)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result" / "eval.json").read_text())["miou"] == pytest.approx(expected, abs=1e-4)
    bins = sorted((tmp_path / "bins").glob("*.bin"))
    assert np.fromfile(bins[0], np.float32).size == 3 * 64 * 96


@pytest.mark.parametrize(("reads", "log"), [("bins", "preprocess"), ("images", "acc")])
def test_a_broken_image_is_named_by_the_step_that_meets_it(work, tmp_path, reads, log):
    data, words = tmp_path / "data", "bremen_000002_000020"
    make_cityscapes(data, np.random.default_rng(3), 4, "val", (64, 96))
    image = next((data / "leftImg8bit").rglob("bremen_000002*.png"))
    image.write_bytes(image.read_bytes()[:-30])
    done = run_script(work, "my export", data, OUTPUT=str(tmp_path / "out"), INPUT=reads)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"read {tmp_path / 'out' / log}.log")
    assert words in done.stderr
    assert words in (tmp_path / "out" / f"{log}.log").read_text()
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "eval.json").exists()


@pytest.mark.parametrize(("arguments", "variables", "words"), [
    (["nothing", "data set"], {}, "no deploy.yaml found"),
    (["my export", "nothing"], {}, "no such folder"),
    (["my export", "data set", "x"], {}, "DEVICE_ID x"),
    (["my export", "data set"], {"BACKEND": "cuda"}, "BACKEND=cuda"),
    (["my export", "data set"], {"INPUT": "video"}, "INPUT=video"),
    (["my export", "data set", "--set", "train.epochs=1"], {}, "only runtime.output_dir"),
    (["my export", "data set", "--fast"], {}, "unknown option --fast")])
def test_wrong_arguments_are_one_line(work, arguments, variables, words):
    done = run_script(work, *arguments, **variables)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (work / "out").exists()


def test_a_missing_model_file_is_named(work, tmp_path):
    (tmp_path / "deploy.yaml").write_bytes((work / "my export" / "deploy.yaml").read_bytes())
    done = run_script(work, tmp_path, "data set", OUTPUT=str(tmp_path / "out"))
    assert done.returncode == 1
    assert "fast_scnn.onnx" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("infer.log")
