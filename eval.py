"""Scores a checkpoint: ``python eval.py --config C --ckpt_path best.ckpt --set data.root=D``."""
import argparse
from collections.abc import Callable
from pathlib import Path

from src.config import Config, load_config
from src.data.datasets import DatasetInfo, dataset_info
from src.data.loader import create_dataset
from src.engine.checkpoint import load_network
from src.engine.evaluator import Result, evaluate
from src.engine.inference import Segmenter
from src.engine.runlog import log, setup_logging, write_json
from src.errors import UserError, run_main
from src.metrics import format_table
from src.runtime import setup_runtime

EXAMPLES = """examples:
  python eval.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --ckpt_path best.ckpt --set data.root=D
  python eval.py --config C --manifest export/deploy.yaml --file_format ONNX --output eval_onnx
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score a checkpoint or an exported model.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, repeatable")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt_path", help="checkpoint")
    model.add_argument("--manifest", help="deploy.yaml of an exported model")
    parser.add_argument("--file_format", choices=("ONNX", "MINDIR"), default="ONNX", help="which file of the manifest")
    parser.add_argument("--output", help="folder for eval.json (default: the checkpoint's run folder)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.set)
    runtime = setup_runtime(cfg.runtime)
    output = output_folder(args)
    output.mkdir(parents=True, exist_ok=True)
    setup_logging(rank=runtime.rank)
    info = dataset_info(cfg.data)
    segment = open_model(cfg, info, args)
    loader = create_dataset(cfg, "eval", runtime.rank, runtime.size)
    result = evaluate(segment, loader, info, 0)
    if runtime.is_main:
        log.info("%d images\n%s", result.scores["images"], format_table(result.scores, info.classes))
        save(result, info, args, output)


def output_folder(args: argparse.Namespace) -> Path:
    """``--output``, or the run folder of the checkpoint, or the folder of the manifest."""
    if args.output:
        return Path(args.output)
    folder = Path(args.ckpt_path or args.manifest).resolve().parent
    return folder.parent if folder.name == "ckpt" else folder


def open_model(cfg: Config, info: DatasetInfo, args: argparse.Namespace) -> Callable:
    """``segment(image, (height, width)) -> uint8 ids`` of the checkpoint or the exported model."""
    if args.manifest:
        from src.deploy.session import open_session  # exported models need onnxruntime, checkpoints do not

        return open_session(Path(args.manifest), args.file_format.lower())
    return Segmenter(cfg, load_network(cfg, args.ckpt_path), len(info.classes))


def save(result: Result, info: DatasetInfo, args: argparse.Namespace, output: Path) -> None:
    """Writes ``eval.json``."""
    record = {"checkpoint": args.ckpt_path or args.manifest, "config": args.config, "mode": "whole",
              "classes": list(info.classes), **result.scores}
    try:
        write_json(output / "eval.json", record)
    except OSError as error:
        raise UserError(f"{output}: cannot write there ({error.strerror}); choose another --output") from None
    log.info("results in %s", output)


if __name__ == "__main__":
    run_main(main)
