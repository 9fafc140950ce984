"""Checks on the files of a MindRecord set, made before MindSpore reads them: on damaged ones it can end the process.

A set is one file or several shards, each with an index, ``FILE.db``, a SQLite database. A file begins with the length
of its header (8 bytes) and the header, JSON with the names of all shards, the columns and the pages. ``header_size``
bytes from the start the pages follow, all but the last one ``page_size`` long. BLOB pages hold the bytes of the
samples, RAW pages the other columns. The index says in which pages and where in them each sample stands.
"""
import hashlib
import json
import os
import sqlite3
import urllib.parse
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindseg.data.samples import check_name
from mindseg.errors import DataError, shorten
from mindseg.files import check_regular, file_sha256, finish_set

COLUMNS = ["file_name", "data", "label"]
# Description of the columns in the header. In files with another one images lie as stored, whatever EXIF data say.
DESCRIPTION = "encoded images, to be turned by their EXIF orientation, and label maps"
_TYPES = {"string", "bytes", "int32", "int64", "float32", "float64"}
_MAX_HEADER = 2 ** 26
_MAX_SIZE = 2 ** 40
_PLACES = ("ROW_ID", "ROW_GROUP_ID", "PAGE_ID_RAW", "PAGE_OFFSET_RAW", "PAGE_OFFSET_RAW_END", "PAGE_ID_BLOB",
           "PAGE_OFFSET_BLOB", "PAGE_OFFSET_BLOB_END")
_COMMON = ("version", "header_size", "page_size", "schema", "index_fields", "shard_addresses")     # of all shards
_IDENTITY_BYTES = 2 ** 20


@dataclass(frozen=True)
class RecordFiles:
    """Files of a MindRecord set.

    Attributes:
        file: The file to give to MindSpore.
        shards: All data files.
        count: Number of samples.
        names: Names of the samples, shard after shard; ``None`` if the index does not hold them.
        turned: Images are turned by their EXIF orientation; not in sets of earlier versions and other programs.
    """
    file: Path
    shards: tuple[Path, ...]
    count: int
    names: tuple[str, ...] | None
    turned: bool


def check_records(path: Path) -> RecordFiles:
    """Checks headers and indices of a MindRecord set.

    Args:
        path: The file, or the name that was given when several shards (``path0``, ``path1``, …) were written.

    Raises:
        DataError: Missing, damaged, renamed, without the three columns, or file and index do not belong together.
    """
    finish_set(path)
    file = next((p for p in (path, *(path.with_name(path.name + "0" * k) for k in (1, 2, 3))) if p.exists()), None)
    if file is None:
        raise DataError(f"{path}: no such MindRecord file; build it with mindseg pack")
    if not index_path(file).exists():
        raise DataError(f"{file}: its index {file.name}.db is missing; copy both files, or build them again")
    first = _read_header(file)
    if file.name not in first["shard_addresses"]:
        raise DataError(f"{file}: was built as {shorten(first['shard_addresses'][0])} and cannot be read under another "
                        "name; rename file, index and description back, or build it again")
    shards = tuple(file.with_name(name) for name in first["shard_addresses"])
    names: list[str] = []
    count = 0
    for number, shard in enumerate(shards):
        header = _read_header(shard)
        if header["shard_id"] != number or any(header[key] != first[key] for key in _COMMON):
            raise DataError(f"{shard} and {file}: do not belong together (other columns or shards in their headers); "
                            "copy the files of one set again, or build it again")
        rows, row_names = _read_index(shard, header)
        _check_places(shard, header, rows)
        if row_names is not None:
            _check_names(shard, header, rows, row_names)
            names += row_names
        _check_lengths(shard, header, rows)
        count += len(rows)
    if count == 0:
        raise DataError(f"{file}: the MindRecord holds no samples; build it again")
    return RecordFiles(file, shards, count, tuple(names) if names else None,
                       first["schema"][0]["desc"] == DESCRIPTION)


def index_path(file: Path) -> Path:
    """Index of a MindRecord file."""
    return file.with_name(file.name + ".db")


def file_identities(shards: tuple[Path, ...]) -> dict[str, str]:
    """Hex SHA-256 by file name: of each index, and of the header and the first MiB of the pages of each data file."""
    identities = {}
    for shard in shards:
        with open(shard, "rb") as stream:
            digest = hashlib.sha256(stream.read(8 + int.from_bytes(stream.read(8), "little")))
            stream.seek(_read_header(shard)["header_size"])
            digest.update(stream.read(_IDENTITY_BYTES))
        identities |= {shard.name: digest.hexdigest(), index_path(shard).name: file_sha256(index_path(shard))}
    return identities


