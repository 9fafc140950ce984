"""Losses over the outputs of a network: (main, auxiliary…) logits against one label map.

A loss is a mean over pixels, and ``weight`` is the sum of the weights that it divides by. The training step multiplies
by that weight before it adds micro-batches and devices, and divides by the sum, so that any split of a batch gives the
mean of the whole. OHEM selects pixels, and Dice counts areas, within one micro-batch of one device.
"""
import math

from mindspore import Tensor, context, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from mindseg.config import Config
from mindseg.errors import ConfigError

EPSILON = 1e-6


class PixelCrossEntropy(nn.Cell):
    """Softmax cross entropy of each pixel, (N, C, P) logits and (N, 1, P) labels to (N, 1, P) losses.

    Works on the channels where they are; MindSpore's own kernel wants them last, and the way there and back takes
    longer than the kernel. Automatic differentiation of the gathering is ten times slower than this gradient.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        return -ops.gather_elements(ops.log_softmax(logits, 1), 1, label)

    def bprop(self, logits: Tensor, label: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        # softmax - one_hot(label), times the incoming gradient
        softmax = ops.exp(ops.log_softmax(logits, 1)) * dout
        return ops.tensor_scatter_elements(softmax, label, -dout, 1, "add"), ops.zeros_like(label)


class PixelLoss(nn.Cell):
    """Base of the losses: what a valid pixel is, and how much it weighs.

    Args:
        ignore_id: Label value that is left out.
        class_weights: One weight a class, or None for 1 each.
    """

    def __init__(self, ignore_id: int = 255, class_weights: list[float] | None = None) -> None:
        super().__init__()
        self.ignore_id = ignore_id
        self.class_weights = None if class_weights is None else Tensor(class_weights, mstype.float32)
        # The gathers of the first are slow on Ascend, the transposes of the second on the CPU: docs/performance.md.
        self.by_channel = context.get_context("device_target") == "CPU"
        self.pixel_loss = PixelCrossEntropy()
        self.softmax_loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="none")

    def pixel_weights(self, label: Tensor) -> Tensor:
        """(P,) float32: the weight of each label's class, 0 for ignored pixels; ``label`` is (P,) int32."""
        valid = ops.cast(ops.not_equal(label, self.ignore_id), mstype.float32)
        if self.class_weights is None:
            return valid
        return valid * ops.gather(self.class_weights, self.legal(label, self.class_weights.shape[0]), 0)

    def weight(self, label: Tensor) -> Tensor:
        """What the mean divides by: the scalar sum of the pixels' weights; ``label`` is (N, H, W) int32."""
        return self.pixel_weights(label.reshape(-1)).sum()

    @staticmethod
    def legal(label: Tensor, classes: int) -> Tensor:
        """Ignored labels become a legal class: one outside [0, C) would crash the CPU kernel."""
        return ops.minimum(label, classes - 1)

    @staticmethod
    def rows(logits: Tensor) -> Tensor:
        """(N, C, H, W) of any float type as (N*H*W, C) float32."""
        return ops.cast(logits.transpose(0, 2, 3, 1).reshape(-1, logits.shape[1]), mstype.float32)

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """(P,) softmax cross entropy of each pixel; ignored ones hold a number without meaning."""
        n, c, h, w = logits.shape
        label = self.legal(label, c)
        if not self.by_channel:
            return self.softmax_loss(self.rows(logits), label)
        logits = ops.cast(ops.reshape(logits, (n, c, h * w)), mstype.float32)
        return ops.reshape(self.pixel_loss(logits, ops.reshape(label, (n, 1, h * w))), (-1,))


class CrossEntropyLoss(PixelLoss):
    """Softmax cross entropy, the weighted mean over the valid pixels.

    mean = sum(w[label] * loss) / max(sum(w[label]), 1e-6) over pixels whose label is not ``ignore_id``, as PyTorch's
    ``CrossEntropyLoss(weight=w, ignore_index=…)``; a crop without any valid pixel gives 0, not NaN.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Returns the scalar loss.

        Args:
            logits: (N, C, H, W) float.
            label: (N, H, W) int32, in [0, C) or ``ignore_id``.
        """
        label = label.reshape(-1)
        weights = self.pixel_weights(label)
        return (self.cross_entropy(logits, label) * weights).sum() / ops.maximum(weights.sum(), EPSILON)


