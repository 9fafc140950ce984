"""Headers of image files: format, size, kind and orientation, read before anything is decoded.

The C++ runner has the same rules (``ascend310_infer/src/image_header.cc``).
"""
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mindseg.data import jpeg, tiff

_EXIF_START = b"Exif\0\0"
_MOST_CHUNKS = 1000         # of a WebP that are searched for EXIF data
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KINDS = {0: "grey", 2: "colour", 3: "palette", 4: "grey with alpha", 6: "colour with alpha"}
_JPEG_KINDS = {1: "grey", 3: "colour", 4: "CMYK"}
# Formats by their first bytes; those that no reader below takes are here to be named in the message.
_SIGNATURES = [(re.compile(pattern, re.DOTALL), name) for pattern, name in (
    (rb"\x89PNG\r\n\x1a\n", "PNG"), (rb"\xff\xd8\xff", "JPEG"), (rb"RIFF....WEBP", "WebP"), (rb"BM", "BMP"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"), (rb"\x59\xa6\x6a\x95", "Sun raster"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"), (rb"P[1-7Ff]\s", "PNM"), (rb"GIF8", "GIF"),
    (rb"....ftypavi[fs]", "AVIF"), (rb"....ftyp(?:hei|hev|mif)", "HEIF"), (rb"#\?R", "HDR"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"), (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"))]


@dataclass(frozen=True)
class Header:
    """Header of an image file.

    Attributes:
        width: Columns as the file claims them, before the image is turned.
        height: Rows as the file claims them.
        kind: ``grey``, ``colour``, ``palette``, ``CMYK``, …; empty if only decoding tells.
        bits: Bits of a channel or palette index; 0 if only decoding tells.
        whole: Nothing is missing at the end of the file; anything may follow.
        alpha: There is an alpha channel, or colours that are transparent.
        exif: Begin and end of the EXIF data in the file; the same if there are none.
        orientation: EXIF orientation, 1 (upright) to 8.
        directory: Directory of a TIFF.
    """
    width: int
    height: int
    kind: str
    bits: int
    whole: bool
    alpha: bool = False
    exif: tuple[int, int] = (0, 0)
    orientation: int = 1
    directory: tiff.Directory | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width after the image was turned by its orientation."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def file_format(data: np.ndarray) -> str:
    """Name of a file's format by its first bytes, empty if unknown.

    Args:
        data: Bytes of the file, uint8 (N,).
    """
    start = data[:16].tobytes()
    return next((name for pattern, name in _SIGNATURES if pattern.match(start)), "")


def read_header(data: np.ndarray, kind: str) -> Header | None:
    """Reads the header of a file.

    Args:
        data: Bytes of the file, uint8 (N,).
        kind: ``PNG``, ``JPEG``, ``WebP``, ``BMP`` or ``TIFF``, see :func:`file_format`.

    Returns:
        The header, or ``None`` if the file ends within it or it is none.
    """
    try:
        header = {"PNG": _read_png, "JPEG": _read_jpeg, "WebP": _read_webp, "BMP": _read_bmp,
                  "TIFF": _read_tiff}[kind](data)
    except (struct.error, IndexError):
        return None
    if header is None or header.exif == (0, 0):
        return header
    begin, end = header.exif
    begin += len(_EXIF_START) if data[begin:begin + len(_EXIF_START)].tobytes() == _EXIF_START else 0
    directory = tiff.read_directory(data[begin:end])
    return replace(header, exif=(begin, end), orientation=directory.orientation if directory else 1)


