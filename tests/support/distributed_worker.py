"""One process of a distributed step test: trains a three-layer conv-BN network on its share of fixed batches.

Usage: distributed_worker.py OUTPUT STEPS SYNC_BN ACCUMULATION; started alone or by msrun. Writes OUTPUT.rank<n>.npz.
"""
import sys

import numpy as np

import mindspore as ms
from mindspore import Tensor, nn, ops

import mindseg  # noqa: F401
from mindseg.comm import broadcast_object
from mindseg.compat import BatchNorm2d, Conv2d
from mindseg.config import Config
from mindseg.engine.batch_norm import synchronise_batch_norm
from mindseg.engine.train_step import StepOptions, TrainStep
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss
from mindseg.models.normalize import Normalize
from mindseg.optim import create_optimizer
from mindseg.runtime import setup_runtime
from tests.support.steps import optim_config

BATCH = 4
RUNTIME = Config({"device_target": "CPU", "device_id": 0, "mode": "graph", "seed": 5, "threads": 1, "modelarts": None})
OPTIM = optim_config(lr=0.05, weight_decay=1e-4, decay_norm_bias=True, schedule="constant")


class Net(nn.Cell):
    """Three convolutions, each but the last with BatchNorm and ReLU; one auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv2d(3, 8, 3, padding="same"), BatchNorm2d(8)
        self.conv2, self.bn2 = Conv2d(8, 8, 3, padding="same"), BatchNorm2d(8)
        self.conv3, self.aux = Conv2d(8, 5, 1), Conv2d(8, 5, 1)

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = ops.relu(self.bn1(self.conv1(x)))
        return self.conv3(ops.relu(self.bn2(self.conv2(x)))), self.aux(x)


def main() -> None:
    output, steps, sync_bn, accumulation = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    runtime = setup_runtime(Config({**RUNTIME, "mode": sys.argv[5] if len(sys.argv) > 5 else "graph"}))
    assert broadcast_object(7 + runtime.rank, runtime.size) == 7
    net = Net()
    if runtime.size == 1:       # the ranks' weights come from rank 0, which has this seed too
        assert runtime.rank == 0
    part = BATCH // runtime.size // accumulation
    synchronised = synchronise_batch_norm(net, sync_bn, "CPU", runtime.size, part)
    step = TrainStep(net, MultiHeadLoss(CrossEntropyLoss()), create_optimizer(OPTIM, net, steps, steps),
                     Normalize([128.0] * 3, [64.0] * 3),
                     StepOptions(size=runtime.size, accumulation=accumulation, average_statistics=not synchronised))
    rng, losses, stops = np.random.default_rng(11), [], []
    for i in range(steps):
        image = rng.integers(0, 256, (BATCH, 16, 16, 3)).astype(np.uint8)
        label = rng.integers(0, 5, (BATCH, 16, 16)).astype(np.uint8)
        label[0, : 4 + i % 8] = 255      # ranks differ in their numbers of valid pixels
        stop = Tensor(float(runtime.rank == 1 and i == 2), ms.float32)
        for k in range(accumulation):
            rows = slice((runtime.rank * accumulation + k) * part, (runtime.rank * accumulation + k + 1) * part)
            result = step(Tensor(image[rows]), Tensor(label[rows]), stop, k + 1 == accumulation)
        result = result.asnumpy()
        losses.append(result[0])
        stops.append(result[1])
    np.savez(f"{output}.rank{runtime.rank}.npz", losses=np.array(losses), stops=np.array(stops),
             **{p.name: p.asnumpy() for p in net.get_parameters()})


if __name__ == "__main__":
    main()
