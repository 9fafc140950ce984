"""Compiles the graphs of one case of tools/census.py; MindSpore saves them where the environment says."""
import sys

import numpy as np

from mindseg import chips
from mindseg.commands import train
from mindseg.commands.train import Batches, build_step
from mindseg.compat import as_if_on
from mindseg.config import load_config
from mindseg.data.datasets import dataset_info
from mindseg.engine import train_step
from mindseg.inference.network import Forward
from mindseg.models import build_network
from mindseg.models.normalize import Normalize
from mindseg.runtime import Runtime, use_device

from mindspore import Tensor  # isort: skip  (after mindseg, which prepares the environment)
from mindspore import dtype as mstype  # isort: skip


def compile_step(cfg, network, devices: int) -> None:
    """Compiles all pieces of a training step, for one device of several."""
    own = cfg.train.global_batch // 8       # as on eight devices, whatever their number
    height, width = cfg.data.crop_size
    train_step.broadcast_parameters = lambda *args: None        # there is no other device
    train.saturates = lambda target: False      # the check of overflows has kernels of its own on each chip
    runtime = Runtime("Ascend", 0, 0, devices)
    step = build_step(cfg, network, runtime, Batches(own, 1), 1000, 8, 255)
    image = Tensor(np.zeros((own, height, width, 3), np.uint8))
    label = Tensor(np.zeros((own, height, width), np.uint8))
    stop = Tensor(0.0, mstype.float32)
    step.gradients.compile(image, label, stop)
    small = Tensor(np.zeros(step.update.tail + 4, np.float32))
    large = [Tensor(np.zeros(p.shape, np.float32)) for p in step.weights[step.optimizer.small:]]
    step.update.compile(step.none, small, *large)


def main() -> None:
    model, loss, chip_name, devices = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    overrides = [] if loss in ("recipe", "evaluation") else [f"loss.name={loss}"]
    cfg = load_config(f"configs/{model}/{model}_cityscapes.yaml", [*overrides, "runtime.device_target=CPU"])
    use_device("CPU", 0, "graph")
    with as_if_on(next(chip for chip in chips.CHIPS if chip.name == chip_name)):
        network = build_network(cfg)
        if loss == "evaluation":
            classes = len(dataset_info(cfg.data).classes)
            forward = Forward(network, Normalize(cfg.data.mean, cfg.data.std, cfg.data.value_range), classes, ids=True)
            forward.set_train(False)
            forward.compile(Tensor(np.zeros((1, 1024, 2048, 3), np.uint8)))
        else:
            compile_step(cfg, network, devices)


if __name__ == "__main__":
    main()
