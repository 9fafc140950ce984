"""Turns the labels of annotation tools into label maps, lists and a configuration that `train.py` takes.

Reads LabelMe JSON, COCO instances, CVAT for images 1.1, CVAT's Segmentation mask 1.1, YOLO segmentation, and masks of
colours or class numbers. Nothing but the folder --output is written; images stay where they are.
"""
import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindseg.commands.arguments import create_parser
from mindseg.config import load_config
from mindseg.data.annotations.bounded import Problems, to_name
from mindseg.data.annotations.formats import FORMATS, detect_format, read_collection
from mindseg.data.annotations.images import ImageFolder
from mindseg.data.annotations.shapes import Collection, choose_ids
from mindseg.data.annotations.writer import (
    Labelled,
    Statistics,
    class_table,
    config_text,
    describe_config,
    list_text,
    split_samples,
    write_labels,
)
from mindseg.data.datasets import check_classes, list_samples
from mindseg.data.samples import read_lines
from mindseg.errors import DataError, printable
from mindseg.files import write_text
from mindseg.outputs import OutputFolder, check_apart, check_new

EXAMPLES = """examples:
  mindseg import-labels --input photos --output data/mine                     LabelMe: JSON files beside the images
  mindseg import-labels --input train.json --val_input val.json --images photos --output data/mine
  mindseg import-labels --input annotations.xml --images photos --output data/mine --ignore unclear
  mindseg import-labels --input masks --images photos --colors colors.txt --output data/mine
then train with
  python train.py --config data/mine/mine.yaml"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = create_parser(__doc__, EXAMPLES)
    parser.add_argument("--input", required=True, type=Path, help="annotations: file or folder")
    parser.add_argument("--images", type=Path, help="folder of the images (default: where the annotations are)")
    parser.add_argument("--val_input", type=Path, help="annotations to evaluate on (default: a part of --input)")
    parser.add_argument("--val_images", type=Path, help="their images (default: as --images)")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="new folder of labels and lists")
    parser.add_argument("--format", choices=["auto", *FORMATS], default="auto", help="(default: by the content)")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME",
                        help="classes in the order of their ids, or a text file with one a line (default: as found)")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="NAME", help="labels whose pixels are ignored (255)")
    parser.add_argument("--background", default="background", metavar="NAME",
                        help="class of pixels without a shape; name it in --ignore too to ignore them (default: "
                             "%(default)s)")
    parser.add_argument("--colors", type=Path, metavar="FILE", help="colours of masks: lines name:r,g,b")
    parser.add_argument("--val_share", type=float, default=0.2, help="part of the images to evaluate on (default: 0.2)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of these images (default: 1)")
    parser.add_argument("--on_error", choices=["raise", "skip"], default="raise",
                        help="stop at an image whose annotations are wrong, or leave it out (default: raise)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args()
    if not 0 < args.val_share < 1 or args.seed < 0:
        parser.error("--val_share must be between 0 and 1, and --seed at least 0")
    return args


def read_classes(words: Sequence[str]) -> list[str]:
    """Class names: the words themselves, or the lines of the file that the only word names."""
    if len(words) == 1 and Path(words[0]).is_file():
        words = [line for _, line in read_lines(Path(words[0]))]
    return [to_name(word, "--classes") for word in words]


def image_folder(kind: str, source: Path, given: Path | None, output: Path) -> ImageFolder:
    """The images of annotations.

    Args:
        kind: Format.
        source: Annotations.
        given: ``--images``.
        output: Output folder, which is not searched.

    Raises:
        DataError: Masks without ``--images``.
    """
    folder = source if source.is_dir() else source.parent
    without = [output]
    if kind == "masks":
        voc = (source / "SegmentationClass").is_dir()
        if given is None and not voc:
            raise DataError(f"{source}: holds masks; give the folder of their images with --images")
        without += [source / "SegmentationClass", source / "SegmentationObject"] if voc else [source]
    elif kind == "coco" and folder.name == "annotations":
        folder = folder.parent
    if given is not None and given.resolve() in [path.resolve() for path in without]:
        raise DataError(f"--images {given}: is the folder of the masks; move the images to a folder of their own")
    return ImageFolder(given or folder, without, loose=kind == "masks")


def read_inputs(args: argparse.Namespace, classes: list[str],
                problems: Problems) -> list[tuple[Collection, ImageFolder]]:
    """Reads ``--input`` and ``--val_input``, each with its images.

    Args:
        args: Command line.
        classes: ``--classes``.
        problems: Receives the mistakes.
    """
    inputs, splits = [(args.input, args.images)], [""]
    if args.val_input:
        inputs, splits = [*inputs, (args.val_input, args.val_images or args.images)], ["train", "val"]
    read: list[tuple[Collection, ImageFolder]] = []
    for (source, images), split in zip(inputs, splits, strict=True):
        kind, source = detect_format(source, args.colors) if args.format == "auto" else (args.format, source)
        if read and kind != read[0][0].format:
            raise DataError(f"--val_input {source}: has the format {kind}, but --input has {read[0][0].format}; import "
                            "them one after the other")
        if args.colors and kind != "masks":
            raise DataError(f"--colors: is for masks, but {source} has the format {kind}; leave it out")
        check_apart(source, args.output)
        folder = image_folder(kind, source, images, args.output)
        check_apart(folder.folder, args.output)
        like = read[0][0] if read else None
        found = read_collection(kind, source, problems, classes, args.colors, images, [args.output], like)
        if split:
            found = replace(found, annotations=[replace(item, split=split) for item in found.annotations])
        read.append((found, folder))
    return read


def convert(args: argparse.Namespace, problems: Problems) -> tuple[list[Labelled], list[str], Statistics, Collection]:
    """Writes everything.

    Args:
        args: Command line.
        problems: Receives the mistakes.

    Returns:
        The samples, the classes, the counts, and the annotations.
    """
    root = args.output
    config = root / f"{root.resolve().name}.yaml"
    check_new(config, args.overwrite)
    given = read_classes(args.classes)
    read = read_inputs(args, given, problems)
    whole = replace(read[0][0], annotations=[item for found, _ in read for item in found.annotations])
    named = {*given}.union(*(item.labels() for item in whole.annotations))
    background = "_background_" if "_background_" in named else args.background     # LabelMe's name for it
    classes, ids = choose_ids(whole, given, args.ignore, background, str(args.input))
    with OutputFolder(root, args.overwrite, own=True) as folder:
        lists = {split: root / f"{split}.txt" for split in ("train", "val")}
        folder.check(config, *lists.values())
        samples, counts = [], Statistics()
        places = ["labels"] if len(read) == 1 else ["labels/train", "labels/val"]
        for (found, images), place in zip(read, places, strict=True):
            samples += write_labels(found, images, ids, ids.get(background, 0), folder, place, counts, problems)
        samples = split_samples(samples, args.val_share, args.seed)
        tree = describe_config(samples, root, classes, whole.colors, counts)
        folder.claim(config, *lists.values())
        for split, path in lists.items():
            write_text(path, list_text([sample for sample in samples if sample.split == split], root))
        write_text(config, config_text(tree, f"Written by mindseg import-labels from {args.input} ({whole.format})."))
        folder.remove_old()
    check_config(config)
    return samples, classes, counts, whole


def check_config(config: Path) -> None:
    """Reads the configuration and the lists as training does."""
    cfg = load_config(config)
    check_classes(cfg, str(config))
    for split in ("train", "eval"):
        list_samples(cfg.data, split)


def main() -> None:
    """Imports, and prints what was found."""
    args = parse_args()
    problems = Problems(args.on_error == "skip")
    samples, classes, counts, collection = convert(args, problems)
    splits = Counter(sample.split for sample in samples)
    print(f"{args.output}: {len(samples)} images in the format {collection.format}, {splits['train']} to train and "
          f"{splits['val']} to evaluate on")
    print("\n".join(class_table(classes, counts)))
    if counts.overlap:
        print(f"note: shapes of different classes overlap on {counts.overlap} pixels of {counts.overlapping} images; "
              f"{FORMATS[collection.format]} counts there")
    if counts.empty:
        print(f"note: {counts.empty} images have no shape; they are all background")
    twins = len(samples) - len({sample.digest for sample in samples})
    shared = len({s.digest for s in samples if s.split == "train"} & {s.digest for s in samples if s.split == "val"})
    if twins:
        print(f"note: {twins} images repeat another one; {shared} stand in both splits")
    for note in collection.notes:
        print(f"note: {note}")
    for message in problems.messages[:5]:
        print(printable(f"left out: {message}"))
    if len(problems.messages) > 5:
        print(f"left out: … and {len(problems.messages) - 5} more")
    config = args.output / f"{args.output.resolve().name}.yaml"
    print(f"train with: python train.py --config {config}")
