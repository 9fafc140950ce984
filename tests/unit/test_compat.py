"""Our layers and optimizers against NumPy and against MindSpore's own of today, and names in checkpoints."""
import json

import numpy as np
import pytest

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeNormal

from mindseg import buffers, compat
from mindseg.checkpoint import Progress, save_checkpoint
from mindseg.engine.train_step import StepOptions, TrainStep
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss
from mindseg.models import create_model
from mindseg.models.normalize import Normalize
from mindseg.optim import create_optimizer
from tests.support import ROOT
from tests.support.future import FUTURE
from tests.support.steps import Net, optim_config, pack

KNOWN = json.loads((ROOT / "tests/goldens/parameters.json").read_text())
OPTIMIZERS = {"momentum": {}, "nesterov": {"nesterov": True}, "adam": {"name": "adam"}, "adamw": {"name": "adamw"},
              "factors": {"lr_factors": {"conv1": 2.0}}}
today = pytest.mark.skipif(FUTURE, reason="compares with MindSpore's cells of today")

pytestmark = pytest.mark.usefixtures("graph_mode")


def shapes(params):
    return {p.name: list(p.shape) for p in params}


@pytest.mark.parametrize(("name", "classes", "options"), [
    ("fast_scnn", 19, {}), ("fcn8s", 21, {"fc_channels": 64}), ("enet", 19, {}), ("bisenetv2", 19, {})])
def test_parameters_of_networks_have_the_names_of_older_checkpoints(name, classes, options):
    with compat.no_init_parameters():
        network = create_model(name, classes, **options)
    assert list(shapes(network.get_parameters()).items()) == list(KNOWN["networks"][name].items())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_states_of_optimizers_have_the_names_of_older_checkpoints(kind):
    net = Net(norm=True)
    optimizer = create_optimizer(optim_config(**OPTIMIZERS[kind]), net, 10, 3)
    step = TrainStep(net, MultiHeadLoss(CrossEntropyLoss()), optimizer, Normalize([0.0] * 3, [1.0] * 3), StepOptions())
    # nn.SGD's array "stat" marks the first step, which needs none when the moments start at 0.
    expected = {name: shape for name, shape in KNOWN["optimizers"][kind].items() if not name.startswith("stat.")}
    assert shapes(step.state_parameters()) == expected


def test_a_resumed_run_ignores_the_marks_of_older_optimizers(tmp_path):
    """As ``Trainer.restore`` reads it: everything that is wanted is there, whatever else is."""
    net = Net(norm=True)
    optimizer = create_optimizer(optim_config(nesterov=True), net, 10, 3)
    older = [Parameter(Tensor(np.ones(shape, np.float32)), name=name)
             for name, shape in KNOWN["optimizers"]["nesterov"].items()]
    save_checkpoint(tmp_path / "last.ckpt", older, Progress(), optim_config())
    loaded = ms.load_checkpoint(str(tmp_path / "last.ckpt"), crc_check=True)
    assert {p.name for p in optimizer.get_parameters()} <= set(loaded)


class Gradients(nn.Cell):
    """Output of a cell in training, and the gradients of its weights for a gradient of the output."""

    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.gradient = ms.value_and_grad(self.forward, None, ms.ParameterTuple(cell.trainable_params()))
        self.set_train()

    def forward(self, x, slope):
        return (self.cell(x) * slope).sum()

    def construct(self, x, slope):
        return self.gradient(x, slope)


LAYERS = [
    (lambda: compat.Conv2d(6, 8, 3), lambda: nn.Conv2d(6, 8, 3, pad_mode="pad")),
    (lambda: compat.Conv2d(6, 8, 3, 2, 1, bias=True),
     lambda: nn.Conv2d(6, 8, 3, 2, "pad", 1, has_bias=True)),
    (lambda: compat.Conv2d(6, 6, 3, 2, "same", groups=6), lambda: nn.Conv2d(6, 6, 3, 2, group=6)),
    (lambda: compat.Conv2d(6, 8, (5, 1), padding="same"), lambda: nn.Conv2d(6, 8, (5, 1))),
    (lambda: compat.Conv2d(6, 8, 3, 1, 2, 2, bias=True, weight_init=HeNormal(), bias_init="zeros"),
     lambda: nn.Conv2d(6, 8, 3, 1, "pad", 2, 2, has_bias=True, weight_init=HeNormal(), bias_init="zeros")),
    (lambda: compat.Conv2dTranspose(6, 8, 4, 2, (1, 1)), lambda: nn.Conv2dTranspose(6, 8, 4, 2, "pad", 1)),
    (lambda: compat.Conv2dTranspose(6, 8, 3, 2, (0, 0)), lambda: nn.Conv2dTranspose(6, 8, 3, 2, "pad", 0)),
    (lambda: compat.BatchNorm2d(6, 1e-3, 0.97), lambda: nn.BatchNorm2d(6, 1e-3, 0.97)),
    (lambda: compat.BatchNorm2d(6, gamma_init="zeros"), lambda: nn.BatchNorm2d(6, gamma_init="zeros")),
]


