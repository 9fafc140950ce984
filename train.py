"""Trains a network: ``python train.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --set data.root=D``."""
import argparse
import os
import shlex
import sys
from pathlib import Path

from src.config import Config, dump_config, load_config
from src.engine.runlog import create_run_dir
from src.engine.training import Start, train
from src.errors import UserError, run_main
from src.runtime import Runtime, from_main, modelarts, modelarts_arguments, setup_runtime

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
    parser.add_argument("--resume", metavar="RUN_DIR|CKPT|auto",
                        help="continue a run; auto: the newest of this config, or a new one if there is none")
    parser.add_argument("--run_eval", action="store_true", help="evaluate while training")
    return parser.parse_args(modelarts_arguments(sys.argv[1:]))


def main() -> None:
    args = parse_args()
    if args.run_eval:
        args.set.append("train.run_eval=true")
    cfg = load_config(args.config, args.set)
    runtime = setup_runtime(cfg.runtime)
    resumed = find_resumed(cfg, args, runtime)
    run_dir = run_folder(cfg, resumed) if resumed else create_run_dir(cfg, args.config, runtime)
    start = Start(Path(args.pretrained)) if args.pretrained else Start()
    with modelarts(cfg, run_dir, runtime) as checkpoint:
        start = Start(checkpoint) if checkpoint else start
        for stage_cfg, folder in stages(cfg, args, run_dir, runtime):
            if cfg.runtime.modelarts:
                stage_cfg.data.root = cfg.data.root
            if resumed and folder in resumed.parents:
                start = Start(resumed, resumed=True)
            if not train(stage_cfg, folder, runtime, start, resume_command(run_dir)):
                break
            start = Start(folder / "ckpt" / "last.ckpt")


def stages(cfg: Config, args: argparse.Namespace, run_dir: Path, runtime: Runtime) -> list[tuple[Config, Path]]:
    """Configuration and folder of each training: one, or those of ``train.stages``, which ``--set`` changes too."""
    if not cfg.train.stages:
        return [(cfg, run_dir)]
    folder = Path(args.config).parent
    if runtime.is_main:
        dump_config(cfg, run_dir / "config.yaml")
    return [(load_config(folder / name, args.set), run_dir / f"stage{i}") for i, name in enumerate(cfg.train.stages, 1)]


def find_resumed(cfg: Config, args: argparse.Namespace, runtime: Runtime) -> Path | None:
    """The run folder or the checkpoint in it that ``--resume`` names; None: a new run is wanted.

    Rank 0 looks; hosts without a common disk need nothing of the run.
    """
    if args.resume is None:
        return None
    found = args.resume
    if runtime.is_main and args.resume == "auto":
        parent = Path(cfg.runtime.output_dir) / Path(args.config).stem
        found = str(max((path.parent for path in parent.glob("*/config.yaml")), default=""))
    elif runtime.is_main:
        path = Path(args.resume)
        if not path.exists() or (path.is_dir() and not (path / "config.yaml").is_file()):
            raise UserError(f"--resume {path}: not a run folder; give one that holds config.yaml and ckpt, or auto")
    found = from_main(found, runtime.size)
    return Path(found) if found else None


def run_folder(cfg: Config, resumed: Path) -> Path:
    """The run folder of a folder or checkpoint: RUN, RUN/ckpt/X.ckpt, RUN/rank1/ckpt/X.ckpt, RUN/stage1/ckpt/X.ckpt."""
    if resumed.suffix != ".ckpt":
        return resumed
    folder = resumed.parents[1]
    if folder.name.startswith("rank"):
        folder = folder.parent
    return folder.parent if cfg.train.stages else folder


def resume_command(run_dir: Path) -> str:
    """This command with ``--resume``; a wrapper script leaves its own in ``SEGMENTATION_COMMAND``."""
    words = shlex.split(os.environ.get("SEGMENTATION_COMMAND", "")) or ["python", *sys.argv]
    kept = [word for i, word in enumerate(words)
            if not word.startswith(("--resume", "--pretrained")) and words[i - 1] not in ("--resume", "--pretrained")]
    return shlex.join([*kept, "--resume", str(run_dir)])


if __name__ == "__main__":
    run_main(main)
