"""Tests that every network must pass; ten lines in the test file of each network set names and numbers."""
import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindseg.compat import SoftmaxCrossEntropy, cast, set_mode, transpose
from mindseg.deploy.onnx_graph import check_graph
from mindseg.deploy.onnx_simplify import simplify
from mindseg.models import create_model
from mindseg.models.weights import convert_state_dict
from tests.goldens import rule
from tests.goldens.rule import GOLDENS
from tests.support.exported import mindir_rank, onnx_rank
from tests.support.networks import assign, randomize

# Operators that only move pixels, and the most axes of an exported tensor: Ascend is slow with six.
OPERATORS = ("ConvTranspose", "DepthToSpace", "Resize", "Reshape", "Transpose", "Tile", "Expand")
MAX_RANK = 4


class GoldenLoss(nn.Cell):
    """Mean cross entropy over the pixels that are not 255, summed over the heads with weights."""

    def __init__(self, network: nn.Cell, weights: list[float]) -> None:
        super().__init__()
        self.network = network
        self.head_weights = tuple(weights)
        self.cross_entropy = SoftmaxCrossEntropy()

    def construct(self, image: Tensor, label: Tensor) -> Tensor:
        label = ops.reshape(label, (-1,))
        valid = cast(label != 255, ms.float32)
        label = ops.where(label != 255, label, ops.zeros_like(label))
        total = 0.0
        outputs = self.network(image)
        for i, weight in enumerate(self.head_weights):
            rows = ops.reshape(transpose(outputs[i], (0, 2, 3, 1)), (-1, outputs[i].shape[1]))
            total += weight * (self.cross_entropy(rows, label) * valid).sum() / valid.sum()
        return total


