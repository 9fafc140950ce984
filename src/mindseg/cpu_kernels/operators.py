"""The C++ operators: cells with their gradients, and what works on arrays. They take float32 and run on a CPU."""
from collections.abc import Callable

import numpy as np

from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from mindseg.cpu_kernels.library import call, installed_library

NO_CAP = float("inf")
CORNERS = {False: 0, True: 1, "low": 2}     # corner rules of models.layers.Resample, as the operators know them


def _operator(name: str, shapes: Callable, types: Callable, options: tuple = ()) -> ops.Custom:
    """An operator of the library.

    Args:
        name: Its name.
        shapes: Shapes of the outputs from those of the inputs.
        types: Types likewise.
        options: What the shapes depend on besides. Without it PyNative takes two operators of one name for the
            same, and gives the second one the shapes of the first.
    """
    operator = ops.Custom(f"{installed_library()}:mindseg_{name}", shapes, types, func_type="aot")
    operator.add_prim_attr("options", str(options))
    return operator


class Activation(nn.Cell):
    """Activations f(x) with f(x) = min(x, cap) above 0 and slope * x below, in one pass.

    Args:
        cap: Largest value.
    """

    def __init__(self, cap: float = NO_CAP) -> None:
        super().__init__()
        self.cap = Tensor(np.array([cap], np.float32))
        self.forward = _operator("activate", lambda x, scale, shift, slopes, cap: x,
                                 lambda x, scale, shift, slopes, cap: x)
        self.backward = _operator("activate_grad",
                                  lambda x, scale, shift, slopes, cap, dy: (x, scale, shift, slopes),
                                  lambda x, scale, shift, slopes, cap, dy: (x, scale, shift, slopes))

    def construct(self, x: Tensor, scale: Tensor, shift: Tensor, slopes: Tensor) -> Tensor:
        """Computes f(scale * x + shift).

        Args:
            x: (N, C, H, W).
            scale: (C,).
            shift: (C,).
            slopes: (C,) or (1,).
        """
        return self.forward(x, scale, shift, slopes, self.cap)

    def bprop(self, x: Tensor, scale: Tensor, shift: Tensor, slopes: Tensor, out: Tensor,
              dout: Tensor) -> tuple[Tensor, ...]:
        """Computes the gradients of all inputs."""
        return self.backward(x, scale, shift, slopes, self.cap, dout)


