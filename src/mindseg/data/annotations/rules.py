"""The drawing rules of annotation tools. Each differs at the border by up to a pixel.

Points are float64 (N, 2) of (x, y) in pixels; a mask is uint8 (H, W) of 0 and 1.
"""
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from mindseg.data.annotations.shapes import Draw
from mindseg.errors import DataError, UserError, shorten

_LINE_WIDTH, _POINT_RADIUS = 10, 5      # LabelMe's own


def check_points(points: np.ndarray, source: str, least: int = 3, most: float = math.inf) -> np.ndarray:
    """Checks the number of points of a shape.

    Args:
        points: Points.
        source: File and shape, for messages.
        least: Fewest points.
        most: Most points.

    Raises:
        DataError: There are fewer or more.
    """
    if not least <= len(points) <= most:
        wanted = f"{least}" if least == most else f"at least {least}"
        raise DataError(f"{source}: has {len(points)} points, but needs {wanted}; draw the shape again")
    return points


def _inside(draw: Callable[[int, int], np.ndarray], points: np.ndarray, source: str) -> Draw:
    """A drawing that refuses points farther outside the image than it is wide or high."""
    def checked(height: int, width: int) -> np.ndarray:
        size = np.array([width, height])
        wrong = ((points < -size) | (points > 2 * size)).any(1)
        if wrong.any():
            x, y = points[np.argmax(wrong)]
            raise DataError(f"{source}: the point ({x:g}, {y:g}) lies far outside the image of {width}x{height}; the "
                            "annotation belongs to another image or size")
        return draw(height, width)
    return checked


def pillow(kind: str, points: np.ndarray, source: str) -> Draw:
    """LabelMe's rule: Pillow's ImageDraw, with the outline; corners are cut to whole pixels.

    Args:
        kind: ``polygon``, ``rectangle``, ``oriented_rectangle``, ``circle``, ``line``, ``linestrip`` or ``point``.
        points: Corners; centre and a point of the circle.
        source: File and shape, for messages.
    """
    counts = {"polygon": (3,), "rectangle": (2, 2), "oriented_rectangle": (4, 4), "circle": (2, 2), "line": (2, 2),
              "linestrip": (2,), "point": (1, 1)}
    if not isinstance(kind, str) or kind not in counts:
        raise DataError(f"{source}: the shape_type {shorten(kind)} is unknown; draw it as a polygon")
    check_points(points, source, *counts[kind])

    def draw(height: int, width: int) -> np.ndarray:
        picture = Image.new("L", (width, height))
        pen, corners = ImageDraw.Draw(picture), [tuple(point) for point in points]
        if kind in ("circle", "point"):
            x, y = points[0]
            radius = _POINT_RADIUS if kind == "point" else math.dist(*points)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
        elif kind == "rectangle":
            pen.rectangle((*points.min(0), *points.max(0)), fill=1, outline=1)
        elif kind in ("line", "linestrip"):
            pen.line(corners, fill=1, width=_LINE_WIDTH, joint="curve" if kind == "linestrip" else None)
        else:
            pen.polygon(corners, fill=1, outline=1)
        return np.asarray(picture)
    return _inside(draw, points, source)


def _pycocotools() -> ModuleType:
    """COCO's functions for masks; only the formats that draw with them need the package."""
    try:
        from pycocotools import mask
    except ModuleNotFoundError:
        raise UserError("polygons and run lengths of COCO and CVAT need the package pycocotools; pip install "
                        "'mindseg[train]'") from None
    return mask


def coco_polygons(polygons: Sequence[np.ndarray], source: str) -> Draw:
    """COCO's rule, CVAT's too: pycocotools, which takes the pixels whose centre is inside, on a grid of fifths.

    Args:
        polygons: Parts of one object.
        source: File and shape, for messages.
    """
    if not polygons:
        raise DataError(f"{source}: has no polygon; draw the shape again")
    for points in polygons:
        check_points(points, source)

    def draw(height: int, width: int) -> np.ndarray:
        mask = _pycocotools()
        parts = mask.frPyObjects([points.ravel().tolist() for points in polygons], height, width)
        return mask.decode(mask.merge(parts))
    return _inside(draw, np.concatenate(polygons), source)


def coco_rle(segmentation: dict, source: str) -> Draw:
    """A run-length encoding of COCO: lengths of runs of 0 and 1 in turn, column by column.

    Args:
        segmentation: ``size`` [height, width] and ``counts``: a list of lengths, or their compressed text.
        source: File and shape, for messages.
    """
    counts, size = segmentation.get("counts"), segmentation.get("size")
    lengths = _decompress(counts) if isinstance(counts, str) else counts
    if not _are_lengths(lengths) or size is None or not _are_lengths(size) or len(size) != 2:
        raise DataError(f"{source}: the run lengths {shorten(counts)} or their size {shorten(size)} are damaged; "
                        "export the file again")
    if sum(lengths) != size[0] * size[1]:
        raise DataError(f"{source}: the run lengths add up to {sum(lengths)} pixels, not to the {size[0] * size[1]} of "
                        f"{size[1]}x{size[0]}; export the file again")

    def draw(height: int, width: int) -> np.ndarray:
        mask = _pycocotools()
        if size != [height, width]:
            raise DataError(f"{source}: the run lengths are of {size[1]}x{size[0]}, but the image is {width}x{height}; "
                            "the annotation belongs to another image or size")
        text = {"size": size, "counts": counts.encode()} if isinstance(counts, str) else (
            mask.frPyObjects({"size": size, "counts": counts}, height, width))
        return mask.decode(text)
    return draw


