"""A small training step: two convolutions and an optimizer."""
import numpy as np

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindseg.compat import BatchNorm2d, Conv2d
from mindseg.config import Config
from mindseg.engine.amp import apply_amp
from mindseg.engine.train_step import Normalize, StepOptions, TrainStep
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss
from mindseg.optim import Optimizer, create_optimizer

CLASSES = 5


def optim_config(**changes) -> Config:
    """Return the ``optim`` section of a configuration with these changes."""
    return Config({"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01, "eps": 1e-8,
                   "decay_norm_bias": False, "lr_factors": None, "schedule": "poly", "power": 0.9, "min_lr": 0.0,
                   "step_epochs": [], "step_gamma": 0.1, "schedule_unit": "step", "schedule_epochs": None,
                   "schedule_start": 0, "warmup": "linear", "warmup_steps": 0, "warmup_factor": 0.1, **changes})


def pack(optimizer: Optimizer, gradients: list[np.ndarray]) -> tuple[Tensor, ...]:
    """Lay gradients of the optimizer's parameters out as it takes them: one buffer, then each large one."""
    small = [np.zeros(0, np.float32), *(g.ravel() for g in gradients[:optimizer.small])]
    return ms.mutable((Tensor(np.concatenate(small)), *map(Tensor, gradients[optimizer.small:])))


class Net(nn.Cell):
    """Two convolutions, with or without BatchNorm between."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        first, second = rng.normal(0, 0.3, (4, 3, 3, 3)), rng.normal(0, 1, (5, 4, 1, 1))
        self.conv1 = Conv2d(3, 4, 3, padding="same", weight_init=Tensor(first.astype(np.float32)))
        self.norm = BatchNorm2d(4) if norm else None
        self.conv2 = Conv2d(4, CLASSES, 1, weight_init=Tensor(second.astype(np.float32)))

    def construct(self, x: Tensor) -> tuple[Tensor]:
        x = self.conv1(x)
        if self.norm is not None:
            x = self.norm(x)
        return (self.conv2(ops.relu(x)),)


def isfinite(values: tuple[Tensor, ...]) -> Tensor:
    """Check gradients for overflows by their values alone."""
    return ops.stack([ops.isfinite(value).all() for value in values]).all()


def make_step(net: nn.Cell, loss: nn.Cell | None = None, amp: str = "O0", optim: str = "sgd",
              teacher: tuple | None = None, **options) -> TrainStep:
    """Return the compiled step of a network.

    Args:
        net: Network.
        loss: Loss of its one head; cross entropy if None.
        amp: Level of mixed precision, O0 to O3.
        optim: Name of the optimizer.
        teacher: As in ``TrainStep``.
        **options: Fields of ``StepOptions``.
    """
    apply_amp(net, amp)
    optimizer = create_optimizer(optim_config(name=optim, warmup_steps=2, warmup_factor=0.5), net, 60, 3)
    normalize = Normalize([100.0, 110.0, 120.0], [50.0, 55.0, 60.0])
    return TrainStep(net, MultiHeadLoss(loss or CrossEntropyLoss()), optimizer, normalize, StepOptions(**options),
                     teacher)
