"""Trains and scores networks with the numbers of Ascend chips, emulated on the CPU, beside float32.

Without arguments the quick start's training (configs/fast_scnn/fast_scnn_synthetic.yaml, 160 + 40 synthetic streets)
runs three times: in float32, with the float16 of the first Ascend 910 and a dynamic loss scale, and with the HF32 of
Atlas A2. That takes about 20 minutes on two cores. With --model a checkpoint is scored three times instead. No figure
is one of a device.
"""
import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path

from support.chip_numbers import KINDS
from support.chip_runs import quickstart_streets, score_checkpoint, train_network

from mindseg.config import load_config
from mindseg.errors import run_main

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  python benchmarks/chip_numbers.py --output runs/chip_numbers        a run that was ended goes on
  python benchmarks/chip_numbers.py --model configs/enet/enet_synthetic.yaml best.ckpt data/streets"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=("float32", *KINDS), default=["float32", *KINDS])
    parser.add_argument("--config", default=str(ROOT / "configs" / "fast_scnn" / "fast_scnn_synthetic.yaml"),
                        help="configuration to train (the quick start's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of it")
    parser.add_argument("--output", help="keep streets and runs in this folder")
    parser.add_argument("--model", nargs=3, action="append", metavar=("CONFIG", "CHECKPOINT", "ROOT"),
                        help="score this checkpoint on the validation split of a data set instead")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.model:
        for config, checkpoint, root in args.model:
            cfg = load_config(config, [*args.set, f"data.root={root}"])
            report(Path(config).stem, {kind: score_checkpoint(kind, cfg, checkpoint) for kind in args.kinds})
        return
    with (nullcontext(args.output) if args.output else tempfile.TemporaryDirectory()) as name:
        folder = Path(name).resolve()
        words = [*args.set, f"data.root={quickstart_streets(folder / 'streets')}"]
        report(Path(args.config).stem, {kind: train_network(kind, args.config, words, folder / kind)
                                        for kind in args.kinds})


def report(name: str, scores: dict[str, float]) -> None:
    """Prints mIoU by kind, and the difference from the first one."""
    first = next(iter(scores.values()))
    for kind, miou in scores.items():
        print(f"{name}, {kind}: mIoU {100 * miou:.2f} %, {100 * (miou - first):+.2f} points", flush=True)


if __name__ == "__main__":
    run_main(main)
