"""Segments pictures and videos: ``python predict.py --config C --ckpt_path X --input street.jpg --output out``."""
import argparse
from pathlib import Path

from src.config import SCHEMA_FILE, load_config
from src.engine.runlog import setup_logging
from src.errors import UserError, run_main
from src.evaluation.prediction import KINDS, Output, open_manifest, open_predictor, predict
from src.runtime import setup_runtime

EXAMPLES = """examples:
  python predict.py --config C --ckpt_path best.ckpt --input street.jpg --output out
  python predict.py --config C --ckpt_path best.ckpt --input drive.mp4 --output out --save side
  python predict.py --config C --ckpt_path best.ckpt --input 'photos/**/*.jpg' --output out --save overlay mask ids
  python predict.py --config C --ckpt_path best.ckpt --input D/leftImg8bit/test --output out --submission
  python predict.py --manifest export/deploy.yaml --file_format ONNX --input photos --output out
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Segment pictures, folders and videos.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt_path", help="checkpoint; needs --config")
    model.add_argument("--manifest", help="deploy.yaml of an exported model")
    parser.add_argument("--config", help="YAML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, repeatable")
    parser.add_argument("--mode", metavar="MODE", help="whole, slide, ms, flip, msflip or slide_msflip (eval.mode)")
    parser.add_argument("--file_format", choices=("ONNX", "MINDIR"), default="ONNX", help="which file of the manifest")
    parser.add_argument("--input", required=True, help="image, video, folder or quoted glob")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--save", nargs="*", choices=KINDS, default=["overlay"], help="what to write (overlay)")
    parser.add_argument("--alpha", type=float, default=0.55, help="opacity of the colours, 0 to 1 (%(default)s)")
    parser.add_argument("--submission", action="store_true", help="also write label-id masks under the benchmark's "
                        "names, and pack them")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.ckpt_path and not args.config:
        raise UserError("--ckpt_path needs --config, the configuration it was trained with")
    if args.manifest and (args.mode or args.set or args.config):
        raise UserError("--manifest: an exported model brings its own settings; leave --config, --set and --mode out")
    if not 0 <= args.alpha <= 1:
        raise UserError(f"--alpha {args.alpha} must be 0 to 1")
    setup_logging()
    if args.manifest:
        if args.file_format == "MINDIR":
            setup_runtime(load_config(SCHEMA_FILE).runtime)     # the defaults, and DEVICE_TARGET and DEVICE_ID
        model = open_manifest(args.manifest, args.file_format)
    else:
        cfg = load_config(args.config, args.set + ([f"eval.mode={args.mode}"] if args.mode else []))
        setup_runtime(cfg.runtime)
        model = open_predictor(cfg, args.ckpt_path)
    output = Output(Path(args.output), tuple(dict.fromkeys(args.save)), args.alpha, args.submission)
    try:
        return predict(model, args.input, output)
    except OSError as error:
        raise UserError(f"{args.output}: cannot write there ({error.strerror}); choose another --output") from None


if __name__ == "__main__":
    run_main(main)
