"""check_dataset, class_weights and build_trainaug, run as a user runs them, against counts made by hand."""
import math
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image

from mindspore import Parameter, Tensor

from mindseg.checkpoint import Progress, save_checkpoint
from mindseg.commands import build_trainaug, check_dataset
from mindseg.commands import class_weights as class_weights_command
from mindseg.config import load_config
from mindseg.data.dataset_stats import DatasetStats, class_weights
from mindseg.data.datasets import CITYSCAPES, VOC, list_samples
from mindseg.data.labels import train_id_lut
from mindseg.data.sources import FolderSource, open_source
from mindseg.engine.class_weights import settle_class_weights
from mindseg.errors import ConfigError, DataError
from mindseg.losses import create_loss
from tests.support.data import (
    BASE,
    config,
    make_camvid,
    make_cityscapes,
    random_image,
    random_label,
    write_image,
    write_palette,
)

CAMVID = BASE / "camvid.yaml"


def check(run_cli, root, *words, base="camvid"):
    return run_cli("check-dataset", "--config", BASE / f"{base}.yaml", "--set", f"data.root={root}", *words)


def test_good_set_passes(tmp_path, rng, run_cli):
    make_camvid(tmp_path / "a b", rng, 5)
    make_camvid(tmp_path / "a b", rng, 3, "val", (40, 56))
    done = check(run_cli, tmp_path / "a b")
    assert done.returncode == 0, done.stderr
    for words in ("train: 5 samples", "5 of 64x48", "eval: 3 samples", "3 of 56x40", "pedestrian", "(ignored)",
                  "no errors", "mean ["):
        assert words in done.stdout


@pytest.mark.parametrize(("crop", "other", "noted"), [((48, 64), [], False), ((32, 80), [], True), ((49, 32), [], True),
                                                      ((49, 65), ["data.resize=[48, 64]"], False)])
def test_crops_beyond_the_images_are_noted(tmp_path, rng, capsys, crop, other, noted):
    make_camvid(tmp_path, rng, 3)
    cfg = config("camvid", tmp_path, f"data.crop_size={list(crop)}", *other)
    found, errors = check_dataset.check_split(cfg, "train", 5)
    assert (found is not None, errors) == (True, [])
    printed = capsys.readouterr().out
    assert ("3 images are smaller than a training crop of" in printed) == noted
    assert (f"of {crop[1]}x{crop[0]};" in printed) == noted


def test_pictures_are_recognised_after_compression(tmp_path, rng, run_cli):
    """The same picture as JPEG, smaller and brighter, in another split; other pictures are not the same."""
    make_camvid(tmp_path, rng, 4, "train", (120, 160))
    make_camvid(tmp_path, rng, 2, "val", (120, 160))
    smooth = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    changed = cv2.resize(np.clip(smooth * 1.1 + 5, 0, 255).astype(np.uint8), (120, 90))
    changed = cv2.imdecode(cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], cv2.IMREAD_COLOR)
    for split, image in (("train", smooth), ("val", changed)):
        write_image(tmp_path / split / "twin.png", image)
        write_image(tmp_path / f"{split}annot" / "twin.png", np.zeros(image.shape[:2], np.uint8))
    done = check(run_cli, tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "nearly the same" in line]
    assert line.startswith("  warning: 1 images are nearly the same as one of another split: twin = twin (train)")


