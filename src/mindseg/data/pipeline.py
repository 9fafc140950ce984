"""MindSpore's data pipeline over encoded samples."""
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

import mindspore.dataset as ds

from mindseg.data.sources import COLUMNS, Source
from mindseg.errors import DataError, first_line


@dataclass(frozen=True)
class LoaderOptions:
    """Options of a loader.

    Attributes:
        batch_size: Samples a batch, on this rank.
        rank: This process, 0..size-1.
        size: Number of processes.
        seed: Seed of order and augmentation.
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

    def steps_per_epoch(self, samples: int) -> int:
        """Batches of one training epoch, equal on all ranks.

        Args:
            samples: Number of samples, over all ranks.
        """
        return math.ceil(samples * self.repeat / (self.batch_size * self.size))


class _Worker:
    """Function that MindSpore calls in its threads.

    It must not hold the pipeline: MindSpore's own objects would close a circle of references that Python cannot see,
    and every epoch would stay in memory.
    """

    def __init__(self, source: Source, work: Callable[..., object]) -> None:
        self.source, self.work, self.results = source, work, {}

    def run(self, *columns: np.ndarray) -> np.ndarray:
        """Works on one sample, keeps the result or exception by the number of its row, and passes the row on."""
        *stored, row = columns
        try:
            name, data, label = self.source.read(int(row[3]), *stored)
            result = self.work(name, row[1:], data, label)
        except Exception as error:
            result = error
        self.results[int(row[0])] = result
        return row


class Pipeline:
    """Iterator over batches: lists of (sample index, result or exception) of each sample.

    MindSpore schedules, keeps the order and reads MindRecord files. The results of its threads stay in the worker until
    the sample's index comes out: passing the pixels through would copy them three times, and an exception would end the
    pipeline at once, before its turn, in pages of traceback.

    Args:
        source: Encoded samples.
        sample_indices: int64 (N, 3): epoch, pass over the data, and number of the sample in the source. One dimension
            (N,) holds the numbers alone.
        work: ``work(name, sample index, image bytes, label bytes)``, called in threads; must not hold this pipeline.
        options: Batch size, workers and prefetch are read.
    """

    def __init__(self, source: Source, sample_indices: np.ndarray, work: Callable[..., object],
                 options: LoaderOptions) -> None:
        if sample_indices.ndim == 1:
            sample_indices = np.pad(sample_indices[:, None], ((0, 0), (2, 0)))
        cv2.setNumThreads(1)        # the workers are the threads; OpenCV would start some for each of them
        worker = _Worker(source, work)
        self._results = worker.results
        rows = np.concatenate([np.arange(len(sample_indices))[:, None], sample_indices], axis=1)
        before = ds.config.get_prefetch_size()
        ds.config.set_prefetch_size(options.prefetch)
        try:
            dataset = ds.NumpySlicesDataset({"row": rows}, shuffle=False)
            stored = source.rows(sample_indices[:, 2].tolist())
            columns = ["row"] if stored is None else [*COLUMNS, "row"]
            dataset = dataset if stored is None else ds.zip((stored, dataset))
            dataset = dataset.map(worker.run, columns, ["row"], python_multiprocessing=False,
                                  num_parallel_workers=max(1, min(options.num_workers, os.cpu_count() or 1)))
            self._iterator = iter(dataset.batch(options.batch_size).create_dict_iterator(num_epochs=1,
                                                                                         output_numpy=True))
        finally:
            ds.config.set_prefetch_size(before)

    def __iter__(self) -> Iterator[list]:
        return self

    def __next__(self) -> list[tuple[np.ndarray, object]]:
        try:
            rows = next(self._iterator)["row"]
        except RuntimeError as error:
            raise DataError(f"reading stopped: {first_line(error)}; check the files or build them again") from None
        return [(row[1:], self._results.pop(int(row[0]))) for row in rows]
