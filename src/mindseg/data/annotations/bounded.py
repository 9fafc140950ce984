"""Annotation files from outside: regular files only, bounded in size and depth, every number checked."""
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from mindseg.errors import DataError, first_line, shorten
from mindseg.files import check_regular

LARGEST_FILE = 512 << 20        # bytes; the largest file of COCO has 448 MiB
_DEEPEST = 64
_LARGEST_NUMBER = 1e6           # pixels


def read_content(path: Path) -> bytes:
    """Reads an annotation file.

    Args:
        path: Regular file of at most 512 MiB.

    Raises:
        DataError: It is missing, too large, or no regular file.
    """
    try:
        check_regular(path)
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"{path}: is over {LARGEST_FILE >> 20} MiB; split it into several files")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: File.

    Raises:
        DataError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_content(path))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else shorten(first_line(error))
        raise DataError(f"{path}: is no JSON ({reason}); export the file again") from None


def read_xml(path: Path) -> ElementTree.Element:
    """Reads an XML file. A document type is refused, so that no entity is ever expanded.

    Args:
        path: File.

    Returns:
        Its root element.

    Raises:
        DataError: It cannot be read, is no XML, has a document type, or is nested too deeply.
    """
    builder, parser, depth = ElementTree.TreeBuilder(), expat.ParserCreate(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise DataError(f"{path}: has over {_DEEPEST} levels, so no tool wrote it; export the file again")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: has a document type (DOCTYPE), which may hold entities; remove it")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_content(path), True)
    except (expat.ExpatError, ValueError, LookupError) as error:        # such as an unknown encoding
        raise DataError(f"{path}: is no XML ({shorten(first_line(error))}); export the file again") from None
    return builder.close()


def to_points(values: Any, source: str) -> np.ndarray:
    """Converts coordinates.

    Args:
        values: List of numbers ``x1, y1, x2, y2, …``.
        source: File and shape, for messages.

    Returns:
        Points, float64 (N, 2) of (x, y).

    Raises:
        DataError: One is no finite number, is out of range, or has no partner.
    """
    if not isinstance(values, list) or len(values) % 2 or not values:
        raise DataError(f"{source}: the points {shorten(values)} are no pairs of numbers; draw the shape again")
    for value in values:
        if type(value) not in (int, float) or not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
            raise DataError(f"{source}: the coordinate {shorten(value)} is no number of pixels; draw the shape again")
    return np.array(values, np.float64).reshape(-1, 2)


def to_number(value: Any, source: str) -> float:
    """Converts the text or number of one coordinate or size, as :func:`to_points` does."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    return float(to_points([number, 0], source)[0, 0])


def to_size(height: Any, width: Any) -> tuple[int, int] | None:
    """The (height, width) that an annotation gives for its image, or ``None`` if it gives no two whole numbers."""
    return (height, width) if type(height) is int and type(width) is int else None


def to_name(value: Any, source: str) -> str:
    """Checks the name of a class.

    Args:
        value: What the file gives as the name.
        source: File and shape, for messages.

    Returns:
        The name without blanks at its ends.

    Raises:
        DataError: It is no text, empty, long, or has characters that cannot be printed.
    """
    name = value.strip() if isinstance(value, str) else ""
    if not name or not name.isprintable() or len(name) > 100:
        raise DataError(f"{source}: the label {shorten(value)} is no name of a class: it must be a text of 1 to 100 "
                        "printable characters; rename it")
    return name


def to_dicts(value: Any, source: str) -> Sequence[dict]:
    """Checks that a value is a list of JSON objects."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{source}: must be a list of objects, not {shorten(value)}; export the file again")
    return value


class Problems:
    """Mistakes of a data set: the first one ends the import, or all are collected and their images left out.

    Args:
        skip: Collect them.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip, self.messages = skip, list[str]()

    @contextmanager
    def one_image(self) -> Iterator[None]:
        """Reads one image or its annotations.

        Raises:
            DataError: There is a mistake, and it is not to be skipped.
        """
        try:
            yield
        except DataError as error:
            if not self.skip:
                raise DataError(f"{error}; --on_error skip leaves such images out") from None
            self.messages.append(str(error))
