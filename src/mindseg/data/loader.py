"""Batches from folders or MindRecord files, the same ones for any number of workers, ranks and restarts.

The order of an epoch is a permutation drawn from (seed, epoch), and the randomness of a sample is drawn from
(seed, epoch, sample), so a batch depends on nothing but its position.
"""
import itertools
import logging
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from mindseg.comm import cores_of_rank
from mindseg.data.augment import create_augmentation
from mindseg.data.datasets import DatasetInfo, check_classes, dataset_info
from mindseg.data.decode import check_sizes, decode_checked_label, decode_image, decode_image_rows
from mindseg.data.pipeline import LoaderOptions, Pipeline
from mindseg.data.sources import Source, choose_lut, open_source
from mindseg.data.transforms import PHOTOMETRIC, CropResize, ScaleCrop, TrainTransform, Window, color_jitter
from mindseg.errors import DataError

_LOG = logging.getLogger("mindseg.data")      # below the project's logger, whose files show it too
_LOOKAHEAD = 4         # batches before the end of an epoch at which the next one is started, so that there is no gap
_ORDER, _AUGMENT, _REPLACE = 1, 2, 3      # keeps the random streams apart
_REPLACE_TRIES = 20
MOST_WORKERS = 16     # of `data.num_workers: auto`

Row = tuple[str, np.ndarray, np.ndarray]      # name, image, label
Batch = dict[str, object]


@dataclass(frozen=True)
class _Decoder:
    """Decodes, checks and augments one sample, in a thread.

    It must not hold the loader, which holds the pipelines that hold it: see ``mindseg.data.pipeline``.
    """
    source: Source
    lut: np.ndarray
    transform: TrainTransform | None
    options: LoaderOptions
    early: tuple[tuple[int, TrainTransform], ...]

    def __call__(self, name: str, sample_index: np.ndarray, data: np.ndarray, label: np.ndarray) -> Row:
        epoch, repeat, index = (int(v) for v in sample_index)
        image_name, label_name = self.source.describe(index, name)
        values = decode_checked_label(label, label_name, self.lut)
        if self.transform is None:
            pixels = decode_image(data, image_name)
            check_sizes(pixels.shape, values.shape, image_name, data)
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if self.options.rgb else pixels
            return name, pixels, cv2.LUT(values, self.lut)

        def decode_window(window: Window) -> np.ndarray:
            rows, size = decode_image_rows(data, image_name, window.top, window.top + window.height)
            check_sizes(size, values.shape, image_name, data)
            return rows[:, window.left:window.left + window.width]

        seed = (self.options.seed, _AUGMENT, epoch, repeat, zlib.crc32(name.encode()))
        transform = next((early for end, early in self.early if epoch < end), self.transform)
        return name, *transform(decode_window, values, np.random.default_rng(seed))


