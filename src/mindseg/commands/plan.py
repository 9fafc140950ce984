"""Predicts a training on Ascend cards before there are any: ``mindseg plan --config C --devices 8``."""
import argparse
import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import Tensor, nn

from mindseg import chips
from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.commands.train import Batches, build_step, divide_batch
from mindseg.compat import as_if_on
from mindseg.config import Config, find_config
from mindseg.data.datasets import dataset_info
from mindseg.data.loader import MOST_WORKERS
from mindseg.engine.train_step import TrainStep
from mindseg.errors import ConfigError, UserError, shorten
from mindseg.inference.network import Forward
from mindseg.inference.sampling import window_starts
from mindseg.models import build_network
from mindseg.models.normalize import Normalize
from mindseg.planner.costs import Costs, graph_costs
from mindseg.planner.graph import Graph, compile_graphs
from mindseg.planner.machines import CARDS, DECODING, EVALUATION, Decoding
from mindseg.planner.prediction import Cluster, Step, loading_time, predict_evaluation, predict_step
from mindseg.planner.span import Span, two_digits
from mindseg.resize import create_resize
from mindseg.runtime import Runtime, ensure_device

EXAMPLES = """examples:
  mindseg plan --config fast_scnn_cityscapes --devices 8
  mindseg plan --config bisenetv2_cityscapes --devices 64 --hosts 8 --chip A2 --codec jpeg --run_eval
  mindseg plan --config enet_cityscapes --devices 8 --dry_run"""
# Training images, validation images, and the size of an image: of the data sets themselves.
DATA_SETS = {"cityscapes": (2975, 500, (1024, 2048)), "voc": (10582, 1449, (375, 500))}
ADVICE = {
    "loader": "pack the data as JPEG (mindseg pack, --codec jpeg here), or give each card more cores",
    "products": "more cards; train.amp_level=O2 on A2",
    "memory": "train.amp_level=O2, which halves the bytes; more cards",
    "losses": "fewer auxiliary heads (model.aux); more cards",
    "short rows": "more cards",
    "launches": "more images a card and step, that is fewer cards or a larger train.global_batch; runtime.jit_level=O1",
    "all-reduce": "a larger train.global_batch, or fewer hosts",
    "synchronised BatchNorm": "train.sync_bn=never, which 8 images a card and more allow; or fewer cards",
    "evaluation": "a longer train.eval_interval; eval.mode=whole",
}
NOTES = {"enet": "the older project's ENet took 4.6 times as long as is predicted for it (docs/ascend.md)"}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = create_parser("Predict how long a training takes on Ascend cards, and what limits it.", EXAMPLES)
    add_config(parser)
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="cards of the job")
    parser.add_argument("--hosts", type=int, default=1, metavar="H", help="hosts that the cards are in (1)")
    parser.add_argument("--chip", default="910A", help="910A, A2, or a name such as Ascend910B3 (%(default)s)")
    parser.add_argument("--codec", choices=sorted(DECODING), default="png",
                        help="encoding of the training images (%(default)s)")
    parser.add_argument("--images_per_second", type=float, metavar="X",
                        help="what one thread of the loader makes of these images, measured, instead of --codec")
    parser.add_argument("--cores", type=int, default=192, help="processor cores of each host (%(default)s)")
    parser.add_argument("--train_images", type=int, metavar="N", help="training images (that of Cityscapes or VOC)")
    parser.add_argument("--eval_images", type=int, metavar="N", help="images of an evaluation (likewise)")
    parser.add_argument("--run_eval", action="store_true", help="evaluate while training")
    parser.add_argument("--dry_run", action="store_true",
                        help="print the msrun line that compiles the job without cards, on a host with CANN")
    return parser.parse_args()