def test_labels_that_disagree_with_a_network_come_on_a_page(tmp_path, rng, run_cli):
    make_camvid(tmp_path / "data", rng, 4, "val", (64, 96))
    config = BASE.parent / "fast_scnn" / "fast_scnn_camvid.yaml"
    (network,) = (BASE.parents[1] / "weights").glob("fast_scnn_camvid-*.ckpt")
    words = ["check-dataset", "--config", config, "--set", f"data.root={tmp_path / 'data'}", "--split", "val",
             "--ckpt_path", network, "--output", tmp_path]
    done = run_cli(*words, "--shown", "2")
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^    (\w+): ([\d.]+) % of the image are predicted as (\w+) and labelled otherwise",
                        done.stdout, re.MULTILINE)
    assert len({name for name, _, _ in listed}) == 2
    page = (tmp_path / "suspects_val.html").read_text(encoding="utf-8")
    assert page.count('<figure class="example">') == 4
    assert page.index(f"<span>{listed[0][0]}</span>") < page.index(f"<span>{listed[1][0]}</span>")
    refused = run_cli(*words)
    assert refused.returncode == 1
    assert "suspects_val.html" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert run_cli(*words[:-4], "--ckpt_path", tmp_path / "no.ckpt").stderr.startswith("error: --ckpt_path")


