"""Samples found on disk, wrong descriptions and classes, and the tables that the official definitions fix."""
import re

import numpy as np
import pytest
from cityscapesscripts.helpers import labels as official

from mindseg.commands.arguments import read_config
from mindseg.config import load_config, load_schema
from mindseg.data.datasets import CITYSCAPES, DATASETS, VOC, dataset_info, list_samples, voc_palette
from mindseg.data.labels import IGNORE, UNMAPPED, train_id_lut
from mindseg.data.loader import create_loader
from mindseg.errors import ConfigError, DataError
from tests.support.data import make_camvid, make_cityscapes, random_image, write_image, write_palette


def listing(name, root, split="train", **more):
    return list_samples({"name": name, "root": str(root), **more}, split)


def test_cityscapes_tables_are_the_official_ones():
    scored = sorted((label.trainId, label) for label in official.labels if 0 <= label.trainId < 255)
    assert CITYSCAPES.classes == tuple(label.name for _, label in scored)
    assert CITYSCAPES.palette == tuple(label.color for _, label in scored)
    assert CITYSCAPES.train_to_id == tuple(label.id for _, label in scored)
    for label in official.labels:
        if label.id >= 0:
            assert CITYSCAPES.id_to_train[label.id] == (label.trainId if 0 <= label.trainId < 255 else IGNORE)
    assert (CITYSCAPES.id_to_train[34:] == UNMAPPED).all()


def test_voc_palette_and_table():
    # From the development kit's VOClabelcolormap.
    assert voc_palette(22)[:6] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128))
    assert voc_palette(22)[8] == (64, 0, 0)
    assert voc_palette(22)[20] == (0, 64, 128)
    assert voc_palette(256)[255] == (224, 224, 192)
    assert len(VOC.classes) == 21
    lut = VOC.label_lut()
    assert list(lut[:21]) == list(range(21))
    assert lut[255] == IGNORE
    assert (lut[21:255] == UNMAPPED).all()


def test_list_info_from_configuration():
    info = dataset_info({"name": "list", "class_names": ["a", "b"], "ignore_id": 7})
    assert info.classes == ("a", "b")
    assert len(info.palette) == 2
    lut = info.label_lut()
    assert [lut[v] for v in (0, 1, 2, 7, 255)] == [0, 1, UNMAPPED, IGNORE, IGNORE]
    binary = dataset_info({"name": "list", "class_names": ["no", "yes"], "label_map": {0: 0, 127: 1, 200: 255}})
    assert [binary.label_lut()[v] for v in (0, 1, 127, 200)] == [0, UNMAPPED, 1, IGNORE]


@pytest.mark.parametrize(("data", "words"), [
    ({"name": "ade"}, "must be one of cityscapes, voc, ade20k, bdd100k, mapillary, list"),
    ({"name": "list", "class_names": []}, "class_names"),
    ({"name": "list", "class_names": ["a", "b"], "palette": [[0, 0, 0]]}, "palette"),
    ({"name": "list", "class_names": ["a", "b"], "palette": [[0, 0, 0], [0, 0, 256]]}, "palette"),
    ({"name": "list", "class_names": ["a", "b"], "label_map": {0: 0, 1: 2}}, "train id 2"),
    ({"name": "list", "class_names": ["a", "b"], "label_map": {300: 0}}, "300"),
    ({"name": "list", "class_names": ["a", "b"], "label_map": {"road": 0}}, "label_map: 'road'"),
    ({"name": "list", "class_names": ["a", "b"], "label_map": {0: 0, 1: "car"}}, "label_map: 'car'"),
    ({"name": "list", "class_names": ["a", "b"], "label_map": {0: 0, 1: 0.5}}, "label_map: 0.5"),
    ({"name": "list", "class_names": ["a", "b"], "label_map": {0: 0, 1: None}}, "label_map: None"),
    ({"name": "list", "class_names": ["a"], "palette": [["a", "b", "c"]]}, "palette"),
    ({"name": "list", "class_names": ["a", "b", "c"], "palette": [1, 2, 3]}, "palette"),
    ({"name": "list", "class_names": ["a"], "palette": [[0.5, 0, 0]]}, "palette"),
])
def test_wrong_description_is_refused(data, words):
    with pytest.raises(DataError, match=words):
        dataset_info(data)


