"""Building blocks shared by the four networks.

Every operator used in evaluation works in graph mode, in PyNative mode, on CPU and Ascend, and in MindSpore's ONNX
exporter (opset 11, static shapes). Resizing and adaptive pooling are linear along each axis, so they are written as two
products with constant matrices: exact, exportable, and faster in the backward pass than the interpolation kernels
(docs/performance.md). Tensors are (N, C, H, W), float32 or float16, unless a docstring says otherwise.
"""
import zlib
from collections.abc import Callable

import numpy as np

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeNormal, Initializer
from mindspore.ops import constexpr

from mindseg.compat import BatchNorm2d, Conv2d, Conv2dTranspose, assign_add, cast, cut, kernels, take, transpose
from mindseg.errors import UserError

MIN_SIZE = 32


def conv2d(in_channels: int, out_channels: int, kernel: int | tuple[int, int] = 1, stride: int = 1,
           padding: int | str = 0, dilation: int = 1, groups: int = 1, bias: bool = False,
           he_init: bool = False) -> Conv2d:
    """Makes a convolution with PyTorch's initial weights, uniform in +-1/sqrt(fan_in), or with He's.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side length, or (height, width).
        stride: Step in both directions.
        padding: Zeros on every side, or ``"same"``, which pads only the bottom and right at stride 2 and keeps the size
            with oblong kernels at stride 1. (Four numbers could say both, but MindSpore's ONNX exporter swaps them.)
        dilation: Distance between the kernel's elements.
        groups: Groups of channels that are convolved separately.
        bias: Add a bias.
        he_init: He's normal initialisation (arXiv 1502.01852) over the fan-out, or the fan-in for grouped kernels, and
            biases of 0.
    """
    init = HeNormal(mode="fan_out" if groups == 1 else "fan_in", nonlinearity="relu") if he_init else None
    return Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias, init,
                  "zeros" if he_init else None)


class PooledBatchNorm(BatchNorm2d):
    """BatchNorm after a global pooling, which sees one value per channel and image.

    Training with a batch of 1 would give 0 and store a NaN variance, so it is refused. Frozen statistics are allowed,
    and a synchronised BatchNorm, which replaces this layer, sees the images of all devices.

    Args:
        channels: Channels of the input.
        eps: Small number added to the variance.
        where: Name of the layer in the error message.
    """

    def __init__(self, channels: int, eps: float, where: str) -> None:
        super().__init__(channels, eps)
        self.where = where

    def construct(self, x: Tensor) -> Tensor:
        """Normalises (N, C, 1, 1)."""
        if self.training and not self.frozen:
            _check_pooled_batch(x.shape[0], self.where)
        return super().construct(x)


def replace_batch_norm(network: nn.Cell, factory: Callable[[BatchNorm2d], nn.Cell]) -> int:
    """Replaces every BatchNorm of a network, for synchronised statistics or another momentum.

    Args:
        network: Network, changed in place; the parameters stay.
        factory: Function from the old cell to a new one that has ``gamma``, ``beta``, ``moving_mean`` and
            ``moving_variance``.

    Returns:
        Number of cells replaced.
    """
    found = [(parent, key, child) for _, parent in network.cells_and_names()
             for key, child in parent.name_cells().items() if isinstance(child, BatchNorm2d)]
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


