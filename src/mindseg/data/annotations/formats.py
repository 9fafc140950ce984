"""The formats, and which one a file or folder has."""
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mindseg.data.annotations.bounded import Problems, read_json
from mindseg.data.annotations.coco import is_coco, read_coco
from mindseg.data.annotations.cvat import read_cvat
from mindseg.data.annotations.labelme import is_labelme, read_labelme
from mindseg.data.annotations.masks import read_masks
from mindseg.data.annotations.shapes import Collection
from mindseg.data.annotations.yolo import read_yolo
from mindseg.errors import DataError

# What counts where shapes of different classes overlap.
FORMATS = {"labelme": "the later shape", "coco": "the smaller shape", "cvat": "the shape with the higher z_order",
           "yolo": "the smaller shape", "masks": ""}


def detect_format(source: Path, colors: Path | None = None) -> tuple[str, Path]:
    """Finds the format of annotations.

    Args:
        source: File or folder.
        colors: Colour table of masks, which may lie among them.

    Returns:
        One of ``FORMATS``, and the file or folder to read.

    Raises:
        DataError: It has none of them.
    """
    if not source.is_dir():
        return _detect_file(source), source
    for name in ("labelmap.txt", "SegmentationClass"):
        if (source / name).exists():
            return "masks", source
    for name, kind in (("data.yaml", "yolo"), ("annotations.xml", "cvat")):
        if (source / name).is_file():
            return kind, source / name
    found = sorted(source.rglob("*.json"))
    if found:
        kind = "labelme"        # whose reader reports the mistakes of single files
        with suppress(DataError):
            kind = _detect_file(found[0])
        if kind == "coco" and len(found) > 1:
            raise DataError(f"{source}: holds {len(found)} files, such as {found[0]} of COCO; give one of them as "
                            "--input, and the one to evaluate on as --val_input")
        return kind, found[0] if kind == "coco" else source
    for pattern, kind in (("*.xml", "cvat"), ("*.txt", "yolo"), ("*.png", "masks")):
        files = sorted(path for path in source.rglob(pattern) if not (colors and path.resolve() == colors.resolve()))
        if files:
            return kind, files[0] if kind == "cvat" and len(files) == 1 else source
    raise DataError(f"{source}: holds no annotations; searched *.json, *.xml, *.txt and *.png: check --input")


def _detect_file(source: Path) -> str:
    if source.suffix.lower() in (".zip", ".tgz", ".gz", ".tar"):
        raise DataError(f"{source}: is an archive; unpack it and give its folder")
    kinds = {".xml": "cvat", ".yaml": "yolo", ".yml": "yolo"}
    if source.suffix.lower() in kinds:
        return kinds[source.suffix.lower()]
    tree = read_json(source)
    if is_coco(tree) or is_labelme(tree):
        return "coco" if is_coco(tree) else "labelme"
    raise DataError(f"{source}: is neither a file of LabelMe ('shapes') nor of COCO ('images', 'annotations'); give a "
                    "file or folder of one of the formats in docs/data.md")


def read_collection(kind: str, source: Path, problems: Problems, classes: Sequence[str] = (),
                    colors: Path | None = None, images: Path | None = None,
                    without: Sequence[Path] = (), like: Collection | None = None) -> Collection:
    """Reads annotations.

    Args:
        kind: One of ``FORMATS``.
        source: File or folder.
        problems: Receives the mistakes.
        classes: Names of the classes, for formats of numbers.
        colors: Colour table, for masks.
        images: Folder of the images, for formats that list them by their files.
        without: Folders inside that hold neither images nor masks.
        like: Annotations of the same data set, whose class numbers or colours have the same names.

    Raises:
        DataError: The annotations are wrong, or there are none.
    """
    if kind == "masks":
        collection = read_masks(source, problems, colors, classes, without, like)
    elif kind == "yolo":
        collection = read_yolo(source, problems, classes, images, without)
    else:
        collection = {"labelme": read_labelme, "coco": read_coco, "cvat": read_cvat}[kind](source, problems)
    if not collection.annotations:
        first = f"; the first mistake: {problems.messages[0]}" if problems.messages else ""
        raise DataError(f"{source}: holds no annotated image in the format {kind}{first}; check --input and --format")
    if not any(annotation.labels() for annotation in collection.annotations):
        raise DataError(f"{source}: {len(collection.annotations)} images, but not one shape in the format {kind}; "
                        "check --input and --format")
    return collection
