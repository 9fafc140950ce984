"""Images of a data set, found by the names that annotation files give them."""
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from mindseg.data.decode import decode_image
from mindseg.data.samples import IMAGE_SUFFIXES
from mindseg.errors import DataError, UserError, shorten
from mindseg.files import read_bytes
from mindseg.outputs import output_path


class ImageFolder:
    """The images below a folder. Names in annotation files never lead out of it.

    Args:
        folder: Folder, searched with all folders in it.
        without: Folders inside that hold no photographs: masks, results.
        suffixes: Endings of the files to find.
        loose: A name may be longer than that of its image by an underscore and an ending, such as ``0001_mask``.

    Raises:
        DataError: There is no such folder.
    """

    def __init__(self, folder: Path, without: Iterable[Path] = (), suffixes: Iterable[str] = IMAGE_SUFFIXES,
                 loose: bool = False) -> None:
        self.folder, self.suffixes, self.loose = folder, tuple(suffixes), loose
        self._without = [os.path.realpath(path) for path in without]
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of images; give it with --images")

    @cached_property
    def files(self) -> list[Path]:
        """All images, in the order of their names."""
        found = []
        for place, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in self._without]
            found += [Path(place, name) for name in names
                      if name.lower().endswith(self.suffixes) and not name.startswith(".")]
        return sorted(found)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Images by their file name, and by their stem."""
        found: dict[str, list[Path]] = {}
        for path in self.files:
            for name in {path.name, path.stem}:
                found.setdefault(name, []).append(path)
        return found

    def find(self, name: str, source: str, near: Path | None = None) -> Path:
        """Finds an image: the path below the folder, else the one image of that file name, else that of its stem.

        Args:
            name: Name in an annotation file; folders in it may be those of another machine.
            source: That file, for messages.
            near: Folder inside whose image comes first.

        Raises:
            DataError: There is none, or there are several.
        """
        base = re.split(r"[/\\]", name)[-1]
        near = near if near and near.is_relative_to(self.folder) else None
        for folder, part in ((self.folder, name), (near, base)):
            path = _safe(folder, part, source)
            if path is not None and path.suffix.lower() in self.suffixes and path.is_file():
                return path
        found = self._by_name.get(base) or self._by_name.get(Path(base).stem) or []
        if not found and self.loose:
            found = self._by_name.get(base.rpartition("_")[0], [])
        if not found:
            raise DataError(f"{source}: the image {shorten(name)} is not below {self.folder}; add it, or give the "
                            "folder with --images")
        if len(found) > 1:
            raise DataError(f"{source}: the image {shorten(name)} may be {found[0]} or {found[1]}; rename one of them")
        return found[0]


def _safe(folder: Path | None, name: str, source: str) -> Path | None:
    """A path inside a folder; ``None`` if the name would lead out of it or is no name of a file."""
    try:
        path = None if folder is None else output_path(folder, name, source)
        return path if path and os.path.lexists(path) else None
    except (UserError, OSError, ValueError):
        return None


def read_size(image: Path, claimed: tuple[int, int] | None, source: str) -> tuple[int, int]:
    """Decodes an image as training does, and compares its size with that of its annotations.

    Args:
        image: Image file.
        claimed: (height, width) in the annotation file, or ``None``.
        source: The annotation file, for messages.

    Returns:
        (height, width).

    Raises:
        DataError: The image cannot be used, or has another size.
    """
    height, width = decode_image(read_bytes(image), str(image)).shape[:2]
    if claimed not in (None, (height, width)):
        raise DataError(f"{source}: was made for an image of {claimed[1]}x{claimed[0]}, but {image} is "
                        f"{width}x{height}; restore the image that was annotated")
    return height, width