class ConvBNAct(nn.Cell):
    """Convolution, BatchNorm and an optional activation.

    Args:
        conv: Convolution.
        channels: Channels of its output.
        act: Activation, or None.
        eps: Small number that BatchNorm adds to the variance.

    Attributes:
        fused: BatchNorm and activation are one operator, see :func:`mindseg.cpu_kernels.fusion.fuse_network`.
    """

    def __init__(self, conv: nn.Cell, channels: int, act: nn.Cell | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = conv
        self.bn = BatchNorm2d(channels, eps)
        self.act = act
        self.fused = False
        self.learns = isinstance(act, PReLU)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to (N, out, H / stride, W / stride)."""
        x = self.conv(x)
        if self.fused:
            return self.bn.activate(x, self.act.slope if self.learns else self.bn.slopes)
        x = self.bn(x)
        return x if self.act is None else self.act(x)


class ConvBNReLU(ConvBNAct):
    """Square convolution, BatchNorm and ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side length.
        stride: Step in both directions.
        padding: As in :func:`conv2d`; None keeps the size at stride 1.
        groups: Groups of channels that are convolved separately.
        act: ``relu``, ``relu6``, or None for no activation.
        bias: Add a bias to the convolution; redundant before BatchNorm, but some public weights have one.
        eps: Small number that BatchNorm adds to the variance.
        he_init: As in :func:`conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1,
                 padding: int | str | None = None, groups: int = 1, act: str | None = "relu", bias: bool = False,
                 eps: float = 1e-5, he_init: bool = False) -> None:
        padding = kernel // 2 if padding is None else padding
        super().__init__(conv2d(in_channels, out_channels, kernel, stride, padding, 1, groups, bias, he_init),
                         out_channels, {"relu": nn.ReLU, "relu6": nn.ReLU6}[act]() if act else None, eps)


@constexpr
def _constants(value: float, count: int) -> Tensor:
    return Tensor(np.full(count, value, np.float32))


class Scale(nn.Cell):
    """Product ``x * slope``, whose gradient with respect to the slope is summed by a matrix product.

    On the CPU this takes a third of the time of the ReduceSum that automatic differentiation would use.
    """

    def construct(self, x: Tensor, slope: Tensor) -> Tensor:
        """Multiplies (N, C, H, W) by a slope of shape (1,) or (C,)."""
        return x * self.broadcast(slope)

    def bprop(self, x: Tensor, slope: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradients with respect to ``x`` and ``slope`` from that of the output, ``dout``."""
        n, c, h, w = x.shape
        if slope.shape[0] == 1:
            total = ops.matmul(ops.reshape(x, (1, -1)), ops.reshape(dout, (-1, 1)))
        else:
            total = ops.matmul(ops.reshape(x, (n, c, 1, h * w)), ops.reshape(dout, (n, c, h * w, 1))).sum(0)
        return dout * self.broadcast(slope), ops.reshape(total, slope.shape)

    @staticmethod
    def broadcast(slope: Tensor) -> Tensor:
        """Reshapes a slope of shape (C,) to (1, C, 1, 1); (1,) stays."""
        return slope if slope.shape[0] == 1 else ops.reshape(slope, (1, -1, 1, 1))


class PReLU(nn.Cell):
    """Parametric ReLU (arXiv 1502.01852): x where it is positive, slope * x elsewhere; the slope starts at 0.25.

    Args:
        channels: Number of slopes: 1, or one per channel.

    Attributes:
        fused: Operator that does it in one pass, see :func:`mindseg.cpu_kernels.fusion.fuse_network`; None: several.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.slope = Parameter(Tensor(np.full(channels, 0.25, np.float32)), name="slope")
        self.scale = Scale()
        # One launch on Ascend; the CPU has no fast kernel, and its exporter cannot write it.
        self.prelu = None if kernels() == "cpu" else ops.PReLU()
        self.fused = None

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same shape."""
        if self.fused is not None:
            return self.fused(x, _constants(1.0, x.shape[1]), _constants(0.0, x.shape[1]), self.slope)
        slope = cast(self.slope, x.dtype)
        if self.prelu is not None:
            return self.prelu(x, slope)
        below = ops.relu(-x)
        if self.training:
            return ops.relu(x) - self.scale(below, slope)
        return ops.relu(x) - below * Scale.broadcast(slope)


class TransposedConv(Conv2dTranspose):
    """Transposed convolution without bias whose output is exactly ``stride`` times as large as its input.

    Where the kernel is as long as the stride, evaluation computes the same values by a 1x1 convolution, whose channels
    are the pixels of each stride x stride block: CANN's own kernel was wrong there in mixed precision (docs/ascend.md).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side length of the kernel, at least the stride.
        stride: Factor of height and width.
        offset: Rows and columns dropped at the top and left of the full result; PyTorch's ``padding``.
        init: Initial weights (in, out, kernel, kernel) or an initializer; None: MindSpore's default.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, offset: int = 0,
                 init: Tensor | Initializer | None = None) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, (offset, kernel - stride - offset), init)
        self.factor = stride
        self.to_blocks = None
        if kernel == stride:
            self.convolve = ops.Conv2D(out_channels * stride**2, (1, 1))
            self.to_blocks = ops.DepthToSpace(stride)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to (N, out, stride * H, stride * W)."""
        if self.training or self.to_blocks is None or self.fused is not None:
            return super().construct(x)
        # DepthToSpace reads channel (row * stride + column) * out + c.
        weight = transpose(self.weight, (2, 3, 1, 0))
        return self.to_blocks(self.convolve(x, ops.reshape(weight, (-1, self.in_channels, 1, 1))))


def bilinear_matrix(out_size: int, in_size: int, align_corners: bool | str) -> np.ndarray:
    """Matrix of linear interpolation along one axis, (out_size, in_size) float32.

    Args:
        out_size: Pixels after the resize.
        in_size: Pixels before.
        align_corners: Corner rule, see :class:`Resample`.
    """
    if align_corners == "low":
        pos = np.arange(out_size) * (in_size / out_size)
    elif align_corners:
        pos = np.arange(out_size) * ((in_size - 1) / max(out_size - 1, 1))
    else:
        pos = np.maximum((np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5, 0.0)
    pos = np.minimum(pos, in_size - 1)[:, None]
    return np.maximum(1 - np.abs(pos - np.arange(in_size)), 0).astype(np.float32)


def _pool_matrix(out_size: int, in_size: int, rule: str) -> np.ndarray:
    """Builds the (out, in) matrix of averages: adaptive bins floor(i*in/out) .. ceil((i+1)*in/out), or three pixels."""
    matrix = np.zeros((out_size, in_size))
    for i in range(out_size):
        start, stop = 2 * i, 2 * i + 3
        if rule == "adaptive":
            start, stop = i * in_size // out_size, -(-(i + 1) * in_size // out_size)
        elif rule == "padded":
            start, stop = start - 1, stop - 1
        taps = matrix[i, max(start, 0):stop]
        taps[:] = 1 / (3 if rule == "padded" else taps.size)
    return matrix


@constexpr
def _matrix(out_size: int, in_size: int, rule: bool | str, transpose: bool) -> Tensor:
    pool = rule in ("adaptive", "padded", "same")
    matrix = _pool_matrix(out_size, in_size, rule) if pool else bilinear_matrix(out_size, in_size, rule)
    return Tensor(np.ascontiguousarray(matrix.T if transpose else matrix), ms.float32)


class Product(nn.Cell):
    """Product of (N, C, H, W) and a constant matrix.

    Its gradient takes the transposed matrix as another constant. Automatic differentiation would transpose the matrix
    in every step, which is one more kernel to launch.

    Args:
        rows: Multiply from the left, so that the number of rows changes; otherwise from the right, the columns.
    """

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.rows = rows

    def construct(self, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        """Multiplies ``x`` by ``matrix``; ``transposed`` is for the gradient."""
        return ops.matmul(matrix, x) if self.rows else ops.matmul(x, matrix)

    def bprop(self, x: Tensor, matrix: Tensor, transposed: Tensor, out: Tensor,
              dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the gradient with respect to ``x`` from that of the output, ``dout``; constants have none."""
        dx = ops.matmul(transposed, dout) if self.rows else ops.matmul(dout, transposed)
        return dx, ops.zeros_like(matrix), ops.zeros_like(transposed)


class Resample(nn.Cell):
    """Bilinear resize or average pooling, each axis by the product with a constant matrix.

    Args:
        rule: For a bilinear resize, which points of the two images coincide: True the centres of the corner pixels
            (PyTorch's ``align_corners``), False the borders, ``"low"`` the top left pixels, as in old MindSpore and
            TensorFlow kernels. For pooling, what is averaged: ``"adaptive"`` as PyTorch's adaptive pooling does;
            3x3 pixels at stride 2, ``"padded"`` by a zero on every side and divided by 9 (PyTorch's ``padding=1``), or
            ``"same"``, from the first pixel on and without what lies beyond the last one (MindSpore's ``same``).
    """

    def __init__(self, rule: bool | str) -> None:
        super().__init__()
        self.rule = rule
        self.rows, self.columns = Product(True), Product(False)

    def construct(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (N, C, H, W) to (N, C, height, width) of ``size``; H and W are known when the graph is compiled."""
        height, width = x.shape[2], x.shape[3]
        if width != size[1]:
            x = self.columns(x, cast(_matrix(size[1], width, self.rule, True), x.dtype),
                             cast(_matrix(size[1], width, self.rule, False), x.dtype))
        if height != size[0]:
            x = self.rows(x, cast(_matrix(size[0], height, self.rule, False), x.dtype),
                          cast(_matrix(size[0], height, self.rule, True), x.dtype))
        return x


@constexpr
def _zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


def broadcasts() -> bool:
    """Tests whether windows of pixels are broadcast in five axes while training.

    On the CPU that takes, with its gradient, less than half the time of a resize. Ascend is slow where the last axis is
    as short as a window, and an exported graph holds a resize, too.
    """
    return kernels() == "cpu"


def resize_nearest(x: Tensor, factor: int, broadcast: bool) -> Tensor:
    """Repeats every pixel in both directions.

    Args:
        x: (N, C, H, W).
        factor: Factor of height and width.
        broadcast: Add zeros with two more axes, see :func:`broadcasts`.
    """
    n, c, h, w = x.shape
    if not broadcast:
        return ops.ResizeNearestNeighbor((h * factor, w * factor))(x)
    blocks = ops.reshape(x, (n * c, h, 1, w, 1)) + cast(_zeros(1, 1, factor, 1, factor), x.dtype)
    return ops.reshape(blocks, (n, c, h * factor, w * factor))


class ResizeNearest(nn.Cell):
    """Repetition of every pixel in both directions.

    Args:
        factor: Factor of height and width.

    Attributes:
        fused: Operator that does it, see :func:`mindseg.cpu_kernels.fusion.fuse_network`; None: MindSpore's.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.broadcasts = broadcasts()
        self.fused = None

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, factor * H, factor * W)."""
        if self.fused is not None:
            return self.fused(x)
        return resize_nearest(x, self.factor, self.training and self.broadcasts)


def pad_to_multiple(x: Tensor, multiple: int = 32) -> Tensor:
    """Pads with zeros (the mean of a normalised image) at the bottom and right.

    Built from concatenations, because the ONNX exporter has no padding operator.

    Args:
        x: (N, C, H, W), H and W at least 32.
        multiple: Height and width of the result are multiples of this.
    """
    _check_size(x.shape[2], x.shape[3])
    rows, cols = -x.shape[2] % multiple, -x.shape[3] % multiple
    if rows:
        x = ops.concat((x, ops.zeros_like(x[:, :, :rows, :])), 2)
    if cols:
        x = ops.concat((x, ops.zeros_like(x[:, :, :, :cols])), 3)
    return x


def pad_low(x: Tensor, value: float) -> Tensor:
    """Adds one row at the top and one column at the left.

    Args:
        x: (N, C, H, W).
        value: Value of the new pixels.
    """
    x = ops.concat((ops.full_like(x[:, :, :1, :], value), x), 2)
    return ops.concat((ops.full_like(x[:, :, :, :1], value), x), 3)


@constexpr
def _alternating(first: int, second: int, count: int, axis: int) -> Tensor:
    """Two numbers in turn along one axis of (1, 1, H, W), ``count`` in all."""
    return Tensor(np.resize(np.array([first, second], np.float32), np.insert([1, 1, 1], axis, count)))


def _with_windows(operator: ops.Primitive, x: Tensor, small: Tensor, broadcast: bool) -> Tensor:
    """Applies an operator to each pixel and the value of its 2x2 window.

    Args:
        operator: Operator of two inputs.
        x: (N, C, 2h, 2w).
        small: (N, C, h, w), the values of the windows.
        broadcast: Broadcast in five axes instead of resizing, see :func:`broadcasts`.

    Returns:
        (N, C, 2h, 2w).
    """
    if not broadcast:
        return operator(x, resize_nearest(small, 2, False))
    _, c, h, w = small.shape
    result = operator(ops.reshape(x, (-1, h, 2, w, 2)), ops.reshape(small, (-1, h, 1, w, 1)))
    return ops.reshape(result, (-1, c, 2 * h, 2 * w))


def max_pool_mask(x: Tensor, pooled: Tensor, broadcast: bool) -> Tensor:
    """Marks the maximum of each 2x2 window, the first one in reading order like the indices of PyTorch's max-pooling.

    Args:
        x: (N, C, 2h, 2w).
        pooled: (N, C, h, w), the maxima of the windows.
        broadcast: As in :func:`_with_windows`.

    Returns:
        (N, C, 2h, 2w) of x's type, 1 at the maxima and 0 elsewhere; no gradient flows through it.
    """
    # The places of a window have the ranks 4 3 over 2 1.
    order = _alternating(3, 1, x.shape[2], 2) + _alternating(1, 0, x.shape[3], 3)
    rank = cast(_with_windows(ops.Equal(), x, pooled, broadcast), x.dtype) * cast(order, x.dtype)
    first = _with_windows(ops.Equal(), rank, ops.MaxPool(2, 2)(rank), broadcast)
    return ops.stop_gradient(cast(first, x.dtype))


def unpool(x: Tensor, mask: Tensor, broadcast: bool) -> Tensor:
    """Reverses a 2x2 max-pooling: each value goes to the marked place of its window, the others are 0.

    Args:
        x: (N, C, h, w).
        mask: (N, C, 2h, 2w), from :func:`max_pool_mask`.
        broadcast: As in :func:`_with_windows`.

    Returns:
        (N, C, 2h, 2w).
    """
    return _with_windows(ops.Mul(), mask, x, broadcast)


class Unpooling(nn.Cell):
    """Reverse of a 2x2 max-pooling: each value goes to the place of the maximum of its window, the others are 0.

    Attributes:
        fused: Operator that does it without a mask, see :func:`mindseg.cpu_kernels.fusion.fuse_network`; None: several.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broadcasts = broadcasts()
        self.fused = None

    def construct(self, x: Tensor, before: Tensor, pooled: Tensor) -> Tensor:
        """Maps (N, C, h, w) to (N, C, 2h, 2w).

        Args:
            x: (N, C, h, w).
            before: (N, C, 2h, 2w), the input of the max-pooling.
            pooled: (N, C, h, w), its result.
        """
        if self.fused is not None:
            return self.fused(x, ops.stop_gradient(before))
        broadcast = self.training and self.broadcasts
        return unpool(x, max_pool_mask(before, pooled, broadcast), broadcast)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Cuts out the top left corner, which undoes :func:`pad_to_multiple`, forty times as fast as indexing on the CPU.

    Args:
        x: (N, C, H, W).
        height: Number of rows.
        width: Number of columns.
    """
    if x.shape[2] != height or x.shape[3] != width:
        x = cut(x, (0, 0, 0, 0), (x.shape[0], x.shape[1], height, width))
    return x


class SegmentationNetwork(nn.Cell):
    """Network for images of any size, which are padded to multiples of 32. Sub-classes define ``predict``.

    Args:
        upsampling: Corner rule of the bilinear resize that ends the network, see :class:`Resample`; the logits of
            ``predict`` then have any size. None: ``predict`` makes them as large as they shall be.
        enlarge: Factor by which padded images are enlarged first. Thin and small objects then survive the strides, for
            factor² times the work. 2 for 360x480 pixels is a stride of 4 in the place of 8.

    Attributes:
        resizes: Resize in training, too. False: the loss does it.
    """
    resizes = True

    def __init__(self, upsampling: bool | None = None, enlarge: int = 1) -> None:
        super().__init__()
        if enlarge not in range(1, 5):
            raise UserError(f"model.enlarge = {enlarge!r} must be 1, 2, 3 or 4")
        self.upsampling = upsampling
        self.resize = None if upsampling is None else Resample(upsampling)
        self.factor = enlarge
        self.enlarged = Resample(False)

    def predict(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes logits of padded images, in evaluation those of the main head alone.

        Args:
            x: Normalised images (N, 3, H, W), H and W multiples of 32.
        """
        raise NotImplementedError

    def small_logits(self, x: Tensor) -> Tensor:
        """Computes the main head's logits before the resize that ends the network.

        Args:
            x: Normalised images (N, 3, H, W), H and W multiples of 32.
        """
        return self.predict_enlarged(x)[0]

    def predict_enlarged(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the logits of enlarged images."""
        if self.factor > 1:
            x = self.enlarged(x, (self.factor * x.shape[2], self.factor * x.shape[3]))
        return self.predict(x)

    def construct(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Computes logits.

        Args:
            x: Normalised images (N, 3, H, W) float32, H and W at least 32.

        Returns:
            In evaluation (N, num_classes, H, W), in training a tuple of such logits: main head, auxiliary heads. The
            logits of ENet's encoder alone are 1/8 as large in training, rounded up, and so are those that the loss
            resizes.
        """
        padded = pad_to_multiple(x)
        if self.training and not self.resizes:
            return self.predict_enlarged(padded)
        outputs = ()
        for logits in self.predict_enlarged(padded):
            if self.resize is not None:
                logits = self.resize(logits, (padded.shape[2], padded.shape[3]))
            stride = padded.shape[2] // logits.shape[2]
            outputs += (crop(logits, (x.shape[2] + stride - 1) // stride, (x.shape[3] + stride - 1) // stride),)
        return outputs if self.training else outputs[0]


@constexpr
def _check_size(height: int, width: int) -> bool:
    """Refuses images smaller than the deepest stride of the networks."""
    if height < MIN_SIZE or width < MIN_SIZE:
        raise UserError(f"input of {height}x{width} pixels is too small: height and width must be at least {MIN_SIZE}")
    return True


@constexpr
def _check_pooled_batch(batch: int, where: str) -> bool:
    """Refuses a batch of 1, with which :class:`PooledBatchNorm` would see one value per channel."""
    if batch == 1:
        raise UserError(f"{where} normalises one value per channel when the training batch is 1: "
                        "use a batch of 2 or more per device")
    return True


@constexpr
def _random(seed: int, name: str, number: int, count: int, low: int, high: int) -> Tensor:
    """Random int32 numbers (count,), low <= number < high."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    return Tensor(rng.integers(low, high, count).astype(np.int32))


class Dropout(nn.Cell):
    """Dropout whose mask depends only on the random seed, the layer's name and a step counter kept as a parameter.

    ``nn.Dropout`` has a random state that no checkpoint contains; this layer continues bit for bit after a resume. Each
    training call adds 1 to the counter. The mask compares random numbers of 22 bits with the rate. Each channel of
    each image has a factor a and a summand b; with the step's key k its number is the low bits of a * k + b. Single
    values multiply the lowest of them by a factor of their position. No product has more than 31 bits, because
    devices differ in what they make of those. The keys repeat after 32,768 steps.

    Args:
        rate: Probability of zeroing, 0 <= rate < 1; with 0 the layer is the identity and has no parameters.
        name: Name that differs from those of the other dropout layers in the network.
        spatial: Drop whole channels (Dropout2d) instead of single values.

    Attributes:
        fused: Operator that does it in one pass, see :func:`mindseg.cpu_kernels.fusion.fuse_network`; None: several.
    """

    def __init__(self, rate: float, name: str, spatial: bool = False) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise UserError(f"dropout rate {rate} is outside [0, 1)")
        self.rate = float(rate)
        self.layer = name
        self.spatial = spatial
        self.seed = ms.get_seed() or 0
        self.threshold_number, self.factor = round(rate * 2**22), 1.0 / (1.0 - rate)
        self.threshold = Tensor(self.threshold_number, ms.int32)
        self.fused = None
        if self.rate > 0:
            self.step = Parameter(Tensor(0, ms.int32), name="step", requires_grad=False)

    def construct(self, x: Tensor) -> Tensor:
        """Zeroes a part of (N, C, H, W) while training, and scales the rest by 1 / (1 - rate)."""
        if not self.training or self.rate == 0:
            return x
        n, c, h, w = x.shape
        step = assign_add(self.step, Tensor(1, ms.int32))
        key = take(_random(self.seed, "keys", 0, 2**15, 0, 2**15), step & (2**15 - 1))
        factor = _random(self.seed, self.layer, 0, n * c, 0, 2**15)
        summand = _random(self.seed, self.layer, 1, n * c, 0, 2**30)
        noise = factor * key + summand
        position = _random(self.seed, self.layer, 2, 1 if self.spatial else h * w, 2**12, 2**15)
        if self.fused is not None:
            return self.fused(x, noise, position)
        noise = ops.reshape(noise, (n, c, 1, 1))
        if not self.spatial:
            # Both factors are large, so that their products are spread over all numbers of 22 bits.
            noise = ((noise & (2**15 - 1)) | 2**14) * ops.reshape(position, (1, 1, h, w))
        noise = noise & (2**22 - 1)
        return x * (cast(noise >= self.threshold, x.dtype) * self.factor)
