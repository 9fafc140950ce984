"""Scores results: ``python postprocess.py --manifest DIR/deploy.yaml --result RESULTDIR --dataset ROOT``."""
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindseg.commands.arguments import add_dataset, create_parser
from mindseg.commands.preprocess import find_samples
from mindseg.data.decode import check_sizes, decode_label, decode_label_values
from mindseg.data.samples import Sample
from mindseg.errors import DataError, first_line
from mindseg.files import read_bytes, write_json
from mindseg.inference.masks import MaskWriter
from mindseg.manifest import Manifest, load_manifest
from mindseg.metrics import ConfusionMatrix, format_table

EXAMPLES = """examples:
  python postprocess.py --manifest export/deploy.yaml --result result_Files --dataset data/cityscapes
  python postprocess.py --manifest export/deploy.yaml --result result/bs1 --dataset data/cityscapes --sort_log sort.log
  python postprocess.py --manifest export/deploy.yaml --result result_Files --dataset data/cityscapes --save_masks color

--result takes the runner's NAME.png and NAME.bin, and what ais_bench and msit write: NAME_0.bin, .npy or .txt.
"""
_PROBES = 16       # labels that are looked at to tell label ids from train ids
_ID_TYPES = (np.uint8, np.int16, np.int32, np.int64)
_SUFFIXES = (".png", ".bin", ".npy", ".txt")


def main() -> None:
    """Scores the results of the runner or of another inference program."""
    parser = create_parser("Score inference results against the data set's labels.", EXAMPLES)
    add_dataset(parser)
    parser.add_argument("--result", required=True, metavar="RESULTDIR", help="folder of the results")
    parser.add_argument("--sort_log", help="score only the images named in this file; their order does not matter")
    parser.add_argument("--save_masks", choices=("color", "labelIds"), help="also write masks, into RESULTDIR/masks")
    parser.add_argument("--output", help="folder for eval.json and masks (default: RESULTDIR)")
    args = parser.parse_args()
    manifest = load_manifest(args.manifest)
    output = Path(args.output or args.result)
    samples = find_samples(manifest, args.dataset, args.split, args.list, args.sort_log)
    results = Results(args.result, manifest)
    masks = MaskWriter(args.save_masks, manifest.dataset_info(), output / "masks") if args.save_masks else None
    scores = score(manifest, results.ids, samples, masks)
    write_scores(scores, manifest, results, output / "eval.json")
    print(f"Total number of images: {scores['images']}")
    print(format_table(scores, manifest.dataset.classes))
    print(f"mIoU {100 * scores['miou']:.2f} %, pixel accuracy {100 * scores['pixel_accuracy']:.2f} %; "
          f"written to {output / 'eval.json'}")


