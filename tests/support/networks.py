"""Networks with random weights, and state dicts of other projects."""
import numpy as np

import mindspore as ms
from mindspore import Tensor, nn

from mindseg.compat import BatchNorm2d, set_mode
from mindseg.models import create_model
from mindseg.models.layers import Resample, conv2d


def assign(network: nn.Cell, params: dict[str, np.ndarray]) -> dict[str, ms.Parameter]:
    """Give a network exactly these values.

    Args:
        network: Its parameters' names must be the keys of ``params``.
        params: Values by name.

    Returns:
        The network's parameters by name.
    """
    own = {p.name: p for p in network.get_parameters()}
    assert set(own) == set(params)
    for name, value in params.items():
        own[name].set_data(Tensor(value))
    return own


def randomize(network: nn.Cell, rng: np.random.Generator) -> None:
    """Give a network random weights and statistics, so that every layer matters and logits are of order 1."""
    for p in network.get_parameters():
        kind = p.name.rpartition(".")[2]
        if kind in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, p.shape)
        elif kind in ("beta", "bias", "moving_mean"):
            value = rng.normal(0, 0.1, p.shape)
        elif kind == "weight":
            value = rng.normal(0, np.sqrt(2 / np.prod(p.shape[1:])), p.shape)
        else:
            continue
        p.set_data(Tensor(value.astype(np.float32)))


def make_network(name: str = "fast_scnn", num_classes: int = 19, seed: int = 1, **options) -> nn.Cell:
    """Return a network of the project with random weights, in evaluation mode; graph mode is switched on."""
    set_mode("graph")
    network = create_model(name, num_classes, **options)
    randomize(network, np.random.default_rng(seed))
    return network.set_train(False)


class TinyNet(nn.Cell):
    """Convolution, BatchNorm, ReLU, convolution, up-sampling: compiles ten times faster than a real network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = conv2d(3, 8, 3, 2, 1), BatchNorm2d(8), nn.ReLU()
        self.head, self.resize = conv2d(8, num_classes, bias=True), Resample(True)

    def construct(self, x: Tensor) -> Tensor:
        return self.resize(self.head(self.relu(self.bn(self.conv(x)))), (x.shape[2], x.shape[3]))


def make_tiny_network(num_classes: int = 19, seed: int = 1) -> nn.Cell:
    """Return a ``TinyNet`` with random weights, in evaluation mode; graph mode is switched on."""
    set_mode("graph")
    network = TinyNet(num_classes)
    randomize(network, np.random.default_rng(seed))
    return network.set_train(False)


def vgg_state(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return torchvision's vgg16_bn with narrow classifier layers, whose shapes do not matter."""
    state, index, inputs = {}, 0, 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            state[f"features.{index}.weight"] = rng.normal(0, 1, (width, inputs, 3, 3)).astype(np.float32)
            state[f"features.{index}.bias"] = rng.normal(0, 1, width).astype(np.float32)
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                state[f"features.{index + 1}.{tensor}"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
            state[f"features.{index + 1}.num_batches_tracked"] = np.zeros((), np.int64)
            index, inputs = index + 3, width
        index += 1
    for layer in (0, 3, 6):
        state[f"classifier.{layer}.weight"] = np.zeros((4, 4), np.float32)
        state[f"classifier.{layer}.bias"] = np.zeros(4, np.float32)
    return state
