"""BatchNorm while training: statistics of all devices, or frozen ones."""
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.communication import GlobalComm

from mindseg.compat import BatchNorm2d, cast, sync_batch_norm_kernel
from mindseg.models.layers import replace_batch_norm

SMALL_BATCH = 8     # images per device below which published recipes synchronise BatchNorm
KERNEL_COUNT = 1024     # values per channel and device from which the platform's kernel is right to 0.1 %


class SyncBatchNorm(BatchNorm2d):
    """BatchNorm over the batch of all devices, by the platform's kernel where that is right, else by all-reduces.

    ``moving_variance`` keeps the unbiased variance, as in MindSpore's and PyTorch's kernels: that of the batch times
    n / (n - 1), where n counts the values of all devices. Ascend's kernel takes n from one device, and stores 0 if that
    has one value (MindSpore's SyncBnSplit with CANN's bn_training_update). That matters behind a pooling, where n is
    small; there the all-reduces are cheap.

    The variance is summed around the common mean instead of being a difference of two large sums, so no digits cancel.

    Args:
        channels: Channels of the input.
        eps: Small number added to the variance.
        momentum: Factor of the old value when the moving statistics are updated, 0..1 (PyTorch's is 1 minus this).
        size: Number of devices.
        kernel: The platform has a kernel; the CPU has none.
    """

    def __init__(self, channels: int, eps: float, momentum: float, size: int, kernel: bool = False) -> None:
        super().__init__(channels, eps, momentum)
        self.size = size
        self.kernel = sync_batch_norm_kernel(eps, momentum, GlobalComm.WORLD_COMM_GROUP, size) if kernel else None
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
        count = x.shape[0] * x.shape[2] * x.shape[3]
        if self.kernel is not None and count >= KERNEL_COUNT:
            return self.kernel(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0]
        count *= self.size
        x32 = cast(x, mstype.float32)
        mean = self.all_reduce(x32.sum((0, 2, 3))) / count
        centred = x32 - mean.reshape(1, -1, 1, 1)
        variance = self.all_reduce(ops.square(centred).sum((0, 2, 3))) / count
        self._track(self.moving_mean, mean)
        self._track(self.moving_variance, variance * (count / (count - 1)))
        scale = self.gamma * ops.rsqrt(variance + self.eps)
        return cast(centred * scale.reshape(1, -1, 1, 1) + self.beta.reshape(1, -1, 1, 1), x.dtype)


def synchronise_batch_norm(net: nn.Cell, mode: str, device_target: str, size: int, batch: int) -> bool:
    """Replaces BatchNorm by its synchronised form, if ``mode`` and the batch size ask for it.

    Args:
        net: Network, changed in place; parameter names stay.
        mode: ``always``, ``never``, or ``auto``: if a device sees fewer than 8 images at once.
        device_target: ``CPU``, ``Ascend`` or ``GPU``; the CPU has no kernel for it.
        size: Number of devices; with 1 nothing is replaced.
        batch: Images that a device sees at once.

    Returns:
        True if BatchNorm was replaced.
    """
    if size == 1 or mode == "never" or (mode == "auto" and batch >= SMALL_BATCH):
        return False

    def make(old: BatchNorm2d) -> BatchNorm2d:
        return SyncBatchNorm(old.channels, old.eps, old.momentum, size, device_target != "CPU")

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