def main() -> None:
    """Prints the prediction, or the command of a dry run."""
    args = parse_args()
    chip = find_chip(args.chip)
    cluster = find_cluster(args, chip)
    if args.dry_run:
        print(msrun_line(args))
        return
    if args.run_eval:
        args.set.append("train.run_eval=true")
    cfg = read_config(args.config, args.set)
    folder = find_config(args.config).parent
    stages = [(args.config, cfg)] if not cfg.train.stages else [
        (name, read_config(folder / name, args.set)) for name in cfg.train.stages]
    print(f"prediction, nothing was measured: {args.devices} x {args.chip}, {args.hosts} host(s); in brackets the "
          "range to expect")
    totals = [plan(name, stage, cluster, chip, args) for name, stage in stages]
    if len(totals) > 1:
        print(f"all stages: {sum(totals[1:], totals[0]).text('h')}")


def find_chip(name: str) -> chips.Chip:
    """The chip of the command line.

    Args:
        name: 910A, A2, or a name that ``npu-smi`` prints.

    Raises:
        UserError: It is unknown, or cannot train.
    """
    known = " or ".join(CARDS)
    chip = next((c for c in chips.CHIPS if c.name == name), None) or chips.find_chip(name)
    if chip is None:
        raise UserError(f"--chip {shorten(name)}: no Ascend chip has this name; use {known}")
    if not chip.trains.value:
        raise UserError(f"--chip {name}: the Ascend {chip.name} cannot train; use {known}")
    if chip.name not in CARDS:
        raise UserError(f"--chip {name}: no rates of the {chip.name} are known; use {known}")
    return chip


def find_cluster(args: argparse.Namespace, chip: chips.Chip) -> Cluster:
    """The devices of the command line.

    Raises:
        UserError: A number is not above 0, or they do not fit each other.
    """
    for name in ("devices", "hosts", "cores", "images_per_second", "train_images", "eval_images"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value} must be a number above 0")
    if args.devices % args.hosts:
        raise UserError(f"--devices {args.devices} cannot be divided over --hosts {args.hosts}; give a multiple of it")
    return Cluster(CARDS[chip.name], args.devices, args.hosts, args.cores)


def msrun_line(args: argparse.Namespace) -> str:
    """The line of scripts/run_distribute_train.sh for a simulated job.

    Raises:
        UserError: The script is not there, or refuses the arguments.
    """
    script = Path(__file__).resolve().parents[3] / "scripts" / "run_distribute_train.sh"
    if not script.is_file():
        raise UserError(f"--dry_run: {script} is missing; it is part of the project's repository, run it from there")
    words = [word for setting in args.set for word in ("--set", setting)]
    done = subprocess.run(["bash", str(script), str(find_config(args.config)), str(args.devices), *words], text=True,
                          env={"SIM_LEVEL": "1", **os.environ, "DRY_RUN": "1", "NODE_NUM": str(args.hosts)},
                          capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"--dry_run: {done.stderr.strip().removeprefix('error: ')}")
    return f"DEVICE_TARGET=Ascend {done.stdout.strip()}"


@dataclass(frozen=True)
class Amounts:
    """Work that a training asks of its devices.

    Attributes:
        step: Costs of a step on one card.
        forward: Costs of one pass over an image in evaluation; nothing without ``train.run_eval``.
        parameters: Trained numbers.
    """
    step: Costs
    forward: Costs
    parameters: int


def amounts(cfg: Config, batches: Batches, devices: int, chip: chips.Chip) -> Amounts:
    """Compiles step and evaluation as one process of the job would on its chip, without running them, and counts.

    Args:
        cfg: Configuration.
        batches: Samples of each device.
        devices: Number of devices.
        chip: Their chip.
    """
    ensure_device("CPU")
    with as_if_on(chip):
        step = build_planned_step(cfg, build_network(cfg), batches, devices)
        gradients, update = compile_step(step, batches.part, cfg.data.resize or cfg.data.crop_size)
        forward = graph_costs(compile_evaluation(cfg, step.net)) if cfg.train.run_eval else Costs()
    costs = graph_costs(gradients) * batches.accumulation + graph_costs(update)
    return Amounts(costs, forward, sum(p.size for p in step.weights))