@today
@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_layers_equal_those_of_mindspore_to_the_bit(case, rng):
    """Initial values under one seed, parameter names, output, gradients, and statistics afterwards."""
    x = Tensor(rng.normal(0, 1, (2, 6, 9, 7)).astype(np.float32))
    results = []
    for make in LAYERS[case]:
        ms.set_seed(int(case))
        cell = make()
        start = {p.name: (p.asnumpy().copy(), p.requires_grad) for p in cell.get_parameters()}
        step = Gradients(cell)
        slope = Tensor(np.random.default_rng(case).normal(0, 1, cell(x).shape).astype(np.float32))
        loss, grads = step(x, slope)
        cell.set_train(False)
        results.append((start, [loss.asnumpy(), *(g.asnumpy() for g in grads), cell(x).asnumpy()],
                        {p.name: p.asnumpy() for p in cell.get_parameters()}))
    ours, theirs = results
    assert list(ours[0]) == list(theirs[0])
    for name, (value, trainable) in ours[0].items():
        np.testing.assert_array_equal(value, theirs[0][name][0], err_msg=name)
        assert trainable == theirs[0][name][1]
        np.testing.assert_array_equal(ours[2][name], theirs[2][name], err_msg=name)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_array_equal(a, b)


@today
@pytest.mark.parametrize("same", [False, True])
def test_max_pooling_equals_that_of_mindspore(same, rng):
    x = Tensor(rng.normal(0, 1, (2, 3, 9, 8)).astype(np.float32))
    theirs = nn.MaxPool2d(3, 2, pad_mode="same" if same else "valid")
    np.testing.assert_array_equal(compat.MaxPool2d(3, 2, same)(x).asnumpy(), theirs(x).asnumpy())


