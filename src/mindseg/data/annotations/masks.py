"""Masks: PNG files of colours or of class numbers, and CVAT's "Segmentation mask 1.1"."""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from mindseg.data.annotations.bounded import Problems, to_name
from mindseg.data.annotations.images import ImageFolder
from mindseg.data.annotations.shapes import Collection, Color
from mindseg.data.datasets import voc_palette
from mindseg.data.decode import decode_colors, decode_label_values
from mindseg.data.headers import file_format, read_header
from mindseg.data.labels import IGNORE
from mindseg.data.samples import read_lines
from mindseg.errors import DataError, shorten
from mindseg.files import read_bytes

MOST_COLORS = 255
_COLOR = r"(?P<r>\d{1,3})[,;\s]+(?P<g>\d{1,3})[,;\s]+(?P<b>\d{1,3})"
_NAME_FIRST = re.compile(rf"(?P<name>.+?)\s*[:,;\s]\s*{_COLOR}\s*(:.*)?")
_NAME_LAST = re.compile(rf"{_COLOR}[,;\s]+(?P<name>.+)")
_LABELMAP, _MASKS = "labelmap.txt", "SegmentationClass"


@dataclass(frozen=True)
class MaskAnnotation:
    """A mask of one image, see :class:`mindseg.data.annotations.shapes.Annotation`.

    Attributes:
        mask: PNG file.
        colored: Its values are colours 65536 r + 256 g + b; otherwise class numbers.
        counts: Pixels of each value.
        names: Name of each value.
    """
    image: str
    mask: Path
    colored: bool
    counts: Mapping[int, int]
    names: Mapping[int, str]
    split: str = ""
    size = near = None

    @property
    def source(self) -> str:
        """See :class:`Annotation`."""
        return str(self.mask)

    @cached_property
    def _named(self) -> dict[int, str]:
        return {value: self.names.get(value, _unnamed(value, self.colored)) for value in self.counts}

    def labels(self) -> dict[str, int]:
        """See :class:`Annotation`."""
        return {name: self.counts[value] for value, name in self._named.items()}

    def paint(self, height: int, width: int, ids: Mapping[str, int], background: int) -> tuple[np.ndarray, int]:
        """See :class:`Annotation`; nothing overlaps in a mask."""
        values = _read_values(self.mask, self.colored)
        if values.shape != (height, width):
            raise DataError(f"{self.mask}: has {values.shape[1]}x{values.shape[0]} pixels, but its image has "
                            f"{width}x{height}; restore the mask")
        known = np.array(sorted(self._named))
        return np.array([ids[self._named[int(value)]] for value in known], np.uint8)[
            np.searchsorted(known, values)], 0


def _unnamed(value: int, colored: bool) -> str:
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})" if colored else f"class {value}"


def read_colors(table: Path) -> dict[str, Color]:
    """Reads a colour table: a class a line, ``name:r,g,b`` (CVAT), ``name,r,g,b`` or ``r g b name``.

    Args:
        table: Text file; a first line without numbers is a heading.

    Raises:
        DataError: A line has another form, or a name or colour occurs twice.
    """
    colors: dict[str, Color] = {}
    lines = read_lines(table)
    for number, line in lines:
        found = _NAME_FIRST.fullmatch(line) or _NAME_LAST.fullmatch(line)
        if found is None and number == lines[0][0]:
            continue
        rgb = tuple(int(part) for part in found.group("r", "g", "b")) if found else ()
        if not rgb or max(rgb) > 255:
            raise DataError(f"{table}:{number}: {shorten(line)} is no colour of a class; write name:r,g,b")
        name = to_name(found["name"], f"{table}:{number}")
        if name in colors or rgb in colors.values():
            raise DataError(f"{table}:{number}: {shorten(line)}: the name or colour occurs twice; write each once")
        colors[name] = rgb
    return colors


