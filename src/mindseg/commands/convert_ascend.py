"""Converts an export for Ascend with ATC (scripts/convert_om.sh) or MindSpore Lite (scripts/convert_lite.sh)."""
import argparse
import re
import sys
from pathlib import Path

from mindseg.chips import soc_from_npu_smi
from mindseg.commands.arguments import create_parser
from mindseg.deploy import ascend
from mindseg.deploy.export_folder import open_folder, staging
from mindseg.errors import UserError
from mindseg.files import write_text
from mindseg.manifest import MANIFEST_NAME, load_manifest

EXAMPLES = """examples:
  bash scripts/convert_om.sh export/deploy.yaml Ascend310P3 1 4 8
  bash scripts/convert_om.sh export/deploy.yaml 310 1 4 8 --dynamic_batch --aipp --dry_run
  bash scripts/convert_om.sh export/deploy.yaml Ascend310P3 1 --precision cube_fp16in_fp32out
  bash scripts/convert_lite.sh export/deploy.yaml 1 --optimize ascend_oriented --precision enforce_fp16
"""


def parse_args() -> argparse.Namespace:
    """Parses the command line; the words behind ``--`` are kept for ATC as ``further``."""
    parser = create_parser("Convert an exported model for Ascend.", EXAMPLES)
    parser.add_argument("kind", choices=("om", "lite"), help="om: ONNX with ATC; lite: MINDIR with converter_lite")
    parser.add_argument("manifest", metavar="MANIFEST", help="deploy.yaml of the export, or its folder")
    parser.add_argument("numbers", nargs="*", metavar="[SOC_VERSION] [BATCH ...]",
                        help="chip (om only; default: asks npu-smi) and batch sizes (default: the export's)")
    parser.add_argument("--dry_run", action="store_true", help="print commands and files, run and write nothing")
    parser.add_argument("--aipp", action="store_true", help="the chip normalises uint8 pixels (static AIPP)")
    parser.add_argument("--dynamic_batch", action="store_true", help="om: one model with all batch sizes as gears")
    parser.add_argument("--log", default="debug", choices=("debug", "info", "warning", "error", "null"),
                        help="om: ATC's log level (default: debug)")
    parser.add_argument("--fusion_switch", default="", metavar="FILE", help="om: file that switches fusion passes off")
    parser.add_argument("--optimize", default="ascend_oriented", help="lite: ascend_oriented[:CHIP]")
    parser.add_argument("--precision", default="", metavar="MODE",
                        help="om: value of ATC's --precision_mode_v2 (default: ATC's own choice, fp16); "
                             f"lite: {', '.join(ascend.PRECISIONS)} (default: enforce_fp16)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that mindseg did not write")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_intermixed_args(words[:cut])
    args.further = words[cut + 1:]
    return args


def main() -> None:
    """Plans the conversion, prints it, and carries it out."""
    args = parse_args()
    manifest = load_manifest(args.manifest)
    soc, batches = split_numbers(args.numbers)
    if args.kind == "om":
        if args.fusion_switch and not Path(args.fusion_switch).is_file():
            raise UserError(f"--fusion_switch {args.fusion_switch}: no such file; write one pass a line, such as "
                            "ConvBatchnormFusionPass:off")
        folder, files = "aipp" if args.aipp else "", {}
        options = [f"--precision_mode_v2={args.precision}", *args.further] if args.precision else args.further
        conversions = ascend.om_conversions(manifest, soc or soc_from_npu_smi(), batches, args.aipp,
                                            args.dynamic_batch, args.log, args.fusion_switch, options)
    else:
        if args.further:
            raise UserError(f"{args.further[0]}: converter_lite gets no further options; leave out what stands behind "
                            "--")
        if soc:
            raise UserError(f"{soc}: converter_lite takes the chip as --optimize ascend_oriented:CHIP")
        conversion, config = ascend.lite_conversion(manifest, batches, args.optimize,
                                                    args.precision or "enforce_fp16", args.aipp)
        conversions, folder, files = [conversion], "lite", {f"lite/{ascend.LITE_CONFIG_NAME}": config}
    if args.aipp:
        files[f"{folder}/{ascend.AIPP_NAME}"] = ascend.aipp_config(manifest.input)
    show(conversions, files)
    if args.dry_run:
        return
    root = manifest.path.parent
    names = [*(item.result.name for item in conversions), MANIFEST_NAME]
    with open_folder(root, args.overwrite) as output:
        output.claim(*(root / name for name in files))
        if not all(item.source.sha256 for item in conversions):
            manifest = ascend.derive_dynamic_onnx(manifest, output)
        with staging(output, names, folder) as place:
            for name, text in files.items():
                write_text(root / name, text)
            entries = [ascend.convert(item, place) for item in conversions]
            ascend.record(manifest, entries, place, bool(folder), args.aipp)
        print(f"{len(entries)} models listed in {root / folder / MANIFEST_NAME}")


def split_numbers(words: list[str]) -> tuple[str, list[int]]:
    """Separates the chip from the batch sizes: a chip has a letter in its name, or is 310 or 910."""
    soc = ""
    if words and (not words[0].isdigit() or words[0] in ("310", "910")):
        soc, words = words[0], words[1:]
        if not re.fullmatch(r"(Ascend)?[0-9][0-9A-Za-z_]*", soc):
            raise UserError(f"SOC_VERSION {soc}: no such chip; it looks like Ascend310, Ascend310P3 or Ascend310B4")
    wrong = [word for word in words if not word.isdigit() or not 1 <= int(word) <= 2048]
    if wrong:
        raise UserError(f"BATCH {wrong[0]}: must be a whole number from 1 to 2048")
    return soc, [int(word) for word in words]


def show(conversions: list[ascend.Conversion], files: dict[str, str]) -> None:
    """Prints the files as comment lines and the exact commands as plain lines."""
    folder = conversions[0].folder
    for name, text in files.items():
        print(f"# {folder / name}")
        print("".join(f"#   {line}\n" for line in text.splitlines()), end="")
    print(f"# in {folder}")
    for conversion in conversions:
        print(conversion.text(), flush=True)
