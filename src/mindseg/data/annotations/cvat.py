"""CVAT: "CVAT for images 1.1", one XML file."""
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from mindseg.data.annotations.bounded import Problems, read_xml, to_name, to_number, to_points
from mindseg.data.annotations.rules import coco_polygons, cvat_ellipse, cvat_rle
from mindseg.data.annotations.shapes import Collection, Color, Draw, Shape, ShapeAnnotation
from mindseg.errors import DataError, shorten

_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def read_cvat(source: Path, problems: Problems) -> Collection:
    """Reads a file. Shapes lie over each other by their ``z_order``, then in the order of the file.

    Args:
        source: XML file.
        problems: Receives the mistakes.

    Raises:
        DataError: It is no file of "CVAT for images 1.1".
    """
    root = read_xml(source)
    if root.tag != "annotations" or root.find("track") is not None:
        raise DataError(f"{source}: is no annotation of images; export the task as 'CVAT for images 1.1'")
    colors = {to_name(label.findtext("name"), f"{source}: a label"): _color(label.findtext("color"))
              for labels in root.iter("labels") for label in labels.findall("label")
              if not label.findtext("parent") and label.findtext("type") not in _WITHOUT_AREA}
    left_out = {kind: sum(1 for _ in root.iter(kind)) for kind in _WITHOUT_AREA}
    notes = [f"{count} x {kind}: left out, it has no area" for kind, count in left_out.items() if count]
    annotations = []
    for image in root.findall("image"):
        with problems.one_image():
            annotations.append(_read_image(image, source))
    return Collection("cvat", annotations, list(colors), {name: rgb for name, rgb in colors.items() if rgb},
                      notes=notes)


def _color(text: str | None) -> Color | None:
    try:
        red, green, blue = bytes.fromhex((text or "").removeprefix("#"))
        return red, green, blue
    except ValueError:
        return None


def _read_image(image: Element, source: Path) -> ShapeAnnotation:
    name = image.get("name", "")
    place = f"{source}: image {shorten(name)}"
    shapes = [(to_number(item.get("z_order", "0"), place),
               Shape(to_name(item.get("label"), place), _read_shape(item, f"{place}, {item.tag} {number}")))
              for number, item in enumerate(image, 1) if item.tag not in _WITHOUT_AREA]
    shapes.sort(key=lambda pair: pair[0])
    size = tuple(int(to_number(image.get(side), f"{place}, {side}")) for side in ("height", "width"))
    return ShapeAnnotation(place, name, size, [shape for _, shape in shapes])


def _read_shape(item: Element, source: str) -> Draw:
    def numbers(*keys: str) -> np.ndarray:
        return np.array([to_number(item.get(key), f"{source}, {key}") for key in keys])

    if item.tag == "polygon":
        pairs = [part.split(",") for part in item.get("points", "").split(";")]
        return coco_polygons([to_points([_float(value) for pair in pairs for value in pair], source)], source)
    if item.tag == "box":
        return coco_polygons([_box_corners(*numbers("xtl", "ytl", "xbr", "ybr"),
                                           to_number(item.get("rotation", "0"), source))], source)
    if item.tag == "ellipse":
        return cvat_ellipse(numbers("cx", "cy"), numbers("rx", "ry"), to_number(item.get("rotation", "0"), source),
                            source)
    if item.tag == "mask":
        runs = [part.strip() for part in item.get("rle", "").split(",")]
        if not all(run.isdecimal() and len(run) < 10 for run in runs):
            raise DataError(f"{source}: the run lengths {shorten(item.get('rle'))} are damaged; export the file again")
        left, top, width, height = (int(value) for value in numbers("left", "top", "width", "height"))
        return cvat_rle([int(run) for run in runs], (left, top, width, height), source)
    raise DataError(f"{source}: the shape is unknown; export the task as 'CVAT for images 1.1' again")


def _float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _box_corners(left: float, top: float, right: float, bottom: float, degrees: float) -> np.ndarray:
    """Corners of a box that is turned clockwise about its centre, float64 (4, 2)."""
    center, angle = np.array([left + right, top + bottom]) / 2, np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return (corners - center) @ turn + center if degrees else corners
