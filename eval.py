"""Scores a checkpoint or an exported model: ``python eval.py --config C --ckpt_path best.ckpt --set data.root=D``."""
import argparse
import sys
from pathlib import Path

from src.config import Config, load_config
from src.engine.runlog import setup_logging
from src.errors import UserError, run_main
from src.evaluation.protocol import protocol_overrides
from src.evaluation.scoring import Request, score
from src.runtime import modelarts, modelarts_arguments, setup_runtime

EXAMPLES = """examples:
  python eval.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --ckpt_path best.ckpt --set data.root=D
  python eval.py --config C --ckpt_path RUN/ckpt                          every checkpoint of a run, best first
  python eval.py --config C --ckpt_path best.ckpt --mode msflip --report
  python eval.py --config C --ckpt_path best.ckpt --save_masks labelIds   and a zip for the benchmark server
  python eval.py --config C --ckpt_path best.ckpt --protocol bisenetv2_paper
  python eval.py --config C --manifest export/deploy.yaml --file_format ONNX --output eval_onnx
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score a checkpoint or an exported model.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, repeatable")
    # ModelArts brings the checkpoint itself.
    fetched = any(word.startswith("--checkpoint_url") for word in sys.argv)
    model = parser.add_mutually_exclusive_group(required=not fetched)
    model.add_argument("--ckpt_path", help="checkpoint, or a folder of checkpoints, or a run folder")
    model.add_argument("--manifest", help="deploy.yaml of an exported model")
    parser.add_argument("--file_format", choices=("ONNX", "MINDIR"), default="ONNX", help="which file of the manifest")
    parser.add_argument("--mode", metavar="MODE", help="whole, slide, ms, flip, msflip or slide_msflip (eval.mode)")
    parser.add_argument("--protocol", metavar="NAME", help="how a paper or an older recipe evaluates: a file of "
                        "configs/protocols, or a path")
    parser.add_argument("--output", help="folder for the results (default: the checkpoint's run folder)")
    parser.add_argument("--save_masks", choices=("color", "labelIds"), help="write predictions as PNG, labelIds also "
                        "packed for the benchmark server")
    parser.add_argument("--csv", action="store_true", help="also write images.csv, the IoU of every image")
    parser.add_argument("--report", action="store_true", help="also write report.html, one page that needs no network")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=EVAL_JSON", help="with --report: the "
                        "same model's result in another program, to show beside; repeatable")
    return parser.parse_args(modelarts_arguments(sys.argv[1:]))


def main() -> None:
    args = parse_args()
    overrides = protocol_overrides(args.protocol) if args.protocol else []
    overrides += args.set + ([f"eval.mode={args.mode}"] if args.mode else [])
    cfg = load_config(args.config, overrides)
    runtime = setup_runtime(cfg.runtime)
    setup_logging(rank=runtime.rank)
    output = output_folder(args, cfg)
    with modelarts(cfg, output, runtime) as checkpoint:
        request = Request(args.config, output, str(checkpoint) if checkpoint else args.ckpt_path, args.manifest,
                          args.file_format, args.save_masks, args.csv, args.report, tuple(args.beside))
        try:
            score(cfg, runtime, request)
        except OSError as error:
            raise UserError(f"{output}: cannot write there ({error.strerror}); choose another --output") from None


def output_folder(args: argparse.Namespace, cfg: Config) -> Path:
    """``--output``, or the run folder of the checkpoint, or the folder of the manifest.

    A checkpoint that ModelArts brings has neither: ``<runtime.output_dir>/<config name>/eval``.
    """
    if args.output:
        return Path(args.output)
    if not (args.ckpt_path or args.manifest):
        return Path(cfg.runtime.output_dir) / Path(args.config).stem / "eval"
    path = Path(args.ckpt_path or args.manifest).resolve()
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == "ckpt" else folder


if __name__ == "__main__":
    run_main(main)
