"""Walks the way of a new user for each annotation tool: from a folder of photographs with labels to a C++ run.

The photographs are frames of a labelled data set. Their label maps are written as files of LabelMe, COCO and CVAT and
as colour masks, and each set goes through the same six commands: import-labels, train from the shipped weights, eval
with its report, export, the build of the C++ runner, and the runner on the photographs. Prints the commands, their
times, how many pixels of the imported labels are as in the data set and as the tool itself draws its shapes, and the
mIoU. Polygons of "CVAT for images 1.1" are imported only.
"""
import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from support import annotation_files as tools
from support.streets import make_streets

from mindseg.config import load_config
from mindseg.data.datasets import dataset_info, list_samples
from mindseg.data.decode import decode_label
from mindseg.data.sources import FolderSource, choose_lut, read_samples
from mindseg.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "ascend310_infer" / "out" / "segment"
WEIGHTS = sorted((ROOT / "weights").glob("fast_scnn_camvid-*.ckpt"))
EXAMPLES = """examples:
  python benchmarks/own_labels_walk.py
  python benchmarks/own_labels_walk.py --config fast_scnn_camvid --root data/camvid --epochs 20 --work walk"""


@dataclass(frozen=True)
class Tool:
    """An annotation tool.

    Attributes:
        title: Heading of its column.
        place: File or folder of its labels.
        write: Writes the labels there.
        words: Further options of import-labels.
        draw: Label maps by the tool's own rule, from the place and the classes; ``None`` for masks.
    """
    title: str
    place: str
    write: Callable[[tools.Photographs, Path], None]
    words: tuple[str, ...] = ("--ignore", "background")
    draw: Callable[[Path, Sequence[str]], Mapping[str, np.ndarray]] | None = None


TOOLS = {
    "labelme": Tool("LabelMe", "photos", tools.write_labelme, draw=tools.draw_labelme),
    "coco": Tool("COCO", "instances.json", tools.write_coco, draw=tools.draw_coco),
    "cvat": Tool("CVAT masks", "cvat", tools.write_cvat_masks),
    "masks": Tool("colour masks", "masks", tools.write_masks,
                  ("--colors", "masks/colors.txt", "--ignore", "unlabelled")),
}
CVAT_IMAGES = Tool("CVAT for images", "annotations.xml", tools.write_cvat_images, draw=tools.draw_cvat_images)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fast_scnn_synthetic", help="configuration that describes the data set "
                        "(%(default)s)")
    parser.add_argument("--root", type=Path, help="folder of the data set (default: synthetic streets, made anew)")
    parser.add_argument("--split", default="val", help="split to take photographs from (%(default)s)")
    parser.add_argument("--count", type=int, default=40, help="photographs, evenly from the split (%(default)s)")
    parser.add_argument("--formats", nargs="+", choices=TOOLS, default=list(TOOLS), help="(default: all)")
    parser.add_argument("--tolerance", type=float, default=1, help="pixels that a polygon may be away from the region "
                        "it stands for; 0: none (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of each training (%(default)s)")
    parser.add_argument("--work", type=Path, help="new folder to work in, which is kept (default: a temporary one)")
    return parser.parse_args()


def read_photographs(args: argparse.Namespace, folder: Path) -> tools.Photographs:
    """Takes photographs from the data set, with the classes that occur on them in the order of their names.

    Args:
        args: Command line.
        folder: New folder for their copies.
    """
    root = args.root or folder.with_name("streets")
    if args.root is None:
        make_streets(root, args.split, args.count, 0, 360, 480)
    cfg = load_config(args.config, [f"data.root={root}"])
    source, info = FolderSource(list_samples(cfg.data, args.split)), dataset_info(cfg.data)
    if not 4 <= args.count <= len(source):
        raise UserError(f"--count {args.count}: give 4 to {len(source)}, the images of the split {args.split}")
    lut = choose_lut(info, source, cfg.data.label_file)
    chosen = np.linspace(0, len(source) - 1, args.count).round().astype(int).tolist()
    folder.mkdir()
    files, labels = {}, {}
    for i, (name, _, label) in zip(chosen, read_samples(source, chosen), strict=True):
        files[name] = Path(shutil.copy(source.samples[i].image, folder / f"{name}{source.samples[i].image.suffix}"))
        labels[name] = decode_label(label, name, lut)
    found = sorted({int(value) for label in labels.values() for value in np.unique(label)} - {tools.UNLABELLED},
                   key=lambda value: info.classes[value])
    order = np.full(256, tools.UNLABELLED, np.uint8)
    order[found] = np.arange(len(found))
    return tools.Photographs(files, {name: cv2.LUT(label, order) for name, label in labels.items()},
                             [info.classes[value] for value in found], [info.palette[value] for value in found],
                             args.tolerance)


