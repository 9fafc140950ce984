"""The temperature that makes the confidence of a network agree with its accuracy."""
from collections.abc import Iterable, Iterator

import numpy as np

from mindseg.checkpoint import TEMPERATURES
from mindseg.data.labels import IGNORE
from mindseg.data.loader import Loader
from mindseg.errors import DataError
from mindseg.inference.network import NetworkPredictor
from mindseg.metrics import Reliability, RunningMean

_SAMPLED = 1 << 23      # logits that a temperature is fitted to
_ROWS = 1 << 16         # pixels that are worked on at a time


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Divisor of the logits that makes the cross entropy of their softmax least.

    The cross entropy is convex in b = 1 / temperature, with the slope mean(sum_c p_c z_c - z_label), where p is the
    softmax of b z: bisection finds where the slope changes its sign.

    Args:
        logits: float32 (N, C).
        labels: Class ids (N,).

    Returns:
        The temperature, 0.01 to 100.
    """
    low, high = (np.log(1 / value) for value in reversed(TEMPERATURES))
    while high - low > 1e-5:
        middle = (low + high) / 2
        if _slope(logits, labels, float(np.exp(middle))) > 0:
            high = middle
        else:
            low = middle
    return float(np.exp(-(low + high) / 2))


def _slope(logits: np.ndarray, labels: np.ndarray, factor: float) -> float:
    total = 0.0
    for start in range(0, len(logits), _ROWS):
        part, own = logits[start:start + _ROWS], labels[start:start + _ROWS]
        powers = np.exp(factor * (part - part.max(1, keepdims=True)))
        mean = (powers * part).sum(1) / powers.sum(1)
        total += float((mean - part[np.arange(len(part)), own]).sum(dtype=np.float64))
    return total


def sample_logits(predictor: NetworkPredictor, loader: Loader) -> tuple[np.ndarray, np.ndarray]:
    """Logits of labelled pixels that lie evenly over the images of a loader.

    Args:
        predictor: Network.
        loader: Evaluation loader.

    Returns:
        float32 (N, C), at most 2**23 values, and uint8 labels (N,).

    Raises:
        DataError: No pixel is labelled.
    """
    count = max(1, _SAMPLED // (len(predictor.info.classes) * max(1, loader.steps_per_epoch)))
    logits, labels = [], []
    for values, label in _images(predictor, loader):
        places = np.flatnonzero(label.ravel() != IGNORE)
        places = places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(np.int64)]
        logits.append(values.reshape(len(values), -1)[:, places].T)
        labels.append(label.ravel()[places])
    if not sum(map(len, labels)):
        raise DataError("no labelled pixel in the images to calibrate on; check data.root and data.eval_split")
    return np.concatenate(logits), np.concatenate(labels)


def assess(predictor: NetworkPredictor, loader: Loader, temperatures: Iterable[float]) -> list[tuple[float, dict]]:
    """Cross entropy and calibration of a network at several temperatures.

    Args:
        predictor: Network.
        loader: Evaluation loader.
        temperatures: Divisors of the logits.

    Returns:
        For each the mean cross entropy of the labelled pixels and the result of :meth:`Reliability.compute`.
    """
    found = [(temperature, RunningMean(), Reliability()) for temperature in temperatures]
    for values, label in _images(predictor, loader):
        labelled = label != IGNORE
        pixels, truth = values[:, labelled], label[labelled].astype(np.int64)
        pred, pixels = pixels.argmax(0), pixels - pixels.max(0)
        for temperature, loss, reliability in found:
            log_sum = np.log(np.exp(pixels / temperature).sum(0))
            losses = log_sum - pixels[truth, np.arange(len(truth))] / temperature
            loss.update(float(losses.sum(dtype=np.float64)), len(truth))
            confidence = np.floor(np.exp(-log_sum) * 255 + 0.5).astype(np.uint8)
            reliability.update(confidence, pred, truth)
    return [(loss.compute(), reliability.compute()) for _, loss, reliability in found]


def _images(predictor: NetworkPredictor, loader: Loader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits (C, H, W) and label (H, W) of each image."""
    for batch in loader.samples():
        labels = np.stack([predictor.resize.label(label) for label in batch["label"]])
        yield from zip(predictor.logits(batch["image"], labels.shape[1:]), labels, strict=True)
