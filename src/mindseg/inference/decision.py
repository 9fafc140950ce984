"""Classes and their confidence by scores on the host; the graphs of ``network.py`` have the same rules."""
import numpy as np

from mindseg.resize import argmax_resized

_ROWS = 32      # that are worked on at a time, so that a cache holds them


def decide_by_logits(logits: np.ndarray, temperature: float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Classes of the highest logits.

    Args:
        logits: float32 (C, H, W).
        temperature: Divisor of the logits before the softmax that gives the confidence; None: give none.

    Returns:
        uint8 (H, W) class ids, and their probabilities, ``round(255 * p)``, or None.
    """
    ids = argmax_resized(logits, logits.shape[1:])
    if temperature is None:
        return ids, None
    levels = np.empty_like(ids)
    for top in range(0, len(ids), _ROWS):
        part = logits[:, top:top + _ROWS]
        powers = np.exp((part - part.max(0)) / np.float32(temperature))
        levels[top:top + _ROWS] = _level(1 / powers.sum(0))
    return ids, levels


def decide_by_sums(sums: np.ndarray, num_classes: int, passes: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Classes of the highest sums of probabilities.

    Args:
        sums: float32 (K, H, W); the first ``num_classes`` choose the class, the last ones give its probability.
        num_classes: Number of classes.
        passes: Number of summands of each sum, to give the confidence; None: give none.

    Returns:
        As :func:`decide_by_logits`.
    """
    ids = argmax_resized(sums[:num_classes], sums.shape[1:])
    if passes is None:
        return ids, None
    chosen = np.take_along_axis(sums[-num_classes:], ids[None].astype(np.int64), 0)[0]
    return ids, _level(chosen / np.float32(passes))


def _level(probability: np.ndarray) -> np.ndarray:
    return np.floor(probability * np.float32(255) + np.float32(0.5)).astype(np.uint8)
