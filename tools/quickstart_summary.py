#!/usr/bin/env python3
"""Collects what the quick start measured into one summary.json and prints it."""
import argparse
import json
from pathlib import Path

from mindseg.errors import UserError, run_main
from mindseg.files import write_json

EXAMPLES = """example:
  python tools/quickstart_summary.py --output outputs/quickstart --train_seconds 300
"""


def read_number(path: Path, key: str) -> float:
    """One number of a JSON file."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no number '{key}' in it; run bash scripts/quickstart.sh again") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the quick start")
    parser.add_argument("--train_seconds", type=int, required=True, help="time that training took")
    args = parser.parse_args()
    out = args.output
    summary = {
        "train_seconds": args.train_seconds,
        "eval_miou": read_number(out / "eval.json", "miou"),
        "onnx_miou": read_number(out / "eval_onnx" / "eval.json", "miou"),
        "mindir_miou": read_number(out / "eval_mindir" / "eval.json", "miou"),
        "runner_miou": read_number(out / "runner" / "eval.json", "miou"),
        "runner_fps": read_number(out / "runner" / "result_Files" / "summary.json", "images_per_second"),
        "report": str(out / "report.html"),
    }
    write_json(out / "summary.json", summary)
    print(json.dumps(summary, indent=2))
    print(f"open {out / 'report.html'} in a browser")


if __name__ == "__main__":
    run_main(main)
