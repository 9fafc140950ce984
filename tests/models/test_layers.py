"""Dropout by its statistics, and how the networks' weights start, within eight standard deviations; up-sampling."""
import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, nn

from mindseg.compat import Conv2d, set_mode
from mindseg.models import create_model
from mindseg.models.layers import Dropout, Resample, TransposedConv, resize_nearest


@pytest.fixture
def seed(rng):
    """A fresh seed of MindSpore, from which masks and initial weights are drawn."""
    before = ms.get_seed()
    set_mode("pynative")
    value = int(rng.integers(1, 2**31))
    ms.set_seed(value)
    yield value
    if before is not None:
        ms.set_seed(before)


def dropped(layer: Dropout, x: np.ndarray) -> np.ndarray:
    """Mask of the zeros of a training call; all other values must be scaled exactly."""
    out = layer.set_train()(Tensor(x)).asnumpy()
    gone = out == 0
    np.testing.assert_allclose(out[~gone], (x / (1 - layer.rate))[~gone], rtol=1e-6)
    return gone


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("spatial", [False, True])
def test_dropout_zeroes_its_share_and_scales_the_rest(seed, rng, rate, spatial):
    shape = (64, 256, 2, 2) if spatial else (4, 64, 32, 32)
    x = rng.uniform(1, 2, shape).astype(np.float32)
    gone = dropped(Dropout(rate, "head", spatial), x)
    per_channel = gone.mean((2, 3))
    whole = np.isin(per_channel, (0, 1)).mean()
    if spatial:
        assert whole == 1
    else:
        assert whole < 0.05     # 1024 values a channel are hardly ever all kept or all dropped
    draws = per_channel.size if spatial else gone.size
    assert abs(gone.mean() - rate) < 8 * np.sqrt(rate * (1 - rate) / draws) + (0 if spatial else 0.02)


def test_dropout_is_the_identity_in_evaluation_and_at_rate_0(seed, rng):
    x = rng.normal(0, 1, (2, 8, 4, 4)).astype(np.float32)
    layer = Dropout(0.5, "head")
    np.testing.assert_array_equal(layer.set_train(False)(Tensor(x)).asnumpy(), x)
    assert int(layer.step.asnumpy()) == 0
    none = Dropout(0.0, "head").set_train()
    np.testing.assert_array_equal(none(Tensor(x)).asnumpy(), x)
    assert not list(none.get_parameters())


@pytest.mark.parametrize("spatial", [False, True])
def test_dropout_masks_follow_step_layer_and_seed_and_nothing_else(seed, rng, spatial):
    x = np.ones((16, 256, 4, 4), np.float32)
    layer = Dropout(0.5, "head", spatial)
    first, second = dropped(layer, x), dropped(layer, x)
    assert int(layer.step.asnumpy()) == 2
    layer.step.set_data(Tensor(0, ms.int32))        # as after a resume
    np.testing.assert_array_equal(dropped(layer, x), first)
    other = dropped(Dropout(0.5, "tail", spatial), x)
    ms.set_seed(seed ^ 1)
    reseeded = dropped(Dropout(0.5, "head", spatial), x)
    for mask in (second, other, reseeded):
        assert abs((mask == first).mean() - 0.5) < 8 * 0.5 / np.sqrt(16 * 256) + 0.1


def weights(network: nn.Cell) -> list[tuple[str, Conv2d, np.ndarray, int, int]]:
    """Name, layer, weights, and both fans of every convolution."""
    found = []
    for name, cell in network.cells_and_names():
        if isinstance(cell, Conv2d):
            values = cell.weight.asnumpy()
            place = values.shape[2] * values.shape[3]
            found.append((name, cell, values, values.shape[1] * place, values.shape[0] * place))
    return found


@pytest.mark.parametrize(("model", "options", "count"), [("fast_scnn", {}, 47), ("enet", {}, 86)])
def test_fast_scnn_and_enet_start_as_pytorch_does(seed, model, options, count):
    """Uniform in +-1/sqrt(fan_in), whose standard deviation is 1/sqrt(3 fan_in)."""
    network = create_model(model, 19, **options)
    found = weights(network)
    assert len(found) == count
    for name, cell, values, fan_in, _ in found:
        limit = 1 / np.sqrt(fan_in)
        assert np.abs(values).max() <= limit * (1 + 1e-6), name
        error = 8 * 0.45 / np.sqrt(values.size)
        assert abs(values.std() * np.sqrt(3) / limit - 1) < max(error, 0.02), name
        if cell.has_bias:
            assert 0 < np.abs(cell.bias.asnumpy()).max() <= limit * (1 + 1e-6), name
    for p in network.get_parameters():
        kind = p.name.rpartition(".")[2]
        start = {"gamma": 1, "moving_variance": 1, "beta": 0, "moving_mean": 0, "slope": 0.25, "step": 0}.get(kind)
        assert start is None or (p.asnumpy() == start).all(), p.name