def test_cross_entropy_is_the_formula(rng):
    logits, label = rng.normal(0, 3, (50, 7)).astype(np.float32), rng.integers(0, 7, 50).astype(np.int32)
    wide = logits.astype(np.float64)
    expected = np.log(np.exp(wide).sum(1)) - wide[np.arange(50), label]
    found = compat.SoftmaxCrossEntropy()(Tensor(logits), Tensor(label)).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_follows_numpy_in_training_frozen_and_evaluation(rng):
    """A large share of new statistics (0.3), so that a flipped momentum cannot pass."""
    x = rng.normal(2, 3, (4, 5, 6, 7)).astype(np.float32)
    cell = compat.BatchNorm2d(5, eps=1e-2, momentum=0.7)
    mean, variance = x.mean((0, 2, 3), np.float64), x.var((0, 2, 3), np.float64)
    unbiased = variance * x[:, 0].size / (x[:, 0].size - 1)

    def normalised(centre, spread):
        return (x - centre.reshape(1, -1, 1, 1)) / np.sqrt(spread.reshape(1, -1, 1, 1) + 1e-2)

    found = cell.set_train()(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, normalised(mean, variance), rtol=1e-4, atol=1e-5)
    moved = 0.3 * mean, 0.7 + 0.3 * unbiased
    np.testing.assert_allclose(cell.moving_mean.asnumpy(), moved[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cell.moving_variance.asnumpy(), moved[1], rtol=1e-5)
    stored = cell.set_train(False)(Tensor(x)).asnumpy()
    np.testing.assert_allclose(stored, normalised(*moved), rtol=1e-4, atol=1e-5)

    frozen = compat.BatchNorm2d(5, eps=1e-2, momentum=0.7).set_train()
    frozen.frozen = True
    frozen.moving_mean.set_data(cell.moving_mean)
    frozen.moving_variance.set_data(cell.moving_variance)
    np.testing.assert_array_equal(frozen(Tensor(x)).asnumpy(), stored)
    np.testing.assert_array_equal(frozen.moving_mean.asnumpy(), cell.moving_mean.asnumpy())


class Weights(nn.Cell):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(4)
        for name, shape in (("conv1", (4, 3, 3, 3)), ("gamma", (4,)), ("conv2", (5, 4, 1, 1))):
            setattr(self, name, Parameter(Tensor(rng.normal(size=shape).astype(np.float32)), name=name))


def optimizer_of_today(kind, params, rates):
    """MindSpore's own, with the groups of ``OPTIMIZERS``; AdamW decays the weights before the step."""
    table = Tensor(np.append(rates, rates[-1]))
    wide = [p for p in params if p.ndim > 1]
    groups = [{"params": wide, "weight_decay": 0.0 if kind == "adamw" else 0.01},
              {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0}, {"order_params": params}]
    if kind == "factors":
        doubled = Tensor(2 * np.append(rates, rates[-1]))
        groups = [{"params": wide[:1], "weight_decay": 0.01, "lr": doubled},
                  {"params": wide[1:], "weight_decay": 0.01}, groups[1], groups[2]]
    if kind == "nesterov":
        return nn.SGD(groups, table, momentum=0.9, nesterov=True)
    return nn.Adam(groups, table) if kind.startswith("adam") else nn.Momentum(groups, table, momentum=0.9)


@today
@pytest.mark.parametrize("mode", ["graph", "pynative"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_equal_those_of_mindspore_over_ten_steps(kind, mode, rng):
    before = compat.get_mode()
    compat.set_mode(mode)
    try:
        ours, theirs = Weights(), Weights()
        own = create_optimizer(optim_config(**OPTIMIZERS[kind]), ours, 10, 3)
        rates = own.rates.asnumpy()
        by_name = {p.name: p for p in theirs.trainable_params()}
        other = optimizer_of_today(kind, [by_name[p.name] for p in own.parameters], rates)
        for i in range(10):
            grads = [rng.normal(size=p.shape).astype(np.float32) for p in own.parameters]
            own(pack(own, grads))
            if kind == "adamw":
                for p in theirs.trainable_params():
                    if p.ndim > 1:
                        ops.assign(p, p * (1.0 - Tensor(rates[i]) * 0.01))
            other(tuple(map(Tensor, grads)))
    finally:
        compat.set_mode(before)
    for a, b in zip(ours.trainable_params(), theirs.trainable_params(), strict=True):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=1e-6, atol=1e-6, err_msg=a.name)
    state = {p.name: p.asnumpy() for p in other.get_parameters()}
    for p in own.get_parameters():
        if "." in p.name or p.name in ("global_step", "beta1_power", "beta2_power"):
            np.testing.assert_allclose(p.asnumpy(), state[p.name], rtol=1e-6, atol=1e-6, err_msg=p.name)


def test_the_device_is_known_when_the_older_question_is_gone(monkeypatch):
    assert compat.device_target() == "CPU"
    monkeypatch.delattr(ms, "get_context", raising=False)
    assert compat.device_target() == "CPU"


class CutUp(nn.Cell):
    """A buffer's cut in a cell that owns the parameters, as an optimizer is."""

    def __init__(self, parameters: ms.ParameterTuple) -> None:
        super().__init__()
        self.parameters, self.split = parameters, buffers.Split(parameters)

    def construct(self, buffer: Tensor) -> tuple[Tensor, ...]:
        return self.split(buffer, self.parameters)


@pytest.mark.parametrize("splits", [True, False], ids=["one operator", "slices, for MindSpore 2.7"])
def test_a_buffer_is_cut_into_the_shapes_of_parameters(rng, monkeypatch, splits):
    if splits and not compat.SPLITS:
        pytest.skip("MindSpore 2.7 has no kernel of this operator for the CPU")
    monkeypatch.setattr(buffers, "SPLITS", splits)
    shapes = [tuple(rng.integers(1, 4, rng.integers(1, 4))) for _ in range(130)]      # more than two groups of 60
    values = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    parameters = ms.ParameterTuple([Parameter(Tensor(np.zeros_like(value)), name=f"p{i}")
                                    for i, value in enumerate(values)])
    flat = Tensor(np.concatenate([value.ravel() for value in values]))
    for part, value in zip(CutUp(parameters)(flat), values, strict=True):
        np.testing.assert_array_equal(part.asnumpy(), value)


@pytest.mark.parametrize("size", [1, 7, 4096, 4099, 3 * 501 * 333])
def test_total_adds_all_values(size, rng):
    x = rng.normal(size=size).astype(np.float32)
    assert float(compat.total(Tensor(x)).asnumpy()) == pytest.approx(x.sum(dtype=np.float64), rel=1e-5, abs=1e-4)


def test_released_tensors_have_no_memory_and_the_result_stays(rng):
    x = rng.normal(size=100).astype(np.float32)
    given = Tensor(x) + 0.0
    result = given * 2.0
    compat.release((given,), result)
    np.testing.assert_array_equal(result.asnumpy(), x * 2)
    if compat.FREES:
        assert given.untyped_storage().size() == 0
