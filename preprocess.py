"""Writes model inputs: ``python preprocess.py --manifest DIR/deploy.yaml --dataset ROOT --output BINDIR``."""
import argparse
from pathlib import Path

from src.deploy.manifest import load_manifest
from src.deploy.offline import find_samples, link_images, preprocess
from src.errors import run_main

EXAMPLES = """examples:
  python preprocess.py --manifest export/deploy.yaml --dataset data/cityscapes --output preprocess_Result
  python preprocess.py --manifest export/deploy.yaml --dataset data/own --list data/own/val.txt --output bins
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one .bin per image, and files.txt, for runner or ais_bench.",
                                     epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, help="deploy.yaml of the exported model, or its folder")
    parser.add_argument("--dataset", required=True, metavar="ROOT", help="folder of the data set the manifest names")
    parser.add_argument("--output", required=True, metavar="BINDIR", help="folder for the bins, made if need be")
    parser.add_argument("--split", default="val", help="split to take (default: val)")
    parser.add_argument("--list", help="file of image,label lines to take instead of a split")
    parser.add_argument("--link_images", action="store_true", help="only link the images; the runner will decode them")
    args = parser.parse_args()
    manifest = load_manifest(args.manifest)
    samples = find_samples(manifest, args.dataset, args.split, args.list)
    if args.link_images:
        link_images(samples, Path(args.output))
        print(f"{len(samples)} links to images of {manifest.dataset.name} in {args.output}")
        return
    preprocess(manifest, samples, Path(args.output))
    print(f"{len(samples)} images of {manifest.dataset.name} in {args.output}, {manifest.input.dtype} "
          f"{manifest.input.layout} {'x'.join(map(str, manifest.input.shape[1:]))}")


if __name__ == "__main__":
    run_main(main)
