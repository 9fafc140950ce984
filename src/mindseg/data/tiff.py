"""First directory of a TIFF file: its entries, the kind of its pixels, and checks on it. EXIF data are a TIFF, too.

TIFF 6.0 and BigTIFF. Entries are read one after the other, never followed to other directories, and no number is used
before it is checked. The C++ runner has the same rules (``ascend310_infer/src/tiff.cc``). Some rows of strips or tiles
become a file of their own, so that a large image need not be decoded whole.
"""
import math
import struct
from dataclasses import dataclass

import numpy as np

from mindseg.files import FileBytes

_LONG, _LONG8 = 4, 16
_BYTES = {1: 1, 3: 2, _LONG: 4, _LONG8: 8}      # of a number, by the type of the entry: BYTE, SHORT, LONG, LONG8
_OTHER_BYTES = {2: 1, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}     # of the types that hold other values
_MOST_VALUE_BYTES = 2 ** 20             # of an entry that decoding needs; the longest are the tables of a JPEG
_MOST_ENTRIES = 1000                    # files have below 100
_LONGEST_SIDE = 2 ** 20                 # OpenCV's
_MOST_SAMPLES = 16
_MOST_TILE_PIXELS = 2 ** 24
_TILE_BYTES = 1024                      # OpenCV decodes 8-bit tiles without compression in multiples of this only
ORIENTATION = 274
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_SAMPLES, _STRIP_ROWS, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _FORMAT = 277, 278, 284, 322, 323, 338, 339
_STRIPS, _TILES = (273, 279), (324, 325)        # places and lengths
# Tags that decoding needs, besides that of the fourth channel: of FAX, of the predictor, palette, JPEG and YCbCr, too.
_NEEDED = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _SAMPLES, _PLANES, 292, 293, 317, 320,
           _TILE_WIDTH, _TILE_HEIGHT, *_STRIPS, *_TILES, 347, 529, 530, 532}
_FAX = (2, 3, 4)
_COMPRESSIONS = (1, 5, 7, 8, 32773, 32946)      # none, LZW, JPEG, Deflate, PackBits, old Deflate
_WHITE_IS_ZERO, _YCBCR = 0, 6
# Kinds and readable bits of a channel by photometric interpretation and number of channels.
_KINDS = {(0, 1): ("grey", (1, 8, 16)), (1, 1): ("grey", (1, 8, 16)), (0, 2): ("grey with alpha", (8,)),
          (1, 2): ("grey with alpha", (8,)), (2, 3): ("colour", (8, 16)), (2, 4): ("colour with alpha", (8, 16)),
          (3, 1): ("palette", (8,)), (5, 4): ("CMYK", (8,)), (6, 3): ("colour", (8,))}
_FORMATS = {2: "of signed integers", 3: "of floating-point numbers, which have no known range"}