def build_planned_step(cfg: Config, net: nn.Cell, batches: Batches, devices: int) -> TrainStep:
    """Builds the step of one process of a job that does not run; call it under ``compat.as_if_on``.

    The check for overflows is left out: each chip has one or a few kernels for it, a CPU several for each gradient.
    """
    # A target with a kernel for synchronised BatchNorm, which does not ask for the chip of this host.
    runtime = Runtime("GPU", 0, 0, devices)
    if cfg.loss.class_weights == "auto":        # any numbers: the labels may not be here
        cfg.loss.class_weights = [1.0] * cfg.model.num_classes
    step = build_step(cfg, net, runtime, batches, 1000, 100, dataset_info(cfg.data).ignore_id)
    step.gradients.checks = False
    return step


def compile_step(step: TrainStep, images: int, size: tuple[int, int]) -> tuple[list[Graph], list[Graph]]:
    """Compiles the pieces of a training step.

    Args:
        step: Training step.
        images: Images that a device sees at once.
        size: Their height and width.

    Returns:
        Graphs of what is done for each micro-batch, and of what is done once a step.
    """
    height, width = size
    gradients = compile_graphs(step.gradients, _zeros(images, height, width, 3), _zeros(images, height, width),
                               Tensor(0.0, ms.float32), *step.zeros)
    once, statistics = [], step.none
    if step.read_statistics is not None:
        once = compile_graphs(step.read_statistics)
        statistics = Tensor(np.zeros(sum(p.size for p in step.update.statistics), np.float32))
    return gradients, once + compile_graphs(step.update, statistics, *step.empty_sums())


def compile_evaluation(cfg: Config, net: nn.Cell) -> list[Graph]:
    """Compiles one pass over an image in evaluation."""
    cell = Forward(net, Normalize(cfg.data.mean, cfg.data.std, cfg.data.value_range), cfg.model.num_classes, True)
    size = [-(-side // 32) * 32 for side in create_resize(cfg).padded_size(*image_size(cfg))]
    return compile_graphs(cell.set_train(False), _zeros(1, *size, 3))


def _zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.uint8))


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the data set's images; a list data set is taken to have images as large as its crops."""
    return DATA_SETS[cfg.data.name][2] if cfg.data.name in DATA_SETS else tuple(cfg.data.crop_size)


def image_counts(cfg: Config, args: argparse.Namespace) -> tuple[int | None, int | None]:
    """Numbers of training and of validation images; None: not known."""
    train, val = DATA_SETS.get(cfg.data.name, (None, None))[:2]
    return args.train_images or train, args.eval_images or val


