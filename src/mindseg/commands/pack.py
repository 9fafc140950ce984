"""Packs a data set into MindRecord files."""
import argparse
from pathlib import Path

from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.data.datasets import DATASETS, dataset_info, list_samples
from mindseg.data.mindrecord import CODECS, Packing, build_records
from mindseg.data.sources import FolderSource, choose_lut
from mindseg.version import __version__

EXAMPLES = """examples:
  mindseg pack --dataset cityscapes --root data/cityscapes --split train --output train.mindrecord
  mindseg pack --dataset voc --root data/VOC2012 --list trainaug.txt --output voc.mr --num_shards 4
  mindseg pack --config configs/_base_/camvid.yaml --split val --output val.mr --codec webp"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = create_parser(__doc__, EXAMPLES)
    add_config(parser, required=False)
    parser.add_argument("--dataset", choices=[name for name, info in DATASETS.items() if info.classes],
                        help="kind of data set, instead of --config")
    parser.add_argument("--root", help="folder of the data set")
    parser.add_argument("--split", default="train", help="split to pack (default: train)")
    parser.add_argument("--list", help="text file of image,label pairs (VOC: or image ids) instead of the split")
    parser.add_argument("--output", required=True, help="MindRecord file; with several shards 0, 1, … is appended")
    parser.add_argument("--num_shards", type=int, default=1, help="number of files (default: 1)")
    parser.add_argument("--shuffle", action="store_true", help="store in random order")
    parser.add_argument("--no_shuffle", dest="shuffle", action="store_false", help="store in list order (default)")
    parser.add_argument("--seed", type=int, default=1, help="of --shuffle")
    parser.add_argument("--codec", choices=CODECS, default="png",
                        help="of images; png: the source bytes; webp: lossless, smaller, faster; jpeg: lossy, fastest")
    parser.add_argument("--quality", type=int, default=98, help="of --codec jpeg, 1 to 100")
    parser.add_argument("--fast_labels", action="store_true",
                        help="re-encode labels, without loss, so that they decode three times faster")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args()
    if bool(args.dataset) == bool(args.config):
        parser.error("give either --dataset or --config")
    if not 1 <= args.num_shards <= 1000 or not 1 <= args.quality <= 100:
        parser.error("--num_shards must be 1 to 1000 and --quality 1 to 100")
    return args


def main() -> None:
    """Lists, packs and verifies."""
    args = parse_args()
    data = dict(read_config(args.config, args.set).data) if args.config else {"name": args.dataset}
    data["root"] = args.root or data.get("root")
    if args.list:
        data.update(train_list=args.list, train_split=args.split)
    samples = list_samples(data, "train" if args.list else args.split)
    info = dataset_info(data)
    lut = choose_lut(info, FolderSource(samples), data.get("label_file", "auto"))
    about = {"split": args.split, "list": args.list, "root": str(data["root"]), "project_version": __version__}
    if args.codec == "jpeg":
        print("note: jpeg is lossy; images differ from the source by a few grey levels, labels are exact")
        about["quality"] = args.quality
    packing = Packing(args.codec, args.fast_labels, args.num_shards, args.seed if args.shuffle else None, args.quality,
                      args.overwrite)
    print_summary(build_records(samples, Path(args.output), info, lut, packing, about), args.output)


def print_summary(result: dict, output: str) -> None:
    """Prints sizes and pixels per class.

    Args:
        result: Description of the set.
        output: Its file.
    """
    sizes = ", ".join(f"{count} of {size}" for size, count in list(result["sizes"].items())[:3])
    print(f"{output}: {result['samples']} samples ({sizes}), {result['num_shards']} shard(s), codec {result['codec']}")
    counts = [*result["class_pixels"], result["ignored_pixels"]]
    for name, pixels in zip([*result["classes"], "ignored"], counts, strict=True):
        print(f"  {name:<16} {100 * pixels / max(1, sum(counts)):7.3f} %")
