"""Writes model inputs: ``python preprocess.py --manifest DIR/deploy.yaml --dataset ROOT --output BINDIR``."""
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from mindseg.commands.arguments import add_dataset, create_parser
from mindseg.data.datasets import list_samples
from mindseg.data.samples import Sample, read_lines
from mindseg.errors import DataError, UserError
from mindseg.files import write_bytes, write_text
from mindseg.manifest import Manifest, load_manifest
from mindseg.outputs import OutputFolder, check_apart, output_path

EXAMPLES = """examples:
  python preprocess.py --manifest export/deploy.yaml --dataset data/cityscapes --output preprocess_Result
  python preprocess.py --manifest export/deploy.yaml --dataset data/own --list data/own/val.txt --output bins
"""


def main() -> None:
    """Writes the input files of the runner."""
    parser = create_parser("Write one .bin per image, and files.txt, for runner or ais_bench.", EXAMPLES)
    add_dataset(parser)
    parser.add_argument("--output", required=True, metavar="BINDIR", help="folder for the bins, made if need be")
    parser.add_argument("--link_images", action="store_true", help="only link the images; the runner will decode them")
    parser.add_argument("--overwrite", action="store_true", help="also replace files that this program did not write")
    args = parser.parse_args()
    check_apart(args.dataset, args.output)
    manifest = load_manifest(args.manifest)
    samples = find_samples(manifest, args.dataset, args.split, args.list)
    if args.link_images:
        link_images(samples, Path(args.output), args.overwrite)
        print(f"{len(samples)} links to images of {manifest.dataset.name} in {args.output}")
        return
    preprocess(manifest, samples, Path(args.output), args.overwrite)
    print(f"{len(samples)} images of {manifest.dataset.name} in {args.output}, {manifest.input.dtype} "
          f"{manifest.input.layout} {'x'.join(map(str, manifest.input.shape[1:]))}")


NAMES_FILE = "files.txt"
_WRITERS = 2       # decoding and writing overlap; more threads only fight for the disk


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
    samples = list_samples(manifest.data_section() | place, "eval")
    if names_file is None:
        return samples
    by_name = {sample.name: sample for sample in samples}
    chosen = []
    for number, line in read_lines(Path(names_file)):
        stem = Path(line.split(",")[0]).name
        name = next((n for n in (stem, Path(stem).stem.removesuffix("_leftImg8bit")) if n in by_name), None)
        if name is None:
            raise DataError(f"{names_file}:{number}: sample '{stem}' is not in {root}; check --dataset and --split")
        chosen.append(by_name[name])
    return chosen


def preprocess(manifest: Manifest, samples: Sequence[Sample], output: Path, overwrite: bool = False) -> None:
    """Writes ``<name>.bin`` for each sample, the exact bytes of a batch of one, and ``files.txt`` with their names.

    Args:
        manifest: Of the model.
        samples: Their labels are not read.
        output: Folder, made if need be; files of an earlier call are removed. ``files.txt`` is removed first and
            written last: it stands for a whole set.
        overwrite: Replace files that this program did not write.

    Raises:
        UserError: An image is broken or does not fit, the disk is too small, or the folder cannot be written.
    """
    spec = manifest.input
    size = math.prod(spec.shape[1:]) * (1 if spec.dtype == "uint8" else 4)
    paths = {sample: output_path(output, f"{sample.name}.bin", str(sample.image)) for sample in samples}

    def work(sample: Sample) -> None:
        tensor = spec.prepare(spec.read_image(sample.image), str(sample.image))
        write_bytes(paths[sample], tensor.tobytes())

    with _claimed(output, overwrite, [output / NAMES_FILE, *paths.values()], size * len(samples)), \
            ThreadPoolExecutor(_WRITERS) as pool:
        (output / NAMES_FILE).unlink(missing_ok=True)
        try:
            for _ in tqdm(pool.map(work, samples), desc="preprocess", total=len(samples), unit="image", disable=None):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        write_text(output / NAMES_FILE, "".join(f"{sample.name}\n" for sample in samples))


def link_images(samples: Sequence[Sample], output: Path, overwrite: bool = False) -> None:
    """Makes a folder of links ``<name>.<suffix>`` to the samples' images, for a runner that decodes by itself.

    Args:
        samples: Their labels are not read.
        output: Folder, made if need be; files of an earlier call are removed.
        overwrite: Replace files that this program did not write.

    Raises:
        UserError: The folder cannot be written, or something else stands there under such a name.
    """
    links = {sample: output_path(output, f"{sample.name}{sample.image.suffix}", str(sample.image))
             for sample in samples}
    with _claimed(output, overwrite, list(links.values())):
        for sample, link in links.items():
            try:
                link.unlink(missing_ok=True)
                link.symlink_to(sample.image.resolve())
            except OSError as error:
                raise UserError(f"{link}: cannot be made ({error.strerror}); choose another --output") from error


def _claimed(output: Path, overwrite: bool, paths: list[Path], needed: int = 0) -> OutputFolder:
    """The output folder, with its files claimed, older ones removed, and room for ``needed`` bytes."""
    folder = OutputFolder(output, overwrite)
    try:
        folder.claim(*paths)
        folder.remove_old()
        free = shutil.disk_usage(output).free
        if free < needed:
            raise UserError(f"--output {output}: the bins take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                            "choose another disk, let the runner read the images, or export with "
                            "export.normalize_in_graph=true")
    except UserError:
        folder.close()
        raise
    return folder