class Walk:
    """The commands of one user, in a folder of their own.

    Args:
        tool: The user's annotation tool.
        photographs: Photographs with labels.
        folder: New folder; gets the photographs and the tool's files.
    """

    def __init__(self, tool: Tool, photographs: tools.Photographs, folder: Path) -> None:
        self.tool, self.photographs, self.folder = tool, photographs, folder
        self.seconds: dict[str, float] = {}
        shutil.copytree(next(iter(photographs.files.values())).parent, folder / "photos")
        tool.write(photographs, folder / tool.place)
        print(f"\n## {tool.title}\n", flush=True)

    def run(self, step: str, *command: object) -> None:
        """Runs a command, shows it as it is typed, and takes its time.

        Raises:
            UserError: It failed.
        """
        words = [str(word) for word in command]
        print("    " + shlex.join(words).replace(f"{ROOT}/", ""), flush=True)
        if words[0] == "mindseg":
            words[:1] = [sys.executable, "-m", "mindseg"]
        # The cap that mindseg sets is against a fault of MindSpore's oneDNN; a user's shell has none.
        env = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
        started = time.perf_counter()
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, env=env, check=False)
        self.seconds[step] = time.perf_counter() - started
        if done.returncode:
            raise UserError(f"{step} failed with status {done.returncode}: {(done.stderr or done.stdout)[-1000:]}")

    def import_labels(self) -> None:
        """Imports the labels, and checks that the configuration has the classes in their order."""
        self.run("import-labels", "mindseg", "import-labels", "--input", self.tool.place, "--images", "photos",
                 *self.tool.words, "--output", "mine")
        tree = yaml.safe_load((self.folder / "mine" / "mine.yaml").read_text(encoding="utf-8"))
        if tree["data"]["class_names"] != list(self.photographs.classes):
            raise UserError(f"{self.tool.title}: imported the classes {tree['data']['class_names']}, not "
                            f"{self.photographs.classes}")

    def train_and_deploy(self, epochs: int) -> None:
        """Trains, evaluates, exports, builds the runner, and runs it."""
        config = ("--config", "mine/mine.yaml")
        self.run("train", "mindseg", "train", *config, "--pretrained", WEIGHTS[0], "--set", f"train.epochs={epochs}")
        checkpoint = next(self.folder.glob("outputs/mine/*/ckpt/best.ckpt")).relative_to(self.folder)
        self.run("eval --report", "mindseg", "eval", *config, "--ckpt_path", checkpoint, "--report")
        self.run("export", "mindseg", "export", *config, "--ckpt_path", checkpoint, "--output", "export")
        self.run("build.sh", "bash", ROOT / "ascend310_infer" / "build.sh")
        self.run("segment run", RUNNER, "run", "--backend", "openvino", "--manifest", "export/deploy.yaml",
                 "--input", "photos", "--output", "result")

    def imported(self, split: str) -> dict[str, np.ndarray]:
        """Imported label maps of a split by name."""
        lines = (self.folder / "mine" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        pairs = [line.split(",") for line in lines]
        return {Path(image).stem: read_grey(self.folder / "mine" / label) for image, label in pairs}

    def shares(self) -> dict[str, str]:
        """Shares of the imported pixels that are as in the data set, and as drawn by the tool's own rule."""
        found = self.imported("train") | self.imported("val")
        rows = {"labels as in the data set": equal_share(found, self.photographs.labels)}
        if self.tool.draw:
            drawn = self.tool.draw(self.folder / self.tool.place, self.photographs.classes)
            rows["labels as the tool draws them"] = equal_share(found, drawn)
        return rows

    def scores(self) -> dict[str, str]:
        """mIoU of eval, and of the runner's masks, over the validation photographs."""
        result = next(self.folder.glob("outputs/mine/*/eval.json"))
        labels = self.imported("val")
        masks = {name: read_grey(self.folder / "result" / f"{name}.png") for name in labels}
        count, truth = len(self.photographs.classes), self.photographs.labels
        return {"mIoU, eval": f"{100 * json.loads(result.read_text(encoding='utf-8'))['miou']:.2f} %",
                "mIoU, C++ runner": f"{100 * mean_iou(masks, labels, count):.2f} %",
                "mIoU, C++ runner, by the data set's labels": f"{100 * mean_iou(masks, truth, count):.2f} %"}


def read_grey(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def equal_share(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> str:
    """Share of equal pixels; "all" says that not one differs.

    Raises:
        UserError: The label maps are of different photographs.
    """
    if found.keys() != expected.keys():
        raise UserError(f"{len(found)} label maps were imported, but {len(expected)} photographs have labels")
    differ = sum(int((found[name] != expected[name]).sum()) for name in expected)
    total = sum(label.size for label in expected.values())
    return f"{100 * (1 - differ / total):.3f} %" if differ else "all"


def mean_iou(masks: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], count: int) -> float:
    """Mean IoU over the classes that occur in masks or labels, 0 to 1; unlabelled pixels do not count."""
    pairs = np.zeros((count, count), np.int64)
    for name, mask in masks.items():
        valid = labels[name] != tools.UNLABELLED
        np.add.at(pairs, (labels[name][valid], mask[valid]), 1)
    unions = pairs.sum(0) + pairs.sum(1) - np.diag(pairs)
    return float(np.mean(np.diag(pairs)[unions > 0] / unions[unions > 0]))


def print_table(columns: Mapping[str, Mapping[str, str]]) -> None:
    """Prints a Markdown table of rows by title, in the order of the first column."""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {row} | {' | '.join(column.get(row, '') for column in columns.values())} |")


def walk(args: argparse.Namespace, folder: Path) -> None:
    """Goes all ways, and prints the table."""
    photographs = read_photographs(args, folder / "photographs")
    height, width = next(iter(photographs.labels.values())).shape
    print(f"{args.count} photographs of {width}x{height}, {len(photographs.classes)} classes, polygons within "
          f"{args.tolerance:g} pixels, {args.epochs} epochs, {len(os.sched_getaffinity(0))} cores")
    columns = {}
    for name in args.formats:
        way = Walk(TOOLS[name], photographs, folder / name)
        way.import_labels()
        way.train_and_deploy(args.epochs)
        times = {f"{i}. {step}": f"{seconds:.1f} s" for i, (step, seconds) in enumerate(way.seconds.items(), 1)}
        total = f"{sum(way.seconds.values()):.1f} s"
        columns[way.tool.title] = times | {"all six commands": total} | way.shares() | way.scores()
    print_table(columns)
    way = Walk(CVAT_IMAGES, photographs, folder / "cvat_images")
    way.import_labels()
    print_table({way.tool.title: {"import-labels": f"{way.seconds['import-labels']:.1f} s"} | way.shares()})


def main() -> None:
    args = parse_args()
    if args.work:
        if args.work.exists():
            raise UserError(f"--work {args.work}: exists already; give a new folder")
        args.work.mkdir(parents=True)
        walk(args, args.work.resolve())
        return
    with tempfile.TemporaryDirectory() as name:
        walk(args, Path(name))


if __name__ == "__main__":
    run_main(main)
