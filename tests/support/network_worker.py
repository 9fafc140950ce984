"""One process of a distributed network test: trains a network of configs/ on its share of synthetic streets.

Usage: network_worker.py OUTPUT NETWORK MODE; started alone or by msrun. Writes the losses to OUTPUT.rank<n>.npy.
"""
import sys

import numpy as np

from mindspore import Tensor
from mindspore import dtype as mstype

import mindseg  # noqa: F401
from mindseg.commands.train import build_step, divide_batch
from mindseg.config import load_config
from mindseg.data.datasets import CITYSCAPES
from mindseg.models import build_network
from mindseg.runtime import setup_runtime
from tests.support import ROOT
from tools.synthetic import make_street

BATCH = 4
STEPS = 11
SIZES = {"fcn8s": 64}       # of images, where 128 pixels take long to compute
# The Cityscapes recipes, but for three things. Masks of dropout differ by rank. FCN-8s has a narrow classifier. And the
# rates are small: at those of the recipes these networks, fresh and on four small crops, make a change of 1e-7 in the
# weights one of 2e-3 in the loss ten steps later, and two ranks add up in another order than one process. Adam, ENet's
# optimizer, makes whole steps of gradients that are rounding only: at 1e-4 one process with and one without the C++
# operators are 2.5e-5 apart in the third loss.
OPTIONS = {"fast_scnn": ["model.dropout=0", "optim.lr=0.001"], "enet": ["model.dropout=0", "optim.lr=0.00005"],
           "bisenetv2": ["model.dropout=0", "optim.lr=0.00001"], "fcn8s": ["model.fc_channels=64", "optim.lr=0.001"]}
CHANGES = ["train.sync_bn=always", "runtime.device_target=CPU", "runtime.threads=1", f"train.global_batch={BATCH}",
           "optim.warmup_steps=0"]


def batch(step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (4, size, size, 3) and train ids (4, size, size): the middles of four streets."""
    streets = [make_street(3, "train", BATCH * step + i, size, 2 * size) for i in range(BATCH)]
    middle = slice(size // 2, size // 2 + size)
    return (np.stack([street.image[:, middle] for street in streets]),
            np.stack([CITYSCAPES.id_to_train[street.label_ids[:, middle]] for street in streets]))


def main() -> None:
    output, name, mode = sys.argv[1:]
    cfg = load_config(ROOT / "configs" / name / f"{name}_cityscapes.yaml", [*CHANGES, *OPTIONS[name],
                                                                               f"runtime.mode={mode}"])
    runtime = setup_runtime(cfg.runtime)
    step = build_step(cfg, build_network(cfg), runtime, divide_batch(cfg, runtime.size), STEPS, STEPS, 255)
    own = slice(BATCH // runtime.size * runtime.rank, BATCH // runtime.size * (runtime.rank + 1))
    losses, stop = [], Tensor(0.0, mstype.float32)
    for i in range(STEPS):
        image, label = batch(i, SIZES.get(name, 128))
        losses.append(step(Tensor(image[own]), Tensor(label[own]), stop).asnumpy()[0])
    np.save(f"{output}.rank{runtime.rank}.npy", losses)


if __name__ == "__main__":
    main()
