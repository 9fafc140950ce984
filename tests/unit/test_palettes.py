"""Default colours of classes against a difference of colours that is computed pair by pair (``tests/support``)."""
import itertools

import numpy as np
import pytest

from mindseg.data.datasets import CITYSCAPES, dataset_info, voc_palette
from mindseg.data.palettes import _ciede2000, arranged_palette, count_contacts, default_palette, differences
from tests.support.colours import VIENOT, ciede2000, difference, to_lab

# CIELAB of two colours and their difference: the supplementary test data of Sharma, Wu, Dalal, Color Res. Appl. 30(1),
# 2005, table 1.
SHARMA = np.fromstring("""
50 2.6772 -79.7751 50 0 -82.7485 2.0425    50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412    50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000   50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669                      50 -1 2 50 0 0 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792      50 2.49 -0.001 50 -2.49 0.0010 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195      50 2.49 -0.001 50 -2.49 0.0012 7.2195
50 -0.001 2.49 50 0.0009 -2.49 4.8045      50 -0.001 2.49 50 0.0010 -2.49 4.8045
50 -0.001 2.49 50 0.0011 -2.49 4.7461      50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492                 50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030                 50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000           50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000           50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082""", sep=" ").reshape(34, 7)


def smallest(palette, pairs=None, **how):
    return min(difference(palette[a], palette[b], **how)
               for a, b in pairs or itertools.combinations(range(len(palette)), 2))


def test_differences_are_those_of_the_published_table():
    expected = SHARMA[:, 6]
    np.testing.assert_allclose([ciede2000(row[:3], row[3:6]) for row in SHARMA], expected, atol=6e-5)
    np.testing.assert_allclose(_ciede2000(SHARMA[:, :3], SHARMA[:, 3:6]), expected, atol=6e-5)


def test_both_computations_agree_in_every_kind_of_vision(rng):
    first, second = rng.integers(0, 256, (2, 40, 3))
    expected = [[difference(a, b) for b in second] for a in first]
    np.testing.assert_allclose(differences(first, second), expected, atol=1e-6)


def test_nine_classes_are_apart_for_all_readers():
    palette = default_palette(9)
    assert smallest(palette) >= 21
    assert smallest(palette, visions=VIENOT) >= 21      # another model of the same deficiencies
    assert default_palette(4) == palette[:4]
    assert smallest(voc_palette(9)) < 10, "the colours of VOC are not: what this test refuses does exist"


@pytest.mark.parametrize("count", [1, 9, 40, 255])
def test_colours_are_their_own_and_never_dark(count):
    palette = default_palette(count)
    assert len(set(palette)) == count
    assert all(isinstance(value, int) and 0 <= value <= 255 for colour in palette for value in colour)
    assert to_lab((0, 0, 128))[0] < 15      # navy
    assert min(to_lab(colour)[0] for colour in palette) > 37


def label_map(areas: int, repeats: int = 1) -> np.ndarray:
    """The nearest of random points, whose classes take turns: a map with borders in all directions."""
    points = np.random.default_rng(0).random((areas * repeats, 2)) * 120
    grid = np.stack(np.meshgrid(range(120), range(120), indexing="ij"), -1)
    nearest = ((grid[:, :, None] - points) ** 2).sum(-1).argmin(-1)
    return (nearest % areas).astype(np.uint8)


def touching(label: np.ndarray) -> set[tuple[int, int]]:
    rows = zip(label[:, :-1].flat, label[:, 1:].flat, strict=True)
    columns = zip(label[:-1].flat, label[1:].flat, strict=True)
    return {(int(min(pair)), int(max(pair))) for pair in {*rows, *columns} if pair[0] != pair[1]}


@pytest.mark.parametrize("count", [12, 24])
def test_more_classes_are_apart_where_they_touch(count):
    label = label_map(count)
    pairs = touching(label)
    assert smallest(default_palette(count), pairs) < 20, "without the arrangement they are not"
    palette = arranged_palette(count_contacts(label)[:count, :count])
    assert smallest(palette, pairs) >= 20
    assert smallest(palette) >= 4
    assert len(set(palette)) == count


def test_where_too_many_classes_touch_colours_stay_distinct():
    """Nineteen classes that nearly all touch each other cannot be 20 apart; the documents say so."""
    contacts = count_contacts(label_map(19, 12))[:19, :19]
    assert (contacts > 0).mean() > 0.85
    palette = arranged_palette(contacts)
    assert 3 < smallest(palette) < 20
    assert len(set(arranged_palette(np.zeros((40, 40), np.int64)))) == 40


def test_contacts_are_counted_in_rows_and_columns():
    label = np.array([[0, 0, 1], [0, 2, 1]], np.uint8)
    counts = count_contacts(label)
    assert {(a, b): int(counts[a, b]) for a, b in np.argwhere(counts)} == {
        (0, 1): 1, (1, 0): 1, (0, 2): 2, (2, 0): 2, (1, 2): 1, (2, 1): 1}


def test_only_data_sets_without_colours_get_these():
    assert dataset_info({"name": "list", "class_names": ["a", "b"]}).palette == default_palette(2)
    own = [[0, 0, 0], [0, 0, 128]]
    assert dataset_info({"name": "list", "class_names": ["a", "b"], "palette": own}).palette == ((0, 0, 0), (0, 0, 128))
    assert dataset_info({"name": "cityscapes"}).palette == CITYSCAPES.palette
