"""Scores results: ``python postprocess.py --manifest DIR/deploy.yaml --result RESULTDIR --dataset ROOT``."""
import argparse
from pathlib import Path

from mindseg.commands.preprocess import find_samples
from mindseg.deploy.results import Results, dataset_of, score, write_scores
from mindseg.inference.masks import MaskWriter
from mindseg.manifest import load_manifest
from mindseg.metrics import format_table

EXAMPLES = """examples:
  python postprocess.py --manifest export/deploy.yaml --result result_Files --dataset data/cityscapes
  python postprocess.py --manifest export/deploy.yaml --result result/bs1 --dataset data/cityscapes --sort_log sort.log
  python postprocess.py --manifest export/deploy.yaml --result result_Files --dataset data/cityscapes --save_masks color

--result takes the runner's NAME.png and NAME.bin, and what ais_bench and msit write: NAME_0.bin, .npy or .txt.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Score inference results against the data set's labels.",
                                     epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, help="deploy.yaml of the exported model, or its folder")
    parser.add_argument("--result", required=True, metavar="RESULTDIR", help="folder of the results")
    parser.add_argument("--dataset", required=True, metavar="ROOT", help="folder of the data set the manifest names")
    parser.add_argument("--split", default="val", help="split to take (default: val)")
    parser.add_argument("--list", help="file of image,label lines to take instead of a split")
    parser.add_argument("--sort_log", help="score only the images named in this file; their order does not matter")
    parser.add_argument("--save_masks", choices=("color", "labelIds"), help="also write masks, into RESULTDIR/masks")
    parser.add_argument("--output", help="folder for eval.json and masks (default: RESULTDIR)")
    args = parser.parse_args()
    manifest = load_manifest(args.manifest)
    output = Path(args.output or args.result)
    samples = find_samples(manifest, args.dataset, args.split, args.list, args.sort_log)
    results = Results(args.result, manifest)
    masks = MaskWriter(args.save_masks, dataset_of(manifest), output / "masks") if args.save_masks else None
    scores = score(manifest, results.ids, samples, masks)
    write_scores(scores, manifest, results, output / "eval.json")
    print(f"Total number of images: {scores['images']}")
    print(format_table(scores, manifest.dataset.classes))
    print(f"mIoU {100 * scores['miou']:.2f} %, pixel accuracy {100 * scores['pixel_accuracy']:.2f} %; "
          f"written to {output / 'eval.json'}")
