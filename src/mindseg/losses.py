"""Losses of the outputs of a network, (main, auxiliary, ...), compared with one label map.

A loss is a weighted mean over pixels, and ``weight_sum`` is the sum of these weights. The training step multiplies each
loss by its weight sum, adds micro-batches and devices, and divides by the total, so any split of a batch gives the mean
of the whole. OHEM selects pixels, and Dice counts areas, within one micro-batch of one device.
"""
import math

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from mindseg.compat import SoftmaxCrossEntropy, add_along, cast, device_target, take, take_along, transpose
from mindseg.config import Config
from mindseg.errors import ConfigError

EPSILON = 1e-6


class PixelCrossEntropy(nn.Cell):
    """Softmax cross entropy of each pixel, computed along the channel axis.

    MindSpore's own kernel needs the channels last, and moving them takes longer than the kernel. The gradient is
    written out because automatic differentiation of the gathering is ten times slower.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Maps logits (N, C, P) and labels (N, 1, P), for P pixels, to losses (N, 1, P)."""
        return -take_along(ops.log_softmax(logits, 1), 1, label)

    def bprop(self, logits: Tensor, label: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradient of the logits: (softmax - one_hot(label)) * dout."""
        softmax = ops.exp(ops.log_softmax(logits, 1)) * dout
        return add_along(softmax, 1, label, -dout), ops.zeros_like(label)


class PixelLoss(nn.Cell):
    """Base class of the losses: weights of the pixels, and cross entropy.

    Args:
        ignore_id: Label value of ignored pixels.
        class_weights: One weight per class, at least 0; None: 1 each.
    """

    def __init__(self, ignore_id: int = 255, class_weights: list[float] | None = None) -> None:
        super().__init__()
        self.ignore_id = ignore_id
        self.class_weights = None if class_weights is None else Tensor(class_weights, mstype.float32)
        # Gathering (pixel_loss) is slow on Ascend, transposing (softmax_loss) on the CPU: docs/performance.md.
        self.by_channel = device_target() == "CPU"
        self.pixel_loss = PixelCrossEntropy()
        self.softmax_loss = SoftmaxCrossEntropy()

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
        return self.pixel_weights(label.reshape(-1)).sum()

    @staticmethod
    def clip_label(label: Tensor, classes: int) -> Tensor:
        """Turns ignored labels into the last class, because a value outside [0, classes) would crash the CPU kernel.

        Args:
            label: int32 of any shape, in [0, classes) or the ignore id.
            classes: Number of classes.
        """
        return ops.minimum(label, classes - 1)

    @staticmethod
    def flatten_pixels(logits: Tensor) -> Tensor:
        """Reshapes logits (N, C, H, W) of any float type to (N*H*W, C) float32."""
        return cast(transpose(logits, (0, 2, 3, 1)).reshape(-1, logits.shape[1]), mstype.float32)

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the softmax cross entropy of each pixel.

        Args:
            logits: (N, C, H, W) float.
            label: (P,) int32 with P = N*H*W.

        Returns:
            (P,) float32; the values of ignored pixels are meaningless.
        """
        n, c, h, w = logits.shape
        label = self.clip_label(label, c)
        if not self.by_channel:
            return self.softmax_loss(self.flatten_pixels(logits), label)
        logits = cast(ops.reshape(logits, (n, c, h * w)), mstype.float32)
        return ops.reshape(self.pixel_loss(logits, ops.reshape(label, (n, 1, h * w))), (-1,))


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
        label = label.reshape(-1)
        weights = self.pixel_weights(label)
        return (self.cross_entropy(logits, label) * weights).sum() / ops.maximum(weights.sum(), EPSILON)


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
        self.by_channel = False     # pixel_loss rounds small losses, which are ranked here, too coarsely
        self.thresh = -math.log(thresh)
        self.rule = rule
        self.min_kept = min_kept

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss, as :class:`CrossEntropyLoss` does."""
        images, label = label.shape[0], label.reshape(-1)
        valid = cast(ops.not_equal(label, self.ignore_id), mstype.float32)
        losses = self.cross_entropy(logits, label) * valid
        count = cast(valid.sum(), mstype.int32)
        kept = count // 16 if self.rule == "fraction" else ops.minimum(count, self.min_kept * images)
        ranked = ops.sort(ops.stop_gradient(losses), 0, True)[0]
        hardest = take(ranked, ops.maximum(kept, 1) - 1)
        # At least ``kept`` pixels count, even if they are easier than the threshold. Pixels with the same loss as the
        # last of them get equal weights that add up to the places left.
        above = cast(losses > ops.minimum(hardest, self.thresh), mstype.float32)
        ties = cast(ops.equal(losses, hardest), mstype.float32) * (1.0 - above)
        tie_weight = ops.relu(cast(kept, mstype.float32) - above.sum()) / ops.maximum(ties.sum(), 1.0)
        selected = ops.stop_gradient(above + ties * tie_weight) * self.pixel_weights(label)
        divisor = selected.sum() if self.rule == "fraction" else self.pixel_weights(label).sum()
        return (losses * selected).sum() / ops.maximum(divisor, EPSILON)


class BCELoss(PixelLoss):
    """Binary cross entropy of every class against the others, the mean over classes and valid pixels.

    The loss of Fast-SCNN in mmsegmentation and sssegmentation (``use_sigmoid=True``), with learning rate 0.12.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss, as :class:`CrossEntropyLoss` does."""
        label = label.reshape(-1)
        weights = self.pixel_weights(label)
        rows = self.flatten_pixels(logits)
        # log(1 + exp(x)) - x * [class is true], without overflow for large |x|.
        softplus = ops.relu(rows) + ops.log1p(ops.exp(-ops.abs(rows)))
        true = take_along(rows, 1, self.clip_label(label, logits.shape[1]).reshape(-1, 1))
        losses = (softplus.sum(1) - true.reshape(-1)) / logits.shape[1]
        return (losses * weights).sum() / ops.maximum(weights.sum(), EPSILON)


class DiceLoss(PixelLoss):
    """Dice loss: 1 - mean over classes of (2 * overlap + 1) / (areas + 1), from the probabilities of the valid pixels.

    V-Net's loss (arXiv 1606.04797) with plain instead of squared areas; class weights apply to the mean over classes.
    """

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the scalar loss, as :class:`CrossEntropyLoss` does."""
        label, classes = label.reshape(-1), logits.shape[1]
        valid = cast(ops.not_equal(label, self.ignore_id), mstype.float32).reshape(-1, 1)
        probability = ops.softmax(self.flatten_pixels(logits), 1) * valid
        truth = cast(ops.equal(label.reshape(-1, 1), ops.arange(classes).reshape(1, -1)), mstype.float32) * valid
        overlap = (probability * truth).sum(0)
        scores = (2.0 * overlap + 1.0) / (probability.sum(0) + truth.sum(0) + 1.0)
        if self.class_weights is None:
            return 1.0 - scores.mean()
        return 1.0 - (scores * self.class_weights).sum() / self.class_weights.sum()


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
        total = weights[0] * self.loss(outputs[0], label)
        for i in range(1, len(outputs)):
            total += weights[i] * self.loss(outputs[i], label)
        return total

    def weight_sum(self, label: Tensor) -> Tensor:
        """Sums the weights of all pixels, see :meth:`PixelLoss.weight_sum`."""
        return self.loss.weight_sum(self._subsample(label))

    def _subsample(self, label: Tensor) -> Tensor:
        stride = self.label_stride
        return label if stride == 1 else label[:, stride // 2::stride, stride // 2::stride]


def create_loss(cfg_loss: Config, ignore_id: int) -> MultiHeadLoss:
    """Builds the loss of section ``loss``.

    Args:
        cfg_loss: Section ``loss``.
        ignore_id: Label value of ignored pixels.

    Raises:
        ConfigError: A class weight is negative or all are 0, or an OHEM value is out of range.
    """
    c = cfg_loss
    if c.class_weights is not None and (min(c.class_weights) < 0 or max(c.class_weights) == 0):
        raise ConfigError(f"loss.class_weights = {c.class_weights} must be at least 0, and one of them greater than 0")
    if c.name == "ohem":
        if not 0 < c.ohem_thresh < 1 or c.ohem_min_kept < 1:
            raise ConfigError(f"loss.ohem_thresh = {c.ohem_thresh} must lie between 0 and 1, and "
                              f"loss.ohem_min_kept = {c.ohem_min_kept} must be at least 1")
        loss = OhemLoss(ignore_id, c.class_weights, c.ohem_thresh, c.ohem_rule, c.ohem_min_kept)
    else:
        kinds = {"cross_entropy": CrossEntropyLoss, "bce": BCELoss, "dice": DiceLoss}
        loss = kinds[c.name](ignore_id, c.class_weights)
    return MultiHeadLoss(loss, c.weights, c.label_stride)
