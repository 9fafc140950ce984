"""Folders of exports: new files take their places together, and foreign files stay."""
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mindseg.errors import UserError
from mindseg.files import file_sha256, finish_set, replace_set, write_text
from mindseg.manifest import MANIFEST_NAME, ManifestError, load_manifest
from mindseg.outputs import RECORD_NAME, OutputFolder

# Further files that are written beside a manifest.
_COMPANIONS = ("export.json", "quantize.json", "aipp.cfg", "lite.ini")
_STAGING = re.compile(r"\.export-[a-z0-9_]{8}")


def open_folder(folder: Path, overwrite: bool = False) -> OutputFolder:
    """Opens the folder of an export for writing.

    What an interrupted export left behind is finished or removed. In a folder without a record, of an earlier version,
    the files that a manifest lists with their SHA-256 count as written by this program.

    Args:
        folder: Made if need be.
        overwrite: Replace foreign files too.

    Raises:
        UserError: The folder cannot be written, or another process writes there.
    """
    if folder.is_dir() and not (folder / RECORD_NAME).exists():
        names = [name for part in ("", "aipp/", "lite/") for name in _exported(folder, part)]
        if names:
            write_text(folder / RECORD_NAME, "".join(f"{name}\n" for name in names))
    opened = OutputFolder(folder, overwrite)
    finish_set(folder / MANIFEST_NAME)
    for left in folder.glob(".export-*"):       # of processes that died: the folder is locked
        if _STAGING.fullmatch(left.name) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
    return opened


def _exported(folder: Path, part: str) -> list[str]:
    try:
        manifest = load_manifest(folder / part / MANIFEST_NAME)
    except ManifestError:
        return []
    models = [entry.file for entry in manifest.models if (folder / part / entry.file).is_file()
              and file_sha256(folder / part / entry.file) == entry.sha256]
    return [part + name for name in (MANIFEST_NAME, *_COMPANIONS, *models)]


@contextmanager
def staging(folder: OutputFolder, names: Sequence[str], below: str = "") -> Iterator[Path]:
    """Hidden folder for new files, which take their places when the block ends without error, the manifest last.

    However the process ends, the old files are all there, or the new ones are once the manifest is read again.

    Args:
        folder: Of the export.
        names: Files that the block writes, the manifest among them; those of a converter may have longer names.
        below: Folder inside, which the new files are for.

    Raises:
        UserError: The folder cannot be written, or one of the files exists and was not written by this program.
    """
    target = folder.folder / below
    folder.check(*(target / name for name in names))
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.folder, ignore_cleanup_errors=True) as place:
            yield Path(place)
            target.mkdir(exist_ok=True)
            folder.claim(*(target / path.name for path in Path(place).iterdir()))
            replace_set(Path(place), target / MANIFEST_NAME)
    except OSError as error:
        raise UserError(f"--output {folder.folder}: cannot be written ({error.strerror}); free space or choose another "
                        "folder") from error
