"""The C++ operators against NumPy in float64, their gradients, their threads, and the networks that use them."""
import os
import subprocess
import sys

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from mindseg.compat import set_mode
from mindseg.config import SCHEMA_FILE, load_config
from mindseg.cpu_kernels import library, operators
from mindseg.cpu_kernels.fusion import fuse_loss, fuse_network
from mindseg.cpu_kernels.library import call
from mindseg.errors import UserError
from mindseg.losses import create_loss
from mindseg.models import create_model
from mindseg.models.layers import Dropout, TransposedConv, conv2d

pytestmark = pytest.mark.usefixtures("graph_mode")
RULES = {0: False, 1: True, 2: "low"}


@pytest.fixture(scope="module", autouse=True)
def built():
    """The library, built before the first test asks for it."""
    library.build_library()
    library.installed_library.cache_clear()
    assert library.installed_library()


def matrix(full: int, small: int, rule: int) -> np.ndarray:
    """Linear interpolation along an axis, written out pixel by pixel, float64 (full, small)."""
    result = np.zeros((full, small))
    for i in range(full):
        place = {0: max((i + 0.5) * small / full - 0.5, 0), 1: i * (small - 1) / max(full - 1, 1),
                 2: i * small / full}[rule]
        place = min(place, small - 1)
        low = int(place)
        result[i, low] += 1 - (place - low)
        if low + 1 < small:
            result[i, low + 1] += place - low
    return result


