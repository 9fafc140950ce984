"""Checks of what a device computes, measured with small operators; on any device, in graph mode and in PyNative."""
import math

import numpy as np

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindseg.chips import Chip
from mindseg.compat import BatchNorm2d, Conv2d, compiled
from mindseg.errors import UserError
from mindseg.losses import OhemLoss
from mindseg.models.layers import Dropout, TransposedConv

DEVIATIONS = 8      # standard deviations by which a share may differ from its rate
FLOAT32_BITS = 23   # explicit bits of a float32 mantissa
RANKED = 2**18      # losses that are ranked
BITS = {"float32": (23, 23), "float16": (10, 10), "hf32": (10, 11)}     # fewest and most; CANN's documents differ


class _Probe(nn.Cell):
    """A 1x1 convolution or a product, and the gradients of ``(output * factor).sum()``.

    Args:
        weight: (1, C, 1, 1) float32.
        product: A matrix product instead of the convolution that networks use.
    """

    def __init__(self, weight: np.ndarray, product: bool) -> None:
        super().__init__()
        self.layer = Conv2d(weight.shape[1], 1, 1, weight_init=Tensor(weight))
        self.product = product
        self.gradients = ms.value_and_grad(self._forward, 0, self.layer.weight, has_aux=True)

    def construct(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the output (1, 1, 1, W) of ``x`` (1, C, 1, W), and the gradients of ``x`` and of the weight."""
        (_, output), (to_input, to_weight) = self.gradients(x, factor)
        return output, to_input, to_weight

    def _output(self, x: Tensor) -> Tensor:
        if not self.product:
            return self.layer(x)
        channels, width = x.shape[1], x.shape[3]
        weight = ops.reshape(self.layer.weight, (1, channels))
        return ops.reshape(ops.matmul(weight, ops.reshape(x, (channels, width))), (1, 1, 1, width))

    def _forward(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        output = self._output(x)
        return (output * factor).sum(), output


def mantissa_bits() -> dict[str, int]:
    """Bits of the mantissa that convolutions and matrix products keep of their inputs.

    Returns:
        Explicit bits by operator, forward and for both gradients, see ``BITS``.
    """
    values = (1 + 0.5 ** np.arange(1, FLOAT32_BITS + 1)).astype(np.float32)     # value i has one more bit, at place i
    row, column = values.reshape(1, 1, 1, -1), values.reshape(1, -1, 1, 1)
    one, ones = (np.ones((1, channels, 1, 1), np.float32) for channels in (1, FLOAT32_BITS))
    bits = {}
    for name, product in (("convolution", False), ("product", True)):
        output, to_input, _ = compiled(_Probe(one, product))(Tensor(row), Tensor(row))
        _, _, to_weight = compiled(_Probe(ones, product))(Tensor(column), Tensor(one))
        results = {"": output, ", gradient of the input": to_input, ", gradient of the weight": to_weight}
        bits |= {name + part: int((result.asnumpy() > 1).sum()) for part, result in results.items()}
    return bits


def expected_bits(chip: Chip | None, device_target: str, hf32: bool | None) -> dict[str, tuple[int, int]]:
    """Fewest and most bits that :func:`mantissa_bits` should find, by operator.

    Args:
        chip: Chip of this machine, None if it is unknown.
        device_target: ``CPU``, ``Ascend`` or ``GPU``.
        hf32: ``runtime.hf32``.
    """
    if device_target != "Ascend":
        return {"convolution": BITS["float32"], "product": BITS["float32"]}
    if chip is None:
        return {"convolution": (10, 23), "product": (10, 23)}
    if not chip.float32.value:
        return {"convolution": BITS["float16"], "product": BITS["float16"]}
    chosen = {None: None, True: "hf32", False: "float32"}[hf32]
    return {"convolution": BITS[chosen or chip.convolution.value], "product": BITS[chosen or "float32"]}


class _Overflow(nn.Cell):
    """Product of a matrix with itself, and MindSpore's verdict on it."""

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a scalar bool: the product of ``x`` (N, N) is finite, and the product."""
        product = ops.matmul(x, x)
        return ms.amp.all_finite((product,)), product


def overflow() -> tuple[bool, bool]:
    """Provokes an overflow.

    Returns:
        True if MindSpore notices it, and none in the product that follows; True if it gives infinity, not the largest
        number.
    """
    product = compiled(_Overflow())
    product(Tensor(np.ones((16, 16), np.float32)))       # clears what was before
    results = [product(Tensor(np.full((16, 16), value, np.float32))) for value in (1e30, 1.0)]
    noticed = [bool(finite.asnumpy()) for finite, _ in results] == [False, True]
    return noticed, bool(np.isinf(results[0][1].asnumpy()).all())


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


def share_is_right(rate: float, share: float, deviation: float) -> bool:
    """True if dropout of a rate may keep that share, see :func:`kept_share`."""
    return abs(share - (1 - rate)) <= DEVIATIONS * deviation


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
        if not share_is_right(rate, share, deviation):
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


def transposed_error(training: bool) -> float:
    """Largest error of a transposed convolution of 2x2 pixels and stride 2, by the largest value.

    Args:
        training: Form of the layer for training; evaluation has another one.
    """
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(2, 8, 6, 6)).astype(np.float32), rng.normal(size=(8, 4, 2, 2)).astype(np.float32)
    layer = TransposedConv(8, 4, 2, 2, init=Tensor(weight)).set_train(training)
    expected = np.einsum("ncij,coab->noiajb", x.astype(np.float64), weight).reshape(2, 4, 12, 12)
    return float(np.abs(compiled(layer)(Tensor(x)).asnumpy() - expected).max() / np.abs(expected).max())


class Hardest(nn.Cell):
    """Bounds of the hardest losses, as OHEM ranks them on this device."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = OhemLoss(thresh=0.01)       # a loss above it is hard in any case; those of the check are below

    def construct(self, losses: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Maps losses (P,) and the number to keep, a scalar float32, to two bounds."""
        return self.loss.hardest(losses, kept)


class Sorted(nn.Cell):
    """Losses in descending order."""

    def construct(self, losses: Tensor) -> Tensor:
        """Sorts losses (P,)."""
        return ops.sort(losses, 0, True)[0]


def ranked_losses() -> np.ndarray:
    """Losses to rank, (RANKED,) float32 from 0 to 4."""
    return np.random.default_rng(1).uniform(0, 4, RANKED).astype(np.float32)


def ranking_error(ranking: Hardest) -> float:
    """Largest error of OHEM's bounds of the hardest 1/16, 1/2 and 15/16 of the losses, by its threshold."""
    losses = ranked_losses()
    ordered, width, errors = np.sort(losses)[::-1], 2.0**-20 * ranking.loss.thresh, [0.0]
    for kept in (losses.size // 16, losses.size // 2, losses.size - losses.size // 16):
        bounds = compiled(ranking)(Tensor(losses), Tensor(float(kept), ms.float32))
        lower, upper = (float(bound.asnumpy()) for bound in bounds)
        errors += [lower - ordered[kept - 1], ordered[kept - 1] - upper, upper - lower - width]
    return float(max(errors)) / ranking.loss.thresh


def sort_error(ordered: Sorted) -> float:
    """Largest error of a sorted loss."""
    losses = ranked_losses()
    return float(np.abs(compiled(ordered)(Tensor(losses)).asnumpy() - np.sort(losses)[::-1]).max())