def test_bisenetv2_starts_as_he_says(seed):
    """Normal with variance 2/fan_out, of grouped kernels 2/fan_in; biases 0; the last BatchNorm of a block at 0."""
    network = create_model("bisenetv2", 19)
    found = weights(network)
    assert len(found) == 68
    for name, cell, values, fan_in, fan_out in found:
        expected = np.sqrt(2 / (fan_out if cell.groups == 1 else fan_in))
        assert abs(values.std() / expected - 1) < 8 * 0.71 / np.sqrt(values.size) + 0.01, name
        if values.size > 2000:      # a uniform distribution ends at 1.73
            assert np.abs(values).max() > 2 * expected, name
        if cell.has_bias:
            assert not cell.bias.asnumpy().any(), name
    blocks = [name for name, cell in network.cells_and_names() if type(cell).__name__ in ("GELayerS1", "GELayerS2")]
    assert len(blocks) == 8
    zeros = {f"{name}.conv2.bn.gamma" for name in blocks}
    for p in network.get_parameters():
        kind = p.name.rpartition(".")[2]
        if kind == "gamma":
            assert (p.asnumpy() == (p.name not in zeros)).all(), p.name
        elif kind == "beta":
            assert not p.asnumpy().any(), p.name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "offset"), [(2, 2, 0), (3, 3, 0), (4, 2, 1), (16, 8, 4), (3, 2, 1),
                                                          (3, 2, 0)])
def test_transposed_convolutions_add_up_scaled_kernels(rng, kernel, stride, offset, training):
    set_mode("pynative")
    layer = TransposedConv(3, 5, kernel, stride, offset).set_train(training)
    x = rng.normal(0, 1, (2, 3, 4, 6)).astype(np.float32)
    weight = rng.normal(0, 1, layer.weight.shape).astype(np.float32)
    layer.weight.set_data(Tensor(weight))
    full = np.zeros((2, 5, 4 * stride + kernel, 6 * stride + kernel))
    for i, j in np.ndindex(4, 6):
        full[:, :, i * stride:i * stride + kernel, j * stride:j * stride + kernel] += np.einsum(
            "nc,cokl->nokl", x[:, :, i, j], weight)
    expected = full[:, :, offset:offset + 4 * stride, offset:offset + 6 * stride]
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), expected, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_nearest_resizing_repeats_pixels(rng, training):
    x = rng.normal(0, 1, (2, 3, 4, 5)).astype(np.float32)
    factors = rng.normal(0, 1, (2, 3, 16, 20)).astype(np.float32)
    np.testing.assert_array_equal(resize_nearest(Tensor(x), 4, training).asnumpy(), x.repeat(4, 2).repeat(4, 3))
    gradient = ms.grad(lambda x: (resize_nearest(x, 4, training) * Tensor(factors)).sum())(Tensor(x)).asnumpy()
    np.testing.assert_allclose(gradient, factors.reshape(2, 3, 4, 4, 5, 4).sum((3, 5)), atol=1e-5)


def averages(out_size: int, in_size: int) -> np.ndarray:
    """Matrix of adaptive average pooling along one axis, from PyTorch's description."""
    bins = [range(i * in_size // out_size, -(-(i + 1) * in_size // out_size)) for i in range(out_size)]
    return np.array([[(k in pixels) / len(pixels) for k in range(in_size)] for pixels in bins])


def lines(out_size: int, in_size: int) -> np.ndarray:
    """Matrix of linear interpolation along one axis with aligned corners."""
    positions = np.linspace(0, in_size - 1, out_size)
    return np.array([np.interp(positions, range(in_size), unit) for unit in np.eye(in_size)]).T


class Weighted(nn.Cell):
    """Weighted sum of what a resampling gives."""

    def __init__(self, rule: bool | str, factors: np.ndarray) -> None:
        super().__init__()
        self.layer, self.factors = Resample(rule), Tensor(factors)

    def construct(self, x: Tensor) -> Tensor:
        return (self.layer(x, self.factors.shape[2:]) * self.factors).sum()


@pytest.mark.parametrize("mode", ["graph", "pynative"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("rule", "matrix", "size"), [
    ("adaptive", averages, (2, 3)), (True, lines, (9, 11)), (True, lines, (9, 7)), (True, lines, (5, 11)),
    (True, lines, (5, 7))])
def test_resampling_and_its_gradient_are_products_of_both_axes(rng, mode, dtype, rule, matrix, size):
    set_mode(mode)
    x, factors = rng.normal(0, 1, (2, 3, 5, 7)).astype(dtype), rng.normal(0, 1, (2, 3, *size)).astype(dtype)
    rows, columns, tolerance = matrix(size[0], 5), matrix(size[1], 7), 1e-5 if dtype is np.float32 else 1e-2
    result = Resample(rule)(Tensor(x), size).asnumpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result, rows @ x.astype(float) @ columns.T, atol=tolerance)
    gradient = ms.grad(Weighted(rule, factors))(Tensor(x)).asnumpy()
    np.testing.assert_allclose(gradient, rows.T @ factors.astype(float) @ columns, atol=tolerance)
