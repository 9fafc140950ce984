"""Decoding of image and label files; refuses everything that training could not use.

A file is judged by its content, never by its suffix, and its header is read before anything is decoded, so that a
small file that claims a huge size costs no memory. Photographs are PNG, JPEG, WebP, BMP or TIFF, labels are PNG. Their
sides are 1 to 1048576 and their pixels at most ``runtime.max_pixels``. Nothing may be missing at the end, anything may
follow it:

- PNG: the chunks lead from ``IHDR``, the first one, to ``IEND``.
- JPEG: an end mark follows the pixels, see :func:`mindseg.data.jpeg.is_whole`.
- WebP: the file is as long as its RIFF header says; no animation.
- BMP: the file holds all rows; not run-length encoded.
- TIFF: the file holds all strips or tiles, see :func:`mindseg.data.tiff.is_whole`; its first page counts.

Photographs become 8-bit colour: grey is repeated, 16-bit values v become (v + 128) // 257, OpenCV converts CMYK, and
alpha is left out. Then they are turned by their EXIF orientation, here, because OpenCV's versions differ in that.
Labels stay as they are stored. The C++ runner has the same rules (``ascend310_infer/src/preprocess.cc``).
"""
import logging
import struct
import zlib

import cv2
import numpy as np

from mindseg.data import jpeg, tiff
from mindseg.data.headers import PNG_SIGNATURE, Header, file_format, png_chunk, png_chunks, read_header
from mindseg.data.labels import describe_unmapped, has_unmapped
from mindseg.errors import DataError, printable
from mindseg.files import FileBytes

MAX_PIXELS = 2 ** 28
MAX_SIDE = 2 ** 20          # OpenCV's
_MOST_TIFF_BYTES = 2 ** 31 - 1      # OpenCV's
_IMAGE_FORMATS = ("PNG", "JPEG", "WebP", "BMP", "TIFF")
_IMAGE_KINDS = ("", "colour", "palette", "grey", "grey with alpha", "colour with alpha", "CMYK")
_DECODE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
# Flips that follow the transposition of orientations 5 to 8: 1 exchanges left and right, 0 top and bottom, -1 both.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
_LOG = logging.getLogger("mindseg.data")
_limits = {"pixels": MAX_PIXELS}
_named: set[str] = set()        # conversions that were logged


def limit_pixels(count: int) -> None:
    """Sets the number of pixels that an image or label may have (``runtime.max_pixels``).

    Args:
        count: At least 1; OpenCV refuses more than 2 ** 30 whatever is set here.
    """
    _limits["pixels"] = count


def pixel_limit() -> int:
    """Number of pixels that :func:`limit_pixels` set."""
    return _limits["pixels"]


def decode_image(data: np.ndarray, name: str, most_pixels: int | None = None) -> np.ndarray:
    """Decodes a photograph.

    Args:
        data: Bytes of a PNG, JPEG, WebP, BMP or TIFF file, uint8 (N,).
        name: File or sample, for messages. What is converted is logged once for each kind of conversion.
        most_pixels: Pixels that the image may have; None: as :func:`limit_pixels` says.

    Returns:
        uint8 (H, W, 3) in BGR order, turned by its EXIF orientation.

    Raises:
        DataError: Empty, damaged or cut off, too large, of another format, or of pixels that cannot be decoded.
    """
    header = read_image_header(data, name, most_pixels)
    return _turn(_decode_image(data, name, header, header.height), header.orientation)


def decode_tiff_rows(header: Header, name: str, pieces: tiff.Pieces, first: int, last: int) -> np.ndarray:
    """Decodes some rows of the strips or tiles of a TIFF, without turning them.

    Args:
        header: Of the file.
        name: File, for error messages.
        pieces: Its :func:`mindseg.data.tiff.separable_pieces`.
        first: Number of the first row of pieces.
        last: That of the row of pieces behind the last one.

    Returns:
        uint8 (rows, W, 3) in BGR order.

    Raises:
        DataError: The pieces cannot be decoded.
    """
    try:
        data = tiff.cut_rows(header.directory, pieces, first, last)
        part = read_header(data, "TIFF")
    except struct.error:        # the file has become shorter
        part = None
    if part is None or not part.whole:
        raise DataError(f"{name}: strips or tiles are damaged; restore the file")
    return _decode_image(data, name, part, part.height)


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
    header = read_image_header(data, name)
    cut = jpeg.cut_rows(data, top, bottom) if header.orientation == 1 else None
    if cut is None:
        image = _decode_image(data, name, header, header.height)
        return _turn(image, header.orientation)[top:bottom], header.size
    part, start, rows = cut
    return _decode_image(part, name, header, rows)[top - start:bottom - start], header.size


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
    header = _read_header(data, name, "label", ("PNG",))
    if header.kind not in ("grey", "palette") or header.bits > 8:
        raise DataError(f"{name}: label is {header.kind}, {header.bits}-bit; it must hold class ids (8-bit grey or "
                        "palette): colour and instance files are not labels")
    if header.kind == "grey" and header.bits < 8:
        raise DataError(f"{name}: label is {header.bits}-bit grey; store class ids as 8-bit grey")
    # OpenCV turns palette indices into colours, but not those of a file that says that it is grey.
    data = _without_palette(data, name) if header.kind == "palette" else data
    values = _imdecode(data, name, "label", (header.height, header.width))
    if values.ndim != 2:
        raise DataError(f"{name}: label is grey with transparency; store class ids as 8-bit grey")
    return values >> (8 - header.bits) if header.bits < 8 else values


