"""Predictions as files: coloured masks, label ids under the benchmarks' names, and submission archives."""
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindseg.data.datasets import DatasetInfo
from mindseg.drawing import save_palette_png, save_png, to_label_ids
from mindseg.files import replacing
from mindseg.outputs import OutputFolder, output_path

KINDS = ("color", "labelIds")


class MaskWriter:
    """Writes one PNG an image.

    ``color``: ``<name>.png``, class ids with the data set's palette. ``labelIds``: what the benchmark server reads:
    grey official label ids ``<name>_labelIds.png`` for Cityscapes, palette images ``<name>.png`` for VOC.

    Args:
        kind: ``color`` or ``labelIds``.
        info: Palette and official ids.
        output: Folder of the masks.
        notes: File that gets the name of every mask, one a line, for another process to read; None: nobody does.
    """

    def __init__(self, kind: str, info: DatasetInfo, output: OutputFolder, notes: Path | None = None) -> None:
        self.kind, self.info, self.output, self.notes = kind, info, output, notes
        self.files: list[Path] = []
        if notes:
            notes.write_text("", encoding="utf-8")

    def write(self, name: str, ids: np.ndarray) -> None:
        """Writes the mask of one image.

        Args:
            name: Name of the image without suffix.
            ids: Train ids, uint8 (H, W).

        Raises:
            UserError: The name leaves the folder, stands for two masks, or is that of a foreign file.
        """
        suffix = self.info.submission.suffix if self.kind == "labelIds" else ".png"
        path = output_path(self.output.folder, f"{name}{suffix}", f"image {name}")
        self.output.claim(path)
        if self.kind == "labelIds" and not self.info.submission.palette:
            save_png(path, to_label_ids(ids, self.info.train_to_id))
        else:
            save_palette_png(path, ids, self.info.palette)
        self.files.append(path)
        if self.notes:
            with open(self.notes, "a", encoding="utf-8") as stream:
                stream.write(f"{path.name}\n")


def write_submission(files: Sequence[Path], info: DatasetInfo, output: Path) -> Path:
    """Packs label-id masks as the benchmark server takes them: a flat zip, for VOC a tgz with the kit's folders.

    Args:
        files: PNG files.
        info: Says which benchmark it is.
        output: Folder of the archive.

    Returns:
        The archive, ``submission.zip`` or ``submission.tgz``.
    """
    path = output / info.submission.archive
    with replacing(path) as temporary:
        if path.suffix == ".tgz":
            with tarfile.open(temporary, "w:gz", compresslevel=1) as archive:
                for file in sorted(files):
                    archive.add(file, info.submission.folder + file.name, filter=_without_owner)
        else:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:     # PNG is compressed already
                for file in sorted(files):
                    archive.write(file, info.submission.folder + file.name)
    return path


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The entry without the user's name, group and time of writing."""
    plain = tarfile.TarInfo(entry.name)
    plain.size = entry.size
    return plain
