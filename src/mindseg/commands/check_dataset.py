"""Checks a data set before time is spent on it: pairs, sizes, label values, classes, colours. Status 1 on errors."""
import numpy as np

from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.config import Config
from mindseg.data.dataset_stats import DatasetStats
from mindseg.data.datasets import DatasetInfo, dataset_info, list_samples, split_and_list
from mindseg.data.labels import IGNORE, UNMAPPED
from mindseg.data.sources import FolderSource, RecordSource, choose_lut
from mindseg.errors import DataError

EXAMPLES = """examples:
  mindseg check-dataset --config configs/fast_scnn/fast_scnn_cityscapes.yaml --set data.root=data/cityscapes
  mindseg check-dataset --config configs/_base_/camvid.yaml --split val
  mindseg check-dataset --config configs/_base_/voc.yaml --set data.mindrecord=voc.mindrecord --split train"""


def check_split(cfg: Config, split: str, shown: int) -> tuple[DatasetStats | None, list[str]]:
    """Checks one split and prints its statistics.

    Args:
        cfg: Configuration.
        split: Role ``train`` or ``eval``, or the name of a split.
        shown: Errors and files to print at most.

    Returns:
        The statistics (``None`` if the split cannot be opened), and all errors.
    """
    info, errors = dataset_info(cfg.data), []
    record = {"train": cfg.data.mindrecord, "eval": cfg.data.eval_mindrecord}.get(split)
    name = split_and_list(cfg.data, split)[0]
    try:
        source = RecordSource(record) if record else open_folder(cfg, split, errors)
        place = record or f"{cfg.data.root} (split '{name}')"
        print(f"\n{split}: {len(source)} samples in {place}", flush=True)
        lut = choose_lut(info, source, cfg.data.label_file)
        stats = DatasetStats(source, lut)
    except DataError as error:
        print(f"\n{split}: cannot be read")
        return None, [*errors, str(error)]
    sizes = ", ".join(f"{count} of {w}x{h}" for (w, h), count in stats.sizes.most_common(5))
    print(f"  sizes: {sizes}" + (f" and {len(stats.sizes) - 5} more sizes" if len(stats.sizes) > 5 else ""))
    print_small(stats, cfg)
    print_values(stats, lut, info)
    print_images(stats, cfg, shown)
    return stats, errors + stats.errors


def open_folder(cfg: Config, split: str, errors: list[str]) -> FolderSource:
    """Opens the folders of a split.

    Args:
        cfg: Configuration.
        split: Role or name of the split.
        errors: Receives a message for each image or label without partner.

    Raises:
        DataError: There is not one pair; then ``errors`` is emptied, because this message covers all.
    """
    samples = list_samples(cfg.data, split, errors)
    if not samples:
        count, first = len(errors), errors[0]
        errors.clear()
        raise DataError(f"split '{split_and_list(cfg.data, split)[0]}': not one image with its label; {count} files "
                        f"stand alone, the first: {first}. Unpack the labels too, or correct data.root")
    return FolderSource(samples)


def print_small(stats: DatasetStats, cfg: Config) -> None:
    """Prints a note if training crops are larger than most images: the padding teaches nothing.

    Args:
        stats: Statistics of the split.
        cfg: Configuration.
    """
    d = cfg.data
    if d.resize or d.scale_base:
        return
    height, width = d.crop_size
    small = sum(count for (w, h), count in stats.sizes.items() if h < height or w < width)
    if 2 * small > sum(stats.sizes.values()):
        print(f"  note: {small} images are smaller than a training crop of {width}x{height}; the rest of the crop is "
              f"padding (data.crop_size = [{height}, {width}], height first)")


def print_values(stats: DatasetStats, lut: np.ndarray, info: DatasetInfo) -> None:
    """Prints class, share of the pixels and number of images of each label value, and the classes without any.

    Args:
        stats: Statistics of the split.
        lut: Label LUT, uint8 (256,).
        info: Data set.
    """
    total = max(1, stats.values.sum())
    print("  value  class                 pixels %   images")
    for value in np.flatnonzero(stats.values):
        train_id = lut[value]
        name = ("NOT A LABEL" if train_id == UNMAPPED else "(ignored)" if train_id == IGNORE
                else info.classes[train_id])
        print(f"  {value:5d}  {name:<20} {100 * stats.values[value] / total:9.4f} {stats.images_with[value]:8d}")
    present = set(lut[stats.values > 0].tolist())
    absent = [name for i, name in enumerate(info.classes) if i not in present]
    if absent:
        print(f"  warning: {len(absent)} of {len(info.classes)} classes are absent: {', '.join(absent)}")


def print_images(stats: DatasetStats, cfg: Config, shown: int) -> None:
    """Prints colour statistics, repeated images and the samples with most ignored pixels.

    Args:
        stats: Statistics of the split.
        cfg: Configuration.
        shown: Samples to print at most.
    """
    mean, std = (values * cfg.data.value_range / 255 for values in stats.mean_std)
    if cfg.data.color_order == "BGR":
        mean, std = mean[::-1], std[::-1]
    print(f"  mean {np.round(mean, 4).tolist()}  std {np.round(std, 4).tolist()}  "
          f"({cfg.data.color_order}, 0..{cfg.data.value_range:g}; configured: {cfg.data.mean}, {cfg.data.std})")
    twins = [names for names in stats.digests.values() if len(names) > 1]
    if twins:
        print(f"  warning: {len(twins)} images stand in the split more than once: {', '.join(twins[0][:3])} …")
    empty = [name for share, name in stats.void if share == 1]
    if empty:
        print(f"  warning: {len(empty)} samples have no labelled pixel, for example {', '.join(empty[:3])}")
    worst = [f"{name} {100 * share:.1f} %" for share, name in sorted(stats.void, reverse=True)[:shown] if share]
    if worst:
        print(f"  most ignored pixels: {', '.join(worst)}")


def main() -> int:
    """Checks the splits; 1 if there are errors."""
    parser = create_parser(__doc__, EXAMPLES)
    add_config(parser)
    parser.add_argument("--split", nargs="+", default=["train", "eval"],
                        help="splits to check (default: train eval, as the configuration names them)")
    parser.add_argument("--shown", type=int, default=5, help="errors and files to print of each kind (default: 5)")
    args = parser.parse_args()
    cfg = read_config(args.config, args.set)
    seen: dict[bytes, str] = {}
    failures = 0
    for split in args.split:
        stats, errors = check_split(cfg, split, args.shown)
        for error in errors[:args.shown]:
            print(f"  error: {error}")
        if len(errors) > args.shown:
            print(f"  error: … and {len(errors) - args.shown} more (--shown {len(errors)})")
        failures += len(errors)
        if stats:
            shared = [f"{names[0]} ({seen[digest]})" for digest, names in stats.digests.items() if digest in seen]
            if shared:
                print(f"  warning: {len(shared)} images stand in another split too: {', '.join(shared[:3])} …")
            seen.update(dict.fromkeys(stats.digests, split))
    print(f"\n{failures} errors" if failures else "\nno errors")
    return 1 if failures else 0