def decode_colors(data: np.ndarray, name: str) -> np.ndarray:
    """Decodes a colour mask as it is stored, to uint8 (H, W, 3) in BGR order; alpha is left out.

    Args:
        data: Bytes of a PNG of 8-bit colours or with a palette, uint8 (N,).
        name: File, for error messages.

    Raises:
        DataError: Empty, damaged, or of another kind.
    """
    header = _read_header(data, name, "mask", ("PNG",))
    pixels = _imdecode(data, name, "mask", (header.height, header.width))
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise DataError(f"{name}: mask is {header.kind}, {header.bits}-bit; it must hold 8-bit colours: convert it")
    return pixels[..., :3]


def decode_instances(data: np.ndarray, name: str) -> np.ndarray:
    """Decodes a map of instance ids, a grey PNG of 8 or 16 bits, to uint8 or uint16 (H, W).

    Args:
        data: Bytes of the file, uint8 (N,).
        name: File, for error messages.

    Raises:
        DataError: Empty, damaged, or of another kind.
    """
    header = _read_header(data, name, "instance map", ("PNG",))
    ids = _imdecode(data, name, "instance map", (header.height, header.width))
    if ids.ndim != 2:
        raise DataError(f"{name}: instance map is {header.kind}; it must hold ids as grey PNG: restore the file")
    return ids


def _without_palette(data: np.ndarray, name: str) -> np.ndarray:
    """Makes a grey PNG of a palette PNG with the same pixels."""
    parts = {kind: data[begin:end] for kind, begin, end in png_chunks(data) if kind != b"IDAT"}
    pixels = [data[begin:end] for kind, begin, end in png_chunks(data) if kind == b"IDAT"]
    if b"PLTE" not in parts or any(zlib.crc32(part[4:-4]).to_bytes(4, "big") != part[-4:].tobytes()
                                   for part in parts.values()):
        raise DataError(f"{name}: label is damaged ({data.size} bytes); restore the file")
    header = parts[b"IHDR"][8:-4].copy()
    header[9] = 0       # grey
    start, end = (np.frombuffer(part, np.uint8) for part in (PNG_SIGNATURE + png_chunk(b"IHDR", header.tobytes()),
                                                             png_chunk(b"IEND", b"")))
    return np.concatenate([start, *pixels, end])


def _read_header(data: np.ndarray, name: str, what: str, formats: tuple[str, ...],
                 most_pixels: int | None = None) -> Header:
    """Reads the header of an image file; refuses other formats, sizes above the limit, and files that are not whole."""
    most = _limits["pixels"] if most_pixels is None else most_pixels
    if data.size == 0:
        raise DataError(f"{name}: the file is empty or unreadable; restore it")
    kind = file_format(data)
    if not kind:
        raise DataError(f"{name}: {what} cannot be decoded ({data.size} bytes): damaged, cut off or no image file")
    if kind not in formats:
        remedy = (f"it must be {', '.join(formats[:-1])} or {formats[-1]}: convert it" if what == "image" else
                  "class ids must be stored exactly, as PNG (8-bit grey or palette): make the file again from its "
                  "source, a lossy one cannot be converted")
        raise DataError(f"{name}: {what} is {kind}; {remedy}")
    header = read_header(data, kind)
    if header is None:
        raise DataError(f"{name}: the file is cut off or damaged in its header ({data.size} bytes); restore it")
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise DataError(f"{name}: {what} claims a size of {width}x{height}; restore the file")
    if width * height > most or max(width, height) > MAX_SIDE:
        remedy = "raise runtime.max_pixels" if most_pixels is None else "store it as an upright TIFF with tiles"
        raise DataError(f"{name}: {what} of {width}x{height} is above the limit of {most} pixels and sides of "
                        f"{MAX_SIDE}; make it smaller or {remedy}")
    if not header.whole:
        raise DataError(f"{name}: the file is cut off ({data.size} bytes); restore it")
    return header


