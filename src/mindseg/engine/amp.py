"""How a network computes while training: mixed precision, and where BatchNorm takes its statistics from."""
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.communication import GlobalComm

from mindseg.models.layers import replace_batch_norm

SMALL_BATCH = 8     # below so many images a device the recipes that reach published numbers synchronise BatchNorm


def apply_amp(net: nn.Cell, level: str, dtype: str = "float16") -> None:
    """Chooses the type each layer computes in; parameters stay float32, so they are their own master copy.

    Args:
        net: Network, changed in place.
        level: ``O0``: all in float32. ``O1``: convolutions in half precision. ``O2``: all but BatchNorm. ``O3``: all.
        dtype: ``float16`` or ``bfloat16``.
    """
    if level == "O0":
        return
    half = mstype.float16 if dtype == "float16" else mstype.bfloat16
    net.to_float(mstype.float32 if level == "O1" else half)
    for _, cell in net.cells_and_names():
        if level == "O1" and isinstance(cell, (nn.Conv2d, nn.Conv2dTranspose, nn.Dense)):
            cell.to_float(half)
        elif level == "O2" and isinstance(cell, (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm)):
            cell.to_float(mstype.float32)


class SyncBatchNorm(nn.Cell):
    """BatchNorm over the batch of all devices, from all-reduces, for platforms without a kernel of its own.

    The variance is summed around the common mean, not as a difference of squares, so nothing cancels. Like MindSpore's
    and PyTorch's kernels it keeps the unbiased variance in ``moving_variance``.

    Args:
        channels: Channels of the input.
        eps: Added to the variance.
        momentum: Share of the old moving statistics that stays.
        size: Number of devices.
    """

    def __init__(self, channels: int, eps: float, momentum: float, size: int) -> None:
        super().__init__()
        old = nn.BatchNorm2d(channels)
        self.gamma, self.beta = old.gamma, old.beta
        self.moving_mean, self.moving_variance = old.moving_mean, old.moving_variance
        self.eps = eps
        self.momentum = momentum
        self.size = size
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP)

    def construct(self, x: Tensor) -> Tensor:
        """Normalises (N, C, H, W); every device must hold the same N, H and W."""
        x32 = ops.cast(x, mstype.float32)
        if self.training:
            count = x.shape[0] * x.shape[2] * x.shape[3] * self.size
            mean = self.all_reduce(x32.sum((0, 2, 3))) / count
            centred = x32 - mean.reshape(1, -1, 1, 1)
            variance = self.all_reduce(ops.square(centred).sum((0, 2, 3))) / count
            self._track(self.moving_mean, mean)
            self._track(self.moving_variance, variance * (count / max(count - 1, 1)))
        else:
            centred = x32 - self.moving_mean.reshape(1, -1, 1, 1)
            variance = self.moving_variance
        scale = self.gamma * ops.rsqrt(variance + self.eps)
        return ops.cast(centred * scale.reshape(1, -1, 1, 1) + self.beta.reshape(1, -1, 1, 1), x.dtype)

    def _track(self, moving: Tensor, value: Tensor) -> None:
        ops.assign(moving, self.momentum * moving + (1.0 - self.momentum) * ops.stop_gradient(value))


def synchronise_batch_norm(net: nn.Cell, wish: str, device_target: str, size: int, batch: int) -> bool:
    """Replaces BatchNorm by the synchronised one where that is wanted.

    Args:
        net: Network, changed in place; parameter names stay.
        wish: ``always``, ``never``, or ``auto``: if a device sees fewer than 8 images at once.
        device_target: CPU has no kernel of its own and takes :class:`SyncBatchNorm`.
        size: Number of devices; with one there is nothing to do.
        batch: Images that a device sees at once.

    Returns:
        Whether the network is synchronised now.
    """
    if size == 1 or wish == "never" or (wish == "auto" and batch >= SMALL_BATCH):
        return False

    def make(old: nn.BatchNorm2d) -> nn.Cell:
        # MindSpore's cell holds the complement of the momentum that it was made with.
        if device_target == "CPU":
            return SyncBatchNorm(old.num_features, old.eps, 1.0 - old.momentum, size)
        return nn.SyncBatchNorm(old.num_features, eps=old.eps, momentum=1.0 - old.momentum)

    names = [(param, param.name) for param in net.get_parameters()]
    replace_batch_norm(net, make)
    for param, name in names:       # MindSpore renames parameters that move to another cell
        param.name = name
    return True


def freeze_batch_norm(net: nn.Cell) -> None:
    """Normalises by the moving statistics while training too, and leaves them as they are; scale and shift still learn.

    For fine-tuning with batches too small for statistics of their own.
    """
    for _, cell in net.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d):
            cell.use_batch_statistics = False
