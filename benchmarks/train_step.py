"""Times training steps: each network alone, or (--engine) what the training loop adds between two steps.

Ratios and times are printed, nothing is asserted: absolute numbers belong to the machine.
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from support.streets import make_streets
from support.torch_peer import TorchPeer, measure, peak_memory

import mindseg  # noqa: F401  (prepares the environment before MindSpore is loaded)
from mindseg.commands.train import Batches, build_step
from mindseg.config import Config, load_config
from mindseg.data.loader import create_loader
from mindseg.engine.train_step import TrainStep
from mindseg.engine.trainer import Job, Trainer
from mindseg.errors import run_main
from mindseg.logs import setup_logging
from mindseg.models import build_network
from mindseg.runtime import Runtime, setup_runtime

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {"fast_scnn": "fast_scnn/fast_scnn_cityscapes_softmax", "enet": "enet/enet_cityscapes",
           "bisenetv2": "bisenetv2/bisenetv2_cityscapes", "fcn8s": "fcn8s/fcn8s_cityscapes"}
EXAMPLES = """examples:
  python benchmarks/train_step.py --models fast_scnn enet --height 256 --width 512
  python benchmarks/train_step.py --models enet --torch PyTorch-ENet/models/enet.py:ENet
  python benchmarks/train_step.py --models enet --memory
  python benchmarks/train_step.py --engine --steps 30

--torch FILE.py:CLASS[,name=value] is imported in a process of its own and called as CLASS(classes, name="value"); it
must return the logits, or a tuple with the auxiliary ones behind them."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=["fast_scnn"], help="networks (fast_scnn)")
    parser.add_argument("--engine", action="store_true", help="run the training loop on street images instead")
    parser.add_argument("--height", type=int, default=512, help="rows of a crop (%(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="columns of a crop (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="samples a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="measured steps (%(default)s)")
    parser.add_argument("--torch", metavar="FILE.py:CLASS", help="PyTorch implementation to compare one network with")
    parser.add_argument("--memory", action="store_true",
                        help="also print the most memory that the process of one network has used")
    args = parser.parse_args()
    if args.memory and (len(args.models) > 1 or args.engine):
        parser.error("--memory measures one network's process: give one name to --models, and no --engine")
    if args.torch and (len(args.models) > 1 or args.engine):
        parser.error("--torch compares one network's step: give one name to --models, and no --engine")
    return args


def main() -> None:
    args = parse_args()
    for name in args.models:
        calls = args.steps + 10 if args.engine else 2 * args.steps + 10
        cfg = load_config(ROOT / "configs" / f"{CONFIGS[name]}.yaml", [
            f"data.crop_size=[{args.height},{args.width}]", f"train.global_batch={args.batch}", "train.log_interval=10",
            f"train.steps={calls}", "runtime.device_target=CPU", "optim.warmup_steps=0", "optim.lr=0.001"])
        runtime = setup_runtime(cfg.runtime)
        if args.engine:
            measure_engine(cfg, runtime, args.steps)
        else:
            measure_step(cfg, runtime, args.steps, args.torch, args.memory)


def measure_step(cfg: Config, runtime: Runtime, steps: int, torch: str | None, memory: bool) -> None:
    """Prints the time of the first step, which compiles the graph, and the median of the later ones.

    With ``torch`` the PyTorch network takes turns with ours, so that a busy machine slows both. With ``memory`` the
    peaks of the processes are printed, which hold MindSpore or PyTorch, one network and one batch.
    """
    from mindspore import Tensor  # after src, which prepares the environment
    from mindspore import dtype as mstype

    rng = np.random.default_rng(0)
    size = (cfg.train.global_batch, *cfg.data.crop_size)
    image = Tensor(rng.integers(0, 256, (*size, 3)).astype(np.uint8))
    label = Tensor(rng.integers(0, 19, size).astype(np.uint8))
    step, stop = make_step(cfg, runtime), Tensor(0.0, mstype.float32)

    def run() -> float:
        started = time.perf_counter()
        step(image, label, stop, True).asnumpy()
        return time.perf_counter() - started

    name = f"{cfg.model.name} {size[1]}x{size[2]} batch {size[0]}"
    print(f"{name}: first step {run():.1f} s", flush=True)
    peers = [TorchPeer(torch, size, cfg.model.num_classes, True)] if torch else []
    ours, *theirs = measure([run, *(peer.run for peer in peers)], steps)
    line = f"{name}: MindSpore {1000 * np.median(ours):.0f} ms (fastest {1000 * min(ours):.0f})"
    for times in theirs:
        line += (f", PyTorch {1000 * np.median(times):.0f} ms (fastest {1000 * min(times):.0f}), ratio "
                 f"{np.median(ours) / np.median(times):.2f} (of the fastest {min(ours) / min(times):.2f})")
    print(line, flush=True)
    if memory:
        peak = peak_memory()
        print(f"{name}: peak memory {peak:.0f} MB" + "".join(
            f", PyTorch {peer.peak:.0f} MB, ratio {peak / peer.peak:.2f}" for peer in peers), flush=True)


def measure_engine(cfg: Config, runtime: Runtime, steps: int) -> None:
    """Prints how much of the time from step to step the loop spends outside the compiled step.

    Inside counts from handing the batch to the graph until its result is there; outside are waiting for data, reading
    and checking the loss, log lines and metrics.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, run_dir = Path(folder) / "streets", Path(folder) / "run"
        make_streets(root, "train", 16, 0, 512, 1024)
        (run_dir / "ckpt").mkdir(parents=True)
        cfg.data.root = str(root)
        cfg.train.save_interval_epochs = 10**6
        setup_logging(run_dir, rank=1)      # into files only
        loader = create_loader(cfg, "train")
        timed = TimedStep(make_step(cfg, runtime))
        job = Job(cfg, run_dir, runtime, np.ones(steps + 10, np.float32))
        trainer = Trainer(job, timed, loader)
        trainer.fit()
    spans = np.array(timed.spans[10:])      # the first steps compile the graph and fill the queues
    inside, between = spans[:, 1] - spans[:, 0], spans[1:, 0] - spans[:-1, 1]
    share = between.sum() / (between.sum() + inside[1:].sum())
    print(f"{cfg.model.name} {cfg.data.crop_size[0]}x{cfg.data.crop_size[1]} batch {cfg.train.global_batch}: step "
          f"{1000 * np.median(inside):.0f} ms, between steps {1000 * np.median(between):.2f} ms (median), "
          f"{100 * share:.2f} % of the time over {len(spans)} steps")


class TimedStep:
    """Notes when each step starts and when its result is there."""

    def __init__(self, step: TrainStep) -> None:
        self.step = step
        self.spans: list[tuple[float, float]] = []

    def __call__(self, *inputs):
        started = time.perf_counter()
        result = self.step(*inputs)
        result.asnumpy()
        self.spans.append((started, time.perf_counter()))
        return result

    def __getattr__(self, name: str):
        return getattr(self.step, name)


def make_step(cfg: Config, runtime: Runtime) -> TrainStep:
    """The step that training with this configuration uses."""
    return build_step(cfg, build_network(cfg), runtime, Batches(cfg.train.global_batch, 1), cfg.train.steps, 8, 255)


if __name__ == "__main__":
    run_main(main)
