"""The main job as a user does it, small: streets -> MindRecord -> train -> export -> four programs with one mIoU."""
import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support.runner import build_folder

CONFIG = "configs/fast_scnn/fast_scnn_synthetic.yaml"


def check(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def job(tmp_path_factory, run_cli):
    """Runs the whole job once; the folder's name has a space on purpose."""
    folder = tmp_path_factory.mktemp("main job")
    data = folder / "data"
    check(run_cli("tools/make_synthetic.py", "--output", data, "--num", 6, "--num_val", 3, "--num_test", 0,
                  "--height", 128, "--width", 256))
    for split in ("train", "val"):
        check(run_cli("pack", "--dataset", "cityscapes", "--root", data, "--split", split,
                      "--output", folder / f"{split}.mindrecord"))
    common = ["--config", CONFIG, "--set", f"data.root={data}", "--set",
              f"data.mindrecord={folder / 'train.mindrecord'}", "--set",
              f"data.eval_mindrecord={folder / 'val.mindrecord'}"]
    check(run_cli("train.py", *common, "--run_eval", "--set", f"runtime.output_dir={folder / 'runs'}", "--set",
                  "train.epochs=2", "--set", "train.global_batch=3", "--set", "data.crop_size=[64, 128]", "--set",
                  "train.eval_interval=1", "--set", "train.eval_start=1", "--set", "train.log_interval=1"))
    run = next((folder / "runs" / "fast_scnn_synthetic").iterdir())
    ckpt = run / "ckpt" / "best.ckpt"
    check(run_cli("export.py", *common, "--ckpt_path", ckpt, "--file_format", "MINDIR", "ONNX", "--output",
                  folder / "export", "--set", "export.height=128", "--set", "export.width=256"))
    for form in ("ONNX", "MINDIR"):
        check(run_cli("eval.py", *common, "--manifest", folder / "export" / "deploy.yaml", "--file_format", form,
                      "--output", folder / form))
    check(run_cli("eval.py", *common, "--ckpt_path", ckpt, "--output", folder / "ckpt", "--report", "--beside",
                  f"ONNX={folder / 'ONNX' / 'eval.json'}"))
    return {"folder": folder, "run": run, "common": common}


def test_the_run_folder_describes_the_run(job, run_cli):
    run = job["run"]
    for name in ("config.yaml", "env.json", "train.log", "rank0.log", "metrics.csv"):
        assert (run / name).is_file(), name
    assert {path.name for path in (run / "ckpt").iterdir()} >= {"last.ckpt", "best.ckpt"}
    with open(run / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows if row["phase"] == "train"] == ["1", "2", "3", "4"]
    assert len([row for row in rows if row["phase"] == "eval"]) == 2
    assert all(float(row["loss"]) > 0 and float(row["step_ms"]) > 0 for row in rows if row["phase"] == "train")
    log = (run / "train.log").read_text()
    assert "epoch 1/2 step 1/4 loss" in log
    assert "images/s" in log
    assert "eta" in log
    env = json.loads((run / "env.json").read_text())
    assert env["onednn_max_cpu_isa"] == os.environ["ONEDNN_MAX_CPU_ISA"]
    # The resolved configuration is a configuration: it evaluates to the same score.
    check(run_cli("eval.py", "--config", run / "config.yaml", "--ckpt_path", run / "ckpt" / "best.ckpt", "--output",
                  job["folder"] / "again"))
    assert miou(job, "again") == miou(job, "ckpt")


def miou(job: dict, program: str) -> float:
    return json.loads((job["folder"] / program / "eval.json").read_text())["miou"]


def differing_pixels(job: dict, program: str) -> float:
    """Share of the pixels that fell into another cell of the confusion matrix. After two epochs a class may own a
    handful of pixels, so that mIoU jumps when one of them changes."""
    ours, other = (np.array(json.loads((job["folder"] / name / "eval.json").read_text())["confusion"])
                   for name in ("ckpt", program))
    return np.abs(ours - other).sum() / 2 / ours.sum()


def test_checkpoint_and_exported_models_agree(job):
    assert 0 < miou(job, "ckpt") < 1
    for form in ("ONNX", "MINDIR"):
        assert differing_pixels(job, form) < 1e-3


def run_the_runner(job: dict, root: Path, output: str, **variables: str) -> None:
    """Runs scripts/run_infer_310.sh and compares its score with that of the checkpoint."""
    folder = job["folder"]
    command = ["bash", root / "scripts" / "run_infer_310.sh", folder / "export", folder / "data", "0", "--set",
               f"runtime.output_dir={folder / output}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False,
                          env=os.environ | {"BACKEND": "openvino", **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    assert differing_pixels(job, output) < 1e-3
    for name in ("build.log", "preprocess.log", "infer.log", "acc.log"):
        assert (folder / output / name).stat().st_size > 0, name
    summary = json.loads((folder / output / "result_Files" / "summary.json").read_text())
    assert (summary["images"], summary["failures"], summary["simulated"]) == (3, 0, False)


def test_the_runner_agrees_and_leaves_its_logs(job, root):
    run_the_runner(job, root, "runner", RUNNER=str(build_folder() / "out" / "segment"))


@pytest.mark.slow
def test_the_script_builds_the_runner(job, root):
    run_the_runner(job, root, "built", RUNNER="")
    assert "building in" in (job["folder"] / "built" / "build.log").read_text()


def test_a_manifest_whose_model_file_is_missing_is_refused(job, run_cli, root, tmp_path):
    manifest = shutil.copy(job["folder"] / "export" / "deploy.yaml", tmp_path)
    done = run_cli("eval.py", *job["common"], "--manifest", manifest, "--output", tmp_path / "eval")
    runner = subprocess.run([build_folder() / "out" / "segment", "run", "--manifest", manifest, "--input",
                             job["folder"] / "data" / "leftImg8bit" / "val", "--output", tmp_path / "masks"],
                            capture_output=True, text=True, timeout=60, check=False)
    for process in (done, runner):
        assert process.returncode == 1
        assert len([line for line in process.stderr.splitlines() if line.startswith("error: ")]) == 1
        assert str(tmp_path / "fast_scnn.onnx") in process.stderr
        assert "Traceback" not in process.stderr
    assert not (tmp_path / "masks").exists()


def test_the_page_shows_both_programs(job):
    page = (job["folder"] / "ckpt" / "report.html").read_text()
    assert "Other programs" in page
    assert f"{100 * miou(job, 'ONNX'):.2f}" in page
