"""The runner's output folder: nothing of the user's is replaced, and the results of each run have an identity."""
import hashlib
import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest

from mindseg.outputs import OutputFolder
from tests.support.hostile import files_below
from tests.support.runner import (
    RUN_FILES,
    TinyModel,
    assert_user_error,
    build_folder,
    make_images,
    read_summary,
    run_and_signal,
    segment,
)


@pytest.fixture
def model(tmp_path):
    return TinyModel(tmp_path / "model", seed=1)


def run(model, images, output, *options):
    return segment("run", "--manifest", model.yaml_path, "--input", images, "--output", output, *options)


@pytest.mark.parametrize(("source", "output", "words"), [
    ("photos", "photos", "is the folder of the input"),
    ("photos", "link", "is the folder of the input"),
    ("link", "photos/", "is the folder of the input"),
    ("photos/town", ".", "lies above the input"),
    ("photos/town/img_000.png", "photos/town", "is the folder of the input"),
    ("photos/town/img_000.png", "photos", "lies above the input"),
    ("photos", "photos/new/..", "is the folder of the input")])
def test_input_and_output_may_not_meet(tmp_path, model, source, output, words):
    make_images(tmp_path / "photos" / "town", 2, seed=2)
    (tmp_path / "link").symlink_to("photos")
    before = files_below(tmp_path)
    done = run(model, tmp_path / source, f"{tmp_path}/{output}")
    assert_user_error(done, f"--output {tmp_path}/{output}: ", words, "choose another --output")
    assert files_below(tmp_path) == before


def test_foreign_files_are_kept_unless_overwrite_is_given(tmp_path, model):
    make_images(tmp_path / "images", 3, seed=3)
    for number, name in enumerate(("img_002.png", "summary.json", "inputs.txt")):
        output = tmp_path / f"out{number}"
        output.mkdir()
        (output / name).write_text("mine", encoding="utf-8")
        done = run(model, tmp_path / "images", output)
        assert_user_error(done, f"{output / name}: exists and was not written by mindseg", "--overwrite")
        assert files_below(output) == {name: b"mine"}
        assert run(model, tmp_path / "images", output, "--overwrite").returncode == 0
        assert run(model, tmp_path / "images", output).returncode == 0      # now it is the runner's own
        assert {path.name for path in output.iterdir()} == RUN_FILES | {f"img_{i:03d}.png" for i in range(3)}


def test_results_inside_the_input_folder_are_no_input(tmp_path, model):
    make_images(tmp_path / "images", 2, seed=4)
    for _ in range(2):
        done = run(model, tmp_path / "images", tmp_path / "images" / "results")
        assert done.returncode == 0, done.stderr
        assert read_summary(tmp_path / "images" / "results")["images"] == 2


def test_python_and_the_runner_share_the_record(tmp_path, model):
    make_images(tmp_path / "images", 2, seed=5)
    with OutputFolder(tmp_path / "out") as output:
        output.claim(output.folder / "img_000.png")
        (output.folder / "img_000.png").write_text("a result", encoding="utf-8")
        done = run(model, tmp_path / "images", tmp_path / "out")
        assert_user_error(done, f"{tmp_path / 'out'}: another process writes results there")
    assert run(model, tmp_path / "images", tmp_path / "out").returncode == 0
    with OutputFolder(tmp_path / "out") as output:
        output.claim(*(output.folder / name for name in ("img_000.png", "img_001.png", "summary.json", "inputs.txt")))


def test_the_summary_says_what_was_run(tmp_path):
    model = TinyModel(tmp_path / "model", seed=6, batch=-1)
    make_images(tmp_path / "images", 3, seed=7)
    (tmp_path / "images" / "img_001.png").write_bytes(b"broken")
    assert run(model, tmp_path / "images", tmp_path / "out").returncode == 3
    summary = read_summary(tmp_path / "out")
    names = (tmp_path / "out" / "inputs.txt").read_bytes()
    assert names == b"img_000\nimg_001\nimg_002\n"
    assert (summary["program"], summary["status"]) == ("segment", "finished")
    assert (summary["images_expected"], summary["images"], summary["failures"]) == (3, 3, 1)
    for key, content in (("manifest", model.yaml_path.read_bytes()), ("model", model.path.read_bytes()),
                         ("inputs", names)):
        assert summary[f"{key}_sha256"] == hashlib.sha256(content).hexdigest()
    bins = tmp_path / "bins"
    bins.mkdir()
    for name in ("b", "a"):
        model.tensor(np.zeros((24, 40, 3), np.uint8)).tofile(bins / f"{name}.bin")
    (bins / "files.txt").write_text("b\na\n", encoding="utf-8")
    assert run(model, bins, tmp_path / "from bins").returncode == 0
    assert (tmp_path / "from bins" / "inputs.txt").read_bytes() == b"b\na\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_says_so_and_can_be_repeated(tmp_path, number):
    model = TinyModel(tmp_path / "model", seed=8, height=128, width=128)
    output = tmp_path / "out"
    _, pid, _ = run_and_signal(model, tmp_path, 2000, number)
    summary = read_summary(output)
    assert summary["status"] == ("running" if number == signal.SIGKILL else "interrupted")
    assert summary["images_expected"] == 2000
    assert len((output / "inputs.txt").read_bytes().splitlines()) == 2000
    # Such as the process would have left at another moment; a running process keeps its own.
    (output / f".img_000.png.mindseg-{pid}.tmp").write_bytes(b"half")
    running = output / f".img_000.png.mindseg-{os.getpid()}.tmp"
    running.write_bytes(b"half")
    shutil.rmtree(tmp_path / "images")
    make_images(tmp_path / "images", 1, seed=9, height=128, width=128)
    assert run(model, tmp_path / "images", output).returncode == 0
    assert read_summary(output)["status"] == "finished"
    assert [path for path in output.iterdir() if ".tmp" in path.name] == [running]


def test_names_that_are_not_utf8_give_results_and_json(tmp_path, model):
    images = tmp_path / "images"
    make_images(images, 1, seed=10)
    (images / "img_000.png").rename(os.fsdecode(bytes(images) + b"/\xe9t\xe9.png"))
    (images / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    done = subprocess.run([build_folder() / "out" / "segment", "run", "--manifest", model.yaml_path, "--input", images,
                           "--output", tmp_path / "out"], capture_output=True)
    assert done.returncode == 3, done.stderr
    assert os.path.exists(bytes(tmp_path / "out") + b"/\xe9t\xe9.png")
    assert (tmp_path / "out" / "inputs.txt").read_bytes() == b"\xe9t\xe9\n\xff\n"
    text = (tmp_path / "out" / "summary.json").read_bytes().decode("utf-8")
    assert json.loads(text)["failures"] == 1
