"""Makes three training steps; prints the losses, a hash of all parameters, and the processor time of the first step.

With ``+optim.lr=0.5`` a step of another learning rate is built and run in the same process before.
"""
import hashlib
import json
import sys
import time

import numpy as np

import mindseg  # noqa: F401  prepares the environment before MindSpore is loaded
from mindseg.commands.train import Batches, build_step
from mindseg.config import Config, dump_config, load_config
from mindseg.engine.compile_cache import keep_graphs
from mindseg.models import build_network
from mindseg.runtime import Runtime, set_seed, setup_runtime
from tests.support import ROOT


def main() -> None:
    name, height, width, *overrides = sys.argv[1:]
    overrides += ["data.crop_size=[512,1024]", "train.global_batch=2", "runtime.device_target=CPU",
                  "runtime.threads=1", "optim.warmup_steps=0"]
    final = [word for word in overrides if not word.startswith("+")]
    before = [word[1:] for word in overrides if word.startswith("+")]
    configs = [load_config(ROOT / "configs" / name / f"{name}_cityscapes.yaml", words)
               for words in [[*final, word] for word in before] + [final]]
    runtime = setup_runtime(configs[0].runtime)
    results = [run(cfg, runtime, int(height), int(width)) for cfg in configs]
    print(json.dumps(results[-1]))


def run(cfg: Config, runtime: Runtime, height: int, width: int) -> dict:
    """Builds a step and runs it three times."""
    from mindspore import Tensor
    set_seed(0)
    step = build_step(cfg, build_network(cfg), runtime, Batches(2, 1), 100, 10, 255)
    keep_graphs(step, dump_config(cfg))
    rng = np.random.default_rng(0)
    image = Tensor(rng.integers(0, 256, (2, height, width, 3)).astype(np.uint8))
    label = Tensor(rng.integers(0, 19, (2, height, width)).astype(np.uint8))
    stop, started = Tensor(np.float32(0)), time.process_time()
    losses, seconds = [], []
    for _ in range(3):
        losses.append(float(step(image, label, stop).asnumpy()[0]))
        seconds.append(time.process_time() - started)
    values = {p.name: p.asnumpy() for p in step.state_parameters()}
    digest = hashlib.sha256(b"".join(values[key].tobytes() for key in sorted(values))).hexdigest()
    return {"losses": losses, "parameters": digest, "seconds": seconds[0]}


if __name__ == "__main__":
    main()
