"""Optimizers against NumPy in float64."""
import re

import numpy as np
import pytest

from mindspore import Parameter, ParameterTuple, Tensor, nn

from mindseg.compat import no_init_parameters
from mindseg.config import load_config
from mindseg.errors import ConfigError
from mindseg.models import build_network
from mindseg.optim import create_optimizer, parameter_settings
from tests.support import ROOT
from tests.support.steps import optim_config, pack

STEPS = 6


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.head_weight = Parameter(Tensor(rng.normal(size=(3, 2)).astype(np.float32)), name="head.weight")
        self.head_bias = Parameter(Tensor(rng.normal(size=3).astype(np.float32)), name="head.bias")
        self.body = Parameter(Tensor(rng.normal(size=(2, 2)).astype(np.float32)), name="body.weight")
        self.mean = Parameter(Tensor(np.zeros(2, np.float32)), name="bn.moving_mean", requires_grad=False)


def config(**changes):
    return optim_config(**{"warmup_steps": 2, "warmup_factor": 0.5, **changes})


def rates(cfg):
    t = np.arange(STEPS) / STEPS
    return cfg.lr * (1 - t)**0.9 * np.minimum(1, 0.5 + 0.5 * np.arange(STEPS) / 2)


def numpy_run(cfg, weight, gradients, decay, factor):
    """One parameter through all steps."""
    w, v, m, s = weight.astype(np.float64), 0.0, 0.0, 0.0
    for i, (lr, grad) in enumerate(zip(rates(cfg) * factor, gradients, strict=True), 1):
        g = grad.astype(np.float64)
        if cfg.name != "adamw":
            g = g + decay * w
        if cfg.name in ("sgd", "momentum"):
            v = cfg.momentum * v + g
            w = w - lr * (g + cfg.momentum * v if cfg.nesterov else v)
        else:
            if cfg.name == "adamw":
                w = w - lr * decay * w
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
            # MindSpore's form (arXiv 1412.6980, end of section 2): eps joins the root before the bias correction.
            w = w - lr * np.sqrt(1 - 0.999**i) / (1 - 0.9**i) * m / (np.sqrt(s) + cfg.eps)
    return w


CASES = [{"name": name, "lr_factors": factors} for name in ("sgd", "momentum", "adam", "adamw")
         for factors in (None, {"^head": 10.0, "weight$": 0.5})]
CASES += [{"name": "sgd", "nesterov": True}, {"name": "momentum", "nesterov": True}, {"name": "sgd", "momentum": 0.0},
          {"name": "adamw", "decay_norm_bias": True}]


# Parameters of more than `small` values do not go into the buffer.
@pytest.mark.parametrize("small", [1 << 20, 3])
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_steps_equal_numpy(changes, small, rng, monkeypatch):
    monkeypatch.setattr("mindseg.optim.SMALL", small)
    cfg, net = config(**changes), Net()
    optimizer = create_optimizer(cfg, net, STEPS, 3)
    params = optimizer.parameters
    assert {p.name for p in params} == {p.name for p in net.trainable_params()}
    start = [p.asnumpy().copy() for p in params]
    gradients = [[rng.normal(size=p.shape).astype(np.float32) for p in params] for _ in range(STEPS)]
    for step in gradients:
        optimizer(pack(optimizer, step))
    for i, param in enumerate(params):
        decay = cfg.weight_decay if cfg.decay_norm_bias or param.ndim > 1 else 0.0
        factor = 1.0
        if cfg.lr_factors:
            factor = 10.0 if param.name.startswith("head") else 0.5
        expected = numpy_run(cfg, start[i], [step[i] for step in gradients], decay, factor)
        # The second moment of Adam's first steps is tiny, and its root amplifies float32's rounding.
        np.testing.assert_allclose(param.asnumpy(), expected, rtol=2e-4, atol=2e-5, err_msg=param.name)


@pytest.mark.parametrize("decay_norm_bias", [True, False])
@pytest.mark.parametrize("factors", [None, {"bias": 2.0}])
def test_every_parameter_is_updated_with_its_settings(decay_norm_bias, factors):
    net = Net()
    settings = parameter_settings(config(decay_norm_bias=decay_norm_bias, lr_factors=factors), net)
    assert [s.param.name for s in settings] == [p.name for p in net.trainable_params()]
    decays = {s.param.name: s.weight_decay for s in settings}
    assert decays == {"head.weight": 0.01, "body.weight": 0.01, "head.bias": 0.01 if decay_norm_bias else 0.0}
    rates = {s.param.name: s.lr_factor for s in settings}
    assert rates == {"head.weight": 1.0, "body.weight": 1.0, "head.bias": 2.0 if factors else 1.0}


def test_a_pattern_without_a_parameter_is_an_error():
    with pytest.raises(ConfigError, match="'backbone' matches no parameter"):
        create_optimizer(config(lr_factors={"backbone": 0.1}), Net(), STEPS, 3)


