"""Data sinking: MindSpore's queue carries batches to the device while it still works on those before.

Where the platform has a queue (Ascend, GPU). Order, augmentation, resuming and messages are the loader's.
"""
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import mindspore as ms
import mindspore.dataset as ds

from mindseg.data.loader import Batch, Loader
from mindseg.errors import DataError

PLATFORMS = ("Ascend", "GPU")
_TIMEOUT_S = 1800       # a pipeline that died without a word is not waited for any longer


class _Stream:
    """The batches of a run by their number, as MindSpore's reader thread asks for them.

    The queue carries arrays only, and an exception in the reader would end the process before its batch's turn. So the
    names, or the exception, of each batch come out of ``words``; behind an exception the arrays repeat.
    """

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self.words: queue.SimpleQueue = queue.SimpleQueue()
        self.sinking = False        # until then MindSpore may start over: it reads the first batches to learn shapes
        self._batches, self._count = batches, count
        self._made: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._newest = -1
        self._lock = threading.Lock()
        self._make()        # here, because an error in the first batch leaves no arrays to repeat

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if number == self._newest + 1:
                self._make()
            if self.sinking:
                self._made = {n: arrays for n, arrays in self._made.items() if n >= min(number, self._newest)}
            # MindSpore starts over behind the last batch, and fills its queue with what nobody will take out.
            return self._made.get(number, self._made[max(self._made)])

    def _make(self) -> None:
        self._newest += 1
        try:
            batch = next(self._batches)
        except Exception as error:
            if not self._made:
                raise
            self.words.put(error)
            self._made[self._newest] = self._made[self._newest - 1]
        else:
            self._made[self._newest] = batch["image"], batch["label"]
            self.words.put(batch["names"])


class SinkLoader:
    """A training loader whose batches are on the device already; made by :func:`sinking`.

    Args:
        loader: Where the batches come from.
        total: Steps of the whole run.
    """

    def __init__(self, loader: Loader, total: int) -> None:
        self.steps_per_epoch = loader.steps_per_epoch
        self._loader, self._total = loader, total
        self._stream: _Stream | None = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict]:
        """As :meth:`Loader.epoch`, with device tensors for arrays; epochs must follow each other.

        Raises:
            DataError: A sample is broken, or no batch arrived for half an hour.
        """
        if self._stream is None:
            self._open(epoch, start_step)
        for _ in range(start_step, self.steps_per_epoch):
            try:
                word = self._stream.words.get(timeout=_TIMEOUT_S)
            except queue.Empty:
                self._stream = None     # closing it would wait for the reader
                raise DataError(f"no batch arrived in {_TIMEOUT_S // 60} minutes; set train.dataset_sink_mode=false to "
                                "see whether reading or the device's queue stopped") from None
            if isinstance(word, Exception):
                raise word
            image, label = self._next()
            yield {"image": image, "label": label, "names": word}

    def close(self) -> None:
        """Stops the reader and gives the queue back."""
        if self._stream is not None:
            transfer = self._rows.__transfer_dataset__      # where ms.data_sink leaves it
            transfer.stop_send()
            transfer.release()

    def _open(self, epoch: int, start_step: int) -> None:
        def batches() -> Iterator[Batch]:
            yield from self._loader.epoch(epoch, start_step)
            for following in range(epoch + 1, -(-self._total // self.steps_per_epoch)):
                yield from self._loader.epoch(following)

        stream = _Stream(batches(), self._total - epoch * self.steps_per_epoch - start_step)
        before = ds.config.get_prefetch_size()
        ds.config.set_prefetch_size(self._loader.options.prefetch)
        try:
            self._rows = ds.GeneratorDataset(stream, ["image", "label"], shuffle=False, num_parallel_workers=1,
                                             python_multiprocessing=False)
            self._next = ms.data_sink(lambda image, label: (image, label), self._rows)
        finally:
            ds.config.set_prefetch_size(before)
        stream.sinking = True
        self._stream = stream


@contextmanager
def sinking(loader: Loader, total: int) -> Iterator[SinkLoader]:
    """The loader with its batches brought to the device ahead, until the block ends.

    Args:
        loader: Training loader.
        total: Steps of the whole run, counted from its first epoch.
    """
    sink = SinkLoader(loader, total)
    try:
        yield sink
    finally:
        sink.close()
