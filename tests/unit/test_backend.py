"""OpenVINO in the place of MindSpore: equal answers in every mode, and who runs the network when."""
import copy
import re
import sys

import numpy as np
import pytest

from mindspore import Tensor

from mindseg.commands.evaluate import Request, score
from mindseg.compat import set_mode
from mindseg.config import SCHEMA_FILE, load_config
from mindseg.deploy import backend
from mindseg.deploy.backend import OpenVinoRunner, use_backend
from mindseg.errors import UserError
from mindseg.inference.network import NetworkPredictor, run_compiled
from mindseg.models.layers import SegmentationNetwork, conv2d
from mindseg.runtime import Runtime
from tests.support.networks import make_tiny_network, randomize
from tests.support.predictors import info_of

OTHERS = " of the first image's pixels get other classes than in MindSpore (at most 0.01 % is accepted)"
pytestmark = pytest.mark.usefixtures("graph_mode")


class CoarseNet(SegmentationNetwork):
    """A convolution, whose logits are enlarged four times."""
    upsampling = True

    def __init__(self) -> None:
        super().__init__()
        self.head = conv2d(3, 5, 4, 4, bias=True)

    def predict(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.head(x),)


@pytest.fixture
def lines(monkeypatch):
    """The lines that are logged."""
    found = []
    monkeypatch.setattr(backend.log, "info", lambda text, *values: found.append(text % values))
    return found


def make_predictors(monkeypatch, name, *overrides, net=None, other=None):
    """A predictor in MindSpore, and one with a backend whose checkpoint holds the network ``other``."""
    net = net or make_tiny_network(5)
    other = other or copy.deepcopy(net)     # as the file has it: a predictor's network gets other operators
    cfg = load_config(SCHEMA_FILE, ["data.crop_size=[64,64]", *overrides])
    monkeypatch.setattr(backend, "load_network", lambda cfg, path: other)
    predictors = [NetworkPredictor(cfg, net, info_of(5), 1.5) for _ in range(2)]
    use_backend(name, predictors[1], cfg, "best.ckpt")
    return predictors


def decide_by(monkeypatch, mindspore, openvino):
    """Lets the two programs seem to take so many seconds."""
    monkeypatch.setattr(backend, "_timed", lambda runner, cell, arrays: (
        runner(cell, *arrays), mindspore if runner is run_compiled else openvino))


def picture(rng, height=64, width=96):
    return rng.integers(0, 256, (1, height, width, 3), np.uint8)


@pytest.mark.parametrize(("size", "coarse", "overrides"), [
    pytest.param((64, 96), False, [], id="whole"), pytest.param((50, 70), True, [], id="padded"),
    pytest.param((70, 90), True, ["eval.mode=slide_msflip", "eval.scales=[0.75,1.5]"], id="windows",
                 marks=pytest.mark.slow),
    pytest.param((64, 96), False, ["eval.mode=flip"], id="flip", marks=pytest.mark.slow),
    pytest.param((64, 96), True, ["eval.resize={rule: exact, size: [96, 64]}"], id="resized", marks=pytest.mark.slow)])
def test_every_mode_gives_the_answers_of_mindspore(monkeypatch, rng, lines, size, overrides, coarse):
    net = None
    if coarse:
        set_mode("graph")
        net = CoarseNet()
        randomize(net, rng)
    plain, other = make_predictors(monkeypatch, "openvino", *overrides, net=net)
    image = picture(rng, *size)
    expected, answers = plain.with_confidence(image, size), other.with_confidence(image, size)
    scores = plain.scores(image, size)
    chosen = np.take_along_axis(scores, answers[0][:, None].astype(int), 1)[:, 0]
    assert (scores.max(1) - chosen).max() <= 1e-5
    assert (answers[0] == expected[0]).mean() > 0.99
    assert np.abs(answers[1].astype(int) - expected[1]).max() <= 1
    np.testing.assert_allclose(other.scores(image, size), scores, atol=1e-4)
    assert other.backend == "openvino"
    assert plain.backend == "mindspore"
    assert [line.partition(" of the")[0] for line in lines] == ["backend openvino: a run"]


