"""Losses of the outputs of a network, (main, auxiliary, ...), compared with one label map.

A loss is a weighted mean over pixels, and ``weight_sum`` is the sum of these weights. The training step multiplies each
loss by its weight sum, adds micro-batches and devices, and divides by the total, so any split of a batch gives the mean
of the whole. OHEM selects pixels, and Dice counts areas, within one micro-batch of one device.
"""
import math

import numpy as np

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from mindseg.compat import (
    CountValues,
    SoftmaxCrossEntropy,
    add_along,
    cast,
    kernels,
    take,
    take_along,
    total,
    transpose,
)
from mindseg.config import Config
from mindseg.errors import ConfigError, shorten

EPSILON = 1e-6
STRIDE = 32


class PixelCrossEntropy(nn.Cell):
    """Softmax cross entropy of each pixel, computed along the channel axis.

    MindSpore's own kernel needs the channels last, and moving them takes longer than the kernel. The gradient is
    written out because automatic differentiation of the gathering is ten times slower.
    """

    def __init__(self) -> None:
        super().__init__()
        # Gathering along an axis is fast on the CPU, and work for the slow processors of the first Ascend 910.
        self.gathers = kernels() == "cpu"

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Maps logits (N, C, P) and labels (N, 1, P), for P pixels, to losses (N, 1, P)."""
        scores = ops.log_softmax(logits, 1)
        if self.gathers:
            return -take_along(scores, 1, label)
        return -(scores * one_hot(label, logits.shape[1])).sum(1, keepdims=True)

    def bprop(self, logits: Tensor, label: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradient of the logits: (softmax - one_hot(label)) * dout."""
        softmax = ops.exp(ops.log_softmax(logits, 1))
        if self.gathers:
            return add_along(softmax * dout, 1, label, -dout), ops.zeros_like(label)
        return (softmax - one_hot(label, logits.shape[1])) * dout, ops.zeros_like(label)


