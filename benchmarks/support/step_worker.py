"""One rank of benchmarks/step_modes.py: makes a training step whenever a file asks for it."""
import resource
import sys
import time
from pathlib import Path

import numpy as np

import mindseg  # prepares the environment before MindSpore is loaded
from mindseg.commands.train import Batches, build_step
from mindseg.config import load_config
from mindseg.engine.train_step import TrainStep
from mindseg.models import build_network
from mindseg.runtime import set_seed, setup_runtime


def make_step(mode: str, model: str, height: int, width: int, batch: int, threads: int) -> tuple[TrainStep, list, int]:
    """A training step of the Cityscapes recipe; the arguments to call it with, random images and labels; and the rank.

    Args:
        mode: ``graph`` or ``pynative``.
        model: Network.
        height: Rows of a crop.
        width: Columns.
        batch: Samples of all ranks.
        threads: Threads of the kernels; 0: as many as there are cores for this rank.
    """
    name = "fast_scnn_cityscapes_softmax" if model == "fast_scnn" else f"{model}_cityscapes"
    configs = Path(mindseg.__file__).resolve().parents[2] / "configs"      # another checkout brings its own
    cfg = load_config(configs / model / f"{name}.yaml", [
        f"data.crop_size=[{height},{width}]", f"train.global_batch={batch}", "train.sync_bn=always",
        "runtime.device_target=CPU", f"runtime.mode={mode}", f"runtime.threads={threads}",
        "optim.warmup_steps=0", "optim.lr=0.001"])
    runtime = setup_runtime(cfg.runtime)
    set_seed(0)
    from mindspore import Tensor  # after mindseg, which prepares the environment
    from mindspore import dtype as mstype

    own = batch // runtime.size
    step = build_step(cfg, build_network(cfg), runtime, Batches(own, 1), 1000, 8, 255)
    rng = np.random.default_rng(runtime.rank)
    image = Tensor(rng.integers(0, 256, (own, height, width, 3)).astype(np.uint8))
    label = Tensor(rng.integers(0, 19, (own, height, width)).astype(np.uint8))
    return step, [image, label, Tensor(0.0, mstype.float32)], runtime.rank


def main() -> None:
    mode, folder, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    step, arguments, rank = make_step(mode, model, *map(int, sys.argv[4:]))
    count = 0
    while True:
        while not (folder / f"go{count}").exists():
            time.sleep(0.005)
        if (folder / "stop").exists():
            return
        started = time.perf_counter()
        step(*arguments).asnumpy()
        done = folder / f"done{count}.{rank}"
        seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        done.with_suffix(f".{rank}.tmp").write_text(f"{seconds} {peak / 1024}")
        done.with_suffix(f".{rank}.tmp").rename(done)
        count += 1


if __name__ == "__main__":
    main()
