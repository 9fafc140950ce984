"""The compiled step: micro-batches, scales, averages, mixed precision. Its losses on the goldens: tests/models."""
import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, nn
from mindspore.communication import GlobalComm

from mindseg.compat import BatchNorm2d, set_mode
from mindseg.engine.batch_norm import SyncBatchNorm, freeze_batch_norm, synchronise_batch_norm
from mindseg.engine.train_step import StepOptions, TrainStep
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss, OhemLoss, SoftTargetLoss
from mindseg.models.normalize import Normalize
from mindseg.optim import create_optimizer
from tests.support.steps import CLASSES, Net, make_step, optim_config

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(2)
    label = rng.integers(0, CLASSES, (4, 8, 8)).astype(np.uint8)
    label[0, :6] = 255      # micro-batches differ in their numbers of valid pixels
    return rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8), label


def run(step, batch, steps=4):
    """Losses of some steps over the same batch."""
    losses, parts = [], step.options.accumulation
    for _ in range(steps):
        for i, (image, label) in enumerate(zip(*(np.split(array, parts) for array in batch), strict=True)):
            result = step(Tensor(image), Tensor(label), Tensor(0.0, ms.float32), i + 1 == parts)
        losses.append(float(result.asnumpy()[0]))
    return losses


@pytest.fixture(scope="module")
def plain(batch):
    step = make_step(Net())
    return run(step, batch), [p.asnumpy() for p in step.weights]


def test_loss_falls(plain):
    assert all(b < a for a, b in zip(plain[0], plain[0][1:], strict=False))


@pytest.mark.parametrize("options", [
    {"accumulation": 2}, {"accumulation": 4}, {"loss_scale": 1024.0}, {"loss_scale": 1024.0, "dynamic_scale": True},
    {"accumulation": 2, "loss_scale": 64.0, "dynamic_scale": True}, {"clip_norm": 1e6}, {"ema_decay": 0.9},
    {"drop_overflow": True}, {"accumulation": 2, "clip_norm": 1e6, "ema_decay": 0.5}], ids=str)
def test_options_that_must_not_change_the_training(options, batch, plain):
    step = make_step(Net(), **options)
    np.testing.assert_allclose(run(step, batch), plain[0], rtol=2e-6)
    for param, expected in zip(step.weights, plain[1], strict=True):
        np.testing.assert_allclose(param.asnumpy(), expected, rtol=1e-5, atol=1e-6)


class Teacher(nn.Cell):
    """The small network with other weights, from uint8 images to logits."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.net, self.normalize = Net(), Normalize([100.0, 110.0, 120.0], [50.0, 55.0, 60.0])
        rng = np.random.default_rng(7)
        for param in self.net.get_parameters():
            param.set_data(Tensor(rng.normal(0, 0.3, param.shape).astype(np.float32)))

    def construct(self, image):
        return self.net(self.normalize(image))[0]


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("options", [{}, {"accumulation": 2}], ids=str)
def test_soft_targets_mix_with_the_labels(options, batch, plain):
    """The first loss by hand; accumulation weighs the parts by valid pixels, so those without labels drop out."""
    image, label = batch[0], np.minimum(batch[1], CLASSES - 1)      # all pixels are valid, as many in each part
    teacher, net = Teacher(), Net()
    wanted = softmax(teacher(Tensor(image)).asnumpy().astype(np.float64) / 2)
    own = softmax(net(teacher.normalize(Tensor(image)))[0].asnumpy().astype(np.float64) / 2)
    divergence = (wanted * np.log(wanted / own)).sum(1).mean()
    hard = run(make_step(Net()), (image, label), 1)[0]
    mixed = run(make_step(net, teacher=(teacher, SoftTargetLoss(0.25, 2.0)), **options), (image, label), 1)[0]
    assert mixed == pytest.approx(0.75 * hard + 0.25 * 4 * divergence, rel=1e-5)


def test_a_student_of_a_teacher_alone_approaches_it(batch):
    teacher, net = Teacher(), Net()
    step = make_step(net, teacher=(teacher, SoftTargetLoss(1.0, 1.0)))
    before = {p.name: p.asnumpy().copy() for p in teacher.get_parameters()}

    def distance():
        given = softmax(teacher(Tensor(batch[0])).asnumpy())
        return np.abs(softmax(net(teacher.normalize(Tensor(batch[0])))[0].asnumpy()) - given).mean()

    start = distance()
    losses = run(step, (batch[0], np.full_like(batch[1], 2)), 60)     # the labels, all of one class, do not matter
    assert losses[-1] < 0.1 * losses[0]
    assert distance() < 0.4 * start     # a tenth of the divergence is a third of the distance
    for param in teacher.get_parameters():
        np.testing.assert_array_equal(param.asnumpy(), before[param.name])
    # No checkpoint holds the teacher.
    assert len(step.state_parameters()) == len(make_step(Net()).state_parameters())


def test_micro_batches_that_are_all_ignored_count_nothing(batch):
    image, label = batch[0], batch[1].copy()
    label[:2] = 255
    half = run(make_step(Net()), (image[2:], label[2:]))
    whole = run(make_step(Net(), accumulation=2), (image, label))
    np.testing.assert_allclose(whole, half, rtol=2e-6)


def test_ohem_selects_within_a_micro_batch(batch):
    """Each micro-batch's mean over its hard pixels, weighted by its number of valid pixels."""
    parts = [(image, label) for image, label in zip(*(np.split(a, 2) for a in batch), strict=True)]
    valid = np.array([(label != 255).sum() for _, label in parts])
    losses = np.array([run(make_step(Net(), OhemLoss(thresh=0.2)), part, 1)[0] for part in parts])
    whole = run(make_step(Net(), OhemLoss(thresh=0.2), accumulation=2), batch, 1)[0]
    assert whole == pytest.approx((losses * valid).sum() / valid.sum(), rel=1e-5)


