"""Image files made byte by byte, for tests of readers: whole ones, bombs and damaged ones."""
import io
import struct
import zlib
from collections.abc import Mapping

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


def exif(orientation: int, order: str = "<") -> bytes:
    """EXIF data of one entry, the orientation."""
    return struct.pack(order + "2sHIHHHIHHI", b"II" if order == "<" else b"MM", 42, 8, 1, 274, 3, 1, orientation, 0, 0)


def with_exif(data: bytes, content: bytes, width: int, height: int) -> bytes:
    """A JPEG, PNG or WebP with EXIF data.

    Args:
        data: The file; a WebP of one chunk.
        content: EXIF data.
        width: Of the image, for a WebP.
        height: Of the image.
    """
    if data[:2] == b"\xff\xd8":
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 8) + b"Exif\0\0" + content + data[2:]
    if data[:4] == b"RIFF":
        extended = bytes([8, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks = b"VP8X" + struct.pack("<I", 10) + extended + data[12:] + b"EXIF" + struct.pack("<I", len(content))
        chunks += content + b"\0" * (len(content) % 2)
        return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    return data[:33] + chunk(b"eXIf", content) + data[33:]


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image as a viewer shows it, after the words of EXIF 2.32: the first row and column are which sides of it."""
    return {1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.transpose(1, 0, 2),
            6: image[::-1].transpose(1, 0, 2), 7: image[::-1, ::-1].transpose(1, 0, 2),
            8: image[:, ::-1].transpose(1, 0, 2)}[orientation]


def tiff(pixels: np.ndarray, photometric: int | None = None, order: str = "<", big: bool = False,
         tile: tuple[int, int] | None = None, rows: int = 10, compression: int = 1, planes: int = 1,
         tags: Mapping[int, tuple[int, list[int]]] | None = None) -> bytes:
    """A TIFF, with the entries in the order of their tags.

    Args:
        pixels: bool, uint8, uint16 or float32 (H, W) or (H, W, C).
        photometric: Interpretation; by default grey (1) below three channels, otherwise RGB (2).
        order: Byte order, ``<`` or ``>``.
        big: BigTIFF.
        tile: Height and width of the tiles instead of strips.
        rows: Rows of a strip.
        compression: 1 or 8 (Deflate).
        planes: 2 stores each channel by itself.
        tags: Further entries, or others in place of these, as (type, numbers).
    """
    pixels = np.atleast_3d(pixels)
    height, width, channels = pixels.shape
    bits = 1 if pixels.dtype == bool else 8 * pixels.itemsize
    rows = tile[0] if tile else rows
    columns = tile[1] if tile else width
    pieces = []
    for part in [pixels] if planes == 1 else np.split(pixels, channels, axis=2):
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                piece = part[top:top + rows, left:left + columns]
                if tile:
                    piece = np.pad(piece, ((0, rows - piece.shape[0]), (0, columns - piece.shape[1]), (0, 0)))
                content = (np.packbits(piece[..., 0], axis=1) if bits == 1 else
                           np.ascontiguousarray(piece, piece.dtype.newbyteorder(order))).tobytes()
                pieces.append(zlib.compress(content) if compression == 8 else content)
    start = 16 if big else 8
    places = (start + np.cumsum([0, *map(len, pieces[:-1])])).tolist()
    entries = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [compression]),
               262: (3, [photometric if photometric is not None else 1 if channels < 3 else 2]),
               277: (3, [channels]), 284: (3, [planes])}
    sizes = [len(piece) for piece in pieces]
    entries |= ({322: (4, [columns]), 323: (4, [rows]), 324: (16 if big else 4, places), 325: (4, sizes)} if tile else
                {273: (16 if big else 4, places), 278: (4, [rows]), 279: (4, sizes)})
    body = b"".join(pieces)
    return _with_directory(body + b"\0" * (len(body) % 2), entries | dict(tags or {}), order, big)


def _with_directory(body: bytes, entries: Mapping[int, tuple[int, list[int]]], order: str, big: bool) -> bytes:
    """Header, ``body``, numbers that do not fit into their entry, and the directory."""
    word, room = ("Q", 8) if big else ("I", 4)
    outside, directory = b"", b""
    start = (16 if big else 8) + len(body)
    for tag, (kind, numbers) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(numbers)}{ {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}[kind]}", *numbers)
        if len(content) > room:
            place = struct.pack(order + word, start + len(outside))
            outside += content + b"\0" * (len(content) % 2)
            content = place
        directory += struct.pack(f"{order}HH{word}", tag, kind, len(numbers)) + content.ljust(room, b"\0")
    mark, place = b"II" if order == "<" else b"MM", start + len(outside)
    header = struct.pack(order + "2sHHHQ", mark, 43, 8, 0, place) if big else struct.pack(order + "2sHI", mark, 42,
                                                                                         place)
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    return header + body + outside + count + directory + bytes(room)
