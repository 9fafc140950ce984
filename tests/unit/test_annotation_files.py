"""The label files that benchmarks/own_labels_walk.py writes: what is imported of them, and what the tools draw."""
import shutil

import cv2
import numpy as np
import pytest

from benchmarks.support import annotation_files as tools
from mindseg.commands import import_labels
from tests.support.annotations import SIZE, read_labels, write_images

CLASSES, PALETTE = ["bus", "car", "road"], [(0, 60, 100), (0, 0, 142), (128, 64, 128)]


def patches(rng):
    """Regions with holes and regions in them, single pixels, lines one pixel wide, and unlabelled pixels."""
    label = cv2.resize(rng.integers(0, 3, (5, 7), np.uint8), SIZE[::-1], interpolation=cv2.INTER_NEAREST)
    for value, radius in ((0, 13), (1, 9), (tools.UNLABELLED, 5), (2, 2)):
        cv2.circle(label, (28, 20), radius, value, -1)
    label[3:30, 5] = 1
    label[33, 2:40] = tools.UNLABELLED
    label[rng.integers(0, SIZE[0], 30), rng.integers(0, SIZE[1], 30)] = rng.integers(0, 3, 30)
    return label


@pytest.fixture
def photographs(tmp_path, rng):
    files = {path.stem: path for path in write_images(tmp_path / "photos", 3)}
    return tools.Photographs(files, {name: patches(rng) for name in files}, CLASSES, PALETTE)


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Label maps of an import of a file or folder, with the classes in their order."""
    def run(place, *words):
        output = tmp_path / "out"
        shutil.rmtree(output, ignore_errors=True)
        monkeypatch.setattr("sys.argv", ["mindseg import-labels", "--input", str(place), "--images",
                                         str(tmp_path / "photos"), "--output", str(output), *map(str, words)])
        import_labels.main()
        return read_labels(output)
    return run


@pytest.mark.parametrize(("place", "write", "draw"), [
    ("photos", tools.write_labelme, tools.draw_labelme), ("a.json", tools.write_coco, tools.draw_coco),
    ("a.xml", tools.write_cvat_images, tools.draw_cvat_images)], ids=["labelme", "coco", "cvat"])
def test_polygons(photographs, tmp_path, imported, place, write, draw):
    """Outlines give every pixel back; straight sides give what the tool's own rule makes of them."""
    place = tmp_path / place
    for tolerance in (0, 1.5):
        write(tools.Photographs(photographs.files, photographs.labels, CLASSES, PALETTE, tolerance), place)
        found, drawn = imported(place, "--ignore", "background"), draw(place, CLASSES)
        assert found.keys() == drawn.keys() == photographs.labels.keys()
        for name, label in photographs.labels.items():
            assert np.array_equal(found[name], drawn[name])
            assert np.array_equal(found[name], label) == (tolerance == 0)


def test_masks(photographs, tmp_path, imported):
    tools.write_masks(photographs, tmp_path / "masks")
    tools.write_cvat_masks(photographs, tmp_path / "cvat")
    for words in (("masks", "--colors", tmp_path / "masks" / "colors.txt", "--ignore", "unlabelled"),
                  ("cvat", "--ignore", "background")):
        found = imported(tmp_path / words[0], *words[1:])
        for name, label in photographs.labels.items():
            assert np.array_equal(found[name], label)
