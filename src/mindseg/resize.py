"""Evaluation resize: the way of an image to the network's input size, and of the answer back to the label's size.

Evaluation, export, pre- and post-processing and exported models all use this module; the C++ runner follows the same
rules. Sizes are (height, width) in pixels.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from mindseg.config import Config
from mindseg.errors import DataError

Size = tuple[int, int]
RULES = ("none", "exact", "short_side", "long_side")
_SLICE_ROWS = 32       # rows of scores that are worked on at a time: 5 MB at 19 x 2048, which a cache holds


@dataclass(frozen=True)
class EvalResize:
    """The resize rule of an evaluation (``eval.resize``, ``eval.label_size``) or of an exported model.

    Attributes:
        rule: ``none``; ``exact`` (to ``size``, whatever the ratio); ``short_side`` or ``long_side`` (that side becomes
            ``size``, the ratio stays).
        size: Two numbers for ``exact``, one for ``short_side``; ``long_side`` takes one, or two: a size to fit into.
        center_crop: Size of the window that is cut out of the middle of the resized image.
        pad: Fill the bottom and the right up to ``size`` with ``pad_value``: one input size for images of many.
        pad_value: Colour of the padding, 0..255, in the network's colour order.
        label_input: Labels are resized (nearest) and cropped like the image, and scored at that size; otherwise they
            stay as they are and the logits are resized to them.
        input_size: The one size that an exported model takes; images are padded up to it. None: any size.
    """
    rule: str = "none"
    size: tuple[int, ...] = ()
    center_crop: Size | None = None
    pad: bool = False
    pad_value: tuple[int, ...] = (0, 0, 0)
    label_input: bool = False
    input_size: Size | None = None

    def scaled_size(self, height: int, width: int) -> Size:
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
        return scale_size((height, width), scale)

    def content_size(self, height: int, width: int) -> Size:
        """Size of the part of the network's input that shows an image of this size: the input without padding."""
        scaled = self.scaled_size(height, width)
        crop = self.center_crop or scaled
        return min(crop[0], scaled[0]), min(crop[1], scaled[1])

    def padded_size(self, height: int, width: int) -> Size:
        """Size of the network's input for an image of this size."""
        content = self.content_size(height, width)
        if self.input_size is not None:
            return self.input_size
        if not self.pad:
            return content
        full = self.size if len(self.size) == 2 else (self.size[0], self.size[0])
        return max(full[0], content[0]), max(full[1], content[1])

    def apply(self, image: np.ndarray, scale: float = 1.0, flip: bool = False, name: str = "image") -> np.ndarray:
        """Resizes, crops, flips and pads an image.

        Args:
            image: uint8 (H, W, 3).
            scale: Factor on every size, for multi-scale inference; the image is resized only once.
            flip: Flip left and right before padding, so that the padding stays at the right.
            name: Name of the image for messages.

        Returns:
            uint8 (h, w, 3), contiguous, of size :meth:`padded_size` times ``scale``.

        Raises:
            DataError: An exported model cannot take an image of this size.
        """
        size = image.shape[:2]
        content = self.content_size(*size)
        fixed = self.input_size
        if fixed and (content[0] > fixed[0] or content[1] > fixed[1] or (content != fixed and not self.pad)):
            raise DataError(f"{name}: image of {size[0]}x{size[1]} becomes {content[0]}x{content[1]}, the model takes "
                            f"{fixed[0]}x{fixed[1]}; export it for that size or with resize rule 'exact'")
        image = _resize(image, scale_size(self.scaled_size(*size), scale), cv2.INTER_LINEAR)
        image = _center_crop(image, scale_size(content, scale))
        image = cv2.flip(image, 1) if flip else image      # 15 times as fast as a copy of a reversed view
        padded = scale_size(self.padded_size(*size), scale)
        bottom, right = padded[0] - image.shape[0], padded[1] - image.shape[1]
        if bottom or right:
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=self.pad_value)
        return np.ascontiguousarray(image)

    def label(self, label: np.ndarray) -> np.ndarray:
        """A label map (H, W) at the size it is scored at."""
        if not self.label_input:
            return label
        size = label.shape
        return _center_crop(_resize(label, self.scaled_size(*size), cv2.INTER_NEAREST_EXACT), self.content_size(*size))

    def restore(self, answer: np.ndarray, image_size: Size, size: Size) -> np.ndarray:
        """Class ids at another size than the network's: padding is cut off, the rest is resized.

        Args:
            answer: Ids (h, w) of any integer type, sampled nearest, or float logits (C, h, w), resized bilinearly.
            image_size: Size of the image before :meth:`apply`.
            size: Size of the result.

        Returns:
            uint8 (height, width).
        """
        rows, columns = self.content_size(*image_size)
        answer = answer[..., :rows, :columns]
        if answer.ndim == 2:
            return _resize(answer.astype(np.uint8), tuple(size), cv2.INTER_NEAREST_EXACT)
        return argmax_resized(answer.astype(np.float32, copy=False), tuple(size))


