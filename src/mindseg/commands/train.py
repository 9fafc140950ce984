"""Trains a network: ``python train.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --set data.root=D``."""
import argparse
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspore import nn

from mindseg.checkpoint import newest_checkpoint
from mindseg.comm import broadcast_object, check_equal, cores_of_rank
from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.compat import get_mode
from mindseg.config import Config, dump_config, find_config
from mindseg.cpu_kernels.fusion import fuse_loss, fuse_network
from mindseg.data.loader import create_loader
from mindseg.data.sink import PLATFORMS as SINK_PLATFORMS
from mindseg.data.sink import SinkLoader
from mindseg.drawing import side_by_side
from mindseg.engine.amp import apply_amp, choose_loss_scale, saturates
from mindseg.engine.batch_norm import freeze_batch_norm, synchronise_batch_norm
from mindseg.engine.class_weights import settle_class_weights
from mindseg.engine.compile_cache import keep_graphs
from mindseg.engine.device_checks import check_dropout
from mindseg.engine.pretrained import load_pretrained
from mindseg.engine.run_dir import clean_run, create_run_dir, describe_run, lock_run, make_folder, removed_if_refused
from mindseg.engine.teacher import create_teacher
from mindseg.engine.train_step import StepOptions, TrainStep
from mindseg.engine.trainer import Job, Trainer, checkpoint_folder
from mindseg.errors import UserError
from mindseg.evaluation.evaluator import evaluate
from mindseg.inference.network import NetworkPredictor
from mindseg.logs import log, setup_logging
from mindseg.losses import create_loss
from mindseg.models import build_network
from mindseg.models.normalize import Normalize
from mindseg.optim import create_optimizer
from mindseg.platforms import modelarts_arguments, platform
from mindseg.runtime import Runtime, profiled, setup_runtime
from mindseg.schedules import create_schedule

EXAMPLES = """examples:
  python train.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --set data.root=/data/cityscapes --run_eval
  python train.py --config C --set train.epochs=10 --set optim.lr=0.01 --pretrained last.ckpt
  python train.py --config C --resume outputs/fast_scnn_cityscapes/20260101-120000
"""
PICTURE_WIDTH = 512     # pixels of a picture for TensorBoard, of which each evaluation adds some to the event file
# Keys whose values may differ between the hosts of a job.
OF_A_HOST = ("data.root", "data.train_list", "data.eval_list", "data.mindrecord", "data.eval_mindrecord",
             "data.num_workers", "data.prefetch", "train.pretrained", "train.pretrained_sha256",
             "runtime.output_dir", "runtime.device_id", "runtime.threads")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = create_parser("Train a segmentation network.", EXAMPLES)
    add_config(parser)
    parser.add_argument("--pretrained", metavar="CKPT", help="start from these weights")
    parser.add_argument("--resume", metavar="RUN_DIR|CKPT|auto",
                        help="continue a run; auto: the newest of this config, or a new one if there is none")
    parser.add_argument("--run_eval", action="store_true", help="evaluate while training")
    return parser.parse_args(modelarts_arguments(sys.argv[1:]))


def main() -> None:
    """Trains a network, or each stage of ``train.stages``."""
    args = parse_args()
    if args.run_eval:
        args.set.append("train.run_eval=true")
    cfg = read_config(args.config, args.set)
    cfg.train.pretrained = args.pretrained or cfg.train.pretrained
    runtime = setup_runtime(cfg.runtime, training=True)
    check_equal(settings(cfg) | {"--resume": args.resume is not None}, runtime.rank, runtime.size)
    resumed = find_resumed(cfg, args, runtime)
    run_dir = run_folder(cfg, resumed) if resumed else create_run_dir(cfg, args.config, runtime)
    start = Start(Path(cfg.train.pretrained)) if cfg.train.pretrained else Start()
    with (nullcontext() if resumed else removed_if_refused(run_dir, runtime),
          platform(cfg, run_dir, runtime, cfg.train.pretrained) as checkpoint):
        start = Start(checkpoint) if checkpoint else start
        for stage_cfg, folder in stages(cfg, args, run_dir, runtime):
            if cfg.runtime.modelarts or cfg.runtime.openi:
                stage_cfg.data.root = cfg.data.root
            if resumed and folder in resumed.parents:
                start = Start(resumed, resumed=True)
            if not train(stage_cfg, folder, runtime, start, resume_command(run_dir)):
                break
            start = Start(folder / "ckpt" / "last.ckpt")


