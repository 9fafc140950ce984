"""Looks at every sample of a split once, on all cores: what check_dataset and class_weights are made of."""
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mindseg.data.datasets import IGNORE
from mindseg.data.decode import check_sizes, decode_image, decode_label_values, describe_bad_values, has_unmapped
from mindseg.data.pipeline import FolderSource, LoaderOptions, Pipeline, RecordSource
from mindseg.errors import DataError


@dataclass
class SampleStats:
    """What one sample holds.

    Attributes:
        name: Its name.
        error: Why it cannot be used, or ``None``.
        values: Pixels of each label value 0..255, int64 (256,); zeros if the label cannot be read.
        size: Width and height, or ``None``.
        sums: Of the image: pixels, sum and sum of squares for R, G, B; float64 (3, 3).
        digest: Of the image file's bytes.
    """
    name: str
    error: str | None
    values: np.ndarray
    size: tuple[int, int] | None = None
    sums: np.ndarray | None = None
    digest: bytes = b""

    def classes(self, lut: np.ndarray) -> np.ndarray:
        """Pixels of each train id, int64 (256,); 255 = ignored."""
        return np.bincount(lut, weights=self.values, minlength=256).astype(np.int64)


def sample_stats(source: FolderSource | RecordSource, lut: np.ndarray, images: bool = True) -> Iterator[SampleStats]:
    """Looks at all samples, in order, with a progress bar; broken ones are reported, not raised.

    Args:
        source: Where the samples come from.
        lut: Label LUT, uint8 (256,).
        images: Look at the images too; labels alone take a fifth of the time.
    """
    def measure(name: str, sample_index: np.ndarray, data: np.ndarray, label: np.ndarray) -> SampleStats:
        image_name, label_name = source.describe(int(sample_index[2]), name)
        found = SampleStats(name, None, np.zeros(256, np.int64))
        try:
            values = decode_label_values(label, label_name)
            found.values = np.bincount(values.ravel(), minlength=256)
            found.size = values.shape[1], values.shape[0]
            if images:
                pixels = decode_image(data, image_name)
                check_sizes(pixels.shape, values.shape, image_name)
                found.sums, found.digest = _sums(pixels), hashlib.sha1(data, usedforsecurity=False).digest()
            if has_unmapped(values, lut):
                raise DataError(f"{label_name}: {describe_bad_values(found.values, lut)}")
        except DataError as error:
            found.error = str(error)
        return found

    sample_indices = np.zeros((len(source), 3), np.int64)
    sample_indices[:, 2] = np.arange(len(source))
    pipeline = Pipeline(source, sample_indices, measure, LoaderOptions(num_workers=os.cpu_count() or 1))
    for ((_, result),) in tqdm(pipeline, total=len(source), desc="reading", unit="sample", disable=None):
        if isinstance(result, Exception):
            raise result
        yield result


def _sums(pixels: np.ndarray) -> np.ndarray:
    # Sums over a histogram: exact, and ten times faster than float arithmetic on the pixels.
    levels = np.arange(256, dtype=np.float64)
    sums = np.empty((3, 3))
    for row, channel in enumerate((2, 1, 0)):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        sums[row] = counts.sum(), counts @ levels, counts @ levels ** 2
    return sums


def class_weights(pixels: np.ndarray, image_pixels: np.ndarray, method: str, c: float = 1.02) -> np.ndarray:
    """Weights against class imbalance.

    Args:
        pixels: Labelled pixels of each class, (C,).
        image_pixels: Labelled pixels, of all classes, in the images that hold the class, (C,).
        method: ``enet``: 1 / ln(c + p) with the class's share p of the labelled pixels (Paszke et al. 2016).
            ``median``: median(f) / f with f the share in the images that hold the class (Eigen and Fergus 2015).
            ``inverse``: 1 / (C p), so that all classes weigh the same in sum.
        c: Constant of ``enet``.

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
        return 1.0 / np.log(c + pixels / pixels.sum())
    if method == "median":
        share = pixels / np.maximum(image_pixels, 1)
        weight = np.median(share[pixels > 0]) / np.where(pixels > 0, share, 1)
    else:
        weight = pixels.sum() / (len(pixels) * np.maximum(pixels, 1))
    return np.where(pixels > 0, weight, 0.0)


def count_classes(source: FolderSource | RecordSource, lut: np.ndarray, num_classes: int) -> tuple[np.ndarray, ...]:
    """Counts what :func:`class_weights` needs.

    Returns:
        ``pixels`` and ``image_pixels``, both int64 (num_classes,).

    Raises:
        DataError: A label cannot be used.
    """
    pixels, image_pixels = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for found in sample_stats(source, lut, images=False):
        if found.error:
            raise DataError(found.error)
        counts = found.classes(lut)[:num_classes]
        pixels += counts
        image_pixels[counts > 0] += counts.sum()
    return pixels, image_pixels


@dataclass
class DatasetStats:
    """Findings of a split, added up.

    Attributes:
        samples: Number of samples.
        errors: One line each.
        values: Pixels of each label value, (256,).
        images_with: Samples that hold each label value, (256,).
        sizes: Samples of each (width, height).
        sums: As in :class:`SampleStats`.
        void: (share of ignored pixels, name) of every readable sample.
        digests: Names of the samples with each image.
    """
    samples: int
    errors: list[str]
    values: np.ndarray
    images_with: np.ndarray
    sizes: dict[tuple[int, int], int]
    sums: np.ndarray
    void: list[tuple[float, str]]
    digests: dict[bytes, list[str]]

    @property
    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of R, G, B over all pixels, 0..255."""
        count, total, squares = self.sums.T
        mean = total / np.maximum(count, 1)
        return mean, np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean ** 2, 0))


def collect_stats(source: FolderSource | RecordSource, lut: np.ndarray) -> DatasetStats:
    """Surveys a split and adds up."""
    total = DatasetStats(len(source), [], *np.zeros((2, 256), np.int64), {}, np.zeros((3, 3)), [], {})
    for found in sample_stats(source, lut):
        if found.error:
            total.errors.append(found.error)
        total.values += found.values
        total.images_with += found.values > 0
        if found.size:
            total.sizes[found.size] = total.sizes.get(found.size, 0) + 1
            total.void.append((found.classes(lut)[IGNORE] / found.values.sum(), found.name))
        if found.sums is not None:
            total.sums += found.sums
            total.digests.setdefault(found.digest, []).append(found.name)
    return total
