"""Annotation files in the formats of the tools, and drawings of their shapes by hand."""
import json
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from pathlib import Path

import cv2
import numpy as np

from mindseg.config import load_config
from mindseg.data.datasets import list_samples
from tests.support.data import random_image, write_image

SIZE = (40, 56)     # height, width


def write_images(folder: Path, count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> list[Path]:
    """Write different photographs ``p00.png``, ``p01.png``, ….

    Args:
        folder: Their folder.
        count: Number of images.
        size: Height and width.
        seed: Seed of the pixels.
    """
    rng = np.random.default_rng(seed)
    return [write_image(folder / f"p{i:02d}.png", random_image(rng, *size)) for i in range(count)]


def labelme(path: Path, shapes: Sequence[dict], size: tuple[int, int] | None = SIZE, more: dict | None = None) -> Path:
    """Write a file as LabelMe 5 does; the image has the same stem.

    Args:
        path: JSON file.
        shapes: Shapes, with ``label`` and ``points``.
        size: Height and width of the image, or None to leave them out.
        more: Other keys.
    """
    tree = {"version": "5.4.1", "flags": {}, "imagePath": f"{path.stem}.png", "imageData": None,
            "shapes": [{"group_id": None, "description": "", "shape_type": "polygon", "flags": {}, **shape}
                       for shape in shapes]}
    if size:
        tree |= {"imageHeight": size[0], "imageWidth": size[1]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree | (more or {})))
    return path


def read_labels(output: Path) -> dict[str, np.ndarray]:
    """Label maps of an import by sample name, found as training finds them: through configuration and lists."""
    cfg = load_config(next(output.glob("*.yaml")))
    samples = [*list_samples(cfg.data, "train"), *list_samples(cfg.data, "eval")]
    assert all(sample.image.is_file() for sample in samples)
    return {sample.name: cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED) for sample in samples}


def line(start: Sequence[int], end: Sequence[int]) -> np.ndarray:
    """Pixels (x, y) of OpenCV's line between two whole points: from the left one on, half a pixel is rounded back."""
    a, b = sorted((tuple(start), tuple(end)))
    way = np.subtract(b, a)
    steps = max(abs(way))
    return np.array([a + np.sign(way) * -((steps - 2 * t * abs(way)) // (2 * steps)) for t in range(steps + 1)]
                    if steps else [a])


def rows(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """A polygon of whole corners that each row crosses once: the pixels between its two sides; uint8 (H, W).

    The sides are rounded to pixels, half a pixel to the inside. That is Pillow's rule, and OpenCV's without outline.
    """
    mask = np.zeros((height, width), np.uint8)
    sides = list(zip(points.tolist(), np.roll(points, -1, 0).tolist(), strict=True))
    for y in range(min(points[:, 1]), max(points[:, 1]) + 1):
        crossed = [x for (x0, y0), (x1, y1) in sides if min(y0, y1) <= y <= max(y0, y1)
                   for x in ([x0, x1] if y0 == y1 else [Fraction((y - y0) * (x1 - x0), y1 - y0) + x0])]
        mask[y, floor(min(crossed) + Fraction(1, 2)):ceil(max(crossed) - Fraction(1, 2)) + 1] = 1
    return mask


def fifths(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """COCO's polygon: corners go to a grid of fifths of a pixel, and a boundary walks over it.

    Where the boundary crosses the middle of a pixel's column, the pixels from that height on change between inside and
    outside; uint8 (H, W).
    """
    grid = (5 * points + 0.5).astype(int)
    walk: list[tuple[int, int]] = []
    for (x0, y0), (x1, y1) in zip(grid, np.roll(grid, -1, 0), strict=True):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        # Each side is walked from its lower end, so that both polygons at a common side have the same boundary.
        wide = abs(x1 - x0) >= abs(y1 - y0)
        turned = x0 > x1 if wide else y0 > y1
        a, b = ((x1, y1), (x0, y0)) if turned else ((x0, y0), (x1, y1))
        slope = (b[1] - a[1]) / (b[0] - a[0]) if wide and steps else (b[0] - a[0]) / (b[1] - a[1]) if steps else 0
        side = [(a[0] + t, int(a[1] + slope * t + 0.5)) if wide else (int(a[0] + slope * t + 0.5), a[1] + t)
                for t in range(steps + 1)]
        walk += side[::-1] if turned else side
    changes = np.zeros((width, height + 1), int)
    for (x0, y0), (x1, y1) in pairwise(walk):
        column = (min(x0, x1) - 2) / 5      # the middle of a column lies two and a half fifths behind its start
        if x0 != x1 and column == int(column) and 0 <= column < width:
            changes[int(column), int(np.clip(np.ceil((min(y0, y1) + 0.5) / 5 - 0.5), 0, height))] += 1
    # A boundary that closes at the lower edge of a column goes on at the top of the next one, as in the run lengths.
    flat = np.zeros(width * height + 1, int)
    for column, row in zip(*np.nonzero(changes), strict=True):
        flat[column * height + row] += changes[column, row]
    return (np.cumsum(flat[:-1]) % 2).reshape(width, height).T.astype(np.uint8)


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn, of a flat mask; the first is one of 0 and may be empty."""
    lengths, value = [0], 0
    for pixel in mask.tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def compress(lengths: Sequence[int]) -> str:
    """COCO's text of run lengths: groups of five bits, lowest first, bit 6 says that more follow; the sign is the last
    group's highest bit, and from the fourth number on the difference to the last but one is stored."""
    text = ""
    for i, length in enumerate(lengths):
        number = length - lengths[i - 2] if i > 2 else length
        while True:
            group, number = number & 31, number >> 5
            done = number == (-1 if group & 16 else 0)
            text += chr(48 + group + (0 if done else 32))
            if done:
                break
    return text