def test_clipping_limits_the_first_update(batch):
    updates = []
    for clip in (0.0, 0.01):
        net = Net()
        before = [p.asnumpy().copy() for p in net.trainable_params()]
        optimizer = create_optimizer(optim_config(weight_decay=0.0, schedule="constant"), net, 6, 3)
        step = TrainStep(net, MultiHeadLoss(CrossEntropyLoss()), optimizer, Normalize([0.0] * 3, [255.0] * 3),
                         StepOptions(clip_norm=clip))
        run(step, batch, 1)
        moved = [p.asnumpy() - b for p, b in zip(net.trainable_params(), before, strict=True)]
        updates.append(np.sqrt(sum((m**2).sum() for m in moved)))
    assert updates[0] > 0.1 * 0.01 * 1.5
    assert updates[1] == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_overflow_is_skipped_and_halves_the_scale(batch):
    """float16 gradients of a loss times 2**40 are not finite."""
    step = make_step(Net(), amp="O3", loss_scale=2.0**40, dynamic_scale=True)
    before = [p.asnumpy().copy() for p in step.weights]
    run(step, batch, 1)
    for param, old in zip(step.weights, before, strict=True):
        np.testing.assert_array_equal(param.asnumpy(), old)
    assert float(step.loss_scale.asnumpy()) == 2.0**39
    assert int(step.update.good_steps.asnumpy()) == 0
    run(step, batch, 40)
    assert float(step.loss_scale.asnumpy()) < 2.0**30
    assert any((p.asnumpy() != old).any() for p, old in zip(step.weights, before, strict=True))


def test_scale_doubles_after_many_good_steps(batch):
    step = make_step(Net(), loss_scale=8.0, dynamic_scale=True)
    step.update.good_steps.set_data(Tensor(998, ms.int32))
    run(step, batch, 1)
    assert float(step.loss_scale.asnumpy()) == 8.0
    run(step, batch, 1)
    assert float(step.loss_scale.asnumpy()) == 16.0
    assert int(step.update.good_steps.asnumpy()) == 0


def test_moving_average_of_the_weights(batch):
    decay, step = 0.8, make_step(Net(norm=True), ema_decay=0.8)
    expected = {p.name: p.asnumpy().astype(np.float64) for p in step.update.averaged}
    assert {"norm.moving_mean", "norm.gamma", "conv1.weight"} <= set(expected)
    for _ in range(3):
        run(step, batch, 1)
        for param in step.update.averaged:
            expected[param.name] = decay * expected[param.name] + (1 - decay) * param.asnumpy()
    for param in step.update.averages:
        np.testing.assert_allclose(param.asnumpy(), expected[param.name.removeprefix("ema.")], rtol=1e-4, atol=1e-6)
    weights = step.weights[0].asnumpy().copy()
    step.swap_averages()
    np.testing.assert_allclose(step.weights[0].asnumpy(), expected["conv1.weight"], rtol=1e-4, atol=1e-6)
    step.swap_averages()
    np.testing.assert_array_equal(step.weights[0].asnumpy(), weights)


@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_mixed_precision_trains_like_float32(level, batch):
    full, step = run(make_step(Net(norm=True)), batch), make_step(Net(norm=True), amp=level, loss_scale=128.0)
    half = run(step, batch)
    np.testing.assert_allclose(half, full, rtol=2e-2)
    assert half != full
    assert all(p.dtype == ms.float32 for p in step.weights)


