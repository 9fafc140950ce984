"""Images too large to be decoded at once: some rows at a time.

A TIFF is read by its tiles or strips, each once, and the file is never in memory as a whole. Every other image is
decoded whole: PNG, JPEG, WebP, BMP, and a TIFF that has to be turned or whose strips are hardly smaller than the image.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from mindseg.data import tiff
from mindseg.data.decode import MAX_SIDE, decode_image, decode_tiff_rows, pixel_limit, read_image_header
from mindseg.data.headers import Header, file_format
from mindseg.errors import DataError
from mindseg.files import FileBytes, read_bytes

_MOST_WHOLE = 2 ** 30           # pixels that are decoded at once at most, OpenCV's limit
_MOST_TOGETHER = 2 ** 26        # pixels of a row of tiles or strips at most
_ROWS_TOGETHER = 256            # rows that are decoded at once, or those of one row of tiles or strips


class Bands(Protocol):
    """An image that is read from top to bottom.

    Attributes:
        size: Height and width.
    """
    size: tuple[int, int]

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Some rows, uint8 (bottom - top, W, 3) in BGR order; ``top`` is at least that of the call before."""


class WholeImage:
    """An image in memory.

    Args:
        image: uint8 (H, W, 3).
    """

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.size = image.shape[:2]

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Some rows."""
        return self.image[top:bottom]


class TiffRows:
    """An image in a TIFF file, of which the rows asked for last are in memory.

    Args:
        header: Of the file.
        pieces: Its parts that can be decoded by themselves.
        name: File, for messages.
    """

    def __init__(self, header: Header, pieces: tiff.Pieces, name: str) -> None:
        self.size = header.size
        self.header, self.pieces, self.name = header, pieces, name
        self._blocks: list[tuple[int, np.ndarray]] = []     # first row and pixels
        self._next = 0                                      # row of pieces behind the decoded ones

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Some rows.

        Raises:
            DataError: They have more pixels than ``runtime.max_pixels``, or cannot be decoded.
        """
        height, width = bottom - top, self.size[1]
        if height * width > pixel_limit():
            raise DataError(f"{self.name}: a row of tiles has {height}x{width} pixels, above the limit of "
                            f"{pixel_limit()}; take lower tiles (--tile) or raise runtime.max_pixels")
        together = max(1, _ROWS_TOGETHER // self.pieces.rows)
        while self._next * self.pieces.rows < bottom:
            first, self._next = self._next, min(self._next + together, self.pieces.places.shape[1])
            pixels = decode_tiff_rows(self.header, self.name, self.pieces, first, self._next)
            self._blocks.append((first * self.pieces.rows, pixels))
        self._blocks = [(start, pixels) for start, pixels in self._blocks if start + len(pixels) > top]
        first = self._blocks[0][0]
        return np.concatenate([pixels for _, pixels in self._blocks])[top - first:bottom - first]


@contextmanager
def open_bands(path: Path) -> Iterator[Bands]:
    """Opens an image file.

    Args:
        path: File.

    Raises:
        DataError: As :func:`mindseg.data.decode.decode_image`; ``runtime.max_pixels`` counts for the rows of a TIFF.
    """
    name, data = str(path), FileBytes(path)
    try:
        header = read_image_header(data, name, MAX_SIDE ** 2) if file_format(data) == "TIFF" else None
        if header and header.orientation == 1:
            pieces = tiff.separable_pieces(header.directory)
            if pieces.rows * header.width <= _MOST_TOGETHER:
                yield TiffRows(header, pieces, name)
                return
    finally:
        data.close()
    yield WholeImage(decode_image(read_bytes(path), name, _MOST_WHOLE))
