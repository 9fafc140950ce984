"""One training step with every switch, against NumPy in float64 on a network of one 1x1 convolution.

The gradients are slopes of the NumPy loss, so they share nothing with the code under test.
"""
import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, nn

from mindseg.compat import Conv2d, set_mode
from mindseg.config import Config
from mindseg.engine.train_step import StepOptions, TrainStep
from mindseg.losses import create_loss
from mindseg.models.normalize import Normalize
from mindseg.optim import create_optimizer
from tests.support.steps import optim_config

CLASSES, IGNORE, RATE, DECAY = 4, 255, 0.5, 0.1
CLASS_WEIGHTS = [0.5, 2.0, 1.0, 3.0]
LOSS = {"name": "cross_entropy", "also": None, "weights": None, "class_weights": None, "ohem_thresh": 0.7,
        "ohem_rule": "fraction",
        "ohem_min_kept": 10, "label_stride": 1}


class Net(nn.Cell):
    """One 1x1 convolution."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.conv = Conv2d(3, CLASSES, 1, weight_init=Tensor(weight[:, :, None, None].astype(np.float32)))

    def construct(self, x: Tensor) -> tuple[Tensor]:
        return (self.conv(x),)


def softmax(rows: np.ndarray) -> np.ndarray:
    """Softmax of (P, C)."""
    exp = np.exp(rows - rows.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def numpy_loss(name: str, rows: np.ndarray, ids: np.ndarray, weights: np.ndarray, chosen: np.ndarray) -> float:
    """Loss of valid pixels: logits (P, C), true classes (P,), weights (P,), and the hard pixels (P,) bool for OHEM."""
    entropy = -np.log(softmax(rows)[np.arange(len(ids)), ids])
    if name == "cross_entropy":
        return (entropy * weights).sum() / weights.sum()
    if name == "ohem":
        return (entropy * weights)[chosen].sum() / weights[chosen].sum()
    truth = np.eye(CLASSES)[ids]
    if name == "bce":
        p = 1 / (1 + np.exp(-rows))
        return (-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean(1) * weights).sum() / weights.sum()
    p = softmax(rows)
    scores = (2 * (p * truth).sum(0) + 1) / (p.sum(0) + truth.sum(0) + 1)
    return 1 - scores.mean()


def reference(weight: np.ndarray, parts: list, name: str, class_weights: list | None) -> tuple[float, np.ndarray]:
    """Loss and gradient of a step: micro-batches count by the weights of their valid pixels."""
    pixels = []
    for image, label in parts:
        x, ids = (image.reshape(-1, 3).astype(np.float64) - 128) / 64, label.reshape(-1)
        valid = ids != IGNORE
        w = np.ones(valid.sum()) if class_weights is None else np.array(class_weights)[ids[valid]]
        pixels.append((x[valid], ids[valid], w))

    def hard(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        entropy = -np.log(softmax(rows)[np.arange(len(ids)), ids])
        return entropy > min(-np.log(0.7), np.sort(entropy)[::-1][max(len(ids) // 16, 1) - 1] - 1e-9)

    # Which pixels are hard is no part of the slope.
    chosen = [hard(x @ weight.T, ids) for x, ids, _ in pixels]
    total = sum(w.sum() for *_, w in pixels)

    def loss(values: np.ndarray) -> float:
        return sum(numpy_loss(name, x @ values.T, ids, w, pick) * w.sum() / total
                   for (x, ids, w), pick in zip(pixels, chosen, strict=True))

    gradient = np.zeros_like(weight)
    for place in np.ndindex(weight.shape):
        step = np.zeros_like(weight)
        step[place] = 1e-6
        gradient[place] = (loss(weight + step) - loss(weight - step)) / 2e-6
    return loss(weight), gradient


SWITCHES = {
    "plain": {}, "ema": {"ema_decay": 0.8}, "accumulation": {"accumulation": 2}, "both": {"ema_decay": 0.8,
                                                                                         "accumulation": 2},
    "dynamic scale and clipping": {"loss_scale": 1024.0, "dynamic_scale": True, "clip_norm": 0.05},
    "dropped overflow": {"drop_overflow": True}, "ohem": {"loss": "ohem"}, "bce": {"loss": "bce"},
    "dice": {"loss": "dice"}, "class weights": {"class_weights": CLASS_WEIGHTS},
    "class weights and accumulation": {"class_weights": CLASS_WEIGHTS, "accumulation": 2},
    "ohem with class weights": {"loss": "ohem", "class_weights": CLASS_WEIGHTS}}


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    """Execution mode."""
    set_mode(request.param)
    yield request.param
    set_mode("graph")


@pytest.mark.parametrize("name", SWITCHES)
def test_one_step_equals_numpy(name, mode, rng):
    options = dict(SWITCHES[name])
    loss, class_weights = options.pop("loss", "cross_entropy"), options.pop("class_weights", None)
    weight = rng.normal(0, 1, (CLASSES, 3))
    image = rng.integers(0, 256, (2, 6, 8, 3)).astype(np.uint8)
    label = rng.integers(0, CLASSES, (2, 6, 8)).astype(np.uint8)
    label[0, :3] = IGNORE
    net = Net(weight)
    weight = weight.astype(np.float32).astype(np.float64)
    step = TrainStep(net, create_loss(Config({**LOSS, "name": loss, "class_weights": class_weights}), IGNORE),
                     create_optimizer(optim_config(lr=RATE, weight_decay=DECAY, schedule="constant"), net, 2, 2),
                     Normalize([128.0] * 3, [64.0] * 3), StepOptions(**options))
    parts = list(zip(*(np.split(array, options.get("accumulation", 1)) for array in (image, label)), strict=True))
    for number, (some, labels) in enumerate(parts, 1):
        result = step(Tensor(some), Tensor(labels), Tensor(0.0, ms.float32), number == len(parts))
    expected, gradient = reference(weight, parts, loss, class_weights)
    assert float(result.asnumpy()[0]) == pytest.approx(expected, rel=1e-5)
    if options.get("clip_norm"):
        gradient *= min(1.0, options["clip_norm"] / np.linalg.norm(gradient))
    moved = weight - RATE * (gradient + DECAY * weight)
    np.testing.assert_allclose(net.conv.weight.asnumpy()[:, :, 0, 0], moved, rtol=1e-5, atol=2e-6)
    if options.get("ema_decay"):
        (average,) = step.update.averages
        np.testing.assert_allclose(average.asnumpy()[:, :, 0, 0], 0.8 * weight + 0.2 * moved, rtol=1e-5, atol=2e-6)