@dataclass(frozen=True)
class Directory:
    """First directory of a TIFF file.

    Attributes:
        data: Bytes of the file, uint8 (N,), or what gives them when it is sliced.
        order: Byte order, ``<`` or ``>``.
        big: BigTIFF, with numbers of 64 bits.
        entries: Type, count and position of the value of each tag.
    """
    data: np.ndarray | FileBytes
    order: str
    big: bool
    entries: dict[int, tuple[int, int, int]]

    def numbers(self, tag: int, most: int) -> np.ndarray:
        """First ``most`` numbers of a tag, uint64 (N,); none if they are missing, others, or behind the file's end."""
        kind, count, place = self.entries.get(tag, (0, 0, 0))
        size = _BYTES.get(kind, 0)
        if not size or not 0 < count <= self.data.size:
            return np.zeros(0, np.uint64)
        place = self._value_place(place, count * size)
        if place + count * size > self.data.size:
            return np.zeros(0, np.uint64)
        content = self.data[place:place + min(count, most) * size].tobytes()
        return np.frombuffer(content, f"{self.order}u{size}").astype(np.uint64)

    def value(self, tag: int) -> tuple[int, int, bytes]:
        """Type, count and bytes of a tag for a file with numbers of 32 bits; no bytes if they are missing or too many.

        Args:
            tag: A tag of ``entries``.
        """
        kind, count, place = self.entries[tag]
        size = (_BYTES | _OTHER_BYTES).get(kind, 0) * count
        if not 0 < size <= _MOST_VALUE_BYTES:
            return kind, 0, b""
        if kind == _LONG8:
            return _long(self.order, self.numbers(tag, count))
        place = self._value_place(place, size)
        return kind, count, self.data[place:place + size].tobytes()

    def _value_place(self, place: int, size: int) -> int:
        """Position of a value of ``size`` bytes; at ``place`` itself if it fits into the entry."""
        return _unpack(self.order + ("Q" if self.big else "I"), self.data, place)[0] if size > (
            8 if self.big else 4) else place

    def place(self, tag: int) -> int:
        """Position of the entry of a tag, which begins with its number."""
        return self.entries[tag][2] - (12 if self.big else 8)

    def number(self, tag: int, default: int = 0) -> int:
        """First number of a tag."""
        numbers = self.numbers(tag, 1)
        return int(numbers[0]) if numbers.size else default

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as the file claims them."""
        return self.number(_WIDTH), self.number(_HEIGHT)

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8; 1 means that the pixels lie upright."""
        value = self.number(ORIENTATION, 1)
        return value if 1 <= value <= 8 else 1

    @property
    def white_is_zero(self) -> bool:
        """Grey values count from white to black."""
        return self.number(_PHOTOMETRIC) == _WHITE_IS_ZERO

    @property
    def in_planes(self) -> bool:
        """Each channel is stored by itself."""
        return self.number(_SAMPLES, 1) > 1 and self.number(_PLANES, 1) == 2


@dataclass(frozen=True)
class Pieces:
    """Strips or tiles.

    Attributes:
        rows: Rows of each; the last strip may have fewer.
        columns: Columns of each.
        places: Positions in the file, uint64 (planes, down, across).
        lengths: Bytes of each, uint64 of the same shape.
    """
    rows: int
    columns: int
    places: np.ndarray
    lengths: np.ndarray


def _unpack(code: str, data: np.ndarray | FileBytes, place: int) -> tuple:
    return struct.unpack(code, data[place:place + struct.calcsize(code)].tobytes())


