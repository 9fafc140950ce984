"""Checks of what a device computes, measured with small operators; on any device, in graph mode and in PyNative."""
import math

import numpy as np

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindseg.compat import BatchNorm2d, compiled
from mindseg.errors import UserError
from mindseg.models.layers import Dropout

DEVIATIONS = 8      # standard deviations by which a share may differ from its rate
FLOAT32_BITS = 23   # explicit bits of a float32 mantissa


class _Probe(nn.Cell):
    """A convolution or a product, and the gradients of ``(output * factor).sum()``.

    Args:
        product: A matrix product instead of a convolution.
    """

    def __init__(self, product: bool) -> None:
        super().__init__()
        self.convolve = ops.Conv2D(1, 1)
        self.product = product
        self.gradients = ms.grad(self._forward, (0, 1))

    def construct(self, x: Tensor, weight: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the output (1, 1, 1, W) of ``x`` (1, C, 1, W) and ``weight`` (1, C, 1, 1), and both gradients."""
        to_input, to_weight = self.gradients(x, weight, factor)
        return self._output(x, weight), to_input, to_weight

    def _output(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.product:
            return self.convolve(x, weight)
        channels, width = x.shape[1], x.shape[3]
        product = ops.matmul(ops.reshape(weight, (1, channels)), ops.reshape(x, (channels, width)))
        return ops.reshape(product, (1, 1, 1, width))

    def _forward(self, x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
        return (self._output(x, weight) * factor).sum()


def mantissa_bits() -> dict[str, int]:
    """Bits of the mantissa that convolutions and matrix products keep of their inputs.

    Returns:
        Explicit bits by operator, forward and for both gradients: 23 for float32, 10 for float16, 10 or 11 for HF32.
    """
    values = 1 + 0.5 ** np.arange(1, FLOAT32_BITS + 1)      # value i has one bit behind the point, at place i
    row, column = (Tensor(values.reshape(shape).astype(np.float32)) for shape in ((1, 1, 1, -1), (1, -1, 1, 1)))
    one, ones = (Tensor(np.ones((1, channels, 1, 1), np.float32)) for channels in (1, FLOAT32_BITS))
    bits = {}
    for name, product in (("convolution", False), ("product", True)):
        output, to_input, _ = compiled(_Probe(product))(row, one, row)
        _, _, to_weight = compiled(_Probe(product))(column, ones, one)
        results = {"": output, ", gradient of the input": to_input, ", gradient of the weight": to_weight}
        bits |= {name + part: int((result.asnumpy() > 1).sum()) for part, result in results.items()}
    return bits


class _Overflow(nn.Cell):
    """Product of a matrix with itself, and MindSpore's verdict on it."""

    def construct(self, x: Tensor) -> Tensor:
        """Returns a scalar bool: the product of ``x`` (N, N) is finite."""
        return ms.amp.all_finite((ops.matmul(x, x),))


def overflow_is_noticed() -> bool:
    """True if MindSpore notices an overflow, and notices none in the product that follows it."""
    product = compiled(_Overflow())
    product(Tensor(np.ones((16, 16), np.float32)))       # clears what was before
    verdicts = [bool(product(Tensor(np.full((16, 16), value, np.float32))).asnumpy()) for value in (1e30, 1.0)]
    return verdicts == [False, True]


def kept_share(rate: float, spatial: bool = False) -> tuple[float, float]:
    """Share of the values that dropout keeps.

    Args:
        rate: Probability of zeroing, above 0.
        spatial: Drop whole channels.

    Returns:
        The share, and its standard deviation if dropout is right.
    """
    shape = (64, 64, 1, 1) if spatial else (4, 16, 64, 64)
    layer = Dropout(rate, "device check", spatial).set_train()
    kept = compiled(layer)(Tensor(np.ones(shape, np.float32))).asnumpy() != 0
    return float(kept.mean()), math.sqrt(rate * (1 - rate) / kept.size)


def check_dropout(network: nn.Cell) -> None:
    """Refuses a device on which dropout drops another share than its rate.

    Args:
        network: Network to train; each rate in it is tried.

    Raises:
        UserError: The share is wrong.
    """
    layers = {(cell.rate, cell.spatial) for _, cell in network.cells_and_names() if isinstance(cell, Dropout)}
    for rate, spatial in sorted(layers):
        if rate == 0:
            continue
        share, deviation = kept_share(rate, spatial)
        if abs(share - (1 - rate)) > DEVIATIONS * deviation:
            raise UserError(f"dropout of rate {rate} keeps {share:.3f} of the values on this device instead of "
                            f"{1 - rate:.3f}: its integers are not as expected; set model.dropout=0")


def moving_variance(layer: BatchNorm2d, images: np.ndarray) -> np.ndarray:
    """Variance that BatchNorm stores for a batch.

    Args:
        layer: Layer; its moving statistics change.
        images: (N, C, H, W) float32, this device's part of the batch.

    Returns:
        (C,) float32, without the part of the old value.
    """
    before = layer.moving_variance.asnumpy().copy()
    compiled(layer.set_train())(Tensor(images)).asnumpy()
    return (layer.moving_variance.asnumpy() - layer.momentum * before) / (1 - layer.momentum)
