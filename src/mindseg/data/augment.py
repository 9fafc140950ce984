"""Augmentations of ``data.augment``, which run in the order of that list on crops of the training size.

Each takes and returns a uint8 image (H, W, 3) in BGR order and a uint8 label (H, W) of train ids, 255 = ignored. All
randomness comes from the generator that the caller passes in.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mindseg.data.labels import IGNORE
from mindseg.data.transforms import PHOTOMETRIC, ColorJitter, color_jitter, gaussian_blur
from mindseg.errors import ConfigError, shorten

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Flip:
    """Horizontal flip."""

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Flips both."""
        return cv2.flip(image, 1), cv2.flip(label, 1)


@dataclass(frozen=True)
class Rotate:
    """Rotation about the centre by an angle of U(-degrees, degrees); corners that come in are ignored.

    Attributes:
        degrees: Largest angle.
        fill: Colour of those corners, in BGR.
    """
    degrees: float
    fill: tuple[int, int, int]

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Rotates both, the image bilinearly and the label to the nearest pixel."""
        height, width = label.shape
        angle = float(rng.uniform(-self.degrees, self.degrees))
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=self.fill)
        return image, cv2.warpAffine(label, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE)


@dataclass(frozen=True)
class Colours:
    """Colour distortion.

    Attributes:
        jitter: The distortion, with probabilities of its own.
    """
    jitter: ColorJitter

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Distorts the image."""
        return self.jitter(image, rng), label


@dataclass(frozen=True)
class Blur:
    """Gaussian blur.

    Attributes:
        sigma: Lowest and highest standard deviation in pixels.
    """
    sigma: Sequence[float]

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Blurs the image."""
        return gaussian_blur(image, float(rng.uniform(*self.sigma))), label


@dataclass(frozen=True)
class Noise:
    """Normal noise, drawn for each value.

    Attributes:
        std: Lowest and highest standard deviation, on the scale 0..255.
    """
    std: Sequence[float]

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Adds noise to the image."""
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(*self.std))
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8), label


@dataclass(frozen=True)
class Jpeg:
    """Artefacts of JPEG compression.

    Attributes:
        quality: Lowest and highest quality, 1..100.
    """
    quality: Sequence[float]

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Compresses and decodes the image."""
        quality = int(rng.integers(self.quality[0], self.quality[1], endpoint=True))
        packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(packed, cv2.IMREAD_COLOR), label


@dataclass(frozen=True)
class Augmentation:
    """Augmentations in order.

    Attributes:
        steps: Each with its probability.
    """
    steps: tuple[tuple[float, Flip | Rotate | Colours | Blur | Noise | Jpeg], ...]

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Runs each augmentation with its probability."""
        for prob, step in self.steps:
            if rng.random() < prob:
                image, label = step(image, label, rng)
        return image, label


# Options of each augmentation: default, lowest and highest value; a pair is [low, high].
_OPTIONS = {"flip": {}, "rotate": {"degrees": (10.0, 0, 180)}, "photometric": {},
            "blur": {"sigma": ((0.0, 1.0), 0, 20)}, "noise": {"std": ((0.0, 10.0), 0, 100)},
            "jpeg": {"quality": ((40, 95), 1, 100)}}
_PROBS = {"photometric": 1.0}       # each of its four steps has a probability of its own


def create_augmentation(entries: Sequence, fill: tuple[int, int, int]) -> Augmentation:
    """Makes the augmentations of ``data.augment``.

    Args:
        entries: Names, or mappings of one name to its options: ``flip``, ``{rotate: {degrees: 5, prob: 0.3}}``.
        fill: Colour of corners that a rotation brings in, in BGR.

    Raises:
        ConfigError: An unknown name or option, or a value out of range.
    """
    return Augmentation(tuple(_create(entry, fill) for entry in entries))


def _create(entry: object, fill: tuple[int, int, int]) -> tuple[float, object]:
    name, options = next(iter(entry.items())) if isinstance(entry, Mapping) and len(entry) == 1 else (entry, {})
    options = {} if options is None else options
    if not isinstance(name, str) or name not in (*_OPTIONS, "color_jitter") or not isinstance(options, Mapping):
        raise ConfigError(f"data.augment: {shorten(entry)} is no augmentation; use {', '.join(_OPTIONS)} or "
                          "color_jitter, alone or with options: {rotate: {degrees: 5, prob: 0.3}}")
    if name == "color_jitter":      # checked by mindseg.config, like the key of that name
        return 1.0, Colours(color_jitter(options))
    known = {"prob": (_PROBS.get(name, 0.5), 0, 1), **_OPTIONS[name]}
    values = {key: _checked(name, key, options.get(key, default), default, low, high)
              for key, (default, low, high) in known.items()}
    if unknown := [key for key in options if key not in known]:
        raise ConfigError(f"data.augment: {name} has no option {shorten(unknown[0])}; use {', '.join(known)}")
    prob = values.pop("prob")
    makers = {"flip": Flip, "rotate": lambda degrees: Rotate(degrees, fill), "blur": Blur, "noise": Noise, "jpeg": Jpeg,
              "photometric": lambda: Colours(PHOTOMETRIC)}
    return prob, makers[name](**values)


def _checked(name: str, key: str, value: object, default: object, low: float, high: float) -> object:
    """The value, if it is a number like the default or [low, high] like it, within the limits."""
    pair = isinstance(default, tuple)
    numbers = value if pair and isinstance(value, (list, tuple)) else [value]
    legal = all(isinstance(number, (int, float)) and not isinstance(number, bool) and low <= number <= high
                for number in numbers)
    if not legal or (pair and (len(numbers) != 2 or numbers[0] > numbers[1])):
        form = f"[low, high] within {low} and {high}" if pair else f"a number from {low} to {high}"
        raise ConfigError(f"data.augment: {name}.{key} = {shorten(value)} must be {form}")
    return value
