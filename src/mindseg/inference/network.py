"""Segmentation by a network: the whole image or sliding windows, one or several scales, with and without flips.

Graphs are compiled for one shape of input, so images are padded to multiples of 32 here, on the host, exactly as the
networks would do inside; what is cut off, resized or averaged afterwards needs no new graph.
"""
import math
from collections.abc import Iterator

import numpy as np

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindseg.compat import cast
from mindseg.config import Config
from mindseg.data.datasets import DatasetInfo
from mindseg.data.labels import IGNORE
from mindseg.models.normalize import Normalize
from mindseg.resize import argmax_resized, create_resize, resized_slices, scale_size

STRIDE = 32            # the deepest stride of all networks; they pad their input to a multiple of it


class Forward(nn.Cell):
    """Normalisation, network and arg-max in one graph: what is compiled here and what is exported.

    Args:
        net: Network in evaluation mode.
        normalize: From uint8 images to the network's input; None if the host normalises.
        num_classes: Logits that may be predicted; a void channel behind them never is.
        ids: Return class ids instead of logits.
    """

    def __init__(self, net: nn.Cell, normalize: Normalize | None, num_classes: int, ids: bool) -> None:
        super().__init__(auto_prefix=False)     # the network's parameters keep their names
        self.net = net
        self.normalize = normalize
        self.num_classes = num_classes
        self.ids = ids

    def construct(self, image: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Runs the network.

        Args:
            image: uint8 (N, H, W, 3), or float32 (N, 3, H, W) if the host normalises.
            rows: float32 (1, 1, H, 1), 1 for rows of the image and 0 for padding; None if nothing is padded.
            columns: float32 (1, 1, 1, W), likewise.

        Returns:
            uint8 ids (N, H, W) or float32 logits (N, num_classes, H, W).
        """
        x = image if self.normalize is None else self.normalize(image)
        if rows is not None:
            x = x * rows * columns      # padding is zero after normalisation, as it is inside the networks
        logits = self.net(x)
        if logits.shape[1] != self.num_classes:     # a slice of everything would still be a copy
            logits = logits[:, :self.num_classes]
        return cast(ops.argmax(logits, 1), mstype.uint8) if self.ids else cast(logits, mstype.float32)


class NetworkPredictor:
    """A network that segments images in the way that section ``eval`` says; a :class:`.predictor.Predictor`.

    Args:
        cfg: Configuration: normalisation, ``eval.mode``, ``eval.resize`` and what belongs to them.
        net: Network.
        info: Classes of the data set; channels of the network behind them are never predicted.
    """

    def __init__(self, cfg: Config, net: nn.Cell, info: DatasetInfo) -> None:
        d, e = cfg.data, cfg.eval
        normalize = Normalize(d.mean, d.std, d.value_range)
        self.net = net
        self.info = info
        self.color_order = d.color_order
        self.resize = create_resize(cfg)
        self.scales = tuple(e.scales) if "ms" in e.mode else (1.0,)
        self.flip = "flip" in e.mode
        self.window = tuple(e.window or d.crop_size) if "slide" in e.mode else None
        self.stride = tuple(e.stride) if e.stride else None
        self._to_ids = Forward(net, normalize, len(info.classes), ids=True)
        self._to_logits = Forward(net, normalize, len(info.classes), ids=False)

    def __call__(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Segments images of one size.

        Args:
            images: uint8 (N, H, W, 3) in the configuration's colour order.
            size: Height and width of the result.

        Returns:
            uint8 class ids (N, height, width).
        """
        size = (int(size[0]), int(size[1]))
        image_size = images.shape[1:3]
        if self.scales != (1.0,) or self.flip:
            total = np.zeros((len(images), len(self.info.classes), *size), np.float32)
            for scale in self.scales:
                self._add(total, images, scale)
            return np.stack([argmax_resized(one, size) for one in total])
        # The arg-max on the device is exact only where no logits are resized or averaged afterwards.
        whole = self.window is None and self.resize.content_size(*image_size) == size
        answers = self._run(self._to_ids, self._fit(images)) if whole else self._logits(self._fit(images))
        return np.stack([self.resize.restore(answer, image_size, size) for answer in answers])

    def loss(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Cross entropy of one pass over whole images (or windows), whatever the mode, at the size of the labels.

        Args:
            images: uint8 (N, H, W, 3).
            labels: uint8 (N, height, width) train ids, 255 = ignored.

        Returns:
            Sum over the labelled pixels, without class weights, and their number.
        """
        rows, columns = self.resize.content_size(*images.shape[1:3])
        logits = self._logits(self._fit(images))[:, :, :rows, :columns]
        return sum(cross_entropy(*pair) for pair in zip(logits, labels, strict=True)), int((labels != IGNORE).sum())

    def _add(self, total: np.ndarray, images: np.ndarray, scale: float) -> None:
        """Adds the probabilities at one scale, flipped too if that is asked for, to ``total`` (N, C, height, width)."""
        height, width = scale_size(self.resize.content_size(*images.shape[1:3]), scale)
        for flip in (False, True) if self.flip else (False,):
            logits = self._logits(self._fit(images, scale, flip))[:, :, :height, :width]
            for one, sums in zip(logits[..., ::-1] if flip else logits, total, strict=True):
                add_probabilities(sums, one)

    def _fit(self, images: np.ndarray, scale: float = 1.0, flip: bool = False) -> np.ndarray:
        return np.stack([self.resize.apply(image, scale, flip) for image in images])

    def _logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, C, H, W) of images (N, H, W, 3), whole or as the mean of overlapping windows."""
        if self.window is None:
            return self._run(self._to_logits, images)
        size = images.shape[1:3]
        total = np.zeros((len(images), len(self.info.classes), *size), np.float32)
        count = np.zeros(size, np.float32)
        for rows, columns in windows(size, self.window, self.stride):
            total[:, :, rows, columns] += self._run(self._to_logits, images[:, rows, columns])
            count[rows, columns] += 1
        total /= count
        return total

    def _run(self, cell: Forward, images: np.ndarray) -> np.ndarray:
        """Runs a compiled cell on images of any size: pads them to the stride and crops the answer."""
        cell.set_train(False)
        height, width = images.shape[1:3]
        bottom, right = -height % STRIDE, -width % STRIDE
        if not (bottom or right):
            return cell(Tensor(np.ascontiguousarray(images))).asnumpy()
        images = np.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        rows = (np.arange(height + bottom) < height).astype(np.float32).reshape(1, 1, -1, 1)
        columns = (np.arange(width + right) < width).astype(np.float32).reshape(1, 1, 1, -1)
        return cell(Tensor(images), Tensor(rows), Tensor(columns)).asnumpy()[..., :height, :width]


def windows(size: tuple[int, int], window: tuple[int, int],
            stride: tuple[int, int] | None = None) -> Iterator[tuple[slice, slice]]:
    """Windows that cover an image; the last of a row or column is moved back so that it ends at the border.

    Args:
        size: Height and width of the image.
        window: Height and width of a window; smaller images get one window of their own size.
        stride: Step between windows, at most the window; ``None``: two thirds of it.

    Yields:
        Rows and columns of each window.
    """
    sides = []
    for length, part, step in zip(size, window, stride or (None, None), strict=True):
        step = step or max(1, part * 2 // 3)
        part = min(part, length)
        count = math.ceil((length - part) / step) + 1
        starts = [min(i * step, length - part) for i in range(count)]
        sides.append([slice(start, start + part) for start in starts])
    for rows in sides[0]:
        for columns in sides[1]:
            yield rows, columns


def add_probabilities(total: np.ndarray, logits: np.ndarray) -> None:
    """Adds softmax probabilities of logits, resized bilinearly before.

    Args:
        total: float32 (C, height, width), changed in place.
        logits: float32 (C, h, w).
    """
    for rows, part in resized_slices(logits, total.shape[1:]):
        part = part - part.max(0)
        np.exp(part, out=part)
        part /= part.sum(0)
        total[:, rows] += part


def cross_entropy(logits: np.ndarray, label: np.ndarray) -> float:
    """Sum of the cross entropy over the labelled pixels, logits resized bilinearly to the label before.

    Args:
        logits: float32 (C, h, w).
        label: uint8 (height, width) train ids, 255 = ignored.
    """
    total = 0.0
    for rows, part in resized_slices(logits, label.shape):
        valid = label[rows] != IGNORE
        part = part - part.max(0)
        own = np.take_along_axis(part, np.where(valid, label[rows], 0)[None], 0)[0]
        total += float((np.log(np.exp(part).sum(0)) - own)[valid].sum(dtype=np.float64))
    return total