def settings(cfg: Config) -> dict[str, object]:
    """The values that all ranks of a job must share, by ``section.key``; paths and threads are each host's own."""
    return {f"{section}.{key}": value for section, values in cfg.items() for key, value in values.items()
            if f"{section}.{key}" not in OF_A_HOST}


def stages(cfg: Config, args: argparse.Namespace, run_dir: Path, runtime: Runtime) -> list[tuple[Config, Path]]:
    """Configuration and folder of each training: one, or those of ``train.stages``, which ``--set`` changes too."""
    if not cfg.train.stages:
        return [(cfg, run_dir)]
    folder = find_config(args.config).parent
    if runtime.is_main and not (run_dir / "config.yaml").exists():
        dump_config(cfg, run_dir / "config.yaml")
    return [(read_config(folder / name, args.set), run_dir / f"stage{i}") for i, name in enumerate(cfg.train.stages, 1)]


def find_resumed(cfg: Config, args: argparse.Namespace, runtime: Runtime) -> Path | None:
    """The run folder or the checkpoint in it that ``--resume`` names; None: start a new run.

    Rank 0 looks; hosts without a common disk need nothing of the run.
    """
    if args.resume is None:
        return None
    found = _find_resumed(cfg, args) if runtime.is_main else None
    found = broadcast_object(found and str(found), runtime.size)
    return Path(found) if found else None


def _find_resumed(cfg: Config, args: argparse.Namespace) -> Path | None:
    if args.resume == "auto":
        parent = Path(cfg.runtime.output_dir) / Path(args.config).stem
        return newest_checkpoint(path for folder in parent.glob("**/ckpt") for path in _checkpoints(folder))
    path = Path(args.resume)
    if path.is_file():
        path = Path(os.path.abspath(path))      # a bare name has no folders
        if path.suffix != ".ckpt" or path.parent.name != "ckpt":
            raise UserError(f"--resume {args.resume}: not in the folder ckpt of a run; give RUN/ckpt/last.ckpt, or "
                            "start anew from its weights with --pretrained")
    elif not (path / "config.yaml").is_file():
        raise UserError(f"--resume {path}: not a run folder; give one that holds config.yaml and ckpt, or auto")
    return path