def damaged(file: Path, reason: object) -> DataError:
    """Error for a file that is no MindRecord, or one of other columns.

    Args:
        file: Data file or index.
        reason: What is wrong, one line.
    """
    return DataError(f"{file}: not a whole MindRecord with the columns {', '.join(COLUMNS)} ({str(reason)[:200]}); "
                     "build it again with --overwrite")


def _unmatched(file: Path, reason: str) -> DataError:
    return DataError(f"{file} and {index_path(file).name}: do not belong together ({reason}); copy file and index of "
                     "one set again, or build it again")


def _need(condition: object, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def _read_header(file: Path) -> dict:
    """Reads and checks the header of a data file."""
    try:
        check_regular(file)
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            _need(2 <= length <= min(_MAX_HEADER, size - 8), f"no header of {length} bytes in {size}")
            header = json.loads(stream.read(length).decode())
        _check_header(header, length, size)
    except OSError as error:
        raise damaged(file, error.strerror or error) from None
    except (ValueError, RecursionError) as error:
        raise damaged(file, error if type(error) is ValueError else "its header is no JSON") from None
    except (KeyError, TypeError, AttributeError, IndexError):
        raise damaged(file, "its header lacks entries or holds wrong ones") from None
    return header


def _check_header(header: dict, length: int, size: int) -> None:
    """Raises ``ValueError``, or an error of a wrong type or key, unless a header is one of a whole file."""
    _need(header["version"] in ("2.0", "3.0"), "another version")
    header_size, page_size = _whole(header["header_size"]), _whole(header["page_size"])
    _need(8 + length <= header_size and page_size > 0, "sizes in the header that do not fit it")
    _whole(header["shard_id"])
    _whole(header.get("compression_size", 0))
    _need(not header["statistics"], "statistics in the header")
    names = header["shard_addresses"]
    _need(isinstance(names, list) and 0 < len(names) == len(set(names)) <= 1000, "no names of shards in the header")
    _need(all(type(name) is str and Path(name).name == name for name in names), "names of shards that are paths")
    schema, = header["schema"]
    columns, blobs = schema["schema"], schema["blob_fields"]
    _need(isinstance(schema["desc"], str) and isinstance(blobs, list) and len(blobs) == len(set(blobs)),
          "a wrong schema")
    for column in columns.values():
        _need(column["type"] in _TYPES and all(map(_is_side, column.get("shape", []))), "a wrong type of a column")
    _need({name: columns.get(name, {}).get("type") for name in COLUMNS}
          == {"file_name": "string", "data": "bytes", "label": "bytes"}, "a column is missing or of another type")
    _need(set(blobs) <= columns.keys() and {"data", "label"} <= set(blobs) and "file_name" not in blobs
          and all(column["type"] != "bytes" or name in blobs for name, column in columns.items()), "wrong blob fields")
    for field in header["index_fields"] or []:
        _need(field["schema_id"] == 0 and field["index_field"] in columns.keys() - set(blobs), "wrong index fields")
    header["page"] = header["page"] or []       # none in the shards that get no sample
    for number, page in enumerate(header["page"]):
        _need((page["page_id"], page["shard_id"]) == (number, header["shard_id"])
              and page["page_type"] in ("RAW_DATA", "BLOB_DATA"), "pages in wrong order")
        _whole(page["page_type_id"])
        for group in page["row_group_ids"]:
            _need(_whole(group["id"]) < 2 ** 31 and _whole(group["offset"]) <= page_size, "wrong groups of rows")
        _need(_whole(page["start_row_id"]) <= _whole(page["end_row_id"]), "wrong numbers of rows")
        _need(_whole(page["page_size"]) <= page_size
              and header_size + number * page_size + page["page_size"] <= size, "a page lies behind the file's end")


def _whole(value: object) -> int:
    _need(type(value) is int and 0 <= value <= _MAX_SIZE, f"the number {shorten(value)} in the header")
    return value


def _is_side(value: object) -> bool:
    return type(value) is int and -1 <= value < 2 ** 31


def _read_index(file: Path, header: dict) -> tuple[np.ndarray, list[str] | None]:
    """Reads the index of a data file.

    Returns:
        The columns ``_PLACES``, int64 (N, 8), and the names of the samples, if they are there.
    """
    index = index_path(file)
    fields = [field["index_field"] for field in header["index_fields"] or []]
    try:
        check_regular(index)
        address = f"file:{urllib.parse.quote(str(index.absolute()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as database:
            # Plain tables only: a view or a virtual table would run what it holds.
            tables = {(kind, name, str(sql)[:13]) for kind, name, sql in
                      database.execute("SELECT type, name, sql FROM sqlite_master WHERE type != 'index'")}
            _need(tables == {("table", name, "CREATE TABLE ") for name in ("INDEXES", "SHARD_NAME")}, "other tables")
            _need(database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",), "damaged")
            columns = [*_PLACES, *(f"{field}_0" for field in fields)]
            present = {row[1] for row in database.execute("PRAGMA table_info(INDEXES)")}
            _need(set(columns) <= present, "other columns")
            words = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
            rows = database.execute(f"SELECT {words} FROM INDEXES ORDER BY ROW_ID").fetchall()
            shard_names = [row[0] for row in database.execute("SELECT NAME FROM SHARD_NAME")]
        _need(all(type(value) is int for row in rows for value in row[:len(_PLACES)]), "a place is no number")
        _need(all(value is not None for row in rows for value in row), "an empty cell")
        names = [row[len(_PLACES) + fields.index("file_name")] for row in rows] if "file_name" in fields else None
        _need(all(type(name) is str for name in names or ()), "a name is no text")
    except OSError as error:
        raise damaged(index, error.strerror or error) from None
    except (sqlite3.Error, ValueError, OverflowError) as error:
        raise damaged(index, str(error).splitlines()[0]) from None
    if shard_names != [file.name]:
        raise _unmatched(file, f"the index is that of {shorten(shard_names[0] if shard_names else '')}")
    return np.array([row[:len(_PLACES)] for row in rows], np.int64).reshape(len(rows), len(_PLACES)), names


def _check_places(file: Path, header: dict, rows: np.ndarray) -> None:
    """Checks that the index fills the pages of the header without gaps, with as many rows."""
    numbers, groups, raw, raw_begin, raw_end, blob, blob_begin, blob_end = rows.T
    pages = header["page"]
    sizes, types, starts, ends = (np.array([page[key] for page in pages], np.int64) for key in
                                  ("page_size", "page_type_id", "start_row_id", "end_row_id"))
    kinds = np.array([page["page_type"] == "BLOB_DATA" for page in pages], bool)
    fits = np.array_equal(numbers, np.arange(len(rows)))
    for ids, begin, end, kind in ((raw, raw_begin, raw_end, False), (blob, blob_begin, blob_end, True)):
        fits = fits and (ids >= 0).all() and (ids < len(pages)).all()
        fits = fits and set(np.flatnonzero(kinds == kind)) == set(ids.tolist()) and _fill_pages(ids, begin, end, sizes)
    if not fits or not np.array_equal(types[blob], groups) or not (
            (starts[blob] <= numbers) & (numbers < ends[blob])).all() or (ends - starts)[kinds].sum() != len(rows):
        raise _unmatched(file, "the index has other rows or places than the file")


def _fill_pages(ids: np.ndarray, begin: np.ndarray, end: np.ndarray, sizes: np.ndarray) -> bool:
    """Tests whether pieces, given by page, begin and end, fill their pages one behind the other."""
    order = np.lexsort((begin, ids))
    ids, begin, end = ids[order], begin[order], end[order]
    first = np.diff(ids, prepend=-1) != 0
    last = np.diff(ids, append=-1) != 0
    before = np.where(first, 0, np.roll(end, 1))
    return bool((begin == before).all() and (end >= begin + 8).all() and (end[last] == sizes[ids[last]]).all())


def _check_names(file: Path, header: dict, rows: np.ndarray, names: list[str]) -> None:
    """Checks the names of the samples in the index, and that the data file holds the same ones."""
    for name in names:
        check_name(name, f"{index_path(file)}: column file_name")
    columns = header["schema"][0]
    if columns["schema"].keys() - columns["blob_fields"] != {"file_name"}:
        return      # with further columns the names stand anywhere
    pages = {}
    with open(file, "rb") as stream:
        for page in header["page"]:
            if page["page_type"] == "RAW_DATA":
                stream.seek(header["header_size"] + page["page_id"] * header["page_size"])
                pages[page["page_id"]] = stream.read(page["page_size"])
    for row, name in zip(rows.tolist(), names, strict=True):
        _, _, page, begin, end = row[:5]
        if not pages[page][begin:end].endswith(name.encode()):
            raise _unmatched(file, f"the index names a sample {shorten(name)}, the file another one")


def _check_lengths(file: Path, header: dict, rows: np.ndarray) -> None:
    """Checks the length before each image and label: MindSpore reads as many bytes as it says, wherever that ends."""
    schema = header["schema"][0]
    if any(schema["schema"][name]["type"] != "bytes" for name in schema["blob_fields"]):
        return      # arrays of numbers are stored in another way
    handle = os.open(file, os.O_RDONLY)
    try:
        for _, _, _, _, _, page, begin, end in rows.tolist():
            start = header["header_size"] + page * header["page_size"]
            at = begin + 8
            for _ in schema["blob_fields"]:
                at += 8 + int.from_bytes(os.pread(handle, 8, start + at), "big")
                if at > end:
                    break
            if at != end:
                raise _unmatched(file, f"a sample of the index does not fill bytes {begin} to {end} of page {page}")
    finally:
        os.close(handle)