def read_directory(data: np.ndarray | FileBytes) -> Directory | None:
    """Reads the first directory; ``None`` if there is none or it is damaged.

    Args:
        data: Bytes of a TIFF file or of EXIF data, uint8 (N,).
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2].tobytes())
    if order is None or data.size < 16:
        return None
    version, = _unpack(order + "H", data, 2)
    big = version == 43
    if version not in (42, 43) or (big and _unpack(order + "HH", data, 4) != (8, 0)):
        return None
    at, = _unpack(order + ("Q" if big else "I"), data, 8 if big else 4)
    head, size, value = (8, 20, 12) if big else (2, 12, 8)
    if at + head > data.size:
        return None
    count, = _unpack(order + ("Q" if big else "H"), data, at)
    if not 0 < count <= _MOST_ENTRIES or at + head + count * size > data.size:
        return None
    entries: dict[int, tuple[int, int, int]] = {}
    for place in range(at + head, at + head + count * size, size):
        tag, kind, number = _unpack(order + ("HHQ" if big else "HHI"), data, place)
        entries.setdefault(tag, (kind, number, place + value))
    return Directory(data, order, big, entries)


def pixel_kind(directory: Directory) -> tuple[str, int] | None:
    """Kind of the pixels, as in :class:`mindseg.data.headers.Header`, and bits of a channel.

    The kind of what cannot be read is another one, which says why. ``None`` if entries are missing.
    """
    samples = directory.number(_SAMPLES, 1)
    bits = directory.numbers(_BITS, _MOST_SAMPLES) if _BITS in directory.entries else np.ones(1, np.uint64)
    if not 0 < samples <= bits.size:
        return None
    depth, compression = int(bits[0]), directory.number(_COMPRESSION, 1)
    photometric = directory.number(_PHOTOMETRIC, -1)
    kind, depths = _KINDS.get((photometric, samples), ("", ()))
    for number in directory.numbers(_FORMAT, samples).tolist():
        if number != 1:
            return _FORMATS.get(number, "of numbers of an unknown format"), depth
    if (bits[:samples] != depth).any():
        return "a TIFF with channels of different bits", 0
    if not kind:
        return f"a TIFF of {samples} channels with the photometric interpretation {photometric}", depth
    if compression not in _COMPRESSIONS and not (compression in _FAX and depth == 1):
        return f"a TIFF compressed by method {compression}", depth
    if depth not in depths:
        return f"a {kind} TIFF", depth
    channels = 1 if directory.in_planes else samples
    tile = directory.number(_TILE_WIDTH) * directory.number(_TILE_HEIGHT) * channels * depth // 8
    if compression == 1 and tile % _TILE_BYTES and (depth < 16 or directory.in_planes):
        return f"a TIFF with tiles of {tile} bytes, no multiple of {_TILE_BYTES}", depth
    return kind, depth


def is_whole(directory: Directory) -> bool:
    """Tests whether all strips or tiles lie within the file, and those that are not compressed are long enough."""
    width, height = directory.size
    if not 0 < width <= _LONGEST_SIDE or not 0 < height <= _LONGEST_SIDE:
        return False
    samples, depth = directory.number(_SAMPLES, 1), directory.number(_BITS, 1)
    if samples > 4 or depth > 64:
        return True         # refused for its kind
    pieces = _read_pieces(directory)
    if pieces is None:
        return False
    places, lengths = pieces.places, pieces.lengths
    size = np.uint64(directory.data.size)
    if not ((lengths > 0) & (lengths <= size) & (places <= size - np.minimum(lengths, size))).all():
        return False
    if directory.number(_COMPRESSION, 1) != 1 or directory.number(_PHOTOMETRIC) == _YCBCR:
        return True
    row, last_rows = _row_bytes(directory, pieces), pieces.rows
    if _TILE_WIDTH not in directory.entries:
        last_rows = height - (lengths.shape[1] - 1) * pieces.rows
    return bool((lengths[:, :-1] >= row * pieces.rows).all() and (lengths[:, -1] >= row * last_rows).all())


def _read_pieces(directory: Directory) -> Pieces | None:
    """Reads where strips or tiles are; ``None`` if their size is none, or not all have a place and a length."""
    (width, height), tiled = directory.size, _TILE_WIDTH in directory.entries
    if tiled:
        columns, rows = directory.number(_TILE_WIDTH), directory.number(_TILE_HEIGHT)
    else:
        columns, rows = width, min(directory.number(_STRIP_ROWS, height), height)
    if not columns * rows or (tiled and columns * rows > _MOST_TILE_PIXELS):
        return None
    planes = directory.number(_SAMPLES, 1) if directory.in_planes else 1
    shape = (planes, -(-height // rows), -(-width // columns))
    found = [directory.numbers(tag, math.prod(shape)) for tag in (_TILES if tiled else _STRIPS)]
    if min(numbers.size for numbers in found) < math.prod(shape):
        return None
    return Pieces(rows, columns, *(numbers.reshape(shape) for numbers in found))


def _row_bytes(directory: Directory, pieces: Pieces) -> int:
    """Bytes of a row of a strip or tile without compression."""
    samples = directory.number(_SAMPLES, 1) // len(pieces.places)
    return (pieces.columns * samples * directory.number(_BITS, 1) + 7) // 8


def separable_pieces(directory: Directory) -> Pieces:
    """The parts of an image that can be decoded by themselves: tiles, strips, or rows of strips without compression.

    Args:
        directory: Of a file that :func:`is_whole`.
    """
    pieces = _read_pieces(directory)
    plain = directory.number(_COMPRESSION, 1) == 1 and directory.number(_PHOTOMETRIC) != _YCBCR
    if not plain or _TILE_WIDTH in directory.entries:
        return pieces
    strip, row = np.divmod(np.arange(directory.size[1], dtype=np.uint64), np.uint64(pieces.rows))
    size = np.uint64(_row_bytes(directory, pieces))
    places = pieces.places[:, strip.astype(np.int64)] + (row * size)[:, None]
    return Pieces(1, pieces.columns, places, np.full_like(places, size))


def cut_rows(directory: Directory, pieces: Pieces, first: int, last: int) -> np.ndarray:
    """Makes a file, uint8 (N,), of some rows of pieces.

    Args:
        directory: Of the whole file.
        pieces: Its :func:`separable_pieces`.
        first: Number of the first row of pieces.
        last: That of the row of pieces behind the last one.
    """
    order, tiled = directory.order, _TILE_WIDTH in directory.entries
    # A length may be wrong, but no compression makes pixels much longer.
    most = 2 * _row_bytes(directory, pieces) * pieces.rows + 2 ** 12
    places = pieces.places[:, first:last].ravel().tolist()
    lengths = np.minimum(pieces.lengths[:, first:last].ravel(), np.uint64(most)).tolist()
    parts = [directory.data[place:place + length].tobytes() for place, length in zip(places, lengths, strict=True)]
    entries = {tag: directory.value(tag) for tag in directory.entries if tag in _NEEDED | {_EXTRA, _FORMAT}}
    starts = 8 + np.cumsum([0] + [len(part) for part in parts])
    numbers = {_HEIGHT: [min(directory.size[1], last * pieces.rows) - first * pieces.rows]}
    numbers |= dict(zip(_TILES if tiled else _STRIPS, (starts[:-1], [len(part) for part in parts]), strict=True))
    if not tiled:
        numbers[_STRIP_ROWS] = [pieces.rows]
    entries |= {tag: _long(order, values) for tag, values in numbers.items()}
    directory_bytes, end = b"", int(starts[-1] + starts[-1] % 2)
    parts.append(bytes(end - int(starts[-1])))
    for tag, (kind, count, content) in sorted(entries.items()):
        if len(content) > 4:
            parts.append(content + bytes(len(content) % 2))
            content, end = struct.pack(order + "I", end), end + len(parts[-1])
        if count:
            directory_bytes += struct.pack(order + "HHI", tag, kind, count) + content.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, end)
    count = struct.pack(order + "H", len(directory_bytes) // 12)
    return np.frombuffer(b"".join([head, *parts, count, directory_bytes, bytes(4)]), np.uint8)


def _long(order: str, numbers: np.ndarray | list[int]) -> tuple[int, int, bytes]:
    """Type, count and bytes of an entry of numbers of 32 bits."""
    return _LONG, len(numbers), np.asarray(numbers).astype(order + "u4").tobytes()


def plain_copy(directory: Directory) -> np.ndarray:
    """Makes a file, uint8 (N,), with the same pixels and a directory of only what decoding needs.

    OpenCV's versions differ in turning a TIFF by its orientation, multiply colours by the alpha channel unless it is
    marked as already multiplied, and refuse strips that are much higher than the image; so the orientation is left out,
    alpha is marked, and the height of a strip is that of the image at most.
    """
    order, big, data = directory.order, directory.big, directory.data
    head, room = (12, 8) if big else (8, 4)

    def entry(tag: int, number: int) -> bytes:
        return struct.pack(order + ("HHQI" if big else "HHII"), tag, _LONG, 1, number).ljust(head + room, b"\0")

    tiled = _TILE_WIDTH in directory.entries
    other = _STRIPS if tiled else (*_TILES, _TILE_HEIGHT)
    places = {tag: directory.place(tag) for tag in directory.entries if tag in _NEEDED and tag not in other}
    chosen = {tag: data[place:place + head + room].tobytes() for tag, place in places.items()}
    if (directory.number(_SAMPLES, 1), directory.number(_PHOTOMETRIC)) in ((2, 0), (2, 1), (4, 2)):
        chosen[_EXTRA] = entry(_EXTRA, 1)
    if not tiled:
        chosen[_STRIP_ROWS] = entry(_STRIP_ROWS, min(directory.number(_STRIP_ROWS, 2 ** 32), directory.size[1]))
    at = data.size + data.size % 2
    start = data[:8 if big else 4].tobytes() + struct.pack(order + ("Q" if big else "I"), at)
    entries = (struct.pack(order + ("Q" if big else "H"), len(chosen)) + b"".join(chosen[tag] for tag in sorted(chosen))
               + bytes(room))
    return np.concatenate([np.frombuffer(start, np.uint8), data[len(start):], np.zeros(at - data.size, np.uint8),
                           np.frombuffer(entries, np.uint8)])
