"""Layers and settings of MindSpore whose names, arguments or defaults differ between its versions.

The layers are thin cells over MindSpore's primitives. Initial weights and parameter names are those of the cells of
MindSpore 2.7 to 2.10. No other module uses the cells and functions that this one replaces (ruff's TID251 checks it).
Tensors are (N, C, H, W), float32 or float16.
"""
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeUniform, Initializer, Uniform, initializer
from mindspore.ops import constexpr
from mindspore.ops.auto_generate import SplitWithSize

from mindseg import chips


def device_target() -> str:
    """Device that MindSpore computes on: ``CPU``, ``Ascend`` or ``GPU``."""
    if hasattr(ms, "get_current_device"):
        return ms.get_current_device().device_target
    return ms.get_context("device_target")


_compiled_for: chips.Chip | None = None     # see as_if_on


def kernels() -> str:
    """Set of kernels that layers are written for.

    Returns:
        ``cpu`` (a GPU takes these, too), ``ge``: the graph engine of the first Ascend 910, or ``aclnn``: the newer
        kernels of Atlas A2 and A3.
    """
    chip = _compiled_for
    if chip is None:
        if device_target() != "Ascend":
            return "cpu"
        chip = chips.installed_chip()
    return "aclnn" if chip and chip.aclnn.value else "ge"


@contextmanager
def as_if_on(chip: chips.Chip) -> Iterator[None]:
    """Lets layers be built and compiled as on a chip that is not here; they cannot be run.

    Args:
        chip: The chip.
    """
    global _compiled_for
    before, _compiled_for = _compiled_for, chip
    try:
        yield
    finally:
        _compiled_for = before


def set_mode(mode: str) -> None:
    """Sets the execution mode.

    Args:
        mode: ``graph`` or ``pynative``. A MindSpore without this setting always runs PyNative.
    """
    if hasattr(ms, "set_context"):
        ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)


def get_mode() -> str:
    """Execution mode, ``graph`` or ``pynative``."""
    return "graph" if hasattr(ms, "get_context") and ms.get_context("mode") == ms.GRAPH_MODE else "pynative"


_jit_level: str | None = None       # for pieces that are compiled in PyNative


def set_jit_level(level: str) -> None:
    """Sets the optimisation of compiled graphs on Ascend.

    Args:
        level: ``O0``, ``O1`` (fuses operators) or ``O2`` (the graph engine; static graphs only).
    """
    global _jit_level
    _jit_level = level
    if hasattr(ms, "set_context"):
        ms.set_context(jit_config={"jit_level": level})


def compiled(cell: nn.Cell) -> Callable:
    """A function that runs a cell as one compiled graph, in graph mode and in PyNative.

    Args:
        cell: Cell; its arguments are tensors, or it is compiled again for each value.
    """
    if get_mode() == "graph":
        return cell
    return ms.jit(cell, jit_level=_jit_level) if _jit_level else ms.jit(cell)


def no_init_parameters() -> AbstractContextManager:
    """Context in which parameters get no initial values, where MindSpore can do that; a checkpoint follows."""
    make = getattr(nn, "no_init_parameters", nullcontext)
    return make()


def _newer(name: str) -> ops.Primitive | None:
    """A primitive that only Atlas A2 and A3 have kernels for; None elsewhere."""
    if kernels() != "aclnn":
        return None
    from mindspore.ops import auto_generate
    return getattr(auto_generate, name)()


