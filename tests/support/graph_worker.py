"""Compiles a training step or an evaluation under the emulation of a chip, and stores the graphs."""
import pickle
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

import mindseg  # noqa: F401
from benchmarks.support import chip_numbers
from mindseg.compat import Conv2d, Conv2dTranspose, set_mode
from mindseg.engine.train_step import StepOptions, TrainStep
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss
from mindseg.models import create_model
from mindseg.models.layers import Resample
from mindseg.models.normalize import Normalize
from mindseg.optim import create_optimizer
from mindseg.planner.graph import compile_graphs
from tests.support.steps import CLASSES, optim_config

import mindspore as ms  # isort: skip  (after mindseg, which prepares the environment)
from mindspore import Tensor, nn  # isort: skip

OPTIONS = {"fcn8s": {"fc_channels": 8}, "fast_scnn": {"aux": True}}


class Mixed(nn.Cell):
    """A convolution, a transposed one, and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.transposed = Conv2d(3, 4, 3, padding="same"), Conv2dTranspose(4, CLASSES, 2, 2, (0, 0))
        self.resize = Resample(True)

    def construct(self, x: Tensor) -> tuple[Tensor]:
        return (self.resize(self.transposed(self.conv(x)), (x.shape[2], x.shape[3])),)


def main() -> None:
    kind, name, forgotten, evaluation, output = sys.argv[1:]
    set_mode("graph")
    primitives = tuple(word for word in chip_numbers.PRIMITIVES if word != forgotten)
    with patch.object(chip_numbers, "PRIMITIVES", primitives), chip_numbers.emulated(kind):
        net = Mixed() if name == "mixed" else create_model(name, CLASSES, **OPTIONS.get(name, {}))
        if evaluation:
            graphs = compile_graphs(net.set_train(False), Tensor(np.zeros((1, 3, 64, 96), np.float32)))
        else:
            step = TrainStep(net, MultiHeadLoss(CrossEntropyLoss()), create_optimizer(optim_config(), net, 60, 3),
                             Normalize([0.0] * 3, [1.0] * 3), StepOptions(loss_scale=8.0, dynamic_scale=True))
            graphs = compile_graphs(step.gradients, Tensor(np.zeros((2, 64, 96, 3), np.uint8)),
                                    Tensor(np.zeros((2, 64, 96), np.uint8)), Tensor(0.0, ms.float32))
    Path(output).write_bytes(pickle.dumps(graphs))


if __name__ == "__main__":
    main()