def _are_lengths(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2 ** 31 for value in values)


def _decompress(text: str) -> list[int] | None:
    """Run lengths of COCO's compressed text, or ``None`` if it is damaged; pycocotools would read beyond its end.

    A character holds five bits of a number and a sign of continuation, from the lowest bits on; from the fourth number
    on, differences to the last but one are stored.
    """
    lengths: list[int] = []
    number = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            return None
        number |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    return None if shift else lengths


def cvat_rle(lengths: list[int], box: tuple[int, int, int, int], source: str) -> Draw:
    """A mask of CVAT: lengths of runs of 0 and 1 in turn, row by row, in a box.

    Args:
        lengths: Run lengths.
        box: (left, top, width, height).
        source: File and shape, for messages.
    """
    left, top, columns, rows = box
    if not _are_lengths(lengths) or min(rows, columns) < 1 or sum(lengths) != rows * columns:
        raise DataError(f"{source}: the run lengths do not add up to the {columns}x{rows} pixels of the mask; export "
                        "the file again")

    def draw(height: int, width: int) -> np.ndarray:
        if min(left, top) < 0 or left + columns > width or top + rows > height:
            raise DataError(f"{source}: the mask of {columns}x{rows} at ({left}, {top}) does not fit into the image of "
                            f"{width}x{height}; the annotation belongs to another image or size")
        mask = np.zeros((height, width), np.uint8)
        runs = np.repeat(np.arange(len(lengths), dtype=np.int64) % 2, lengths)
        mask[top:top + rows, left:left + columns] = runs.reshape(rows, columns)
        return mask
    return draw


def cvat_ellipse(center: np.ndarray, axes: np.ndarray, angle: float, source: str) -> Draw:
    """An ellipse of CVAT: OpenCV's, with centre and half axes rounded to pixels.

    Args:
        center: (x, y).
        axes: Half axes (x, y).
        angle: Rotation in degrees, clockwise.
        source: File and shape, for messages.
    """
    def draw(height: int, width: int) -> np.ndarray:
        mask = np.zeros((height, width), np.uint8)
        (x, y), (a, b) = (tuple(round(value) for value in pair) for pair in (center, axes))
        return cv2.ellipse(mask, (x, y), (a, b), angle, 0, 360, 1, cv2.FILLED)
    if (axes < 0).any():
        raise DataError(f"{source}: the half axes {axes.tolist()} are negative; draw the shape again")
    return _inside(draw, np.stack([center - axes, center + axes]), source)


def yolo_polygon(points: np.ndarray, source: str) -> Draw:
    """Ultralytics' rule: OpenCV's fillPoly, with the outline; corners are cut to whole pixels.

    Args:
        points: Corners as parts of width and height, 0 to 1.
        source: File and line, for messages.
    """
    check_points(points, source)
    if (points < -0.01).any() or (points > 1.01).any():
        raise DataError(f"{source}: the coordinate {points.max() if points.max() > 1.01 else points.min():g} is not "
                        "between 0 and 1; store coordinates as parts of width and height")

    def draw(height: int, width: int) -> np.ndarray:
        corners = (points * [width, height]).astype(np.int32)
        return cv2.fillPoly(np.zeros((height, width), np.uint8), [corners], 1)
    return draw


def bitmap(patch: np.ndarray, points: np.ndarray, source: str) -> Draw:
    """A mask of LabelMe: a small picture whose upper left pixel lies at the first corner, rounded.

    Args:
        patch: uint8 (h, w); pixels other than 0 belong to the shape.
        points: Upper left and lower right corner.
        source: File and shape, for messages.
    """
    check_points(points, source, 2, 2)
    (left, top), (right, bottom) = np.round(points).astype(int)
    if (points == np.round(points)).all():      # LabelMe cuts such a mask to its corners
        patch = patch[:max(bottom - top + 1, 0), :max(right - left + 1, 0)]

    def draw(height: int, width: int) -> np.ndarray:
        mask = np.zeros((height, width), np.uint8)
        y, x = max(top, 0), max(left, 0)
        part = patch[y - top:max(height - top, 0), x - left:max(width - left, 0)]
        mask[y:y + part.shape[0], x:x + part.shape[1]] = part != 0
        return mask
    return _inside(draw, points, source)
