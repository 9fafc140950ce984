"""Labels of annotation tools, from their files to a training, with the commands of a user."""
import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.annotations import SIZE, labelme, write_images
from tests.support.runner import require_toolchain

SIZES = (96, 128)
SHAPES = [{"label": "road", "points": [[0, 60], [127, 60], [127, 95], [0, 95]]},
          {"label": "car", "points": [[30, 50], [70, 80]], "shape_type": "rectangle"}]


@pytest.fixture
def photos(tmp_path):
    for path in write_images(tmp_path / "photos", 10, SIZES):
        labelme(path.with_suffix(".json"), SHAPES, SIZES)
    return tmp_path / "photos"


def test_ten_files_of_labelme_pass_the_check(tmp_path, photos, run_cli):
    done = run_cli("import-labels", "--input", photos, "--output", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert "10 images in the format labelme, 8 to train and 2 to evaluate on" in done.stdout
    assert done.stdout.splitlines()[-1] == f"train with: python train.py --config {tmp_path}/mine/mine.yaml"
    done = run_cli("check-dataset", "--config", tmp_path / "mine" / "mine.yaml")
    assert done.returncode == 0, done.stdout
    for words in ("train: 8 samples", "eval: 2 samples", "background", "road", "car", "8 of 128x96", "no errors"):
        assert words in done.stdout
    assert "warning" not in done.stdout
    assert "note" not in done.stdout        # such as a crop that is larger than the images


@pytest.mark.slow
def test_ten_files_of_labelme_train_with_the_second_command(tmp_path, photos, run_cli):
    done = run_cli("import-labels", "--input", photos, "--output", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_cli("train", "--config", "mine/mine.yaml", "--set", "train.steps=12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "finished after" in done.stdout + done.stderr
    run, = (tmp_path / "outputs" / "mine").iterdir()
    assert (run / "ckpt" / "last.ckpt").is_file()
    with open(run / "metrics.csv", newline="") as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream) if row["phase"] == "train"]
    assert len(losses) >= 2
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_the_walk_of_two_users_in_small(tmp_path):
    """Six commands from labels to the C++ runner: the labels are the tools' own, and the runner scores as eval does."""
    require_toolchain()
    command = [sys.executable, ROOT / "benchmarks" / "own_labels_walk.py", "--count", "8", "--epochs", "2", "--formats",
               "labelme", "masks", "--work", tmp_path / "walk"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, first, second = done.stdout.split("| |")
    rows, (_, *polygons) = ([[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]
                             if line.startswith("|")] for table in (first, second))
    walk = {row: cells for row, *cells in rows}
    assert sum(row[:3] in ("1. ", "2. ", "3. ", "4. ", "5. ", "6. ") for row in walk) == len(walk) - 6 == 6
    assert walk["labels as the tool draws them"] == ["all", ""]
    assert walk["labels as in the data set"][1] == "all"
    assert float(walk["labels as in the data set"][0].rstrip(" %")) > 98
    assert ["labels as the tool draws them", "all"] in polygons
    for column in range(2):
        scores = [float(walk[f"mIoU, {program}"][column].rstrip(" %")) for program in ("eval", "C++ runner")]
        assert scores[0] == pytest.approx(scores[1], abs=0.05)
        assert scores[0] > 0
    for name in ("labelme", "masks"):
        run, = (tmp_path / "walk" / name / "outputs" / "mine").iterdir()
        assert (run / "report.html").is_file()


def test_a_long_file_is_never_printed(tmp_path, run_cli):
    """A COCO file without images: the message stays short, whatever the file holds."""
    write_images(tmp_path / "d", 2, SIZE)
    annotations = [{"id": i, "image_id": 1, "category_id": 1, "segmentation": [[0.5] * 600]} for i in range(100)]
    (tmp_path / "d" / "a.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "p00.png"}, {"id": 2, "file_name": "none.png"}], "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}]}))
    done = run_cli("import-labels", "--input", tmp_path / "d", "--output", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "the image 'none.png' is not below" in done.stderr
    assert len(done.stderr) < 400
