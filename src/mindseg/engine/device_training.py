"""A small training whose losses tell one device from another."""
import numpy as np

import mindspore as ms
from mindspore import Tensor, nn

from mindseg.compat import MaxPool2d
from mindseg.config import Config
from mindseg.engine.amp import saturates
from mindseg.engine.train_step import StepOptions, TrainStep
from mindseg.losses import MultiHeadLoss, OhemLoss
from mindseg.models import layers
from mindseg.models.normalize import Normalize
from mindseg.optim import create_optimizer
from mindseg.runtime import set_seed

STEPS, CLASSES, SIDE, IMAGES = 10, 4, 64, 4
SETTINGS = ["optim.name=sgd", "optim.lr=0.05", "optim.momentum=0.9", "optim.schedule=constant"]
LOSS_SCALE = 1024.0     # keeps gradients in the range of float16; fixed, so that all devices take the same steps


class _SmallNetwork(nn.Cell):
    """Layers of each kind that the four networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.ConvBNReLU(3, 16, 3, 2)
        self.depthwise = layers.ConvBNAct(layers.conv2d(16, 16, 3, padding=1, groups=16), 16, layers.PReLU(16))
        self.pool, self.average = MaxPool2d(2, 2), layers.Resample("adaptive")
        self.resize, self.resize_borders = layers.Resample(True), layers.Resample(False)
        self.dilated = layers.ConvBNAct(layers.conv2d(16, 16, 3, padding=2, dilation=2), 16, nn.ReLU6())
        self.up = layers.TransposedConv(16, 16, 4, 2, 1)
        self.dropout = layers.Dropout(0.1, "device check")
        self.classify = layers.conv2d(16, CLASSES, bias=True)

    def construct(self, x: Tensor) -> tuple[Tensor]:
        """Maps (N, 3, H, W) to logits of the same size."""
        size = (x.shape[2], x.shape[3])
        x = self.depthwise(self.first(x))
        small = self.pool(x)
        deep = self.dilated(small)
        deep = deep + self.resize(self.average(deep, (2, 2)), (deep.shape[2], deep.shape[3]))
        x = self.up(deep) + layers.unpool(deep, layers.max_pool_mask(x, small, self.training), self.training)
        return (self.resize_borders(self.classify(self.dropout(x)), size),)


def _batch() -> tuple[np.ndarray, np.ndarray]:
    """Images whose colour tells the class: uint8 (N, H, W, 3) and (N, H, W), with some ignored pixels."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, CLASSES, (IMAGES, SIDE // 16, SIDE // 16)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    colours = rng.integers(0, 256, (CLASSES, 3))
    image = np.clip(colours[label] + rng.normal(0, 20, (*label.shape, 3)), 0, 255).astype(np.uint8)
    label[:, :2] = 255
    return image, label


def train_losses(cfg: Config, device_target: str) -> list[float]:
    """Losses of ten steps with the project's layers, loss, optimizer and training step; the same on every device.

    Args:
        cfg: Configuration with ``SETTINGS``.
        device_target: ``CPU``, ``Ascend`` or ``GPU``.

    Returns:
        Loss of each step; NaN where the step overflowed.
    """
    set_seed(1)
    network = _SmallNetwork()
    step = TrainStep(network, MultiHeadLoss(OhemLoss()), create_optimizer(cfg.optim, network, STEPS, STEPS),
                     Normalize(cfg.data.mean, cfg.data.std, cfg.data.value_range),
                     StepOptions(loss_scale=LOSS_SCALE, drop_overflow=True, saturates=saturates(device_target)))
    step.set_train()
    image, label = (Tensor(array) for array in _batch())
    results = [step(image, label, Tensor(0.0, ms.float32)).asnumpy() for _ in range(STEPS)]
    return [float(loss) if overflow == 0 else float("nan") for loss, _, overflow in results]
