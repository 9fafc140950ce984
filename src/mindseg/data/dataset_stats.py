"""Statistics of a split, for check-dataset and class-weights: every sample is read once, on all cores."""
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import cv2
import numpy as np
from tqdm import tqdm

from mindseg.data.datasets import dataset_info, list_samples
from mindseg.data.decode import check_sizes, decode_image, decode_label_values
from mindseg.data.labels import IGNORE, UNMAPPED, describe_unmapped, has_unmapped
from mindseg.data.pipeline import LoaderOptions, Pipeline
from mindseg.data.sources import FolderSource, RecordSource, Source, choose_lut
from mindseg.errors import DataError


@dataclass
class SampleStats:
    """Statistics of one sample.

    Attributes:
        name: Name of the sample.
        error: Reason why it cannot be used, or ``None``.
        values: Pixels of each label value 0..255, int64 (256,); zeros if the label cannot be read.
        size: Width and height, or ``None``.
        sums: Pixels, sum and sum of squares of R, G and B, float64 (3, 3), or ``None``.
        digest: SHA-1 of the image file.
        fingerprint: See :func:`fingerprint`, or ``None``.
    """
    name: str
    error: str | None = None
    values: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    size: tuple[int, int] | None = None
    sums: np.ndarray | None = None
    digest: bytes = b""
    fingerprint: np.ndarray | None = None


def _measure(source: Source, lut: np.ndarray, images: bool, name: str, sample_index: np.ndarray, data: np.ndarray,
             label: np.ndarray) -> SampleStats:
    """Measures one sample, in a thread of the pipeline."""
    image_name, label_name = source.describe(int(sample_index[2]), name)
    stats = SampleStats(name)
    try:
        values = decode_label_values(label, label_name)
        stats.values = np.bincount(values.ravel(), minlength=256)
        stats.size = values.shape[1], values.shape[0]
        if images:
            pixels = decode_image(data, image_name)
            check_sizes(pixels.shape, values.shape, image_name, data)
            stats.sums, stats.digest = _sums(pixels), hashlib.sha1(data, usedforsecurity=False).digest()
            stats.fingerprint = fingerprint(pixels)
        if has_unmapped(values, lut):
            raise DataError(f"{label_name}: {describe_unmapped(stats.values, lut)}")
    except DataError as error:
        stats.error = str(error)
    return stats


def fingerprint(pixels: np.ndarray) -> np.ndarray:
    """Bits by which pictures are recognised after compression or resizing: does each of 16x16 cells outshine the next?

    Args:
        pixels: uint8 (H, W, 3).

    Returns:
        uint8 (32,), 256 bits.
    """
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), (17, 16), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1])


def near_twins(prints: np.ndarray, others: np.ndarray, most: int = 16) -> list[tuple[int, int]]:
    """Pairs of pictures that are nearly the same.

    Args:
        prints: Fingerprints, uint8 (N, 32).
        others: Fingerprints, uint8 (M, 32).
        most: Bits in which a pair may differ. JPEG compression and resizing change up to 10 of CamVid's, and frames of
            different videos differ in 79 at least.

    Returns:
        Numbers of each picture of ``prints`` and of its nearest one in ``others``.
    """
    bits = np.array([bin(value).count("1") for value in range(256)], np.uint16)
    pairs = []
    for i, own in enumerate(prints):
        distances = bits[others ^ own].sum(1)
        if distances.size and distances.min() <= most:
            pairs.append((i, int(distances.argmin())))
    return pairs


def _sums(pixels: np.ndarray) -> np.ndarray:
    # Sums over a histogram: exact, and ten times faster than float arithmetic on the pixels.
    counts = np.stack([np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in (2, 1, 0)])
    return counts @ np.arange(256.0)[:, None] ** (0, 1, 2)


