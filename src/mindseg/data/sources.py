"""Sources of encoded samples: folders of files, and MindRecord files with the columns file_name, data, label."""
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

import mindspore.dataset as ds

from mindseg.data.datasets import DatasetInfo, list_samples
from mindseg.data.decode import decode_label_values
from mindseg.data.headers import without_orientation
from mindseg.data.record_files import COLUMNS, RecordFiles, check_records, damaged, file_identities
from mindseg.data.samples import Sample, check_name
from mindseg.errors import DataError, first_line
from mindseg.files import check_regular, read_bytes

_PROBES = 16      # labels that are read to tell label ids from train ids


class FolderSource:
    """Files of labelled samples, in the order of their names.

    Args:
        samples: Samples in any order.

    Raises:
        DataError: A sample has no label.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.label is None:
                raise DataError(f"{sample.image}: has no label; such a split can be predicted, not trained or scored")
        self.samples = sorted(samples, key=lambda sample: sample.name)

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, indices: Sequence[int]) -> None:
        """Nothing: files are read by :meth:`read`, in the threads that decode. MindSpore would copy them twice."""

    def read(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Name, image bytes and label bytes of a sample, no bytes of a file that cannot be read.

        Args:
            index: Number of the sample.
        """
        sample = self.samples[index]
        return sample.name, _read_bytes(sample.image), _read_bytes(sample.label)

    def describe(self, index: int, name: str) -> tuple[str, str]:
        """Names of image and label of a sample for error messages.

        Args:
            index: Number of the sample.
            name: Name of the sample.
        """
        return str(self.samples[index].image), str(self.samples[index].label)


