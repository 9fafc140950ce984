"""Where encoded samples come from, and the pipeline that reads and schedules them."""
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mindspore.dataset as ds

from mindseg.data import datasets
from mindseg.data.datasets import DatasetInfo, Sample
from mindseg.data.decode import decode_label_values
from mindseg.data.mindrecord import COLUMNS, as_bytes, first_line, open_records
from mindseg.errors import DataError

_PROBES = 16           # labels that are looked at to tell label ids from train ids


class _EncodedFiles:
    """Item i is (name, image bytes, label bytes) of sample i."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        sample = self.samples[index]
        return sample.name, _read_bytes(sample.image), _read_bytes(sample.label)


class FolderSource:
    """Reads the files of a list of samples, in the order of their names."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.label is None:
                raise DataError(f"{sample.image}: has no label; such a split can be predicted, not trained or scored")
        self.samples = sorted(samples, key=lambda sample: sample.name)

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, indices: Sequence[int]) -> ds.Dataset:
        """A dataset of these items, in this order."""
        return ds.GeneratorDataset(_EncodedFiles([self.samples[i] for i in indices]), COLUMNS, shuffle=False,
                                   num_parallel_workers=1, python_multiprocessing=False)

    def describe(self, index: int, name: str) -> tuple[str, str]:
        """How error messages call the image and the label of item ``index``."""
        return str(self.samples[index].image), str(self.samples[index].label)


class RecordSource:
    """Reads MindRecord files with the columns file_name, data, label."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file, self.count, names = open_records(self.path)
        # The place of each sample in the files, in the order of the names: shards and --shuffle make no difference.
        self.places = np.arange(self.count) if names is None else np.argsort(names, kind="stable")

    def __len__(self) -> int:
        return self.count

    def rows(self, indices: Sequence[int]) -> ds.Dataset:
        """A dataset of these items, in this order."""
        # MindDataset takes no more indices than it has rows.
        pieces = np.array_split(self.places[list(indices)], math.ceil(len(indices) / self.count))
        parts = [ds.MindDataset(str(self.file), columns_list=COLUMNS, sampler=ds.SubsetSampler(piece.tolist()),
                                num_parallel_workers=1) for piece in pieces]
        return parts[0] if len(parts) == 1 else parts[0].concat(parts[1:])

    def describe(self, index: int, name: str) -> tuple[str, str]:
        """How error messages call the image and the label of item ``index``, stored as ``name``."""
        return f"{self.path}: image of sample {index} '{name}'", f"{self.path}: label of sample {index} '{name}'"


def _read_bytes(path: Path) -> np.ndarray:
    """The file as a uint8 vector, empty if it cannot be read: the decoder reports it when its turn comes, whereas an
    exception here would end the pipeline at once."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError:
        return np.zeros(0, np.uint8)


@dataclass(frozen=True)
class LoaderOptions:
    """How a loader runs.

    Attributes:
        batch_size: Samples a batch, on this rank.
        rank: This process.
        size: Number of processes.
        seed: Of order and augmentation.
        repeat: Passes over the data in one training epoch.
        num_workers: Threads that decode and augment; clamped to the number of cores.
        prefetch: Batches kept ready.
        skip_errors: Replace broken samples instead of raising.
        rgb: Evaluation images are RGB instead of BGR.
    """
    batch_size: int = 1
    rank: int = 0
    size: int = 1
    seed: int = 1
    repeat: int = 1
    num_workers: int = 2
    prefetch: int = 4
    skip_errors: bool = False
    rgb: bool = True


class _Worker:
    """What MindSpore calls in its threads. It must not know the pipeline: MindSpore's own objects would close a circle
    of references that Python cannot see, and every epoch would stay in memory."""

    def __init__(self, work: Callable[..., object]) -> None:
        self.work, self.results = work, {}

    def run(self, name: np.ndarray, data: np.ndarray, label: np.ndarray, sample_index: np.ndarray) -> np.ndarray:
        """Works on one row, keeps the result or exception, and passes the indices on."""
        try:
            result = self.work(str(name), sample_index[1:], as_bytes(data), as_bytes(label))
        except Exception as error:
            result = error
        self.results[int(sample_index[0])] = result
        return sample_index


class Pipeline:
    """MindSpore's pipeline over some samples; gives, batch by batch, (sample index, result or exception) of each.

    MindSpore reads, schedules and keeps the order; what its threads make stays in the worker until its sample's
    index comes out. Passing the pixels through would copy them three times, and an exception would end the pipeline at
    once, before its turn, in pages of traceback.
    """

    def __init__(self, source: FolderSource | RecordSource, sample_indices: np.ndarray, work: Callable[..., object],
                 options: LoaderOptions) -> None:
        """
        Args:
            source: Where the bytes come from.
            sample_indices: int64 (N, 3): epoch, pass over the data, and number of the sample in the source.
            work: ``work(name, sample index, image bytes, label bytes)``, called in threads. It must not hold this
                pipeline.
            options: Batch size, workers and prefetch count here.
        """
        worker = _Worker(work)
        self._results = worker.results
        numbered = np.concatenate([np.arange(len(sample_indices))[:, None], sample_indices], axis=1)
        before = ds.config.get_prefetch_size()
        ds.config.set_prefetch_size(options.prefetch)
        try:
            rows = ds.zip((source.rows(sample_indices[:, 2].tolist()),
                           ds.NumpySlicesDataset({"sample_index": numbered}, shuffle=False)))
            rows = rows.map(worker.run, [*COLUMNS, "sample_index"], ["sample_index"], python_multiprocessing=False,
                            num_parallel_workers=max(1, min(options.num_workers, os.cpu_count() or 1)))
            rows = rows.batch(options.batch_size)
            self._iterator = iter(rows.create_dict_iterator(num_epochs=1, output_numpy=True))
        finally:
            ds.config.set_prefetch_size(before)

    def __iter__(self) -> Iterator[list]:
        return self

    def __next__(self) -> list[tuple[np.ndarray, object]]:
        try:
            numbered = next(self._iterator)["sample_index"]
        except RuntimeError as error:
            raise DataError(f"reading stopped: {first_line(error)}; check the files or build them again") from None
        return [(row[1:], self._results.pop(int(row[0]))) for row in numbered]


def open_source(data: Mapping, split: str) -> FolderSource | RecordSource:
    """The source of the ``train`` or ``eval`` split of a configuration's ``data`` section: MindRecord if it names one.

    Raises:
        DataError: Not found or not readable.
    """
    record = data["mindrecord" if split == "train" else "eval_mindrecord"]
    return RecordSource(record) if record else FolderSource(datasets.list_samples(data, split))


def choose_lut(info: DatasetInfo, source: FolderSource | RecordSource, label_file: str = "auto") -> np.ndarray:
    """The label LUT of a split; for Cityscapes a few labels are read to tell ids from train ids."""
    if info.name != "cityscapes":
        return info.label_lut()
    if label_file == "auto":
        indices = np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(int))
        label_file = datasets.cityscapes_encoding(_probe(source, indices), source.describe(0, "")[1])
    return info.label_lut() if label_file == "labelIds" else datasets.train_id_lut(len(info.classes))


def _probe(source: FolderSource | RecordSource, indices: Sequence[int]) -> Iterator[np.ndarray]:
    for index in indices:
        row = next(iter(source.rows([int(index)]).create_dict_iterator(num_epochs=1, output_numpy=True)))
        try:
            yield decode_label_values(as_bytes(row["label"]), "")
        except DataError:
            continue        # its turn to be reported comes when it is used