class PixelBinaryCrossEntropy(nn.Cell):
    """Binary cross entropies of each pixel, summed over the classes: log(1 + exp(x)) - x * [class is true]."""

    def __init__(self) -> None:
        super().__init__()
        self.softplus = ops.Softplus()      # does not overflow for large x

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Maps logits (N, C, P) and labels (N, 1, P), for P pixels, to losses (N, 1, P)."""
        return (self.softplus(logits) - logits * one_hot(label, logits.shape[1])).sum(1, keepdims=True)

    def bprop(self, logits: Tensor, label: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradient of the logits: (sigmoid - one_hot(label)) * dout."""
        return (ops.sigmoid(logits) - one_hot(label, logits.shape[1])) * dout, ops.zeros_like(label)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Marks each pixel's class by comparison, which has no gradient and needs no look-up.

    Args:
        label: (N, 1, P) int32.
        classes: Number of classes C.

    Returns:
        (N, C, P) float32, 1 at the label's class; all 0 for labels that are no class.
    """
    return cast(ops.equal(label, ops.reshape(_numbers(classes), (1, -1, 1))), mstype.float32)


class PixelLoss(nn.Cell):
    """Base class of the losses: weights of the pixels, and cross entropy.

    Args:
        ignore_id: Label value of ignored pixels.
        class_weights: One weight per class, at least 0; None: 1 each.

    Attributes:
        fused: Operator that resizes logits and computes their cross entropy; None: plain operators, whose logits have
            the label's size. See :func:`mindseg.cpu_kernels.fusion.fuse_loss`.
        corners: Number of its corner rule; None: the logits have the label's size.
    """

    def __init__(self, ignore_id: int = 255, class_weights: list[float] | None = None) -> None:
        super().__init__()
        self.ignore_id = ignore_id
        self.class_weights = None if class_weights is None else Tensor(class_weights, mstype.float32)
        self.pixel_loss = PixelCrossEntropy()
        self.log_softmax = kernels() != "cpu"       # the first Ascend 910 has no kernel for the softmax's gradient
        self.fused, self.corners = None, None

    def pixel_weights(self, label: Tensor) -> Tensor:
        """Looks up the weight of each pixel.

        Args:
            label: (P,) int32.

        Returns:
            (P,) float32, the weight of the label's class, 0 for ignored pixels.
        """
        valid = cast(ops.not_equal(label, self.ignore_id), mstype.float32)
        if self.class_weights is None:
            return valid
        return valid * take(self.class_weights, self.clip_label(label, self.class_weights.shape[0]))

    def weight_sum(self, label: Tensor) -> Tensor:
        """Sums the weights of all pixels, the divisor of the mean.

        Args:
            label: (N, H, W) int32.

        Returns:
            Scalar float32.
        """
        return total(self.pixel_weights(label.reshape(-1)))

    @staticmethod
    def clip_label(label: Tensor, classes: int) -> Tensor:
        """Turns ignored labels into the last class, because a value outside [0, classes) would crash the CPU kernel.

        Args:
            label: int32 of any shape, in [0, classes) or the ignore id.
            classes: Number of classes.
        """
        return ops.minimum(label, classes - 1)

    @staticmethod
    def by_pixel(logits: Tensor) -> Tensor:
        """Reshapes logits (N, C, H, W) of any float type to (N, C, H*W) float32."""
        n, c, h, w = logits.shape
        return cast(ops.reshape(logits, (n, c, h * w)), mstype.float32)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax of logits (N, C, H, W), float32 (N, C, H*W)."""
        logits = self.by_pixel(logits)
        return ops.exp(ops.log_softmax(logits, 1)) if self.log_softmax else ops.softmax(logits, 1)

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the softmax cross entropy of each pixel.

        Args:
            logits: (N, C, H, W) float, or smaller ones for the attribute ``corners``.
            label: (N, H, W) int32.

        Returns:
            (P,) float32 with P = N*H*W; the values of ignored pixels are meaningless.
        """
        if self.fused is not None:
            size = _resized(label.shape, logits.shape, self.corners)
            return ops.reshape(self.fused(cast(logits, mstype.float32), label, size), (-1,))
        n, c, h, w = logits.shape
        label = ops.reshape(self.clip_label(label, c), (n, 1, h * w))
        return ops.reshape(self.pixel_loss(self.by_pixel(logits), label), (-1,))


class CrossEntropyLoss(PixelLoss):
    """Softmax cross entropy, the weighted mean over the valid pixels.

    The mean is sum(w[label] * loss) / max(sum(w[label]), 1e-6) over the pixels whose label is not ``ignore_id``, like
    PyTorch's ``CrossEntropyLoss(weight=w, ignore_index=...)``; a crop without valid pixels gives 0 instead of NaN.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss.

        Args:
            logits: (N, C, H, W) float.
            label: (N, H, W) int32, in [0, C) or ``ignore_id``.
        """
        weights = self.pixel_weights(label.reshape(-1))
        return total(self.cross_entropy(logits, label) * weights) / ops.maximum(total(weights), EPSILON)


class OhemLoss(PixelLoss):
    """Cross entropy over the hard pixels only: online hard example mining (arXiv 1604.03540).

    A pixel is hard if the network gives its true class a probability below ``thresh``; the threshold rises until enough
    pixels are hard. There are two public rules:

    - ``fraction``: at least 1/16 of the valid pixels; mean over the selected ones (CoinCheung/BiSeNet, ``OhemCELoss``).
    - ``min_kept``: at least ``min_kept`` pixels per image; sum over the selected ones, divided by the number of valid
      pixels, so the loss shrinks as pixels become easy (mmsegmentation, ``OHEMPixelSampler``).

    Args:
        ignore_id: Label value of ignored pixels.
        class_weights: One weight per class, None: 1 each; they do not influence the selection.
        thresh: Probability, 0..1.
        rule: ``fraction`` or ``min_kept``.
        min_kept: Pixels per image, for the rule ``min_kept``.
    """

    def __init__(self, ignore_id: int = 255, class_weights: list[float] | None = None, thresh: float = 0.7,
                 rule: str = "fraction", min_kept: int = 10000) -> None:
        super().__init__(ignore_id, class_weights)
        # The CPU sorts quickly, and MindSpore's own kernel rounds small losses, which are ranked here, less coarsely.
        self.sorts = kernels() == "cpu"
        self.softmax_loss = SoftmaxCrossEntropy()
        self.thresh = -math.log(thresh)
        self.rule = rule
        self.min_kept = min_kept

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss, as :class:`CrossEntropyLoss` does."""
        images, labels, label = label.shape[0], label, label.reshape(-1)
        valid = cast(ops.not_equal(label, self.ignore_id), mstype.float32)
        losses = self.cross_entropy(logits, labels) * valid
        count = total(valid)
        kept = ops.floor(count / 16.0) if self.rule == "fraction" else ops.minimum(count, self.min_kept * images)
        lower, upper = self.hardest(ops.stop_gradient(losses), ops.maximum(kept, 1.0))
        # At least ``kept`` pixels count, even if they are easier than the threshold. Pixels that are as hard as the
        # last of them get equal weights that add up to the places left.
        above = cast(losses > upper, mstype.float32)
        ties = cast(losses >= lower, mstype.float32) - above
        tie_weight = ops.relu(kept - total(above)) / ops.maximum(total(ties), 1.0)
        selected = ops.stop_gradient(above + ties * tie_weight) * self.pixel_weights(label)
        divisor = total(selected if self.rule == "fraction" else self.pixel_weights(label))
        return total(losses * selected) / ops.maximum(divisor, EPSILON)

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the softmax cross entropy of each pixel, as :meth:`PixelLoss.cross_entropy` does."""
        if self.fused is not None or not self.sorts:
            return super().cross_entropy(logits, label)
        rows = cast(transpose(logits, (0, 2, 3, 1)).reshape(-1, logits.shape[1]), mstype.float32)
        return self.softmax_loss(rows, self.clip_label(label.reshape(-1), logits.shape[1]))

    def hardest(self, losses: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the smallest of the ``kept`` largest losses, or the threshold if that is smaller.

        Args:
            losses: (P,) float32, at least 0.
            kept: Scalar float32, a whole number from 1 to P.

        Returns:
            Two bounds: losses above the second are larger, those from the first to the second are as large. They are
            equal, or 2**-20 of the threshold apart.
        """
        if self.sorts:
            hardest = take(ops.sort(losses, 0, True)[0], cast(kept, mstype.int32) - 1)
            lower = ops.minimum(hardest, self.thresh)
            return lower, lower
        # Ascend's sort is slow and may round. Counting in 16 intervals, five times, each in one of those before.
        lower, width = Tensor(0.0, mstype.float32), self.thresh
        for _ in range(5):
            width = width / 16
            edges = lower + width * cast(_numbers(16), mstype.float32)
            counts = cast(ops.reshape(losses, (1, -1)) >= ops.reshape(edges, (-1, 1)), mstype.float32).sum(1)
            lower = lower + width * (cast(counts >= kept, mstype.float32).sum() - 1.0)
        return lower, ops.minimum(lower + width, self.thresh)


