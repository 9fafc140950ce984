"""Annotations of an image, and how their shapes become a label map."""
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from mindseg.data.labels import IGNORE
from mindseg.errors import DataError

Draw = Callable[[int, int], np.ndarray]     # (height, width) to a mask, uint8 (height, width)
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """One shape of a class.

    Attributes:
        label: Name of its class.
        draw: Returns the shape's mask, uint8 (H, W) of 0 and others, for an image of H rows and W columns.
        bottom: It lies below all shapes that do not.
    """
    label: str
    draw: Draw
    bottom: bool = False


class Annotation(Protocol):
    """Annotations of one image.

    Attributes:
        source: File, and the place in it, for messages.
        image: Name of the image as the file gives it.
        size: (height, width) of the image as the file gives it, or ``None``.
        near: Folder that is searched for the image first, or ``None``.
        split: ``train``, ``val`` or empty.
    """
    source: str
    image: str
    size: tuple[int, int] | None
    near: Path | None
    split: str

    def labels(self) -> Mapping[str, int]:
        """Names of the classes that occur, with the number of shapes or pixels of each."""

    def paint(self, height: int, width: int, ids: Mapping[str, int], background: int) -> tuple[np.ndarray, int]:
        """Draws the label map.

        Args:
            height: Rows of the image.
            width: Columns of the image.
            ids: Class id of each name.
            background: Id of the pixels without a shape.

        Returns:
            The ids, uint8 (H, W), and the number of pixels that shapes of different classes cover.
        """


@dataclass(frozen=True)
class ShapeAnnotation:
    """An image with shapes, see :class:`Annotation`.

    Attributes:
        shapes: From the lowest to the topmost.
        small_on_top: Smaller shapes lie over larger ones, whatever their order; shapes of equal size keep it.
    """
    source: str
    image: str
    size: tuple[int, int] | None
    shapes: Sequence[Shape]
    near: Path | None = None
    split: str = ""
    small_on_top: bool = False

    def labels(self) -> Mapping[str, int]:
        """See :class:`Annotation`."""
        return Counter(shape.label for shape in self.shapes)

    def paint(self, height: int, width: int, ids: Mapping[str, int], background: int) -> tuple[np.ndarray, int]:
        """See :class:`Annotation`."""
        label = np.full((height, width), background, np.uint8)
        covered, mixed = np.zeros((height, width), bool), np.zeros((height, width), bool)
        shapes = self.shapes
        if self.small_on_top:       # drawn twice, so that only one mask is kept at a time
            shapes = sorted(shapes, key=lambda s: (not s.bottom, -np.count_nonzero(s.draw(height, width))))
        for shape in shapes:
            mask, window = _crop(shape.draw(height, width))
            value = ids[shape.label]
            mixed[window] |= mask & covered[window] & (label[window] != value)
            covered[window] |= mask
            label[window][mask] = value
        return label, int(mixed.sum())


def _crop(mask: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The part of a mask that holds all its pixels, as bool, and where it is."""
    x, y, w, h = cv2.boundingRect(mask)
    window = slice(y, y + h), slice(x, x + w)
    return mask[window] != 0, window


@dataclass(frozen=True)
class Collection:
    """The annotations of a data set.

    Attributes:
        format: Name of the format.
        annotations: One for each image.
        names: Classes in the order in which the format lists them; empty if it has no list.
        colors: Colours of classes that the format gives.
        background: Pixels without a shape are possible.
        ignored: Names that the format gives to pixels without a label.
        notes: What was left out, for the user.
    """
    format: str
    annotations: list[Annotation]
    names: Sequence[str] = ()
    colors: Mapping[str, Color] = field(default_factory=dict)
    background: bool = True
    ignored: Sequence[str] = ()
    notes: Sequence[str] = ()


def choose_ids(collection: Collection, given: Sequence[str], ignore: Sequence[str], background: str,
               source: str) -> tuple[list[str], dict[str, int]]:
    """Chooses the classes.

    Args:
        collection: Annotations.
        given: Classes that the user names, in order; empty: those of the format, else those found, by name.
        ignore: Names whose pixels are ignored.
        background: Name of the class of pixels without a shape; it comes first if the list lacks it.
        source: Name of the data set, for messages.

    Returns:
        The classes, and the class id of each name, 255 for those to ignore.

    Raises:
        DataError: A label is in no list, or there are too few or too many classes.
    """
    found = Counter[str]()
    for annotation in collection.annotations:
        found.update(annotation.labels())
    left_out = {*ignore, *collection.ignored}
    listed = list(dict.fromkeys(given or collection.names or sorted(found)))
    classes = [name for name in listed if name not in left_out]
    if collection.background and background not in {*classes, *left_out}:
        classes.insert(0, background)
    ids = {name: i for i, name in enumerate(classes)} | dict.fromkeys(left_out, IGNORE)
    unknown = [name for name, _ in found.most_common() if name not in ids]
    if unknown:
        raise DataError(f"{source}: {len(unknown)} labels are in no class: {_listed(unknown)}; add them to --classes "
                        f"or --ignore. The classes are {_listed(classes)}")
    absent = [name for name in ignore if name not in {*found, *listed, background}]
    if absent:
        raise DataError(f"--ignore: no label is called {_listed(absent)}; there are {_listed(sorted(found))}")
    if not 2 <= len(classes) <= 254:
        raise DataError(f"{source}: {len(classes)} classes ({_listed(classes)}), but 2 to 254 can be told apart; check "
                        "--classes, --ignore and --background")
    return classes, ids


def _listed(names: Sequence[str], longest: int = 300) -> str:
    """Names for a message: the first ones, as many as there is room for."""
    shown = [f"'{name}'" for name in names]
    while len(", ".join(shown)) > longest:
        shown.pop()
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return ", ".join(shown) + more
