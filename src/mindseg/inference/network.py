"""Segmentation by a network: the whole image or sliding windows, one or several scales, with and without flips.

Graphs are compiled for one shape of input, so images are padded here, on the host, with what is zero after
normalisation, exactly as the networks would do inside. Logits stay on the device until they have become class ids. How
they are cut, flipped, resized and averaged is in small arrays, so images of many sizes share a graph.
"""
import numpy as np

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindseg.compat import cast, device_target, take, take_along, transpose
from mindseg.config import Config
from mindseg.cpu_kernels.fusion import fuse_network
from mindseg.cpu_kernels.operators import add_probabilities
from mindseg.data.datasets import DatasetInfo
from mindseg.data.labels import IGNORE
from mindseg.inference.decision import decide_by_logits, decide_by_sums
from mindseg.inference.sampling import Axis, sampling, taps, window_starts
from mindseg.models.layers import SegmentationNetwork
from mindseg.models.normalize import Normalize
from mindseg.resize import create_resize, scale_size

STRIDE = 32            # the deepest stride of all networks; they pad their input to a multiple of it
_COARSE_STEP = 128     # eval.size_step on Ascend, where a graph takes tens of seconds to compile


class Forward(nn.Cell):
    """Normalisation, network and arg-max in one graph: what is compiled here and what is exported.

    Args:
        net: Network in evaluation mode.
        normalize: From uint8 images to the network's input; None if the host normalises.
        num_classes: Logits that may be predicted; a void channel behind them never is.
        ids: Return class ids instead of logits.
        small: Return the logits before the resize that ends the network, which must be a ``SegmentationNetwork``.
    """

    def __init__(self, net: nn.Cell, normalize: Normalize | None, num_classes: int, ids: bool,
                 small: bool = False) -> None:
        super().__init__(auto_prefix=False)     # the network's parameters keep their names
        self.net = net
        self.normalize = normalize
        self.num_classes = num_classes
        self.ids = ids
        self.small = small

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
        logits = self.net.small_logits(x) if self.small else self.net(x)
        if logits.shape[1] != self.num_classes:     # a slice of everything would still be a copy
            logits = logits[:, :self.num_classes]
        return cast(ops.argmax(logits, 1), mstype.uint8) if self.ids else cast(logits, mstype.float32)


class Confidence(nn.Cell):
    """Probability of the most probable class, ``1 / sum_c exp((logit_c - highest logit) / temperature)``.

    Args:
        temperature: Divisor of the logits before the softmax, above 0: above 1 the model is less sure.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def construct(self, logits: Tensor) -> Tensor:
        """Maps float32 logits (N, C, ...) to uint8 (N, ...): 255 times the probability, rounded."""
        distance = logits - ops.ReduceMax(True)(logits, 1)
        if self.temperature != 1:
            distance = distance / self.temperature
        return _to_uint8(1.0 / ops.reduce_sum(ops.exp(distance), 1))


def _to_uint8(probability: Tensor) -> Tensor:
    """``round(255 * p)``, halves upwards, of float32 probabilities."""
    return cast(ops.floor(probability * 255.0 + 0.5), mstype.uint8)


class ForwardWithConfidence(nn.Cell):
    """Class ids and their confidence in one graph.

    Args:
        to_logits: Returns logits at the size of the ids.
        temperature: Of the confidence.
    """

    def __init__(self, to_logits: Forward, temperature: float) -> None:
        super().__init__(auto_prefix=False)
        self.to_logits = to_logits
        self.confidence = Confidence(temperature)

    def construct(self, image: Tensor, rows: Tensor | None = None,
                  columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps the arguments of :class:`Forward` to two tensors uint8 (N, H, W)."""
        logits = self.to_logits(image, rows, columns)
        return cast(ops.argmax(logits, 1), mstype.uint8), self.confidence(logits)


