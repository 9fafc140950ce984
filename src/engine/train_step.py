"""One training step as one compiled graph: normalise, forward, loss, gradients, update."""
import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype


class Normalize(nn.Cell):
    """Turns uint8 pixels into the network's input, on the device, so that the host sends a quarter of the bytes.

    Args:
        mean: Mean of each channel, for pixels in 0..value_range.
        std: Standard deviation of each channel.
        value_range: Pixels are scaled to 0..value_range before mean and std.
    """

    def __init__(self, mean: list[float], std: list[float], value_range: float = 255.0) -> None:
        super().__init__()
        self.scale = Tensor([[[[value_range / 255.0 / s]] for s in std]], mstype.float32)
        self.shift = Tensor([[[[-m / s]] for m, s in zip(mean, std, strict=True)]], mstype.float32)

    def construct(self, image: Tensor) -> Tensor:
        """Returns (N, 3, H, W) float32 for uint8 (N, H, W, 3)."""
        return ops.cast(image.transpose(0, 3, 1, 2), mstype.float32) * self.scale + self.shift


class TrainStep(nn.Cell):
    """Network, loss and optimizer in one cell.

    Args:
        net: Network; in training it returns a tuple of logits.
        loss: ``loss(outputs, label)``, a scalar.
        optimizer: Updates ``net``'s trainable parameters.
        normalize: From uint8 images to the network's input.
        clip_norm: Limit of the global gradient norm; 0 switches clipping off.
        size: Devices that average their gradients.
    """

    def __init__(self, net: nn.Cell, loss: nn.Cell, optimizer: nn.Optimizer, normalize: Normalize,
                 clip_norm: float = 0.0, size: int = 1) -> None:
        super().__init__(auto_prefix=False)
        self.net = net
        self.loss = loss
        self.optimizer = optimizer
        self.normalize = normalize
        self.clip_norm = clip_norm
        self.weights = optimizer.parameters
        self.loss_and_gradients = ms.value_and_grad(self._forward, None, self.weights)
        self.reduce = nn.DistributedGradReducer(self.weights, mean=True, degree=size) if size > 1 else None
        self.set_train()

    def construct(self, image: Tensor, label: Tensor) -> Tensor:
        """Makes one step and returns the loss before it.

        Args:
            image: uint8 (N, H, W, 3).
            label: uint8 (N, H, W) train ids.
        """
        loss, grads = self.loss_and_gradients(self.normalize(image), ops.cast(label, mstype.int32))
        if self.reduce is not None:
            grads = self.reduce(grads)
        if self.clip_norm > 0:
            grads = ops.clip_by_global_norm(grads, self.clip_norm)
        return ops.depend(loss, self.optimizer(grads))

    def _forward(self, image: Tensor, label: Tensor) -> Tensor:
        return self.loss(self.net(image), label)


def state_parameters(step: TrainStep) -> list[Parameter]:
    """Everything that a checkpoint must hold to continue: weights, statistics, counters and the optimizer's state."""
    return [p for _, p in step.parameters_and_names() if p.name != "learning_rate"]
