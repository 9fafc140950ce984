"""One training from its configuration: builds every part and runs it. ``train.py`` is the command over it."""
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mindspore import nn

from src.config import Config
from src.data.loader import create_dataset
from src.data.sink import PLATFORMS as SINK_PLATFORMS
from src.data.sink import sinking
from src.engine.checkpoint import build_network, periodic_checkpoints
from src.engine.precision import apply_amp, freeze_batch_norm, synchronise_batch_norm
from src.engine.pretrained import load_pretrained
from src.engine.runlog import describe_run, log, make_folder, setup_logging
from src.engine.train_step import Normalize, StepOptions, TrainStep
from src.engine.trainer import Job, Trainer, checkpoint_folder
from src.errors import UserError
from src.evaluation.evaluator import evaluate
from src.evaluation.inference import Segmenter
from src.losses import create_loss
from src.optim import create_optimizer
from src.runtime import Runtime, from_main, profiled
from src.schedules import create_schedule


@dataclass(frozen=True)
class Batches:
    """How the global batch is divided: ``device`` samples a step on each device, in ``accumulation`` equal parts."""
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
    setup_logging(run_dir, runtime.rank)
    last = start.checkpoint if start.resumed else find_checkpoint(run_dir)
    continued = from_main(last is not None, runtime.size)       # what rank 0 has counts, with or without a common disk
    if not continued:
        describe_run(cfg, run_dir, runtime)
    batches = divide_batch(cfg, runtime.size)
    train_set = create_dataset(cfg, "train", runtime.rank, runtime.size, batches.device)
    per_epoch = train_set.steps_per_epoch
    steps = cfg.train.steps or per_epoch * cfg.train.epochs
    log.info("run folder %s", run_dir)
    log.info("%s on %s, rank %d of %d", cfg.model.name, runtime.device_target, runtime.rank, runtime.size)
    log.info("%d training images, global batch %d = %d devices x %d micro-batches x %d, %d steps an epoch, %d in all",
             train_set.num_samples, cfg.train.global_batch, runtime.size, batches.accumulation, batches.part, per_epoch,
             steps)
    net = build_network(cfg)
    if start.checkpoint and not continued and runtime.is_main:      # the others get rank 0's weights
        load_pretrained(net, cfg, start.checkpoint)
    step = build_step(cfg, net, runtime, batches, steps, per_epoch, train_set.info.ignore_id)
    job = Job(cfg, run_dir, runtime, create_schedule(cfg.optim, steps, per_epoch), batches.accumulation, command)
    sink = cfg.train.dataset_sink_mode and runtime.device_target in SINK_PLATFORMS
    if cfg.train.dataset_sink_mode and not sink:
        log.info("train.dataset_sink_mode: MindSpore has no queue on %s, each step gets its batch from the host",
                 runtime.device_target)
    with sinking(train_set, steps) if sink else nullcontext(train_set) as loader:
        trainer = Trainer(job, step, loader, evaluation(cfg, net, runtime) if cfg.train.run_eval else None)
        if continued:
            trainer.restore(last)
            describe_run(cfg, run_dir, runtime)
        with profiled(cfg.runtime.profile, run_dir / "profile", runtime.device_target):
            progress = trainer.fit()
    if not trainer.stopped:
        log.info("finished after %d epochs, %d steps; best mIoU %s; checkpoints in %s/ckpt", progress.epoch,
                 progress.step, f"{100 * progress.best_miou:.2f} %" if progress.best_miou >= 0 else "not measured",
                 run_dir)
    return not trainer.stopped


def find_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint to continue a run from: ``last.ckpt``, or the newest ``step<N>.ckpt`` if that was removed."""
    last = run_dir / "ckpt" / "last.ckpt"
    return last if last.is_file() else next(iter(periodic_checkpoints(run_dir / "ckpt")), None)


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
    dynamic = o.loss_scale == "dynamic"
    options = StepOptions(size=runtime.size, accumulation=batches.accumulation, clip_norm=o.clip_norm,
                          loss_scale=2.0**16 if dynamic else float(o.loss_scale), dynamic_scale=dynamic,
                          drop_overflow=o.drop_overflow, ema_decay=t.ema_decay,
                          share_statistics=not synchronised and not t.frozen_bn)
    normalize = Normalize(cfg.data.mean, cfg.data.std, cfg.data.value_range)
    optimizer = create_optimizer(o, net, steps, steps_per_epoch)
    return TrainStep(net, create_loss(cfg.loss, ignore_id), optimizer, normalize, options)


def evaluation(cfg: Config, net: nn.Cell, runtime: Runtime) -> Callable[[Callable[[], None]], dict]:
    """The function that the trainer evaluates with."""
    loader = create_dataset(cfg, "eval", runtime.rank, runtime.size)
    segment = Segmenter(cfg, net, len(loader.info.classes))

    def run(check: Callable[[], None]) -> dict:
        return evaluate(segment, loader, loader.info, on_image=lambda *_: check()).scores

    return run
