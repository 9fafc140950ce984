#!/usr/bin/env python3
"""Makes a synthetic data set in the folder layout and encoding of Cityscapes or Pascal VOC 2012.

Cityscapes: OUTPUT/leftImg8bit and OUTPUT/gtFine. VOC: OUTPUT/JPEGImages, SegmentationClass, SegmentationObject and
ImageSets/Segmentation, so OUTPUT corresponds to VOCdevkit/VOC2012.
"""
import argparse
import json
import multiprocessing
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import cv2
from synthetic import VERSION, check_size, write_street, write_voc, write_voc_lists
from tqdm import tqdm

from mindseg.errors import DataError, UserError, run_main
from mindseg.files import write_json

MARKER = "synthetic.json"  # names a folder as made by this tool, and how; only such a folder is ever overwritten
OWN_NAMES = {MARKER, "leftImg8bit", "gtFine", "JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets"}
EPILOG = """\
example:
  python tools/make_synthetic.py --dataset cityscapes --output data/streets --num 96 --num_val 32
  python tools/make_synthetic.py --dataset voc --output data/voc --num 70 --num_val 21
"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("cityscapes", "voc"), default="cityscapes", help="layout to imitate")
    parser.add_argument("--output", type=Path, required=True, help="root folder of the data set")
    parser.add_argument("--num", type=int, default=64, help="training images (%(default)s)")
    parser.add_argument("--num_val", type=int, help="validation images (a quarter of --num, at least 8)")
    parser.add_argument("--num_test", type=int, default=4, help="test images, without real annotation (%(default)s)")
    parser.add_argument("--height", type=int, help="rows (512; voc 375)")
    parser.add_argument("--width", type=int, help="columns (1024; voc 500)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes (0 = one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set this tool made before")
    parser.add_argument("--keep", action="store_true", help="as --overwrite, but keep a data set of the same settings")
    return parser.parse_args()


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses to touch anything that this tool did not make."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file: name a folder")
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise UserError(f"--output {output} is not empty: choose another folder or add --overwrite")
        if not (output / MARKER).is_file():
            raise UserError(f"--output {output} has no {MARKER}, so this tool did not make it: choose another folder")
        foreign = sorted(path.name for path in output.iterdir() if path.name not in OWN_NAMES)
        if foreign:
            raise UserError(f"--output {output} holds {foreign[0]}, which this tool did not make: move it away")


def make_one(job: tuple[str, int], dataset: str, root: Path, seed: int, size: tuple[int, int]) -> None:
    """Writes one picture; runs in a worker."""
    (write_voc if dataset == "voc" else write_street)(root, seed, *job, *size)


def start_worker() -> None:
    """Uses one thread per process, because the processes already fill the cores; leaves Ctrl-C to the parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_all(root: Path, args: argparse.Namespace, counts: dict[str, int]) -> None:
    """Writes every picture below ``root``, and last the settings."""
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    work = partial(make_one, dataset=args.dataset, root=root, seed=args.seed, size=(args.height, args.width))
    workers = min(args.workers or len(os.sched_getaffinity(0)), len(jobs))
    with multiprocessing.get_context("spawn").Pool(workers, start_worker) as pool:
        for _ in tqdm(pool.imap_unordered(work, jobs), total=len(jobs), unit="image", desc=args.output.name):
            pass
    if args.dataset == "voc":
        write_voc_lists(root, counts)
    write_json(root / MARKER, settings(args, counts))


def settings(args: argparse.Namespace, counts: dict[str, int]) -> dict:
    """Everything that the pictures depend on."""
    return {"version": VERSION, "dataset": args.dataset, "seed": args.seed, "height": args.height,
            "width": args.width, **counts}


def read_settings(output: Path) -> dict:
    """The settings of the data set in a folder; empty if there is none."""
    try:
        return json.loads((output / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def main() -> None:
    """Makes the data set in a temporary folder beside the output and renames it when complete."""
    args = parse_args()
    counts = {"train": args.num, "val": max(8, args.num // 4) if args.num_val is None else args.num_val,
              "test": args.num_test}
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise UserError(f"--num, --num_val and --num_test must be >= 0 and not all 0, not {tuple(counts.values())}")
    if args.seed < 0:
        raise UserError(f"--seed must be >= 0, not {args.seed}")
    height, width = (375, 500) if args.dataset == "voc" else (512, 1024)
    args.height, args.width = args.height or height, args.width or width
    check_size(args.height, args.width)
    output = args.output = args.output.resolve()
    if args.keep and read_settings(output) == settings(args, counts):
        print(f"{output}: kept, it has these settings already")
        return
    check_output(output, args.overwrite or args.keep)
    part, old = (output.with_name(f".{output.name}.{word}-{os.getpid()}") for word in ("part", "old"))
    try:
        part.mkdir(parents=True)
        make_all(part, args, counts)
        if output.exists():
            os.replace(output, old)
        os.replace(part, output)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error}; check free space and permissions") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{output}: " + ", ".join(f"{count} {split}" for split, count in counts.items()) + " images")


if __name__ == "__main__":
    run_main(main)