class BCELoss(PixelLoss):
    """Binary cross entropy of every class against the others, the mean over classes and valid pixels.

    The loss of Fast-SCNN in mmsegmentation and sssegmentation (``use_sigmoid=True``), with learning rate 0.12.

    Args:
        ignore_id: Label value of ignored pixels.
        class_weights: One weight per class, None: 1 each.
    """

    def __init__(self, ignore_id: int = 255, class_weights: list[float] | None = None) -> None:
        super().__init__(ignore_id, class_weights)
        self.binary_loss = PixelBinaryCrossEntropy()

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss, as :class:`CrossEntropyLoss` does."""
        n, classes, h, w = logits.shape
        weights = self.pixel_weights(label.reshape(-1))
        losses = self.binary_loss(self.by_pixel(logits), ops.reshape(label, (n, 1, h * w)))
        return total(ops.reshape(losses, (-1,)) * weights) / (classes * ops.maximum(total(weights), EPSILON))


class DiceLoss(PixelLoss):
    """Dice loss: 1 - mean over classes of (2 * overlap + 1) / (areas + 1), from the probabilities of the valid pixels.

    V-Net's loss (arXiv 1606.04797) with plain instead of squared areas; class weights apply to the mean over classes.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss, as :class:`CrossEntropyLoss` does."""
        n, classes, h, w = logits.shape
        label = ops.reshape(label, (n, 1, h * w))
        valid = cast(ops.not_equal(label, self.ignore_id), mstype.float32)
        probability = self.probabilities(logits) * valid
        truth = one_hot(label, classes) * valid
        doubled, areas = 2.0 * truth, truth.sum((0, 2)) + 1.0     # computed once for all outputs of a network
        scores = ((probability * doubled).sum((0, 2)) + 1.0) / (probability.sum((0, 2)) + areas)
        if self.class_weights is None:
            return 1.0 - scores.mean()
        return 1.0 - (scores * self.class_weights).sum() / self.class_weights.sum()


