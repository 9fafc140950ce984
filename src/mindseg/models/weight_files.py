"""Readers of weight files that trust nothing in them: each array has the size that its file declares, or is refused.

And the writer of safetensors files, which others read too.

A MindSpore checkpoint is a protobuf message, a sequence of records ``{name, {dims, type, content}}``, and may end with
``crc_num`` and a checksum in ten bytes. MindSpore's own reader takes records for granted whose content is shorter than
their shape; this one does not, and needs memory for the arrays alone.
"""
import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mindseg.errors import UserError, shorten
from mindseg.files import write_bytes

_TYPES = {"Bool": np.bool_, "Int8": np.int8, "UInt8": np.uint8, "Int16": np.int16, "UInt16": np.uint16,
          "Int32": np.int32, "UInt32": np.uint32, "Int64": np.int64, "UInt64": np.uint64, "Float16": np.float16,
          "Float32": np.float32, "Float64": np.float64, "BFloat16": np.uint16}
_SAFETENSORS_TYPES = {"BOOL": "Bool", "I8": "Int8", "U8": "UInt8", "I16": "Int16", "U16": "UInt16", "I32": "Int32",
                      "U32": "UInt32", "I64": "Int64", "U64": "UInt64", "F16": "Float16", "F32": "Float32",
                      "F64": "Float64", "BF16": "BFloat16"}
_HEADER_LIMIT = 100_000_000         # bytes of a safetensors header, as in its specification
_DIGEST = "mindseg.sha256"          # in the metadata of our own safetensors files: SHA-256 of what follows the header
_CHECKSUM_MARK, _CHECKSUM_BYTES = b"crc_num", 17
_OWN_NAMES = {"eval_step", "config"}        # in every checkpoint of this project, which ends with a checksum
# Weights hardly shrink when they are packed: an archive that grows more than this is no file of weights.
_EXPANSION, _EXPANSION_FREE = 20, 256 << 20


def check_finite(arrays: Mapping[str, np.ndarray], origin: str | Path) -> None:
    """Refuses weights that are not finite; networks would compute NaN or one class for every pixel.

    Args:
        arrays: Arrays by name, of any type.
        origin: File name for the message.

    Raises:
        UserError: An array holds NaN or an infinite value.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{origin}: {name} holds {np.sum(~np.isfinite(array))} values that are NaN or infinite, "
                            "because its training diverged; take another file")


def read_ckpt(path: Path, only: Iterable[str] | None = None) -> dict[str, np.ndarray | str]:
    """Reads a MindSpore checkpoint.

    Args:
        path: File.
        only: Names to read; the checksum of the file is not compared then. None: all.

    Returns:
        Arrays, and texts as ``str``, by name; bfloat16 comes as float32.

    Raises:
        ValueError: The file is damaged or no MindSpore checkpoint.
    """
    with open(path, "rb") as stream:
        file, end = stream.fileno(), os.fstat(stream.fileno()).st_size
        tail = os.pread(file, _CHECKSUM_BYTES, max(end - _CHECKSUM_BYTES, 0))
        marked = tail.startswith(_CHECKSUM_MARK)
        if marked:
            end -= _CHECKSUM_BYTES
            if only is None and _checksum(file, end) != int.from_bytes(tail[len(_CHECKSUM_MARK):], "big"):
                raise ValueError("its checksum is wrong")
        found = _read_records(file, end, None if only is None else set(only))
    if not marked and _OWN_NAMES & set(found):
        raise ValueError("its end with the checksum is missing")
    return found


def _checksum(file: int, end: int) -> int:
    value = 0
    for at in range(0, end, 1 << 20):
        value = zlib.crc32(os.pread(file, min(1 << 20, end - at), at), value)
    return value


def _read_records(file: int, end: int, wanted: set[str] | None) -> dict[str, np.ndarray | str]:
    found: dict[str, np.ndarray | str] = {}
    pending: tuple[str, str, tuple[int, ...]] | None = None
    parts: list[bytes] = []
    for record in _records(file, end, wanted):
        # A large array lies in several records in a row, each with the shape of the whole.
        if parts and record[:3] != pending:
            _finish(found, pending, parts)
        pending = record[:3]
        parts.append(record[3])
    if parts:
        _finish(found, pending, parts)
    return found


def _finish(found: dict[str, np.ndarray | str], head: tuple[str, str, tuple[int, ...]], parts: list[bytes]) -> None:
    """Makes an array of its parts, which are taken out of the list."""
    name, kind, dims = head
    if name in found:
        raise ValueError(f"{shorten(name)} is there twice")
    content = parts.pop() if len(parts) == 1 else b"".join(parts)
    parts.clear()
    if kind == "str":
        found[name] = content.decode("utf-32-le").rstrip("\0")
    else:
        found[name] = _array(name, kind, () if dims == (0,) else dims, content)     # (0,) is how a number is written


def _records(file: int, end: int, wanted: set[str] | None) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """Name, type, shape and content of each record."""
    for number, start, stop in _fields(file, 0, end):
        if number != 1 or stop is None:
            raise ValueError(f"field {number} is unknown")
        fields = dict(_spans(file, start, stop))
        name = _text(file, fields.get(1), "a name")
        if wanted is not None and name not in wanted:
            continue
        if 2 not in fields:
            raise ValueError(f"{shorten(name)} is no array")
        dims, kind, content = [], None, None
        for number, start, stop in _fields(file, *fields[2]):
            if number == 1:
                dims += [start] if stop is None else _packed(file, start, stop)
            elif number == 2:
                kind = _text(file, (start, stop), "a type")
            elif number == 3 and stop is not None:
                content = (start, stop)
        if kind is None or content is None:
            raise ValueError(f"{shorten(name)} has no {'type' if kind is None else 'content'}")
        yield name, kind, tuple(dims), _bytes(file, *content)


def _spans(file: int, at: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Number, start and end of each field that has bytes."""
    return ((number, (start, stop)) for number, start, stop in _fields(file, at, end) if stop is not None)