class OhemLoss(PixelLoss):
    """Cross entropy over the hard pixels only (online hard example mining).

    A pixel is hard if the network gives its true class a probability below ``thresh``; the threshold rises until enough
    pixels are hard. Two public rules:

    - ``fraction``: at least 1/16 of the valid pixels; mean over the selected ones (CoinCheung/BiSeNet, ``OhemCELoss``).
    - ``min_kept``: at least ``min_kept`` pixels an image; the selected pixels' sum over the number of valid pixels, so
      that the loss shrinks as pixels become easy (mmsegmentation, ``OHEMPixelSampler``).

    Args:
        ignore_id: Label value that is left out.
        class_weights: One weight a class, or None for 1 each; selection does not look at them.
        thresh: Probability, 0..1.
        rule: ``fraction`` or ``min_kept``.
        min_kept: Pixels an image, for the second rule.
    """

    def __init__(self, ignore_id: int = 255, class_weights: list[float] | None = None, thresh: float = 0.7,
                 rule: str = "fraction", min_kept: int = 10000) -> None:
        super().__init__(ignore_id, class_weights)
        self.by_channel = False     # rounds small losses at the size of the logits, and they are what is ranked here
        self.thresh = -math.log(thresh)
        self.rule = rule
        self.min_kept = min_kept

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """As :class:`CrossEntropyLoss`."""
        images, label = label.shape[0], label.reshape(-1)
        valid = ops.cast(ops.not_equal(label, self.ignore_id), mstype.float32)
        losses = self.cross_entropy(logits, label) * valid
        count = ops.cast(valid.sum(), mstype.int32)
        kept = count // 16 if self.rule == "fraction" else ops.minimum(count, self.min_kept * images)
        ranked = ops.sort(ops.stop_gradient(losses), 0, True)[0]
        hardest = ops.gather(ranked, ops.maximum(kept, 1) - 1, 0)
        # The hardest ``kept`` pixels are in even if they are easier than the threshold; equal ones share what is left.
        above = ops.cast(losses > ops.minimum(hardest, self.thresh), mstype.float32)
        ties = ops.cast(ops.equal(losses, hardest), mstype.float32) * (1.0 - above)
        share = ops.relu(ops.cast(kept, mstype.float32) - above.sum()) / ops.maximum(ties.sum(), 1.0)
        selected = ops.stop_gradient(above + ties * share) * self.pixel_weights(label)
        divisor = selected.sum() if self.rule == "fraction" else self.pixel_weights(label).sum()
        return (losses * selected).sum() / ops.maximum(divisor, EPSILON)


class BCELoss(PixelLoss):
    """Binary cross entropy of every class against the rest, the mean over classes and valid pixels.

    The loss of mmsegmentation's and sssegmentation's Fast-SCNN (``use_sigmoid=True``), which goes with their rate 0.12.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """As :class:`CrossEntropyLoss`."""
        label = label.reshape(-1)
        weights = self.pixel_weights(label)
        rows = self.rows(logits)
        # log(1 + exp(x)) - x * [class is true], without overflow for large |x|.
        softplus = ops.relu(rows) + ops.log1p(ops.exp(-ops.abs(rows)))
        true = ops.gather_elements(rows, 1, self.legal(label, logits.shape[1]).reshape(-1, 1))
        losses = (softplus.sum(1) - true.reshape(-1)) / logits.shape[1]
        return (losses * weights).sum() / ops.maximum(weights.sum(), EPSILON)


class DiceLoss(PixelLoss):
    """1 - mean over classes of (2 * overlap + 1) / (areas + 1), from soft-max probabilities of the valid pixels.

    V-Net's overlap loss (arXiv 1606.04797) with plain areas; class weights weigh the mean over classes.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """As :class:`CrossEntropyLoss`."""
        label, classes = label.reshape(-1), logits.shape[1]
        valid = ops.cast(ops.not_equal(label, self.ignore_id), mstype.float32).reshape(-1, 1)
        probability = ops.softmax(self.rows(logits), 1) * valid
        truth = ops.cast(ops.equal(label.reshape(-1, 1), ops.arange(classes).reshape(1, -1)), mstype.float32) * valid
        overlap = (probability * truth).sum(0)
        scores = (2.0 * overlap + 1.0) / (probability.sum(0) + truth.sum(0) + 1.0)
        if self.class_weights is None:
            return 1.0 - scores.mean()
        return 1.0 - (scores * self.class_weights).sum() / self.class_weights.sum()


