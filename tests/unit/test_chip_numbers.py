"""Numbers as the chips round them, emulated on the CPU: the emulation, overflows, and what the device checks see."""
from collections import Counter
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, nn

from benchmarks.support.chip_numbers import emulated, round_float16, round_hf32
from mindseg.compat import Conv2d, set_mode
from mindseg.engine import device_checks
from mindseg.engine.device_checks import check_dropout, kept_share, mantissa_bits, overflow
from mindseg.errors import UserError
from mindseg.models.layers import Dropout
from tests.support.graphs import compile_graphs, products, unrounded
from tests.support.steps import Net, isfinite, make_step

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_rounding_to_float16_saturates():
    values = np.array([1e6, -1e6, np.inf, np.nan, 65519.0, 1 + 2**-11, 1 + 3 * 2**-11, 2**-24, 2**-26], np.float32)
    expected = [65504, -65504, 65504, 0, 65504, 1, 1 + 2**-9, 2**-24, 0]
    assert round_float16(values).tolist() == expected


def test_rounding_to_hf32_keeps_ten_bits_and_the_range(rng):
    values = (rng.normal(size=10000) * 10.0 ** rng.integers(-30, 30, 10000)).astype(np.float32)
    ties = (1 + (2 * np.arange(1024) + 1) / 2**11).astype(np.float32)
    for array in (values, ties, -ties):
        mantissa, exponent = np.frexp(array.astype(np.float64))     # 0.5 <= |mantissa| < 1: eleven digits, ties to even
        np.testing.assert_array_equal(round_hf32(array), np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent))


class Gradients(nn.Cell):
    """Gradients of ``(layer(x) * factor).sum()`` with respect to x and the weight."""

    def __init__(self, layer: Conv2d, factor: Tensor) -> None:
        super().__init__()
        self.layer, self.factor = layer, factor
        self.gradients = ms.grad(self.forward, 0, layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) * self.factor).sum()

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gradients(x)


@pytest.mark.parametrize(("kind", "rounded"), [("float16", round_float16), ("hf32", round_hf32)])
def test_convolution_and_gradients_have_rounded_operands(rng, kind, rounded):
    """A 1x1 convolution of one pixel an image is a matrix product, written out here in float64."""
    x, weight, factor = (rng.normal(size=size).astype(np.float32) for size in ((6, 5), (4, 5), (6, 4)))
    with emulated(kind):
        layer = Conv2d(5, 4, 1, weight_init=Tensor(weight[..., None, None]))
        output = layer(Tensor(x[..., None, None]))
        run = Gradients(layer, Tensor(factor[..., None, None]))
        to_x, to_weight = run(Tensor(x[..., None, None]))
    x, weight, factor = (rounded(array).astype(np.float64) for array in (x, weight, factor))
    result = round_float16 if kind == "float16" else np.float32
    for got, expected in ((output, x @ weight.T), (to_x, factor @ weight), (to_weight, factor.T @ x)):
        np.testing.assert_allclose(got.asnumpy()[..., 0, 0], result(expected), rtol=1e-3 if kind == "float16" else 2e-6,
                                   atol=1e-6)
        if kind == "float16":       # a last digit may differ where the sum in float32 lies between two numbers
            assert (got.asnumpy()[..., 0, 0] == result(expected)).mean() > 0.9


@pytest.mark.parametrize("mode", ["graph", pytest.param("pynative", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "bits"), [("float32", 23), ("float16", 10), ("hf32", 10)])
def test_the_device_check_counts_the_bits_of_all_operands(kind, bits, mode):
    set_mode(mode)
    try:
        with nullcontext() if kind == "float32" else emulated(kind):
            found = mantissa_bits()
    finally:
        set_mode("graph")
    assert len(found) == 6
    assert set(found.values()) == {bits}, found


def test_overflow_is_noticed_by_flags_where_no_value_shows_it():
    assert overflow() == (True, True)
    with emulated("float16"):
        assert overflow() == (True, False)
        with patch.object(ms.amp, "all_finite", isfinite):
            assert overflow() == (False, False)


@pytest.fixture
def batch(rng):
    return rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8), rng.integers(0, 5, (4, 8, 8)).astype(np.uint8)


def run(step, batch, steps=1):
    """The results of some steps."""
    results, parts = [], step.options.accumulation
    for _ in range(steps):
        for i, (image, label) in enumerate(zip(*(np.split(array, parts) for array in batch), strict=True)):
            result = step(Tensor(image), Tensor(label), Tensor(0.0, ms.float32), i + 1 == parts)
        results.append(result.asnumpy())
    return np.array(results)


@pytest.mark.parametrize(("accumulation", "mode"), [(1, "graph"), (2, "graph"), (2, "pynative")])
def test_the_loss_scale_recovers_from_an_overflow_that_saturates(batch, accumulation, mode):
    set_mode(mode)
    try:
        with emulated("float16"):
            step = make_step(Net(), accumulation=accumulation, loss_scale=2.0**30, dynamic_scale=True)
            before = [param.asnumpy().copy() for param in step.weights]
            first = run(step, batch)
            for param, old in zip(step.weights, before, strict=True):
                np.testing.assert_array_equal(param.asnumpy(), old)
            assert float(step.loss_scale.asnumpy()) == 2.0**29
            results = np.concatenate((first, run(step, batch, 30)))
    finally:
        set_mode("graph")
    assert np.isfinite(results).all()       # nothing but the third number shows the overflow
    assert results[0, 2] == accumulation
    assert results[-1, 2] == 0
    assert results[-1, 0] < 0.9 * results[0, 0]
    dropped = int((results[:, 2] > 0).sum())
    assert float(step.loss_scale.asnumpy()) == 2.0 ** (30 - dropped)


