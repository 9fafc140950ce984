"""Writes model inputs: ``python preprocess.py --manifest DIR/deploy.yaml --dataset ROOT --output BINDIR``."""
import argparse
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mindseg.data.datasets import Sample, list_samples, read_lines
from mindseg.data.decode import decode_image
from mindseg.data.transforms import normalize
from mindseg.errors import DataError, UserError
from mindseg.files import read_bytes, write_bytes, write_text
from mindseg.manifest import InputSpec, Manifest, load_manifest

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


NAMES_FILE = "files.txt"
_WRITERS = 2       # decoding and writing overlap; more threads only fight for the disk


def scaled_size(height: int, width: int, resize: dict[str, Any]) -> tuple[int, int]:
    """Size of an image after the manifest's resize rule, before padding.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        resize: ``{rule, size, pad}`` as in the manifest.
    """
    rule = resize["rule"]
    if rule == "none":
        return height, width
    if rule == "exact":
        return tuple(resize["size"])
    size = resize["size"]
    if isinstance(size, list):
        scale = min(size[0] / height, size[1] / width)
    else:
        scale = size / (min(height, width) if rule == "short_side" else max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def fit_image(image: np.ndarray, spec: InputSpec, name: str = "image") -> np.ndarray:
    """Resizes and pads to the model's size, in uint8.

    Args:
        image: uint8 (H, W, 3) in the manifest's colour order.
        spec: Input of the model.
        name: For error messages.

    Returns:
        uint8 (height, width, 3) of the model's size, contiguous.

    Raises:
        DataError: The result of the resize rule does not fit the model.
    """
    height, width = image.shape[:2]
    inner = scaled_size(height, width, spec.resize)
    fits = inner[0] <= spec.size[0] and inner[1] <= spec.size[1]
    if not fits or (inner != spec.size and not spec.resize["pad"]):
        raise DataError(f"{name}: image of {height}x{width} becomes {inner[0]}x{inner[1]}, the model takes "
                        f"{spec.size[0]}x{spec.size[1]}; export it for that size or with resize rule 'exact'")
    if inner != (height, width):
        image = cv2.resize(image, inner[::-1], interpolation=cv2.INTER_LINEAR)
    if inner != spec.size:
        margins = (0, spec.size[0] - inner[0], 0, spec.size[1] - inner[1])
        image = cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=spec.pad_value)
    return np.ascontiguousarray(image)


def to_tensor(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    """One image of the model's size as the model takes it: float32 (3, H, W) normalised, or uint8 (H, W, 3)."""
    if spec.normalize == "graph":
        return image
    return normalize(image, spec.mean, spec.std, spec.value_range)


def read_image(path: Path, spec: InputSpec) -> np.ndarray:
    """Reads an image file as uint8 (H, W, 3) in the manifest's colour order."""
    image = decode_image(read_bytes(path), str(path))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if spec.color_order == "RGB" else image


def find_samples(manifest: Manifest, root: str | Path, split: str = "val", list_file: str | Path | None = None,
                 names_file: str | Path | None = None) -> list[Sample]:
    """Lists the data set that the manifest names.

    Args:
        manifest: Says which kind of data set it is.
        root: Its folder.
        split: Split to take.
        list_file: File of ``image,label`` lines to take instead of a split.
        names_file: Take only the samples of this list of names (``files.txt``, or an order file with image names).

    Raises:
        DataError: Nothing found, or a name of ``names_file`` is not in the data set.
    """
    place = {"root": str(root), "eval_split": split, "eval_list": None if list_file is None else str(list_file)}
    samples = list_samples(data_section(manifest) | place, "eval")
    if names_file is None:
        return samples
    by_name = {sample.name: sample for sample in samples}
    wanted = []
    for number, line in read_lines(Path(names_file)):
        stem = Path(line.split(",")[0]).name
        name = next((n for n in (stem, Path(stem).stem.removesuffix("_leftImg8bit")) if n in by_name), None)
        if name is None:
            raise DataError(f"{names_file}:{number}: sample '{stem}' is not in {root}; check --dataset and --split")
        wanted.append(by_name[name])
    return wanted


def data_section(manifest: Manifest) -> dict[str, Any]:
    """The part of a configuration's ``data`` section that tells the data set of the manifest."""
    d = manifest.dataset
    section = {"name": d.name, "class_names": list(d.classes), "palette": [list(c) for c in d.palette]}
    return section | ({"label_map": d.label_map} if d.label_map else {})


def preprocess(manifest: Manifest, samples: Sequence[Sample], output: Path) -> None:
    """Writes ``<name>.bin`` for each sample, the exact bytes of a batch of one, and ``files.txt`` with their names.

    Args:
        manifest: Of the model.
        samples: Their labels are not read.
        output: Folder, made if need be. ``files.txt`` is removed first and written last: it stands for a whole set.

    Raises:
        UserError: An image is broken or does not fit, the disk is too small, or the folder cannot be written.
    """
    spec = manifest.input
    size = math.prod(spec.shape[1:]) * (1 if spec.dtype == "uint8" else 4)
    _check_space(output, size * len(samples))
    (output / NAMES_FILE).unlink(missing_ok=True)

    def work(sample: Sample) -> None:
        image = fit_image(read_image(sample.image, spec), spec, str(sample.image))
        write_bytes(output / f"{sample.name}.bin", to_tensor(image, spec).tobytes())

    with ThreadPoolExecutor(_WRITERS) as pool:
        try:
            for _ in tqdm(pool.map(work, samples), desc="preprocess", total=len(samples), unit="image", disable=None):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    write_text(output / NAMES_FILE, "".join(f"{sample.name}\n" for sample in samples))


def link_images(samples: Sequence[Sample], output: Path) -> None:
    """Makes a folder of links ``<name>.<suffix>`` to the samples' images, for a runner that decodes by itself.

    Raises:
        UserError: The folder cannot be written, or something else stands there under such a name.
    """
    _check_space(output, 0)
    for sample in samples:
        link = output / f"{sample.name}{sample.image.suffix}"
        try:
            if link.is_symlink():
                link.unlink()
            link.symlink_to(sample.image.resolve())
        except OSError as error:
            raise UserError(f"{link}: cannot be made ({error.strerror}); choose another --output") from error


def _check_space(output: Path, needed: int) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output).free
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from error
    if free < needed:
        raise UserError(f"--output {output}: the bins take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose "
                        "another disk, let the runner read the images, or export with export.normalize_in_graph=true")
