"""Data sinking: MindSpore's queue carries batches to the device while it still works on those before.

Only Ascend and GPU have such a queue. Order, augmentation, resuming and messages are the loader's.
"""
import queue
import threading
from collections.abc import Iterator

import numpy as np

import mindspore as ms
import mindspore.dataset as ds

from mindseg.data.loader import Batch, Loader
from mindseg.errors import DataError

PLATFORMS = ("Ascend", "GPU")
_TIMEOUT_S = 1800       # then the reader is taken for dead


class _Stream:
    """Batches of a run by their number, for MindSpore's reader thread.

    The queue carries arrays only, and an exception in the reader would end the process before its batch's turn. So the
    names, or the exception, of each batch come out of ``names``; behind an exception the arrays repeat.
    """

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self.names: queue.SimpleQueue = queue.SimpleQueue()
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
            self.names.put(error)
            self._made[self._newest] = self._made[self._newest - 1]
        else:
            self._made[self._newest] = batch["image"], batch["label"]
            self.names.put(batch["names"])


class SinkLoader:
    """Training loader whose batches are on the device already; a context, which stops the reader when it ends.

    Args:
        loader: Training loader.
        total: Steps of the whole run, counted from its first epoch.
    """

    def __init__(self, loader: Loader, total: int) -> None:
        self.steps_per_epoch = loader.steps_per_epoch
        self._loader, self._total = loader, total
        self._stream: _Stream | None = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict]:
        """Batches of one epoch as in :meth:`Loader.epoch`, with device tensors for arrays.

        Args:
            epoch: Number of the epoch; each call gives the next one.
            start_step: Batches to leave out at the start.

        Raises:
            DataError: A sample is broken, or no batch arrived for half an hour.
        """
        if self._stream is None:
            self._open(epoch, start_step)
        for _ in range(start_step, self.steps_per_epoch):
            try:
                names = self._stream.names.get(timeout=_TIMEOUT_S)
            except queue.Empty:
                self._stream = None     # closing it would wait for the reader
                raise DataError(f"no batch arrived in {_TIMEOUT_S // 60} minutes; set train.dataset_sink_mode=false to "
                                "see whether reading or the device's queue stopped") from None
            if isinstance(names, Exception):
                raise names
            image, label = self._next()
            yield {"image": image, "label": label, "names": names}

    def __enter__(self) -> "SinkLoader":
        return self

    def __exit__(self, *_: object) -> None:
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
