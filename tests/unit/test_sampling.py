"""The matrices of a pass against resizing, cutting, flipping and averaging one after the other."""
import numpy as np
import pytest

from mindseg.inference.sampling import Axis, sampling, taps, window_starts


def resized(values: np.ndarray, length: int, align_corners: bool) -> np.ndarray:
    """Linear interpolation of values (n, ...) to another length."""
    count = len(values)
    if align_corners:
        position = np.linspace(0, count - 1, length)
    else:
        position = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
    return np.stack([np.interp(position, np.arange(count), column) for column in values.T], 1)


def by_hand(axis: Axis, logits: list[np.ndarray]) -> np.ndarray:
    """The result for the logits (n, C) of each window."""
    covered = axis.starts[-1] + axis.window
    total, count = np.zeros((covered, logits[0].shape[1])), np.zeros((covered, 1))
    for start, values in zip(axis.starts, logits, strict=True):
        if axis.logits != axis.padded:
            values = resized(values, axis.padded, axis.upsampling)
        total[start:start + axis.window] += values[:axis.window]
        count[start:start + axis.window] += 1
    image = (total / count)[:axis.content]
    return resized(image[::-1] if axis.flip else image, axis.target, False)


def applied(axis: Axis, logits: list[np.ndarray]) -> np.ndarray:
    rows, matrices = sampling(axis)
    parts = np.concatenate(logits)[rows].reshape(len(matrices), matrices.shape[2], -1)
    return np.concatenate(matrices.astype(np.float64) @ parts)


@pytest.mark.parametrize("axis", [
    Axis((0,), 50, 64, 64, 50, 50),
    Axis((0,), 50, 64, 64, 41, 103, flip=True),
    Axis((0,), 224, 224, 28, 224, 128, upsampling=True),
    Axis((0,), 50, 64, 8, 50, 100, True, False),
    Axis((0, 31, 62, 63), 40, 64, 64, 103, 103),
    Axis((0, 31, 62, 63), 40, 64, 8, 90, 77, True, True),
    Axis((0,), 1, 32, 32, 1, 33),
    Axis((0,), 30, 32, 1, 30, 7, upsampling=True)])
def test_matrices_equal_the_steps_one_by_one(axis, rng):
    logits = [rng.normal(size=(axis.logits, 3)) for _ in axis.starts]
    found = applied(axis, logits)
    assert len(found) == axis.target + -axis.target % 128
    np.testing.assert_allclose(found[:axis.target], by_hand(axis, logits), atol=1e-6)
    assert not found[axis.target:].any()
    index, weight = taps(axis)
    means = (np.concatenate(logits)[index] * weight[..., None]).sum(0)
    np.testing.assert_allclose(means, by_hand(axis, logits), atol=1e-6)


def test_a_row_reads_few_rows():
    """1.75 times 1024 rows from 1/8 of them: 32 rows of the result lie within 7 of the logits, and their neighbours."""
    rows, matrices = sampling(Axis((0,), 1792, 1792, 224, 1792, 1024, upsampling=True))
    assert matrices.shape == (32, 32, 16)
    assert rows.shape == (32 * 16,)


@pytest.mark.parametrize(("axis", "count"), [
    (Axis((0,), 1024, 1024, 1024, 1024, 1024), 1), (Axis((0,), 512, 512, 512, 512, 1024), 2),
    (Axis((0,), 1792, 1792, 224, 1792, 1024, upsampling=True), 3),
    (Axis((0, 31, 62, 63), 40, 64, 64, 103, 103), 3)])
def test_a_row_is_the_mean_of_few_rows(axis, count):
    """None is listed twice, and no list is longer than the longest one needs."""
    index, weight = taps(axis)
    assert index.shape == weight.shape == (count, axis.target)
    assert all(len({*column[used]}) == used.sum() for column, used in zip(index.T, weight.T > 0, strict=True))
    assert ((weight > 0).sum(0) == count).any()


@pytest.mark.parametrize(("length", "window", "stride"), [
    (101, 48, 31), (75, 40, 17), (48, 48, None), (7, 7, None), (500, 40, None), (49, 48, 48), (1, 1, 1)])
def test_windows_cover_every_pixel_and_stay_inside(length, window, stride):
    seen = np.zeros(length, int)
    for start in window_starts(length, window, stride):
        assert 0 <= start <= length - window
        seen[start:start + window] += 1
    assert seen.min() >= 1