def find_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint to continue a run from: the one that was saved last."""
    return newest_checkpoint(_checkpoints(run_dir / "ckpt"))


def _checkpoints(folder: Path) -> list[Path]:
    if folder.parent.name.startswith("rank"):       # copies of other ranks
        return []
    return [path for path in folder.glob("[!.]*.ckpt") if path.name != "not_finite.ckpt"]


def run_folder(cfg: Config, resumed: Path) -> Path:
    """The run folder of a folder or checkpoint: RUN, RUN/ckpt/X.ckpt, RUN/rank1/ckpt/X.ckpt, RUN/stage1/ckpt/X.ckpt."""
    if resumed.suffix != ".ckpt":
        return resumed
    folder = resumed.parents[1]
    if folder.name.startswith("rank"):
        folder = folder.parent
    return folder.parent if cfg.train.stages else folder


def resume_command(run_dir: Path) -> str:
    """This command with ``--resume``; a wrapper script leaves its own in ``MINDSEG_COMMAND``."""
    program = sys.argv[0].split() if sys.argv[0].startswith("mindseg ") else ["python", sys.argv[0]]
    words = shlex.split(os.environ.get("MINDSEG_COMMAND", "")) or [*program, *sys.argv[1:]]
    kept = [word for i, word in enumerate(words)
            if not word.startswith(("--resume", "--pretrained")) and words[i - 1] not in ("--resume", "--pretrained")]
    return shlex.join([*kept, "--resume", str(run_dir)])


@dataclass(frozen=True)
class Batches:
    """Division of the global batch: ``device`` samples a step on each device, in ``accumulation`` equal parts."""
    device: int
    accumulation: int

    @property
    def part(self) -> int:
        """Samples that a device sees at once."""
        return self.device // self.accumulation


def divide_batch(cfg: Config, size: int) -> Batches:
    """Divides ``train.global_batch`` over the devices, and over micro-batches of ``train.device_batch`` at most.

    Raises:
        UserError: It cannot be divided evenly.
    """
    t = cfg.train
    if t.global_batch % size:
        raise UserError(f"train.global_batch = {t.global_batch} cannot be divided over {size} devices; set it to a "
                        f"multiple of {size}")
    device = t.global_batch // size
    limit = min(t.device_batch or device, device)
    if limit < 1 or device % limit:
        raise UserError(f"train.device_batch = {t.device_batch} does not divide the {device} samples of a device "
                        f"(train.global_batch = {t.global_batch} over {size}); set one that does")
    return Batches(device, device // limit)


@dataclass(frozen=True)
class Start:
    """The checkpoint that a training starts from, for its weights alone or (``resumed``) to go on from its step."""
    checkpoint: Path | None = None
    resumed: bool = False


def train(cfg: Config, run_dir: Path, runtime: Runtime, start: Start, command: str = "") -> bool:
    """Trains, or continues the training that a run folder holds.

    Args:
        cfg: Resolved configuration.
        run_dir: Run folder; one with checkpoints in ``ckpt`` is continued from the last one.
        runtime: Where this process runs.
        start: Where a training without a checkpoint of its own starts.
        command: What the user types to continue the run.

    Returns:
        Whether the training came to its end; False: a signal stopped it.

    Raises:
        UserError: Something that the user can mend.
    """
    make_folder(checkpoint_folder(run_dir, runtime) if cfg.train.save_all_ranks else run_dir / "ckpt")
    with lock_run(run_dir, runtime):
        if runtime.is_main:
            clean_run(run_dir)
        setup_logging(run_dir, runtime.rank)
        return _train(cfg, run_dir, runtime, start, command)


def _train(cfg: Config, run_dir: Path, runtime: Runtime, start: Start, command: str) -> bool:
    last = start.checkpoint if start.resumed else find_checkpoint(run_dir) if runtime.is_main else None
    continued = broadcast_object(last is not None, runtime.size)      # rank 0 decides, with or without a common disk
    batches = divide_batch(cfg, runtime.size)
    train_set = create_loader(cfg, "train", runtime.rank, runtime.size, batches.device)
    per_epoch = train_set.steps_per_epoch
    check_equal(settings(cfg) | {"the number of training images": train_set.num_samples}, runtime.rank, runtime.size)
    steps = cfg.train.steps or per_epoch * cfg.train.epochs
    log.info("run folder %s", run_dir)
    log.info("%s on %s, rank %d of %d", cfg.model.name, runtime.device_target, runtime.rank, runtime.size)
    log.info("%d training images, global batch %d = %d devices x %d micro-batches x %d, %d steps an epoch, %d in all",
             train_set.num_samples, cfg.train.global_batch, runtime.size, batches.accumulation, batches.part, per_epoch,
             steps)
    settle_class_weights(cfg, last, runtime.size, runtime.is_main)
    net = build_network(cfg)
    if start.checkpoint and not continued and runtime.is_main:      # the others get rank 0's weights
        load_pretrained(net, cfg, start.checkpoint)
    if not continued:
        describe_run(cfg, run_dir, runtime)
    step = build_step(cfg, net, runtime, batches, steps, per_epoch, train_set.info.ignore_id)
    if runtime.device_target == "CPU" and runtime.size == 1 and get_mode() == "graph":
        of_all_runs = Config({**cfg, "runtime": Config({**cfg.runtime, "output_dir": "", "name": None})})
        keep_graphs(step, repr((dump_config(of_all_runs), steps, per_epoch, train_set.info.ignore_id)))
    job = Job(cfg, run_dir, runtime, create_schedule(cfg.optim, steps, per_epoch), batches.accumulation, command,
              train_set.num_samples)
    sink = cfg.train.dataset_sink_mode and runtime.device_target in SINK_PLATFORMS
    if cfg.train.dataset_sink_mode and not sink:
        log.info("train.dataset_sink_mode: MindSpore has no queue on %s, each step gets its batch from the host",
                 runtime.device_target)
    if runtime.device_target == "Ascend":
        check_dropout(net)
    with SinkLoader(train_set, steps) if sink else nullcontext(train_set) as loader:
        trainer = Trainer(job, step, loader, evaluation(cfg, net, runtime) if cfg.train.run_eval else None)
        if continued:
            trainer.restore(last if runtime.is_main else None)
            describe_run(cfg, run_dir, runtime)
        with profiled(cfg.runtime.profile, run_dir / "profile", runtime.device_target):
            progress = trainer.fit()
    if not trainer.stopped:
        log.info("finished after %d epochs, %d steps; best mIoU %s; checkpoints in %s/ckpt", progress.epoch,
                 progress.step, f"{100 * progress.best_miou:.2f} %" if progress.best_miou >= 0 else "not measured",
                 run_dir)
    return not trainer.stopped


def build_step(cfg: Config, net: nn.Cell, runtime: Runtime, batches: Batches, steps: int, steps_per_epoch: int,
               ignore_id: int) -> TrainStep:
    """Puts network, loss and optimizer together as the configuration wants them."""
    t, o = cfg.train, cfg.optim
    if t.amp_dtype == "bfloat16" and t.amp_level != "O0" and runtime.device_target == "CPU":
        raise UserError("train.amp_dtype = bfloat16 does not run on the CPU; set train.amp_dtype=float16 or "
                        "train.amp_level=O0")
    if t.frozen_bn:
        freeze_batch_norm(net)
    synchronised = not t.frozen_bn and synchronise_batch_norm(net, t.sync_bn, runtime.device_target, runtime.size,
                                                              batches.part)
    if runtime.size > 1:
        log.info("BatchNorm statistics of %s", "all devices" if synchronised else "each device, moving ones averaged")
    apply_amp(net, t.amp_level, t.amp_dtype)
    saturating = saturates(runtime.device_target)
    loss_scale, dynamic = choose_loss_scale(o.loss_scale, saturating)
    options = StepOptions(size=runtime.size, accumulation=batches.accumulation, clip_norm=o.clip_norm,
                          loss_scale=loss_scale, dynamic_scale=dynamic, drop_overflow=o.drop_overflow,
                          saturates=saturating, ema_decay=t.ema_decay,
                          average_statistics=not synchronised and not t.frozen_bn)
    normalize = Normalize(cfg.data.mean, cfg.data.std, cfg.data.value_range)
    optimizer = create_optimizer(o, net, steps, steps_per_epoch)
    loss, teacher = create_loss(cfg.loss, ignore_id), create_teacher(cfg)
    if fuse_network(net, cfg.runtime.threads or cores_of_rank(runtime.size), normalize):
        fuse_loss(net, loss, teacher is not None)
    return TrainStep(net, loss, optimizer, normalize, options, teacher)


def evaluation(cfg: Config, net: nn.Cell, runtime: Runtime) -> Callable[[Callable[[], None]], dict]:
    """The function that the trainer evaluates with."""
    loader = create_loader(cfg, "eval", runtime.rank, runtime.size)
    predictor, info = NetworkPredictor(cfg, net, loader.info), loader.info
    shown = cfg.train.tensorboard_images if cfg.train.tensorboard and runtime.is_main else 0

    def run(check: Callable[[], None]) -> dict:
        result = evaluate(predictor, loader, on_image=lambda *_: check(), num_first=shown)
        pictures = {}
        for example in result.first:
            rgb = example.image[..., ::-1] if cfg.data.color_order == "BGR" else example.image
            pictures[example.name] = side_by_side(np.ascontiguousarray(rgb), example.label, example.pred, info.palette,
                                                  PICTURE_WIDTH)
        return result.scores | {"classes": info.classes, "pictures": pictures}

    return run
