"""YOLO segmentation: one text file an image, a polygon a line; class names in ``data.yaml``."""
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mindseg.data.annotations.bounded import Problems, read_content, to_name
from mindseg.data.annotations.images import ImageFolder
from mindseg.data.annotations.rules import yolo_polygon
from mindseg.data.annotations.shapes import Collection, Shape, ShapeAnnotation
from mindseg.data.samples import read_lines
from mindseg.errors import DataError, shorten
from mindseg.yaml_text import YamlError, parse, read_text

_DESCRIPTION = "data.yaml"


def read_yolo(source: Path, problems: Problems, classes: Sequence[str] = (), images: Path | None = None,
              without: Sequence[Path] = ()) -> Collection:
    """Reads a data set. Smaller polygons lie over larger ones. An image without a file of labels shows no object.

    Args:
        source: ``data.yaml``, or a folder with one, or a folder of images and labels.
        problems: Receives the mistakes.
        classes: Names of the classes in the order of their numbers, if ``data.yaml`` has none.
        images: Folder of the images; ``None``: that of ``source``.
        without: Folders inside that hold no photographs.

    Raises:
        DataError: There are no class names, or ``data.yaml`` is wrong.
    """
    folder = source if source.is_dir() else source.parent
    file = source if source.is_file() else folder / _DESCRIPTION
    tree = _read_description(file) if file.is_file() else {}
    names = _names(tree["names"] if "names" in tree else list(classes), file)
    found = ImageFolder(images or folder, without)
    splits = _read_splits(tree, file, found, problems)
    annotations = []
    for image in splits or found.files:
        with problems.one_image():
            label, place = _label_file(image), image.relative_to(found.folder).as_posix()
            shapes = [_read_line(line, names, f"{label}:{number}")
                      for number, line in enumerate(_lines(label) if label.is_file() else [], 1) if line.strip()]
            annotations.append(ShapeAnnotation(str(label), place, None, shapes, None, splits.get(image, ""),
                                               small_on_top=True))
    left_out = len(found.files) - len(splits or found.files)
    notes = [f"{left_out} images are neither in train nor in val of {file.name}: left out"] if left_out else []
    return Collection("yolo", annotations, names, notes=notes)


def _read_description(file: Path) -> dict:
    try:
        tree = parse(read_text(file, "the description of a YOLO data set", "export it again", DataError))
    except YamlError as error:
        raise DataError(f"{file}: {error}; export it again") from None
    if not isinstance(tree, dict):
        raise DataError(f"{file}: is no description of a YOLO data set; export it again")
    return tree


def _names(value: Any, file: Path) -> list[str]:
    """Class names, a list or {number: name}."""
    if isinstance(value, dict):
        numbers = {str(key): name for key, name in value.items()}
        value = [numbers.get(str(i)) for i in range(len(numbers))]
    if not isinstance(value, list) or not value:
        raise DataError(f"{file}: holds no list 'names' of the classes; give them with --classes")
    return [to_name(str(name) if type(name) is int else name, f"{file}: names") for name in value]


def _read_splits(tree: dict, file: Path, images: ImageFolder, problems: Problems) -> dict[Path, str]:
    """Split of each image that is in train or val, in the order of their names; in both, it is in train.

    Args:
        tree: Content of ``data.yaml``: a split is a folder, a list of images (``.txt``), or several of them.
        file: ``data.yaml``.
        images: The images.
        problems: Receives the images of lists that are missing.
    """
    splits: dict[Path, str] = {}
    for split in ("train", "val"):
        entries = tree.get(split)
        for entry in entries if isinstance(entries, list) else [entries]:
            parts = _parts(entry)
            if parts and parts[-1].endswith(".txt"):
                chosen = _read_list(_find_list(file, tree, parts), images, problems)
            else:
                chosen = [image for image in images.files
                          if parts and _holds(image.relative_to(images.folder).parts, parts)]
            for image in chosen:
                splits.setdefault(image, split)
    return dict(sorted(splits.items()))


def _find_list(file: Path, tree: dict, parts: tuple[str, ...]) -> Path:
    """The list of a split: below the folder ``path`` of ``data.yaml``, else below that of ``data.yaml`` itself."""
    root = file.parent
    for path in (root.joinpath(*_parts(tree.get("path")), *parts), root.joinpath(*parts), root / parts[-1]):
        if path.is_file():
            return path
    raise DataError(f"{file}: its list of images {shorten('/'.join(parts))} is not below {root}; put it there")


def _read_list(path: Path, images: ImageFolder, problems: Problems) -> list[Path]:
    """Images that a list names, one a line: ``./`` is the folder of the list, as in Ultralytics.

    Other paths begin at the folder of the images. What is not there is searched by its file name.
    """
    found = []
    for number, line in read_lines(path):
        name = os.path.relpath(path.parent / line, images.folder) if line.startswith("./") else line
        with problems.one_image():
            found.append(images.find(name, f"{path}:{number}"))
    if not found:
        raise DataError(f"{path}: names no image that is there; export the data set again")
    return found


def _parts(value: Any) -> tuple[str, ...]:
    """Folders of a path in ``data.yaml``; a leading ``..`` means its own folder, as some tools write it."""
    parts = PurePosixPath(value).parts if isinstance(value, str) else ()
    return tuple(part for part in parts if part not in ("..", ".", "/"))


def _holds(place: Sequence[str], parts: Sequence[str]) -> bool:
    """Tests whether the folders of an image contain those of a split, one behind the other."""
    return any(tuple(place[i:i + len(parts)]) == tuple(parts) for i in range(len(place) - len(parts)))


def _label_file(image: Path) -> Path:
    """The labels of an image: in ``labels`` where the image is in ``images``, else beside it."""
    folders = list(image.parent.parts)
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    path = Path(*folders, f"{image.stem}.txt")
    return path if path.is_file() else image.with_suffix(".txt")


def _lines(label: Path) -> list[str]:
    try:
        return read_content(label).decode().splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{label}: is no text; export the labels again") from None


def _read_line(line: str, names: Sequence[str], source: str) -> Shape:
    fields = line.split()
    try:
        number, values = int(fields[0]), np.array(fields[1:], np.float64)
    except ValueError:
        raise DataError(f"{source}: {shorten(line)} is no class number with coordinates; export the labels again"
                        ) from None
    if len(values) == 4:
        raise DataError(f"{source}: {shorten(line)} is a box; export the labels for segmentation, as polygons")
    if len(values) % 2 or not np.isfinite(values).all():
        raise DataError(f"{source}: {shorten(line)} has an odd number of coordinates, or one that is no number; export "
                        "the labels again")
    return Shape(names[number] if 0 <= number < len(names) else f"class {number}",
                 yolo_polygon(values.reshape(-1, 2), source))
