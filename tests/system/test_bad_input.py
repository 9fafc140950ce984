"""Bad input ends with one line that names the file and the remedy, a status that is not 0, and nothing half-written."""
import shutil

import cv2
import numpy as np
import pytest

from mindseg.checkpoint import read_checkpoint

CONFIG = "configs/fast_scnn/fast_scnn_synthetic.yaml"


@pytest.fixture(scope="module")
def streets(tmp_path_factory, run_cli):
    """A small data set to damage copies of."""
    folder = tmp_path_factory.mktemp("streets") / "data"
    done = run_cli("tools/make_synthetic.py", "--output", folder, "--num", 2, "--num_val", 1, "--num_test", 0,
                   "--height", 64, "--width", 128)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def data(streets, tmp_path):
    return shutil.copytree(streets, tmp_path / "data")


def refused(done, *words):
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


def train(run_cli, data, tmp_path, *more):
    return run_cli("train.py", "--config", CONFIG, "--set", f"data.root={data}", "--set", "train.epochs=1", "--set",
                   "train.global_batch=2", "--set", "data.crop_size=[64, 64]", "--set",
                   f"runtime.output_dir={tmp_path / 'runs'}", *more)


def test_a_wrong_key(run_cli, data, tmp_path):
    refused(train(run_cli, data, tmp_path, "--set", "optim.learning_rate=1"), "optim.learning_rate", "optim.")
    assert not (tmp_path / "runs").exists()


def test_a_missing_label_file(run_cli, data, tmp_path):
    label = next((data / "gtFine" / "train").rglob("*labelIds.png"))
    label.unlink()
    refused(train(run_cli, data, tmp_path), label.name.split("_gtFine_")[0], "no label")
    assert not list(tmp_path.glob("runs/**/*.ckpt"))


def test_image_and_label_of_different_size(run_cli, data, tmp_path):
    label = next((data / "gtFine" / "train").rglob("*labelIds.png"))
    cv2.imwrite(str(label), np.full((32, 64), 7, np.uint8))
    refused(train(run_cli, data, tmp_path), label.name.split("_gtFine_")[0], "128x64", "64x32")
    refused(run_cli("pack", "--dataset", "cityscapes", "--root", data, "--output",
                    tmp_path / "packed" / "train.mindrecord"), "128x64")
    assert not list((tmp_path / "packed").glob("*")) if (tmp_path / "packed").exists() else True


def test_a_truncated_png(run_cli, data, tmp_path):
    image = next((data / "leftImg8bit" / "train").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:-500])
    refused(train(run_cli, data, tmp_path), image, "cut off")


def test_a_label_value_that_is_no_class(run_cli, data, tmp_path):
    """On the CPU MindSpore would crash on it, so it must never get there."""
    label = next((data / "gtFine" / "train").rglob("*labelIds.png"))
    ids = cv2.imread(str(label), -1)
    ids[:16] = 77
    cv2.imwrite(str(label), ids)
    refused(train(run_cli, data, tmp_path), label, "label value 77 on 25 % of the pixels")
    assert not list(tmp_path.glob("runs/**/*.ckpt"))
    refused(run_cli("pack", "--dataset", "cityscapes", "--root", data, "--output",
                    tmp_path / "train.mindrecord"), label, "label value 77")
    assert not list(tmp_path.glob("*train.mindrecord*"))
    # Left out instead, it is counted where a user looks.
    done = train(run_cli, data, tmp_path, "--set", "data.on_error=skip", "--set", "train.run_eval=false")
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = [run for run in tmp_path.glob("runs/*/*/train.log") if "finished" in run.read_text(encoding="utf-8")]
    text = log.read_text(encoding="utf-8")
    assert "skipped sample 1: " in text
    assert label.name in text
    assert "epoch 1: 1 of 2 samples skipped so far" in text


def test_no_such_manifest(run_cli, data, tmp_path):
    manifest, bins = tmp_path / "export" / "deploy.yaml", tmp_path / "bins"
    refused(run_cli("preprocess.py", "--manifest", manifest, "--dataset", data, "--output", bins), manifest)
    assert not bins.exists()


def test_no_such_checkpoint(run_cli, data, tmp_path):
    missing = tmp_path / "nowhere.ckpt"
    refused(run_cli("eval.py", "--config", CONFIG, "--ckpt_path", missing, "--set", f"data.root={data}", "--output",
                    tmp_path / "eval"), missing, "no such checkpoint")
    refused(run_cli("export.py", "--config", CONFIG, "--ckpt_path", missing, "--file_format", "ONNX", "--output",
                    tmp_path / "export"), missing, "no such checkpoint")
    assert not (tmp_path / "export").exists()


def test_an_output_folder_that_cannot_be_made(run_cli, data, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    refused(train(run_cli, data, tmp_path), tmp_path / "runs", "runtime.output_dir")


def test_pretrained_weights_that_are_no_weights(run_cli, data, tmp_path):
    wrong = tmp_path / "weights.ckpt"
    wrong.write_text("not a checkpoint")
    refused(train(run_cli, data, tmp_path, "--pretrained", wrong), wrong)
    assert not list(tmp_path.glob("runs/**/*.ckpt"))


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_checkpoint_before(run_cli, data, tmp_path, small_disk):
    """16 MB hold one checkpoint of Fast-SCNN, and not a second one beside it."""
    runs = small_disk(16)
    done = train(run_cli, data, tmp_path, "--set", "train.steps=4", "--set", "train.save_interval_steps=1", "--set",
                 f"runtime.output_dir={runs}")
    (kept,) = runs.glob("*/*/ckpt/last.ckpt")
    refused(done, kept.with_name("step2.ckpt"), "No space left on device", "free space")
    assert read_checkpoint(kept)[1]["step"] == 1
    assert sorted(path.name for path in kept.parent.iterdir()) == ["last.ckpt", "step1.ckpt"]
