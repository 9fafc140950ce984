"""Building blocks shared by the four networks.

Every operator used in evaluation exists in graph mode, in PyNative mode, on CPU and Ascend, and in MindSpore's ONNX
exporter (opset 11, static shapes). Resizing and adaptive pooling are separable linear maps, so they are written as two
products with constant matrices: exact, exportable, and faster in the backward pass than the interpolation kernels
(docs/performance.md).
"""
import zlib
from collections.abc import Callable

import numpy as np

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeNormal, Initializer
from mindspore.ops import constexpr

from mindseg.errors import UserError

MIN_SIZE = 32


def conv2d(in_channels: int, out_channels: int, kernel: int | tuple[int, int] = 1, stride: int = 1,
           padding: int | str = 0, dilation: int = 1, groups: int = 1, bias: bool = False,
           he_init: bool = False) -> nn.Conv2d:
    """A convolution with the same zero padding on all sides (PyTorch's rule), or MindSpore's ``"same"``.

    ``"same"`` pads only the bottom and right at stride 2, and keeps the size of oblong kernels at stride 1. Four
    numbers would do both, but MindSpore's ONNX exporter writes them in the wrong order.

    Weights start as PyTorch's do, uniform in +-1/sqrt(fan_in), the start that the measured recipes used. ``he_init``
    takes He's normal distribution over the fan-out instead (fan-in for grouped kernels, whose fan-out says little), as
    in "Delving Deep into Rectifiers" (arXiv 1502.01852), with biases of 0.
    """
    init = HeNormal(mode="fan_out" if groups == 1 else "fan_in", nonlinearity="relu") if he_init else None
    same = padding == "same"
    return nn.Conv2d(in_channels, out_channels, kernel, stride, pad_mode="same" if same else "pad",
                     padding=0 if same else padding, dilation=dilation, group=groups, has_bias=bias, weight_init=init,
                     bias_init="zeros" if he_init else None)


