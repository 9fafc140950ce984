"""Output folders: names that stay inside, and a record of the files that this program wrote."""
import errno
import fcntl
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from mindseg.errors import UserError, shorten
from mindseg.files import remove_leftovers

RECORD_NAME = ".mindseg-files"      # the C++ runner reads and writes it too (ascend310_infer/src/output_folder.cc)
_CONTROL = re.compile("[\x00-\x1f\x7f]")


def output_path(folder: str | Path, name: str, source: str) -> Path:
    """Path of a file inside an output folder, whose name comes from outside.

    Args:
        folder: Output folder.
        name: Relative path with forward slashes, from a data file, a list, a configuration or a manifest.
        source: Origin of the name, for the message.

    Raises:
        UserError: The name is empty, absolute, has a drive, a backslash, a control character, or a part ``.`` or
            ``..``.
    """
    parts = name.split("/")
    if (_CONTROL.search(name) or "\\" in name or re.match("[A-Za-z]:", name)
            or any(part in ("", ".", "..") for part in parts)):
        raise UserError(f"{source}: the name {shorten(name)} cannot be used for a file in the output folder; it must "
                        "be relative, without '..', drive, backslash or control character: rename it")
    return Path(folder).joinpath(*parts)


def check_apart(source: str | Path, output: str | Path) -> None:
    """Refuses an output folder whose files could take the place of the input.

    Args:
        source: Input: a file or a folder.
        output: Output folder, may be missing.

    Raises:
        UserError: The output folder is the input folder, or lies above the input.
    """
    place, target = Path(source).resolve(), Path(output).resolve()
    if place.is_relative_to(target):
        folder = place if place.is_dir() else place.parent
        where = "is the folder of" if target == folder else "lies above"
        raise UserError(f"--output {output}: {where} the input {source}, whose files could be replaced; choose another "
                        "--output")


def result_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Names for results: the paths without suffix, or with it where two would be equal.

    Args:
        paths: Relative paths, each once.
    """
    names = {path: path.with_suffix("").as_posix() for path in paths}
    while True:
        first: dict[str, Path] = {}
        equal = set()
        for path, name in names.items():
            if first.setdefault(name, path) != path:
                equal |= {path, first[name]}
        if not equal:
            return names
        for path in equal:
            names[path] = path.as_posix()


class OutputFolder:
    """Folder for results that replaces only files which this program wrote.

    The names of all files written stand in ``.mindseg-files``, one a line. The file is locked while the folder is in
    use; the kernel releases the lock when the process ends, however it ends. Temporary files of killed processes are
    removed.

    Args:
        folder: Made if need be.
        overwrite: Replace foreign files too.
        shared: Other processes of the same call write there too, so that nothing is locked.
        own: Refuse a folder that holds files of others, before any work is done.

    Raises:
        UserError: The folder cannot be written, holds files of others, or another process writes there.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False, shared: bool = False, own: bool = False) -> None:
        self.folder, self.overwrite = Path(folder), overwrite
        self._claimed: set[str] = set()
        record = self.folder / RECORD_NAME
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if own and not overwrite and any(self.folder.iterdir()) and not record.exists():
                raise UserError(f"{self.folder}: holds files that were not written by mindseg; choose another --output "
                                "or give --overwrite")
            # Neither waits for a pipe of that name nor writes to where a link of that name points.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            self._record: IO[bytes] = os.fdopen(os.open(record, flags, 0o666), "a+b", buffering=0)
            self._record.seek(0)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: cannot be written ({getattr(error, 'strerror', error)}); choose another "
                            "--output") from None
        try:
            if not shared:
                fcntl.flock(self._record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.folder}: another process writes results there; wait for it or choose another "
                            "--output") from None
        except OSError:
            pass        # a file system without locks
        self._own = {name for name in os.fsdecode(self._record.read()).split("\n") if _is_inside(name)}
        for place in {self.folder} | {self.folder.joinpath(name).parent for name in self._own}:
            remove_leftovers(place)

    def check(self, *paths: Path) -> None:
        """Refuses files that this program may not replace, before any work is done.

        Args:
            *paths: Files below the folder.

        Raises:
            UserError: One of them exists and was not written by this program.
        """
        for path in paths:
            if (not self.overwrite and path.relative_to(self.folder).as_posix() not in self._own
                    and os.path.lexists(path)):
                raise UserError(f"{path}: exists and was not written by mindseg; choose another --output or give "
                                "--overwrite")

    def claim(self, *paths: Path) -> None:
        """Notes files that are about to be written.

        Args:
            *paths: Files below the folder.

        Raises:
            UserError: One of them exists and was not written by this program, two are the same, or the folder is full.
        """
        self.check(*paths)
        names = []
        for path in paths:
            name = path.relative_to(self.folder).as_posix()
            if name in self._claimed:
                raise UserError(f"{path}: two results would have this name; rename one of the inputs")
            names.append(name)
            self._claimed.add(name)
        new = [name for name in names if name not in self._own]
        lines, end = os.fsencode("".join(f"{name}\n" for name in new)), os.fstat(self._record.fileno()).st_size
        try:
            if self._record.write(lines) != len(lines):
                os.ftruncate(self._record.fileno(), end)        # half a name would swallow the next one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}); free space or choose another "
                            "--output") from error
        self._own.update(new)

    def remove_old(self, below: str = "") -> None:
        """Removes files of earlier calls that this call has not claimed.

        Args:
            below: Name of a folder inside; "": everywhere.
        """
        for name in self._own - self._claimed:
            if name.startswith(f"{below}/" if below else ""):
                with suppress(OSError):
                    self.folder.joinpath(name).unlink()

    def close(self) -> None:
        """Releases the lock; removes the record of a folder without results."""
        if not any(os.path.lexists(self.folder / name) for name in self._own):
            with suppress(OSError):
                (self.folder / RECORD_NAME).unlink()
        self._record.close()

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_new(path: str | Path, overwrite: bool = False) -> None:
    """Refuses to replace a single file.

    Args:
        path: File to write.
        overwrite: Replace it all the same.

    Raises:
        UserError: The file exists.
    """
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path}: exists already; choose another --output or give --overwrite")


def _is_inside(name: str) -> bool:
    try:
        output_path("", name, RECORD_NAME)
    except UserError:
        return False
    return True
