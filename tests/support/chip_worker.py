"""One process of several that emulate Ascends: statistics of BatchNorm, and an overflow on one of them.

Usage: chip_worker.py OUTPUT, started by msrun. Writes OUTPUT.rank<n>.npz.
"""
import sys

import numpy as np

import mindspore as ms
from mindspore import Tensor
from mindspore.communication import GlobalComm

import mindseg  # noqa: F401
from benchmarks.support.chip_numbers import SplitSyncBatchNorm, emulated, split_sync_batch_norm
from mindseg.compat import BatchNorm2d
from mindseg.engine.batch_norm import SyncBatchNorm
from mindseg.engine.device_checks import moving_variance
from mindseg.runtime import setup_runtime
from tests.support.distributed_worker import RUNTIME
from tests.support.steps import CLASSES, Net, make_step

CHANNELS = 3


def batch(images: int, ranks: int) -> np.ndarray:
    """Values behind a global pooling on all ranks, (ranks * images, C, 1, 1)."""
    return np.random.default_rng(images).normal(2, 3, (ranks * images, CHANNELS, 1, 1)).astype(np.float32)


def statistics(rank: int, size: int) -> dict[str, np.ndarray]:
    """Variances that the layer stores, and what the kernel alone would store."""
    found = {}
    for images in (1, 2, 4):
        own = batch(images, size)[rank * images:(rank + 1) * images]
        with split_sync_batch_norm():
            layer = SyncBatchNorm(CHANNELS, 1e-5, 0.9, size, kernel=True)
        alone = BatchNorm2d(CHANNELS)
        alone.normalise_batch = SplitSyncBatchNorm(1e-5, 0.9, GlobalComm.WORLD_COMM_GROUP, size)
        found |= {f"layer{images}": moving_variance(layer, own), f"kernel{images}": moving_variance(alone, own),
                  f"output{images}": layer(Tensor(own)).asnumpy()}
    return found


def overflow(rank: int, size: int) -> dict[str, np.ndarray]:
    """Two steps with the float16 of the first Ascend 910; only rank 1 has labels, and gradients, in the first."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    label = rng.integers(0, CLASSES, (2, 8, 8)).astype(np.uint8)
    none = np.full_like(label, 255)
    results = []
    with emulated("float16"):
        step = make_step(Net(), size=size, loss_scale=2.0**30, dynamic_scale=True)
        for first in (True, False):
            own = none if first and rank == 0 else label
            results.append(step(Tensor(image), Tensor(own), Tensor(0.0, ms.float32)).asnumpy())
            if first:
                scale, weights = step.loss_scale.asnumpy().copy(), step.weights[0].asnumpy().copy()
    return {"results": np.array(results), "scale": scale, "weights": weights}


def main() -> None:
    runtime = setup_runtime(RUNTIME)
    found = statistics(runtime.rank, runtime.size) | overflow(runtime.rank, runtime.size)
    np.savez(f"{sys.argv[1]}.rank{runtime.rank}.npz", **found)


if __name__ == "__main__":
    main()