def _fields(file: int, at: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Fields of a protobuf message that lies between two offsets: number, start and end; or number, value and None."""
    while at < end:
        key, at = _varint(file, at, end)
        value, at = _varint(file, at, end)
        if key & 7 == 0:
            yield key >> 3, value, None
        elif key & 7 == 2:
            if value > end - at:
                raise ValueError(f"{value} bytes are declared where {end - at} are left")
            yield key >> 3, at, at + value
            at += value
        else:
            raise ValueError(f"a field of kind {key & 7} is unknown")


def _varint(file: int, at: int, end: int) -> tuple[int, int]:
    """An integer of up to ten bytes, and the offset behind it."""
    value = 0
    for i, byte in enumerate(os.pread(file, min(10, end - at), at)):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("a number is cut off")


def _packed(file: int, at: int, end: int) -> Iterator[int]:
    while at < end:
        value, at = _varint(file, at, end)
        yield value


def _bytes(file: int, start: int, stop: int) -> bytes:
    data = os.pread(file, stop - start, start)
    if len(data) != stop - start:       # more than 2 GB at once, or the file became shorter meanwhile
        raise ValueError(f"{stop - start} bytes cannot be read at once")
    return data


def _text(file: int, span: tuple[int, int | None] | None, what: str) -> str:
    if span is None or span[1] is None or span[1] - span[0] > 4096:
        raise ValueError(f"{what} is missing or too long")
    return _bytes(file, *span).decode()


def _array(name: str, kind: str, dims: tuple[int, ...], content: bytes) -> np.ndarray:
    """The array of a name, a type as MindSpore names it, a shape and the bytes of little-endian values."""
    if kind not in _TYPES:
        raise ValueError(f"{shorten(name)} has the unknown type {shorten(kind)}")
    dtype = np.dtype(_TYPES[kind])
    # A negative number, which protobuf writes as 2**64 less its size, is larger than any content.
    if len(dims) > 32 or max(dims, default=0) >= 2**63 or math.prod(dims) * dtype.itemsize != len(content):
        raise ValueError(f"{shorten(name)} of shape {shorten(list(dims))} and type {kind} has {len(content)} bytes")
    values = np.frombuffer(content, dtype)
    if kind == "BFloat16":      # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(dims)


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file of float32 arrays, with a checksum that :func:`read_safetensors` compares.

    Args:
        path: File to write.
        arrays: Arrays of numbers, of any shape, by name.
        metadata: Texts by name.

    Raises:
        UserError: The file cannot be written.
    """
    header, blocks, end = {}, [], 0
    for name, array in arrays.items():
        blocks.append(np.ascontiguousarray(array, "<f4").tobytes())
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + len(blocks[-1])]}
        end += len(blocks[-1])
    data = b"".join(blocks)
    texts = {**metadata, _DIGEST: hashlib.sha256(data).hexdigest()}
    words = json.dumps({"__metadata__": texts, **header}).encode()
    words += b" " * (-len(words) % 8)       # arrays begin at a multiple of eight bytes
    write_bytes(path, len(words).to_bytes(8, "little") + words + data)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a safetensors file, see :func:`read_safetensors_file`."""
    return read_safetensors_file(path)[0]


def read_safetensors_file(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads a safetensors file: the length of a JSON header, the header, the arrays.

    Returns:
        Arrays by name, and the metadata.

    Raises:
        ValueError: The file is damaged; other errors of the language are possible, as the header may hold anything.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ValueError(f"a header of {length} bytes is declared")
        header = json.loads(stream.read(length))
        data = size - 8 - length
        metadata = header.get("__metadata__", {})
        if _DIGEST in metadata and _sha256(stream.fileno(), 8 + length, size) != metadata[_DIGEST]:
            raise ValueError("its checksum is wrong")
        found, used = {}, 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            (start, stop), shape = entry["data_offsets"], entry["shape"]
            if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
                raise ValueError(f"{shorten(name)} has a shape or a place that cannot be")
            used += stop - start
            if not start <= stop <= data or used > data:
                raise ValueError(f"{shorten(name)} lies beyond the end, or over another array")
            content = _bytes(stream.fileno(), 8 + length + start, 8 + length + stop)
            found[name] = _array(name, _SAFETENSORS_TYPES.get(entry["dtype"], entry["dtype"]), tuple(shape), content)
    return found, metadata


def _sha256(file: int, start: int, end: int) -> str:
    digest = hashlib.sha256()
    for at in range(start, end, 1 << 20):
        digest.update(os.pread(file, min(1 << 20, end - at), at))
    return digest.hexdigest()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads an archive of NumPy arrays; pickled objects are refused, and archives that grow out of all proportion.

    Raises:
        ValueError: The file is damaged, holds objects, or is a bomb.
    """
    check_archive(path)
    with np.load(path, allow_pickle=False) as archive:
        found = {key: archive[key] for key in archive.files}
    for key, value in found.items():        # other members come as bytes
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise ValueError(f"{shorten(key)} is no array of numbers")
    return found


def check_archive(path: Path) -> None:
    """Refuses a zip archive whose content is far larger than itself; other files pass.

    Raises:
        ValueError: The content is too large.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        content = sum(member.file_size for member in archive.infolist())
    if content > max(_EXPANSION_FREE, _EXPANSION * path.stat().st_size):
        raise ValueError(f"{content} bytes are packed in a file of {path.stat().st_size}")