def read_masks(source: Path, problems: Problems, table: Path | None = None, classes: Sequence[str] = (),
               without: Sequence[Path] = (), like: Collection | None = None) -> Collection:
    """Reads the masks below a folder, or a folder of CVAT's "Segmentation mask 1.1" or of PASCAL VOC.

    Args:
        source: Folder of PNG files, or one with ``SegmentationClass``.
        problems: Receives the mistakes.
        table: Colour table; ``None``: CVAT's ``labelmap.txt`` if there is one, else colours and numbers as found.
        classes: Names for the colours or numbers found, in their order.
        without: Folders inside that hold no masks.
        like: Masks whose values have the same names.

    Raises:
        DataError: Colours and numbers are mixed, or there are too many.
    """
    folder = source / _MASKS if (source / _MASKS).is_dir() else source
    table = table or (source / _LABELMAP if (source / _LABELMAP).is_file() else None)
    colors, splits = read_colors(table) if table else {}, _read_splits(source)
    found: list[tuple[Path, bool, dict[int, int]]] = []
    for path in ImageFolder(folder, without, (".png",)).files:
        with problems.one_image():
            found.append((path, *_count_values(path, bool(colors))))
    colored = {kind for _, kind, _ in found}
    if len(colored) > 1:
        first = {kind: path for path, kind, _ in reversed(found)}
        raise DataError(f"{folder}: {first[True]} holds colours and {first[False]} class numbers; import them one "
                        "after the other")
    values = {value for _, _, counts in found for value in counts}
    if like:
        names, ignored = like.annotations[0].names, like.ignored
    else:
        names, ignored = _name_values(values, colored == {True}, colors, classes, folder)
    annotations = [MaskAnnotation(path.relative_to(folder).with_suffix("").as_posix(), path, kind, counts, names,
                                  splits.get(path.stem, "")) for path, kind, counts in found]
    if not colors and colored == {True}:
        colors = {name: (value >> 16, value >> 8 & 255, value & 255) for value, name in names.items()}
    return Collection("masks", annotations, [name for name in dict.fromkeys(names.values()) if name not in ignored],
                      colors, background=False, ignored=ignored)


def _name_values(values: set[int], colored: bool, colors: Mapping[str, Color], classes: Sequence[str],
                 folder: Path) -> tuple[dict[int, str], tuple[str, ...]]:
    """Names of the values that occur in masks, and the name that stands for pixels without a label."""
    packed = {red << 16 | green << 8 | blue: name for name, (red, green, blue) in colors.items()}
    if packed and not colored and {value * 0x010101 for value in values} <= set(packed):
        return {value & 255: name for value, name in packed.items() if value % 0x010101 == 0}, ()
    if packed and colored:
        return packed, ()
    listed = list(colors) or list(classes)
    if not colored and values == {0, IGNORE}:       # a binary mask
        return dict(zip([0, IGNORE], listed or [_unnamed(value, False) for value in (0, IGNORE)], strict=False)), ()
    if not colored:
        names = dict(enumerate(listed)) or {value: _unnamed(value, False) for value in sorted(values)}
        return names | {IGNORE: "ignored"}, ("ignored",)
    if len(values) > MOST_COLORS:
        raise DataError(f"{folder}: its masks have {len(values)} colours, so they were stored with losses or smoothed "
                        "edges; export them again, or give the colours of the classes with --colors")
    palette = [red << 16 | green << 8 | blue for red, green, blue in voc_palette(256)]
    if values <= set(palette):      # the colours of PASCAL VOC, in its order; the last one marks borders
        order = palette[:-1] if listed else [value for value in palette[:-1] if value in values]
        void = {palette[-1]: "ignored"}
    else:
        order, void = sorted(values), {}
        if listed and len(listed) != len(order):
            raise DataError(f"{folder}: its masks have {len(order)} colours ({_shown(order)}), but there are "
                            f"{len(listed)} --classes; give the colours of the classes with --colors")
    names = dict(zip(order, listed or [f"class {i}" for i in range(len(order))], strict=False))
    return names | void, tuple(void.values())


def _shown(values: Sequence[int]) -> str:
    return ", ".join(_unnamed(value, True) for value in values[:10]) + (", …" if len(values) > 10 else "")


def _read_splits(source: Path) -> dict[str, str]:
    """Split of each image by its stem, from the lists ``train.txt`` and ``val.txt`` of VOC and CVAT."""
    lists = {split: source / "ImageSets" / "Segmentation" / f"{split}.txt" for split in ("train", "val")}
    if not all(path.is_file() for path in lists.values()):
        return {}
    return {Path(line).name: split for split, path in lists.items() for _, line in read_lines(path)}


def _count_values(path: Path, table: bool) -> tuple[bool, dict[int, int]]:
    """Kind of a mask, true for colours, and the number of pixels of each of its values."""
    data = read_bytes(path)
    header = read_header(data, "PNG") if file_format(data) == "PNG" else None
    colored = header is not None and (header.kind.startswith("colour") or (header.kind == "palette" and table))
    values = _read_values(path, colored)
    if not colored:
        counts = np.bincount(values.ravel(), minlength=256)
        return colored, {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    unique, pixels = np.unique(values, return_counts=True)
    if len(unique) > MOST_COLORS:
        raise DataError(f"{path}: has {len(unique)} colours, so it was stored with losses or smoothed edges; export it "
                        "again without either")
    return colored, dict(zip(unique.tolist(), pixels.tolist(), strict=True))


def _read_values(path: Path, colored: bool) -> np.ndarray:
    """Values of a mask, int32 (H, W)."""
    data = read_bytes(path)
    if not colored:
        return decode_label_values(data, str(path)).astype(np.int32)
    blue, green, red = (plane.astype(np.int32) for plane in cv2.split(decode_colors(data, str(path))))
    return red << 16 | green << 8 | blue
