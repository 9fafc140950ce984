"""Inference modes in NumPy, from full-size logits on: an independent truth for what runs on the device."""
import math
from collections.abc import Callable, Iterator

import numpy as np

from mindseg.config import Config
from mindseg.resize import Size, create_resize, scale_size

Logits = Callable[[np.ndarray], np.ndarray]     # uint8 (N, H, W, 3) of any size to float32 (N, C, H, W)


def scores(logits: Logits, cfg: Config, images: np.ndarray, size: Size) -> np.ndarray:
    """Sums of probabilities of all passes, or the logits of a single pass, float64 (N, C, height, width)."""
    passes = resized_logits(logits, cfg, images, size)
    return passes[0] if len(passes) == 1 else sum(map(softmax, passes))


def resized_logits(logits: Logits, cfg: Config, images: np.ndarray, size: Size) -> list[np.ndarray]:
    """Logits of each pass at the size of the answer, float64 (N, C, height, width)."""
    resize, e = create_resize(cfg), cfg.eval
    window = tuple(e.window or cfg.data.crop_size) if "slide" in e.mode else None
    scales = e.scales if "ms" in e.mode else [1.0]
    flips = (False, True) if "flip" in e.mode else (False,)
    passes = []
    for scale in scales:
        rows, columns = scale_size(resize.content_size(*images.shape[1:3]), scale)
        for flip in flips:
            fitted = np.stack([resize.apply(image, scale, flip) for image in images])
            answer = windowed(logits, fitted, window, e.stride) if window else logits(fitted)
            answer = answer[:, :, :rows, :columns]
            passes.append(bilinear(answer[..., ::-1] if flip else answer, size))
    return passes


def windowed(logits: Logits, images: np.ndarray, window: Size, stride: Size | None) -> np.ndarray:
    """Mean of the logits of overlapping windows."""
    size = images.shape[1:3]
    total, count = 0, np.zeros(size)
    for rows, columns in windows(size, window, stride):
        part = logits(images[:, rows, columns])
        if not count.any():
            total = np.zeros((*part.shape[:2], *size))
        total[:, :, rows, columns] += part
        count[rows, columns] += 1
    return total / count


def windows(size: Size, window: Size, stride: Size | None) -> Iterator[tuple[slice, slice]]:
    """Windows that cover an image; the last of a row or column ends at the border."""
    sides = []
    for length, part, step in zip(size, window, stride or (None, None), strict=True):
        step = step or max(1, part * 2 // 3)
        part = min(part, length)
        count = math.ceil((length - part) / step) + 1
        sides.append([slice(start, start + part) for start in (min(i * step, length - part) for i in range(count))])
    for rows in sides[0]:
        for columns in sides[1]:
            yield rows, columns


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along axis 1."""
    power = np.exp(logits - logits.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


def bilinear(x: np.ndarray, size: Size) -> np.ndarray:
    """Resizes the last two axes, half-pixel centres, in float64, axis by axis."""
    x = x.astype(np.float64)
    for axis, length in ((-2, size[0]), (-1, size[1])):
        old = x.shape[axis]
        position = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        low = position.astype(int)
        high = np.minimum(low + 1, old - 1)
        weight = (position - low).reshape((-1, 1) if axis == -2 else (-1,))
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
    return x


def assert_same_ids(ids: np.ndarray, expected: np.ndarray, margin: float = 1e-4) -> None:
    """Tests ids (N, H, W) against scores (N, C, H, W), but for pixels whose best two differ by rounding alone."""
    best = np.sort(expected, 1)
    clear = best[:, -1] - best[:, -2] > margin
    assert clear.mean() > 0.99
    assert np.array_equal(ids[clear], expected.argmax(1)[clear])
