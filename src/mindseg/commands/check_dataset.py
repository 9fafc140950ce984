"""Checks a data set before time is spent on it: pairs, sizes, label values, classes, colours. Status 1 on errors."""
import argparse

import numpy as np

from mindseg.config import Config, load_config
from mindseg.data.dataset_stats import DatasetStats, collect_stats
from mindseg.data.datasets import IGNORE, UNMAPPED, DatasetInfo, dataset_info, list_samples, split_and_list
from mindseg.data.pipeline import FolderSource, RecordSource, choose_lut
from mindseg.errors import DataError

EXAMPLES = """examples:
  mindseg check-dataset --config configs/fast_scnn/fast_scnn_cityscapes.yaml --set data.root=data/cityscapes
  mindseg check-dataset --config configs/_base_/camvid.yaml --split val
  mindseg check-dataset --config configs/_base_/voc.yaml --set data.mindrecord=voc.mindrecord --split train"""


def check_split(cfg: Config, split: str, shown: int) -> tuple[DatasetStats | None, list[str]]:
    """Checks one split and prints what it holds.

    Args:
        cfg: The configuration.
        split: ``train`` and ``eval`` as the configuration names them, or the name of a split.
        shown: Errors and files to print at most.

    Returns:
        What was found (``None`` if the split cannot be opened), and all errors.
    """
    info, errors = dataset_info(cfg.data), []
    record = {"train": cfg.data.mindrecord, "eval": cfg.data.eval_mindrecord}.get(split)
    name = split_and_list(cfg.data, split)[0]
    try:
        source = RecordSource(record) if record else open_folder(cfg, split, errors)
        place = record or f"{cfg.data.root} (split '{name}')"
        print(f"\n{split}: {len(source)} samples in {place}", flush=True)
        lut = choose_lut(info, source, cfg.data.label_file)
        found = collect_stats(source, lut)
    except DataError as error:
        print(f"\n{split}: cannot be read")
        return None, [*errors, str(error)]
    sizes = sorted(found.sizes.items(), key=lambda item: -item[1])
    print("  sizes: " + ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes[:5])
          + (f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""))
    print_small(found, cfg)
    print_values(found, lut, info)
    print_images(found, cfg, shown)
    return found, errors + found.errors


def open_folder(cfg: Config, split: str, errors: list[str]) -> FolderSource:
    """The samples of a split; what stands alone, an image or a label, is added to ``errors``.

    Raises:
        DataError: There is not one pair. It says all, and ``errors`` is emptied.
    """
    samples = list_samples(cfg.data, split, errors)
    if not samples:
        alone = errors.copy()
        errors.clear()
        raise DataError(f"split '{split_and_list(cfg.data, split)[0]}': not one image with its label; {len(alone)} "
                        f"files stand alone, the first: {alone[0]}. Unpack the labels too, or correct data.root")
    return FolderSource(samples)


def print_small(found: DatasetStats, cfg: Config) -> None:
    """Says so if training crops reach beyond most images: what lies outside is padding, which teaches nothing."""
    d = cfg.data
    if d.resize or d.scale_base:
        return
    height, width = d.crop_size
    small = sum(count for (w, h), count in found.sizes.items() if h < height or w < width)
    if 2 * small > sum(found.sizes.values()):
        print(f"  note: {small} images are smaller than a training crop of {width}x{height}; the rest of the crop is "
              f"padding (data.crop_size = [{height}, {width}], height first)")


def print_values(found: DatasetStats, lut: np.ndarray, info: DatasetInfo) -> None:
    """Prints each label value with its class, share of the pixels and number of images, and the classes without any."""
    total = max(1, found.values.sum())
    print("  value  class                 pixels %   images")
    for value in np.flatnonzero(found.values):
        train_id = lut[value]
        name = ("NOT A LABEL" if train_id == UNMAPPED else "(ignored)" if train_id == IGNORE
                else info.classes[train_id])
        print(f"  {value:5d}  {name:<20} {100 * found.values[value] / total:9.4f} {found.images_with[value]:8d}")
    present = set(lut[found.values > 0].tolist())
    absent = [name for i, name in enumerate(info.classes) if i not in present]
    if absent:
        print(f"  warning: {len(absent)} of {len(info.classes)} classes are absent: {', '.join(absent)}")


def print_images(found: DatasetStats, cfg: Config, shown: int) -> None:
    """Prints colour statistics, repeated images and the samples with most ignored pixels."""
    mean, std = (values * cfg.data.value_range / 255 for values in found.mean_std)
    if cfg.data.color_order == "BGR":
        mean, std = mean[::-1], std[::-1]
    print(f"  mean {np.round(mean, 4).tolist()}  std {np.round(std, 4).tolist()}  "
          f"({cfg.data.color_order}, 0..{cfg.data.value_range:g}; configured: {cfg.data.mean}, {cfg.data.std})")
    twins = [names for names in found.digests.values() if len(names) > 1]
    if twins:
        print(f"  warning: {len(twins)} images stand in the split more than once: {', '.join(twins[0][:3])} …")
    empty = [name for share, name in found.void if share == 1]
    if empty:
        print(f"  warning: {len(empty)} samples have no labelled pixel, for example {', '.join(empty[:3])}")
    worst = [f"{name} {100 * share:.1f} %" for share, name in sorted(found.void, reverse=True)[:shown] if share]
    if worst:
        print(f"  most ignored pixels: {', '.join(worst)}")


def main() -> int:
    """Checks the splits; 1 if there are errors."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration; its data section is read")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="overrides a configuration key")
    parser.add_argument("--split", nargs="+", default=["train", "eval"],
                        help="splits to check (default: train eval, as the configuration names them)")
    parser.add_argument("--shown", type=int, default=5, help="errors and files to print of each kind (default: 5)")
    args = parser.parse_args()
    cfg = load_config(args.config, args.set)
    seen: dict[bytes, str] = {}
    failures = 0
    for split in args.split:
        found, errors = check_split(cfg, split, args.shown)
        for error in errors[:args.shown]:
            print(f"  error: {error}")
        if len(errors) > args.shown:
            print(f"  error: … and {len(errors) - args.shown} more (--shown {len(errors)})")
        failures += len(errors)
        if found:
            shared = [f"{names[0]} ({seen[digest]})" for digest, names in found.digests.items() if digest in seen]
            if shared:
                print(f"  warning: {len(shared)} images stand in another split too: {', '.join(shared[:3])} …")
            seen.update(dict.fromkeys(found.digests, split))
    print(f"\n{failures} errors" if failures else "\nno errors")
    return 1 if failures else 0