def without_orientation(data: np.ndarray) -> np.ndarray:
    """The file with EXIF data that say nothing of the orientation, so that the image is not turned.

    Args:
        data: Bytes of a JPEG, PNG or WebP, uint8 (N,).
    """
    kind = file_format(data)
    header = read_header(data, kind) if kind in ("JPEG", "PNG", "WebP") else None
    if header is None or header.orientation == 1:
        return data
    begin, end = header.exif
    place = begin + tiff.read_directory(data[begin:end]).place(tiff.ORIENTATION)
    data = data.copy()
    data[place:place + 2] = 0       # the number of the tag
    if kind == "PNG":
        start = next(place for name, place, _ in png_chunks(data) if name == b"eXIf")
        data[end:end + 4] = np.frombuffer(zlib.crc32(data[start + 4:end]).to_bytes(4, "big"), np.uint8)
    return data


def png_chunks(data: np.ndarray) -> Iterator[tuple[bytes, int, int]]:
    """Walks over the chunks of a PNG.

    Args:
        data: Bytes of the file, uint8 (N,).

    Yields:
        (type, begin, end) of each chunk, its length, type and checksum included, up to and with ``IEND``; fewer if the
        file is cut off.
    """
    at = len(PNG_SIGNATURE)
    while at + 12 <= data.size:
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > data.size:
            return
        yield kind, at, at + 12 + length
        if kind == b"IEND":
            return
        at += 12 + length


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Makes a chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _read_png(data: np.ndarray) -> Header | None:
    length, kind, width, height, bits, colour = struct.unpack_from(">I4sIIBB", data, len(PNG_SIGNATURE))
    if (length, kind) != (13, b"IHDR"):
        return None
    whole, alpha, exif = False, colour in (4, 6), (0, 0)
    for kind, begin, end in png_chunks(data):
        whole = kind == b"IEND"
        alpha = alpha or kind == b"tRNS"
        exif = (begin + 8, end - 4) if kind == b"eXIf" and exif == (0, 0) else exif
    return Header(width, height, _PNG_KINDS.get(colour, "unknown"), bits, whole, alpha, exif)


def _read_jpeg(data: np.ndarray) -> Header | None:
    segments = jpeg.read_segments(data)
    frame = jpeg.read_frame(data, segments)
    if frame is None:
        return None
    bits, height, width, channels = frame
    kind = _JPEG_KINDS.get(channels, f"of {channels} channels")
    return Header(width, height, kind, bits, jpeg.is_whole(data, segments), exif=jpeg.find_exif(data, segments))


def _read_webp(data: np.ndarray) -> Header | None:
    size, = struct.unpack_from("<I", data, 4)
    chunk, body = data[12:16].tobytes(), data[20:30].tobytes()
    whole = 8 + size <= data.size
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return Header(width & 0x3FFF, height & 0x3FFF, "", 0, whole)
    if chunk == b"VP8L":
        sides, = struct.unpack_from("<I", body, 1)
        return Header((sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1, "", 0, whole, bool(sides >> 28 & 1))
    if chunk == b"VP8X":
        width, height = (int.from_bytes(body[i:i + 3], "little") + 1 for i in (4, 7))
        return Header(width, height, "an animation" if body[0] & 2 else "", 0, whole, bool(body[0] & 16),
                      _find_webp_exif(data))
    return None


def _find_webp_exif(data: np.ndarray) -> tuple[int, int]:
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > data.size:
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return (at + 8, at + 8 + length) if at + 8 + length <= data.size else (0, 0)
        at += 8 + length + length % 2
    return 0, 0


def _read_bmp(data: np.ndarray) -> Header | None:
    pixels, size = struct.unpack_from("<II", data, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packing = 0
    else:
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)        # negative: the rows stand from top to bottom
    row = (width * bits + 31) // 32 * 4
    return Header(width, height, "packed" if packing not in (0, 3) else "", 0, pixels + row * height <= data.size)


def _read_tiff(data: np.ndarray) -> Header | None:
    directory = tiff.read_directory(data)
    pixels = tiff.pixel_kind(directory) if directory else None
    if pixels is None:
        return None
    kind, bits = pixels
    return Header(*directory.size, kind, bits, tiff.is_whole(directory), "alpha" in kind,
                  orientation=directory.orientation, directory=directory)
