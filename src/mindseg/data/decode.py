"""From the bytes of an image or label file to pixels, refusing everything training could not use."""
import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from mindseg.data import jpeg
from mindseg.data.datasets import UNMAPPED
from mindseg.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_OTHERS = {b"\xff\xd8": "JPEG", b"BM": "BMP", b"RIFF": "WebP"}
_KINDS = {0: "grey", 2: "colour", 3: "palette", 4: "grey with alpha", 6: "colour with alpha"}


def decode_image(data: np.ndarray, name: str) -> np.ndarray:
    """Decodes a photograph.

    Args:
        data: uint8 vector, the bytes of a PNG, JPEG or WebP file.
        name: The file or sample, for error messages.

    Returns:
        uint8 array (H, W, 3) in BGR order.

    Raises:
        DataError: Empty, damaged or cut off, 16-bit, grey, or with alpha.
    """
    kind, bits = _png_kind(data, name)
    image = _imdecode(data, name, "image")
    if image.ndim == 2 or image.shape[2] != 3 or image.dtype != np.uint8:
        channels = 1 if image.ndim == 2 else image.shape[2]
        what = kind or {1: "grey", 4: "colour with alpha"}.get(channels, f"{channels} channels")
        raise DataError(f"{name}: image is {what}, {bits or 8 * image.itemsize}-bit; "
                        "it must be colour, 8-bit, without alpha: convert it")
    return image


def decode_image_rows(data: np.ndarray, name: str, top: int, bottom: int) -> tuple[np.ndarray, tuple[int, int]]:
    """As :func:`decode_image`, but gives some rows, and decodes only those where the file allows it.

    Returns:
        uint8 array of rows ``top`` to ``bottom - 1`` in BGR order, and the (height, width) of the whole image.
    """
    _png_kind(data, name)
    cut = jpeg.cut_rows(data, top, bottom)
    if cut is None:
        image = decode_image(data, name)
        return image[top:bottom], image.shape[:2]
    part, start, size = cut
    return decode_image(part, name)[top - start:bottom - start], size


def decode_label(data: np.ndarray, name: str, lut: np.ndarray) -> np.ndarray:
    """Decodes a label map and translates it to train ids.

    Args:
        data: uint8 vector, the bytes of a grey or palette PNG; of the latter the indices count, not the colours.
        name: The file or sample, for error messages.
        lut: label LUT, uint8 (256,): train ids, ``UNMAPPED`` where a value must not occur.

    Returns:
        uint8 array (H, W) of train ids, 255 = ignored.

    Raises:
        DataError: Empty, damaged, colour, 16-bit, or it holds a value that is no label (value and share are named).
    """
    return cv2.LUT(decode_checked_label(data, name, lut), lut)


def decode_checked_label(data: np.ndarray, name: str, lut: np.ndarray) -> np.ndarray:
    """As :func:`decode_label`, but gives the values as stored: translating a crop of them is cheaper."""
    values = decode_label_values(data, name)
    if has_unmapped(values, lut):
        raise DataError(f"{name}: {describe_bad_values(np.bincount(values.ravel(), minlength=256), lut)}")
    return values


def has_unmapped(values: np.ndarray, lut: np.ndarray) -> bool:
    """Whether any value has no train id in ``lut``."""
    bad = np.flatnonzero(lut == UNMAPPED)
    if not bad.size:
        return False
    first = int(bad[0])
    # Nearly every LUT allows 0..first-1 and perhaps 255; one maximum over the pixels then settles it.
    if np.array_equal(bad, np.arange(first, 256)):
        return int(values.max()) >= first
    if np.array_equal(bad, np.arange(first, 255)):
        return int((values + np.uint8(1)).max()) > first       # 255 wraps to 0
    return bool(cv2.compare(cv2.LUT(values, lut), UNMAPPED, cv2.CMP_EQ).any())


