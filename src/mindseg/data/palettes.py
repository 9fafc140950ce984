"""Default colours of classes, chosen so that readers with deficient colour vision can tell them apart, too."""
from functools import lru_cache

import numpy as np

Palette = tuple[tuple[int, int, int], ...]

# CIEDE2000 at least, in every kind of vision: of classes that touch, and of all.
APART, DISTINCT = 20.0, 5.0
# Found by simulated annealing for the largest smallest difference, with L* of 38 at least: none is near black or navy.
# Any two are 21 or more apart. The same search found no ten that are 20 apart.
_FIRST: Palette = (
    (91, 91, 91), (233, 253, 15), (171, 125, 255), (116, 160, 147), (139, 24, 195), (189, 255, 215), (255, 204, 255),
    (205, 132, 0), (158, 56, 0))
_LIGHTNESS = 38.0   # the lowest L* of further colours, too
_SWEEPS = 20        # five are usual
# Normal vision, protanopia, deuteranopia, tritanopia; on linear RGB. Machado, Oliveira, Fernandes: A Physiologically-
# based Model for Simulation of Color Vision Deficiency, IEEE TVCG 15(6), 2009, severity 1.0.
_VISIONS = np.array([
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]])
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])     # of linear sRGB
_WHITE = np.array([0.9505, 1.0, 1.089])     # D65


@lru_cache
def default_palette(count: int) -> Palette:
    """Colours of classes that have none of their own.

    Up to nine classes, any two are ``APART``. Each further colour is the one that is farthest from all before it.

    Args:
        count: Number of classes, 1 to 255.
    """
    candidates = _candidates()
    chosen = list(range(min(count, len(_FIRST))))
    nearest = differences(candidates, _FIRST).min(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, differences(candidates, candidates[chosen[-1:]])[:, 0])
    return tuple(tuple(colour) for colour in candidates[chosen].tolist())


def arranged_palette(contacts: np.ndarray) -> Palette:
    """Default colours for known labels, where only classes that touch must be ``APART``.

    Up to nine classes these are ``default_palette``. Beyond, each class in turn takes the colour with the least squared
    shortfalls: below ``APART`` against classes that it touches, weighted by the logarithm of the contacts, and below
    ``DISTINCT`` against all, times four. This is repeated until nothing changes.

    Args:
        contacts: Neighbouring pixels of each two classes, int64 (C, C), as ``count_contacts`` finds them.
    """
    count = len(contacts)
    if count <= len(_FIRST):
        return default_palette(count)
    candidates = _candidates()
    apart = differences(candidates, candidates)
    touching, distinct = np.maximum(APART - apart, 0) ** 2, 4 * np.maximum(DISTINCT - apart, 0) ** 2
    weight = np.log1p(contacts) / max(np.log1p(contacts.max()), 1.0)
    chosen = np.full(count, -1)
    for _ in range(_SWEEPS):
        before = chosen.copy()
        for k in np.argsort(-weight.sum(1), kind="stable"):
            others = np.flatnonzero((chosen >= 0) & (np.arange(count) != k))
            taken = chosen[others]
            cost = touching[:, taken] @ weight[k, others] + distinct[:, taken].sum(1)
            cost[taken] = np.inf
            chosen[k] = cost.argmin()
        if (chosen == before).all():
            break
    return tuple(tuple(colour) for colour in candidates[chosen].tolist())


def _candidates() -> np.ndarray:
    """Colours to choose from: the first ones, and a grid without dark ones; int64 (N, 3)."""
    levels = np.linspace(0, 255, 9).round().astype(np.int64)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    return np.concatenate([np.array(_FIRST), grid[_lab(grid)[0, :, 0] >= _LIGHTNESS]])


def count_contacts(label: np.ndarray) -> np.ndarray:
    """Pairs of neighbouring pixels, in a row or a column, by their two values.

    Args:
        label: Class ids, uint8 (H, W).

    Returns:
        int64 (256, 256), symmetric, with zeros on the diagonal.
    """
    counts = np.zeros(1 << 16, np.int64)
    for first, second in ((label[:, :-1], label[:, 1:]), (label[:-1], label[1:])):
        differ = first != second
        counts += np.bincount(first[differ].astype(np.int64) << 8 | second[differ], minlength=1 << 16)
    table = counts.reshape(256, 256)
    return table + table.T


def differences(first: np.ndarray | Palette, second: np.ndarray | Palette) -> np.ndarray:
    """CIEDE2000 between colours, the smallest of all kinds of vision.

    Args:
        first: RGB, 0..255 (N, 3).
        second: RGB, 0..255 (M, 3).

    Returns:
        Differences (N, M).
    """
    return _ciede2000(_lab(first)[:, :, None], _lab(second)[:, None]).min(0)


def _lab(colours: np.ndarray | Palette) -> np.ndarray:
    """CIELAB of colours (N, 3) as each kind of vision sees them, (4, N, 3)."""
    value = np.asarray(colours) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = (linear @ _VISIONS.transpose(0, 2, 1)).clip(0, 1)
    xyz = seen @ _XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _ciede2000(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Difference of CIELAB colours (…, 3), as Sharma, Wu, Dalal (Color Res. Appl. 30(1), 2005) write the formula."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    stretch = 1.5 - 0.5 * _saturation((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.arctan2(b, stretch * a) % (2 * np.pi) for a, b in ((a1, b1), (a2, b2)))
    turn = h2 - h1 - 2 * np.pi * np.round((h2 - h1) / (2 * np.pi + 1e-9))   # -pi..pi, both ends as they are
    hue, light, chroma = h1 + turn / 2, (l1 + l2) / 2, (c1 + c2) / 2
    weight = (1 - 0.17 * np.cos(hue - np.radians(30)) + 0.24 * np.cos(2 * hue) + 0.32 * np.cos(3 * hue + np.radians(6))
              - 0.2 * np.cos(4 * hue - np.radians(63)))
    d_l = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    d_c = (c2 - c1) / (1 + 0.045 * chroma)
    d_h = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * chroma * weight)
    bend = np.radians(60) * np.exp(-((np.degrees(hue) % 360 - 275) / 25) ** 2)
    rotation = -2 * _saturation(chroma) * np.sin(bend)
    return np.sqrt(np.maximum(d_l ** 2 + d_c ** 2 + d_h ** 2 + rotation * d_c * d_h, 0))


def _saturation(chroma: np.ndarray) -> np.ndarray:
    return np.sqrt(chroma ** 7 / (chroma ** 7 + 25.0 ** 7))
