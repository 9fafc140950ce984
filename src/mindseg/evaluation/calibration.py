"""The temperature that makes the confidence of a network agree with its accuracy."""
from collections.abc import Iterable, Iterator

import numpy as np

from mindseg.checkpoint import TEMPERATURES
from mindseg.data.labels import IGNORE
from mindseg.data.loader import Loader
from mindseg.errors import DataError
from mindseg.inference.network import NetworkPredictor
from mindseg.metrics import Reliability, RunningMean

_SAMPLED = 1 << 22      # logits that a temperature is fitted to
_STEPS = 17             # temperatures that are tried at a time; the third time they differ by 1 %


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Divisor of the logits that makes the expected calibration error of their softmax least.

    The least cross entropy, the usual aim, may leave a larger error than necessary. The error is not convex, so the
    whole range is searched, three times ever finer.

    Args:
        logits: float32 (C, N).
        labels: Class ids (N,).

    Returns:
        The temperature, 0.01 to 100.
    """
    pred, distances = logits.argmax(0), logits - logits.max(0)

    def error(temperature: float) -> float:
        reliability = Reliability()
        reliability.update(_levels(np.exp(distances / np.float32(temperature)).sum(0)), pred, labels)
        return reliability.compute()["ece"]

    values = np.geomspace(*TEMPERATURES, _STEPS)
    for _ in range(3):
        best = int(np.argmin([error(value) for value in values]))
        found = float(values[best])
        values = np.geomspace(values[max(best - 1, 0)], values[min(best + 1, _STEPS - 1)], _STEPS)
    return found


def _levels(sums: np.ndarray) -> np.ndarray:
    """Confidence, uint8, from the sums over classes of exp(logit - highest logit)."""
    return np.floor(255 / sums + 0.5).astype(np.uint8)


def sample_logits(predictor: NetworkPredictor, loader: Loader) -> tuple[np.ndarray, np.ndarray]:
    """Logits of labelled pixels that lie evenly over the images of a loader.

    Args:
        predictor: Network.
        loader: Evaluation loader.

    Returns:
        float32 (C, N), about 2**22 values, and uint8 labels (N,).

    Raises:
        DataError: No pixel is labelled.
    """
    count = max(1, _SAMPLED // (len(predictor.info.classes) * max(1, loader.steps_per_epoch)))
    logits, labels = [], []
    for values, label in _images(predictor, loader):
        places = np.flatnonzero(label.ravel() != IGNORE)
        places = places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(np.int64)]
        logits.append(values.reshape(len(values), -1)[:, places])
        labels.append(label.ravel()[places])
    if not sum(map(len, labels)):
        raise DataError("no labelled pixel in the images to calibrate on; check data.root and data.eval_split")
    return np.concatenate(logits, 1), np.concatenate(labels)


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
            sums = np.exp(pixels / np.float32(temperature)).sum(0)
            losses = np.log(sums) - pixels[truth, np.arange(len(truth))] / temperature
            loss.update(float(losses.sum(dtype=np.float64)), len(truth))
            reliability.update(_levels(sums), pred, truth)
    return [(loss.compute(), reliability.compute()) for _, loss, reliability in found]


def _images(predictor: NetworkPredictor, loader: Loader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits (C, H, W) and label (H, W) of each image."""
    for batch in loader.samples():
        labels = np.stack([predictor.resize.label(label) for label in batch["label"]])
        yield from zip(predictor.logits(batch["image"], labels.shape[1:]), labels, strict=True)
