"""Exports a checkpoint: ``python export.py --config C --ckpt_path X --file_format MINDIR ONNX --output DIR``."""
from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.deploy.exporter import FORMATS, export
from mindseg.runtime import setup_runtime

EXAMPLES = """examples:
  python export.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --ckpt_path best.ckpt \\
      --file_format MINDIR ONNX --output export --set export.height=1024 --set export.width=2048
  python export.py --config C --ckpt_path best.ckpt --file_format ONNX --output export_u8 --output_type argmax \\
      --set export.normalize_in_graph=true --set export.opset=11 --set export.batch_size=4
  python export.py --config C --ckpt_path best.ckpt --file_format ONNX --output export_dyn --set export.batch_size=0
"""


def main() -> None:
    """Parses the command line and exports."""
    parser = create_parser("Export a checkpoint with its manifest, deploy.yaml.", EXAMPLES)
    add_config(parser)
    parser.add_argument("--ckpt_path", required=True, help="checkpoint")
    parser.add_argument("--file_format", nargs="+", choices=FORMATS, default=["MINDIR", "ONNX"],
                        help="one or more; AIR only on an Ascend device (default: MINDIR ONNX)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for models, deploy.yaml and export.json")
    parser.add_argument("--output_type", choices=("argmax", "logits"),
                        help="uint8 class ids (default, export.output_type) or float32 logits")
    parser.add_argument("--overwrite", action="store_true", help="replace files that mindseg did not write")
    args = parser.parse_args()
    cfg = read_config(args.config, args.set)
    setup_runtime(cfg.runtime)
    export(cfg, args.ckpt_path, args.file_format, args.output, args.output_type, args.overwrite)
