"""Makes VOC's trainaug split: VOC 2012 train plus the SBD labels, without any image of VOC's val.

Writes SBD's `.mat` labels as palette PNGs and a list of `image,label` lines. On the full sets these are 10,582 images.
"""
import os
from pathlib import Path

import numpy as np
import scipy.io
from tqdm import tqdm

from mindseg.commands.arguments import create_parser
from mindseg.data.datasets import VOC, voc_palette
from mindseg.data.samples import check_name, read_lines
from mindseg.drawing import save_palette_png
from mindseg.errors import DataError, first_line
from mindseg.files import check_regular, write_text
from mindseg.outputs import OutputFolder, check_new, output_path

EXAMPLES = """examples:
  mindseg build-trainaug --voc data/VOCdevkit/VOC2012 --sbd data/benchmark_RELEASE
  mindseg build-trainaug --voc data/VOC2012 --sbd data/benchmark_RELEASE --output data/trainaug.txt
then train with
  --set data.name=voc --set data.root=data/VOCdevkit/VOC2012 --set data.train_split=trainaug"""


def read_ids(list_file: Path) -> set[str]:
    """Reads the image ids of a list.

    Line ends and blanks never belong to an id: else a list with CRLF, or without a last line end, would match nothing,
    and validation images would slip into training.

    Raises:
        DataError: The list cannot be read, or an id cannot become a file name.
    """
    ids = set()
    for number, line in read_lines(list_file):
        name = line.split()[0]
        check_name(name, f"{list_file}:{number}")
        ids.add(name)
    return ids


def sbd_folder(sbd: Path) -> Path:
    """Finds the folder with cls/, img/ and the lists, which the archive puts two levels down."""
    for folder in (sbd, sbd / "dataset", sbd / "benchmark_RELEASE" / "dataset"):
        if (folder / "cls").is_dir():
            return folder
    raise DataError(f"{sbd}: no folder cls/ with .mat labels; searched also dataset/cls and "
                    "benchmark_RELEASE/dataset/cls: give the unpacked SBD archive")


def read_mat(path: Path) -> np.ndarray:
    """Reads the class labels of one SBD file, uint8 (H, W)."""
    try:
        check_regular(path)
        label = scipy.io.loadmat(str(path))["GTcls"]["Segmentation"][0, 0]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, but SBD's lists name it; unpack the archive again") from None
    except Exception as error:      # the parser fails in a dozen ways, all of which mean the same
        raise DataError(f"{path}: no SBD label ({type(error).__name__}: {first_line(error)}); unpack the archive again"
                        ) from None
    if label.ndim != 2 or label.min() < 0 or label.max() >= len(VOC.classes):
        raise DataError(f"{path}: label of shape {label.shape} with values {label.min()}..{label.max()}; "
                        f"expected two dimensions and 0..{len(VOC.classes) - 1}")
    return label.astype(np.uint8)


def find_image(name: str, voc: Path, sbd: Path) -> Path:
    """Finds the photograph of an id in the folders of VOC or, failing that, of SBD."""
    for path in (voc / "JPEGImages" / f"{name}.jpg", sbd / "img" / f"{name}.jpg"):
        if path.is_file():
            return path
    raise DataError(f"{voc / 'JPEGImages' / name}.jpg: no such image, nor {sbd / 'img' / name}.jpg")


def build(voc: Path, sbd: Path, output: Path, label_dir: Path, overwrite: bool = False) -> tuple[int, int, int]:
    """Writes labels and list.

    Args:
        voc: VOC2012 folder.
        sbd: SBD folder with cls/.
        output: List file.
        label_dir: Folder of the new labels.
        overwrite: Replace label files that this program did not write.

    Returns:
        Number of samples from VOC train, from SBD, and of SBD ids left out because VOC's val holds them.
    """
    lists = voc / "ImageSets" / "Segmentation"
    train, val = read_ids(lists / "train.txt"), read_ids(lists / "val.txt")
    extra = read_ids(sbd / "train.txt") | read_ids(sbd / "val.txt")
    both = train & val
    if both:
        raise DataError(f"{lists}: '{min(both)}' stands in train.txt and in val.txt; restore the lists")
    new = sorted(extra - train - val)
    pairs = {}
    for name in sorted(train):
        label = voc / "SegmentationClass" / f"{name}.png"
        if not label.is_file():
            raise DataError(f"{label}: no such label, but {lists / 'train.txt'} names it")
        pairs[name] = find_image(name, voc, sbd), label
    with OutputFolder(label_dir, overwrite) as folder:
        for name in tqdm(new, desc="labels", unit="image"):
            pairs[name] = find_image(name, voc, sbd), output_path(label_dir, f"{name}.png", str(sbd))
            label = read_mat(sbd / "cls" / f"{name}.mat")
            folder.claim(pairs[name][1])
            save_palette_png(pairs[name][1], label, voc_palette(256))
    lines = [",".join(Path(os.path.relpath(path, voc)).as_posix() for path in pairs[name]) for name in sorted(pairs)]
    write_text(output, "".join(f"{line}\n" for line in lines))
    return len(train), len(new), len(extra & val)


def main() -> None:
    """Builds the split."""
    parser = create_parser(__doc__, EXAMPLES)
    parser.add_argument("--voc", required=True, type=Path, help="VOC2012 folder, with JPEGImages/ and ImageSets/")
    parser.add_argument("--sbd", required=True, type=Path, help="unpacked SBD archive (benchmark_RELEASE)")
    parser.add_argument("--output", type=Path, help="list (default: VOC/ImageSets/Segmentation/trainaug.txt)")
    parser.add_argument("--label_dir", type=Path, help="folder of the new PNGs (default: VOC/SegmentationClassAug)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing list and labels")
    args = parser.parse_args()
    output = args.output or args.voc / "ImageSets" / "Segmentation" / "trainaug.txt"
    check_new(output, args.overwrite)
    label_dir = args.label_dir or args.voc / "SegmentationClassAug"
    from_voc, from_sbd, left_out = build(args.voc, sbd_folder(args.sbd), output, label_dir,
                                         args.overwrite)
    print(f"{output}: {from_voc + from_sbd} samples, {from_voc} of VOC train and {from_sbd} of SBD; "
          f"{left_out} SBD images left out because VOC's val holds them")