class Resample(nn.Cell):
    """Logits of a pass at the size of the answer.

    Args:
        shift: Subtract the highest logit of each pixel before, so that no result is above 0; probabilities stay.
    """

    def __init__(self, shift: bool) -> None:
        super().__init__()
        self.shift = shift

    def construct(self, logits: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor,
                  column_weights: Tensor) -> Tensor:
        """Maps float32 (N, C, h, w) to (N, C, W, H): rows last, which saves a transpose of the larger tensor.

        The other arguments are those that :func:`.sampling.sampling` makes of rows and columns.
        """
        n, c, height, width = logits.shape
        if self.shift:
            logits = logits - ops.tile(_highest(logits), (1, c, 1, 1))
        x = _combine_rows(ops.reshape(logits, (n * c, height, width)), rows, row_weights)
        x = _combine_rows(transpose(x, (0, 2, 1)), columns, column_weights)
        return ops.reshape(x, (n, c, x.shape[1], x.shape[2]))


def _highest(logits: Tensor) -> Tensor:
    """Highest logit of each pixel, (N, 1, H, W); five times as fast as a ReduceMax on the CPU."""
    first, *others = ops.split(logits, 1, 1)
    for other in others:
        first = ops.maximum(first, other)
    return first


def _combine_rows(x: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Makes each 32 rows of (P, H, W) from K rows of ``x``: ``rows`` is int32 (B * K,), ``weights`` (B, 32, K)."""
    planes, _, width = x.shape
    blocks, block, taps = weights.shape
    parts = ops.reshape(take(x, rows, 1), (planes, blocks, taps, width))
    weights = ops.tile(ops.reshape(weights, (1, blocks, block, taps)), (planes, 1, 1, 1))
    return ops.reshape(ops.BatchMatMul()(weights, parts), (planes, blocks * block, width))


class AddProbabilities(nn.Cell):
    """Sum of the probabilities of several passes.

    Args:
        classes: Number of classes.
        by_products: The logits are at most 0; sum over classes by a matrix product, a quarter of the time of the
            CPU's softmax. Other devices might round its inputs to 16 bits.
        temperature: Divisor of the logits before the softmax.
    """

    def __init__(self, classes: int, by_products: bool, temperature: float = 1.0) -> None:
        super().__init__()
        self.by_products = by_products
        self.temperature = temperature
        self.ones = Tensor(np.ones((1, 1, classes), np.float32))

    def construct(self, logits: Tensor, total: Tensor | None = None) -> Tensor:
        """Adds the softmax of float32 logits (N, C, W, H) to ``total``, of the same shape; None: the first pass."""
        if self.temperature != 1:
            logits = logits / self.temperature
        probabilities = self._products(logits) if self.by_products else ops.Softmax(1)(logits)
        return probabilities if total is None else total + probabilities

    def _products(self, logits: Tensor) -> Tensor:
        n, c, width, height = logits.shape
        powers = ops.exp(logits)
        sums = ops.BatchMatMul()(ops.tile(self.ones, (n, 1, 1)), ops.reshape(powers, (n, c, width * height)))
        # 0 only between pixels of different classes, each 100 above all others; this pass then counts for none.
        factors = 1.0 / ops.maximum(sums, 1e-30)
        return powers * ops.tile(ops.reshape(factors, (n, 1, width, height)), (1, c, 1, 1))


class ClassIds(nn.Cell):
    """Classes of the highest scores."""

    def construct(self, scores: Tensor) -> Tensor:
        """Maps (N, C, W, H) to uint8 (N, H, W)."""
        return transpose(cast(ops.argmax(scores, 1), mstype.uint8), (0, 2, 1))


class MeanConfidence(nn.Cell):
    """Mean probability over several passes.

    Args:
        passes: Their number.
    """

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.passes = passes

    def construct(self, scores: Tensor, total: Tensor) -> Tensor:
        """Maps sums of probabilities (N, C, W, H) to uint8 (N, H, W).

        Args:
            scores: Those whose highest chooses the class.
            total: Those that its probability is taken from.
        """
        chosen = take_along(total, 1, ops.expand_dims(ops.argmax(scores, 1), 1))
        return transpose(_to_uint8(ops.squeeze(chosen, 1) / self.passes), (0, 2, 1))


class PixelLoss(nn.Cell):
    """Cross entropy of each pixel."""

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Maps float32 (N, C, W, H) and int32 train ids (N, H, W), 255 = ignored, to float32 (N, W, H); ignored: 0."""
        label = ops.expand_dims(transpose(label, (0, 2, 1)), 1)
        classes = ops.reshape(ops.arange(logits.shape[1]), (1, -1, 1, 1))
        own = ops.reduce_sum(logits * cast(classes == label, mstype.float32), 1)
        highest = ops.ReduceMax(True)(logits, 1)
        log_sum = ops.log(ops.reduce_sum(ops.exp(logits - highest), 1)) + ops.squeeze(highest, 1)
        return (log_sum - own) * cast(ops.squeeze(label, 1) != IGNORE, mstype.float32)


def run_compiled(cell: nn.Cell, *arrays: np.ndarray) -> Tensor | tuple[Tensor, ...]:
    """Runs a cell in MindSpore."""
    return cell(*map(Tensor, arrays))


class NetworkPredictor:
    """A network that segments images in the way that section ``eval`` says; a :class:`.predictor.Predictor`.

    Args:
        cfg: Configuration: normalisation, ``eval.mode``, ``eval.resize`` and what belongs to them.
        net: Network.
        info: Classes of the data set; channels of the network behind them are never predicted.
        temperature: Divisor of the logits for the confidence; the classes do not depend on it.

    Attributes:
        runner: Function from a ``Forward`` or ``ForwardWithConfidence`` and its arguments to its answer; another
            program than MindSpore may do that.
    """

    def __init__(self, cfg: Config, net: nn.Cell, info: DatasetInfo, temperature: float = 1.0) -> None:
        d, e = cfg.data, cfg.eval
        normalize = Normalize(d.mean, d.std, d.value_range)
        self.net = net
        self.runner, self.backend = run_compiled, "mindspore"
        self.info = info
        self.color_order = d.color_order
        self.gives_confidence = True
        self.trained_size = None if "slide" in e.mode else tuple(d.resize or d.crop_size)     # windows are as large
        self.blends = True
        self.resize = create_resize(cfg)
        self.scales = tuple(e.scales) if "ms" in e.mode else (1.0,)
        self.flip = "flip" in e.mode
        self.window = tuple(e.window or d.crop_size) if "slide" in e.mode else None
        self.stride = tuple(e.stride) if e.stride else (None, None)
        self.size_step = size_step(e.size_step)
        self.temperature = temperature
        # What is resized afterwards anyway is resized once, in one with the end of the network.
        self._upsampling = net.upsampling if isinstance(net, SegmentationNetwork) else None
        self._confidence = Confidence(temperature)
        self._to_ids = Forward(net, normalize, len(info.classes), ids=True)
        self._to_full = Forward(net, normalize, len(info.classes), ids=False)
        self._to_both = ForwardWithConfidence(self._to_full, temperature)
        self._to_logits = Forward(net, normalize, len(info.classes), ids=False, small=self._upsampling is not None)
        by_products, self._averages = device_target() == "CPU", self.scales != (1.0,) or self.flip
        self._by_operator = fuse_network(net, cfg.runtime.threads, normalize) and self._averages
        self._resample = Resample(shift=by_products and self._averages)
        self._add = AddProbabilities(len(info.classes), by_products)
        self._add_tempered = AddProbabilities(len(info.classes), by_products, temperature)
        self._passes = [(scale, flip) for scale in self.scales for flip in ((False, True) if self.flip else (False,))]
        self._mean_confidence = MeanConfidence(len(self._passes))
        self._ids, self._loss = ClassIds(), PixelLoss()

    def __call__(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Segments images of one size.

        Args:
            images: uint8 (N, H, W, 3) in the configuration's colour order.
            size: Height and width of the result.

        Returns:
            uint8 class ids (N, height, width).
        """
        height, width = size = (int(size[0]), int(size[1]))
        if self._runs_once(images, size):
            ids = self._run(self._to_ids, self._fit(images), self.size_step)
        elif self._by_operator:
            return np.stack([self.decide(sums)[0] for sums in self._host_sums(images, size)])
        elif self._averages:
            ids = self._ids(self._sums(images, size)[0])
        else:
            ids = self._ids(self._resampled(images, size))
        return ids.asnumpy()[:, :height, :width]

    def with_confidence(self, images: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Segments images of one size and says how sure the network is.

        Several passes: the probability of the class is their mean; the class is that of temperature 1.

        Args:
            images: As for a call.
            size: As for a call.

        Returns:
            uint8 class ids, those of a call, and the uint8 probability of each, ``round(255 * p)``; both (N, height,
            width).
        """
        height, width = size = (int(size[0]), int(size[1]))
        if self._runs_once(images, size):
            answers = self._run(self._to_both, self._fit(images), self.size_step)
        elif self._by_operator:
            answers = zip(*[self.decide(sums, True) for sums in self._host_sums(images, size, True)], strict=True)
            return tuple(map(np.stack, answers))
        elif self._averages:
            sums = self._sums(images, size, True)
            answers = self._ids(sums[0]), self._mean_confidence(sums[0], sums[-1])
        else:
            logits = self._resampled(images, size)
            answers = self._ids(logits), transpose(self._confidence(logits), (0, 2, 1))
        return tuple(answer.asnumpy()[:, :height, :width] for answer in answers)

    def scores(self, images: np.ndarray, size: tuple[int, int], confidence: bool = False) -> np.ndarray:
        """The scores that choose the classes: logits of a single pass, or sums of the probabilities of several.

        Args:
            images: As for a call.
            size: As for a call.
            confidence: Add the sums of the confidence, if they are others.

        Returns:
            float32 (N, K, height, width), K the number of classes, or twice that.
        """
        height, width = size = (int(size[0]), int(size[1]))
        if self._runs_once(images, size):
            return self._run(self._to_full, self._fit(images), self.size_step).asnumpy()[:, :, :height, :width]
        if self._by_operator:
            return self._host_sums(images, size, confidence)
        scores = _concat(self._sums(images, size, confidence), 1) if self._averages else self._resampled(images, size)
        return scores.asnumpy().transpose(0, 1, 3, 2)[:, :, :height, :width]

    def decide(self, scores: np.ndarray, confidence: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Classes by scores (K, H, W) of one image, uint8 (H, W), and their confidence if asked for."""
        if self._averages:
            return decide_by_sums(scores, len(self.info.classes), len(self._passes) if confidence else None)
        return decide_by_logits(scores, self.temperature if confidence else None)

    def _temperatures(self, confidence: bool) -> tuple[float, ...]:
        """Those of the sums that are needed: another one for the confidence if it has a temperature."""
        return (1.0, self.temperature) if confidence and self.temperature != 1 else (1.0,)

    def _runs_once(self, images: np.ndarray, size: tuple[int, int]) -> bool:
        """One pass gives the answer at its size."""
        once = not self._averages and self.window is None
        return once and self.resize.content_size(*images.shape[1:3]) == size

    def _sums(self, images: np.ndarray, size: tuple[int, int], confidence: bool = False) -> list[Tensor]:
        """Sums of the probabilities of all passes, float32 (N, C, W, H), one for each temperature."""
        adders = [self._add, self._add_tempered][:len(self._temperatures(confidence))]
        totals: list[Tensor | None] = [None] * len(adders)
        for scale, flip in self._passes:
            logits = self._resampled(images, size, scale, flip)
            for i, add in enumerate(adders):
                totals[i] = add(logits) if totals[i] is None else add(logits, totals[i])
        return totals

    def _host_sums(self, images: np.ndarray, size: tuple[int, int], confidence: bool = False) -> np.ndarray:
        """The same by our operator on a CPU, float32 (N, K, height, width): one behind the other."""
        temperatures, classes = self._temperatures(confidence), len(self.info.classes)
        sums = [np.zeros((len(images), classes, *size), np.float32) for _ in temperatures]
        for scale, flip in self._passes:
            logits, *axes = self._logits(images, size, scale, flip)
            for temperature, total in zip(temperatures, sums, strict=True):
                add_probabilities(logits.asnumpy(), *map(taps, axes), temperature, total)
        return sums[0] if len(sums) == 1 else np.concatenate(sums, 1)

    def logits(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Logits of one pass over whole images (or windows), whatever the mode; of several passes less their highest.

        Args:
            images: uint8 (N, H, W, 3).
            size: Height and width of the result.

        Returns:
            float32 (N, C, height, width).
        """
        height, width = int(size[0]), int(size[1])
        return self._resampled(images, (height, width)).asnumpy().swapaxes(2, 3)[:, :, :height, :width]

    def loss(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Cross entropy of one pass over whole images (or windows), whatever the mode, at the size of the labels.

        Args:
            images: uint8 (N, H, W, 3).
            labels: uint8 (N, height, width) train ids, 255 = ignored.

        Returns:
            Sum over the labelled pixels, without class weights, and their number.
        """
        logits = self._resampled(images, labels.shape[1:])
        bottom, right = (full - size for full, size in zip(logits.shape[:1:-1], labels.shape[1:], strict=True))
        padded = np.pad(labels, ((0, 0), (0, bottom), (0, right)), constant_values=IGNORE).astype(np.int32)
        losses = self._loss(logits, Tensor(padded)).asnumpy()
        return float(losses.sum(dtype=np.float64)), int((labels != IGNORE).sum())

    def _fit(self, images: np.ndarray, scale: float = 1.0, flip: bool = False) -> np.ndarray:
        return np.stack([self.resize.apply(image, scale, flip) for image in images])

    def _logits(self, images: np.ndarray, size: tuple[int, int], scale: float,
                flip: bool) -> tuple[Tensor, Axis, Axis]:
        """Logits of one pass, those of all windows in one tensor, and how its rows and columns become ``size``."""
        fitted = self._fit(images, scale, flip)
        covered, content = fitted.shape[1:3], scale_size(self.resize.content_size(*images.shape[1:3]), scale)
        window = [min(pair) for pair in zip(self.window or covered, covered, strict=True)]
        starts = [window_starts(*numbers) for numbers in zip(covered, window, self.stride, strict=True)]
        step = self._step(scale)
        rows = [[self._run(self._to_logits, fitted[:, top:top + window[0], left:left + window[1]], step)
                 for left in starts[1]] for top in starts[0]]
        logits = _concat([_concat(row, 3) for row in rows], 2)
        axes = [Axis(starts[axis], window[axis], _padded(window[axis], step),
                     logits.shape[2 + axis] // len(starts[axis]), content[axis], size[axis], flip and axis == 1,
                     self._upsampling) for axis in (0, 1)]
        return logits, *axes

    def _resampled(self, images: np.ndarray, size: tuple[int, int], scale: float = 1.0, flip: bool = False) -> Tensor:
        """Logits of one pass, float32 (N, C, W, H), H and W the multiples of 32 from ``size`` on."""
        logits, *axes = self._logits(images, size, scale, flip)
        return self._resample(logits, *[Tensor(array) for axis in axes for array in sampling(axis)])

    def _step(self, scale: float) -> int:
        """``size_step`` at a scale; windows have one size anyway."""
        if self.window is not None or self.size_step == STRIDE:
            return STRIDE
        return max(STRIDE, round(self.size_step * scale / STRIDE) * STRIDE)

    def _run(self, cell: nn.Cell, images: np.ndarray, step: int) -> Tensor:
        """Runs a cell on images of any size, padded to multiples of ``step``."""
        cell.set_train(False)
        height, width = images.shape[1:3]
        bottom, right = _padded(height, step) - height, _padded(width, step) - width
        if not (bottom or right or step > STRIDE):
            return self.runner(cell, np.ascontiguousarray(images))
        images = np.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        rows = (np.arange(height + bottom) < height).astype(np.float32).reshape(1, 1, -1, 1)
        columns = (np.arange(width + right) < width).astype(np.float32).reshape(1, 1, 1, -1)
        return self.runner(cell, images, rows, columns)


def size_step(configured: int | str) -> int:
    """Pixels whose multiples the sides of the network's input are, a multiple of 32.

    Args:
        configured: ``eval.size_step``.
    """
    if configured == "auto":
        return _COARSE_STEP if device_target() == "Ascend" else STRIDE
    return configured + -configured % STRIDE


def _padded(length: int, step: int) -> int:
    """The first multiple of ``step`` from ``length`` on."""
    return length + -length % step


def _concat(tensors: list[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else ops.concat(tensors, axis)