def test_cityscapes_scan(tmp_path, rng):
    names = make_cityscapes(tmp_path, rng, kinds=("labelIds", "labelTrainIds"))
    val = make_cityscapes(tmp_path, rng, 2, "val")
    samples = listing("cityscapes", tmp_path)
    assert sorted(s.name for s in samples) == names
    for sample in samples:
        assert sample.image.name == f"{sample.name}_leftImg8bit.png"
        assert sample.label.name == f"{sample.name}_gtFine_labelIds.png"
        assert sample.image.parent.name == sample.label.parent.name
    assert listing("cityscapes", tmp_path, label_file="labelTrainIds")[0].label.name.endswith("labelTrainIds.png")
    assert sorted(s.name for s in listing("cityscapes", tmp_path, "trainval")) == sorted(names + val)
    assert [s.name for s in listing("cityscapes", tmp_path, "eval", eval_split="val")] == val


def test_cityscapes_test_split_needs_no_labels(tmp_path, rng):
    write_image(tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", random_image(rng, 8, 8))
    (sample,) = listing("cityscapes", tmp_path, "test")
    assert sample.name == "berlin_000000_000019"
    assert sample.label is None


def test_list_equals_scan(tmp_path, rng):
    make_cityscapes(tmp_path, rng)
    scanned = listing("cityscapes", tmp_path)
    lines = [f"{s.image.relative_to(tmp_path)},{s.label.relative_to(tmp_path)}" for s in scanned]
    (tmp_path / "train.lst").write_text("\n".join(lines), encoding="utf-8")
    assert listing("cityscapes", tmp_path, train_list=str(tmp_path / "train.lst")) == scanned
    # Blank-separated, CRLF, byte order mark, comments and empty lines; paths relative to the list.
    (tmp_path / "lists").mkdir()
    text = "\ufeff# a comment\r\n\r\n" + "\r\n".join(line.replace(",", "  ") for line in lines)
    (tmp_path / "lists" / "other.txt").write_bytes(text.encode())
    assert listing("cityscapes", tmp_path, train_list=str(tmp_path / "lists" / "other.txt")) == scanned


def test_voc_in_both_forms(tmp_path, rng):
    devkit = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_000032", "2007_000039"):
        write_image(devkit / "JPEGImages" / f"{name}.jpg", random_image(rng, 16, 24))
        write_palette(devkit / "SegmentationClass" / f"{name}.png", np.zeros((16, 24), np.uint8))
    splits = devkit / "ImageSets" / "Segmentation"
    splits.mkdir(parents=True)
    (splits / "train.txt").write_bytes(b"2007_000032\r\n2007_000039")
    for root in (devkit, devkit.parent, tmp_path):
        assert [s.name for s in listing("voc", root)] == ["2007_000032", "2007_000039"]
    # The layout of the older MindSpore recipe: img/, cls_png/ and a list of names.
    old = tmp_path / "old"
    write_image(old / "img" / "a.jpg", random_image(rng, 16, 24))
    write_palette(old / "cls_png" / "a.png", np.zeros((16, 24), np.uint8))
    (old / "list.txt").write_text("a\n", encoding="utf-8")
    (sample,) = listing("voc", old, train_list=str(old / "list.txt"))
    assert sample.label == old / "cls_png" / "a.png"


def test_camvid_folders(tmp_path, rng):
    names = make_camvid(tmp_path, rng)
    samples = listing("list", tmp_path)
    assert [s.name for s in samples] == names
    assert all(s.label == tmp_path / "trainannot" / s.image.name for s in samples)


def test_equal_stems_get_their_folder(tmp_path, rng):
    lines = []
    for folder in ("north", "south"):
        write_image(tmp_path / folder / "0001.png", random_image(rng, 8, 8))
        write_image(tmp_path / "labels" / f"{folder}.png", np.zeros((8, 8), np.uint8))
        lines.append(f"{folder}/0001.png, labels/{folder}.png")
    (tmp_path / "train.txt").write_text("\n".join(lines), encoding="utf-8")
    assert [s.name for s in listing("list", tmp_path)] == ["north__0001", "south__0001"]
    (tmp_path / "train.txt").write_text("\n".join([lines[0], lines[0]]), encoding="utf-8")
    with pytest.raises(DataError, match="more than once"):
        listing("list", tmp_path)


def test_empty_split_says_what_was_searched(tmp_path):
    with pytest.raises(DataError, match=r"leftImg8bit/val/\*"):
        listing("cityscapes", tmp_path, "val")
    with pytest.raises(DataError, match=r"trainset\.txt.*trainset"):
        listing("list", tmp_path, "trainset")
    with pytest.raises(DataError, match=r"Segmentation/train\.txt"):
        listing("voc", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        listing("voc", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.root"):
        list_samples({"name": "voc", "root": None}, "train")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no samples"):
        listing("list", tmp_path, train_list=str(tmp_path / "empty.txt"))


def test_missing_and_extra_labels(tmp_path, rng):
    make_cityscapes(tmp_path, rng)
    label = next((tmp_path / "gtFine").rglob("bremen_000002_*_labelIds.png"))
    stray = label.with_name("bremen_000099_000019_gtFine_labelIds.png")
    label.rename(stray)
    with pytest.raises(DataError, match=r"bremen_000002_000019_leftImg8bit\.png: no label; searched .*labelTrainIds"):
        listing("cityscapes", tmp_path)
    (tmp_path / "leftImg8bit/train/bremen/bremen_000002_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match=r"bremen_000099.*without an image"):
        listing("cityscapes", tmp_path)

    camvid = tmp_path / "camvid"
    make_camvid(camvid, rng)
    (camvid / "trainannot" / "f003.png").rename(camvid / "trainannot" / "g.png")
    with pytest.raises(DataError, match=r"f003\.png: no label"):
        listing("list", camvid)
    (camvid / "train" / "f003.png").unlink()
    with pytest.raises(DataError, match=r"g\.png: label without an image"):
        listing("list", camvid)


@pytest.mark.parametrize(("line", "words"), [
    ("a.png b.png c.png", "not of the form"), ("a.png", "not of the form"), ("a.png,missing.png", "no such file")])
def test_bad_line_names_list_and_number(tmp_path, rng, line, words):
    write_image(tmp_path / "a.png", random_image(rng, 8, 8))
    (tmp_path / "l.txt").write_text(f"# first\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"l\.txt:2: .*{words}"):
        listing("list", tmp_path, train_list=str(tmp_path / "l.txt"))


def test_encoding_is_told_by_values():
    def files(*values):
        return [np.array([v], np.uint8) for v in values]

    ids, train_ids = CITYSCAPES.label_lut(), train_id_lut(19)
    for values, name, expected in ((files([7, 8], [0, 33]), "", ids),
                                   (files([7, 8], [3, 255]), "x_labelIds.png", train_ids),
                                   (files([7, 8]), "x_gtFine_labelTrainIds.png", train_ids),
                                   (files([7, 8]), "x_gtFine_labelIds.png", ids)):
        assert np.array_equal(CITYSCAPES.choose_lut("auto", values, name), expected)
    assert np.array_equal(CITYSCAPES.choose_lut("labelTrainIds", files([0, 33]), ""), train_ids)
    assert np.array_equal(CITYSCAPES.choose_lut("labelIds", files([255]), ""), ids)
    assert np.array_equal(VOC.choose_lut("auto", files([19, 33]), ""), VOC.label_lut())


@pytest.mark.parametrize(("text", "words"), [
    ("model: {num_classes: 7}", ["model.num_classes = 7", "19", "set model.num_classes=19"]),
    ("data: {void_class: true}", ["19, but", "20 classes (void included)", "model.num_classes=20"]),
    ("data: {name: list}", ["data.class_names"]),
    ("data: {name: list, class_names: [a, b]}", ["data.name = list has 2 classes", "set model.num_classes=2"]),
])
def test_class_count_is_checked_by_commands_and_by_the_loader(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path / "bad.yaml")
    for word in ["bad.yaml: ", *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=re.escape(words[0])):
        create_loader(load_config(tmp_path / "bad.yaml"), "train")


def test_every_data_set_is_a_legal_value_of_the_key():
    assert load_schema()["data"]["name"].type.split("/") == list(DATASETS)