def batch_norm(channels: int, eps: float = 1e-5, gamma: str = "ones") -> nn.Cell:
    """Every BatchNorm but the pooled ones below; MindSpore's momentum 0.9 is PyTorch's 0.1."""
    return nn.BatchNorm2d(channels, eps=eps, momentum=0.9, gamma_init=gamma)


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm behind a global pooling, where it sees one value a channel and image.

    A batch of one would give 0 and store a NaN variance, and is refused; not where statistics are frozen, and not where
    a synchronised BatchNorm, which sees the images of all devices, takes this one's place.

    Args:
        where: What the message calls this layer.
    """

    def __init__(self, channels: int, eps: float, where: str) -> None:
        super().__init__(channels, eps=eps, momentum=0.9)
        self.where = where

    def construct(self, x: Tensor) -> Tensor:
        if self.training and self.use_batch_statistics is not False:
            check_pooled_batch(x.shape[0], self.where)
        return super().construct(x)


def replace_batch_norm(network: nn.Cell, factory: Callable[[nn.BatchNorm2d], nn.Cell]) -> int:
    """Replaces every BatchNorm of a network in place, for synchronised statistics or another momentum.

    Args:
        network: Changed in place; parameter names and values stay.
        factory: Gets the old cell, returns the new one with the parameters ``gamma``, ``beta``, ``moving_mean`` and
            ``moving_variance``.

    Returns:
        The number of cells replaced.
    """
    found = [(parent, key, child) for _, parent in network.cells_and_names()
             for key, child in parent.name_cells().items() if isinstance(child, nn.BatchNorm2d)]
    for parent, key, old in found:
        new = factory(old)
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            setattr(new, name, getattr(old, name))
        new.set_train(old.training)
        if isinstance(parent, nn.SequentialCell):
            parent[int(key)] = new
        else:
            setattr(parent, key, new)
    return len(found)


def activation(name: str | None) -> nn.Cell | None:
    """``"relu"``, ``"relu6"`` or None."""
    return {"relu": nn.ReLU, "relu6": nn.ReLU6}[name]() if name else None


class ConvBNReLU(nn.Cell):
    """Convolution, BatchNorm and an activation.

    Args:
        act: ``"relu"``, ``"relu6"`` or None for a linear block.
        bias: The convolution's own bias; redundant before BatchNorm, but present in some public weights.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1,
                 padding: int | str | None = None, groups: int = 1, act: str | None = "relu", bias: bool = False,
                 eps: float = 1e-5, he_init: bool = False) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = conv2d(in_channels, out_channels, kernel, stride, padding, 1, groups, bias, he_init)
        self.bn = batch_norm(out_channels, eps)
        self.act = activation(act)

    def construct(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.act is None else self.act(x)


class Scale(nn.Cell):
    """``x * slope`` for (N, C, H, W) and a slope of (1,) or (C,), whose gradient is summed by a matrix product.

    On the CPU that takes a third of the time of the ReduceSum that automatic differentiation writes.
    """

    def construct(self, x: Tensor, slope: Tensor) -> Tensor:
        return x * self.broadcast(slope)

    def bprop(self, x: Tensor, slope: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        n, c, h, w = x.shape
        if slope.shape[0] == 1:
            total = ops.matmul(ops.reshape(x, (1, -1)), ops.reshape(dout, (-1, 1)))
        else:
            total = ops.matmul(ops.reshape(x, (n, c, 1, h * w)), ops.reshape(dout, (n, c, h * w, 1))).sum(0)
        return dout * self.broadcast(slope), ops.reshape(total, slope.shape)

    @staticmethod
    def broadcast(slope: Tensor) -> Tensor:
        return slope if slope.shape[0] == 1 else ops.reshape(slope, (1, -1, 1, 1))


class PReLU(nn.Cell):
    """Parametric ReLU: x where positive, slope * x elsewhere; one slope or one a channel, 0.25 at the start."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.slope = Parameter(Tensor(np.full(channels, 0.25, np.float32)), name="slope")
        # Elsewhere a product might round its inputs to 16 bits.
        self.scale = Scale() if ms.get_context("device_target") == "CPU" else None

    def construct(self, x: Tensor) -> Tensor:
        slope = self.slope.astype(x.dtype)
        below = ops.relu(-x)
        if self.training and self.scale is not None:
            return ops.relu(x) - self.scale(below, slope)
        return ops.relu(x) - below * Scale.broadcast(slope)


class TransposedConv(nn.Conv2dTranspose):
    """Transposed convolution without bias whose output is exactly ``stride`` times the input.

    Training runs MindSpore's operator. Evaluation computes the same as one ordinary convolution that gives all
    stride x stride phases as channels: MindSpore's ONNX exporter writes transposed convolutions that no runtime reads.

    Args:
        offset: Rows and columns dropped at the top and left of the full result; PyTorch's ``padding``.
        init: Initial weights (in, out, kernel, kernel) or an initializer; None is MindSpore's own.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, offset: int = 0,
                 init: Tensor | Initializer | None = None) -> None:
        symmetric = 2 * offset == kernel - stride
        super().__init__(in_channels, out_channels, kernel, stride, pad_mode="pad", padding=offset if symmetric else 0,
                         weight_init=init)
        self.cut = None if symmetric else offset
        self.factor = stride
        # Row u of the full result, counted from the offset, is phase u mod stride of the input row u div stride away.
        reach = [(k - offset) // stride for k in range(kernel)]
        before, after = max(reach), -min(reach)
        if not 0 <= after - before <= 1:  # all that "same" padding can do
            before = after = max(before, after)
        self.taps = before + after + 1
        select = np.zeros((self.taps, stride, kernel), np.float32)
        for k in range(kernel):
            select[before - reach[k], (k - offset) % stride, k] = 1
        self.select = Tensor(select.reshape(-1, kernel))
        self.select_transposed = Tensor(np.ascontiguousarray(select.reshape(-1, kernel).T))
        self.phases = ops.Conv2D(out_channels * stride**2, (self.taps, self.taps), pad_mode="same")

    def construct(self, x: Tensor) -> Tensor:
        if self.training:
            y = super().construct(x)
            if self.cut is None:
                return y
            return window(y, self.cut, self.factor * x.shape[2], self.factor * x.shape[3])
        s, taps, inputs, outputs = self.factor, self.taps, self.in_channels, self.out_channels
        weight = ops.matmul(ops.matmul(self.select, self.weight), self.select_transposed)
        weight = ops.transpose(ops.reshape(weight, (inputs, outputs, taps, s, taps, s)), (1, 3, 5, 0, 2, 4))
        y = self.phases(x, ops.reshape(weight, (outputs * s * s, inputs, taps, taps)))
        y = ops.transpose(ops.reshape(y, (-1, outputs, s, s, x.shape[2], x.shape[3])), (0, 1, 4, 2, 5, 3))
        return ops.reshape(y, (-1, outputs, s * x.shape[2], s * x.shape[3]))


def bilinear_matrix(out_size: int, in_size: int, align_corners: bool | str) -> np.ndarray:
    """Matrix of linear interpolation along one axis, (out_size, in_size) float32.

    Args:
        out_size: Pixels after the resize.
        in_size: Pixels before.
        align_corners: Corner rule, see ``resize_bilinear``.
    """
    if align_corners == "low":
        pos = np.arange(out_size) * (in_size / out_size)
    elif align_corners:
        pos = np.arange(out_size) * ((in_size - 1) / max(out_size - 1, 1))
    else:
        pos = np.maximum((np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5, 0.0)
    low = np.minimum(np.floor(pos).astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    matrix = np.zeros((out_size, in_size))
    np.add.at(matrix, (np.arange(out_size), low), 1.0 - (pos - low))
    np.add.at(matrix, (np.arange(out_size), high), pos - low)
    return matrix.astype(np.float32)


@constexpr
def _resize_matrix(out_size: int, in_size: int, align_corners: bool | str, transpose: bool) -> Tensor:
    matrix = bilinear_matrix(out_size, in_size, align_corners)
    return Tensor(np.ascontiguousarray(matrix.T if transpose else matrix))


@constexpr
def _pool_matrix(out_size: int, in_size: int, transpose: bool) -> Tensor:
    """The (out, in) matrix of adaptive average pooling: bin i covers floor(i*in/out) .. ceil((i+1)*in/out)."""
    matrix = np.zeros((out_size, in_size))
    for i in range(out_size):
        start, stop = i * in_size // out_size, -(-(i + 1) * in_size // out_size)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return Tensor(np.ascontiguousarray(matrix.T if transpose else matrix), ms.float32)


def resize_bilinear(x: Tensor, size: tuple[int, int], align_corners: bool | str) -> Tensor:
    """Bilinear resize, equal to PyTorch's ``interpolate`` for both corner rules.

    Args:
        x: (N, C, H, W); H and W must be known when the graph is compiled.
        size: (height, width) of the result.
        align_corners: Whether the corner pixels' centres coincide; ``"low"`` is the rule of old MindSpore and
            TensorFlow kernels, which align the first pixel only.
    """
    height, width = x.shape[2], x.shape[3]
    if width != size[1]:
        x = ops.matmul(x, _resize_matrix(size[1], width, align_corners, True).astype(x.dtype))
    if height != size[0]:
        x = ops.matmul(_resize_matrix(size[0], height, align_corners, False).astype(x.dtype), x)
    return x


def adaptive_avg_pool(x: Tensor, size: int) -> Tensor:
    """Adaptive average pooling of (N, C, H, W) to (N, C, size, size)."""
    x = ops.matmul(x, _pool_matrix(size, x.shape[3], True).astype(x.dtype))
    return ops.matmul(_pool_matrix(size, x.shape[2], False).astype(x.dtype), x)


@constexpr
def _pool3_matrix(in_size: int, one_sided: bool, transpose: bool) -> Tensor:
    """The (in/2, in) matrix of averaging three neighbours with stride 2, see ``avg_pool3``."""
    matrix = np.zeros((in_size // 2, in_size))
    for i in range(in_size // 2):
        start = 2 * i - (not one_sided)
        taps = [j for j in range(start, start + 3) if 0 <= j < in_size]
        matrix[i, taps] = 1.0 / (len(taps) if one_sided else 3)
    return Tensor(np.ascontiguousarray(matrix.T if transpose else matrix), ms.float32)


def avg_pool3(x: Tensor, one_sided: bool = False) -> Tensor:
    """3x3 average pooling of stride 2 of (N, C, H, W) with even H and W.

    Args:
        one_sided: False pads one zero on every side and divides by 9 (PyTorch's ``padding=1``); True starts at the
            first pixel and leaves out what lies beyond the last one (MindSpore's ``same``).
    """
    x = ops.matmul(x, _pool3_matrix(x.shape[3], one_sided, True).astype(x.dtype))
    return ops.matmul(_pool3_matrix(x.shape[2], one_sided, False).astype(x.dtype), x)


def resize_nearest(x: Tensor, factor: int) -> Tensor:
    """Repeats every pixel of (N, C, H, W) ``factor`` times in both directions."""
    _, c, h, w = x.shape
    x = ops.tile(ops.reshape(x, (-1, c, h, 1, w, 1)), (1, 1, 1, factor, 1, factor))
    return ops.reshape(x, (-1, c, h * factor, w * factor))


def pad_to_multiple(x: Tensor, multiple: int = 32) -> Tensor:
    """Pads (N, C, H, W) with zeros at the bottom and right; zero is the mean of a normalised image.

    Concatenation is used because the ONNX exporter has no padding operator; sizes that fit pass through untouched.
    """
    check_size(x.shape[2], x.shape[3])
    rows, cols = -x.shape[2] % multiple, -x.shape[3] % multiple
    if rows:
        x = ops.concat((x, ops.zeros_like(x[:, :, :rows, :])), 2)
    if cols:
        x = ops.concat((x, ops.zeros_like(x[:, :, :, :cols])), 3)
    return x


def pad_low(x: Tensor, value: float) -> Tensor:
    """Adds one row above and one column left of (N, C, H, W)."""
    x = ops.concat((ops.full_like(x[:, :, :1, :], value), x), 2)
    return ops.concat((ops.full_like(x[:, :, :, :1], value), x), 3)


def max_pool_mask(x: Tensor, pooled: Tensor) -> Tensor:
    """1 at the first maximum (in reading order) of each 2x2 window, 0 elsewhere: the indices of PyTorch's max-pooling.

    Args:
        x: (N, C, 2h, 2w).
        pooled: (N, C, h, w), the windows' maxima.

    Returns:
        A constant (N, C, h, 2, w, 2) of x's type.
    """
    _, c, h, w = pooled.shape
    equal = ops.cast(ops.reshape(x, (-1, c, h, 2, w, 2)) == ops.reshape(pooled, (-1, c, h, 1, w, 1)), x.dtype)
    rank = equal * Tensor(np.array([4, 3, 2, 1], np.float32).reshape(1, 1, 1, 2, 1, 2))
    best = ops.MaxPool(2, 2)(ops.reshape(rank, (-1, c, 2 * h, 2 * w)))
    return ops.stop_gradient(ops.cast(rank == ops.reshape(best, (-1, c, h, 1, w, 1)), x.dtype))


def unpool(x: Tensor, mask: Tensor) -> Tensor:
    """Max-unpooling: puts each value of (N, C, h, w) at the place marked in its 2x2 window, zeros elsewhere."""
    _, c, h, w = x.shape
    return ops.reshape(ops.reshape(x, (-1, c, h, 1, w, 1)) * mask, (-1, c, 2 * h, 2 * w))


def window(x: Tensor, start: int, height: int, width: int) -> Tensor:
    """``x[:, :, start:start + height, start:start + width]``, which on the CPU would take forty times as long."""
    return ops.slice(x, (0, 0, start, start), (x.shape[0], x.shape[1], height, width))


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Takes the top left (height, width) of (N, C, H, W): the way back from ``pad_to_multiple``."""
    if x.shape[2] != height or x.shape[3] != width:
        x = window(x, 0, height, width)
    return x


@constexpr
def check_size(height: int, width: int) -> bool:
    """Raises if an image is smaller than the networks' deepest stride."""
    if height < MIN_SIZE or width < MIN_SIZE:
        raise UserError(f"input of {height}x{width} pixels is too small: height and width must be at least {MIN_SIZE}")
    return True


@constexpr
def check_pooled_batch(batch: int, where: str) -> bool:
    """Raises if BatchNorm would see one value a channel: it would output 0 and store a NaN variance."""
    if batch == 1:
        raise UserError(f"{where} normalises one value per channel when the training batch is 1: "
                        "use a batch of 2 or more per device")
    return True


@constexpr
def _random_int32(seed: int, name: str, axis: int, count: int) -> Tensor:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), axis])
    return Tensor(rng.integers(-2**31, 2**31, count, np.int64).astype(np.int32) | 1)


def _mix(x: Tensor) -> Tensor:
    """Two rounds of a multiply-and-fold integer hash. Products wrap around; masks make the shifts logical."""
    x = (x ^ (ops.bitwise_right_shift(x, Tensor(15, ms.int32)) & 0x1FFFF)) * Tensor(0x2C1B3C6D, ms.int32)
    x = (x ^ (ops.bitwise_right_shift(x, Tensor(12, ms.int32)) & 0xFFFFF)) * Tensor(0x297A2D39, ms.int32)
    return x ^ (ops.bitwise_right_shift(x, Tensor(15, ms.int32)) & 0x1FFFF)


class Dropout(nn.Cell):
    """Dropout whose mask depends only on the seed, the layer's name and a step counter kept as a parameter.

    ``nn.Dropout`` holds a random state that no checkpoint contains; this one continues bit for bit after a resume. Each
    training call adds 1 to the counter. The mask compares a 32-bit hash of (seed, layer, step, position) with the rate.

    Args:
        rate: Probability of zeroing, 0 <= rate < 1; 0 makes the layer the identity without parameters.
        name: Distinguishes the layers of one network.
        spatial: Drops whole channels (Dropout2d) instead of single values.
    """

    def __init__(self, rate: float, name: str, spatial: bool = False) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise UserError(f"dropout rate {rate} is outside [0, 1)")
        self.rate = float(rate)
        self.layer = name
        self.spatial = spatial
        self.seed = ms.get_seed() or 0
        self.threshold = Tensor(int(-2**31 + rate * 2**32), ms.int32)
        if self.rate > 0:
            self.step = Parameter(Tensor(0, ms.int32), name="step", requires_grad=False)

    def construct(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        n, c, h, w = x.shape
        step = ops.assign_add(self.step, Tensor(1, ms.int32))
        outer = _mix(_random_int32(self.seed, self.layer, 0, n * c) ^ (step * Tensor(0x61C88647, ms.int32)))
        outer = ops.reshape(outer, (n, c, 1, 1))
        noise = outer
        if not self.spatial:
            # A product with odd random numbers is a universal hash: its high bits, which the comparison looks at, are
            # random for every pair of positions, at a third of the cost of mixing each element.
            noise = outer * ops.reshape(_random_int32(self.seed, self.layer, 1, h * w), (1, 1, h, w))
        keep = ops.cast(noise >= self.threshold, x.dtype)
        return x * keep * (1.0 / (1.0 - self.rate))
