"""Segmentation metrics from one confusion matrix, by the rules of cityscapesScripts."""
import numpy as np

from src.errors import DataError


class ConfusionMatrix:
    """Pixel counts by (truth, prediction), summed over any number of images.

    IoU of a class is TP / (TP + FP + FN). A class is absent, and left out of the mean, only if TP + FP + FN = 0:
    one that is predicted but never labelled counts as 0, as in cityscapesScripts' evalPixelLevelSemanticLabeling.

    Args:
        num_classes: Classes that are scored, at most 255.
        ignore: Label value whose pixels are left out, 0 to 255.
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
            The (num_classes, num_classes) counts of just this call, int64.

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
        """Sums the matrix over all ranks, in place. Does nothing on a single device."""
        from mindspore.communication import GlobalComm, get_group_size

        if not GlobalComm.INITED or get_group_size() == 1:
            return
        import mindspore as ms
        from mindspore import ops

        # float32 adds whole numbers exactly up to 2**24: counts travel as 16-bit digits, right for 256 ranks.
        shifts = (0, 16, 32)
        digits = np.stack([(self.matrix >> shift) & 0xFFFF for shift in shifts]).astype(np.float32)
        total = ops.AllReduce()(ms.Tensor(digits)).asnumpy().astype(np.int64)
        self.matrix = sum(digit << shift for digit, shift in zip(total, shifts, strict=True))

    def compute(self) -> dict:
        """Scores of everything added so far.

        Returns:
            ``miou`` (float, mean over present classes, 0..1; NaN if none is present), ``iou`` (list of float, NaN for
            an absent class), ``pixel_accuracy`` (float), ``class_accuracy`` (list of float), ``fwiou`` (float,
            frequency-weighted IoU), ``present`` (int, classes with TP + FP + FN > 0) and ``confusion`` (list of lists).
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


def format_table(scores: dict, classes: tuple[str, ...]) -> str:
    """The per-class table that every program prints.

    Args:
        scores: Result of :meth:`ConfusionMatrix.compute`.
        classes: Class names.
    """
    width = max(len(name) for name in (*classes, "pixel accuracy"))
    rows = [f"{'class':<{width}}  IoU (%)  accuracy (%)"]
    for name, iou, accuracy in zip(classes, scores["iou"], scores["class_accuracy"], strict=True):
        rows.append(f"{name:<{width}}  {_percent(iou)}  {_percent(accuracy):>12}")
    present = f"{scores['present']} of {len(classes)} classes present"
    rows.append(f"{'mIoU':<{width}}  {_percent(scores['miou'])}  ({present})")
    rows.append(f"{'pixel accuracy':<{width}}  {_percent(scores['pixel_accuracy'])}")
    return "\n".join(rows)


def _percent(value: float) -> str:
    return " absent" if np.isnan(value) else f"{100 * value:7.2f}"


def _as_bytes(ids: np.ndarray, what: str) -> np.ndarray:
    if ids.dtype == np.uint8:
        return ids
    if ids.size and (ids.min() < 0 or ids.max() > 255):
        raise DataError(f"{what} values run from {ids.min()} to {ids.max()}; class ids are 0 to 255")
    return ids.astype(np.uint8)