class Loader:
    """Batches of one split; made by :func:`create_loader`.

    Args:
        source: Encoded samples.
        info: Data set.
        lut: Label LUT, uint8 (256,).
        transform: Training transform; ``None``: evaluation, images and labels stay as they are.
        options: Options.
        early: Transforms of the first epochs: each with the number of the epoch that no longer has it, in order.

    Attributes:
        info: Data set.
        num_samples: Samples of the split, over all ranks.
        steps_per_epoch: Training: batches in an epoch, equal on all ranks. Evaluation: samples this rank sees.
        skipped: Errors of the samples that were left out (``data.on_error=skip``), by their number.
    """

    def __init__(self, source: Source, info: DatasetInfo, lut: np.ndarray, transform: TrainTransform | None,
                 options: LoaderOptions, early: tuple[tuple[int, TrainTransform], ...] = ()) -> None:
        self.source, self.info, self.transform, self.options = source, info, transform, options
        self._decode = _Decoder(source, lut, transform, options, early)
        self.num_samples = len(source)
        if transform is None:
            self.steps_per_epoch = len(range(options.rank, self.num_samples, options.size))
        else:
            self.steps_per_epoch = options.steps_per_epoch(self.num_samples)
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
            self._position = None       # leaving this loop early makes the next call start a new stream
            rows = [self._checked(*row) or self._replacement(row[0]) for row in next(self._stream)]
            self._position = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            if step + 1 == self.steps_per_epoch:        # before the batch: a run may end with it
                self._report_skipped(f"epoch {epoch + 1}")
            yield _stack(rows)

    def samples(self) -> Iterator[Batch]:
        """Evaluation batches of this rank's share of the split; every image comes once over all ranks.

        Yields:
            Batches as in :meth:`epoch`, at the original sizes: successive images of one size, ``batch_size`` at most.

        Raises:
            DataError: A sample is broken.
        """
        indices = np.arange(self.options.rank, self.num_samples, self.options.size)
        if not indices.size:
            return
        group: list[Row] = []
        for result in itertools.chain.from_iterable(self._pipeline(indices)):
            row = self._checked(*result)
            if row is None:
                continue
            if group and (len(group) == self.options.batch_size or group[0][1].shape != row[1].shape):
                yield _stack(group)
                group = []
            group.append(row)
        if group:
            yield _stack(group)
        self._report_skipped("evaluation")

    def sample_indices(self, epoch: int, start_step: int = 0) -> np.ndarray:
        """Draws this rank's samples of an ``epoch`` from batch ``start_step`` on, in order.

        Returns:
            int64 (N, 3): epoch, pass over the data, and number of the sample in the source.
        """
        options, total = self.options, self.steps_per_epoch * self.options.batch_size * self.options.size
        passes = math.ceil(total / self.num_samples)
        # One more pass fills the last global batch.
        order = np.concatenate([np.random.default_rng((options.seed, _ORDER, epoch, p)).permutation(self.num_samples)
                                for p in range(passes)])[:total]
        numbers = np.arange(total) // self.num_samples
        rows = np.stack([np.full(total, epoch), numbers, order], axis=1)
        rows = rows.reshape(self.steps_per_epoch, options.size, options.batch_size, 3)
        return rows[start_step:, options.rank].reshape(-1, 3)

    def _batches(self, epoch: int, start_step: int) -> Iterator[list]:
        """Batches from one step on, epoch after epoch without end."""
        current, left = self._pipeline(self.sample_indices(epoch, start_step)), self.steps_per_epoch - start_step
        for following_epoch in itertools.count(epoch + 1):
            yield from itertools.islice(current, max(0, left - _LOOKAHEAD))
            following = self._pipeline(self.sample_indices(following_epoch))
            yield from itertools.islice(current, min(left, _LOOKAHEAD))
            current, left = following, self.steps_per_epoch

    def _pipeline(self, sample_indices: np.ndarray) -> Pipeline:
        return Pipeline(self.source, sample_indices, self._decode, self.options)

    def _checked(self, sample_index: np.ndarray, result: Row | Exception) -> Row | None:
        """Returns the row, or ``None`` for a broken sample that is skipped; raises the error of any other."""
        if not isinstance(result, Exception):
            return result
        if not self.options.skip_errors or not isinstance(result, DataError):
            raise result
        index = int(sample_index[2])
        if index not in self.skipped:
            self.skipped[index] = str(result)
            _LOG.warning("skipped sample %d: %s", len(self.skipped), result)
        return None

    def _report_skipped(self, where: str) -> None:
        if self.skipped:
            _LOG.warning("%s: %d of %d samples skipped so far (data.on_error=skip); mindseg check-dataset lists all",
                         where, len(self.skipped), self.num_samples)

    def _replacement(self, sample_index: np.ndarray) -> Row:
        """Draws another sample, from nothing but the seed and the index of the broken one."""
        rng = np.random.default_rng((self.options.seed, _REPLACE, *(int(v) for v in sample_index)))
        for attempt in range(1, _REPLACE_TRIES + 1):
            other = [sample_index[0], sample_index[1] + attempt * 1_000_000, rng.integers(self.num_samples)]
            row = self._checked(*next(self._pipeline(np.array([other], np.int64)))[0])
            if row is not None:
                return row
        raise DataError(f"{_REPLACE_TRIES} samples drawn in place of a broken one are broken too ({len(self.skipped)} "
                        "found so far); run mindseg check-dataset")