def cross_entropy(logits, label, size, rule):
    """Returns the losses of the pixels, and the function from their gradients to those of the logits, in float64."""
    rows, columns = matrix(size[0], logits.shape[2], rule), matrix(size[1], logits.shape[3], rule)
    height, width = label.shape[1:]
    full = (rows @ logits.astype(np.float64) @ columns.T)[:, :, :height, :width]
    powers = np.exp(full - full.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    truth = np.arange(logits.shape[1])[None, :, None, None] == label[:, None]
    losses = np.where(truth.any(1), -np.log(np.where(truth, shares, 0).sum(1) + ~truth.any(1)), 0)

    def gradient(dlosses):
        padded = np.zeros((len(label), logits.shape[1], *size))
        padded[:, :, :height, :width] = (shares - truth) * (dlosses * truth.any(1))[:, None]
        return rows.T @ padded @ columns

    return losses, gradient


SIZES = [((2, 19, 4, 8), (32, 64), (30, 61)), ((1, 2, 1, 1), (32, 32), (5, 7)), ((1, 3, 7, 5), (20, 13), (20, 13)),
         ((2, 11, 9, 33), (288, 1056), (270, 1040)), ((2, 5, 32, 64), (32, 64), (31, 60)),
         ((3, 21, 6, 300), (6, 300), (6, 300))]


@pytest.mark.parametrize(("shape", "full", "label_size"), SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_cross_entropy_of_resized_logits_and_its_gradient(rng, rule, shape, full, label_size):
    logits = (4 * rng.standard_normal(shape)).astype(np.float32)
    label = rng.integers(-1, shape[1] + 1, (shape[0], *label_size)).astype(np.int32)
    label[label == shape[1]] = 255
    dlosses = rng.standard_normal(label.shape).astype(np.float32)
    size = np.array([*full, rule], np.int32)
    losses, gradient = np.empty(label.shape, np.float32), np.full(shape, 7, np.float32)
    assert call("cross_entropy", logits, label, size, losses) == 0
    assert call("cross_entropy_grad", logits, label, size, dlosses, gradient) == 0
    expected, gradient_of = cross_entropy(logits, label, full, rule)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(gradient, gradient_of(dlosses), rtol=1e-4, atol=1e-5 * np.abs(gradient).max())


def test_cross_entropy_keeps_the_digits_of_small_losses():
    """1 + x would round the loss x of an almost certain class away."""
    logits = np.zeros((1, 3, 1, 4), np.float32)
    logits[0, 1] = [10, 20, 40, 200]
    label, losses = np.ones((1, 1, 4), np.int32), np.empty((1, 1, 4), np.float32)
    assert call("cross_entropy", logits, label, np.array([1, 4, 0], np.int32), losses) == 0
    np.testing.assert_allclose(losses[0, 0, :3], 2 * np.exp(-np.array([10.0, 20.0, 40.0])), rtol=1e-4)
    assert losses[0, 0, 3] < 1e-37


def means(rng, length, small, taps):
    """Numbers and weights, (taps, length), of random weighted means along an axis, and their matrix in float64."""
    index = rng.integers(0, small, (taps, length)).astype(np.int32)
    weight = rng.random((taps, length)).astype(np.float32)
    weight[1:, ::3] = 0
    result = np.zeros((length, small))
    for k, i in np.ndindex(index.shape):
        result[i, index[k, i]] += weight[k, i]
    return (index, weight), result


@pytest.mark.parametrize(("shape", "size", "taps"), [((2, 19, 6, 9), (33, 300), (2, 4)), ((1, 2, 1, 1), (1, 1), (1, 1)),
                                                     ((1, 5, 70, 600), (20, 257), (3, 1))])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_sum_of_the_probabilities_of_resized_logits(rng, shape, size, taps, temperature):
    logits = (3 * rng.standard_normal(shape)).astype(np.float32)
    logits[:, 0, 0, 0] = 200        # no overflow
    before = rng.random((*shape[:2], *size)).astype(np.float32)
    rows, row_matrix = means(rng, size[0], shape[2], taps[0])
    columns, column_matrix = means(rng, size[1], shape[3], taps[1])
    full = row_matrix @ logits.astype(np.float64) @ column_matrix.T / temperature
    powers = np.exp(full - full.max(1, keepdims=True))
    sums = before.copy()
    operators.add_probabilities(logits, rows, columns, temperature, sums)
    np.testing.assert_allclose(sums, before + powers / powers.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_logits_that_do_not_fit_their_sums_are_refused(rng):
    logits, size = np.zeros((1, 3, 4, 5), np.float32), (8, 9)
    axes = [means(rng, length, small, 2)[0] for length, small in zip(size, logits.shape[2:], strict=True)]
    operators.add_probabilities(logits, *axes, 1.0, np.zeros((1, 3, *size), np.float32))
    for shape in ((2, 3, 8, 9), (1, 4, 8, 9), (1, 3, 9, 9), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match="do not become"):
            operators.add_probabilities(logits, *axes, 1.0, np.zeros(shape, np.float32))


ACTIVATIONS = {"identity": (1, 1.0, np.inf), "relu": (1, 0.0, np.inf), "relu6": (1, 0.0, 6.0),
               "one slope": (1, None, np.inf), "slopes": (6, None, np.inf)}


@pytest.mark.parametrize(("slopes", "slope", "cap"), ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("shape", [(2, 6, 33, 57), (3, 6, 1, 1), (2, 6, 130, 70)])
def test_batch_norm_with_an_activation_and_its_gradients(rng, shape, slopes, slope, cap):
    channels = shape[1]
    x = (3 * rng.standard_normal(shape) + 5).astype(np.float32)
    gamma, beta, dy = (rng.standard_normal(s).astype(np.float32) for s in (channels, channels, shape))
    alpha = np.full(slopes, slope, np.float32) if slope is not None else rng.normal(0, 0.3, slopes).astype(np.float32)
    options, y = np.array([1e-5, cap], np.float32), np.empty_like(x)
    mean, inverse, variance, dgamma, dbeta = np.empty((5, channels), np.float32)
    assert call("batch_norm", x, gamma, beta, alpha, options, y, mean, inverse, variance) == 0
    dx, dalpha = np.empty_like(x), np.empty(slopes, np.float32)
    assert call("batch_norm_grad", x, gamma, beta, alpha, options, mean, inverse, dy, dx, dgamma, dbeta, dalpha) == 0

    def along(values):
        return values.astype(np.float64).reshape(1, -1, 1, 1)

    x = x.astype(np.float64)
    deviation = np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    normal = (x - x.mean((0, 2, 3), keepdims=True)) / deviation
    z = normal * along(gamma) + along(beta)
    np.testing.assert_allclose(y, np.where(z > 0, np.minimum(z, cap), along(alpha) * z), rtol=1e-4, atol=5e-6)
    np.testing.assert_allclose(variance, x.var((0, 2, 3), ddof=1), rtol=1e-5)
    dz = dy * np.where(z > 0, z < cap, along(alpha))
    sums = dz.sum((0, 2, 3)), (dz * normal).sum((0, 2, 3))
    count = x.size // channels
    expected = along(gamma) / deviation * (dz - along(sums[0]) / count - normal * along(sums[1]) / count)
    scale = np.abs(dy).max() * np.abs(gamma / deviation.ravel()).max()
    np.testing.assert_allclose(dx, expected, rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(dbeta, sums[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dgamma, sums[1], rtol=1e-4, atol=1e-3)
    below = (dy * np.where(z > 0, 0, z)).sum((0, 2, 3))
    np.testing.assert_allclose(dalpha, below if slopes > 1 else below.sum(keepdims=True), rtol=1e-4, atol=1e-3)


def test_activation_and_its_gradients(rng):
    x, dy = rng.standard_normal((2, 2, 5, 9, 70)).astype(np.float32)
    scale, shift, slopes = rng.standard_normal((3, 5)).astype(np.float32)
    y, dx, (dscale, dshift, dslopes) = np.empty_like(x), np.empty_like(x), np.empty((3, 5), np.float32)
    cap = np.array([0.7], np.float32)
    assert call("activate", x, scale, shift, slopes, cap, y) == 0
    assert call("activate_grad", x, scale, shift, slopes, cap, dy, dx, dscale, dshift, dslopes) == 0
    s, t, a = (v.reshape(1, -1, 1, 1).astype(np.float64) for v in (scale, shift, slopes))
    z = s * x + t
    np.testing.assert_allclose(y, np.where(z > 0, np.minimum(z, cap), a * z), rtol=1e-5, atol=1e-6)
    dz = dy * np.where(z > 0, z < cap, a)
    np.testing.assert_allclose(dx, s * dz, rtol=1e-5, atol=1e-6)
    for found, expected in ((dscale, dz * x), (dshift, dz), (dslopes, dy * np.where(z > 0, 0, z))):
        np.testing.assert_allclose(found, expected.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


def convolution(x, weight, geometry, dy):
    """Returns a convolution and its gradients of input and weights, tap by tap in float64."""
    stride, dilation, top, left = geometry
    rows, columns = dy.shape[2:]
    spans = [(n - 1) * stride + (k - 1) * dilation + 1 for n, k in zip(dy.shape[2:], weight.shape[2:], strict=True)]
    padded = np.zeros((*x.shape[:2], max(spans[0], top + x.shape[2]), max(spans[1], left + x.shape[3])))
    inside = (..., slice(top, top + x.shape[2]), slice(left, left + x.shape[3]))
    padded[inside] = x
    y, dx, dweight = np.zeros(dy.shape), np.zeros_like(padded), np.zeros(weight.shape)
    for i, j in np.ndindex(weight.shape[2:]):
        seen = (..., slice(i * dilation, i * dilation + (rows - 1) * stride + 1, stride),
                slice(j * dilation, j * dilation + (columns - 1) * stride + 1, stride))
        y += np.einsum("nchw,oc->nohw", padded[seen], weight[:, :, i, j].astype(np.float64))
        dx[seen] += np.einsum("nohw,oc->nchw", dy.astype(np.float64), weight[:, :, i, j])
        dweight[:, :, i, j] = np.einsum("nohw,nchw->oc", dy.astype(np.float64), padded[seen])
    return y, dx[inside], dweight


def make_convolution(rng, shape, kernel, options):
    """Random inputs of a convolution and of its gradients, and arrays for their results, which hold no numbers."""
    rows, columns = (operators._extent(shape[i], kernel[i], options) for i in (2, 3))
    geometry = np.array([*options[:2], rows[1], columns[1]], np.int32)
    x, weight = (rng.standard_normal(size).astype(np.float32) for size in (shape, kernel))
    dy = rng.standard_normal((shape[0], kernel[0], rows[0], columns[0])).astype(np.float32)
    return (x, weight, geometry, dy), [np.full(array.shape, np.nan, np.float32) for array in (dy, x, weight)]


# Shapes of input and weights, stride, padding, dilation. The weights' gradient of up to 1024 pixels has its own way.
CONVOLUTIONS = [((2, 3, 9, 11), (13, 3, 3, 3), 2, 1, 1), ((1, 5, 8, 8), (6, 5, 3, 3), 1, 1, 1),
                ((2, 33, 20, 70), (7, 33, 3, 3), 1, 2, 2), ((2, 18, 37, 40), (17, 18, 5, 1), 1, "same", 1),
                ((1, 16, 17, 40), (9, 16, 1, 5), 1, "same", 1), ((2, 20, 12, 16), (18, 20, 1, 1), 1, 0, 1),
                ((2, 20, 64, 32), (5, 20, 1, 1), 1, 0, 1), ((2, 6, 12, 14), (5, 6, 1, 1), 2, 0, 1),
                ((1, 4, 10, 12), (8, 4, 2, 2), 2, 0, 1), ((1, 17, 40, 33), (19, 17, 7, 7), 1, 3, 1),
                ((1, 8, 64, 40), (8, 8, 3, 3), 1, 16, 16), ((2, 40, 33, 151), (35, 40, 3, 3), 2, "same", 1),
                ((1, 3, 33, 35), (8, 3, 3, 3), 2, 0, 1), ((2, 128, 7, 9), (11, 128, 7, 7), 1, 3, 1),
                ((3, 64, 9, 8), (6, 64, 3, 3), 2, 1, 1), ((1, 200, 5, 300), (2, 200, 3, 3), 1, 1, 1)]


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), CONVOLUTIONS)
def test_convolution_and_its_gradients(rng, shape, kernel, stride, padding, dilation):
    (x, weight, geometry, dy), (y, dx, dweight) = make_convolution(rng, shape, kernel, (stride, dilation, padding))
    assert call("convolution", x, weight, geometry, y) == 0
    assert call("convolution_grad_input", x, weight, geometry, dy, dx) == 0
    assert call("convolution_grad_weights", x, weight, geometry, dy, dweight) == 0
    for found, expected in zip((y, dx, dweight), convolution(x, weight, geometry, dy), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-6 * np.abs(expected).max())


# Shapes of input and weights, stride, padding, dilation.
DEPTHWISE = [((2, 6, 9, 11), (6, 1, 3, 3), 1, 1, 1), ((1, 5, 8, 8), (5, 1, 3, 3), 2, 1, 1),
             ((2, 3, 17, 30), (18, 1, 3, 3), 2, 1, 1), ((1, 4, 300, 520), (4, 1, 3, 3), 1, 1, 1),
             ((1, 2, 301, 900), (4, 1, 3, 3), 2, "same", 1), ((2, 3, 12, 14), (3, 1, 5, 3), 1, "same", 1),
             ((1, 3, 20, 18), (3, 1, 3, 3), 1, 2, 2), ((1, 2, 7, 9), (2, 1, 1, 1), 2, 0, 1),
             ((2, 3, 10, 11), (3, 1, 3, 3), 3, 0, 1)]


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), DEPTHWISE)
def test_depthwise_convolution_and_its_gradients(rng, shape, kernel, stride, padding, dilation):
    """Each input channel alone by the reference of the convolution."""
    (x, weight, geometry, dy), (y, dx, dweight) = make_convolution(rng, shape, kernel, (stride, dilation, padding))
    assert call("depthwise_convolution", x, weight, geometry, y) == 0
    assert call("depthwise_convolution_grad_input", x, weight, geometry, dy, dx) == 0
    assert call("depthwise_convolution_grad_weights", x, weight, geometry, dy, dweight) == 0
    outputs = kernel[0] // shape[1]
    for channel in range(shape[1]):
        own = slice(channel * outputs, (channel + 1) * outputs)
        expected = convolution(x[:, channel:channel + 1], weight[own], geometry, dy[:, own])
        for found, truth in zip((y[:, own], dx[:, channel:channel + 1], dweight[own]), expected, strict=True):
            np.testing.assert_allclose(found, truth, rtol=1e-5, atol=5e-6 * np.abs(truth).max())


def with_gradients(layer, x):
    """Result of a layer, and gradients of its input and parameters for some gradient of the result."""
    value = layer(x)
    weights = Tensor(np.cos(np.arange(value.size, dtype=np.float32)).reshape(value.shape))

    def total(x):
        return (layer(x) * weights).sum()

    gradient, gradients = ms.grad(total, 0, ms.ParameterTuple(layer.trainable_params()))(x)
    return [array.asnumpy() for array in (value, gradient, *gradients)]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), [
    (3, 2, 1, 1, 1), ((5, 1), 1, "same", 1, 1), (3, 2, "same", 1, 1), (3, 1, 4, 4, 1), (3, 1, 1, 1, 6),
    (3, 2, 1, 1, 6)])
def test_convolution_of_a_layer_is_that_of_mindspore(rng, kernel, stride, padding, dilation, groups):
    """Output sizes, padding and gradients, for the settings that the networks use."""
    layer = conv2d(6, 12, kernel, stride, padding, dilation, groups=groups, bias=True)
    x = Tensor(rng.standard_normal((2, 6, 33, 46)).astype(np.float32))
    results = []
    for operator in (None, operators.Convolution(stride, padding, dilation, groups > 1)):
        layer.fused = operator
        results.append(with_gradients(layer, x))
    for plain, own in zip(*results, strict=True):
        np.testing.assert_allclose(own, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize(("kernel", "stride", "offset"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (16, 8, 4)])
def test_transposed_convolution_of_a_layer_is_that_of_mindspore(rng, kernel, stride, offset):
    layer = TransposedConv(5, 6, kernel, stride, offset).set_train()
    x = Tensor(rng.standard_normal((2, 5, 9, 12)).astype(np.float32))
    results = []
    for operator in (None, operators.TransposedConvolution(stride, layer.before, layer.rest)):
        layer.fused = operator
        results.append(with_gradients(layer, x))
    for plain, own in zip(*results, strict=True):
        np.testing.assert_allclose(own, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_operators_of_one_name_and_input_have_shapes_of_their_own(rng, mode):
    set_mode(mode)      # the fixture restores it
    x = Tensor(rng.standard_normal((1, 4, 8, 8)).astype(np.float32))
    weight = Tensor(rng.standard_normal((4, 4, 3, 3)).astype(np.float32))
    kernel = Tensor(rng.standard_normal((4, 4, 2, 2)).astype(np.float32))
    assert [operators.Convolution(stride, 1, 1)(x, weight).shape[2:] for stride in (1, 2)] == [(8, 8), (4, 4)]
    assert [operators.NearestResize(factor)(x).shape[2:] for factor in (2, 4)] == [(16, 16), (32, 32)]
    assert [operators.TransposedConvolution(2, 0, rest)(x, kernel).shape[2:] for rest in (0, 1)] == [(16, 16), (17, 17)]


def three_calls_and_a_gradient(layer, x):
    def total(x):
        return (layer(x) * x).sum()

    return [*(layer(x).asnumpy() for _ in range(3)), ms.grad(total)(x).asnumpy() / 2]


@pytest.mark.parametrize("spatial", [False, True])
def test_dropout_draws_the_same_values(rng, spatial):
    x = Tensor(rng.standard_normal((3, 5, 6, 70)).astype(np.float32))
    results = []
    for fused in (False, True):
        layer = Dropout(0.3, "name", spatial).set_train()
        if fused:
            layer.fused = operators.Dropped(layer.threshold_number, layer.factor)
        results.append(np.stack(three_calls_and_a_gradient(layer, x)))
    np.testing.assert_array_equal(results[0] != 0, results[1] != 0)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
    assert 0.1 < (results[0] == 0).mean() < 0.5


def test_nearest_resize_and_its_gradient(rng):
    x, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4, 5), (2, 3, 12, 15)))
    y, dx = np.empty_like(dy), np.empty_like(x)
    assert call("resize_nearest", x, y) == 0
    assert call("resize_nearest_grad", dy, dx) == 0
    np.testing.assert_array_equal(y, x.repeat(3, 2).repeat(3, 3))
    np.testing.assert_allclose(dx, dy.reshape(2, 3, 4, 3, 5, 3).sum((3, 5)), rtol=1e-5, atol=1e-6)
    assert call("resize_nearest", x, np.empty((2, 3, 12, 16), np.float32)) == 1