def test_frozen_statistics_stay(batch):
    net = Net(norm=True)
    freeze_batch_norm(net)
    step = make_step(net)
    run(step, batch, 2)
    assert not net.norm.moving_mean.asnumpy().any()
    assert (net.norm.moving_variance.asnumpy() == 1).all()
    assert (net.norm.gamma.asnumpy() != 1).any()


@pytest.mark.parametrize(("mode", "size", "part", "expected"), [
    ("auto", 1, 2, False), ("auto", 2, 8, False), ("auto", 2, 7, True), ("never", 2, 2, False), ("always", 2, 16, True),
    ("always", 1, 2, False)])
def test_when_batch_norm_is_synchronised(mode, size, part, expected):
    net = nn.SequentialCell([Net(norm=True), Net(norm=True)])
    names = {p.name for p in net.get_parameters()}
    assert synchronise_batch_norm(net, mode, "CPU", size, part) is expected
    assert isinstance(net[0].norm, SyncBatchNorm) is expected
    assert len(names) == 12
    assert {p.name for p in net.get_parameters()} == names


@pytest.mark.parametrize("target", ["Ascend", "GPU"])
def test_a_platform_with_its_own_synchronised_batch_norm_gets_that(target):
    """The cells can be made everywhere; only Ascend and GPUs have their kernel."""
    net = nn.SequentialCell([Net(norm=True), Net(norm=True), BatchNorm2d(CLASSES)])
    net[1].norm = BatchNorm2d(4, eps=1e-3, momentum=0.97)
    net[1].norm.update_parameters_name("1.norm.")
    rng = np.random.default_rng(3)
    for param in net.get_parameters():
        param.set_data(Tensor(rng.uniform(0.5, 2, param.shape).astype(np.float32)))
    before = [(param, param.name, param.asnumpy(), param.requires_grad) for param in net.get_parameters()]
    assert synchronise_batch_norm(net, "auto", target, 8, 2)

    layers = [cell for _, cell in net.cells_and_names() if isinstance(cell, BatchNorm2d)]
    assert layers == [net[0].norm, net[1].norm, net[2]]
    assert {type(layer) for layer in layers} == {SyncBatchNorm}
    assert [layer.channels for layer in layers] == [4, 4, CLASSES]
    assert [layer.momentum for layer in layers] == [0.9, 0.97, 0.9]
    kernels = [layer.kernel for layer in layers]
    assert {kernel.name for kernel in kernels} == {"SyncBatchNorm"}
    assert [kernel.epsilon for kernel in kernels] == [1e-5, 1e-3, 1e-5]
    # The kernel wants the share of the new statistics, as nn.SyncBatchNorm passes it.
    assert [kernel.momentum for kernel in kernels] == pytest.approx([0.1, 0.03, 0.1])
    assert {(kernel.group, kernel.device_num) for kernel in kernels} == {(GlobalComm.WORLD_COMM_GROUP, 8)}
    # The same parameters, not copies: an optimizer or a checkpoint made before still means these.
    after = list(net.get_parameters())
    assert len(after) == len(before) == 6 + 6 + 4
    for param, (old, name, value, trainable) in zip(after, before, strict=True):
        assert param is old
        assert (param.name, param.requires_grad) == (name, trainable)
        np.testing.assert_array_equal(param.asnumpy(), value)
    assert "1.norm.gamma" in {param.name for param in after}
    assert "1.norm.moving_mean" in {param.name for param in after}


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw"])
def test_checkpoint_state_is_complete_and_holds_no_settings(optim, batch):
    step = make_step(Net(norm=True), optim=optim, accumulation=2, loss_scale=2.0, ema_decay=0.5)
    names = [p.name for p in step.state_parameters()]
    assert len(names) == len(set(names))
    assert {"conv1.weight", "norm.moving_mean", "global_step", "loss_scale", "ema.conv1.weight"} <= set(names)
    assert not [name for name in names if "learning_rate" in name or name == "momentum" or "accumulated" in name]
    moments = {"sgd": ["moments.conv1.weight"], "adam": ["moment1.conv1.weight", "moment2.conv1.weight", "beta1_power"]}
    assert set(moments["sgd" if optim == "sgd" else "adam"]) <= set(names)


def test_execution_modes_agree(batch, plain):
    set_mode("pynative")
    try:
        losses = run(make_step(Net(), accumulation=2, loss_scale=4.0, dynamic_scale=True, ema_decay=0.5), batch)
    finally:
        set_mode("graph")
    np.testing.assert_allclose(losses, plain[0], rtol=1e-5)


def test_normalize_is_the_formula():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    mean, std = np.array([0.3, 0.4, 0.5]), np.array([0.2, 0.21, 0.22])
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    got = Normalize(mean.tolist(), std.tolist(), 1.0)(Tensor(pixels)).asnumpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
