"""Pairs of image and label files, found in folders or named by list files."""
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mindseg.errors import DataError, UserError, shorten
from mindseg.files import check_regular
from mindseg.outputs import output_path

_MAX_NAME = 1000
_MAX_LINE = 10000
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Sample:
    """One image and, unless it belongs to a test split, its label.

    Attributes:
        name: Name without slashes, unique in its split.
        image: Image file.
        label: Label file, or ``None``.
    """
    name: str
    image: Path
    label: Path | None


def check_name(name: str, source: str) -> None:
    """Refuses a sample name that cannot become the name of a result.

    Args:
        name: Name of a sample.
        source: Origin of the name, for the message.

    Raises:
        DataError: The name has a slash, is not UTF-8, is very long, or :func:`output_path` refuses it.
    """
    source = repr(source)[1:-1]     # it may hold the name
    try:
        output_path("", name, source)
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{source}: the file name {shorten(name)} is not UTF-8; rename the file") from None
    except UserError as error:
        raise DataError(str(error)) from None
    if "/" in name or len(name) > _MAX_NAME:
        raise DataError(f"{source}: the name of a sample {shorten(name)} must have no slash and at most {_MAX_NAME} "
                        "characters; rename it")


def image_stem(image: Path) -> str:
    """File name of an image without suffix and without Cityscapes' ``_leftImg8bit``."""
    return image.stem.removesuffix("_leftImg8bit")


def pair_files(images: Mapping[str, Path], labels: Mapping[str, Path], label_name: Callable[[str], str],
               problems: list[str]) -> list[Sample]:
    """Pairs image and label files that have the same key, in the order of the images.

    ``problems`` receives a message for each file without a partner; ``label_name(key)`` is the label that it asks for.
    """
    problems += [f"{image}: no label; searched {label_name(key)}" for key, image in images.items() if key not in labels]
    problems += [f"{labels[key]}: label without an image; add the image or remove it"
                 for key in sorted(labels.keys() - images.keys())]
    return [Sample(image_stem(image), image, labels[key]) for key, image in images.items() if key in labels]


def read_lines(list_file: Path) -> list[tuple[int, str]]:
    """Reads the numbered lines of a text file, without blanks, comments, byte order mark, or the CR of a CRLF.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        check_regular(list_file)
        text = list_file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{list_file}: no such list of samples; check data.root, the split and the list") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot read this list of samples ({error})") from None
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    for number, line in lines:
        if len(line) > _MAX_LINE or "\0" in line:
            raise DataError(f"{list_file}:{number}: {shorten(line)} is no line of names: it has {len(line)} characters "
                            f"(at most {_MAX_LINE}) or a NUL; write the list again")
    return [(i, line) for i, line in lines if line and not line.startswith("#")]


def read_list(list_file: Path, folders: Iterable[Path], problems: list[str],
              files_of_id: Callable[[str], tuple[list[str], list[str]]] | None = None) -> list[Sample]:
    """Reads a list of samples: ``image,label`` or ``image label``, one pair a line.

    Args:
        list_file: Text file.
        folders: Folders that the names may be relative to; the list's own folder comes last.
        problems: Receives a message for each missing file.
        files_of_id: Returns possible images and labels of a line that is a bare image id; ``None``: no such lines.
    """
    samples, folders = [], tuple(dict.fromkeys((*folders, list_file.parent)))
    for number, line in read_lines(list_file):
        fields = [f.strip() for f in line.split(",")] if "," in line else line.split()
        if len(fields) == 1 and files_of_id:
            images, labels = files_of_id(line)
        elif len(fields) == 2:
            images, labels = [fields[0]], [fields[1]]
        else:
            raise DataError(f"{list_file}:{number}: {shorten(line)} is not of the form image,label")
        image, label = _first_file(folders, images), _first_file(folders, labels)
        if image and label:
            check_name(image_stem(image), f"{list_file}:{number}")
            samples.append(Sample(image_stem(image), image, label))
        else:
            searched = ", ".join(str(folder / name) for folder in folders for name in (labels if image else images))
            problems.append(f"{list_file}:{number}: no such file; searched {searched[:600]}")
    if not samples and not problems:
        raise DataError(f"{list_file}: the list holds no samples; write one image,label a line")
    return samples


def _first_file(folders: Iterable[Path], names: list[str]) -> Path | None:
    return next((folder / name for folder in folders for name in names if _is_file(folder / name)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:     # such as a name that is too long
        return False


def unique_names(samples: list[Sample], root: Path) -> list[Sample]:
    """Puts the folders below ``root`` in front of the names that two samples share.

    Raises:
        DataError: An image is listed twice, or its name cannot become that of a result.
    """
    counts = Counter(s.name for s in samples)
    samples = [replace(s, name=_long_name(s.image, root)) if counts[s.name] > 1 else s for s in samples]
    twice = [name for name, count in Counter(s.name for s in samples).items() if count > 1]
    if twice:
        raise DataError(f"sample '{twice[0]}' is listed more than once; every image must occur once in a split")
    for sample in samples:
        check_name(sample.name, str(sample.image))
    return samples


def _long_name(image: Path, root: Path) -> str:
    path = image.relative_to(root) if image.is_relative_to(root) else image.absolute()
    return "__".join(part for part in path.with_suffix("").parts if part != "/")