def test_a_negative_factor_is_an_error():
    with pytest.raises(ConfigError, match="must be a number"):
        create_optimizer(config(lr_factors={"head": -1}), Net(), STEPS, 3)


def test_the_first_fitting_pattern_wins():
    settings = parameter_settings(config(lr_factors={"head.bias": 3.0, "head": 10.0}), Net())
    assert {s.param.name: s.lr_factor for s in settings} == {"head.weight": 10.0, "head.bias": 3.0, "body.weight": 1.0}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_factor_0_freezes(name, rng):
    net = Net()
    optimizer = create_optimizer(config(name=name, weight_decay=0.5, lr_factors={"^head": 0.0}), net, STEPS, 3)
    before = {p.name: p.asnumpy().copy() for p in optimizer.parameters}
    for _ in range(STEPS):
        optimizer(pack(optimizer, [rng.normal(size=p.shape).astype(np.float32) for p in optimizer.parameters]))
    for param in optimizer.parameters:
        assert np.array_equal(param.asnumpy(), before[param.name]) == param.name.startswith("head"), param.name


def test_patterns_of_the_documentation_fit_their_networks():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    names = {"Fast-SCNN": "fast_scnn", "FCN-8s": "fcn8s", "ENet": "enet", "BiSeNet V2": "bisenetv2"}
    rows = re.findall(r"^\| ([\w -]+) \| `(\^.*?)` \| .* \| `(\^.*?)` \|$", page, re.MULTILINE)
    assert [title for title, *_ in rows] == list(names)
    for title, *patterns in rows:
        with no_init_parameters():
            net = build_network(load_config(f"{names[title]}_camvid"))
        own = [p.name for p in net.trainable_params()]
        encoder, classifiers = ({name for name in own if re.search(pattern.replace("\\|", "|"), name)}
                                for pattern in patterns)
        assert encoder, title
        assert not encoder & classifiers, title
        other = build_shapes(names[title])
        assert classifiers == {p.name for p in net.trainable_params() if tuple(p.shape) != other[p.name]}, title


def build_shapes(name):
    """Shapes of the parameters of a network with two classes."""
    with no_init_parameters():
        net = build_network(load_config(f"{name}_camvid", ["model.num_classes=2", "loss.class_weights=null"]))
    return {p.name: tuple(p.shape) for p in net.get_parameters()}


class ManyWeights(nn.Cell):
    """As many parameters as a network may have, each with weight decay."""

    def __init__(self):
        super().__init__()
        self.weights = ParameterTuple([Parameter(Tensor(np.full((1, 1), 2, np.float32)), name=f"w{i}")
                                       for i in range(400)])


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("changes", [{"name": "adamw"}, {"nesterov": True}], ids=str)
def test_hundreds_of_parameters_are_updated_in_graph_mode(changes):
    """MindSpore's graphs nest at most 1000 calls, which loops over that many parameters exceed."""
    optimizer = create_optimizer(config(weight_decay=0.5, **changes), ManyWeights(), STEPS, 3)
    start = optimizer.parameters[0].asnumpy().copy()
    gradient = np.full((1, 1), 0.25, np.float32)
    gradients = pack(optimizer, [gradient] * len(optimizer.parameters))
    for _ in range(STEPS):
        optimizer(gradients)
    expected = numpy_run(config(**changes), start, [gradient] * STEPS, 0.5, 1.0)
    for param in optimizer.parameters:
        np.testing.assert_allclose(param.asnumpy(), expected, rtol=1e-5, err_msg=param.name)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("changes", [{"name": "sgd"}, {"name": "adam", "decay_norm_bias": True}], ids=str)
def test_large_parameters_are_updated_like_small_ones(changes, rng, monkeypatch):
    """Parameters of more values than a buffer takes have gradients, weight decay and updates of their own."""
    results = []
    for limit in (2**20, 3, 5):      # all small; the bias and body small; all but the head's weights
        monkeypatch.setattr("mindseg.optim.SMALL", limit)
        net, steps = Net(), np.random.default_rng(3)
        optimizer = create_optimizer(config(weight_decay=0.5, **changes), net, STEPS, 3)
        by_name = {p.name: p for p in optimizer.parameters}
        assert optimizer.small == sum(p.size <= limit for p in optimizer.parameters)
        for _ in range(3):
            gradients = {name: steps.normal(size=by_name[name].shape).astype(np.float32) for name in sorted(by_name)}
            optimizer(pack(optimizer, [gradients[p.name] for p in optimizer.parameters]))
        results.append([by_name[name].asnumpy() for name in sorted(by_name)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_adamw_differs_from_l2_inside_adam():
    results = []
    for name in ("adam", "adamw"):
        net = Net()
        optimizer = create_optimizer(config(name=name, weight_decay=0.5), net, STEPS, 3)
        optimizer(pack(optimizer, [np.zeros(p.shape, np.float32) for p in optimizer.parameters]))
        results.append(net.body.asnumpy())
    assert np.abs(results[0] - results[1]).max() > 1e-3
