"""Comparison of runs on one self-contained page."""
import argparse
import re
from pathlib import Path

from mindseg.outputs import check_new
from mindseg.report.comparison import average, read_run, write_comparison

EPILOG = """\
examples:
  mindseg compare outputs/fast_scnn_camvid/20250101-120000 outputs/bisenetv2_camvid/20250102-090000
  mindseg compare --average outputs/fast_scnn_camvid/*-seed? outputs/enet_camvid/*-seed?
"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path,
                        help="run folder with metrics.csv, or folder with eval.json; the first one is the reference")
    parser.add_argument("--average", action="store_true",
                        help="show runs that differ only in seed, lists of samples and names as their mean")
    parser.add_argument("--output", type=Path, default=Path("compare.html"), help="page to write (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser.parse_args()


def name_runs(folders: list[Path]) -> list[str]:
    """Names runs by ``runtime.name``, folder or its parent, what is no time and tells them apart; else by the path."""
    paths = [folder.resolve() for folder in folders]
    choices = ([re.sub(r"^\d{8}-\d{6}-", "", path.name) for path in paths], [path.parent.name for path in paths],
               ["/".join(path.parts[-2:]) for path in paths])
    return next((names for names in choices if len(set(names)) == len(names)
                 and not any(name.replace("-", "").isdigit() for name in names)), [str(path) for path in paths])


def main() -> None:
    """Reads the runs and writes the page."""
    args = parse_args()
    runs = [read_run(folder, name) for folder, name in zip(args.runs, name_runs(args.runs), strict=True)]
    if args.average:
        runs = average(runs)
    check_new(args.output, args.overwrite)
    print(write_comparison(args.output, runs))
