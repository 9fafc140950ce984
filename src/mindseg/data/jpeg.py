"""Checks on JPEG files and rows cut out of them, both without decoding.

A restart marker makes the decoder forget what came before (ITU-T T.81, F.2.1.3.1). With one after every row of blocks,
any run of such rows is a JPEG of its own under the same header. MindRecords built here hold such files, and a training
crop needs half the rows of an image.
"""
import math
import re
import struct

import numpy as np

_SEQUENTIAL = (0xC0, 0xC1)                                  # frames that are decoded in one pass
_OTHER_FRAMES = {*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC}   # those three are tables or reserved
_WITHIN = {0xC4, 0xCC, *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE}     # segments that may stand between scans
_SEGMENT = re.compile(b"\xff[^\x00\xff\x01\xd0-\xd8]", re.DOTALL)     # a mark that begins a segment, or the end mark
_BLOCK = 8
_END = np.array([0xFF, 0xD9], np.uint8)

Segments = list[tuple[int, int, int]]


def read_segments(data: np.ndarray) -> Segments:
    """Finds the segments from the start mark to the header of the first scan, kind 0xDA, or as far as they can be read.

    Args:
        data: Bytes of the file, uint8 (N,).

    Returns:
        (kind, begin, end) of what each segment holds.
    """
    view, end, segments = memoryview(data), 2, []       # reads single bytes faster than an array does
    while (mark := _SEGMENT.search(view, end)) and mark.end() + 2 <= len(view):
        at = mark.end()
        kind, end = view[at - 1], at + 256 * view[at] + view[at + 1]
        if kind == 0xD9:
            break
        segments.append((kind, at + 2, end))
        if kind == 0xDA:
            break
    return segments


def is_whole(data: np.ndarray, segments: Segments) -> bool:
    """Tests whether ``data``, the bytes of a JPEG, has the end mark of its image; behind that anything may follow.

    Marks are looked for behind the header of the first scan, because a thumbnail in the EXIF segment has an end mark
    too. There a byte 0xFF is followed by 0x00, 0xFF or 0xD0 to 0xD7 (pixels), or begins a segment, which is skipped, or
    the end mark. Any other mark belongs to other data behind an image that is cut off. The C++ runner has the same rule
    (``ascend310_infer/src/image_header.cc``).
    """
    begin = next((end for kind, _, end in segments if kind == 0xDA), data.size)
    body = data[begin:]
    places = np.flatnonzero(body[:-1] == 0xFF)
    kinds = body[places + 1]
    marks = (kinds != 0x00) & (kinds != 0xFF) & (kinds & 0xF8 != 0xD0)
    at = 0
    for place, kind in zip(places[marks].tolist(), kinds[marks].tolist(), strict=True):
        if place < at:
            continue        # within the segment before
        if kind == 0xD9:
            return True
        if kind not in _WITHIN or place + 4 > body.size:
            return False
        at = place + 2 + 256 * int(body[place + 2]) + int(body[place + 3])
    return False


def read_frame(data: np.ndarray, segments: Segments) -> tuple[int, int, int, int] | None:
    """Reads bits, height, width and number of channels from a JPEG's header; ``None`` if it has none.

    Args:
        data: Bytes of the file, uint8 (N,).
        segments: Its :func:`read_segments`.
    """
    for kind, begin, end in segments:
        if kind in _SEQUENTIAL or kind in _OTHER_FRAMES:
            segment = data[begin:end].tobytes()
            return struct.unpack_from(">BHHB", segment) if len(segment) >= 6 else None
    return None


def find_exif(data: np.ndarray, segments: Segments) -> tuple[int, int]:
    """Begin and end of the EXIF data of a JPEG, ``(0, 0)`` if it has none.

    Args:
        data: Bytes of the file, uint8 (N,).
        segments: Its :func:`read_segments`.
    """
    return next(((begin, end) for kind, begin, end in segments
                 if kind == 0xE1 and end <= data.size and data[begin:begin + 6].tobytes() == b"Exif\0\0"), (0, 0))


def restart_interval(width: int) -> int:
    """Blocks between two restart markers, one a row, in an image of ``width`` with OpenCV's 2x2 chroma subsampling."""
    return math.ceil(width / (2 * _BLOCK))


def cut_rows(data: np.ndarray, top: int, bottom: int) -> tuple[np.ndarray, int, int] | None:
    """Cuts some rows out of a JPEG.

    Args:
        data: Bytes of a file of any format, uint8 (N,).
        top: First row.
        bottom: Row after the last one.

    Returns:
        A JPEG that decodes to exactly the pixels of these rows and a few above and below, the row of the image that it
        starts with, and the number of its rows. ``None`` if the file does not have a restart marker after every row of
        blocks.
    """
    layout = _read_layout(data)
    if layout is None:
        return None
    height, row_height, height_at, body_at = layout
    body, count = data[body_at:], math.ceil(height / row_height)
    places = np.flatnonzero(body[:-1] == 0xFF)
    marks = places[body[places + 1] & 0xF8 == 0xD0]
    if len(marks) != count - 1:
        return None
    # Chroma is interpolated across rows of blocks, so one more on either side.
    first = min(max(0, top // row_height - 1), count - 1)
    last = max(first + 1, min(count, math.ceil(bottom / row_height) + 1))
    begin = marks[first - 1] + 2 if first else 0
    part = body[begin:marks[last - 1] if last < count else len(body)].copy()
    inner = marks[first:last - 1] - begin
    part[inner + 1] = 0xD0 + np.arange(len(inner)) % 8      # markers are counted from 0, modulo 8
    head, rows = data[:body_at].copy(), min(height, last * row_height) - first * row_height
    head[height_at:height_at + 2] = divmod(rows, 256)
    return np.concatenate([head, part, _END]), first * row_height, rows


def _read_layout(data: np.ndarray) -> tuple[int, int, int, int] | None:
    """Reads the header.

    Returns:
        Height of the image and of a row of blocks, and positions in the file of the former and of the first row;
        ``None`` if rows of blocks cannot be told apart by restart markers.
    """
    if data[:2].tobytes() != b"\xff\xd8":
        return None
    interval, frame, height_at = 0, b"", 0
    for kind, begin, end in read_segments(data):
        segment = data[begin:end].tobytes()
        if kind in _OTHER_FRAMES:
            return None
        if kind in _SEQUENTIAL:
            frame, height_at = segment, begin + 1
        elif kind == 0xDD:
            interval = int.from_bytes(segment[:2], "big")
        elif kind == 0xDA and segment[:1] == b"\3" and len(frame) >= 15:      # all three channels in one scan
            height, width, channels = struct.unpack(">HHB", frame[1:6])
            across, down = (max(frame[i] >> shift & 15 for i in (7, 10, 13)) for shift in (4, 0))
            if (channels == 3 and height and width and across and down
                    and interval == math.ceil(width / (_BLOCK * across))):
                return height, _BLOCK * down, height_at, end
    return None
