"""Converts weights of public implementations to a checkpoint of this project."""


from mindseg.commands.arguments import create_parser
from mindseg.config import rename_old_values
from mindseg.errors import UserError, shorten
from mindseg.models import MODELS, model_options
from mindseg.models.weights import clean_state, convert, detect_source, read_weights, save_weights
from mindseg.outputs import check_new
from mindseg.yaml_text import YamlError, parse

EXAMPLES = """examples:
  mindseg convert-weights --model fast_scnn --source fast_scnn_segmentron.pth --output segmentron.ckpt
  mindseg convert-weights --model fcn8s --source vgg16_bn.pth --output vgg16_bn.ckpt
  mindseg convert-weights --model enet --source ENet_stage3.ckpt --output enet.ckpt --set model.num_classes=20
  mindseg convert-weights --model bisenetv2 --source model_final_v2_city.pth --output b.ckpt --drop_classifier

The source is recognised by its parameter names: Tramac/Fast-SCNN-pytorch, LikeLy-Journey/SegmenTron,
CoinCheung/BiSeNet, davidtvs/PyTorch-ENet, zh320/realtime-semantic-segmentation-pytorch (Fast-SCNN, ENet, BiSeNet V2),
torchvision's vgg16_bn, and the older MindSpore projects.
Reading .pth needs torch (requirements-convert.txt)."""


def parse_options(name: str, assignments: list[str]) -> dict[str, object]:
    """Parses words such as ``model.num_classes=20`` into keyword arguments of ``create_model``.

    Args:
        name: Network.
        assignments: Words after ``--set``.

    Raises:
        UserError: If a word is no assignment or the network has no such option.
    """
    options = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        key = key.removeprefix("model.")
        if not separator or key not in ("num_classes", *model_options(name)):
            raise UserError(f"--set {assignment}: write model.KEY=VALUE with KEY one of num_classes, "
                            f"{', '.join(model_options(name))}")
        try:
            options[key] = parse(value)
        except YamlError as error:
            raise UserError(f"--set {shorten(assignment)}: {error.problem}; write model.KEY=VALUE") from None
    rename_old_values({"model": options}, "--set")
    return options


def main() -> None:
    """Reads the source, converts it and writes the checkpoint."""
    parser = create_parser(__doc__, EXAMPLES)
    parser.add_argument("--model", required=True, choices=list(MODELS), help="network that gets the weights")
    parser.add_argument("--source", required=True, help=".pth, .pt, .tar, .npz, .safetensors or .ckpt")
    parser.add_argument("--output", required=True, help="checkpoint to write, ends in .ckpt")
    parser.add_argument("--set", action="append", default=[], metavar="model.KEY=VALUE",
                        help="option of the network (repeatable); those that the source requires are set by themselves")
    parser.add_argument("--part", default="all", help="all, backbone or encoder: convert only this part")
    parser.add_argument("--drop_classifier", action="store_true",
                        help="leave out the layers that depend on the number of classes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args()

    check_new(args.output, args.overwrite)
    state = read_weights(args.source)
    options = {**detect_source(args.model, clean_state(state)).options, **parse_options(args.model, args.set)}
    result = convert(args.model, state, args.part, args.drop_classifier, **options)
    path = save_weights(args.output, result.params)
    total = sum(value.size for value in result.params.values())
    print(f"{args.source}: weights of {result.source}, {len(result.params)} arrays, {total / 1e6:.3f} M values")
    for title, keys in (("not used", result.unused), ("not in the file, start at random", result.missing)):
        if keys:
            print(f"{title} ({len(keys)}): {', '.join(keys)}")
    settings = " ".join(f"--set model.{key}={value}" for key, value in options.items())
    print(f"{path}: written; use it with --pretrained {path} --set model.name={args.model} {settings}".rstrip())