def create_resize(cfg: Config) -> EvalResize:
    """The resize rule of a configuration's section ``eval``."""
    resize = cfg.eval.resize or {}
    size = resize.get("size") or ()
    crop = resize.get("center_crop")
    pad_value = tuple(min(255, max(0, round(m * 255 / cfg.data.value_range))) for m in cfg.data.mean)
    return EvalResize(resize.get("rule", "none"), (size,) if isinstance(size, int) else tuple(size),
                      tuple(crop) if crop else None, bool(resize.get("pad")), pad_value, cfg.eval.label_size == "input")


def check_resize(resize: EvalResize) -> str:
    """The reason why no image at all fits into ``resize.input_size``; empty if one can."""
    rule, size, (height, width) = resize.rule, resize.size, resize.input_size
    if rule == "none":
        return ""
    if len(size) == 2:
        larger, equal = size[0] > height or size[1] > width, tuple(size) == (height, width)
        fits = not larger and (equal or resize.pad or rule != "exact")
    else:
        fits = size[0] <= (min(height, width) if rule == "short_side" else max(height, width))
    return "" if fits else f"the input takes {height}x{width}"


def scale_size(size: Size, scale: float) -> Size:
    """A size times a factor, rounded, at least 1 x 1."""
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def argmax_resized(scores: np.ndarray, size: Size) -> np.ndarray:
    """Class of the highest score after a bilinear resize, without ever holding all resized scores.

    Args:
        scores: float32 (C, h, w).
        size: Height and width of the result.

    Returns:
        uint8 (height, width); the lower class wins a tie.
    """
    result = np.zeros(size, np.uint8)
    for rows, part in resized_slices(scores, size):
        best, ids = part[0].copy(), result[rows]
        for index in range(1, len(part)):
            np.putmask(ids, part[index] > best, index)
            np.maximum(best, part[index], out=best)
    return result


def resized_slices(scores: np.ndarray, size: Size) -> Iterator[tuple[slice, np.ndarray]]:
    """Bilinear resize (half-pixel centres) of scores, a few rows at a time.

    Args:
        scores: float32 (C, h, w).
        size: Height and width of the result.

    Yields:
        Rows of the result, and their scores float32 (C, rows, width).
    """
    height, (out_height, out_width) = scores.shape[1], size
    same = scores.shape[1:] == tuple(size)
    position = np.maximum((np.arange(out_height) + 0.5) * (height / out_height) - 0.5, 0.0)
    low = np.minimum(position.astype(np.int64), height - 1)
    high = np.minimum(low + 1, height - 1)
    weight = (position - low).astype(np.float32)[:, None]
    for start in range(0, out_height, _SLICE_ROWS):
        rows = slice(start, min(start + _SLICE_ROWS, out_height))
        if same:
            yield rows, scores[:, rows]
            continue
        first = low[rows][0]
        block = scores[:, first:high[rows][-1] + 1]
        part = np.empty((len(scores), rows.stop - rows.start, out_width), np.float32)
        for plane, out in zip(block, part, strict=True):
            # Rows and columns are independent: columns by OpenCV, rows by hand, so that slices meet without a seam.
            wide = cv2.resize(np.ascontiguousarray(plane), (out_width, len(plane)), interpolation=cv2.INTER_LINEAR)
            upper, lower = wide[low[rows] - first], wide[high[rows] - first]
            np.add(upper, (lower - upper) * weight[rows], out=out)
        yield rows, part


def _resize(image: np.ndarray, size: Size, method: int) -> np.ndarray:
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=method)


def _center_crop(image: np.ndarray, size: Size) -> np.ndarray:
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top:top + size[0], left:left + size[1]]