def read_image_header(data: np.ndarray | FileBytes, name: str, most_pixels: int | None = None) -> Header:
    """Reads the header of a photograph and refuses what cannot be decoded.

    Args:
        data: Bytes of the file; those of a large TIFF need not be read.
        name: File, for messages.
        most_pixels: As for :func:`decode_image`.

    Raises:
        DataError: As :func:`decode_image`, except for damage among the pixels.
    """
    header = _read_header(data, name, "image", _IMAGE_FORMATS, most_pixels)
    if header.kind not in _IMAGE_KINDS or header.bits > 16:
        bits = f", {header.bits}-bit" if header.bits else ""
        raise DataError(f"{name}: image is {header.kind}{bits}; it cannot be decoded: convert it to an 8-bit PNG")
    for conversion, words in _conversions(header).items():
        if conversion not in _named:
            _named.add(conversion)
            _LOG.warning("%s: %s; further ones are not named", printable(name), words)
    return header


def _conversions(header: Header) -> dict[str, str]:
    """Conversions that an image needs, in words; labels have to fit an image that was turned."""
    return {conversion: words for conversion, needed, words in (
        ("orientation", header.orientation != 1, f"turned by its EXIF orientation ({header.orientation})"),
        ("grey", header.kind.startswith("grey"), "grey, repeated in three channels"),
        ("alpha", header.alpha, "its transparency is left out"),
        ("bits", header.bits == 16, "16-bit, rounded to 8 bits"),
        ("CMYK", header.kind == "CMYK", "CMYK, converted to RGB without a colour profile")) if needed}


def _decode_image(data: np.ndarray, name: str, header: Header, height: int) -> np.ndarray:
    """Decodes a photograph that must come out with ``height`` rows, without turning it."""
    directory, flags = header.directory, _DECODE | cv2.IMREAD_ANYDEPTH
    if directory:
        if data.size > _MOST_TIFF_BYTES:
            raise DataError(f"{name}: a TIFF of {data.size} bytes cannot be decoded whole, only {_MOST_TIFF_BYTES}; "
                            "store it upright and with tiles, and give predict --tile")
        data = tiff.plain_copy(directory)
        flags = _DECODE if directory.in_planes else flags       # OpenCV mixes up planes of 16 bits unless it rounds
    image = _imdecode(data, name, "image", (height, header.width), flags)
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)       # (v + 128) // 257
        image = 255 - image if directory and directory.white_is_zero else image
    if image.ndim != 3 or image.dtype != np.uint8:
        raise DataError(f"{name}: image cannot be decoded to 8-bit colour: convert it to an 8-bit PNG")
    return image


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image, uint8 (H, W, 3), upright (EXIF 2.32, tag 274)."""
    image = cv2.transpose(image) if orientation >= 5 else image
    return cv2.flip(image, _FLIPS[orientation]) if orientation in _FLIPS else image


def _imdecode(data: np.ndarray, name: str, what: str, size: tuple[int, int],
              flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    try:
        pixels = cv2.imdecode(data, flags)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape[:2] != size:
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
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"".join([PNG_SIGNATURE, png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
                     png_chunk(b"IEND", b"")])


def check_sizes(image: tuple[int, ...], label: tuple[int, ...], name: str,
                data: np.ndarray | None = None) -> None:
    """Checks that image and label have the same height and width.

    Args:
        image: Shape of the image, turned by its EXIF orientation.
        label: Shape of the label.
        name: File or sample, for the message.
        data: Bytes of the image file, uint8 (N,), if its EXIF orientation may be the reason.

    Raises:
        DataError: They have not.
    """
    if image[:2] == label[:2]:
        return
    (h, w), (lh, lw) = image[:2], label[:2]
    header = None if data is None else read_header(data, file_format(data))
    turned = header is not None and header.orientation != 1
    raise DataError(f"{name}: image is {w}x{h} but its label is {lw}x{lh}; " + (
        f"the image is turned by its EXIF orientation ({header.orientation}): make the label from the turned picture, "
        "or remove the tag" if turned else "they must have the same size"))