def loading(cfg: Config, cluster: Cluster, samples: int, args: argparse.Namespace) -> Span:
    """Time in which the loader of one process makes a number of samples, in all its threads."""
    local = max(1, cluster.cores * cluster.hosts // cluster.devices)
    workers = min(local, MOST_WORKERS if cfg.data.num_workers == "auto" else cfg.data.num_workers)
    image, crop = math.prod(image_size(cfg)), math.prod(cfg.data.resize or cfg.data.crop_size)
    decoding = Decoding.measured(args.images_per_second, image) if args.images_per_second else DECODING[args.codec]
    return loading_time(decoding, image, crop, samples / workers)


def passes(cfg: Config) -> float:
    """Pixels of all passes of an evaluation over an image, relative to one pass over the whole image."""
    e = cfg.eval
    height, width = create_resize(cfg).padded_size(*image_size(cfg))
    area = sum(scale**2 for scale in e.scales) if "ms" in e.mode else 1.0
    if "slide" in e.mode:
        window = [min(pair) for pair in zip(e.window or cfg.data.crop_size, (height, width), strict=True)]
        starts = map(window_starts, (height, width), window, e.stride or (None, None))
        area *= math.prod(map(len, starts)) * math.prod(window) / (height * width)
    return area * (2 if "flip" in e.mode else 1)


def evaluations(cfg: Config, steps: int, steps_per_epoch: int) -> int:
    """Number of evaluations of a training."""
    t = cfg.train
    if not t.run_eval:
        return 0
    if t.eval_interval_steps:
        return -(-steps // t.eval_interval_steps)
    epochs = steps // steps_per_epoch
    due = sum((epoch - t.eval_start) % t.eval_interval == 0 for epoch in range(max(t.eval_start, 1), epochs + 1))
    at_end = steps % steps_per_epoch or epochs < max(t.eval_start, 1) or (epochs - t.eval_start) % t.eval_interval
    return due + bool(at_end)


def plan(name: str, cfg: Config, cluster: Cluster, chip: chips.Chip, args: argparse.Namespace) -> Span:
    """Prints the prediction of one training, and returns its hours.

    Args:
        name: Name of the configuration.
        cfg: Configuration.
        cluster: Devices.
        chip: Their chip.
        args: Command line.

    Raises:
        UserError: The batch cannot be divided, or the number of images is not known.
    """
    batches = divide_batch(cfg, cluster.devices)
    images, eval_images = image_counts(cfg, args)
    if images is None and (cfg.train.steps is None or cfg.train.run_eval):
        raise ConfigError(f"{name}: the number of training images is not known; give --train_images N")
    if eval_images is None and cfg.train.run_eval:
        raise ConfigError(f"{name}: the number of images of an evaluation is not known; give --eval_images N")
    counts = amounts(cfg, batches, cluster.devices, chip)
    step = predict_step(cluster, counts.step, 4.0 * counts.parameters, loading(cfg, cluster, batches.device, args))
    per_epoch = -(-images * cfg.data.repeat // cfg.train.global_batch) if images else 0
    steps = cfg.train.steps or per_epoch * cfg.train.epochs
    print_step(name, cfg, batches, counts, step)
    hours = step.seconds * (steps / 3600)
    limit, count = step.limit, evaluations(cfg, steps, per_epoch)
    print(f"  training, {steps} steps: {hours.text('h')}")
    if count:
        one = predict_evaluation(cluster, counts.forward, eval_images, passes(cfg),
                                 EVALUATION.span() * (math.prod(image_size(cfg)) / 1e6))
        together = one * (count / 3600)
        print(f"  evaluation of {eval_images} images: {one.text('s')}, {count} times: {together.text('h')}")
        limit = "evaluation" if together.value > hours.value else limit
        hours = hours + together
        print(f"  total: {hours.text('h')}")
    print(f"  limit: {limit}; to change it: {ADVICE[limit]}")
    if cfg.data.crop_schedule:
        print("  note: counted with data.crop_size alone; the crops of data.crop_schedule take less")
    if cfg.model.name in NOTES:
        print(f"  note: {NOTES[cfg.model.name]}")
    return hours


def print_step(name: str, cfg: Config, batches: Batches, counts: Amounts, step: Step) -> None:
    """Prints the parts of a step."""
    size = "x".join(map(str, cfg.data.resize or cfg.data.crop_size))
    amount = counts.step
    print(f"{name}: {cfg.model.name}, {batches.device} images of {size} a card and step; {amount.launches} kernels, "
          f"{two_digits(amount.flops / 1e12)} TFLOP, {two_digits(amount.bytes / 1e9)} GB moved, "
          f"{two_digits(amount.loss_bytes / 1e9)} GB more in losses, {two_digits(amount.short_bytes / 1e9)} GB more in "
          "short rows")
    for part, seconds in step.parts.items():
        print(f"  {part}: {seconds.text('s')}")
    print(f"  device, sum of these: {step.device.text('s')}")
    print(f"  loader, at the same time: {step.loader.text('s')}")
    print(f"  step: {step.seconds.text('s')}")