def decode_label_values(data: np.ndarray, name: str) -> np.ndarray:
    """Decodes a label map to the values as stored: uint8 (H, W). Raises as :func:`decode_label`."""
    kind, bits = _png_kind(data, name)
    if kind == "palette":
        # OpenCV turns palette indices into colours; Pillow keeps them, but does not check the pixels' checksum.
        raw = data.tobytes()
        try:
            _check_png_checksums(raw)
            return np.array(Image.open(io.BytesIO(raw)), dtype=np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{name}: label is damaged or cut off ({error}); restore the file") from None
    if kind == "grey" and bits < 8:
        raise DataError(f"{name}: label is {bits}-bit grey; store class ids as 8-bit grey")
    values = _imdecode(data, name, "label")
    if values.ndim != 2 or values.dtype != np.uint8:
        what = kind or "colour"
        raise DataError(f"{name}: label is {what}, {bits or 8}-bit; it must hold class ids (8-bit grey or palette): "
                        "colour and instance files are not labels")
    if data[:len(_PNG)].tobytes() != _PNG:
        # A lossy file may hold legal values by luck, and other ones along the edges.
        kind = next((word for magic, word in _OTHERS.items() if data[:4].tobytes().startswith(magic)), "not PNG")
        raise DataError(f"{name}: label is {kind}; class ids must be stored exactly, as PNG (8-bit grey or palette): "
                        "make the file again from its source, a lossy one cannot be converted")
    return values


def describe_bad_values(counts: np.ndarray, lut: np.ndarray) -> str:
    """Words for label values that have no train id: the worst value, its share of the pixels, the legal ones.

    Args:
        counts: Pixels per value 0..255.
        lut: The label LUT.
    """
    bad = np.flatnonzero((lut == UNMAPPED) & (counts > 0))
    worst = bad[np.argmax(counts[bad])]
    share = 100.0 * counts[worst] / counts.sum()
    others = f" and {len(bad) - 1} more such values" if len(bad) > 1 else ""
    legal = [int(v) for v in np.flatnonzero(lut != UNMAPPED)]
    return (f"label value {worst} on {share:.3g} % of the pixels{others} is no class; "
            f"allowed are {_ranges(legal)}: correct the label, the class list or data.ignore_id")


def _ranges(values: list[int]) -> str:
    parts, start = [], None
    for i, value in enumerate(values):
        start = value if start is None else start
        if i + 1 == len(values) or values[i + 1] != value + 1:
            parts.append(f"{start}" if start == value else f"{start}..{value}")
            start = None
    return ", ".join(parts)


def _png_kind(data: np.ndarray, name: str) -> tuple[str, int]:
    """Colour type and bit depth of a PNG, ``("", 0)`` for other formats; refuses empty and cut-off files."""
    if data.size == 0:
        raise DataError(f"{name}: the file is empty or unreadable; restore it")
    raw = data[:32].tobytes()
    # Not every OpenCV refuses a file that ends early: some return the rows they got and leave the rest grey.
    if raw.startswith(_PNG):
        whole = len(raw) == 32 and data[-4096:].tobytes().rfind(b"IEND") >= 0
    elif raw.startswith(b"\xff\xd8"):
        whole = jpeg.is_whole(data)
    else:
        return "", 0
    if not whole:
        raise DataError(f"{name}: the file is cut off ({data.size} bytes); restore it")
    if not raw.startswith(_PNG):
        return "", 0
    bits, colour = struct.unpack("BB", raw[24:26])
    return _KINDS.get(colour, "unknown"), bits


def _check_png_checksums(raw: bytes) -> None:
    """Raises ``ValueError`` unless every chunk up to the end mark is whole and matches its CRC (PNG, section 5.3)."""
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        if at + 12 > len(raw):
            raise ValueError("the end mark is missing")
        length = int.from_bytes(raw[at:at + 4], "big")
        kind, content = raw[at + 4:at + 8], raw[at + 4:at + 8 + length]
        if zlib.crc32(content) != int.from_bytes(raw[at + 8 + length:at + 12 + length], "big"):
            raise ValueError(f"checksum of {kind.decode('ascii', 'replace')} at byte {at}")
        at += 12 + length


def _imdecode(data: np.ndarray, name: str, what: str) -> np.ndarray:
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"{name}: {what} cannot be decoded ({data.size} bytes): damaged, cut off or no image file")
    return pixels


def encode_label(values: np.ndarray) -> bytes:
    """Encodes a label map as an 8-bit grey PNG without row filters.

    Filters help photographs, not runs of equal ids: such a file decodes three times faster than the usual one.

    Args:
        values: uint8 (H, W).
    """
    height, width = values.shape
    rows = np.zeros((height, width + 1), np.uint8)      # each row is preceded by the number of its filter, 0
    rows[:, 1:] = values

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")


def check_sizes(image: tuple[int, ...], label: tuple[int, ...], name: str) -> None:
    """Raises ``DataError`` unless image and label, given by their shapes, have the same height and width."""
    if image[:2] != label[:2]:
        (h, w), (lh, lw) = image[:2], label[:2]
        raise DataError(f"{name}: image is {w}x{h} but its label is {lw}x{lh}; they must have the same size")

