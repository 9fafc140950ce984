"""LabelMe: one JSON file an image."""
import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np

from mindseg.data.annotations.bounded import Problems, read_json, to_dicts, to_name, to_points, to_size
from mindseg.data.annotations.rules import bitmap, pillow
from mindseg.data.annotations.shapes import Collection, Shape, ShapeAnnotation
from mindseg.data.decode import decode_label_values
from mindseg.errors import DataError, shorten

_IGNORED = ("__ignore__",)      # as in the label lists of LabelMe's own converters


def is_labelme(tree: Any) -> bool:
    """Tests whether a JSON value is a file of LabelMe."""
    return isinstance(tree, dict) and "shapes" in tree


def read_labelme(source: Path, problems: Problems) -> Collection:
    """Reads the JSON files below a folder, or one file.

    Args:
        source: Folder or file.
        problems: Receives the mistakes.
    """
    annotations = []
    for path in sorted(source.rglob("*.json")) if source.is_dir() else [source]:
        with problems.one_image():
            annotations.append(_read_file(path))
    return Collection("labelme", annotations, ignored=_IGNORED)


def _read_file(path: Path) -> ShapeAnnotation:
    tree = read_json(path)
    if not is_labelme(tree):
        raise DataError(f"{path}: is no file of LabelMe, which has a list 'shapes'; move it elsewhere")
    shapes = [_read_shape(shape, f"{path}: shape {number}")
              for number, shape in enumerate(to_dicts(tree["shapes"], f"{path}: shapes"), 1)]
    image = tree.get("imagePath")
    if image is not None and not isinstance(image, str):
        raise DataError(f"{path}: imagePath is {shorten(image)}, no file name; save the file again")
    return ShapeAnnotation(str(path), image or path.stem, to_size(tree.get("imageHeight"), tree.get("imageWidth")),
                           shapes, path.parent)


def _read_shape(shape: dict, source: str) -> Shape:
    label, kind, pairs = to_name(shape.get("label"), source), shape.get("shape_type") or "polygon", shape.get("points")
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{source}: the points {shorten(pairs)} are no list of [x, y]; draw the shape again")
    points = to_points([value for pair in pairs for value in pair], source)
    if kind == "mask":
        return Shape(label, bitmap(_read_bitmap(shape.get("mask"), source), points, source))
    return Shape(label, pillow(kind, points, source))


def _read_bitmap(text: Any, source: str) -> np.ndarray:
    try:
        content = base64.b64decode(text)
    except (TypeError, ValueError, binascii.Error):
        raise DataError(f"{source}: the mask {shorten(text)} is no base64 text; draw the shape again") from None
    return decode_label_values(np.frombuffer(content, np.uint8), source)
