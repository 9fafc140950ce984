"""BatchNorm while training: statistics of all devices, or frozen ones."""
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.communication import GlobalComm

from mindseg.compat import BatchNorm2d, PlatformSyncBatchNorm, assign, cast
from mindseg.models.layers import replace_batch_norm

SMALL_BATCH = 8     # images per device below which published recipes synchronise BatchNorm


class SyncBatchNorm(BatchNorm2d):
    """BatchNorm over the batch of all devices, built from all-reduces for platforms without such a kernel.

    The variance is summed around the common mean instead of being a difference of two large sums, so no digits cancel.
    Like MindSpore's and PyTorch's kernels it keeps the unbiased variance in ``moving_variance``.

    Args:
        channels: Channels of the input.
        eps: Small number added to the variance.
        momentum: Factor of the old value when the moving statistics are updated, 0..1 (PyTorch's is 1 minus this).
        size: Number of devices.
    """

    def __init__(self, channels: int, eps: float, momentum: float, size: int) -> None:
        super().__init__(channels, eps, momentum)
        self.size = size
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP)

    def construct(self, x: Tensor) -> Tensor:
        """Normalises a batch.

        Args:
            x: (N, C, H, W) float; N, H and W must be equal on all devices.

        Returns:
            Tensor of the same shape and type.
        """
        if not self.training or self.frozen:
            return super().construct(x)
        x32 = cast(x, mstype.float32)
        count = x.shape[0] * x.shape[2] * x.shape[3] * self.size
        mean = self.all_reduce(x32.sum((0, 2, 3))) / count
        centred = x32 - mean.reshape(1, -1, 1, 1)
        variance = self.all_reduce(ops.square(centred).sum((0, 2, 3))) / count
        self._track(self.moving_mean, mean)
        self._track(self.moving_variance, variance * (count / max(count - 1, 1)))
        scale = self.gamma * ops.rsqrt(variance + self.eps)
        return cast(centred * scale.reshape(1, -1, 1, 1) + self.beta.reshape(1, -1, 1, 1), x.dtype)

    def _track(self, moving: Tensor, value: Tensor) -> None:
        assign(moving, self.momentum * moving + (1.0 - self.momentum) * ops.stop_gradient(value))


def synchronise_batch_norm(net: nn.Cell, mode: str, device_target: str, size: int, batch: int) -> bool:
    """Replaces BatchNorm by its synchronised form, if ``mode`` and the batch size ask for it.

    Args:
        net: Network, changed in place; parameter names stay.
        mode: ``always``, ``never``, or ``auto``: if a device sees fewer than 8 images at once.
        device_target: ``CPU``, ``Ascend`` or ``GPU``; the CPU has no kernel and uses :class:`SyncBatchNorm`.
        size: Number of devices; with 1 nothing is replaced.
        batch: Images that a device sees at once.

    Returns:
        True if BatchNorm was replaced.
    """
    if size == 1 or mode == "never" or (mode == "auto" and batch >= SMALL_BATCH):
        return False

    def make(old: BatchNorm2d) -> BatchNorm2d:
        if device_target == "CPU":
            return SyncBatchNorm(old.channels, old.eps, old.momentum, size)
        return PlatformSyncBatchNorm(old.channels, old.eps, old.momentum, GlobalComm.WORLD_COMM_GROUP, size)

    names = [(param, param.name) for param in net.get_parameters()]
    replace_batch_norm(net, make)
    for param, name in names:       # MindSpore renames parameters that move to another cell
        param.name = name
    return True


def freeze_batch_norm(net: nn.Cell) -> None:
    """Makes training normalise by the stored moving statistics and leave them unchanged; gamma and beta still learn.

    For fine-tuning with batches too small for statistics of their own.

    Args:
        net: Network, changed in place.
    """
    for _, cell in net.cells_and_names():
        if isinstance(cell, BatchNorm2d):
            cell.frozen = True
