"""Feeds batches from folders or MindRecord files, the same ones for any number of workers, ranks and restarts.

The order of an epoch is a permutation drawn from (seed, epoch), and the randomness of a sample is drawn from
(seed, epoch, sample), so a batch depends on nothing but its position.
"""
import itertools
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

import mindspore.dataset as ds

from src.data import datasets
from src.data.datasets import DatasetInfo, Sample
from src.data.decode import check_sizes, decode_checked_label, decode_image, decode_label_values
from src.data.mindrecord import COLUMNS, as_bytes, first_line, open_records
from src.data.transforms import PHOTOMETRIC, CropResize, ScaleCrop, TrainTransform, color_jitter
from src.errors import DataError

_LOG = logging.getLogger(__name__)
_LOOKAHEAD = 4         # batches before the end of an epoch at which the next one is started, so that there is no gap
_ORDER, _AUGMENT, _REPLACE = 1, 2, 3      # keeps the random streams apart
_REPLACE_TRIES = 20
_PROBES = 16           # labels that are looked at to tell label ids from train ids

Row = tuple[str, np.ndarray, np.ndarray]      # name, image, label
Batch = dict[str, object]


class _Files:
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
        return ds.GeneratorDataset(_Files([self.samples[i] for i in indices]), COLUMNS, shuffle=False,
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
    """The file as a uint8 vector. One that cannot be read comes back as a single 0, which the decoder refuses:
    MindSpore has no rows of length 0, and an exception here would end the pipeline before its turn."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        data = np.zeros(0, np.uint8)
    return data if data.size else np.zeros(1, np.uint8)


@dataclass(frozen=True)
class Plan:
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


class _Pipeline:
    """MindSpore's pipeline over some tickets; gives, batch by batch, (ticket, result or exception) of each.

    MindSpore reads, schedules and keeps the order; what its threads make stays in ``_results`` until its ticket comes
    out. Passing the pixels through would copy them three times, and an exception would end the pipeline at once,
    before its turn, in pages of traceback.
    """

    def __init__(self, source: FolderSource | RecordSource, tickets: np.ndarray, work: Callable,
                 plan: Plan) -> None:
        self._results: dict[int, object] = {}
        self._work = work
        numbered = np.concatenate([np.arange(len(tickets))[:, None], tickets], axis=1)
        before = ds.config.get_prefetch_size()
        ds.config.set_prefetch_size(plan.prefetch)
        try:
            rows = ds.zip((source.rows(tickets[:, 2].tolist()),
                           ds.NumpySlicesDataset({"ticket": numbered}, shuffle=False)))
            rows = rows.map(self._run, [*COLUMNS, "ticket"], ["ticket"], python_multiprocessing=False,
                            num_parallel_workers=max(1, min(plan.num_workers, os.cpu_count() or 1)))
            rows = rows.batch(plan.batch_size)
            self._iterator = iter(rows.create_dict_iterator(num_epochs=1, output_numpy=True))
        finally:
            ds.config.set_prefetch_size(before)

    def _run(self, name: np.ndarray, data: np.ndarray, label: np.ndarray, ticket: np.ndarray) -> np.ndarray:
        try:
            result = self._work(str(name), ticket[1:], as_bytes(data), as_bytes(label))
        except Exception as error:
            result = error
        self._results[int(ticket[0])] = result
        return ticket

    def __iter__(self) -> Iterator[list]:
        return self

    def __next__(self) -> list[tuple[np.ndarray, object]]:
        try:
            numbered = next(self._iterator)["ticket"]
        except RuntimeError as error:
            raise DataError(f"reading stopped: {first_line(error)}; check the files or build them again") from None
        return [(ticket[1:], self._results.pop(int(ticket[0]))) for ticket in numbered]


class Loader:
    """Batches of one split; made by :func:`create_dataset`.

    Attributes:
        info: The data set.
        num_samples: Samples of the split, over all ranks.
        steps_per_epoch: Training: batches in an epoch, equal on all ranks. Evaluation: samples this rank sees.
        skipped: Why samples were left out (``data.on_error=skip``), by their index.
    """

    def __init__(self, source: FolderSource | RecordSource, info: DatasetInfo, table: np.ndarray,
                 transform: TrainTransform | None, plan: Plan) -> None:
        """
        Args:
            source: Where the bytes come from.
            info: The data set.
            table: 256-entry table from label value to train id.
            transform: The training transform; ``None``: evaluation, images and labels stay as they are.
            plan: How to run.
        """
        self.source, self.info, self.table, self.transform, self.plan = source, info, table, transform, plan
        self.num_samples = len(source)
        if transform is None:
            self.steps_per_epoch = len(range(plan.rank, self.num_samples, plan.size))
        else:
            self.steps_per_epoch = math.ceil(self.num_samples * plan.repeat / (plan.batch_size * plan.size))
        self.skipped: dict[int, str] = {}
        self._stream: Iterator[list] | None = None
        self._position: tuple[int, int] | None = None       # epoch and step that the running stream gives next

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Training batches of one epoch.

        Args:
            epoch: Number of the epoch; decides order and augmentation.
            start_step: Batches to leave out at the start, for a run that is resumed within an epoch.

        Yields:
            ``image`` uint8 (N, h, w, 3), ``label`` uint8 (N, h, w) of train ids (255 = ignored), ``names`` N strings.

        Raises:
            DataError: A sample is broken (raised when its turn comes), or every replacement is.
        """
        if self._position != (epoch, start_step):
            self._stream = self._batches(epoch, start_step)
        for step in range(start_step, self.steps_per_epoch):
            self._position = None       # in use: whoever leaves this loop early gets a new stream next time
            rows = [self._checked(*row) or self._replacement(row[0]) for row in next(self._stream)]
            self._position = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            yield _stack(rows)

    def samples(self) -> Iterator[Batch]:
        """Evaluation: this rank's share of the split, every image exactly once over all ranks.

        Yields:
            As :meth:`epoch`, at the original sizes; neighbours of equal size come together, ``batch_size`` at most.

        Raises:
            DataError: A sample is broken.
        """
        indices = np.arange(self.plan.rank, self.num_samples, self.plan.size)
        if not indices.size:
            return
        tickets = np.zeros((indices.size, 3), np.int64)
        tickets[:, 2] = indices
        group: list[Row] = []
        for row in itertools.chain.from_iterable(self._pipeline(tickets)):
            good = self._checked(*row)
            if good is None:
                continue
            if group and (len(group) == self.plan.batch_size or group[0][1].shape != good[1].shape):
                yield _stack(group)
                group = []
            group.append(good)
        if group:
            yield _stack(group)

    def tickets(self, epoch: int, start_step: int = 0) -> np.ndarray:
        """This rank's samples of an epoch, in order: int64 rows of (epoch, pass, sample index)."""
        plan, total = self.plan, self.steps_per_epoch * self.plan.batch_size * self.plan.size
        passes = math.ceil(total / self.num_samples)
        # What the last global batch lacks is taken from the start of one more pass.
        order = np.concatenate([np.random.default_rng((plan.seed, _ORDER, epoch, p)).permutation(self.num_samples)
                                for p in range(passes)])[:total]
        numbers = np.arange(total) // self.num_samples
        rows = np.stack([np.full(total, epoch), numbers, order], axis=1)
        rows = rows.reshape(self.steps_per_epoch, plan.size, plan.batch_size, 3)
        return rows[start_step:, plan.rank].reshape(-1, 3)

    def _batches(self, epoch: int, start_step: int) -> Iterator[list]:
        """Batches from there on, epoch after epoch without end."""
        left = self.steps_per_epoch - start_step
        current = self._pipeline(self.tickets(epoch, start_step))
        while True:
            following = None
            while left:
                if left <= _LOOKAHEAD and following is None:
                    following = self._pipeline(self.tickets(epoch + 1))
                yield next(current)
                left -= 1
            epoch, current, left = epoch + 1, following, self.steps_per_epoch

    def _pipeline(self, tickets: np.ndarray) -> _Pipeline:
        return _Pipeline(self.source, tickets, self._decode, self.plan)

    def _decode(self, name: str, ticket: np.ndarray, data: np.ndarray, label: np.ndarray) -> Row:
        """Decodes, checks and augments one sample; runs in a thread."""
        epoch, number, index = (int(v) for v in ticket)
        image_name, label_name = self.source.describe(index, name)
        pixels = decode_image(data, image_name)
        values = decode_checked_label(label, label_name, self.table)
        check_sizes(pixels, values, image_name)
        if self.transform is None:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if self.plan.rgb else pixels
            return name, pixels, cv2.LUT(values, self.table)
        seed = (self.plan.seed, _AUGMENT, epoch, number, zlib.crc32(name.encode()))
        return name, *self.transform(pixels, values, np.random.default_rng(seed))

    def _checked(self, ticket: np.ndarray, result: Row | Exception) -> Row | None:
        """The row; or raises its error, or notes it and returns ``None`` if broken samples are to be skipped."""
        if not isinstance(result, Exception):
            return result
        if not self.plan.skip_errors or not isinstance(result, DataError):
            raise result
        index = int(ticket[2])
        if index not in self.skipped:
            self.skipped[index] = str(result)
            _LOG.warning("skipped sample %d: %s", len(self.skipped), result)
        return None

    def _replacement(self, ticket: np.ndarray) -> Row:
        """Another sample, drawn from nothing but the seed and the ticket of the broken one."""
        rng = np.random.default_rng((self.plan.seed, _REPLACE, *(int(v) for v in ticket)))
        for attempt in range(1, _REPLACE_TRIES + 1):
            other = [ticket[0], ticket[1] + attempt * 1_000_000, rng.integers(self.num_samples)]
            row = self._checked(*next(self._pipeline(np.array([other], np.int64)))[0])
            if row is not None:
                return row
        raise DataError(f"{_REPLACE_TRIES} samples drawn in place of a broken one are broken too ({len(self.skipped)} "
                        "found so far); run tools/check_dataset.py")


def _stack(rows: list[Row]) -> Batch:
    return {"image": np.stack([image for _, image, _ in rows]), "label": np.stack([label for _, _, label in rows]),
            "names": [name for name, _, _ in rows]}


def train_transform(data: Mapping, table: np.ndarray) -> TrainTransform:
    """Builds the training transform from a configuration's ``data`` section and a label table."""
    pair = tuple
    if data["resize"]:
        geometry = CropResize(pair(data["resize"]), pair(data["crop_ratio"]) if data["crop_ratio"] else None,
                              data["crop_prob"])
    else:
        geometry = ScaleCrop(pair(data["crop_size"]), pair(data["scale_range"]), data["scale_base"],
                             data["scale_side"], data["scale_step"], data["cat_max_ratio"])
    jitters = [PHOTOMETRIC] if data["photometric"] else []
    if data["color_jitter"]:
        jitters.append(color_jitter(data["color_jitter"]))
    rgb = data["color_order"] == "RGB"
    mean = [min(255, max(0, round(m * 255 / data["value_range"]))) for m in data["mean"]]
    return TrainTransform(geometry, table, pair(mean[::-1] if rgb else mean), data["flip_prob"], data["blur_prob"],
                          pair(jitters), rgb)


def create_dataset(cfg: Mapping, split: str, rank: int = 0, size: int = 1, batch_size: int | None = None) -> Loader:
    """Makes the loader of the training or the evaluation split.

    Args:
        cfg: The configuration; its ``data`` and ``runtime.seed`` are read.
        split: ``train`` (shuffled, augmented, padded to whole batches) or ``eval`` (each image once, as it is).
        rank: This process, 0..size-1.
        size: Number of processes.
        batch_size: Samples a batch on this rank; default ``train.global_batch / size`` or ``eval.batch_size``.

    Returns:
        The loader: ``epoch(e, start_step)`` for training, ``samples()`` for evaluation.

    Raises:
        DataError: The split cannot be found or read.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split must be 'train' or 'eval', not '{split}'")
    data, train = cfg["data"], split == "train"
    info = datasets.dataset_info(data)
    record = data["mindrecord" if train else "eval_mindrecord"]
    source = RecordSource(record) if record else FolderSource(datasets.list_samples(data, split))
    if batch_size is None:
        batch_size = max(1, cfg["train"]["global_batch"] // size) if train else cfg["eval"]["batch_size"]
    plan = Plan(batch_size, rank, size, cfg["runtime"]["seed"], data["repeat"], data["num_workers"], data["prefetch"],
                data["on_error"] == "skip", data["color_order"] == "RGB")
    table = choose_table(info, source, data["label_file"])
    return Loader(source, info, table, train_transform(data, table) if train else None, plan)


def choose_table(info: DatasetInfo, source: FolderSource | RecordSource, label_file: str = "auto") -> np.ndarray:
    """The table from label values to train ids; for Cityscapes a few labels are read to tell ids from train ids."""
    if info.name != "cityscapes":
        return info.label_table()
    if label_file == "auto":
        indices = np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(int))
        label_file = datasets.cityscapes_encoding(_probe(source, indices), source.describe(0, "")[1])
    return info.label_table() if label_file == "labelIds" else datasets.train_id_table(len(info.classes))


def _probe(source: FolderSource | RecordSource, indices: Sequence[int]) -> Iterator[np.ndarray]:
    for index in indices:
        row = next(iter(source.rows([int(index)]).create_dict_iterator(num_epochs=1, output_numpy=True)))
        try:
            yield decode_label_values(as_bytes(row["label"]), "")
        except DataError:
            continue        # its turn to be reported comes when it is used