def _stack(rows: list[Row]) -> Batch:
    names, images, labels = zip(*rows, strict=True)
    return {"image": np.stack(images), "label": np.stack(labels), "names": list(names)}


def train_transform(data: Mapping, lut: np.ndarray) -> TrainTransform:
    """Builds the training transform.

    Args:
        data: Section ``data`` of a configuration.
        lut: Label LUT, uint8 (256,).
    """
    if data["resize"]:
        ratio = tuple(data["crop_ratio"]) if data["crop_ratio"] else None
        geometry = CropResize(tuple(data["resize"]), ratio, data["crop_prob"])
    else:
        geometry = ScaleCrop(tuple(data["crop_size"]), tuple(data["scale_range"]), data["scale_base"],
                             data["scale_side"], data["scale_step"], data["cat_max_ratio"])
    jitters = [PHOTOMETRIC] if data["photometric"] else []
    if data["color_jitter"]:
        jitters.append(color_jitter(data["color_jitter"]))
    rgb = data["color_order"] == "RGB"
    mean = [min(255, max(0, round(m * 255 / data["value_range"]))) for m in data["mean"]]
    fill = tuple(mean[::-1] if rgb else mean)
    augment = None if data["augment"] is None else create_augmentation(data["augment"], fill)
    return TrainTransform(geometry, lut, fill, data["flip_prob"], data["blur_prob"], tuple(jitters), rgb, augment)


def crop_phases(data: Mapping) -> list[tuple[float, tuple[int, int]]]:
    """Training sizes of a run in order: the share of its epochs at which each ends (the last: 1), height and width.

    Args:
        data: Section ``data`` of a configuration.
    """
    early = [(float(phase["until"]), tuple(phase["crop_size"])) for phase in data["crop_schedule"] or ()]
    return [*early, (1.0, tuple(data["resize"] or data["crop_size"]))]


def _early_transforms(cfg: Mapping, lut: np.ndarray, steps_per_epoch: int) -> tuple[tuple[int, TrainTransform], ...]:
    """Training transforms of ``data.crop_schedule``, each with the number of the epoch that no longer has it."""
    steps, data = cfg["train"]["steps"], cfg["data"]
    epochs = math.ceil(steps / steps_per_epoch) if steps else cfg["train"]["epochs"]
    return tuple((round(share * epochs), train_transform({**data, "crop_size": size}, lut))
                 for share, size in crop_phases(data)[:-1])


def create_loader(cfg: Mapping, split: str, rank: int = 0, size: int = 1, batch_size: int | None = None) -> Loader:
    """Makes the loader of the training or the evaluation split.

    Args:
        cfg: Configuration.
        split: ``train`` (shuffled, augmented, padded to whole batches) or ``eval`` (each image once, as it is).
        rank: This process, 0..size-1.
        size: Number of processes.
        batch_size: Samples a batch on this rank; default ``train.global_batch / size`` or ``eval.batch_size``.

    Returns:
        The loader: ``epoch(e, start_step)`` for training, ``samples()`` for evaluation.

    Raises:
        ConfigError: The network has not as many classes as the data set.
        DataError: The split cannot be found or read.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split must be 'train' or 'eval', not '{split}'")
    check_classes(cfg)
    data, train = cfg["data"], split == "train"
    info, source = dataset_info(data), open_source(data, split)
    if batch_size is None:
        batch_size = max(1, cfg["train"]["global_batch"] // size) if train else cfg["eval"]["batch_size"]
    workers = data["num_workers"]
    if workers == "auto":
        workers = min(cores_of_rank(size), MOST_WORKERS)
    options = LoaderOptions(batch_size, rank, size, cfg["runtime"]["seed"], data["repeat"], workers,
                            data["prefetch"], data["on_error"] == "skip", data["color_order"] == "RGB")
    lut = choose_lut(info, source, data["label_file"])
    if not train:
        return Loader(source, info, lut, None, options)
    early = _early_transforms(cfg, lut, options.steps_per_epoch(len(source)))
    return Loader(source, info, lut, train_transform(data, lut), options, early)
