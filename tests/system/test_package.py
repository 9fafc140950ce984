"""The package as users get it: installed from its wheel outside the checkout, and run in a checkout without it."""
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from mindseg.config import load_config
from tests.support import ROOT
from tests.support.data import random_image, write_image
from tests.support.distributed import free_port
from tests.support.evaluation import make_streets, write_scores

WEIGHTS = next((ROOT / "weights").glob("fast_scnn_camvid-*.ckpt"))
THREE_LINES = """
import mindseg
segment = mindseg.load({model!r})
result = segment("photo.jpg")
result.save("overlay.png")
print(len(result.classes), result.ids.shape, result.overlay().shape, "mindspore" in __import__("sys").modules)
"""
Run = Callable[..., subprocess.CompletedProcess]


def plain_environment() -> dict[str, str]:
    """The environment of a user: nothing points to this checkout."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "COV_", "COVERAGE", "VIRTUAL_ENV"))}
    return kept | {"OMP_NUM_THREADS": "1"}


def make_environment(folder: Path) -> Path:
    """A virtual environment that sees this one's packages, but not mindseg; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "installed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")    # .pth files of there are not read
    return folder / "bin" / "python"


def build_wheel(folder: Path) -> Path:
    """Builds the wheel of this checkout with the build tools that are installed."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, folder, ROOT], check=True)
    return next(folder.glob("mindseg-*.whl"))


def runner(binaries: Path, folder: Path) -> Run:
    """A function that runs a program of an environment in a folder outside the checkout."""
    def run(program: str, *words: object, code: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run([str(binaries / program), *map(str, words)], cwd=folder, env=plain_environment(),
                              capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done
    return run


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Run, Path]:
    """A program runner of an environment with the wheel, and its folder with a photograph."""
    folder = tmp_path_factory.mktemp("user")
    python = make_environment(folder / "environment")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
                    build_wheel(folder)], check=True)
    (folder / "work").mkdir()
    write_image(folder / "work" / "photo.jpg", random_image(np.random.default_rng(1), 90, 120))
    return runner(folder / "environment" / "bin", folder / "work"), folder / "work"


def test_the_wheel_brings_the_command(installed):
    run, _ = installed
    listed = run("mindseg", "--help").stdout
    for name in ("train", "eval", "predict", "export", "preprocess", "postprocess", "check-dataset", "pack", "compare"):
        assert f"\n  {name} " in listed
        assert run("mindseg", name, "--help").stdout.startswith(f"usage: mindseg {name}")
    assert run("python", "-m", "mindseg", "--version").stdout == run("mindseg", "--version").stdout


def test_the_wheel_does_not_come_from_the_checkout(installed):
    run, _ = installed
    where = run("python", "-c", "import mindseg; print(mindseg.__file__)").stdout
    assert "environment" in where
    assert str(ROOT) not in where


def test_the_wheel_brings_the_configurations(installed):
    run, _ = installed
    done = run("mindseg", "train", "--config", "fast_scnn_camvid", "--set", "data.root=nothing", code=1)
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("mindseg", "train", "--config", "fast_scn_camvid", code=1)
    assert "did you mean 'fast_scnn_camvid'?" in done.stderr


def test_shipped_weights_segment_a_photograph(installed):
    run, folder = installed
    run("mindseg", "predict", "--ckpt_path", WEIGHTS, "--input", "photo.jpg", "--output", "out", "--save", "ids")
    ids = cv2.imread(str(folder / "out" / "photo_ids.png"), cv2.IMREAD_UNCHANGED)
    printed = run("python", "-c", THREE_LINES.format(model=str(WEIGHTS))).stdout
    assert printed.split("\n")[0] == "11 (90, 120) (90, 120, 3) True"
    assert cv2.imread(str(folder / "overlay.png")).shape == (90, 120, 3)
    assert ids.shape == (90, 120)


@pytest.mark.slow
def test_a_folder_for_a_hub_runs_with_and_without_mindspore(installed):
    run, folder = installed
    classes = load_config("fast_scnn_camvid").data.class_names
    scores = write_scores(folder / "eval.json", WEIGHTS, classes)
    run("mindseg", "publish", "--config", "fast_scnn_camvid", "--ckpt_path", WEIGHTS, "--eval", scores, "--dataset",
        "CamVid", "--data", "train", "--domain", "streets", "--terms", "none", "--hub", "hub", "--license", "mit")
    shutil.copytree(folder / "hub", folder / "fetched", ignore=shutil.ignore_patterns(".*"))
    printed = {}
    for mindspore in (True, False):
        code = THREE_LINES.format(model="fetched") + 'import numpy\nnumpy.save("ids.npy", result.ids)\n'
        if not mindspore:
            code = "import sys\nsys.modules['mindspore'] = None\n" + code.replace('"mindspore" in', "None is not")
        assert run("python", "-c", code).stdout.startswith("11 (90, 120) (90, 120, 3)")
        printed[mindspore] = np.load(folder / "ids.npy")
    run("python", "-c", THREE_LINES.format(model=str(WEIGHTS)) + 'import numpy\nnumpy.save("ids.npy", result.ids)\n')
    np.testing.assert_array_equal(printed[True], np.load(folder / "ids.npy"))
    # The exported model sees the photograph at 360x480.
    assert (printed[True] == printed[False]).mean() > 0.5


def test_a_wrong_command_is_one_line(installed):
    run, _ = installed
    done = run("mindseg", "trian", code=1)
    assert done.stderr.startswith("error: mindseg has no command 'trian'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_checkout_runs_where_nothing_is_installed(tmp_path):
    python = make_environment(tmp_path / "environment")
    run = runner(python.parent, tmp_path)
    assert "No module named 'mindseg" in run("python", "-c", "import mindseg.errors", code=1).stderr
    make_streets(tmp_path / "data", 2)
    (tmp_path / "data" / "leftImg8bit" / "val").rename(tmp_path / "data" / "leftImg8bit" / "train")
    (tmp_path / "data" / "gtFine" / "val").rename(tmp_path / "data" / "gtFine" / "train")
    settings = {"data.root": tmp_path / "data", "data.crop_size": "[32,64]", "data.num_workers": 1,
                "train.global_batch": 2, "train.steps": 1, "optim.warmup_steps": 0, "runtime.device_target": "CPU",
                "runtime.threads": 1, "runtime.output_dir": tmp_path / "runs"}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run("python", ROOT / "train.py", "--config", ROOT / "configs/fast_scnn/fast_scnn_cityscapes.yaml", *words)
    assert len(list(tmp_path.glob("runs/fast_scnn_cityscapes/*/ckpt/last.ckpt"))) == 1
    for verb in ("eval", "predict", "export", "preprocess", "postprocess"):
        assert run("python", ROOT / f"{verb}.py", "--help").stdout.startswith(f"usage: {verb}.py")


@pytest.mark.slow
def test_two_ranks_train_from_the_installed_wheel(installed, tmp_path):
    run, folder = installed
    make_streets(tmp_path / "data", 2)
    settings = {"data.root": tmp_path / "data", "data.train_split": "val", "data.crop_size": "[32,64]",
                "data.num_workers": 1, "train.global_batch": 4, "train.steps": 1, "optim.warmup_steps": 0,
                "runtime.device_target": "CPU", "runtime.output_dir": tmp_path / "runs"}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    python = Path(run("python", "-c", "import sys; print(sys.executable)").stdout.strip())
    command = [Path(sys.executable).parent / "msrun", "--worker_num=2", "--local_worker_num=2",
               f"--master_port={free_port()}", f"--log_dir={tmp_path / 'logs'}", "--join=True", "--cluster_time_out=60",
               "python", "-m", "mindseg", "train", "--config", "fast_scnn_cityscapes", *words]
    environment = plain_environment() | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("runs/fast_scnn_cityscapes/*/ckpt/last.ckpt"))) == 1


@pytest.mark.slow
def test_an_empty_environment_needs_only_pip(tmp_path):
    """Export folders without MindSpore, checkpoints with ``mindseg[train]``; packages come from the index."""
    from mindseg.config import load_config
    from mindseg.deploy.exporter import export

    cfg = load_config("fast_scnn_camvid", ["export.height=96", "export.width=128", "runtime.device_target=CPU"])
    export(cfg, WEIGHTS, ["ONNX", "MINDIR"], tmp_path / "export")
    wheel = build_wheel(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    run = runner(tmp_path / "environment" / "bin", tmp_path)
    write_image(tmp_path / "photo.jpg", random_image(np.random.default_rng(1), 90, 120))
    run("pip", "install", "--quiet", wheel)
    assert run("mindseg", "train", "--help", code=1).stderr == (
        "error: mindseg train needs the package mindspore; pip install 'mindseg[train]'\n")
    missing = run("python", "-c", THREE_LINES.format(model=str(WEIGHTS)), code=1).stderr
    assert "pip install 'mindseg[train]'" in missing
    run("pip", "install", "--quiet", "onnxruntime>=1.20,<1.32", "numpy<2")
    printed = run("python", "-c", THREE_LINES.format(model="export")).stdout
    assert printed == "11 (90, 120) (90, 120, 3) False\n"
    run("pip", "install", "--quiet", f"{wheel}[train]")
    assert run("python", "-c", THREE_LINES.format(model=str(WEIGHTS))).stdout == "11 (90, 120) (90, 120, 3) True\n"
    run("mindseg", "predict", "--ckpt_path", WEIGHTS, "--input", "photo.jpg", "--output", "out")
    assert (tmp_path / "out" / "photo_overlay.png").is_file()