class GoldenStep(nn.Cell):
    """Loss and gradients as one compiled cell; ``ms.jit`` of a function would not see ``set_data``."""

    def __init__(self, loss: GoldenLoss, params: list[ms.Parameter]) -> None:
        super().__init__()
        self.loss = loss
        self.loss_and_gradients = ms.value_and_grad(loss, None, params)
        self.set_train()

    def construct(self, image: Tensor, label: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.loss_and_gradients(image, label)


class GoldenTests:
    """Comparison with one float64 run of a public PyTorch implementation, whose weights ``rule.py`` regenerates.

    Attributes:
        model: Network name.
        golden: Name of the fixture.
        options: Constructor arguments.
        eval_limit: Largest difference of evaluation logits, as a share of their mean magnitude.
    """

    model: str
    golden: str
    options: dict = {}
    eval_limit = 1e-4

    def load(self) -> tuple[dict, dict, nn.Cell, dict[str, str]]:
        """The fixture's specification and arrays, the network with its weights, and our name of each of its keys."""
        set_mode("graph")
        spec = json.loads((GOLDENS / f"{self.golden}.json").read_text())
        with np.load(GOLDENS / f"{self.golden}.npz") as file:
            arrays = dict(file)
        state = rule.state_dict(GOLDENS / self.golden)
        network = create_model(self.model, spec["num_classes"], **self.options)
        assign(network, convert_state_dict(self.model, state, **self.options))
        # A state dict whose values say where they come from shows what each of its keys is called here.
        keys = [key for key in state if not key.endswith("num_batches_tracked")]
        marks = {key: np.full(state[key].shape, i, np.float32) for i, key in enumerate(keys)}
        marked = convert_state_dict(self.model, marks, **self.options)
        names = {keys[int(value.flat[0])]: name for name, value in marked.items() if not name.endswith(".step")}
        assert len(names) == len(keys)
        return spec, arrays, network, names

    def unsettled(self, network: nn.Cell, image: Tensor) -> np.ndarray:
        """Return the pixels (H, W), bool, whose logits depend on the last digit of some value: none by default."""
        return np.zeros(image.shape[2:], bool)

    def test_evaluation_logits(self):
        spec, golden, network, _ = self.load()
        network.set_train(False)
        image = Tensor(rule.image(spec["seed"], tuple(spec["eval_shape"])))
        logits = network(image).asnumpy()
        unsettled = self.unsettled(network, image)
        assert unsettled.mean() <= 0.06
        difference = np.abs(logits[:, :, ::4, ::4] - golden["eval_logits_s4"])[:, :, ~unsettled[::4, ::4]].max()
        assert difference <= self.eval_limit * golden["eval_abs_mean"]
        assert (logits.argmax(1) == golden["eval_argmax"]).mean() >= 0.9999

    def test_five_training_steps(self):
        spec, golden, network, names = self.load()
        own = {p.name: p for p in network.get_parameters()}
        params = [own[names[key]] for key in spec["parameters"]]
        step = GoldenStep(GoldenLoss(network, spec["loss_weights"]), params)
        n, _, h, w = spec["train_shape"]
        start = [p.asnumpy().astype(np.float64) for p in params]
        values, momentum = list(start), [np.zeros_like(v) for v in start]
        losses = []
        for i in range(spec["steps"]):
            seed = spec["seed"] + 1 + i
            value, grads = step(Tensor(rule.image(seed, tuple(spec["train_shape"]))),
                                Tensor(rule.label(seed, (n, h, w), spec["num_classes"])))
            losses.append(float(value.asnumpy()))
            grads = [g.asnumpy().astype(np.float64) for g in grads]
            if i == 0:
                self.check_gradients(grads, golden["grad_norms_step0"])
                buffers = [np.linalg.norm(own[names[key]].asnumpy().astype(np.float64)) for key in spec["buffers"]]
                np.testing.assert_allclose(buffers, golden["buffer_norms_step0"], rtol=1e-5)
            for j, grad in enumerate(grads):  # SGD 0.01, momentum 0.9, weight decay 1e-4, in float64
                momentum[j] = 0.9 * momentum[j] + grad + 1e-4 * values[j]
                values[j] = values[j] - 0.01 * momentum[j]
                params[j].set_data(Tensor(values[j].astype(np.float32)))
        np.testing.assert_allclose(losses[0], golden["train_losses"][0], rtol=1e-5)
        np.testing.assert_allclose(losses[1:], golden["train_losses"][1:], rtol=1e-3)
        update = np.linalg.norm([np.linalg.norm(v - s) for v, s in zip(values, start, strict=True)])
        np.testing.assert_allclose(update, np.linalg.norm(golden["update_norms_after"]), rtol=1e-2)

    @staticmethod
    def check_gradients(grads: list[np.ndarray], golden: np.ndarray) -> None:
        """The total norm, and the norm of each gradient that is not small."""
        norms = np.array([np.linalg.norm(g) for g in grads])
        np.testing.assert_allclose(np.linalg.norm(norms), np.linalg.norm(golden), rtol=1e-3)
        large = golden >= 0.01 * golden.max()
        errors = np.abs(norms[large] / golden[large] - 1)
        assert (errors <= 1e-2).mean() >= 0.9
        assert errors.max() <= 5e-2


# Variants whose graphs differ little from those of another one mark the test as slow.
graph_inputs = pytest.mark.parametrize(("batch", "size"), [(1, (70, 96)),
                                                           pytest.param(3, (64, 128), marks=pytest.mark.slow)])


class ModelTests:
    """Behaviour of a network that does not depend on its weights.

    Attributes:
        model: Network name.
        options: Constructor arguments; small where the network allows it.
        heads: Outputs in training.
        no_gradient: Words in the names of parameters that a loss cannot move: biases before a BatchNorm.
        operators: Those of ``OPERATORS`` in the exported ONNX graph, with their number.
    """

    model: str
    options: dict = {}
    heads = 1
    no_gradient: tuple[str, ...] = ()
    operators: dict[str, int] = {}

    @pytest.fixture
    def network(self, rng: np.random.Generator) -> nn.Cell:
        """The network in evaluation mode, 7 classes, random weights."""
        set_mode("pynative")
        network = create_model(self.model, 7, **self.options)
        randomize(network, rng)
        return network.set_train(False)

    @pytest.mark.parametrize("size", [(64, 128), (95, 127), (360, 480)])
    def test_any_size(self, network, rng, size):
        image = rng.normal(0, 1, (1, 3, *size)).astype(np.float32)
        logits = network(Tensor(image)).asnumpy()
        assert logits.shape == (1, 7, *size)
        assert np.isfinite(logits).all()
        padded = np.zeros((1, 3, -(-size[0] // 32) * 32, -(-size[1] // 32) * 32), np.float32)
        padded[:, :, :size[0], :size[1]] = image
        expected = network(Tensor(padded)).asnumpy()[:, :, :size[0], :size[1]]
        np.testing.assert_array_equal(logits, expected)

    def test_every_parameter_learns(self, network, rng):
        network.set_train()
        image = Tensor(rng.normal(0, 1, (2, 3, 95, 127)).astype(np.float32))
        targets = [Tensor(rng.normal(0, 1, (2, 7, 95, 127)).astype(np.float32)) for _ in range(self.heads)]

        def forward(image):
            outputs = network(image)
            assert [o.shape for o in outputs] == [(2, 7, 95, 127)] * self.heads
            return sum((o * t).sum() for o, t in zip(outputs, targets, strict=True))

        params = network.trainable_params()
        _, grads = ms.value_and_grad(forward, None, params)(image)
        for parameter, grad in zip(params, grads, strict=True):
            assert np.isfinite(grad.asnumpy()).all(), parameter.name
            if not any(word in parameter.name for word in self.no_gradient):
                assert np.abs(grad.asnumpy()).max() > 0, parameter.name

    def test_saved_weights_give_the_same_logits(self, network, rng, tmp_path):
        image = Tensor(rng.normal(0, 1, (1, 3, 64, 96)).astype(np.float32))
        expected = network(image).asnumpy()
        ms.save_checkpoint(network, str(tmp_path / "net.ckpt"))
        other = create_model(self.model, 7, **self.options).set_train(False)
        left, unused = ms.load_param_into_net(other, ms.load_checkpoint(str(tmp_path / "net.ckpt")), strict_load=True)
        assert not left
        assert not unused
        np.testing.assert_array_equal(other(image).asnumpy(), expected)

    @graph_inputs
    def test_graph_mode_and_exports_equal_pynative(self, network, rng, tmp_path, batch, size):
        image = rng.normal(0, 1, (batch, 3, *size)).astype(np.float32)
        expected = network(Tensor(image)).asnumpy()
        limit = 1e-4 * max(1.0, np.abs(expected).max())
        set_mode("graph")
        np.testing.assert_allclose(network(Tensor(image)).asnumpy(), expected, rtol=0, atol=limit)
        for file_format in ("MINDIR", "ONNX"):
            ms.export(network, Tensor(image), file_name=str(tmp_path / "net"), file_format=file_format)
        assert mindir_rank(tmp_path / "net.mindir") <= MAX_RANK
        mindir = nn.GraphCell(ms.load(str(tmp_path / "net.mindir")))
        np.testing.assert_allclose(mindir(Tensor(image)).asnumpy(), expected, rtol=0, atol=limit)
        model = check_graph(simplify(onnx.load(tmp_path / "net.onnx"), "image", "logits"))
        assert onnx_rank(model) <= MAX_RANK
        found = Counter(node.op_type for node in model.graph.node)
        assert {name: found[name] for name in OPERATORS if found[name]} == self.operators
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        logits = session.run(None, {"image": image})[0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=limit)


class EnlargeTests(ModelTests):
    """A network that enlarges its images by 2, compared with a plain one that gets enlarged images.

    Attributes:
        corners: The corner pixels coincide in the resize that ends the network.
    """

    corners: bool

    def test_logits_are_those_of_an_enlarged_image(self, network, rng):
        plain = create_model(self.model, 7, **{**self.options, "enlarge": 1}).set_train(False)
        assign(plain, {p.name: p.asnumpy() for p in network.get_parameters()})
        image = Tensor(rng.normal(0, 1, (1, 3, 64, 96)).astype(np.float32))
        larger = ops.interpolate(image, size=(128, 192), mode="bilinear", align_corners=False)
        small = plain.small_logits(larger)
        expected = ops.interpolate(small, size=(64, 96), mode="bilinear", align_corners=self.corners).asnumpy()
        limit = 1e-4 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(network(image).asnumpy(), expected, rtol=0, atol=limit)
