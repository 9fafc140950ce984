"""Results of an image in tiles, written while it is segmented: a few rows at a time, from top to bottom."""
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from mindseg.data.datasets import DatasetInfo
from mindseg.data.headers import PNG_SIGNATURE, png_chunk
from mindseg.drawing import palette_table
from mindseg.files import replacing
from mindseg.inference.pictures import pixel_values, render, save_picture
from mindseg.inference.tiles import Band

_MOST_PIXELS = 2 ** 25      # of a picture to look at: an A3 page at 400 dots an inch
_GREY, _PALETTE = 0, 3
Write = Callable[[Band], None]


class PngRows:
    """A PNG of one byte a pixel that is written row by row.

    Args:
        stream: Where to write.
        size: Height and width.
        palette: Colours of the values, uint8 (256, 3); None: they are grey.
    """

    def __init__(self, stream: IO[bytes], size: tuple[int, int], palette: np.ndarray | None = None) -> None:
        self.stream = stream
        self._compressor = zlib.compressobj(3)
        kind = _GREY if palette is None else _PALETTE
        header = struct.pack(">IIBBBBB", size[1], size[0], 8, kind, 0, 0, 0)
        stream.write(PNG_SIGNATURE + png_chunk(b"IHDR", header))
        if palette is not None:
            stream.write(png_chunk(b"PLTE", palette.tobytes()))

    def write(self, values: np.ndarray) -> None:
        """Adds rows, uint8 (n, width)."""
        rows = np.zeros((len(values), values.shape[1] + 1), np.uint8)       # no filter, as for labels
        rows[:, 1:] = values
        self._write(self._compressor.compress(rows))

    def finish(self) -> None:
        """Writes the end of the file."""
        self._write(self._compressor.flush())
        self.stream.write(png_chunk(b"IEND", b""))

    def _write(self, content: bytes) -> None:
        if content:
            self.stream.write(png_chunk(b"IDAT", content))


class Reduction:
    """A smaller copy of an image and its classes: every n-th pixel, of the image the mean around it.

    Args:
        size: Height and width of the image.
        most_pixels: Those of the copy.

    Attributes:
        image: uint8 (h, w, 3) in BGR order.
        ids: uint8 (h, w).
    """

    def __init__(self, size: tuple[int, int], most_pixels: int = _MOST_PIXELS) -> None:
        self.factor = max(1, math.ceil(math.sqrt(size[0] * size[1] / most_pixels)))
        self._middle = self.factor // 2
        shape = tuple(len(range(self._middle, side, self.factor)) for side in size)
        self.image, self.ids = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)

    def write(self, band: Band) -> None:
        """Adds the next rows."""
        offset = (self._middle - band.top) % self.factor
        first = (band.top + offset - self._middle) // self.factor
        image = band.image if self.factor == 1 else cv2.blur(band.image, (self.factor, self.factor))
        ids = band.answer[0][offset::self.factor, self._middle::self.factor]
        self.ids[first:first + len(ids)] = ids
        self.image[first:first + len(ids)] = image[offset::self.factor, self._middle::self.factor]


@contextmanager
def value_file(path: Path, kind: str, size: tuple[int, int], info: DatasetInfo) -> Iterator[Write]:
    """Opens a PNG with one number a pixel; it gets its name when the block ends without error.

    Args:
        path: File.
        kind: Of ``pictures.VALUES``.
        size: Height and width of the image.
        info: Colours and official ids.
    """
    palette = palette_table(info.palette) if kind == "mask" else None
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        png = PngRows(stream, size, palette)
        yield lambda band: png.write(pixel_values(kind, band.answer, info))
        png.finish()


@contextmanager
def picture_file(path: Path, kind: str, size: tuple[int, int], info: DatasetInfo, alpha: float) -> Iterator[Write]:
    """Opens a picture to look at, at most 2 ** 25 pixels large; it is written when the block ends without error.

    Args:
        path: File.
        kind: Of ``pictures.PICTURES``.
        size: Height and width of the image.
        info: Names and colours.
        alpha: Opacity of the colours, 0..1.
    """
    small = Reduction(size)
    yield small.write
    save_picture(path, kind, render(kind, small.image, (small.ids, None), info, alpha), info)
