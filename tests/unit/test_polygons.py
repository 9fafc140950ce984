"""Polygons of masks, drawn back by the rules of COCO (pycocotools) and of LabelMe."""
import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from mindseg.data.annotations import rules
from mindseg.inference.polygon_files import coco_annotation, labelme_tree
from mindseg.inference.polygons import find_regions

SIZE = (60, 80)


def draw(region, size):
    """The mask of a region's COCO annotation."""
    return coco.decode(coco.merge(coco.frPyObjects(coco_annotation(region)["segmentation"], *size)))


def blobs(rng, sigma, classes=5, size=SIZE):
    """A mask of random blobs; the smaller sigma, the rougher."""
    field = cv2.GaussianBlur(rng.normal(size=size).astype(np.float32), (0, 0), sigma)
    return np.digitize(field, np.quantile(field, np.arange(1, classes) / classes)).astype(np.uint8)


def ellipse(size, center, axes, angle):
    y, x = np.mgrid[:size[0], :size[1]] - np.array(center, float).reshape(2, 1, 1)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return ((u / axes[0]) ** 2 + (v / axes[1]) ** 2 <= 1).astype(np.uint8)


def fill(mask, start):
    """Pixels connected to ``start`` by their sides, found one by one."""
    height, width = mask.shape
    found, todo = np.zeros(mask.shape, np.uint8), [start]
    while todo:
        y, x = todo.pop()
        if 0 <= y < height and 0 <= x < width and not found[y, x] and mask[y, x] == mask[start]:
            found[y, x] = 1
            todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return found


def check(ids):
    """Each region is a connected part, no pixel is left over, and what is drawn back is the region, to the pixel."""
    regions, seen = find_regions(ids), np.zeros(ids.shape, int)
    for region in regions:
        drawn = draw(region, ids.shape)
        x, y = region.border[0]
        assert np.array_equal(drawn, fill(ids, (y, x)))
        assert set(np.unique(ids[drawn > 0])) == {region.class_id}
        assert region.area == drawn.sum()
        ys, xs = np.nonzero(drawn)
        assert region.box == (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
        seen += drawn
    assert (seen == 1).all()
    return regions


@pytest.mark.parametrize("sigma", [0.4, 1, 3])
def test_blobs_come_back_to_the_pixel(rng, sigma):
    assert len(check(blobs(rng, sigma))) > 20


def test_every_class_and_pixels_that_touch_at_corners(rng):
    check(rng.integers(0, 2, (20, 30), np.uint8))
    check((np.indices((16, 20)).sum(0) % 2).astype(np.uint8))
    ids = np.arange(19, dtype=np.uint8).reshape(1, 19).repeat(3, 0)
    assert [region.class_id for region in check(ids)] == list(range(19))


def test_full_images_single_pixels_and_lines():
    assert check(np.zeros((7, 9), np.uint8))[0].rings[0]
    check(np.zeros((1, 1), np.uint8))
    ids = np.zeros((9, 12), np.uint8)
    ids[4, 4] = ids[0, 0] = ids[8, 11] = 1      # inside, and in two corners
    ids[2, 2:9] = ids[5:9, 7] = 2
    check(ids)


def test_holes_within_holes():
    y, x = np.mgrid[:61, :61]
    ids = (np.maximum(abs(x - 30), abs(y - 30)) // 4 % 2).astype(np.uint8)
    regions = check(ids)
    assert [len(region.rings) for region in regions] == [2] * 7 + [1]
    ids = np.zeros((40, 60), np.uint8)
    ids[4:36:6, 4:56:5] = 1                     # many holes in one region
    assert len(check(ids)[0].rings) == 67


@pytest.mark.parametrize("radius", [20, 35, 60])
def test_smooth_objects_have_few_corners(rng, radius):
    size = (2 * radius + 10, 2 * radius + 10)
    for axes in ((radius, radius), (radius, 0.6 * radius)):
        mask = ellipse(size, rng.uniform(radius + 4, radius + 6, 2), axes, rng.uniform(0, np.pi))
        region = next(region for region in check(mask) if region.class_id == 1)
        inner = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
        assert len(region.rings[0]) <= 0.3 * (mask.sum() - inner.sum())


@pytest.mark.parametrize("radius", [7, 10])
def test_small_discs_have_few_corners_on_average(rng, radius):
    corners, border = 0, 0
    for _ in range(20):
        mask = ellipse((32, 32), rng.uniform(15, 17, 2), (radius, radius), 0)
        corners += len(next(region for region in check(mask) if region.class_id == 1).rings[0])
        border += int(mask.sum()) - int(cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))).sum())
    assert corners <= 0.3 * border


@pytest.mark.parametrize("sigma", [0.4, 2, 6])
def test_labelme_draws_the_same_mask(rng, sigma):
    """In the order of the file, and by LabelMe's rule, whose outlines lie on pixels."""
    ids = blobs(rng, sigma)
    drawn = np.full(ids.shape, 255, np.uint8)
    for shape in labelme_tree(find_regions(ids), "abcde", "image.png", ids.shape)["shapes"]:
        mask = rules.pillow("polygon", np.array(shape["points"]), "shape")(*ids.shape)
        drawn[mask > 0] = "abcde".index(shape["label"])
    assert np.array_equal(drawn, ids)