def class_weights(pixels: np.ndarray, image_pixels: np.ndarray, method: str, c: float = 1.02,
                  power: float = 1.0) -> np.ndarray:
    """Computes weights against class imbalance.

    Args:
        pixels: Labelled pixels of each class, (C,).
        image_pixels: Labelled pixels, of all classes, in the images that hold the class, (C,).
        method: ``enet``: 1 / ln(c + p) with the class's share p of the labelled pixels (Paszke et al. 2016).
            ``median``: median(f) / f with f the share in the images that hold the class (Eigen and Fergus 2015).
            ``inverse``: 1 / (C p), so that all classes weigh the same in sum.
        c: Constant of ``enet``, above 1.
        power: Exponent of the weights, above 0.

    Returns:
        float64 (C,). A class without pixels gets 0 with ``median`` and ``inverse``.

    Raises:
        DataError: No labelled pixel, or ``c`` is not above 1.
    """
    if not pixels.sum():
        raise DataError("the split has no labelled pixel; run mindseg check-dataset")
    if method == "enet":
        if c <= 1:
            raise DataError(f"c = {c}: 1 / ln(c + p) needs c above 1")
        return np.log(c + pixels / pixels.sum()) ** -power
    if method == "median":
        share = pixels / np.maximum(image_pixels, 1)
        weight = np.median(share[pixels > 0]) / np.where(pixels > 0, share, 1)
    else:
        weight = pixels.sum() / (len(pixels) * np.maximum(pixels, 1))
    return np.where(pixels > 0, weight, 0.0) ** power


class DatasetStats:
    """Statistics of a split; broken samples are listed, not raised.

    Args:
        source: Encoded samples, which are read with a progress bar.
        lut: Label LUT, uint8 (256,).
        images: Read the images too; labels alone take a fifth of the time.

    Attributes:
        samples: Number of samples.
        errors: One line for each broken sample.
        values: Pixels of each label value, int64 (256,).
        images_with: Samples that hold each label value, int64 (256,).
        class_pixels: Pixels of each train id, int64 (256,).
        image_pixels: Labelled pixels, of all classes, in the samples that hold each train id, int64 (256,).
        sizes: Samples of each (width, height).
        void: (share of ignored pixels, name) of every readable sample.
        digests: Names of the samples with each image.
        fingerprints: Fingerprint of each readable image by the name of its sample.
        mean_std: Mean and standard deviation of R, G, B over all pixels, 0..255.
    """

    def __init__(self, source: Source, lut: np.ndarray, images: bool = True) -> None:
        self.samples, self.errors = len(source), []
        self.values, self.images_with, self.class_pixels, self.image_pixels = np.zeros((4, 256), np.int64)
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.void: list[tuple[float, str]] = []
        self.digests: dict[bytes, list[str]] = {}
        self.fingerprints: dict[str, np.ndarray] = {}
        sums = np.zeros((3, 3))
        pipeline = Pipeline(source, np.arange(len(source)), partial(_measure, source, lut, images),
                            LoaderOptions(num_workers=os.cpu_count() or 1))
        for ((_, stats),) in tqdm(pipeline, total=len(source), desc="reading", unit="sample", disable=None):
            if isinstance(stats, Exception):
                raise stats
            if stats.error:
                self.errors.append(stats.error)
            classes = np.bincount(lut, weights=stats.values, minlength=256).astype(np.int64)
            self.values += stats.values
            self.images_with += stats.values > 0
            self.class_pixels += classes
            self.image_pixels += (classes > 0) * classes[:UNMAPPED].sum()
            if stats.size:
                self.sizes[stats.size] += 1
                self.void.append((classes[IGNORE] / classes.sum(), stats.name))
            if stats.sums is not None:
                sums += stats.sums
                self.digests.setdefault(stats.digest, []).append(stats.name)
                self.fingerprints[stats.name] = stats.fingerprint
        count, total, squares = np.maximum(sums[:, 0], 1), sums[:, 1], sums[:, 2]
        mean = total / count
        self.mean_std = mean, np.sqrt(np.maximum(squares / count - mean ** 2, 0))


def training_labels(data: Mapping) -> DatasetStats:
    """Statistics of the labels of the training split, whose images are not read.

    Args:
        data: Section ``data`` of a configuration.

    Raises:
        DataError: A label is broken, and ``data.on_error`` is not ``skip``.
    """
    if data["mindrecord"]:
        source = RecordSource(data["mindrecord"])
    else:
        # The label stands in for the image, which is a hundred times larger and not needed.
        source = FolderSource([replace(s, image=s.label or s.image) for s in list_samples(data, "train")])
    stats = DatasetStats(source, choose_lut(dataset_info(data), source, data["label_file"]), images=False)
    if stats.errors and data["on_error"] == "raise":
        raise DataError(stats.errors[0])
    return stats
