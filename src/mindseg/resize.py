"""At which size evaluation shows an image to the network, and at which size it scores the answer."""
from dataclasses import dataclass

import cv2
import numpy as np

from mindseg.config import Config

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The keys ``eval.resize`` and ``eval.label_size``. Sizes are (height, width) in pixels.

    Attributes:
        rule: ``none``; ``exact`` (to ``size``, whatever the ratio); ``short_side`` or ``long_side`` (that side becomes
            ``size``, the ratio stays).
        size: Two numbers for ``exact``, one for ``short_side``; ``long_side`` takes one, or a box that the image is
            fitted into.
        center_crop: Cuts this window out of the middle of the resized image.
        pad: Fills the bottom and the right up to ``size`` with ``pad_value``: one shape for images of many.
        pad_value: Colour of the filling, 0..255, in the network's colour order.
        label_input: Labels are resized (nearest) and cropped like the image, and scored at that size; otherwise they
            stay as they are and the logits are resized to them.
    """
    rule: str = "none"
    size: tuple[int, ...] = ()
    center_crop: Size | None = None
    pad: bool = False
    pad_value: tuple[int, ...] = (0, 0, 0)
    label_input: bool = False

    def fitted(self, height: int, width: int) -> Size:
        """Size of an image after the rule, before cropping and padding."""
        if self.rule == "none":
            return height, width
        if self.rule == "exact":
            return self.size[0], self.size[1]
        if self.rule == "short_side":
            scale = self.size[0] / min(height, width)
        elif len(self.size) == 1:
            scale = self.size[0] / max(height, width)
        else:
            scale = min(self.size[0] / height, self.size[1] / width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def inner(self, height: int, width: int) -> Size:
        """Size of what an image of this size shows to the network, padding left out."""
        fitted = self.fitted(height, width)
        crop = self.center_crop or fitted
        return min(crop[0], fitted[0]), min(crop[1], fitted[1])

    def box(self, height: int, width: int) -> Size:
        """Size of what the network gets for an image of this size."""
        inner = self.inner(height, width)
        if not self.pad:
            return inner
        box = self.size if len(self.size) == 2 else (self.size[0], self.size[0])
        return max(box[0], inner[0]), max(box[1], inner[1])

    def image(self, image: np.ndarray, scale: float = 1.0, flip: bool = False) -> np.ndarray:
        """Applies the rule, the crop and the padding.

        Args:
            image: uint8 (H, W, 3).
            scale: Factor on every size, for multi-scale inference; the image is resized only once.

            flip: Mirror the image between cropping and padding, so that the padding stays at the right.

        Returns:
            uint8 (h, w, 3) of size :meth:`box` times ``scale``.
        """
        size = image.shape[:2]
        image = _resize(image, times(self.fitted(*size), scale), cv2.INTER_LINEAR)
        image = _center(image, times(self.inner(*size), scale))
        image = image[:, ::-1] if flip else image
        box = times(self.box(*size), scale)
        bottom, right = box[0] - image.shape[0], box[1] - image.shape[1]
        if bottom or right:
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=self.pad_value)
        return image

    def label(self, label: np.ndarray) -> np.ndarray:
        """A label map (H, W) at the size it is scored at."""
        if not self.label_input:
            return label
        size = label.shape
        return _center(_resize(label, self.fitted(*size), cv2.INTER_NEAREST_EXACT), self.inner(*size))


def create_geometry(cfg: Config) -> Geometry:
    """The geometry of a configuration's section ``eval``."""
    resize = cfg.eval.resize or {}
    size = resize.get("size") or ()
    crop = resize.get("center_crop")
    pad_value = tuple(min(255, max(0, round(m * 255 / cfg.data.value_range))) for m in cfg.data.mean)
    return Geometry(resize.get("rule", "none"), (size,) if isinstance(size, int) else tuple(size),
                    tuple(crop) if crop else None, bool(resize.get("pad")), pad_value, cfg.eval.label_size == "input")


def times(size: Size, scale: float) -> Size:
    """A size times a factor, rounded, at least 1 x 1."""
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _resize(image: np.ndarray, size: Size, method: int) -> np.ndarray:
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=method)


def _center(image: np.ndarray, size: Size) -> np.ndarray:
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top:top + size[0], left:left + size[1]]
