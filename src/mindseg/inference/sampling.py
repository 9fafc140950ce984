"""From the logits of a pass to logits at the size of the answer: where each value comes from.

Leaving out the padding, the flip, the mean of overlapping windows, the resize that ends some networks and the resize to
the answer are linear along each axis. Together they are one matrix for the rows and one for the columns, of which a
row has few numbers that are not 0. Here each is made as small matrices, for 32 rows of the result at a time, or as a
list of these few numbers for each row.
"""
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 32             # rows of the result that a small matrix makes
# Results are a multiple of so many blocks long and matrices a power of 2 wide, so that few graphs are compiled.
_BLOCKS, _TAPS = 4, 16


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a pass; lengths in pixels.

    Attributes:
        starts: First pixel of each window; one 0 for the whole image.
        window: Length of a window.
        padded: Length of the network's input: a window with its padding.
        logits: Length of the network's output.
        content: Length of the image, without the padding behind it.
        target: Length of the result.
        flip: The result is reversed.
        upsampling: Corner rule of the resize from ``logits`` to ``padded``, see ``models.layers.Resample``; not
            read if these are equal.
    """
    starts: tuple[int, ...]
    window: int
    padded: int
    logits: int
    content: int
    target: int
    flip: bool = False
    upsampling: bool | None = None


def window_starts(length: int, window: int, stride: int | None = None) -> tuple[int, ...]:
    """First pixel of each of the windows that cover an axis; the last one is moved back so that it ends at the border.

    Args:
        length: Pixels to cover.
        window: Length of a window, at most ``length``.
        stride: Step between windows, at most the window; None: two thirds of it.
    """
    stride = stride or max(1, window * 2 // 3)
    count = math.ceil((length - window) / stride) + 1
    return tuple(min(i * stride, length - window) for i in range(count))


@lru_cache(maxsize=512)
def sampling(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of an axis.

    Returns:
        int32 (B * K,): K rows for each of B blocks, by their numbers in the logits of all windows, one behind the
        other; and float32 (B, 32, K): their factors in each of 32 * B rows of the result, 0 behind ``target``. B is a
        multiple of 4.
    """
    index, weight = _taps(axis)
    blocks = [np.unique(index[start:start + BLOCK], return_inverse=True) for start in range(0, len(index), BLOCK)]
    taps = max(_TAPS, 1 << (max(len(rows) for rows, _ in blocks) - 1).bit_length())
    count = len(blocks) + -len(blocks) % _BLOCKS
    rows = np.zeros((count, taps), np.int32)
    matrices = np.zeros((count, BLOCK, taps))
    for i, (found, places) in enumerate(blocks):
        rows[i, :len(found)] = found
        part = weight[i * BLOCK:(i + 1) * BLOCK]
        out = np.broadcast_to(np.arange(len(part))[:, None], part.shape)
        np.add.at(matrices[i], (out, places.reshape(part.shape)), part)
    return rows.reshape(-1), matrices.astype(np.float32)


@lru_cache(maxsize=512)
def taps(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of an axis.

    Returns:
        int32 (K, target): K rows of each row of the result, by their numbers in the logits of all windows, one behind
        the other; and their weights, float32 (K, target), 0 where fewer are needed.
    """
    index, weight = _taps(axis)
    order = index.argsort(1)
    index, weight = np.take_along_axis(index, order, 1), np.take_along_axis(weight, order, 1)
    place = (np.diff(index, axis=1, prepend=index[:, :1]) > 0).cumsum(1)      # equal numbers share one
    line = np.arange(len(index))[:, None]
    numbers = np.tile(index[:, 0].astype(np.int32), (place.max() + 1, 1))
    numbers[place, line] = index
    sums = np.zeros(numbers.shape)
    np.add.at(sums, (place, line), weight)
    return numbers, sums.astype(np.float32)


def _taps(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the logits that make each row of the result, (target, K) int, and their weights; unused ones are 0."""
    index, weight = _bilinear(axis.target, axis.content, False)
    if axis.flip:
        index = axis.content - 1 - index
    index, weight = _join(index, weight, *_window_taps(axis))
    if axis.logits != axis.padded:
        near, share = _bilinear(axis.padded, axis.logits, axis.upsampling)
        count = len(axis.starts)
        near = np.concatenate([near + i * axis.logits for i in range(count)])
        index, weight = _join(index, weight, near, np.tile(share, (count, 1)))
    first = index[:, :1]        # a row that is read anyway
    return np.where(weight == 0, first, index), weight


def _window_taps(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the windows, one behind the other, whose mean is a pixel of the image: (content, windows)."""
    local = np.arange(axis.content)[:, None] - np.array(axis.starts)
    inside = (local >= 0) & (local < axis.window)
    places = np.where(inside, local, 0) + np.arange(len(axis.starts)) * axis.padded
    first = np.take_along_axis(places, inside.argmax(1)[:, None], 1)
    return np.where(inside, places, first), inside / inside.sum(1, keepdims=True)


def _bilinear(target: int, source: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation: numbers of two neighbours and their weights, both (target, 2)."""
    if align_corners:
        position = np.arange(target) * ((source - 1) / max(target - 1, 1))
    else:
        position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    position = np.minimum(position, source - 1)
    low = position.astype(np.int64)
    high = position - low
    return np.stack([low, np.minimum(low + 1, source - 1)], 1), np.stack([1 - high, high], 1)


def _join(index: np.ndarray, weight: np.ndarray, inner: np.ndarray,
          share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Taps into rows that are themselves made of taps."""
    return inner[index].reshape(len(index), -1), (weight[..., None] * share[index]).reshape(len(index), -1)
