"""Files: written whole or not at all, read with one-line errors."""
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from mindseg.errors import DataError, UserError

REMOVE_NAME = ".remove"     # in a folder of new files: names of old ones to remove


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


def replace_set(staging: Path, target: Path, remove: Iterable[str] = ()) -> None:
    """Replaces files that belong together, so that a kill leaves the old ones or the new ones, never a mixture.

    The complete folder of new files gets the name ``.<target>.ready``. From then on they count: whoever reads the set
    calls :func:`finish_set` first, which moves what an interrupted call has not moved.

    Args:
        staging: Folder on the same disk that holds the new files and nothing else; it is gone afterwards.
        target: File that names the set, such as ``deploy.yaml``; the new files go into its folder.
        remove: Names of older files in that folder; those that the new ones do not replace are removed.

    Raises:
        OSError: The disk refuses.
    """
    finish_set(target)
    # Without the names of new files: whoever finishes this later finds some of those moved already.
    old = [name for name in remove if not (staging / name).exists()]
    (staging / REMOVE_NAME).write_text(json.dumps(old), encoding="utf-8")
    for path in (*staging.iterdir(), staging):
        sync_to_disk(path)
    os.replace(staging, _ready(target))
    sync_to_disk(target.parent)
    finish_set(target)


def finish_set(target: Path) -> None:
    """Completes an interrupted :func:`replace_set`, if there is one.

    Args:
        target: File that names the set.

    Raises:
        UserError: The folder cannot be written.
    """
    ready = _ready(target)
    if ready.is_symlink() or not ready.is_dir():
        return
    try:
        new = [path.name for path in ready.iterdir() if path.name != REMOVE_NAME]
        if (ready / REMOVE_NAME).exists():
            for name in json.loads((ready / REMOVE_NAME).read_text(encoding="utf-8")):
                (target.parent / Path(name).name).unlink(missing_ok=True)
        for name in new:
            with suppress(FileNotFoundError):      # another process finishes it, too
                os.replace(ready / name, target.parent / name)
        (ready / REMOVE_NAME).unlink(missing_ok=True)
        ready.rmdir()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{ready}: the files of an interrupted program cannot be moved to their place ({error}); move "
                        "them into the folder above, or remove this one") from None


def _ready(target: Path) -> Path:
    return target.with_name(f".{target.name}.ready")


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
        DataError: The file is missing, cannot be read, or is a folder, a pipe or a device.
    """
    try:
        check_regular(path)
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from error


class FileBytes:
    """Bytes of a large file, read when they are sliced as an array would be.

    Args:
        path: File.

    Attributes:
        size: Number of bytes.

    Raises:
        DataError: The file is missing, cannot be read, or is a folder, a pipe or a device.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            check_regular(path)
            self._handle = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self._handle).st_size
        except OSError as error:
            raise _unreadable(path, error) from error

    def __getitem__(self, part: slice) -> np.ndarray:
        """Reads bytes, uint8 (n,); fewer if the file has become shorter."""
        start, stop, _ = part.indices(self.size)
        try:
            return np.frombuffer(os.pread(self._handle, max(stop - start, 0), start), np.uint8)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def close(self) -> None:
        """Closes the file."""
        os.close(self._handle)


def _unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}); restore the file")


def check_regular(path: str | Path) -> None:
    """Refuses everything but a file: reading from a pipe would wait, and reading from a device would not end.

    Raises:
        OSError: The path leads to nothing, to a folder, a pipe or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:     # a NUL in the path
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a folder, a pipe or a device instead of a file")


def csv_cell(value: Any) -> Any:
    """Content of a cell that no spreadsheet takes for a formula: a text gets an apostrophe before ``= + - @``.

    Args:
        value: Text or number; numbers stay as they are.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
