"""Scores results: ``python postprocess.py --manifest DIR/deploy.yaml --result RESULTDIR --dataset ROOT``."""
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindseg.commands.arguments import add_dataset, create_parser
from mindseg.commands.preprocess import find_samples
from mindseg.data.decode import check_sizes, decode_label, decode_label_values
from mindseg.data.samples import Sample
from mindseg.errors import DataError
from mindseg.files import read_bytes, write_json
from mindseg.inference.masks import MaskWriter
from mindseg.inference.results import Results
from mindseg.manifest import Manifest, load_manifest
from mindseg.metrics import ConfusionMatrix, format_table
from mindseg.outputs import OutputFolder

EXAMPLES = """examples:
  python postprocess.py --manifest export/deploy.yaml --result result_Files --dataset data/cityscapes
  python postprocess.py --manifest export/deploy.yaml --result result/bs1 --dataset data/cityscapes --sort_log sort.log
  python postprocess.py --manifest export/deploy.yaml --result result_Files --dataset data/cityscapes --save_masks color

--result takes the runner's NAME.png and NAME.bin, and what ais_bench and msit write: NAME_0.bin, .npy or .txt.
"""
_PROBES = 16       # labels that are looked at to tell label ids from train ids


def main() -> None:
    """Scores the results of the runner or of another inference program."""
    parser = create_parser("Score inference results against the data set's labels.", EXAMPLES)
    add_dataset(parser)
    parser.add_argument("--result", required=True, metavar="RESULTDIR", help="folder of the results")
    parser.add_argument("--sort_log", help="score only the images named in this file; their order does not matter")
    parser.add_argument("--save_masks", choices=("color", "labelIds"), help="also write masks, into RESULTDIR/masks")
    parser.add_argument("--output", help="folder for eval.json and masks (default: RESULTDIR)")
    parser.add_argument("--allow_failed", action="store_true", help="score the others if the runner failed on some "
                        "images; their share is printed")
    parser.add_argument("--overwrite", action="store_true", help="also replace files that this program did not write")
    args = parser.parse_args()
    manifest = load_manifest(args.manifest)
    output = Path(args.output or args.result)
    samples = find_samples(manifest, args.dataset, args.split, args.list, args.sort_log)
    results = Results(args.result, manifest)
    samples = results.select(samples, args.allow_failed)
    with OutputFolder(output, args.overwrite) as folder:
        folder.claim(output / "eval.json")
        masks = None
        if args.save_masks:
            masks = MaskWriter(args.save_masks, manifest.dataset_info(),
                               OutputFolder(output / "masks", args.overwrite, own=True))
        scores = score(manifest, results.ids, samples, masks)
        write_scores(scores, manifest, results, output / "eval.json")
    print(f"Total number of images: {scores['images']}")
    print(format_table(scores, manifest.dataset.classes))
    print(f"mIoU {100 * scores['miou']:.2f} %, pixel accuracy {100 * scores['pixel_accuracy']:.2f} %; "
          f"written to {output / 'eval.json'}")


def score(manifest: Manifest, predict: Callable[[Sample, tuple[int, int]], np.ndarray], samples: Sequence[Sample],
          masks: MaskWriter | None = None) -> dict:
    """Compares predictions with the data set's labels.

    Args:
        manifest: Of the model.
        predict: Gives uint8 ids of a sample at the size (height, width) of its label, such as :meth:`Results.ids`.
        samples: With labels.
        masks: Writes the masks too, if given.

    Returns:
        ``ConfusionMatrix.compute()`` and ``images``.

    Raises:
        DataError: A result or a label is missing or wrong.
    """
    if samples and samples[0].label is None:
        raise DataError(f"{samples[0].image}: has no label; such a split can be predicted, not scored")
    lut = _label_lut(manifest, samples)
    matrix = ConfusionMatrix(manifest.num_classes, manifest.dataset.ignore_id)
    for sample in tqdm(samples, desc="postprocess", unit="image", disable=None):
        label = decode_label(read_bytes(sample.label), str(sample.label), lut)
        ids = predict(sample, label.shape)
        check_sizes(ids.shape, label.shape, sample.name)
        matrix.update(ids, label)
        if masks is not None:
            masks.write(sample.name, ids)
    return matrix.compute() | {"images": len(samples)}


def _label_lut(manifest: Manifest, samples: Sequence[Sample]) -> np.ndarray:
    info = manifest.dataset_info()
    return info.choose_lut("auto", _probe(samples), str(samples[0].label) if samples else "")


def _probe(samples: Sequence[Sample]) -> Iterator[np.ndarray]:
    for index in np.unique(np.linspace(0, len(samples) - 1, _PROBES).astype(int)):
        yield decode_label_values(read_bytes(samples[index].label), str(samples[index].label))


def write_scores(scores: dict, manifest: Manifest, results: Results, path: Path) -> None:
    """Writes ``eval.json``: scores, class names, and the times the inference program measured."""
    record = {"manifest": str(manifest.path), "result": str(results.folder), "classes": list(manifest.dataset.classes)}
    record |= scores | {"identity": results.identity}
    if results.summary:
        record["runner"] = {key: value for key, value in results.summary.items() if key != "failed"}
    times = {key: results.ais_bench[key] for key in ("NPU_compute_time", "H2D_latency", "D2H_latency", "throughput")
             if key in results.ais_bench}
    if times:
        record["ais_bench"] = times
    write_json(path, record)