@constexpr
def _check_heads(weights: int, outputs: int) -> bool:
    """Runs while the graph is compiled, which knows no exceptions of our own."""
    if weights != outputs:
        raise ConfigError(f"loss.weights has {weights} numbers, the network has {outputs} outputs (main and "
                          "auxiliary)")
    return True


class MultiHeadLoss(nn.Cell):
    """Weighted sum of one loss over the main output and the auxiliary ones.

    Args:
        loss: Loss of one head.
        weights: Weight of the main output and of each auxiliary; None: 1 for the main one and 0.4 for the others.
        label_stride: The outputs are that much smaller than the label, whose cells' centre pixels are compared
            (ENet's encoder, trained alone: 8).
    """

    def __init__(self, loss: PixelLoss, weights: list[float] | None = None, label_stride: int = 1) -> None:
        super().__init__()
        self.loss = loss
        self.weights = None if weights is None else tuple(float(w) for w in weights)
        self.label_stride = label_stride

    def construct(self, outputs: tuple, label: Tensor) -> Tensor:
        """Returns the scalar loss.

        Args:
            outputs: Logits (main, auxiliary…), each (N, C, H, W).
            label: (N, H * label_stride, W * label_stride) int32.

        Raises:
            ConfigError: There are more or fewer weights than outputs.
        """
        weights = self.weights or (1.0,) + (0.4,) * (len(outputs) - 1)
        _check_heads(len(weights), len(outputs))
        label = self.at_output_size(label)
        total = weights[0] * self.loss(outputs[0], label)
        for i in range(1, len(outputs)):
            total += weights[i] * self.loss(outputs[i], label)
        return total

    def weight(self, label: Tensor) -> Tensor:
        """What the mean of every head divides by, see :meth:`PixelLoss.weight`."""
        return self.loss.weight(self.at_output_size(label))

    def at_output_size(self, label: Tensor) -> Tensor:
        """The label's pixels that the outputs are compared with."""
        stride = self.label_stride
        return label if stride == 1 else label[:, stride // 2::stride, stride // 2::stride]


def create_loss(cfg_loss: Config, ignore_id: int) -> MultiHeadLoss:
    """Builds the loss of section ``loss``.

    Args:
        cfg_loss: Section ``loss``.
        ignore_id: Label value that is left out.

    Raises:
        ConfigError: A class weight is negative or all are 0, or an OHEM value is out of range.
    """
    c = cfg_loss
    if c.class_weights is not None and (min(c.class_weights) < 0 or max(c.class_weights) == 0):
        raise ConfigError(f"loss.class_weights = {c.class_weights} must not be negative, nor all 0")
    if c.name == "ohem":
        if not 0 < c.ohem_thresh < 1 or c.ohem_min_kept < 1:
            raise ConfigError(f"loss.ohem_thresh = {c.ohem_thresh} must lie between 0 and 1, and "
                              f"loss.ohem_min_kept = {c.ohem_min_kept} must be at least 1")
        loss = OhemLoss(ignore_id, c.class_weights, c.ohem_thresh, c.ohem_rule, c.ohem_min_kept)
    else:
        kinds = {"cross_entropy": CrossEntropyLoss, "bce": BCELoss, "dice": DiceLoss}
        loss = kinds[c.name](ignore_id, c.class_weights)
    return MultiHeadLoss(loss, c.weights, c.label_stride)