class BatchNormActivation(nn.Cell):
    """BatchNorm of a training batch with an activation: two passes over the input, and two for the gradient.

    Args:
        eps: Small number added to the variance.
        cap: Largest value, see :class:`Activation`.
    """

    def __init__(self, eps: float, cap: float = NO_CAP) -> None:
        super().__init__()
        self.options = Tensor(np.array([eps, cap], np.float32))
        self.forward = _operator("batch_norm", lambda x, gamma, beta, slopes, options: (x, gamma, gamma, gamma),
                                 lambda x, gamma, beta, slopes, options: (x, x, x, x))
        self.backward = _operator(
            "batch_norm_grad", lambda x, gamma, beta, slopes, options, mean, inverse, dy: (x, gamma, gamma, slopes),
            lambda x, gamma, beta, slopes, options, mean, inverse, dy: (x, x, x, x))

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        """Normalises a batch.

        Args:
            x: (N, C, H, W).
            gamma: Scale (C,).
            beta: Shift (C,).
            slopes: (C,) or (1,).

        Returns:
            The result (N, C, H, W); mean, 1 / sqrt(variance + eps) and unbiased variance of the batch, (C,) each, which
            no gradient flows through.
        """
        return self.forward(x, gamma, beta, slopes, self.options)

    def bprop(self, x: Tensor, gamma: Tensor, beta: Tensor, slopes: Tensor, out: tuple[Tensor, ...],
              dout: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Computes the gradients of all inputs."""
        return self.backward(x, gamma, beta, slopes, self.options, out[1], out[2], dout[0])


class Convolution(nn.Cell):
    """Convolution without bias, of all channels or of each channel alone. It needs no memory but a few rows.

    Args:
        stride: Step in both directions.
        padding: Zeros on every side, or ``"same"``, as :class:`mindseg.compat.Conv2d` takes them.
        dilation: Distance between the kernel's elements.
        depthwise: Each channel of the result reads one channel of the input.
    """

    def __init__(self, stride: int, padding: int | str, dilation: int, depthwise: bool = False) -> None:
        super().__init__()
        self.options = (stride, dilation, padding)
        name = "depthwise_convolution" if depthwise else "convolution"
        self.forward = _operator(name, self._shape, lambda x, weight, geometry: x, self.options)
        self.to_input = _operator(f"{name}_grad_input", lambda x, weight, geometry, dy: x,
                                  lambda x, weight, geometry, dy: x)
        self.to_weight = _operator(f"{name}_grad_weights", lambda x, weight, geometry, dy: weight,
                                   lambda x, weight, geometry, dy: x)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolves.

        Args:
            x: (N, C, H, W).
            weight: (O, C, kernel height, kernel width); depthwise: (O, 1, kernel height, kernel width).
        """
        return self.forward(x, weight, _geometry(x.shape, weight.shape, self.options))

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradients of the input and of the weights."""
        geometry = _geometry(x.shape, weight.shape, self.options)
        return self.to_input(x, weight, geometry, dout), self.to_weight(x, weight, geometry, dout)

    def _shape(self, x: list[int], weight: list[int], geometry: list[int]) -> list[int]:
        return [x[0], weight[0], *(_extent(x[i], weight[i], self.options)[0] for i in (2, 3))]


class TransposedConvolution(nn.Cell):
    """Transposed convolution without bias: the input's gradient of a convolution.

    Args:
        stride: Factor of height and width.
        before: Rows and columns dropped at the top and left of the full result.
        rest: Rows and columns of the output beyond ``stride`` times those of the input.
    """

    def __init__(self, stride: int, before: int, rest: int) -> None:
        super().__init__()
        self.geometry = Tensor(np.array([stride, 1, before, before], np.int32))
        self.forward = _operator(
            "transposed_convolution",
            lambda x, weight, geometry: [x[0], weight[1], stride * x[2] + rest, stride * x[3] + rest],
            lambda x, weight, geometry: x, (stride, rest))
        self.to_input = _operator(
            "convolution",
            lambda dy, weight, geometry: [dy[0], weight[0], (dy[2] - rest) // stride, (dy[3] - rest) // stride],
            lambda dy, weight, geometry: dy, (stride, rest))
        self.to_weight = _operator("convolution_grad_weights", lambda dy, weight, geometry, x: weight,
                                   lambda dy, weight, geometry, x: x)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolves.

        Args:
            x: (N, C, H, W).
            weight: (C, O, kernel, kernel).
        """
        return self.forward(x, weight, self.geometry)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradients of the input and of the weights."""
        return self.to_input(dout, weight, self.geometry), self.to_weight(dout, weight, self.geometry, x)


def _extent(length: int, kernel: int, options: tuple) -> tuple[int, int]:
    """Pixels of a convolution's output along an axis, and zeros before the first one of its input."""
    stride, dilation, padding = options
    span = (kernel - 1) * dilation + 1
    if padding == "same":
        size = -(-length // stride)
        return size, max((size - 1) * stride + span - length, 0) // 2
    return (length + 2 * padding - span) // stride + 1, padding


@constexpr
def _geometry(x: tuple[int, ...], weight: tuple[int, ...], options: tuple) -> Tensor:
    """Stride, dilation, and zeros above and to the left, int32 (4,)."""
    before = (_extent(x[i], weight[i], options)[1] for i in (2, 3))
    return Tensor(np.array([options[0], options[1], *before], np.int32))


class Dropped(nn.Cell):
    """Dropout as :class:`mindseg.models.layers.Dropout` draws it; no mask is kept for the gradient.

    Args:
        threshold: Random numbers of 22 bits below this drop their value.
        factor: Factor of the values that are kept.
    """

    def __init__(self, threshold: int, factor: float) -> None:
        super().__init__()
        self.options = Tensor(np.array([threshold, factor], np.float32))    # the threshold is exact in 24 bits
        self.drop = _operator("dropout", lambda x, noise, position, options: x, lambda x, noise, position, options: x)

    def construct(self, x: Tensor, noise: Tensor, position: Tensor) -> Tensor:
        """Zeroes a part of the values, and scales the rest.

        Args:
            x: (N, C, H, W).
            noise: int32 (N * C,), the random number of each plane.
            position: int32 (H * W,), factor of each pixel; (1,) to drop planes as a whole.
        """
        return self.drop(x, noise, position, self.options)

    def bprop(self, x: Tensor, noise: Tensor, position: Tensor, out: Tensor,
              dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the gradient of ``x``."""
        return self.drop(dout, noise, position, self.options), ops.zeros_like(noise), ops.zeros_like(position)


class NearestResize(nn.Cell):
    """Repetition of every pixel in both directions.

    Args:
        factor: Factor of height and width.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.forward = _operator("resize_nearest", lambda x: [x[0], x[1], x[2] * factor, x[3] * factor], lambda x: x,
                                 (factor,))
        self.backward = _operator("resize_nearest_grad", lambda dy: [dy[0], dy[1], dy[2] // factor, dy[3] // factor],
                                  lambda dy: dy, (factor,))

    def construct(self, x: Tensor) -> Tensor:
        """Resizes (N, C, H, W)."""
        return self.forward(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Computes the gradient of ``x``."""
        return (self.backward(dout),)


def _halved(x: list[int]) -> list[int]:
    return [x[0], x[1], x[2] // 2, x[3] // 2]


class MaxPool(nn.Cell):
    """Max-pooling of 2x2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = _operator("max_pool", _halved, lambda x: x)
        self.backward = _operator("unpool", lambda dy, x: x, lambda dy, x: dy)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H / 2, W / 2)."""
        return self.forward(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Computes the gradient of ``x``."""
        return (self.backward(dout, x),)


class Unpool(nn.Cell):
    """Reverse of a 2x2 max-pooling, whose maxima are found again instead of kept."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = _operator("unpool", lambda values, pooled: pooled, lambda values, pooled: values)
        self.backward = _operator("unpool_grad", lambda dy, pooled: _halved(pooled), lambda dy, pooled: dy)

    def construct(self, values: Tensor, pooled: Tensor) -> Tensor:
        """Puts each value where its window of the other tensor has its first maximum, and 0 elsewhere.

        Args:
            values: (N, C, h, w).
            pooled: (N, C, 2h, 2w), the input of the max-pooling; no gradient flows through it.
        """
        return self.forward(values, pooled)

    def bprop(self, values: Tensor, pooled: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradient of ``values``."""
        return self.backward(dout, pooled), ops.zeros_like(pooled)


class ResizedCrossEntropy(nn.Cell):
    """Softmax cross entropy of each pixel, of logits that are first resized bilinearly.

    The resized logits never exist as a whole, neither forward nor backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forward = _operator("cross_entropy", lambda logits, label, size: label,
                                 lambda logits, label, size: logits)
        self.backward = _operator("cross_entropy_grad", lambda logits, label, size, dloss: logits,
                                  lambda logits, label, size, dloss: logits)

    def construct(self, logits: Tensor, label: Tensor, size: Tensor) -> Tensor:
        """Computes the losses.

        Args:
            logits: (N, C, h, w).
            label: int32 (N, H, W); the loss of a pixel whose label is no class is 0.
            size: int32 (3,): height and width after the resize, of which the label covers the top left part, and the
                number of the corner rule in ``CORNERS``.

        Returns:
            (N, H, W).
        """
        return self.forward(logits, label, size)

    def bprop(self, logits: Tensor, label: Tensor, size: Tensor, out: Tensor,
              dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the gradient of the logits."""
        return self.backward(logits, label, size, dout), ops.zeros_like(label), ops.zeros_like(size)


def add_probabilities(logits: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray],
                      temperature: float, sums: np.ndarray) -> None:
    """Resizes the logits of a pass and adds their softmax to sums, in one pass over memory.

    Args:
        logits: float32 (N, C, h, w).
        rows: Numbers int32 (K, H) and weights float32 (K, H) of the K rows that make each row of the result.
        columns: The same of its columns, (L, W).
        temperature: Divisor of the logits before the softmax.
        sums: float32 (N, C, H, W), changed in place.
    """
    arguments = np.ascontiguousarray(logits), *rows, *columns, np.array([1 / temperature], np.float32)
    if call("add_probabilities", *arguments, sums):
        raise ValueError(f"logits {logits.shape} do not become {sums.shape}")