def _twice(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


class _Convolution(nn.Cell):
    """Parameters of a convolution.

    Args:
        shape: Shape of the weights.
        fan_in: Inputs of one output value.
        channels: Channels of the output.
        bias: Add a bias.
        weight_init: Initial weights; None: uniform in +-1/sqrt(fan_in), as in PyTorch.
        bias_init: Initial biases; None: uniform in the same range.
    """

    def __init__(self, shape: tuple[int, ...], fan_in: int, channels: int, bias: bool,
                 weight_init: str | Tensor | Initializer | None, bias_init: str | None) -> None:
        super().__init__()
        init = HeUniform(math.sqrt(5)) if weight_init is None else weight_init
        self.weight = Parameter(initializer(init, shape, ms.float32), name="weight")
        self.has_bias = bias
        self.bias = None
        if bias:
            init = Uniform(1 / math.sqrt(fan_in)) if bias_init is None else bias_init
            self.bias = Parameter(initializer(init, (channels,), ms.float32), name="bias")
        self.bias_add = ops.BiasAdd()


class Conv2d(_Convolution):
    """Convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side length, or (height, width).
        stride: Step in both directions.
        padding: Zeros on every side, or ``"same"``: output size = input size / stride, with the odd zero at the bottom
            and right.
        dilation: Distance between the kernel's elements.
        groups: Groups of channels that are convolved separately.
        bias: Add a bias.
        weight_init: Initial weights, (out, in / groups, height, width) or a distribution; None: uniform in
            +-1/sqrt(fan_in), as in PyTorch.
        bias_init: Distribution of the initial biases; None: uniform in the same range.

    Attributes:
        fused: Operator that needs less memory, see :func:`mindseg.cpu_kernels.fusion.fuse_network`; None: MindSpore's.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int = 1,
                 padding: int | str = 0, dilation: int = 1, groups: int = 1, bias: bool = False,
                 weight_init: str | Tensor | Initializer | None = None, bias_init: str | None = None) -> None:
        kernel = _twice(kernel)
        fan_in = in_channels // groups * kernel[0] * kernel[1]
        super().__init__((out_channels, in_channels // groups, *kernel), fan_in, out_channels, bias, weight_init,
                         bias_init)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        same = padding == "same"
        self.convolve = ops.Conv2D(out_channels, kernel, pad_mode="same" if same else "pad", pad=0 if same else padding,
                                   stride=stride, dilation=dilation, group=groups)
        # One kernel computes both gradients there. Pairs of numbers would exceed the depth of ENet's graph.
        self.newer = None if same else _newer("Conv2DExt")
        self.fused = None

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to (N, out, H', W')."""
        if self.newer is not None:
            return self.newer(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = self.convolve(x, self.weight) if self.fused is None else self.fused(x, self.weight)
        return self.bias_add(x, self.bias) if self.has_bias else x


class Conv2dTranspose(_Convolution):
    """Transposed convolution without bias.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side length.
        stride: Factor of height and width.
        padding: Rows and columns dropped at the beginning and at the end of the full result.
        weight_init: Initial weights (in, out, kernel, kernel) or a distribution; None: MindSpore's default, uniform in
            +-1/sqrt(out * kernel**2).

    Attributes:
        fused: Operator that needs less memory, see :func:`mindseg.cpu_kernels.fusion.fuse_network`; None: MindSpore's.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: tuple[int, int],
                 weight_init: str | Tensor | Initializer | None = None) -> None:
        super().__init__((in_channels, out_channels, kernel, kernel), 0, out_channels, False, weight_init, None)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.before, self.rest = padding[0], kernel - stride - sum(padding)
        self.fused = None
        # The primitive is named after the convolution whose input gradient it computes.
        self.transpose = ops.Conv2DTranspose(in_channels, kernel, pad_mode="pad", pad=padding * 2, stride=stride)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to (N, out, H', W') with H' = stride * H + kernel - stride - sum(padding)."""
        if self.fused is not None:
            return self.fused(x, self.weight)
        height, width = self.stride * x.shape[2] + self.rest, self.stride * x.shape[3] + self.rest
        return self.transpose(x, self.weight, (x.shape[0], self.out_channels, height, width))


class BatchNorm2d(nn.Cell):
    """BatchNorm, which keeps the unbiased variance in ``moving_variance``.

    Args:
        channels: Channels of the input.
        eps: Small number added to the variance.
        momentum: Factor of the old value when the moving statistics are updated, 0..1 (PyTorch's is 1 minus this).
        gamma_init: Initial scale, ``ones`` or ``zeros``.

    Attributes:
        frozen: Normalise by the stored statistics in training too, and leave them unchanged.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.9, gamma_init: str = "ones") -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.momentum = momentum
        self.frozen = False
        self.moving_mean = Parameter(initializer("zeros", channels), name="mean", requires_grad=False)
        self.moving_variance = Parameter(initializer("ones", channels), name="variance", requires_grad=False)
        self.gamma = Parameter(initializer(gamma_init, channels), name="gamma")
        self.beta = Parameter(initializer("zeros", channels), name="beta")
        # The primitive's momentum is the factor of the new value.
        self.normalise_batch = ops.BatchNorm(is_training=True, epsilon=eps, momentum=1.0 - momentum)
        self.normalise_stored = ops.BatchNorm(is_training=False, epsilon=eps)
        self.newer = _newer("BatchNormExt")
        self.activate_batch = self.activate_stored = self.slopes = None

    def fuse(self, batch: nn.Cell, stored: nn.Cell, slopes: Tensor) -> None:
        """Prepares :meth:`activate`.

        Args:
            batch: Operator from (x, gamma, beta, slopes) to the result, and mean, 1 / standard deviation and unbiased
                variance of the batch.
            stored: Operator from (x, scale, shift, slopes) to the result.
            slopes: Slopes of an activation without parameters.
        """
        self.activate_batch, self.activate_stored, self.slopes = batch, stored, slopes

    def activate(self, x: Tensor, slopes: Tensor) -> Tensor:
        """Normalises (N, C, H, W), and multiplies what is negative then by ``slopes``, (C,) or (1,)."""
        if self.training and not self.frozen:
            result, mean, _, variance = self.activate_batch(x, self.gamma, self.beta, slopes)
            self._track(self.moving_mean, mean)
            self._track(self.moving_variance, variance)
            return result
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.eps)
        return self.activate_stored(x, scale, self.beta - self.moving_mean * scale, slopes)

    def _track(self, moving: Parameter, value: Tensor) -> None:
        assign(moving, self.momentum * moving + (1.0 - self.momentum) * ops.stop_gradient(value))

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same shape."""
        if self.newer is not None:
            return self.newer(x, self.gamma, self.beta, self.moving_mean, self.moving_variance,
                              self.training and not self.frozen, 1.0 - self.momentum, self.eps)[0]
        if self.training and not self.frozen:
            return self.normalise_batch(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0]
        return self.normalise_stored(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0]


def sync_batch_norm_kernel(eps: float, momentum: float, group: str, size: int) -> ops.Primitive:
    """Makes the kernel of Ascend and GPUs for BatchNorm over the batch of all devices, called as ``ops.BatchNorm`` is.

    Args:
        eps: As in :class:`BatchNorm2d`.
        momentum: As there.
        group: Name of the group of all devices.
        size: Number of devices.
    """
    from mindspore.ops.operations._inner_ops import SyncBatchNorm
    return SyncBatchNorm(epsilon=eps, momentum=1.0 - momentum, group=group, device_num=size)


class MaxPool2d(nn.Cell):
    """Max-pooling.

    Args:
        kernel: Side length of a window.
        stride: Step in both directions.
        same: Also pool the windows that reach beyond the bottom and right: output size = input size / stride.

    Attributes:
        halves: Windows are 2x2 pixels and do not overlap.
        fused: Operator for such windows, see :func:`mindseg.cpu_kernels.fusion.fuse_network`; None: MindSpore's.
    """

    def __init__(self, kernel: int, stride: int, same: bool = False) -> None:
        super().__init__()
        self.pool = ops.MaxPool(kernel, stride, "same" if same else "valid")
        self.halves = kernel == stride == 2 and not same
        self.fused = None

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H', W')."""
        return self.pool(x) if self.fused is None else self.fused(x)


class SoftmaxCrossEntropy(nn.Cell):
    """Softmax cross entropy of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.one_hot = ops.OneHot()
        self.cross_entropy = ops.SoftmaxCrossEntropyWithLogits()
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        """Maps logits (P, C) and labels (P,) int32, 0 <= label < C, to losses (P,)."""
        return self.cross_entropy(logits, self.one_hot(label, logits.shape[1], self.one, self.zero))[0]


# Functions of mindspore.ops and methods of Tensor that are to go, or to mean something else.

def cast(x: Tensor, dtype: ms.Type) -> Tensor:
    """Converts to another number type."""
    return ops.Cast()(x, dtype)


def transpose(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Puts the axes into another order: axis i of the result is axis ``order[i]`` of ``x``."""
    return ops.Transpose()(x, order)


def cut(x: Tensor, start: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Cuts out a block of ``size``, beginning at ``start``."""
    return ops.Slice()(x, start, size)


# MindSpore 2.7 has no kernel of SplitWithSize for the CPU.
SPLITS = tuple(map(int, ms.__version__.split(".")[:2])) >= (2, 8)


def split(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Cuts (P,) into parts of these sizes, by one operator; on a CPU only where ``SPLITS`` is True."""
    return SplitWithSize()(x, sizes, 0)


def take(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    """Looks up ``x[index]`` along an axis."""
    return ops.Gather()(x, index, axis)


def take_along(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """Looks up one value for each element of ``index``, as ``numpy.take_along_axis`` does."""
    return ops.GatherD()(x, axis, index)


@constexpr
def _row_length(size: int) -> int:
    """Largest divisor up to 4096 of a number of values, on a CPU; 1 elsewhere."""
    return next(n for n in range(4096 if kernels() == "cpu" else 1, 0, -1) if size % n == 0)


def total(x: Tensor) -> Tensor:
    """Adds all values; on a CPU row by row.

    MindSpore times its sum of a long vector on the CPU and chooses the number of threads, whatever
    :func:`mindseg.runtime.tune_cpu` says, so the result depends on the load of the machine.
    """
    length = _row_length(x.size)
    return x.sum() if length == 1 else ops.reshape(x, (-1, length)).sum(1).sum()


_SHORTEST_UPDATE = 0.01    # seconds; the update of each of the networks takes longer
# MindSpore 2.7 does not give out a tensor's storage on the CPU; 2.8 and 2.9 were not tried.
FREES = tuple(map(int, ms.__version__.split(".")[:2])) >= (2, 10)


def release(tensors: tuple[Tensor, ...], after: Tensor) -> None:
    """Frees the memory of tensors on a CPU, where MindSpore can; nothing may use them any more.

    MindSpore keeps the inputs of a compiled piece until it is called again.

    Args:
        tensors: Inputs of a compiled piece.
        after: Its result, which is waited for.
    """
    if device_target() == "CPU" and FREES:
        if get_mode() != "graph":
            # PyNative waits in a busy loop, which takes a core from the update's kernels: on two cores, three times as
            # long an update.
            time.sleep(_SHORTEST_UPDATE)
        after.asnumpy()
        for tensor in tensors:
            tensor.untyped_storage().resize_(0)


def add_along(x: Tensor, axis: int, index: Tensor, values: Tensor) -> Tensor:
    """Returns ``x`` with ``values`` added at the places that :func:`take_along` reads."""
    return ops.TensorScatterElements(axis, "add")(x, index, values)


class CountValues(nn.Cell):
    """Counts how often each whole number occurs."""

    def __init__(self) -> None:
        super().__init__()
        # Fifteen times as fast as a sum of segments on the CPU; on Ascend it may run on the slow processors.
        self.bincount = ops.Bincount() if kernels() == "cpu" else None
        self.segment_sum = ops.UnsortedSegmentSum()

    def construct(self, x: Tensor, size: int) -> Tensor:
        """Maps int32 values (P,) from 0 to ``size`` - 1 to float32 counts (size,)."""
        ones = ops.ones_like(cast(x, ms.float32))
        if self.bincount is not None:
            return self.bincount(x, _scalar(size), ones)
        return self.segment_sum(ones, x, size)


@constexpr
def _scalar(value: int) -> Tensor:
    """A whole number as int32 tensor."""
    return Tensor(value, ms.int32)


def assign(param: Parameter, value: Tensor) -> Tensor:
    """Gives a parameter a value, and returns it."""
    return ops.Assign()(param, value)


def assign_add(param: Parameter, value: Tensor) -> Tensor:
    """Adds to a parameter, and returns the sum."""
    return ops.AssignAdd()(param, value)


def assign_sub(param: Parameter, value: Tensor) -> Tensor:
    """Subtracts from a parameter, and returns the difference."""
    return ops.AssignSub()(param, value)