def test_every_kind_of_error_is_reported_in_one_run(tmp_path, rng, run_cli):
    make_camvid(tmp_path, rng, 9)
    make_camvid(tmp_path, rng, 2, "val")
    shutil.copy(tmp_path / "train" / "f001.png", tmp_path / "val" / "f001.png")
    train, labels = tmp_path / "train", tmp_path / "trainannot"
    label = cv2.imread(str(labels / "f000.png"), -1)
    label[:2] = 99
    write_image(labels / "f000.png", label)
    (labels / "f002.png").unlink()
    (train / "f003.png").unlink()
    (train / "f004.png").write_bytes(b"")
    data = (labels / "f005.png").read_bytes()
    (labels / "f005.png").write_bytes(data[:len(data) // 2])
    write_image(train / "f006.png", random_image(rng, 50, 64))
    write_image(labels / "f007.png", random_image(rng, 48, 64))
    done = check(run_cli, tmp_path, "--shown", "20")
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if line.startswith("  error: ")]
    for number, words in ((0, "label value 99 on 4.17 %"), (2, "no label"), (3, "label without an image"), (4, "empty"),
                          (5, "cut off"), (6, "64x50 but its label is 64x48"), (7, "label is colour")):
        assert sum(f"f00{number}" in line and words in line for line in lines) == 1, (number, words, lines)
    assert len(lines) == 7
    assert "7 errors" in done.stdout
    assert "   99  NOT A LABEL" in done.stdout
    assert "f001 (train)" in done.stdout                # the image that stands in both splits


def test_absent_classes_and_the_worst_files_are_named(tmp_path, rng, capsys):
    cfg = config("camvid", tmp_path)
    shares = {"f000": 0, "f001": 0.25, "f002": 0.5, "f003": 1}
    for name, share in shares.items():
        label = np.full((48, 64), 3, np.uint8)
        label[:, ::2] = 5
        label[:int(48 * share)] = 11
        write_image(tmp_path / "train" / f"{name}.png", random_image(rng, 48, 64))
        write_image(tmp_path / "trainannot" / f"{name}.png", label)
    shutil.copy(tmp_path / "train" / "f000.png", tmp_path / "train" / "f001.png")
    check_dataset.check_split(cfg, "train", 2)
    lines = capsys.readouterr().out.splitlines()
    absent = [name for i, name in enumerate(cfg.data.class_names) if i not in (3, 5)]
    assert f"  warning: 9 of 11 classes are absent: {', '.join(absent)}" in lines
    assert "  most ignored pixels: f003 100.0 %, f002 50.0 %" in lines
    assert "  warning: 1 samples have no labelled pixel, for example f003" in lines
    assert "  warning: 1 images stand in the split more than once: f000, f001 …" in lines
    shown = {words[0]: words[1:] for words in (line.split() for line in lines) if words and words[0].isdigit()}
    # Of four images one is ignored, one half and one a quarter: 2.25 are left, in halves.
    assert shown["3"] == [cfg.data.class_names[3], f"{100 * 2.25 / 2 / 4:.4f}", "3"]
    assert shown["11"] == ["(ignored)", f"{100 * 1.75 / 4:.4f}", "3"]


def test_missing_split_is_an_error(tmp_path, capsys):
    found, errors = check_dataset.check_split(config("camvid", tmp_path), "val", 5)
    assert found is None
    assert "split 'val' is empty: searched" in errors[0]
    assert "val: cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["cityscapes", "camvid", "voc"])
def test_a_split_without_any_label_is_one_line(tmp_path, rng, capsys, layout):
    """As when only the archive of the images was unpacked."""
    if layout == "cityscapes":
        make_cityscapes(tmp_path, rng, 3)
        shutil.rmtree(tmp_path / "gtFine")
    elif layout == "camvid":
        make_camvid(tmp_path, rng, 3)
        shutil.rmtree(tmp_path / "trainannot")
    else:
        make_voc_and_sbd(tmp_path, rng)
        shutil.rmtree(tmp_path / "VOC2012" / "SegmentationClass")
    found, errors = check_dataset.check_split(config(layout, tmp_path), "train", 5)
    assert found is None
    (error,) = errors
    assert "\n" not in error
    assert f"not one image with its label; {2 if layout == 'voc' else 3} files stand alone" in error
    searched = {"cityscapes": "gtFine/train", "camvid": "trainannot", "voc": "VOC2012/SegmentationClass"}[layout]
    assert f"{tmp_path / searched}/" in error
    assert "train: cannot be read" in capsys.readouterr().out


def test_summary_equals_counting_by_hand(tmp_path, rng):
    make_cityscapes(tmp_path, rng, 4)
    data = {"name": "cityscapes", "root": str(tmp_path)}
    samples = list_samples(data, "train")
    found = DatasetStats(FolderSource(samples), CITYSCAPES.label_lut())
    labels = np.stack([cv2.imread(str(s.label), -1) for s in samples])
    images = np.stack([cv2.imread(str(s.image)) for s in samples]).astype(float)[..., ::-1]
    assert np.array_equal(found.values, np.bincount(labels.ravel(), minlength=256))
    assert found.images_with[7] == sum((label == 7).any() for label in labels)
    assert found.sizes == {(128, 64): 4}
    mean, std = found.mean_std
    assert mean == pytest.approx(images.reshape(-1, 3).mean(0), abs=1e-9)
    assert std == pytest.approx(images.reshape(-1, 3).std(0), abs=1e-6)
    void = {name: share for share, name in found.void}
    assert void[samples[0].name] == pytest.approx((CITYSCAPES.id_to_train[cv2.imread(str(samples[0].label), -1)]
                                                   == 255).mean())


def test_weights_by_hand():
    # Three images of 100 pixels: class 0 in all (90, 90, 60), class 1 in two (10, 40), class 2 in one (10), 3 absent.
    pixels = np.array([240, 50, 10, 0])
    image_pixels = np.array([300, 200, 100, 0])
    enet = class_weights(pixels, image_pixels, "enet")
    assert enet == pytest.approx([1 / math.log(1.02 + p / 300) for p in (240, 50, 10, 0)])
    assert class_weights(pixels, image_pixels, "enet", 1.1)[3] == pytest.approx(1 / math.log(1.1))
    # Shares 0.8, 0.25, 0.1: the median is 0.25.
    assert class_weights(pixels, image_pixels, "median") == pytest.approx([0.25 / 0.8, 1, 2.5, 0])
    assert class_weights(pixels, image_pixels, "inverse") == pytest.approx([300 / 960, 300 / 200, 300 / 40, 0])
    for method in ("enet", "median", "inverse"):
        assert class_weights(pixels, image_pixels, method, power=0.5) == pytest.approx(
            np.sqrt(class_weights(pixels, image_pixels, method)))
    with pytest.raises(DataError, match="no labelled pixel"):
        class_weights(np.zeros(3), np.zeros(3), "enet")
    with pytest.raises(DataError, match="c = 1"):
        class_weights(pixels, image_pixels, "enet", 1.0)


def test_weights_from_folder_and_record(tmp_path, rng, run_cli):
    make_camvid(tmp_path / "d", rng, 6)
    samples = list_samples({"name": "list", "root": str(tmp_path / "d")}, "train")
    labels = [cv2.imread(str(s.label), -1) for s in samples]
    pixels = np.array([sum((label == c).sum() for label in labels) for c in range(11)])
    expected = [f"{1 / math.log(1.02 + p / pixels.sum()):.4f}" for p in pixels]
    built = run_cli("pack", "--config", CAMVID, "--root", tmp_path / "d", "--output",
                    tmp_path / "x.mindrecord", "--num_shards", 2)
    assert built.returncode == 0, built.stderr
    done = run_cli("class-weights", "--config", CAMVID, "--set", f"data.root={tmp_path / 'd'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"class_weights: [{', '.join(expected)}]"
    cfg = config("camvid", tmp_path / "d", "loss.class_weights=auto", "loss.class_weight_power=2")
    settle_class_weights(cfg, None, 1, True)
    assert cfg.loss.class_weights == pytest.approx([float(weight)**2 for weight in expected], rel=1e-3)
    cfg = config("camvid", tmp_path, f"data.mindrecord={tmp_path / 'x.mindrecord'}")
    counted = DatasetStats(open_source(cfg.data, "train"), train_id_lut(11, 11), images=False)
    assert np.array_equal(counted.class_pixels[:11], pixels)
    for c in range(11):
        assert counted.image_pixels[c] == sum((label < 11).sum() for label in labels if (label == c).any())
    found, errors = check_dataset.check_split(cfg, "train", 5)
    assert (found.samples, errors) == (6, [])
    assert np.array_equal(found.values[:11], pixels)


def test_a_resumed_run_keeps_its_class_weights(tmp_path):
    """The labels, which may have changed, are not read again."""
    saved = config("camvid", tmp_path, f"loss.class_weights={[*range(11)]}")
    save_checkpoint(tmp_path / "last.ckpt", [Parameter(Tensor([1.0]), name="w")], Progress(), saved)
    cfg = config("camvid", tmp_path / "gone", "loss.class_weights=auto")
    settle_class_weights(cfg, tmp_path / "last.ckpt", 1, True)
    assert cfg.loss.class_weights == [*range(11)]
    with pytest.raises(ConfigError, match=r"loss\.class_weights = auto: only train\.py"):
        create_loss(load_config(CAMVID, ["loss.class_weights=auto"]).loss, 255)


def test_weights_refuse_a_bad_label(tmp_path, rng, monkeypatch):
    make_camvid(tmp_path, rng, 2)
    write_image(tmp_path / "trainannot" / "f001.png", np.full((48, 64), 50, np.uint8))
    monkeypatch.setattr(sys, "argv", ["class-weights", "--config", str(CAMVID), "--set", f"data.root={tmp_path}"])
    with pytest.raises(DataError, match=r"f001.*label value 50 on 100 %"):
        class_weights_command.main()
    cfg = config("camvid", tmp_path, "loss.class_weights=auto", "data.on_error=skip")
    settle_class_weights(cfg, None, 1, True)
    pixels = np.bincount(cv2.imread(str(tmp_path / "trainannot" / "f000.png"), -1).ravel(), minlength=12)[:11]
    assert cfg.loss.class_weights == pytest.approx(1 / np.log(1.02 + pixels / pixels.sum()), abs=1e-4)


def make_voc_and_sbd(folder, rng):
    """Toy trees: VOC train a, b; VOC val c, d; SBD train b, c, e and val d, f. Lists with CRLF and no last line end."""
    voc, sbd = folder / "VOC2012", folder / "benchmark_RELEASE"
    for name in "abcdef":
        write_image(voc / "JPEGImages" / f"{name}.jpg", random_image(rng, 24, 32))
    for name in "abcd":
        write_palette(voc / "SegmentationClass" / f"{name}.png", random_label(rng, 24, 32, [0, 5, 255]))
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(b"a\nb\n")
    (lists / "val.txt").write_bytes(b"c\r\nd")
    (sbd / "dataset" / "cls").mkdir(parents=True)
    (sbd / "dataset" / "train.txt").write_bytes(b"b\r\nc\r\ne")
    (sbd / "dataset" / "val.txt").write_bytes(b"d\nf  \n\n")
    labels = {}
    for name in "bcdef":
        labels[name] = random_label(rng, 24, 32, list(range(21)))
        scipy.io.savemat(str(sbd / "dataset" / "cls" / f"{name}.mat"),
                         {"GTcls": {"Boundaries": np.zeros(3), "Segmentation": labels[name]}})
    return voc, sbd, labels


def test_trainaug_leaks_no_validation_image(tmp_path, rng, run_cli):
    voc, sbd, labels = make_voc_and_sbd(tmp_path, rng)
    done = run_cli("build-trainaug", "--voc", voc, "--sbd", sbd)
    assert done.returncode == 0, done.stderr
    assert "4 samples, 2 of VOC train and 2 of SBD; 2 SBD images left out" in done.stdout
    for root in (voc, tmp_path):
        data = {"name": "voc", "root": str(root), "train_split": "trainaug"}
        samples = {s.name: s for s in list_samples(data, "train")}
        assert sorted(samples) == ["a", "b", "e", "f"]
    assert samples["b"].label == voc / "SegmentationClass" / "b.png"        # VOC's own, with its border
    for name in "ef":
        written = Image.open(samples[name].label)
        assert np.array_equal(np.array(written), labels[name])
        assert tuple(written.getpalette()[15:18]) == VOC.palette[5]
    again = run_cli("build-trainaug", "--voc", voc, "--sbd", sbd)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr


def test_trainaug_list_elsewhere(tmp_path, rng, run_cli):
    voc, sbd, _ = make_voc_and_sbd(tmp_path, rng)
    (voc / "JPEGImages" / "e.jpg").rename(tmp_path / "e.jpg")
    write_image(sbd / "dataset" / "img" / "e.jpg", random_image(rng, 24, 32))          # only SBD has it
    output = tmp_path / "lists" / "aug.txt"
    done = run_cli("build-trainaug", "--voc", voc, "--sbd", sbd / "dataset", "--output", output)
    assert done.returncode == 0, done.stderr
    samples = list_samples({"name": "voc", "root": str(voc), "train_list": str(output)}, "train")
    assert [s.name for s in samples] == ["a", "b", "e", "f"]
    assert samples[2].image.samefile(sbd / "dataset" / "img" / "e.jpg")


@pytest.mark.parametrize(("damage", "words"), [
    (lambda voc, sbd: (sbd / "dataset" / "cls" / "e.mat").write_bytes(b"nothing"), "e.mat: no SBD label"),
    (lambda voc, sbd: (sbd / "dataset" / "cls" / "e.mat").unlink(), "e.mat: no such file"),
    (lambda voc, sbd: (voc / "JPEGImages" / "f.jpg").unlink(), "f.jpg: no such image"),
    (lambda voc, sbd: shutil.rmtree(sbd / "dataset" / "cls"), "no folder cls/"),
    (lambda voc, sbd: (voc / "ImageSets/Segmentation/val.txt").unlink(), "val.txt: no such list"),
    (lambda voc, sbd: (voc / "ImageSets/Segmentation/val.txt").write_bytes(b"a"), "'a' stands in train.txt and in"),
    (lambda voc, sbd: scipy.io.savemat(str(sbd / "dataset/cls/e.mat"),
                                       {"GTcls": {"Segmentation": np.full((4, 4), 21)}}), "values 21..21"),
])
def test_trainaug_bad_input(tmp_path, rng, damage, words):
    voc, sbd, _ = make_voc_and_sbd(tmp_path, rng)
    damage(voc, sbd)
    output = tmp_path / "aug.txt"
    with pytest.raises(DataError) as caught:
        build_trainaug.build(voc, build_trainaug.sbd_folder(sbd), output, tmp_path / "labels")
    assert words in str(caught.value)
    assert not output.exists()
