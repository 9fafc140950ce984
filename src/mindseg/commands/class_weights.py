"""Computes class weights for `loss.class_weights` from the labels of the training split."""
import argparse
from dataclasses import replace

from mindseg.config import load_config
from mindseg.data.dataset_stats import class_weights, count_classes
from mindseg.data.datasets import dataset_info, list_samples
from mindseg.data.pipeline import FolderSource, RecordSource, choose_lut

EXAMPLES = """examples:
  mindseg class-weights --config configs/enet/enet_cityscapes.yaml --set data.root=data/cityscapes
  mindseg class-weights --config configs/_base_/camvid.yaml --method median
  mindseg class-weights --config configs/enet/enet_cityscapes.yaml --set data.mindrecord=train.mindrecord

Weights help rare classes and may cost the common ones; try them with a lower learning rate (docs/data.md)."""


def main() -> None:
    """Counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration; its data section is read")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="overrides a configuration key")
    parser.add_argument("--method", choices=["enet", "median", "inverse"], default="enet",
                        help="enet: 1/ln(c + share); median: median frequency; inverse: 1/share (default: enet)")
    parser.add_argument("--c", type=float, default=1.02, help="constant of enet (default: 1.02)")
    args = parser.parse_args()
    cfg = load_config(args.config, args.set)
    info = dataset_info(cfg.data)
    if cfg.data.mindrecord:
        source = RecordSource(cfg.data.mindrecord)
    else:
        # The label stands in for the image, which is a hundred times larger and not needed.
        source = FolderSource([replace(s, image=s.label or s.image) for s in list_samples(cfg.data, "train")])
    lut = choose_lut(info, source, cfg.data.label_file)
    pixels, image_pixels = count_classes(source, lut, len(info.classes))
    weights = class_weights(pixels, image_pixels, args.method, args.c)
    for name, count, weight in zip(info.classes, pixels, weights, strict=True):
        note = "" if count else "   absent"
        print(f"# {name:<16} {100 * count / pixels.sum():8.4f} %  {weight:9.4f}{note}")
    values = [f"{weight:.4f}" for weight in weights] + ["0.0"] * cfg.data.void_class
    print(f"class_weights: [{', '.join(values)}]")