def test_values_alone_would_miss_it(batch):
    """The same step with a check of the values: the scale stays, and saturated gradients change the weights."""
    with emulated("float16"), patch.object(ms.amp, "all_finite", isfinite):
        step = make_step(Net(), loss_scale=2.0**30, dynamic_scale=True)
        before = step.weights[0].asnumpy().copy()
        assert run(step, batch)[0, 2] == 0
        assert float(step.loss_scale.asnumpy()) == 2.0**30
        assert (step.weights[0].asnumpy() != before).any()


def test_lost_weights_show_in_every_step_though_the_loss_is_finite(batch):
    """The trainer stops after many such steps in a row: tests/unit/test_trainer.py."""
    with emulated("float16"):
        step = make_step(Net(), saturates=True)
        assert run(step, batch)[0, 2] == 0
        step.weights[0].set_data(Tensor(np.full(step.weights[0].shape, np.nan, np.float32)))
        results = run(step, batch, 3)
    assert np.isfinite(results[:, 0]).all()
    assert (results[:, 2] > 0).all()


def check_graph(folder, kind, network, **options):
    """Compiles a graph; returns the products by operator, and the operands that are not rounded."""
    counts, left = Counter(), []
    for nodes in compile_graphs(folder, kind, network, **options):
        counts.update(nodes[name].operator for name in products(nodes))
        left += unrounded(nodes, kind)
    return counts, left


@pytest.mark.parametrize("kind", ["float16", pytest.param("hf32", marks=pytest.mark.slow)])
def test_every_convolution_and_product_of_a_small_step_is_rounded(kind, tmp_path):
    counts, left = check_graph(tmp_path, kind, "mixed")
    assert counts["Conv2DBackpropFilter"] == 2      # those of the convolution and the transposed one
    assert counts["MatMulExt"] + counts["MatMul"] + counts["BatchMatMul"] >= 4      # two forward, two backward
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize(("forgotten", "gradient"), [("Conv2D", "Conv2DBackpropFilter"), ("Conv2DTranspose", "Conv2D")])
def test_the_graph_check_names_what_is_forgotten(forgotten, gradient, tmp_path):
    """The operator and a gradient: of the weight, or of the input, as the neighbours round the other's operands."""
    _, left = check_graph(tmp_path, "float16", "mixed", forgotten=forgotten)
    assert any(text.startswith(f"{forgotten}(") for text in left), left
    assert any(text.startswith(f"{gradient}(") for text in left), left


CONVOLUTIONS = {"fast_scnn": 40, "fcn8s": 18, "enet": 80, "bisenetv2": 40}      # at least


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "hf32"])
@pytest.mark.parametrize("network", CONVOLUTIONS)
def test_every_convolution_and_product_of_an_evaluation_is_rounded(network, kind, tmp_path):
    counts, left = check_graph(tmp_path, kind, network, evaluation=True)
    assert counts["Conv2D"] >= CONVOLUTIONS[network]
    assert left == []


# The two longest are left to the nightly run: the same products as in float16, rounded by another operator.
@pytest.mark.slow
@pytest.mark.parametrize(("network", "kind"), [
    *((network, "float16") for network in CONVOLUTIONS), ("fast_scnn", "hf32"), ("fcn8s", "hf32"),
    *(pytest.param(network, "hf32", marks=pytest.mark.nightly) for network in ("enet", "bisenetv2"))])
def test_every_convolution_and_product_of_a_training_step_is_rounded(network, kind, tmp_path):
    counts, left = check_graph(tmp_path, kind, network)
    assert counts["Conv2D"] >= CONVOLUTIONS[network]
    assert counts["Conv2DBackpropFilter"] >= CONVOLUTIONS[network]
    assert counts["Conv2DBackpropInput"] >= CONVOLUTIONS[network] - 2
    assert left == []


@pytest.mark.parametrize(("rate", "spatial"), [(0.1, False), (0.1, True)])
def test_the_kept_share_of_dropout(rate, spatial):
    share, deviation = kept_share(rate, spatial)
    assert share == pytest.approx(1 - rate, abs=8 * deviation)
    check_dropout(Dropout(rate, "head", spatial))


@pytest.mark.parametrize("wrong", [0.0, 0.5, 0.89, 1.0])
def test_a_wrong_share_of_dropout_ends_the_start(wrong, monkeypatch):
    monkeypatch.setattr(device_checks, "kept_share", lambda rate, spatial: (wrong, 5e-4))
    with pytest.raises(UserError, match=rf"dropout of rate 0\.1 keeps {wrong:.3f} of the values .* instead of 0\.900"):
        check_dropout(Dropout(0.1, "head"))
    check_dropout(Dropout(0.0, "head"))     # nothing to test