@pytest.mark.parametrize(("seconds", "taken"), [((0.5, 0.2), "openvino"), ((0.2, 0.5), "mindspore")])
def test_auto_takes_the_faster_one(monkeypatch, rng, lines, seconds, taken):
    plain, other = make_predictors(monkeypatch, "auto")
    decide_by(monkeypatch, *seconds)
    images = [picture(rng) for _ in range(2)]
    for image in images:
        assert np.array_equal(other(image, (64, 96)), plain(image, (64, 96)))
    assert other.backend == taken
    assert isinstance(other.runner, OpenVinoRunner) == (taken == "openvino")
    assert lines == [f"backend {taken}: a run of the network takes {1000 * seconds[1]:.0f} ms in OpenVINO, "
                     f"{1000 * seconds[0]:.0f} ms in MindSpore; equal answers"]


def test_other_classes_are_noticed(monkeypatch, rng, lines):
    """The network of the other program has other weights."""
    plain, other = make_predictors(monkeypatch, "auto", other=make_tiny_network(5, seed=2))
    decide_by(monkeypatch, 0.5, 0.2)
    image = picture(rng)
    assert np.array_equal(other(image, (64, 96)), plain(image, (64, 96)))
    assert other.backend == "mindspore"
    assert [line.partition(" %")[2] for line in lines] == [f"{OTHERS}; use --backend mindspore, and report the network"]
    required = make_predictors(monkeypatch, "openvino", other=make_tiny_network(5, seed=2))[1]
    for _ in range(2):
        with pytest.raises(UserError, match=re.escape(OTHERS)):
            required(image, (64, 96))


def test_classes_may_differ_at_ties_only(monkeypatch, rng):
    """Classes 0 and 1 have equal logits everywhere."""
    net = make_tiny_network(5)
    weight, bias = net.head.weight.asnumpy(), net.head.bias.asnumpy()
    weight[:2], bias[:2] = 0, 100
    net.head.weight.set_data(Tensor(weight))
    net.head.bias.set_data(Tensor(bias))
    plain, other = make_predictors(monkeypatch, "openvino", net=net)
    runner, cell, arrays = other.runner.openvino, plain._to_ids, (picture(rng),)
    ours = run_compiled(cell, *arrays)
    assert not ours.asnumpy().any()
    assert runner.compare(cell, arrays, ours, ours) == "equal answers"
    ties = runner.compare(cell, arrays, ours, Tensor(ours.asnumpy() + 1))
    assert ties == "classes equal but for ties (0 % of the pixels)"
    with pytest.raises(UserError, match=f"100 %{re.escape(OTHERS)}"):
        runner.compare(cell, arrays, ours, Tensor(ours.asnumpy() + 2))


def test_further_sizes_run_in_mindspore(monkeypatch, rng, lines):
    plain, other = make_predictors(monkeypatch, "openvino")
    monkeypatch.setattr(backend, "_MOST_GRAPHS", 1)
    for width in (96, 64, 32):
        image = picture(rng, 64, width)
        assert np.array_equal(other(image, (64, width)), plain(image, (64, width)))
    assert len(lines) == 2
    assert lines[1] == "backend openvino: has 1 graphs; images of further sizes run in MindSpore"


def test_missing_packages_are_named(monkeypatch, lines):
    monkeypatch.setitem(sys.modules, "openvino", None)
    predictor = make_predictors(monkeypatch, "auto")[1]
    assert predictor.runner is run_compiled
    message = "--backend openvino: the package openvino is missing; pip install -r requirements-deploy.txt"
    assert lines == [f"backend mindspore: {message}"]
    with pytest.raises(UserError, match=message):
        make_predictors(monkeypatch, "openvino")


def test_other_devices_are_refused(monkeypatch):
    monkeypatch.setattr(backend, "device_target", lambda: "Ascend")
    with pytest.raises(UserError, match="runs on a CPU, but the device is Ascend"):
        make_predictors(monkeypatch, "openvino")


def test_only_a_single_checkpoint_has_a_choice(tmp_path):
    cfg = load_config("configs/fast_scnn/fast_scnn_cityscapes.yaml")
    with pytest.raises(UserError, match="--backend auto: belongs to --ckpt_path"):
        score(cfg, Runtime("CPU", 0), Request("C", tmp_path, manifest="deploy.yaml", backend="auto"))
    with pytest.raises(UserError, match=r"--backend openvino: .* is a folder of checkpoints"):
        score(cfg, Runtime("CPU", 0), Request("C", tmp_path, str(tmp_path), backend="openvino"))
