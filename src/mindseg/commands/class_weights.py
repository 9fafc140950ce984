"""Computes class weights for `loss.class_weights` from the labels of the training split."""
from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.data.dataset_stats import class_weights, training_labels
from mindseg.data.datasets import dataset_info
from mindseg.errors import UserError

EXAMPLES = """examples:
  mindseg class-weights --config configs/enet/enet_cityscapes.yaml --set data.root=data/cityscapes
  mindseg class-weights --config configs/_base_/camvid.yaml --method median
  mindseg class-weights --config configs/enet/enet_cityscapes.yaml --set data.mindrecord=train.mindrecord

Weights help rare classes and may cost the common ones; try them with a lower learning rate (docs/data.md)."""


def main() -> None:
    """Counts and prints."""
    parser = create_parser(__doc__, EXAMPLES)
    add_config(parser)
    parser.add_argument("--method", choices=["enet", "median", "inverse"], default="enet",
                        help="enet: 1/ln(c + share); median: median frequency; inverse: 1/share (default: enet)")
    parser.add_argument("--c", type=float, default=1.02, help="constant of enet (default: 1.02)")
    parser.add_argument("--power", type=float, default=1.0, help="exponent of the weights (default: 1)")
    args = parser.parse_args()
    cfg = read_config(args.config, args.set)
    if not 0 < args.power <= 4:
        raise UserError(f"--power {args.power} must be greater than 0 and at most 4")
    info, stats = dataset_info(cfg.data), training_labels(cfg.data)
    pixels, image_pixels = (counts[:len(info.classes)] for counts in (stats.class_pixels, stats.image_pixels))
    weights = class_weights(pixels, image_pixels, args.method, args.c, args.power)
    for name, count, weight in zip(info.classes, pixels, weights, strict=True):
        note = "" if count else "   absent"
        print(f"# {name:<16} {100 * count / pixels.sum():8.4f} %  {weight:9.4f}{note}")
    values = [f"{weight:.4f}" for weight in weights] + ["0.0"] * cfg.data.void_class
    print(f"class_weights: [{', '.join(values)}]")
