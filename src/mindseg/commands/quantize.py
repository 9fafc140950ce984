"""int8 post-training quantisation: ``mindseg quantize --manifest M --dataset ROOT --output M_int8``."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindseg.commands.arguments import add_dataset, create_parser
from mindseg.commands.postprocess import score
from mindseg.commands.preprocess import find_samples
from mindseg.data.samples import Sample
from mindseg.deploy.export_folder import open_folder
from mindseg.deploy.quantize import REPORT_NAME, quantize
from mindseg.errors import UserError
from mindseg.files import write_json
from mindseg.inference.exported import open_exported
from mindseg.manifest import Manifest, load_manifest

EXAMPLES = """examples:
  mindseg quantize --manifest export/deploy.yaml --dataset data/cityscapes --output export_int8
  mindseg quantize --manifest export/deploy.yaml --dataset data/cityscapes --output export_int8 --num 64 \\
      --evaluate --max_drop 0.01
"""


def main() -> None:
    """Quantises the model and, if asked, scores it beside the float model."""
    parser = create_parser("Quantise an exported ONNX model to int8, calibrated with images of a split.", EXAMPLES)
    add_dataset(parser, "train")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the int8 model and its manifest")
    parser.add_argument("--num", type=int, default=32, help="calibration images, spread over the split (default: 32)")
    parser.add_argument("--evaluate", action="store_true", help="score both models; writes quantize.json")
    parser.add_argument("--eval_split", default="val", help="split to score on (default: val)")
    parser.add_argument("--max_drop", type=float, help="with --evaluate: fail if the mIoU falls by more (0.01 = 1 %%)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that mindseg did not write")
    args = parser.parse_args()
    manifest = load_manifest(args.manifest)
    samples = find_samples(manifest, args.dataset, args.split, args.list)
    chosen = np.unique(np.linspace(0, len(samples) - 1, max(args.num, 1)).astype(int))
    made = quantize(manifest, [samples[i] for i in chosen], Path(args.output), args.overwrite)
    print(f"{made.path}: {made.models[0].file}, calibrated with {len(chosen)} images")
    if args.evaluate:
        compare(manifest, made, find_samples(manifest, args.dataset, args.eval_split), args.max_drop, args.overwrite)


def compare(before: Manifest, after: Manifest, samples: Sequence[Sample], max_drop: float | None,
            overwrite: bool) -> None:
    """Scores both models in onnxruntime and writes ``quantize.json``.

    Args:
        before: Manifest of the float model.
        after: Manifest of the int8 model.
        samples: Labelled images.
        max_drop: Largest loss of mIoU (0.01 = 1 %) that is accepted; ``None``: any.
        overwrite: Replace a ``quantize.json`` that this program did not write.

    Raises:
        UserError: The loss is larger.
    """
    scores = {}
    for name, manifest in (("float32", before), ("int8", after)):
        session = open_exported(manifest)
        spec = manifest.input
        scores[name] = score(manifest, lambda sample, size, run=session, spec=spec:
                             run(spec.read_image(sample.image)[None], size)[0], samples)
    drop = scores["float32"]["miou"] - scores["int8"]["miou"]
    record = {name: {key: value[key] for key in ("miou", "pixel_accuracy")} for name, value in scores.items()}
    with open_folder(after.path.parent, overwrite) as folder:
        folder.claim(folder.folder / REPORT_NAME)
        write_json(folder.folder / REPORT_NAME, {**record, "images": len(samples)})
    for name, value in scores.items():
        print(f"{name:8} mIoU {100 * value['miou']:.2f} %, pixel accuracy {100 * value['pixel_accuracy']:.2f} %")
    if max_drop is not None and drop > max_drop:
        raise UserError(f"{after.path}: int8 loses {100 * drop:.2f} % mIoU, --max_drop allows {100 * max_drop:.2f}; "
                        "calibrate with more images (--num)")
