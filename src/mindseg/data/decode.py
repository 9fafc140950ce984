"""Decoding of image and label files; refuses everything that training could not use."""
import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from mindseg.data import jpeg
from mindseg.data.labels import describe_unmapped, has_unmapped
from mindseg.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_OTHERS = {b"\xff\xd8": "JPEG", b"BM": "BMP", b"RIFF": "WebP"}
_KINDS = {0: "grey", 2: "colour", 3: "palette", 4: "grey with alpha", 6: "colour with alpha"}


def decode_image(data: np.ndarray, name: str) -> np.ndarray:
    """Decodes a photograph.

    Args:
        data: Bytes of a PNG, JPEG or WebP file, uint8 (N,).
        name: File or sample, for error messages.

    Returns:
        uint8 (H, W, 3) in BGR order.

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
    """Decodes some rows of a photograph, and only those where the file allows it; otherwise as :func:`decode_image`.

    Args:
        data: Bytes of the file, uint8 (N,).
        name: File or sample, for error messages.
        top: First row.
        bottom: Row after the last one.

    Returns:
        The rows, uint8 (bottom - top, W, 3) in BGR order, and the (height, width) of the whole image.
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
        data: Bytes of a grey or palette PNG, uint8 (N,); of a palette image the indices count, not the colours.
        name: File or sample, for error messages.
        lut: Label LUT, uint8 (256,).

    Returns:
        Train ids, uint8 (H, W), 255 = ignored.

    Raises:
        DataError: Empty, damaged, colour, 16-bit, or a value is no label (value and share are named).
    """
    return cv2.LUT(decode_checked_label(data, name, lut), lut)


def decode_checked_label(data: np.ndarray, name: str, lut: np.ndarray) -> np.ndarray:
    """Decodes as :func:`decode_label`, but returns the values as stored: translating a crop of them is cheaper."""
    values = decode_label_values(data, name)
    if has_unmapped(values, lut):
        raise DataError(f"{name}: {describe_unmapped(np.bincount(values.ravel(), minlength=256), lut)}")
    return values


def decode_label_values(data: np.ndarray, name: str) -> np.ndarray:
    """Decodes a label map to the values as stored, uint8 (H, W), without checking them."""
    kind, bits = _png_kind(data, name)
    if kind == "palette":
        # OpenCV turns palette indices into colours; Pillow keeps them, but checks the pixels' checksum only if asked.
        raw = data.tobytes()
        try:
            Image.open(io.BytesIO(raw)).verify()
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


def _png_kind(data: np.ndarray, name: str) -> tuple[str, int]:
    """Colour type and bit depth of a PNG, ``("", 0)`` for other formats; refuses empty and cut-off files."""
    if data.size == 0:
        raise DataError(f"{name}: the file is empty or unreadable; restore it")
    # Not every OpenCV refuses a file that ends early: some return the rows they got and leave the rest grey.
    if data[:8].tobytes() == _PNG:
        if data.size >= 32 and b"IEND" in data[-4096:].tobytes():
            return _KINDS.get(int(data[25]), "unknown"), int(data[24])
    elif data[:2].tobytes() != b"\xff\xd8" or jpeg.is_whole(data):
        return "", 0
    raise DataError(f"{name}: the file is cut off ({data.size} bytes); restore it")


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
        values: Label values, uint8 (H, W).
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

