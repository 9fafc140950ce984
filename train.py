"""Trains a network: ``python train.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --set data.root=D``."""
import argparse
from pathlib import Path

from src.config import Config, load_config
from src.data.loader import create_dataset
from src.engine.checkpoint import build_network
from src.engine.evaluator import evaluate
from src.engine.inference import Segmenter
from src.engine.runlog import create_run_dir, log, setup_logging
from src.engine.train_step import Normalize, StepOptions, TrainStep
from src.engine.trainer import Trainer, load_pretrained
from src.errors import UserError, run_main
from src.losses import create_loss
from src.optim import create_optimizer
from src.runtime import Runtime, setup_runtime
from src.schedules import create_schedule

EXAMPLES = """examples:
  python train.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --set data.root=/data/cityscapes --run_eval
  python train.py --config C --set train.epochs=10 --set optim.lr=0.01 --pretrained last.ckpt
  python train.py --config C --resume outputs/fast_scnn_cityscapes/20260101-120000
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a segmentation network.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, repeatable")
    parser.add_argument("--pretrained", metavar="CKPT", help="start from these weights")
    parser.add_argument("--resume", metavar="RUN_DIR|auto", help="continue a run; auto: the newest of this config")
    parser.add_argument("--run_eval", action="store_true", help="evaluate while training")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.run_eval:
        args.set.append("train.run_eval=true")
    cfg = load_config(args.config, args.set)
    runtime = setup_runtime(cfg.runtime)
    resume_dir = find_resume_dir(cfg, args) if args.resume else None
    batch = batch_per_device(cfg, runtime)
    train_set = create_dataset(cfg, "train", runtime.rank, runtime.size, batch)
    eval_set = create_dataset(cfg, "eval", runtime.rank, runtime.size) if cfg.train.run_eval else None

    run_dir = resume_dir or create_run_dir(cfg, args.config, runtime)
    setup_logging(run_dir, runtime.rank)
    steps_per_epoch = train_set.steps_per_epoch
    steps = steps_per_epoch * cfg.train.epochs
    log.info("run folder %s", run_dir)
    log.info("%s on %s, rank %d of %d", cfg.model.name, runtime.device_target, runtime.rank, runtime.size)
    log.info("%d training images, global batch %d = %d devices x %d, %d steps an epoch, %d steps in all",
             train_set.num_samples, cfg.train.global_batch, runtime.size, batch, steps_per_epoch, steps)

    net = build_network(cfg)
    if args.pretrained:
        load_pretrained(net, args.pretrained)
    loss = create_loss(cfg.loss, train_set.info.ignore_id)
    optimizer = create_optimizer(cfg.optim, net, steps, steps_per_epoch)
    normalize = Normalize(cfg.data.mean, cfg.data.std, cfg.data.value_range)
    options = StepOptions(size=runtime.size, clip_norm=cfg.optim.clip_norm, share_statistics=True)
    step = TrainStep(net, loss, optimizer, normalize, options)
    segment = Segmenter(cfg, net, len(train_set.info.classes))
    run_eval = (lambda: evaluate(segment, eval_set, eval_set.info).scores) if eval_set else None
    rates = create_schedule(cfg.optim, steps, steps_per_epoch)
    trainer = Trainer(cfg, step, train_set, rates, run_dir, runtime, run_eval)
    if resume_dir:
        trainer.restore(resume_dir / "ckpt" / "last.ckpt")
    progress = trainer.fit()
    log.info("finished after %d epochs; best mIoU %s; checkpoints in %s/ckpt", progress.epoch,
             f"{100 * progress.best_miou:.2f} %" if progress.best_miou >= 0 else "not measured", run_dir)


def batch_per_device(cfg: Config, runtime: Runtime) -> int:
    """The global batch divided over the devices."""
    if cfg.train.global_batch % runtime.size:
        raise UserError(f"train.global_batch = {cfg.train.global_batch} cannot be divided over {runtime.size} devices; "
                        f"set it to a multiple of {runtime.size}")
    return cfg.train.global_batch // runtime.size


def find_resume_dir(cfg: Config, args: argparse.Namespace) -> Path:
    """The run folder that ``--resume`` names."""
    parent = Path(cfg.runtime.output_dir) / Path(args.config).stem
    if args.resume != "auto":
        found = [Path(args.resume)]
    else:
        found = sorted(path.parent.parent for path in parent.glob("*/ckpt/last.ckpt"))
    if not found or not (found[-1] / "ckpt" / "last.ckpt").is_file():
        raise UserError(f"--resume {args.resume}: no ckpt/last.ckpt found in {found[-1] if found else parent}")
    return found[-1]


if __name__ == "__main__":
    run_main(main)
