"""Files: written whole or not at all, read with one-line errors."""
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from mindseg.errors import DataError, UserError


@contextmanager
def replacing(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """Temporary name beside a file, with the same suffix; it takes the file's place when the block ends without error.

    Args:
        path: File to write; its folder is made if need be.
        sync: Wait until the file and its name are on the disk.

    Raises:
        UserError: The file cannot be written; an older one of that name is kept.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            sync_to_disk(temporary)
        os.replace(temporary, path)
        if sync:
            sync_to_disk(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder"
                        ) from error
    finally:
        with suppress(OSError):     # the folder may be a file
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """Hidden name beside a file, with the same suffix, for the time of writing."""
    return path.with_name(f".{path.stem}.mindseg-{os.getpid()}.tmp{path.suffix}")


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of a folder whose processes were killed while they wrote.

    Args:
        folder: Folder, may be missing.
    """
    for path in folder.glob(".*.mindseg-*"):
        found = re.fullmatch(r"\..*\.mindseg-(\d+)\.tmp(\..*)?", path.name, re.DOTALL)
        if found and not _is_running(int(found[1])):
            with suppress(OSError):
                path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass        # it belongs to another user
    return True


def sync_to_disk(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file, see :func:`replacing`; in names that are not UTF-8 bytes become escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | Path, tree: dict) -> None:
    """Writes JSON, see :func:`replacing`; NaN becomes null, as JSON has no NaN."""
    write_text(path, json.dumps(_without_nan(tree), indent=2, ensure_ascii=False) + "\n")


def _without_nan(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and tree != tree else tree


def read_bytes(path: str | Path) -> np.ndarray:
    """Reads a file as uint8 array.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore the file") from error


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
