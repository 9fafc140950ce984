"""Losses over the outputs of a network: (main, auxiliary…) logits against one label map."""
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.errors import ConfigError


class CrossEntropyLoss(nn.Cell):
    """Softmax cross entropy, the weighted mean over the valid pixels.

    mean = sum(w[label] * loss) / max(sum(w[label]), 1e-6) over pixels whose label is not ``ignore_id``, as PyTorch's
    ``CrossEntropyLoss(weight=w, ignore_index=…)``; a crop without any valid pixel gives 0, not NaN.

    Args:
        ignore_id: Label value that is left out.
        class_weights: One weight a class, or None for 1 each.
    """

    def __init__(self, ignore_id: int = 255, class_weights: list[float] | None = None) -> None:
        super().__init__()
        self.ignore_id = ignore_id
        self.class_weights = None if class_weights is None else Tensor(class_weights, mstype.float32)
        # On the CPU this kernel is three times faster than ops.cross_entropy: docs/performance.md.
        self.pixel_loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="none")

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Returns the scalar loss.

        Args:
            logits: (N, C, H, W) float.
            label: (N, H, W) int32, in [0, C) or ``ignore_id``.
        """
        classes = logits.shape[1]
        label = label.reshape(-1)
        valid = ops.cast(ops.not_equal(label, self.ignore_id), mstype.float32)
        # A label outside [0, C) would crash the CPU kernel; ignored pixels get a legal one and weight 0.
        target = ops.minimum(label, classes - 1)
        weight = valid if self.class_weights is None else valid * ops.gather(self.class_weights, target, 0)
        logits = ops.cast(logits.transpose(0, 2, 3, 1).reshape(-1, classes), mstype.float32)
        total = (self.pixel_loss(logits, target) * weight).sum()
        return total / ops.maximum(weight.sum(), 1e-6)


class MultiHeadLoss(nn.Cell):
    """Weighted sum of one loss over the main output and the auxiliary ones.

    Args:
        loss: Loss of one head.
        weights: Weight of the main output and of each auxiliary; None: 1 for the main one and 0.4 for the others.
    """

    def __init__(self, loss: nn.Cell, weights: list[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.weights = None if weights is None else tuple(float(w) for w in weights)

    def construct(self, outputs: tuple, label: Tensor) -> Tensor:
        """Returns the scalar loss.

        Args:
            outputs: Logits (main, auxiliary…), each (N, C, H, W).
            label: (N, H, W) int32.
        """
        weights = self.weights or (1.0,) + (0.4,) * (len(outputs) - 1)
        if len(weights) != len(outputs):
            raise ValueError(f"loss.weights has {len(weights)} numbers, the network has {len(outputs)} outputs")
        total = weights[0] * self.loss(outputs[0], label)
        for i in range(1, len(outputs)):
            total += weights[i] * self.loss(outputs[i], label)
        return total


def create_loss(cfg_loss: dict, ignore_id: int) -> nn.Cell:
    """Builds the loss of section ``loss``.

    Args:
        cfg_loss: Section ``loss``.
        ignore_id: Label value that is left out.

    Raises:
        ConfigError: A class weight is negative or all are 0.
    """
    weights = cfg_loss.class_weights
    if weights is not None and (min(weights) < 0 or max(weights) == 0):
        raise ConfigError(f"loss.class_weights = {weights} must not be negative, nor all 0")
    return MultiHeadLoss(CrossEntropyLoss(ignore_id, weights), cfg_loss.weights)
