"""Colours, overlays, error maps and label files."""
import cv2
import numpy as np
import pytest
from PIL import Image

from mindseg.data.datasets import CITYSCAPES, VOC
from mindseg.drawing import (
    CORRECT,
    UNSCORED,
    WRONG,
    colorize,
    error_map,
    legend,
    overlay,
    save_palette_png,
    save_png,
    side_by_side,
    to_label_ids,
)
from mindseg.errors import DataError, UserError


def test_known_colours():
    ids = np.array([[0, 10, 13, 255]], np.uint8)
    shown = colorize(ids, CITYSCAPES.palette)
    assert shown.tolist() == [[[128, 64, 128], [70, 130, 180], [0, 0, 142], [0, 0, 0]]]
    # The devkit's colour map, by hand: person is class 15 = 01111b.
    assert colorize(np.array([[15]], np.uint8), VOC.palette).tolist() == [[[192, 128, 128]]]


def test_overlay_mixes_by_alpha_and_leaves_void_alone(rng):
    image = rng.integers(0, 256, (4, 6, 3), np.uint8)
    ids = rng.integers(0, 19, (4, 6)).astype(np.uint8)
    ids[0] = 255
    out = overlay(image, ids, CITYSCAPES.palette, alpha=0.25)
    expected = 0.75 * image + 0.25 * np.array(CITYSCAPES.palette)[np.minimum(ids, 18)]
    assert np.abs(out[1:] - expected[1:]).max() <= 1
    np.testing.assert_array_equal(out[0], image[0])
    with pytest.raises(DataError, match="differ in size"):
        overlay(image, ids[:2], CITYSCAPES.palette)


def test_image_truth_and_prediction_side_by_side(rng):
    image = rng.integers(0, 256, (4, 6, 3), np.uint8)
    label, pred = (rng.integers(0, 19, (4, 6)).astype(np.uint8) for _ in range(2))
    label[0, 0] = 255
    colours = np.array([*CITYSCAPES.palette, *[(0, 0, 0)] * 237])
    expected = np.concatenate([image, colours[label], colours[pred]], axis=1)
    np.testing.assert_array_equal(side_by_side(image, label, pred, CITYSCAPES.palette, 512), expected)
    # Half the size: means of 2x2 pixels, and ids that stay ids.
    small = side_by_side(np.repeat(np.repeat(image, 2, 0), 2, 1), np.repeat(np.repeat(label, 2, 0), 2, 1),
                         np.repeat(np.repeat(pred, 2, 0), 2, 1), CITYSCAPES.palette, 6)
    np.testing.assert_array_equal(small, expected)


def test_error_map(rng):
    label = np.array([[0, 1, 255]], np.uint8)
    pred = np.array([[0, 2, 3]], np.uint8)
    assert [tuple(c) for c in error_map(pred, label)[0].tolist()] == [CORRECT, WRONG, UNSCORED]
    shown = error_map(pred, label, rng.integers(0, 256, (1, 3, 3), np.uint8))
    assert shown[0, 1, 0] > 2 * shown[0, 1, 2], "wrong pixels stay orange over any image"
    with pytest.raises(DataError, match="differ in size"):
        error_map(pred[:, :2], label)


def test_legend_shows_every_colour():
    picture = legend(CITYSCAPES.classes, CITYSCAPES.palette, columns=3)
    colours = {tuple(c) for c in picture.reshape(-1, 3).tolist()}
    assert set(CITYSCAPES.palette) <= colours


def test_palette_png(tmp_path, rng):
    ids = rng.integers(0, 19, (5, 7)).astype(np.uint8)
    ids[0, 0] = 255
    path = tmp_path / "mask.png"
    save_palette_png(path, ids, CITYSCAPES.palette)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), ids)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colorize(ids, CITYSCAPES.palette))
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"]


@pytest.mark.parametrize(("shape", "dtype"), [((5, 7, 3), np.uint8), ((5, 7), np.uint8), ((5, 7), np.uint16)])
def test_png_round_trip(tmp_path, rng, shape, dtype):
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    save_png(tmp_path / "x.png", pixels)
    with Image.open(tmp_path / "x.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_label_ids_are_official(rng):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    ids = rng.integers(0, 19, (6, 6)).astype(np.uint8)
    official = np.vectorize(lambda k: labels.trainId2label[k].id)(ids)
    np.testing.assert_array_equal(to_label_ids(ids, CITYSCAPES.train_to_id), official)
    assert to_label_ids(np.array([[255]], np.uint8), CITYSCAPES.train_to_id)[0, 0] == 0
    assert to_label_ids(ids, None) is ids


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x\.png"):
        save_png(tmp_path / "file" / "x.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(UserError, match=r"file/x\.png"):
        save_palette_png(tmp_path / "file" / "x.png", np.zeros((2, 2), np.uint8), VOC.palette)


def test_palette_png_reads_as_ids_everywhere(tmp_path):
    """OpenCV has no palette: it must be read through Pillow, which this test reminds of."""
    save_palette_png(tmp_path / "x.png", np.full((2, 2), 13, np.uint8), CITYSCAPES.palette)
    assert cv2.imread(str(tmp_path / "x.png"))[0, 0, ::-1].tolist() == [0, 0, 142]