@pytest.mark.parametrize("shape", [(2, 3, 6, 10), (1, 2, 7, 5)])
def test_pooling_and_its_reverse_with_ties(rng, shape):
    """The first maximum of a window counts, as NumPy's argmax says; the last row of an odd height has no window."""
    x, dy = rng.integers(0, 3, shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    n, c, h, w = shape[0], shape[1], shape[2] // 2, shape[3] // 2
    values = rng.standard_normal((n, c, h, w)).astype(np.float32)
    pooled, gathered, spread = np.empty_like(values), np.empty_like(values), np.full_like(x, 7)
    assert call("max_pool", x, pooled) == 0
    assert call("unpool", values, x, spread) == 0
    assert call("unpool_grad", dy, x, gathered) == 0
    expected = np.zeros_like(x)
    for i, j, k, m in np.ndindex(n, c, h, w):
        window = (i, j, slice(2 * k, 2 * k + 2), slice(2 * m, 2 * m + 2))
        place = np.unravel_index(x[window].argmax(), (2, 2))
        assert pooled[i, j, k, m] == x[window].max()
        assert gathered[i, j, k, m] == dy[window][place]
        expected[window][place] = values[i, j, k, m]
    np.testing.assert_array_equal(spread, expected)


def test_results_do_not_depend_on_the_number_of_threads(rng):
    x, dy = rng.standard_normal((2, 2, 7, 64, 96)).astype(np.float32)
    channels = rng.standard_normal((5, 7)).astype(np.float32)
    label, size = rng.integers(0, 7, (2, 500, 700)).astype(np.int32), np.array([512, 768, 0], np.int32)
    dlosses = rng.standard_normal(label.shape).astype(np.float32)
    axes = [means(rng, length, small, 3)[0] for length, small in ((75, 64), (333, 96))]
    weight, geometry = rng.standard_normal((7, 7, 3, 3)).astype(np.float32), np.array([1, 1, 1, 1], np.int32)
    results = []
    for threads in (1, 2, 3, 8):
        library.set_threads(threads)
        out = [np.empty(shape, np.float32) for shape in (x.shape, 7, 7, 1, label.shape, x.shape, x.shape, x.shape)]
        out += [np.empty_like(weight), np.empty_like(weight), np.zeros((2, 7, 75, 333), np.float32)]
        single = np.ascontiguousarray(weight[:, :1])        # of a depthwise convolution
        own = [np.empty_like(array) for array in (x, x, single)]
        slope = np.array([0.25], np.float32)
        options = np.array([1e-5, np.inf], np.float32)
        assert call("batch_norm_grad", x, *channels[:2], slope, options, *channels[2:4], dy, *out[:4]) == 0
        assert call("cross_entropy", x, label, size, out[4]) == 0
        assert call("cross_entropy_grad", x, label, size, dlosses, out[5]) == 0
        assert call("convolution", x, weight, geometry, out[6]) == 0
        assert call("convolution_grad_input", x, weight, geometry, dy, out[7]) == 0
        assert call("convolution_grad_weights", x, weight, geometry, dy, out[8]) == 0
        few = [np.ascontiguousarray(array[:, :, :20, :20]) for array in (x, dy)]
        assert call("convolution_grad_weights", few[0], weight, geometry, few[1], out[9]) == 0
        assert call("depthwise_convolution", x, single, geometry, own[0]) == 0
        assert call("depthwise_convolution_grad_input", x, single, geometry, dy, own[1]) == 0
        assert call("depthwise_convolution_grad_weights", x, single, geometry, dy, own[2]) == 0
        operators.add_probabilities(x, *axes, 1.0, out[10])
        results.append(b"".join(array.tobytes() for array in (*out, *own)))
    library.set_threads(0)
    assert len(set(results)) == 1


def test_wrong_shapes_and_types_are_refused(rng):
    x, channels = rng.standard_normal((2, 3, 4, 5)).astype(np.float32), np.ones(3, np.float32)
    one, y = np.ones(1, np.float32), np.zeros((2, 3, 4, 5), np.float32)
    label, size, losses = np.zeros((2, 4, 5), np.int32), np.array([4, 5, 0], np.int32), np.zeros((2, 4, 5), np.float32)
    assert call("activate", x, channels, channels, one, one, y) == 0
    assert call("activate", x.astype(np.float64), channels, channels, one, one, y) == 1
    assert call("activate", x, channels[:2], channels, one, one, y) == 1
    assert call("activate", x[0], channels, channels, one, one, y) == 1
    weight, geometry = np.ones((3, 3, 1, 1), np.float32), np.array([1, 1, 0, 0], np.int32)
    assert call("convolution", x, weight, geometry, y) == 0
    assert call("convolution", x, weight[:, :2], geometry, y) == 1
    assert call("convolution", x, weight, geometry[:3], y) == 1
    assert call("convolution", x, weight, 0 * geometry, y) == 1
    assert call("convolution", x[:1], weight, geometry, y) == 1
    single = weight[:, :1].copy()
    assert call("depthwise_convolution", x, single, geometry, y) == 0
    assert call("depthwise_convolution", x, weight, geometry, y) == 1
    assert call("depthwise_convolution", x, single[:2], geometry, y) == 1
    assert call("depthwise_convolution", x, single, 0 * geometry, y) == 1
    assert call("depthwise_convolution", x[:1], single, geometry, y) == 1
    assert call("unpool", x, x, y) == 1
    assert call("cross_entropy", x, label, size, losses) == 0
    assert call("cross_entropy", x, label.astype(np.int64), size, losses) == 1
    assert call("cross_entropy", x, label, np.array([3, 5, 0], np.int32), losses) == 1      # smaller than the label
    assert call("cross_entropy", x[:1], label, size, losses) == 1


def loss_and_gradients(net, loss, image, label):
    def forward(x, y):
        return loss(net(x), y)

    value, gradients = ms.value_and_grad(forward, None, ms.ParameterTuple(net.trainable_params()))(image, label)
    return float(value.asnumpy()), [gradient.asnumpy() for gradient in gradients]


def distance(gradients, others):
    """Norm of the difference of all gradients over the norm of the first ones."""
    squares = [((one - two) ** 2).sum(dtype=np.float64) for one, two in zip(gradients, others, strict=True)]
    return np.sqrt(sum(squares) / sum((one ** 2).sum(dtype=np.float64) for one in gradients))


@pytest.mark.parametrize(("name", "loss_name"), [("fast_scnn", "cross_entropy"),
                                                 pytest.param("enet", "ohem", marks=pytest.mark.slow),
                                                 pytest.param("bisenetv2", "ohem", marks=pytest.mark.slow),
                                                 pytest.param("fcn8s", "cross_entropy", marks=pytest.mark.slow)])
def test_networks_with_and_without_the_operators(rng, name, loss_name):
    """Loss, gradients, moving statistics and evaluation agree; names and number of parameters do not change."""
    shape = (2, 3, 70, 101)
    image = rng.standard_normal(shape).astype(np.float32)
    label = rng.integers(0, 5, (2, *shape[2:])).astype(np.int32)
    label[:, :9] = 255
    label = Tensor(label)
    cfg = load_config(SCHEMA_FILE, ["model.num_classes=5", f"loss.name={loss_name}",
                                    "loss.class_weights=[0.5, 2.0, 0.0, 1.0, 3.0]"])
    results, start = [], None
    for fused in (False, True):
        ms.set_seed(1)
        options = {"fc_channels": 64} if name == "fcn8s" else {"dropout": 0.0}
        net = create_model(name, num_classes=5, **options)
        loss = create_loss(cfg.loss, 255)
        net.set_train()
        if fused:
            for param, value in zip(net.get_parameters(), start, strict=True):
                param.set_data(Tensor(value))
            assert fuse_network(net)
            fuse_loss(net, loss)
        else:
            start = [param.asnumpy().copy() for param in net.get_parameters()]
        value, gradients = loss_and_gradients(net, loss, Tensor(image), label)
        statistics = {p.name: p.asnumpy().copy() for p in net.get_parameters() if ".moving_" in p.name}
        net.set_train(False)
        results.append((value, gradients, statistics, net(Tensor(image)).asnumpy()))
    (value, gradients, statistics, logits), (value2, gradients2, statistics2, logits2) = results
    assert value2 == pytest.approx(value, rel=1e-5)
    # Rounding errors grow from BatchNorm to BatchNorm: errors of 1e-6 in the image alone change these gradients by 2 %.
    assert distance(gradients, gradients2) < 0.1
    assert statistics.keys() == statistics2.keys()
    for key in statistics:
        np.testing.assert_allclose(statistics2[key], statistics[key], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits2, logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())


def test_a_loss_that_needs_whole_logits_gets_them(rng):
    """Dice beside cross entropy: only the latter uses its operator, and the network resizes."""
    cfg = load_config(SCHEMA_FILE, ["loss.also={dice: 0.5}"])
    net, loss = create_model("fast_scnn", num_classes=5), create_loss(cfg.loss, 255)
    fuse_loss(net, loss)
    assert net.resizes
    logits = rng.standard_normal((2, 5, 32, 32)).astype(np.float32)
    label = rng.integers(0, 5, (2, 32, 32)).astype(np.int32)
    plain = create_loss(cfg.loss, 255)
    values = [float(cell((Tensor(logits),), Tensor(label)).asnumpy()) for cell in (loss, plain)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_mixed_precision_keeps_mindspore_s_operators():
    net = create_model("fast_scnn", num_classes=5)
    net.to_float(ms.float16)
    assert not fuse_network(net)


def test_the_library_can_be_switched_off(tmp_path):
    """In a process of its own: the switch is read once."""
    code = "from mindseg.cpu_kernels.library import installed_library as f; print(f())"
    runs = {}
    for switch in ("0", "1"):
        runs[switch] = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                                      env={**os.environ, library.SWITCH: switch}).stdout.strip()
    assert runs == {"0": "None", "1": str(library.library_path())}


def test_changed_sources_have_another_library(tmp_path, monkeypatch):
    before = library.library_path()
    (tmp_path / "a.cc").write_text("int main() {}\n")
    monkeypatch.setattr(library, "_SOURCES", tmp_path)
    assert library.library_path() != before
    assert library.library_path().parent == before.parent


@pytest.mark.parametrize(("compiler", "message"), [("/bin/false", "cannot compile the CPU kernels"),
                                                   ("/nowhere/g++", "no C++ compiler")])
def test_a_failing_compiler_is_named_and_leaves_nothing(tmp_path, monkeypatch, compiler, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        library.build_library()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_library_that_was_never_built_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.installed_library.cache_clear()
    try:
        assert library.installed_library() is None
        assert not fuse_network(create_model("fast_scnn", num_classes=5))
    finally:
        monkeypatch.undo()
        library.installed_library.cache_clear()


def test_corner_rules_have_the_numbers_of_the_operator():
    assert {value: key for key, value in operators.CORNERS.items()} == RULES
