"""COCO: one JSON file with ``images``, ``annotations`` and ``categories``."""
from pathlib import Path
from typing import Any

from mindseg.data.annotations.bounded import Problems, read_json, to_dicts, to_name, to_points, to_size
from mindseg.data.annotations.rules import coco_polygons, coco_rle
from mindseg.data.annotations.shapes import Collection, Draw, Shape, ShapeAnnotation
from mindseg.errors import DataError, shorten


def is_coco(tree: Any) -> bool:
    """Tests whether a JSON value is a file of COCO instances."""
    return isinstance(tree, dict) and "images" in tree and "annotations" in tree


def read_coco(source: Path, problems: Problems) -> Collection:
    """Reads a file. Crowds lie at the bottom, then smaller objects over larger ones.

    Args:
        source: JSON file.
        problems: Receives the mistakes.

    Raises:
        DataError: It is no file of COCO instances.
    """
    tree = read_json(source)
    if not is_coco(tree):
        raise DataError(f"{source}: is no file of COCO instances, which has 'images', 'annotations' and 'categories'; "
                        "export it as COCO instances")
    names = {_id(category, "id", source): to_name(category.get("name"), f"{source}: a category")
             for category in to_dicts(tree.get("categories"), f"{source}: categories")}
    objects: dict[int, list[dict]] = {_id(image, "id", source): []
                                      for image in to_dicts(tree["images"], f"{source}: images")}
    for item in to_dicts(tree["annotations"], f"{source}: annotations"):
        image = _id(item, "image_id", source)
        if image not in objects:
            raise DataError(f"{source}: annotation {shorten(item.get('id'))}: there is no image with the id {image}; "
                            "export the file again")
        objects[image].append(item)
    annotations = []
    for image in tree["images"]:
        with problems.one_image():
            annotations.append(_read_image(image, objects[image["id"]], names, source))
    return Collection("coco", annotations, list(dict.fromkeys(names.values())))


def _id(item: dict, key: str, source: Path) -> int:
    value = item.get(key)
    if type(value) is not int:
        raise DataError(f"{source}: {key} is {shorten(value)}, no whole number; export the file again")
    return value


def _read_image(image: dict, objects: list[dict], names: dict[int, str], source: Path) -> ShapeAnnotation:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{source}: image {image['id']}: file_name is {shorten(name)}; export the file again")
    shapes = []
    for item in objects:
        place = f"{source}: image {shorten(name)}, annotation {shorten(item.get('id'))}"
        label = names.get(_id(item, "category_id", source))
        if label is None:
            raise DataError(f"{place}: there is no category with the id {item['category_id']}; export the file again")
        shapes.append(Shape(label, _read_segmentation(item.get("segmentation"), place), item.get("iscrowd") == 1))
    return ShapeAnnotation(f"{source}: image {shorten(name)}", name, to_size(image.get("height"), image.get("width")),
                           shapes, small_on_top=True)


def _read_segmentation(segmentation: Any, source: str) -> Draw:
    if isinstance(segmentation, dict):
        return coco_rle(segmentation, source)
    if not isinstance(segmentation, list):
        raise DataError(f"{source}: the segmentation is {shorten(segmentation)}, neither polygons nor run lengths; "
                        "annotate the object with a polygon or mask")
    return coco_polygons([to_points(polygon, source) for polygon in segmentation], source)
