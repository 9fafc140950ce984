"""The C++ operators: cells with their gradients, and what works on arrays. They take float32 and run on a CPU."""
from collections.abc import Callable

import numpy as np

from mindspore import Tensor, nn, ops

from mindseg.cpu_kernels.library import call, installed_library

NO_CAP = float("inf")
CORNERS = {False: 0, True: 1, "low": 2}     # corner rules of models.layers.resize_bilinear, as the operators know them


def _operator(name: str, shapes: Callable, types: Callable) -> ops.Custom:
    return ops.Custom(f"{installed_library()}:mindseg_{name}", shapes, types, func_type="aot")


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
