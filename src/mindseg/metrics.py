"""Segmentation metrics from one confusion matrix, by the rules of cityscapesScripts."""
from collections.abc import Iterable

import numpy as np

from mindseg.comm import all_reduce_sum
from mindseg.errors import DataError


class ConfusionMatrix:
    """Pixel counts by (truth, prediction), summed over any number of images.

    The IoU of a class is TP / (TP + FP + FN). A class is absent, and not part of the mean, only if TP + FP + FN = 0;
    a class that is predicted but never labelled counts as 0, as in evalPixelLevelSemanticLabeling of cityscapesScripts.

    Args:
        num_classes: Number of classes, at most 255.
        ignore: Label value of ignored pixels, 0..255.
    """

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        self.matrix = np.zeros((num_classes, num_classes), np.int64)

    def update(self, pred: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Adds one image or batch.

        Args:
            pred: Predicted class ids, any integer dtype, values in [0, num_classes).
            label: Label ids of the same shape, values in [0, num_classes) or ``ignore``.

        Returns:
            (num_classes, num_classes) int64, the counts of this call alone.

        Raises:
            DataError: Shapes differ, or a value is out of range.
        """
        if pred.shape != label.shape:
            raise DataError(f"prediction {pred.shape} and label {label.shape} differ in size")
        n = self.num_classes
        # One histogram over all 65536 pairs of bytes counts the pixels and finds the values out of range.
        pairs = np.multiply(_as_bytes(label, "label").ravel(), np.uint16(256), dtype=np.uint16)
        pairs |= _as_bytes(pred, "prediction").ravel()
        counts = np.bincount(pairs, minlength=65536).reshape(256, 256)
        counts[self.ignore] = 0
        if counts[n:].any():
            value = n + int(np.flatnonzero(counts[n:].any(1))[0])
            raise DataError(f"label value {value} is neither one of the {n} classes nor the ignore id {self.ignore}")
        if counts[:, n:].any():
            value = n + int(np.flatnonzero(counts[:, n:].any(0))[0])
            raise DataError(f"predicted id {value}, but there are {n} classes")
        counts = counts[:n, :n]
        self.matrix += counts
        return counts

    def reduce(self) -> None:
        """Sums the matrix over all ranks, in place."""
        self.matrix = all_reduce_sum(self.matrix)

    def compute(self) -> dict:
        """Computes the scores of everything added so far.

        Returns:
            Scores from 0 to 1: ``miou`` (float, mean over the present classes, NaN if there is none), ``iou`` (list of
            float, NaN for an absent class), ``pixel_accuracy`` (float), ``class_accuracy`` (list of float) and
            ``fwiou`` (float, frequency-weighted IoU); and ``present`` (int, number of classes with TP + FP + FN > 0)
            and ``confusion`` (list of lists of int).
        """
        matrix = self.matrix.astype(np.float64)
        hit, truth, guess = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        union = truth + guess - hit
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = np.where(union > 0, hit / union, np.nan)
            accuracy = np.where(truth > 0, hit / truth, np.nan)
        total = truth.sum()
        present = union > 0
        return {
            "miou": float(iou[present].mean()) if present.any() else float("nan"),
            "iou": iou.tolist(),
            "pixel_accuracy": float(hit.sum() / total) if total else float("nan"),
            "class_accuracy": accuracy.tolist(),
            "fwiou": float(np.nansum(iou * truth) / total) if total else float("nan"),
            "present": int(present.sum()),
            "confusion": self.matrix.tolist(),
        }


class InstanceCounts:
    """True positives and misses weighted by instance size, for the iIoU of Cityscapes (arXiv 1604.01685, section 4.2).

    Every labelled instance has the weight of an instance of mean size, so large objects do not hide small ones. Counts
    have the unit 2**-30 pixel, because sums of whole numbers do not depend on the order of images or ranks.

    Args:
        official: Official label id of each class, by train id.
        sizes: Mean size of an instance in pixels, by train id, for the classes that have instances.
        groups: Train ids of each category, by its name.
    """

    UNIT = 2.0**30

    def __init__(self, official: tuple[int, ...], sizes: dict[int, float], groups: dict[str, tuple[int, ...]]) -> None:
        self.sizes = sizes
        self.groups = groups
        self.group_of = np.full(256, 255, np.uint8)
        for number, ids in enumerate(groups.values()):
            self.group_of[list(ids)] = number
        self.class_of = np.full(256, 255, np.uint8)
        for index in sizes:
            self.class_of[official[index]] = index
        self.counts = np.zeros((2, len(official), 2), np.int64)  # (class or category, train id, hit or missed)

    def update(self, pred: np.ndarray, instances: np.ndarray) -> None:
        """Adds one image.

        Args:
            pred: Predicted train ids, (H, W) uint8.
            instances: Official instance ids, (H, W) integer: label id * 1000 + number; values up to 1000 are no
                instances.

        Raises:
            DataError: The sizes differ.
        """
        if pred.shape != instances.shape:
            raise DataError(f"prediction {pred.shape} and instance ids {instances.shape} differ in size")
        inside = np.flatnonzero(instances > 1000)
        values, guess = instances.ravel()[inside], pred.ravel()[inside]
        truth = self.class_of[values // 1000]
        sizes = np.bincount(values)
        hits = (np.bincount(values[truth == guess], minlength=len(sizes)),
                np.bincount(values[self.group_of[truth] == self.group_of[guess]], minlength=len(sizes)))
        for value in np.flatnonzero(sizes):
            index, size = int(self.class_of[value // 1000]), int(sizes[value])
            if index not in self.sizes:
                continue  # caravans and trailers have instances but no class of the benchmark
            weight = self.sizes[index] / size * self.UNIT
            for kind, hit in enumerate(hits):
                self.counts[kind, index] += (round(hit[value] * weight), round((size - hit[value]) * weight))

    def reduce(self) -> None:
        """Sums the counts over all ranks, in place."""
        self.counts = all_reduce_sum(self.counts)

    def compute(self, confusion: np.ndarray) -> dict:
        """Computes the iIoU of the classes and categories that have instances; false positives count as pixels.

        Args:
            confusion: :attr:`ConfusionMatrix.matrix` of the same images.

        Returns:
            ``iiou`` (list of float by train id, NaN without instances), ``miiou`` (float), ``category_iiou`` (dict of
            float by category) and ``mean_category_iiou`` (float), all from 0 to 1.
        """
        wrong = confusion.sum(0) - np.diag(confusion)
        iiou = [self._ratio(self.counts[0, i], wrong[i]) if i in self.sizes else float("nan")
                for i in range(len(confusion))]
        categories = {}
        for name, ids in self.groups.items():
            if all(i in self.sizes for i in ids):
                outside = np.setdiff1d(np.arange(len(confusion)), ids)
                categories[name] = self._ratio(self.counts[1, list(ids)].sum(0), confusion[np.ix_(outside, ids)].sum())
        return {"iiou": iiou, "miiou": _mean(iiou), "category_iiou": categories,
                "mean_category_iiou": _mean(categories.values())}

    def _ratio(self, counts: np.ndarray, wrong: int) -> float:
        hit, missed = counts / self.UNIT
        return float(hit / (hit + missed + wrong)) if hit + missed + wrong else float("nan")


class Reliability:
    """Counts of right and wrong pixels by confidence.

    The expected calibration error is the mean over pixels of |accuracy - mean confidence| of their bin, with 15 bins of
    equal width, (b / 15, (b + 1) / 15] (Guo et al. 2017, arXiv 1706.04599, equation 3). Confidence has 256 levels, so
    512 counts are all that a data set needs.

    Args:
        ignore: Label value of ignored pixels.
    """

    BINS = 15       # 17 levels each

    def __init__(self, ignore: int = 255) -> None:
        self.ignore = ignore
        self.counts = np.zeros((256, 2), np.int64)      # (level, wrong or right)

    def update(self, confidence: np.ndarray, pred: np.ndarray, label: np.ndarray) -> None:
        """Adds pixels.

        Args:
            confidence: uint8, 255 times the probability of the predicted class.
            pred: Predicted class ids, of the same shape.
            label: Class ids or ``ignore``, of the same shape.
        """
        places = np.multiply(confidence, 2, dtype=np.uint16) + (pred == label)
        self.counts += np.bincount(places[label != self.ignore], minlength=512).reshape(256, 2)

    def reduce(self) -> None:
        """Sums the counts over all ranks, in place."""
        self.counts = all_reduce_sum(self.counts)

    def compute(self) -> dict:
        """Computes the error.

        Returns:
            ``ece`` (0..1, NaN without pixels) and ``reliability``: for each bin with pixels their mean confidence and
            accuracy (0..1) and their number.
        """
        levels = np.arange(256)
        bins = np.maximum(levels - 1, 0) // (255 // self.BINS)
        pixels = np.bincount(bins, self.counts.sum(1))
        right = np.bincount(bins, self.counts[:, 1])
        confidence = np.bincount(bins, self.counts.sum(1) * (levels / 255))
        total = pixels.sum()
        rows = [[float(confidence[b] / pixels[b]), float(right[b] / pixels[b]), int(pixels[b])]
                for b in np.flatnonzero(pixels)]
        return {"ece": float(abs(right - confidence).sum() / total) if total else float("nan"), "reliability": rows}


class RunningMean:
    """Mean over pixels, summed in units of 2**-20 so that it does not depend on the order of images or ranks."""

    UNIT = 2.0**20

    def __init__(self) -> None:
        self.sums = np.zeros(2, np.int64)

    def update(self, total: float, count: int) -> None:
        """Adds values.

        Args:
            total: Sum of the values, at least 0.
            count: Number of the values.
        """
        self.sums += (round(total * self.UNIT), count)

    def reduce(self) -> None:
        """Sums over all ranks, in place."""
        self.sums = all_reduce_sum(self.sums)

    def compute(self) -> float:
        """Computes the mean, NaN if nothing was added."""
        return float(self.sums[0] / self.UNIT / self.sums[1]) if self.sums[1] else float("nan")


def category_iou(confusion: np.ndarray, groups: dict[str, tuple[int, ...]]) -> dict:
    """Computes the IoU of categories as in cityscapesScripts; confusions within a category count as correct.

    Args:
        confusion: (num_classes, num_classes) pixel counts by (truth, prediction).
        groups: Class ids of each category, by its name.

    Returns:
        ``category_iou`` (dict of float by category, NaN for an absent one) and ``mean_category_iou`` (float).
    """
    scores = {}
    for name, ids in groups.items():
        hit = int(confusion[np.ix_(ids, ids)].sum())
        union = int(confusion[list(ids)].sum() + confusion[:, list(ids)].sum()) - hit
        scores[name] = hit / union if union else float("nan")
    return {"category_iou": scores, "mean_category_iou": _mean(scores.values())}


def _mean(values: Iterable[float]) -> float:
    valid = [value for value in values if not np.isnan(value)]
    return float(np.mean(valid)) if valid else float("nan")


_SUMMARY = {"mean_category_iou": "category IoU", "miiou": "iIoU", "mean_category_iiou": "category iIoU"}


def format_table(scores: dict, classes: tuple[str, ...]) -> str:
    """Formats the scores as the table per class that every program prints.

    Args:
        scores: Result of :meth:`ConfusionMatrix.compute`, and of :meth:`InstanceCounts.compute` if there is one.
        classes: Class names, by train id.

    Returns:
        The lines of the table, in percent.
    """
    width = max(len(name) for name in (*classes, "pixel accuracy"))
    rows = [f"{'class':<{width}}  IoU (%)  accuracy (%)"]
    for name, iou, accuracy in zip(classes, scores["iou"], scores["class_accuracy"], strict=True):
        rows.append(f"{name:<{width}}  {_percent(iou)}  {_percent(accuracy):>12}")
    present = f"{scores['present']} of {len(classes)} classes present"
    rows.append(f"{'mIoU':<{width}}  {_percent(scores['miou'])}  ({present})")
    rows.append(f"{'pixel accuracy':<{width}}  {_percent(scores['pixel_accuracy'])}")
    for key, name in _SUMMARY.items():
        if key in scores:
            rows.append(f"{name:<{width}}  {_percent(scores[key])}")
    # Averages hide that a network has learnt the common classes only.
    counts = np.asarray(scores["confusion"])
    missed = [name for name, truth, guess in zip(classes, counts.sum(1), counts.sum(0), strict=True)
              if truth and not guess]
    if missed:
        rows.append(f"never predicted: {', '.join(missed)}")
    return "\n".join(rows)


def _percent(value: float) -> str:
    return " absent" if np.isnan(value) else f"{100 * value:7.2f}"


def _as_bytes(ids: np.ndarray, what: str) -> np.ndarray:
    if ids.dtype == np.uint8:
        return ids
    if ids.size and (ids.min() < 0 or ids.max() > 255):
        raise DataError(f"{what} values run from {ids.min()} to {ids.max()}; class ids are 0 to 255")
    return ids.astype(np.uint8)
