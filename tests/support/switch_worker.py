"""Train a network for three steps with each switch: ``switch_worker.py NETWORK MODE OUTPUT SWITCH…``."""
import gc
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from mindspore import Tensor, nn
from mindspore import dtype as mstype

import mindseg  # noqa: F401 (before MindSpore)
from mindseg.commands.train import build_step, divide_batch
from mindseg.config import Config, load_config
from mindseg.models import build_network
from mindseg.runtime import Runtime, set_seed, setup_runtime

SMALL = {"fcn8s": ["model.fc_channels=16"], "bisenetv2": ["model.head_channels=32"]}
SWITCHES = {
    "plain": [], "ema, accumulation": ["train.ema_decay=0.9", "train.device_batch=2"],
    "ema, dropped overflow": ["train.ema_decay=0.9", "optim.drop_overflow=true"],
    "dynamic scale, clipping, nesterov": ["optim.loss_scale=dynamic", "optim.clip_norm=1.0", "optim.nesterov=true"],
    "O1": ["train.amp_level=O1", "optim.loss_scale=128"], "O2": ["train.amp_level=O2", "optim.loss_scale=128"],
    "O3": ["train.amp_level=O3", "optim.loss_scale=128"],
    "frozen BatchNorm, adamw": ["train.frozen_bn=true", "optim.name=adamw", "optim.lr=0.001"],
    "bce": ["loss.name=bce"], "dice": ["loss.name=dice"],
    # Untrained networks give each class about 1/19: with the threshold of the recipes, every pixel would be hard.
    "ohem": ["loss.name=ohem", "loss.ohem_thresh=0.05"],
    "class weights, lovasz beside": [f"loss.class_weights={[1.0, 2.0] * 9 + [0.5]}", "loss.also={lovasz: 1.0}"],
    "enlarged images": ["model.enlarge=2"],
    "encoder only": ["model.encoder_only=true", "loss.label_stride=8"],
    "own BatchNorm, accumulation": ["train.global_batch=8", "train.device_batch=2"]}


def build_small(cfg: Config) -> nn.Cell:
    """The network of a configuration; of ENet, which compiles longest, one block of each kind where it repeats them.

    With the environment variable MINDSEG_WHOLE_NETWORKS ENet is whole.
    """
    network = build_network(cfg)
    if cfg.model.name == "enet" and not os.environ.get("MINDSEG_WHOLE_NETWORKS"):
        encoder = network.encoder
        encoder.stage1, encoder.stage2, encoder.stage3 = encoder.stage1[:1], encoder.stage2[:3], nn.SequentialCell()
    return network


def train(name: str, switch: str, mode: str, runtime: Runtime) -> dict:
    """Make three steps; return their losses, the seconds to the first one, and the sum of the weights."""
    cfg = load_config(f"{name}_cityscapes", [
        *SMALL.get(name, []), "train.global_batch=4", "optim.lr=0.01", "optim.warmup_steps=0",
        "train.sync_bn=never", "loss.name=cross_entropy", "loss.class_weights=null", f"runtime.mode={mode}",
        *SWITCHES[switch]])
    set_seed(1)
    batches = divide_batch(cfg, runtime.size)
    step = build_step(cfg, build_small(cfg), runtime, batches, 3, 3, 255)
    rng, losses, seconds, started = np.random.default_rng(5), [], None, time.perf_counter()
    count = cfg.train.global_batch
    for _ in range(3):
        image = rng.integers(0, 256, (count, 64, 128, 3)).astype(np.uint8)
        label = rng.integers(0, 19, (count, 64, 128)).astype(np.uint8)
        label[rng.integers(0, count), :32] = 255
        for part in range(batches.accumulation):
            start = runtime.rank * batches.device + part * batches.part
            rows = slice(start, start + batches.part)
            result = step(Tensor(image[rows]), Tensor(label[rows]), Tensor(0.0, mstype.float32),
                          part + 1 == batches.accumulation)
        losses.append(float(result.asnumpy()[0]))
        seconds = seconds or time.perf_counter() - started
    weights = float(sum(np.abs(p.asnumpy().astype(np.float64)).sum() for p in step.weights))
    return {"losses": losses, "first_step_s": round(seconds, 1), "weights": weights}


def main() -> None:
    name, mode, output, *switches = sys.argv[1:]
    runtime = setup_runtime(load_config(f"{name}_cityscapes", [
        f"runtime.mode={mode}", "runtime.device_target=CPU", "runtime.threads=1"]).runtime)
    found = {}
    for switch in switches:
        found[switch] = train(name, switch, mode, runtime)
        gc.collect()
    Path(f"{output}.rank{runtime.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
