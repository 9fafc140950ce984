"""ADE20K, BDD100K and Mapillary Vistas: classes and colours as in second public lists, and their folders.

``tests/goldens/label_lists.json`` holds rows name, red, green, blue of mmsegmentation (ade.py, mapillary.py) and rows
name, id, train id, red, green, blue of https://github.com/bdd100k/bdd100k (label.py).
"""
import json

import numpy as np
import pytest

from mindseg.config import load_config
from mindseg.data.datasets import ADE20K, BDD100K, MAPILLARY, check_classes, list_samples
from mindseg.data.labels import IGNORE, UNMAPPED
from tests.support import ROOT
from tests.support.data import write_image

LISTS = json.loads((ROOT / "tests" / "goldens" / "label_lists.json").read_text())


def rows(info):
    return [[name, *colour] for name, colour in zip(info.classes, info.palette, strict=True)]


def test_ade20k():
    expected = LISTS["ade20k"]
    # The benchmark's list says television first, and television receiver as its second name.
    assert rows(ADE20K) == [["television" if row[0] == "television receiver" else row[0], *row[1:]] for row in expected]
    lut = ADE20K.label_lut()
    assert lut[:151].tolist() == [IGNORE, *range(150)]      # 0 is "other", which the benchmark leaves out
    assert set(lut[151:]) == {UNMAPPED}
    assert [lut[i] for i in ADE20K.train_to_id] == list(range(150))


def test_bdd100k():
    classes = sorted((row for row in LISTS["bdd100k"] if row[2] != 255), key=lambda row: row[2])
    assert [row[2] for row in classes] == list(range(19))
    assert rows(BDD100K) == [[row[0], *row[3:]] for row in classes]
    assert BDD100K.label_lut().tolist() == [*range(19), *[UNMAPPED] * 236, IGNORE]      # its masks hold train ids


def test_mapillary():
    *classes, last = LISTS["mapillary"]
    assert rows(MAPILLARY) == classes
    assert last[0] == "Unlabeled"
    lut = MAPILLARY.label_lut()
    assert lut[:66].tolist() == [*range(65), IGNORE]
    assert set(lut[66:]) == {UNMAPPED}


FOLDERS = {
    "ade20k": ("images/training", "annotations/training", "images/validation", "annotations/validation"),
    "bdd100k": ("images/10k/train", "labels/sem_seg/masks/train", "images/10k/val", "labels/sem_seg/masks/val"),
    "mapillary": ("training/images", "training/labels", "validation/images", "validation/v1.2/labels"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path, name):
    images = np.zeros((32, 40, 3), np.uint8)
    for i, folder in enumerate(FOLDERS[name]):
        for k in range(2):
            suffix = ("jpg", "png")[i % 2]
            write_image(tmp_path / folder / f"s{i // 2}{k}.{suffix}", images if suffix == "jpg" else images[..., 0])
    cfg = load_config(ROOT / "configs" / "fast_scnn" / f"fast_scnn_{name}.yaml", [f"data.root={tmp_path}"])
    check_classes(cfg)
    for i, split in enumerate(("train", "eval")):
        samples = list_samples(cfg.data, split)
        assert [sample.name for sample in samples] == [f"s{i}0", f"s{i}1"]
        assert all(str(sample.label.relative_to(tmp_path)).startswith(FOLDERS[name][2 * i + 1]) for sample in samples)
    (tmp_path / FOLDERS[name][1] / "s00.png").unlink()
    with pytest.raises(Exception, match=r"s00\.jpg: no label; searched .*s00\.png"):
        list_samples(cfg.data, "train")
    with pytest.raises(Exception, match="split 'none' is empty"):
        list_samples(cfg.data, "none")
