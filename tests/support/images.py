"""Image files made byte by byte, for tests of readers: whole ones, bombs and damaged ones."""
import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG's chunk with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int = 8, colour: int = 2, rows: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG of any header; ``rows`` are its pixels with a filter byte each row, ``before`` chunks ahead of them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join([PNG_SIGNATURE, chunk(b"IHDR", header), before, chunk(b"IDAT", zlib.compress(rows)),
                     chunk(b"IEND", b"")])


def bmp(width: int, height: int, bits: int = 24, packing: int = 0, pixels: bytes = b"", offset: int = 54) -> bytes:
    """A BMP of any header."""
    return (b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, len(pixels), 0, 0, 0, 0) + pixels)


def webp(kind: bytes, content: bytes) -> bytes:
    """A WebP of one chunk."""
    content += b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", 12 + len(content)) + b"WEBP" + kind + struct.pack("<I", len(content)) + content


def encode(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    """The pixels (BGR or grey) as OpenCV writes them."""
    return cv2.imencode(suffix, pixels, list(options))[1].tobytes()


def pillow(pixels: np.ndarray, mode: str, kind: str, **options: object) -> bytes:
    """The pixels (RGB or grey) as Pillow writes them."""
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def with_jpeg_size(data: bytes, width: int, height: int, channels: int | None = None) -> bytes:
    """A JPEG whose header claims another size."""
    at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2))
    count = data[at + 9] if channels is None else channels
    return data[:at + 5] + struct.pack(">HHB", height, width, count) + data[at + 10:]