class Results:
    """Result files of the runner, of ais_bench or of msit benchmark, by sample name.

    The runner writes ``NAME.png`` (ids) or ``NAME.bin`` (logits); ais_bench ``NAME_0.bin``, ``.npy`` or ``.txt``, where
    NAME is the input file's name up to its first dot. Its ``<folder>_summary.json``, if there, is trusted more.

    Args:
        folder: Folder of the results.
        manifest: Of the model that made them.
    """

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        if not self.folder.is_dir():
            raise DataError(f"--result {self.folder}: no such folder; give the one the runner or ais_bench wrote into")
        self.summary = _read_json(self.folder / "summary.json")
        self.ais_bench = _read_json(self.folder.resolve().parent / f"{self.folder.resolve().name}_summary.json")
        self._owner: dict[Path, str] = {}
        self._listed: dict[str, Path] = {}
        for entry in (self.ais_bench.get("filesinfo") or {}).values():
            if entry.get("infiles") and entry.get("outfiles"):
                # The folder may have been copied here since: only the file names count.
                self._listed[Path(entry["infiles"][0]).stem] = self.folder / Path(entry["outfiles"][0]).name

    def path(self, name: str) -> Path:
        """The result file of a sample.

        Raises:
            DataError: There is none (says so by name, with the runner's reason if it has one), or it also belongs to
                another sample.
        """
        stems = (name, f"{name}_0", f"{name}_leftImg8bit_0", f"{name.split('.')[0]}_0")
        listed = (self._listed.get(key) for key in (name, f"{name}_leftImg8bit"))
        plain = (self.folder / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
        for path in (*filter(None, listed), *plain):
            if path.is_file():
                owner = self._owner.setdefault(path, name)
                if owner != name:
                    raise DataError(f"{path}: stands for both '{owner}' and '{name}': ais_bench cuts names at the "
                                    f"first dot; put its {self.folder.name}_summary.json beside the folder")
                return path
        failed = {item.get("file", ""): item.get("error", "") for item in self.summary.get("failed") or []}
        reason = next((error for file, error in failed.items() if name in file), "")
        why = f"the runner failed on it: {reason}" if reason else "run the inference again, or check --split"
        raise DataError(f"{self.folder}: no result for sample '{name}' (searched {name}.png, {name}.bin, "
                        f"{name}_0.bin, .npy, .txt); {why}")

    def ids(self, sample: Sample, size: tuple[int, int]) -> np.ndarray:
        """Class ids uint8 (height, width) of a sample at its own size, which its label has too."""
        return self.manifest.input.eval_resize.restore(self.read(sample.name), size, size)

    def read(self, name: str) -> np.ndarray:
        """Ids (H, W) or logits (C, H, W) at the model's size."""
        path = self.path(name)
        if path.suffix == ".png":
            ids = decode_label_values(read_bytes(path), str(path))
            if ids.shape != self.manifest.input.size:
                raise DataError(f"{path}: result of {ids.shape[0]}x{ids.shape[1]}, the manifest's model gives "
                                f"{'x'.join(map(str, self.manifest.input.size))}; is it of another model?")
            return ids
        return interpret(_load_values(path), self.manifest, str(path))


def _load_values(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".txt":
            return np.array(path.read_text(encoding="ascii").split(), dtype=np.float32)
        return np.fromfile(path, np.uint8)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot read this result ({first_line(error)}); run the inference again") from error


def interpret(values: np.ndarray, manifest: Manifest, name: str) -> np.ndarray:
    """Tells what a result file holds by its size.

    Args:
        values: Raw bytes (uint8, one-dimensional) of a ``.bin``, or the typed array of a ``.npy`` or ``.txt``.
        manifest: Of the model.
        name: File name for error messages.

    Returns:
        Class ids (H, W), or logits (C, H, W) as float32. Where one size fits both (fp16 logits of two classes are as
        long as int32 ids), the manifest's output type decides.

    Raises:
        DataError: The size fits neither, or ids are no class ids.
    """
    (height, width), classes = manifest.input.size, manifest.num_classes
    pixels = height * width
    typed = values.dtype != np.uint8 or values.ndim > 1
    if typed:
        kinds = {pixels: [("ids", values.dtype)], pixels * classes: [("logits", values.dtype)]}
        found = kinds.get(values.size, [])
    else:
        found = [("ids", dtype) for dtype in _ID_TYPES if values.size == pixels * np.dtype(dtype).itemsize]
        found += [("logits", dtype) for dtype in (np.float16, np.float32)
                  if values.size == pixels * classes * np.dtype(dtype).itemsize]
    if not found:
        unit = "values" if typed else "bytes"
        raise DataError(f"{name}: {values.size} {unit} are neither class ids nor logits of {classes} classes for a "
                        f"model of {height}x{width}; is it the result of another model or batch size?")
    expected = "logits" if manifest.output.type == "logits" else "ids"
    kind, dtype = next((item for item in found if item[0] == expected), found[0])
    values = values.reshape(-1) if typed else np.frombuffer(values, dtype)
    if kind == "logits":
        return values.reshape(classes, height, width).astype(np.float32)
    if values.min() < 0 or values.max() >= classes:
        raise DataError(f"{name}: values from {values.min()} to {values.max()} are no ids of {classes} classes; "
                        "is it the result of another model?")
    return values.reshape(height, width).astype(np.uint8)


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
    record |= scores
    if results.summary:
        record["runner"] = {key: value for key, value in results.summary.items() if key != "failed"}
    times = {key: results.ais_bench[key] for key in ("NPU_compute_time", "H2D_latency", "D2H_latency", "throughput")
             if key in results.ais_bench}
    if times:
        record["ais_bench"] = times
    write_json(path, record)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read this summary ({first_line(error)}); remove it or run the inference "
                        "again") from error
    return content if isinstance(content, dict) else {}
