"""Joint image and label transforms. All randomness comes from the generator that the caller passes in.

Images are uint8 (H, W, 3) in BGR order; labels are uint8 (H, W) and sampled to the nearest pixel.
"""
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mindseg.data.labels import IGNORE

_CROP_TRIES = 10
_STRIDE = 8            # the class shares of a crop are counted on every 8th row and column: 64 times cheaper


@dataclass(frozen=True)
class Window:
    """Part of a source image in pixels, and the (height, width) it is resized to."""
    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """The window of ``pixels``, (H, W) or (H, W, 3), as a view."""
        return pixels[self.top:self.top + self.height, self.left:self.left + self.width]

    def enlarges(self) -> bool:
        """Tests whether the resized window has more pixels than the window."""
        return self.size[0] * self.size[1] > self.height * self.width


@dataclass(frozen=True)
class ScaleCrop:
    """Random scale, then random crop; the result is smaller than ``size`` where the scaled image is.

    Only the window of the source that ends up in the crop is resized, which gives the same picture as scaling
    everything and cropping then (up to half a source pixel of the window's border) at an eighth of the work.

    Attributes:
        size: Height and width of a crop.
        scale_range: Lowest and highest scale.
        scale_base: Length in pixels that the scale multiplies; ``None``: the image's own size.
        scale_side: Side that becomes ``scale_base`` long, ``short`` or ``long``.
        scale_step: 0 for continuous scales, else the distance between them.
        cat_max_ratio: A crop in which one class has more than this share is redrawn, at most 10 times (1: never).
    """
    size: tuple[int, int]
    scale_range: tuple[float, float] = (0.5, 2.0)
    scale_base: int | None = None
    scale_side: str = "short"
    scale_step: float = 0.0
    cat_max_ratio: float = 1.0

    def draw_scale(self, height: int, width: int, rng: np.random.Generator) -> float:
        """Draws the scale of a source image of ``height`` x ``width`` pixels with the generator ``rng``."""
        low, high = self.scale_range
        if self.scale_step > 0:
            steps = math.floor((high - low) / self.scale_step + 1e-6)
            scale = min(low + self.scale_step * int(rng.integers(steps + 1)), high)
        else:
            scale = float(rng.uniform(low, high))
        if self.scale_base is None:
            return scale
        side = min(height, width) if self.scale_side == "short" else max(height, width)
        return scale * self.scale_base / side

    def draw(self, label: np.ndarray, lut: np.ndarray, rng: np.random.Generator) -> Window:
        """Draws the source window and the size it is resized to.

        Args:
            label: Label values, uint8 (H, W).
            lut: Label LUT, uint8 (256,).
            rng: Generator of the sample.
        """
        height, width = label.shape
        scale = self.draw_scale(height, width, rng)
        # Size of the scaled image's part of the crop (the rest is padding), and of the source window it is taken from.
        inner = [min(c, max(1, round(s * scale))) for c, s in zip(self.size, (height, width), strict=True)]
        window = [s if i < c else min(s, max(1, round(c / scale)))
                  for c, i, s in zip(self.size, inner, (height, width), strict=True)]
        top, left = self._draw_window(label, window, rng, lut)
        return Window(top, left, window[0], window[1], (inner[0], inner[1]))

    def _draw_window(self, label: np.ndarray, window: Sequence[int], rng: np.random.Generator,
                     lut: np.ndarray) -> tuple[int, int]:
        coarse = lut[label[::_STRIDE, ::_STRIDE]] if self.cat_max_ratio < 1 else None
        for _ in range(_CROP_TRIES):
            top = int(rng.integers(label.shape[0] - window[0] + 1))
            left = int(rng.integers(label.shape[1] - window[1] + 1))
            if coarse is None:
                break
            ends = ((top, window[0]), (left, window[1]))
            part = coarse[tuple(slice(-(-start // _STRIDE), -(-(start + length) // _STRIDE)) for start, length in ends)]
            counts = np.bincount(part.ravel(), minlength=256)[:IGNORE]
            if np.count_nonzero(counts) > 1 and counts.max() <= self.cat_max_ratio * counts.sum():
                break
        return top, left


@dataclass(frozen=True)
class CropResize:
    """Random crop to 1/r of the image, then resizing to ``size``.

    Attributes:
        size: Height and width of the result; the aspect ratio is not kept.
        crop_ratio: Lowest and highest r, both >= 1, between which it is uniform; ``None``: never crop.
        crop_prob: Probability of the crop.
    """
    size: tuple[int, int]
    crop_ratio: tuple[float, float] | None = None
    crop_prob: float = 1.0

    def draw(self, label: np.ndarray, lut: np.ndarray, rng: np.random.Generator) -> Window:
        """Draws the source window as in :meth:`ScaleCrop.draw`; ``lut`` is not needed."""
        if self.crop_ratio is None or rng.random() >= self.crop_prob:
            return Window(0, 0, *label.shape, self.size)
        ratio = float(rng.uniform(*self.crop_ratio))
        height, width = (max(1, int(s / ratio)) for s in label.shape)
        return Window(int(rng.integers(label.shape[0] - height + 1)), int(rng.integers(label.shape[1] - width + 1)),
                      height, width, self.size)


@dataclass(frozen=True)
class ColorJitter:
    """Photometric distortion of a uint8 BGR image, in the order of SSD (Liu et al. 2016).

    Brightness comes first, then saturation and hue; contrast comes before or after these two, at random.

    Attributes:
        brightness: A number d adds U(-d, d), a pair multiplies by U(low, high).
        contrast: Lowest and highest factor.
        saturation: Lowest and highest factor.
        hue: Largest shift either way, in OpenCV's unit of two degrees.
        prob: Probability of each of the four.
    """
    brightness: float | tuple[float, float] = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)
    hue: int = 0
    prob: float = 0.5

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Distorts ``image``, uint8 (H, W, 3), with numbers drawn from ``rng``."""
        # Every number is drawn whether it is used or not, so that one switch does not shift the others' randomness.
        use = rng.random(4) < self.prob
        brightness, contrast, saturation, hue = rng.random(4)
        contrast_first = rng.random() < 0.5
        if use[0] and isinstance(self.brightness, tuple):
            image = _multiply(image, _between(self.brightness, brightness))
        elif use[0] and self.brightness:
            image = cv2.add(image, (round(_between((-self.brightness, self.brightness), brightness)),) * 3)
        factor = _between(self.contrast, contrast) if use[1] else 1.0
        if contrast_first:
            image = _multiply(image, factor)
        shift = round(_between((-self.hue, self.hue), hue)) if use[3] else 0
        stretch = _between(self.saturation, saturation) if use[2] else 1.0
        if shift or stretch != 1:
            image = _shift_hsv(image, shift, stretch)
        return image if contrast_first else _multiply(image, factor)


def _multiply(image: np.ndarray, factor: float) -> np.ndarray:
    """``image * factor``, rounded and clipped to 0..255."""
    return image if factor == 1 else cv2.convertScaleAbs(image, alpha=factor)


def _shift_hsv(image: np.ndarray, shift: int, stretch: float) -> np.ndarray:
    """Adds ``shift`` to the hue, modulo 180, and multiplies the saturation by ``stretch``."""
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if shift:
        shifted = ((np.arange(256) + shift) % 180).astype(np.uint8)
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), shifted), hsv, 0)
    if stretch != 1:
        cv2.insertChannel(_multiply(cv2.extractChannel(hsv, 1), stretch), hsv, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


# The ranges of SSD's distortion, which mmsegmentation calls PhotoMetricDistortion.
PHOTOMETRIC = ColorJitter(brightness=32.0, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18)


def color_jitter(values: Mapping) -> ColorJitter:
    """Makes a distortion from ``data.color_jitter``; a pair is a list, ``0.4`` for a factor is [0.6, 1.4]."""
    def pair(value: float | Sequence[float]) -> tuple[float, float]:
        low, high = value if isinstance(value, (list, tuple)) else (1 - value, 1 + value)
        return float(low), float(high)

    brightness = values.get("brightness", 0.0)
    return ColorJitter(pair(brightness) if isinstance(brightness, (list, tuple)) else float(brightness),
                       pair(values.get("contrast", (1.0, 1.0))), pair(values.get("saturation", (1.0, 1.0))),
                       int(values.get("hue", 0)), float(values.get("prob", 0.5)))


def _between(bounds: Sequence[float], share: float) -> float:
    return float(bounds[0] + (bounds[1] - bounds[0]) * share)


@dataclass(frozen=True)
class TrainTransform:
    """Training transform: crop, resize, flip, colour distortion, blur and padding.

    Attributes:
        geometry: Crop and resize.
        lut: Label LUT, uint8 (256,), applied to the crop, not to the whole label.
        fill: Colour of the padding, in BGR (usually the mean colour, so that padding is 0 after normalisation).
        flip_prob: Probability of a horizontal flip.
        blur_prob: Probability of a Gaussian blur with a sigma of U(0, 1) pixels.
        jitters: Colour distortions, applied in this order.
        rgb: Return RGB instead of BGR.
        augment: What is done to a resized crop, image and label, in place of flip, blur and colour distortion.
    """
    geometry: ScaleCrop | CropResize
    lut: np.ndarray
    fill: tuple[int, int, int] = (0, 0, 0)
    flip_prob: float = 0.5
    blur_prob: float = 0.0
    jitters: tuple[ColorJitter, ...] = ()
    rgb: bool = True
    augment: Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]] | None = None

    def __call__(self, image: np.ndarray | Callable[[Window], np.ndarray], label: np.ndarray,
                 rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Transforms one sample.

        Args:
            image: uint8 (H, W, 3) in BGR, or a function that decodes a window of it.
            label: Label values that ``lut`` knows, uint8 (H, W).
            rng: Generator of the sample.

        Returns:
            uint8 image (h, w, 3) in RGB or BGR and uint8 label (h, w) of train ids with 255 = ignored, both
            contiguous, h, w = ``geometry.size``.
        """
        window = self.geometry.draw(label, self.lut, rng)
        if self.augment is not None:
            image, label = image(window) if callable(image) else window.crop(image), window.crop(label)
            image, label = resize(image, cv2.LUT(label, self.lut), window.size)
            return self._finished(*self.augment(image, label, rng))
        flip, blur, sigma = rng.random() < self.flip_prob, rng.random() < self.blur_prob, float(rng.random())
        image, label = image(window) if callable(image) else window.crop(image), window.crop(label)
        # Colours are changed where there are fewer pixels: before enlarging, or after reducing.
        if window.enlarges():
            image, label = self._recolour(image, label, rng)
            image, label = resize(image, label, window.size)
        else:
            image, label = resize(image, label, window.size)
            image, label = self._recolour(image, label, rng)
        if flip:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        if blur:
            image = gaussian_blur(image, sigma)
        return self._finished(image, label)

    def _finished(self, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Padding comes last: a distorted mean colour would no longer be 0 after normalisation.
        image, label = pad(image, label, self.geometry.size, self.fill)
        if self.rgb:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return np.ascontiguousarray(image), np.ascontiguousarray(label)

    def _recolour(self, image: np.ndarray, label: np.ndarray,
                  rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        for jitter in self.jitters:
            image = jitter(image, rng)
        return image, cv2.LUT(label, self.lut)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs ``image`` with a standard deviation of ``sigma`` pixels; below 0.2 the kernel is a single pixel."""
    if sigma < 0.2:
        return image
    return cv2.GaussianBlur(image, (0, 0), sigma)


def resize(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resizes to ``size`` = (height, width): ``image`` bilinearly, ``label`` to the nearest pixel.

    ``INTER_NEAREST`` would take the pixel to the upper left of the centre and shift labels against images.
    """
    if label.shape == size:
        return image, label
    return (cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR),
            cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))


def pad(image: np.ndarray, label: np.ndarray, size: tuple[int, int],
        fill: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pads at the bottom and right to ``size`` = (height, width), ``image`` with ``fill``, ``label`` with 255."""
    if label.shape == size:
        return image, label
    margins = (0, size[0] - label.shape[0], 0, size[1] - label.shape[1])
    return (cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=fill),
            cv2.copyMakeBorder(label, *margins, cv2.BORDER_CONSTANT, value=IGNORE))


def normalize(image: np.ndarray, mean: Sequence[float], std: Sequence[float], value_range: float = 255.0) -> np.ndarray:
    """Normalises an image as the training graph does on the device: ``(x * value_range / 255 - mean) / std``.

    Args:
        image: uint8 (H, W, 3).
        mean: Three numbers in the image's channel order, on the scale 0..``value_range``.
        std: Three numbers on the same scale.
        value_range: 255 or 1.

    Returns:
        float32 (3, H, W), contiguous.
    """
    # One table of 256 results a channel: every possible result is computed once, in float32.
    levels = np.arange(256, dtype=np.float32)[:, None] * np.float32(value_range / 255.0)
    table = (levels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.stack([table[image[:, :, c], c] for c in range(3)])