class RecordSource:
    """Samples of a MindRecord set, in the order of their names.

    Args:
        path: The file, or the name that was given when several shards (``path0``, ``path1``, …) were written.

    Raises:
        DataError: Missing, damaged, renamed, half written, without the three columns, or mixed from several sets.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        files = _open_records(self.path)
        self.file, self.count, self.turned = files.file, files.count, files.turned
        names = _stored_names(sidecar_path(self.path), files)
        # Numbers of the rows in the order of the names: shards and --shuffle make no difference.
        self.places = np.arange(self.count) if names is None else np.argsort(names, kind="stable")

    def __len__(self) -> int:
        return self.count

    def rows(self, indices: Sequence[int]) -> ds.Dataset:
        """MindSpore dataset of the samples with these numbers, in this order."""
        # MindDataset takes no more indices than it has rows.
        pieces = np.array_split(self.places[list(indices)], math.ceil(len(indices) / self.count))
        parts = [ds.MindDataset(str(self.file), columns_list=COLUMNS, sampler=ds.SubsetSampler(piece.tolist()),
                                num_parallel_workers=1) for piece in pieces]
        return parts[0] if len(parts) == 1 else parts[0].concat(parts[1:])

    def read(self, index: int, name: np.ndarray, data: np.ndarray,
             label: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
        """Name, image bytes and label bytes of a row of :meth:`rows`; see :meth:`FolderSource.read`.

        Sets that say nothing of the EXIF orientation lose it: their images were never turned, nor were the labels.
        """
        data = as_bytes(data)
        return str(name), data if self.turned else without_orientation(data), as_bytes(label)

    def describe(self, index: int, name: str) -> tuple[str, str]:
        """Names of image and label of a sample for error messages, see :meth:`FolderSource.describe`."""
        return f"{self.path}: image of sample {index} '{name}'", f"{self.path}: label of sample {index} '{name}'"


Source = FolderSource | RecordSource


def _read_bytes(path: Path) -> np.ndarray:
    """Reads a file's bytes, none if it cannot be read.

    The decoder reports that, with the same words for an empty file.
    """
    try:
        return read_bytes(path)
    except DataError:
        return np.zeros(0, np.uint8)


def as_bytes(column: np.ndarray) -> np.ndarray:
    """A MindRecord's ``bytes`` column as uint8 (N,): it arrives as an S string, whose ``.item()`` drops trailing zeros.

    Args:
        column: Array from an iterator with ``output_numpy=True``.
    """
    return np.frombuffer(column, np.uint8) if column.dtype.kind == "S" else column


def sidecar_path(path: Path) -> Path:
    """JSON description beside a MindRecord file."""
    return path.with_name(path.name + ".json")


def _open_records(path: Path) -> RecordFiles:
    """Checks the files of a set, then lets MindSpore read the first and the last row."""
    files = check_records(path)
    try:
        # MindDataset takes no more indices than it has rows.
        ends = ds.MindDataset(str(files.file), columns_list=COLUMNS, num_parallel_workers=1,
                              sampler=ds.SubsetSampler(sorted({0, files.count - 1})))
        for _ in ends.create_dict_iterator(num_epochs=1, output_numpy=True):
            pass
        if files.names is None:
            names = ds.MindDataset(str(files.file), columns_list=["file_name"], num_parallel_workers=1, shuffle=False)
            for row in names.create_dict_iterator(num_epochs=1, output_numpy=True):
                check_name(str(row["file_name"]), f"{files.file}: column file_name")
    except (RuntimeError, ValueError) as error:
        raise damaged(files.file, first_line(error)) from None
    return files


def _stored_names(sidecar: Path, files: RecordFiles) -> list[str] | None:
    """Names of the samples in stored order, or ``None`` if there is no description."""
    if not sidecar.exists():
        return None
    try:
        check_regular(sidecar)
        description = json.loads(sidecar.read_text(encoding="utf-8"))
        names, identities = description["names"], description.get("sha256")
        if not all(type(name) is str for name in names) or not isinstance(identities, dict | None):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{sidecar}: not a description of {files.file.name}; remove it or build the file again"
                        ) from None
    if len(names) != files.count:
        raise DataError(f"{sidecar}: describes {len(names)} samples, {files.file} holds {files.count}; remove it or "
                        "build the file again")
    if files.names is not None and sorted(names) != sorted(files.names):
        raise DataError(f"{sidecar} and {files.file}: do not belong together (other names of samples); copy the files "
                        "of one set again, or build it again")
    # Older descriptions hold no checksums.
    for name, digest in (file_identities(files.shards) if identities is not None else {}).items():
        if identities.get(name) != digest:
            raise DataError(f"{sidecar} and {files.file.with_name(name)}: do not belong together (another checksum); "
                            "copy the files of one set again, or build it again")
    return names


def open_source(data: Mapping, split: str) -> Source:
    """Opens the MindRecord set or the folders of a configuration's data set.

    Args:
        data: Section ``data`` of a configuration.
        split: Role ``train`` or ``eval``, or the name of a split.

    Raises:
        DataError: Not found or not readable.
    """
    record = {"train": data["mindrecord"], "eval": data["eval_mindrecord"]}.get(split)
    return RecordSource(record) if record else FolderSource(list_samples(data, split))


def read_samples(source: Source, indices: Sequence[int]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Reads samples one after the other: name, image bytes and label bytes of each.

    Args:
        source: Samples.
        indices: Their numbers.
    """
    rows = source.rows(indices)
    if rows is None:
        yield from map(source.read, indices)
        return
    for index, row in zip(indices, rows.create_dict_iterator(num_epochs=1, output_numpy=True), strict=True):
        yield source.read(index, *(row[column] for column in COLUMNS))


def choose_lut(info: DatasetInfo, source: Source, label_file: str = "auto") -> np.ndarray:
    """Chooses the label LUT, uint8 (256,), of the labels in a source.

    Args:
        info: Data set.
        source: Labels, of which a few are read if they may be label ids or train ids.
        label_file: ``data.label_file``.
    """
    def values() -> Iterator[np.ndarray]:
        for index in np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(int)):
            _, _, label = next(read_samples(source, [int(index)]))
            try:
                yield decode_label_values(label, "")
            except DataError:
                continue        # reported when it is used

    return info.choose_lut(label_file, values(), source.describe(0, "")[1])
