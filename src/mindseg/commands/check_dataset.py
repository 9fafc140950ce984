"""Checks a data set before time is spent on it: pairs, sizes, label values, classes, colours. Status 1 on errors.

With a trained network it also ranks the images by how much their labels disagree with it.
"""
from pathlib import Path

import numpy as np

from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.config import Config
from mindseg.data.dataset_stats import DatasetStats, near_twins
from mindseg.data.datasets import DatasetInfo, dataset_info, list_samples, split_and_list
from mindseg.data.labels import IGNORE, UNMAPPED
from mindseg.data.sources import FolderSource, RecordSource, Source, choose_lut
from mindseg.errors import DataError, UserError
from mindseg.outputs import check_new

EXAMPLES = """examples:
  mindseg check-dataset --config configs/fast_scnn/fast_scnn_cityscapes.yaml --set data.root=data/cityscapes
  mindseg check-dataset --config configs/_base_/camvid.yaml --split val
  mindseg check-dataset --config configs/_base_/voc.yaml --set data.mindrecord=voc.mindrecord --split train
  mindseg check-dataset --config C --ckpt_path best.ckpt        likely mistakes in the labels, on pages with pictures"""


def open_split(cfg: Config, split: str, errors: list[str]) -> Source:
    """Opens the folders or the MindRecord of a split.

    Args:
        cfg: Configuration.
        split: Role ``train`` or ``eval``, or the name of a split.
        errors: Receives a message for each image or label without partner.

    Raises:
        DataError: There is not one sample.
    """
    record = {"train": cfg.data.mindrecord, "eval": cfg.data.eval_mindrecord}.get(split)
    return RecordSource(record) if record else open_folder(cfg, split, errors)


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
        source = open_split(cfg, split, errors)
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


def print_twins(prints: dict[str, np.ndarray], earlier: dict[str, tuple[str, np.ndarray]], shown: int) -> None:
    """Prints images that are nearly the same as one of another split.

    Args:
        prints: Fingerprint of each image of the split, by name.
        earlier: Split and fingerprint of the images of other splits, by name.
        shown: Pairs to print at most.
    """
    if not prints or not earlier:
        return
    names, others = list(prints), list(earlier)
    pairs = near_twins(np.stack(list(prints.values())), np.stack([found for _, found in earlier.values()]))
    if pairs:
        named = [f"{names[i]} = {others[j]} ({earlier[others[j]][0]})" for i, j in pairs[:shown]]
        print(f"  warning: {len(pairs)} images are nearly the same as one of another split: {', '.join(named)}"
              f"{' …' if len(pairs) > shown else ''}")


def find_suspects(cfg: Config, split: str, ckpt_path: str, page: Path, shown: int) -> None:
    """Ranks the images of a split by how much their labels disagree with a network, and writes a page.

    Args:
        cfg: Configuration.
        split: Role or name of the split; it can be read.
        ckpt_path: Checkpoint of the network.
        page: File to write.
        shown: Images to print; twice as many are on the page.

    Raises:
        UserError: The checkpoint does not fit.
    """
    from mindseg.data.loader import Loader
    from mindseg.data.pipeline import LoaderOptions
    from mindseg.evaluation.evaluator import Example, evaluate
    from mindseg.evaluation.suspects import Suspects
    from mindseg.inference.loading import open_checkpoint
    from mindseg.report.suspects_page import write_suspects

    info, source = dataset_info(cfg.data), open_split(cfg, split, [])
    options = LoaderOptions(batch_size=cfg.eval.batch_size, skip_errors=True, rgb=cfg.data.color_order == "RGB")
    loader = Loader(source, info, choose_lut(info, source, cfg.data.label_file), None, options)
    predictor, suspects = open_checkpoint(ckpt_path, cfg), Suspects(len(info.classes))
    evaluate(predictor, loader, on_image=suspects.add)
    ranking = suspects.ranking()[:2 * shown]
    print(f"  labels that disagree most with {Path(ckpt_path).name}:")
    for suspect in ranking[:shown]:
        print(f"    {suspect.name}: {100 * suspect.missing:.1f} % of the image are predicted as "
              f"{info.classes[suspect.class_id]} and labelled otherwise ({suspect.score:.1f})")
    names, pictures = {suspect.name for suspect in ranking}, {}
    for batch in loader.samples():
        for name, image, label in zip(batch["names"], batch["image"], batch["label"], strict=True):
            if name in names:
                label = predictor.resize.label(label)
                pred = predictor(image[None], label.shape)[0]
                pictures[name] = Example(0.0, name, image if options.rgb else image[..., ::-1], pred, label)
    write_suspects(page, f"{Path(cfg.data.root or '.').name}, {split}: labels to look at", Path(ckpt_path).name, info,
                   suspects, [(suspect, pictures[suspect.name]) for suspect in ranking])
    print(f"  {page}")


def main() -> int:
    """Checks the splits; 1 if there are errors."""
    parser = create_parser(__doc__, EXAMPLES)
    add_config(parser)
    parser.add_argument("--split", nargs="+", default=["train", "eval"],
                        help="splits to check (default: train eval, as the configuration names them)")
    parser.add_argument("--shown", type=int, default=5, help="errors and files to print of each kind (default: 5)")
    parser.add_argument("--ckpt_path", help="trained network: rank the images by how much labels disagree with it")
    parser.add_argument("--output", type=Path, default=Path("."),
                        help="with --ckpt_path: folder of the pages suspects_SPLIT.html (default: here)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing pages")
    args = parser.parse_args()
    cfg = read_config(args.config, args.set)
    pages = {split: args.output / f"suspects_{split}.html" for split in args.split}
    if args.ckpt_path:
        from mindseg.runtime import setup_runtime
        if not Path(args.ckpt_path).is_file():
            raise UserError(f"--ckpt_path {args.ckpt_path}: no such file; give the checkpoint of a trained network")
        for page in pages.values():
            check_new(page, args.overwrite)
        setup_runtime(cfg.runtime)
    digests: dict[bytes, str] = {}
    prints: dict[str, tuple[str, np.ndarray]] = {}
    failures = 0
    for split in args.split:
        stats, errors = check_split(cfg, split, args.shown)
        for error in errors[:args.shown]:
            print(f"  error: {error}")
        if len(errors) > args.shown:
            print(f"  error: … and {len(errors) - args.shown} more (--shown {len(errors)})")
        failures += len(errors)
        if stats:
            shared = [f"{names[0]} ({digests[digest]})" for digest, names in stats.digests.items() if digest in digests]
            if shared:
                print(f"  warning: {len(shared)} images stand in another split too: {', '.join(shared[:3])} …")
            copies = {name for digest, names in stats.digests.items() if digest in digests for name in names}
            print_twins({name: value for name, value in stats.fingerprints.items() if name not in copies}, prints,
                        args.shown)
            digests.update(dict.fromkeys(stats.digests, split))
            prints.update({name: (split, value) for name, value in stats.fingerprints.items()})
            if args.ckpt_path and stats.sizes:
                find_suspects(cfg, split, args.ckpt_path, pages[split], args.shown)
    print(f"\n{failures} errors" if failures else "\nno errors")
    return 1 if failures else 0