class LovaszLoss(PixelLoss):
    """Lovász-softmax loss (Berman, Triki and Blaschko 2018), the mean over the classes that the labels hold.

    It is a convex surrogate of 1 - IoU: the errors of a class, in descending order, are weighted by what each adds to
    the Jaccard loss. The order comes from counting in ``BINS`` intervals, so the loss differs from the one of sorted
    errors by at most 1 / BINS. Sorting takes six times as long on a CPU, and may round on Ascend. Counted within one
    micro-batch.
    """

    BINS = 8192

    def __init__(self, ignore_id: int = 255, class_weights: list[float] | None = None) -> None:
        super().__init__(ignore_id, class_weights)
        self.count = CountValues()

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss, as :class:`CrossEntropyLoss` does; 0 if no pixel is labelled."""
        n, classes, h, w = logits.shape
        label = ops.reshape(label, (n, 1, h * w))
        valid = cast(ops.not_equal(label, self.ignore_id), mstype.float32)
        truth = one_hot(label, classes) * valid
        errors = ops.abs(truth - self.probabilities(logits) * valid)     # 0, so last, if ignored
        weights = ops.stop_gradient(self._weights(ops.stop_gradient(errors), truth))
        losses = (errors * weights).sum(2).sum(0)
        present = cast(truth.sum((0, 2)) > 0, mstype.float32)
        if self.class_weights is not None:
            present = present * self.class_weights
        return (losses * present).sum() / ops.maximum(present.sum(), EPSILON)

    def _weights(self, errors: Tensor, truth: Tensor) -> Tensor:
        """Derivatives of the Lovász extension.

        Args:
            errors: (N, C, P), 0..1.
            truth: (N, C, P), 1 for pixels of the class.

        Returns:
            (N, C, P). Going down the errors, a pixel of the class adds 1 / U to the Jaccard loss, and another pixel
            I / (U (U + 1)), with U pixels that are of the class or have a larger error, and I pixels of the class with
            a smaller one. Pixels of an interval share: the mean of the order with those of the class first and last.
        """
        classes = errors.shape[1]
        size = classes * self.BINS
        rows = ops.reshape(cast(_numbers(classes), mstype.float32) * self.BINS, (1, -1, 1))
        place = ops.reshape(cast(errors * (self.BINS - 0.5) + (truth * size + rows), mstype.int32), (-1,))
        counts = ops.reshape(self.count(place, 2 * size), (2, classes, self.BINS))
        others, own = counts[0], counts[1]
        inside = ops.CumSum()(own, 1) - 0.5 * own
        first = ops.maximum(own.sum(1, keepdims=True) + others.sum(1, keepdims=True) - ops.CumSum()(others, 1), 1.0)
        last = first + others
        shares = ops.concat((inside / (first * last), 0.5 / first + 0.5 / last), 0)
        return ops.reshape(take(ops.reshape(shares, (-1,)), place), errors.shape)


class SumLoss(PixelLoss):
    """Weighted sum of losses; micro-batches and devices are weighed by the pixels of the first one.

    Args:
        losses: Losses of one output.
        weights: Weight of each.
    """

    def __init__(self, losses: list[PixelLoss], weights: list[float]) -> None:
        super().__init__(losses[0].ignore_id)
        self.losses = nn.CellList(losses)
        self.weights = tuple(weights)

    def weight_sum(self, label: Tensor) -> Tensor:
        """Sums the weights of all pixels, see :meth:`PixelLoss.weight_sum`."""
        return self.losses[0].weight_sum(label)

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss, as :class:`CrossEntropyLoss` does."""
        result = self.weights[0] * self.losses[0](logits, label)
        for i in range(1, len(self.weights)):
            result = result + self.weights[i] * self.losses[i](logits, label)
        return result


@constexpr
def _resized(label: tuple[int, ...], logits: tuple[int, ...], corners: int | None) -> Tensor:
    """Size that the fused operator resizes logits to, and its corner rule, int32 (3,).

    Networks pad images to multiples of ``STRIDE`` and resize logits to that size; the label covers its top left part.
    """
    size = logits[2:] if corners is None else [length + -length % STRIDE for length in label[1:]]
    return Tensor(np.array([*size, corners or 0], np.int32))


@constexpr
def _numbers(count: int) -> Tensor:
    """0, 1, ... as int32 (count,)."""
    return Tensor(np.arange(count, dtype=np.int32))


@constexpr
def _check_heads(weights: int, outputs: int) -> bool:
    """Runs while the graph is compiled, because a graph cannot raise our exceptions."""
    if weights != outputs:
        raise ConfigError(f"loss.weights has {weights} numbers, the network has {outputs} outputs (main and "
                          "auxiliary)")
    return True


