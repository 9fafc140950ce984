"""Scripts that write into a folder of their own leave a user's files alone."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.hostile import files_below


def run_script(script: str, *words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run a shell script of a checkout and capture its text."""
    return subprocess.run(["bash", str(script), *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=60,
                          check=False, env={**os.environ, **env})


@pytest.fixture
def checkout(tmp_path):
    """A folder with the scripts only, in which a user has data and runs; nothing can be installed or trained there."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "scripts" / "setup.sh").write_text("exit 7\n")
    for name in ("data/street.png", "runs/best.ckpt", "train.mindrecord"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("precious")
    return folder


@pytest.mark.parametrize("output", [".", "data", "train.mindrecord", "./runs/"])
def test_quick_start_takes_no_folder_of_the_user(checkout, output):
    before = files_below(checkout)
    done = run_script("scripts/quickstart.sh", cwd=checkout, OUTPUT=output)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {output}: holds files that this script did not make")
    assert done.stderr.count("\n") == 1
    assert files_below(checkout) == before


@pytest.mark.parametrize("output", ["new", "new/deep er", "empty"])
def test_quick_start_takes_new_folders_again_and_again(checkout, output):
    (checkout / "empty").mkdir()
    for _ in range(2):
        done = run_script("scripts/quickstart.sh", cwd=checkout, OUTPUT=output, CDPATH="/tmp")
        assert (done.returncode, "install what is missing failed with status 7" in done.stderr) == (1, True)
        (checkout / output / "data").mkdir(exist_ok=True)
        (checkout / output / "data" / "mine.png").write_text("precious")
    assert (checkout / output / "data" / "mine.png").read_text() == "precious"


def test_offline_inference_takes_no_folder_of_the_user(checkout):
    work = checkout / "my"
    for name in ("preprocess_Result/a.bin", "result_Files/a.png", "eval.json"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("precious")
    (checkout / "deploy.yaml").touch()
    before = files_below(checkout)
    for option in (("--set", "runtime.output_dir=my"), ()):
        done = run_script("scripts/run_infer_310.sh", ".", "data", *option, cwd=checkout, OUTPUT="my")
        assert done.returncode == 1
        assert done.stderr.startswith("error: my: holds files that this script did not make")
    assert files_below(checkout) == before