class MultiHeadLoss(nn.Cell):
    """Weighted sum of one loss over the main and the auxiliary outputs.

    Args:
        loss: Loss of one output.
        weights: Weight of the main and of each auxiliary output; None: 1 for the main one, 0.4 for the others.
        label_stride: Factor between the sizes of label and outputs; the middle one of so many label pixels is used.
            ENet's encoder, trained alone, needs 8.
    """

    def __init__(self, loss: PixelLoss, weights: list[float] | None = None, label_stride: int = 1) -> None:
        super().__init__()
        self.loss = loss
        self.weights = None if weights is None else tuple(float(w) for w in weights)
        self.label_stride = label_stride

    def construct(self, outputs: tuple, label: Tensor) -> Tensor:
        """Computes the scalar loss.

        Args:
            outputs: Logits (main, auxiliary, ...), each (N, C, H, W).
            label: (N, H * label_stride, W * label_stride) int32.

        Raises:
            ConfigError: There are more or fewer weights than outputs.
        """
        weights = self.weights or (1.0,) + (0.4,) * (len(outputs) - 1)
        _check_heads(len(weights), len(outputs))
        label = self._subsample(label)
        result = weights[0] * self.loss(outputs[0], label)
        for i in range(1, len(outputs)):
            result = result + weights[i] * self.loss(outputs[i], label)
        return result

    def weight_sum(self, label: Tensor) -> Tensor:
        """Sums the weights of all pixels, see :meth:`PixelLoss.weight_sum`."""
        return self.loss.weight_sum(self._subsample(label))

    def _subsample(self, label: Tensor) -> Tensor:
        stride = self.label_stride
        return label if stride == 1 else label[:, stride // 2::stride, stride // 2::stride]


class SoftTargetLoss(nn.Cell):
    """Mix of a loss with the divergence from a teacher's probabilities (Hinton, Vinyals and Dean 2015).

    Args:
        weight: Share of the teacher, 0..1.
        temperature: Divisor of both logits; above 1 the teacher's small probabilities count more.
    """

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__()
        self.weight = weight
        self.temperature = temperature

    def construct(self, loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Mixes the losses.

        Args:
            loss: Scalar loss against the labels.
            logits: (N, C, H, W) of the student's main output.
            targets: The same of the teacher.

        Returns:
            (1 - weight) * loss + weight * temperature**2 * KL(teacher, student), the mean over all pixels.
        """
        own = ops.log_softmax(cast(logits, mstype.float32) / self.temperature, 1)
        wanted = ops.log_softmax(targets / self.temperature, 1)
        divergence = (ops.exp(wanted) * (wanted - own)).sum(1).mean()
        return (1.0 - self.weight) * loss + self.weight * self.temperature**2 * divergence


def create_loss(cfg_loss: Config, ignore_id: int) -> MultiHeadLoss:
    """Builds the loss of section ``loss``.

    Args:
        cfg_loss: Section ``loss``.
        ignore_id: Label value of ignored pixels.

    Raises:
        ConfigError: The class weights are ``auto``, or one is negative, or all are 0, or an OHEM value is out of range.
    """
    c = cfg_loss
    if c.class_weights == "auto":
        raise ConfigError("loss.class_weights = auto: only train.py computes them; give numbers, as mindseg "
                          "class-weights prints them")
    if c.class_weights is not None and (min(c.class_weights) < 0 or max(c.class_weights) == 0):
        raise ConfigError(f"loss.class_weights = {c.class_weights} must be at least 0, and one of them greater than 0")
    if "ohem" in (c.name, *(c.also or ())) and (not 0 < c.ohem_thresh < 1 or c.ohem_min_kept < 1):
        raise ConfigError(f"loss.ohem_thresh = {c.ohem_thresh} must lie between 0 and 1, and "
                          f"loss.ohem_min_kept = {c.ohem_min_kept} must be at least 1")
    loss = _create_loss(c.name, c, ignore_id)
    if c.also:
        others = [_create_loss(name, c, ignore_id) for name in c.also]
        loss = SumLoss([loss, *others], [1.0, *map(float, c.also.values())])
    return MultiHeadLoss(loss, c.weights, c.label_stride)


def _create_loss(name: str, cfg_loss: Config, ignore_id: int) -> PixelLoss:
    """Builds the loss of one output by its name."""
    c = cfg_loss
    if name == "ohem":
        return OhemLoss(ignore_id, c.class_weights, c.ohem_thresh, c.ohem_rule, c.ohem_min_kept)
    kinds = {"cross_entropy": CrossEntropyLoss, "bce": BCELoss, "dice": DiceLoss, "lovasz": LovaszLoss}
    if name not in kinds:
        raise ConfigError(f"loss.also: {shorten(name)} is no loss; use {', '.join([*kinds, 'ohem'])}")
    return kinds[name](ignore_id, c.class_weights)
