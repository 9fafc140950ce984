"""What a data set is: its classes, colours and label ids, and where its files lie.

Train ids are 0..C-1 and 255 for "ignored", whatever the label files hold. A label LUT (lookup table, uint8 (256,)) maps
one to the other.
"""
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindseg.errors import DataError

IGNORE = 255      # the train id of a pixel that neither loss nor metric sees
UNMAPPED = 254    # in a label LUT: this label value must not occur
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class DatasetInfo:
    """One data set.

    Attributes:
        name: ``cityscapes``, ``voc`` or ``list``.
        classes: Class names, in the order of the train ids.
        palette: One ``(r, g, b)`` a class.
        ignore_id: The train id that is left out, always 255.
        id_to_train: Label LUT: the train id of each label value, ``UNMAPPED`` where a value must not occur.
            ``None``: the label files hold train ids already.
        train_to_id: The official label id of each class, or ``None`` if train ids are official.
    """
    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_id: int = IGNORE
    id_to_train: np.ndarray | None = None
    train_to_id: tuple[int, ...] | None = None

    def label_lut(self) -> np.ndarray:
        """The label LUT: ``id_to_train``, or the one of files that hold train ids already."""
        return train_id_lut(len(self.classes)) if self.id_to_train is None else self.id_to_train


@dataclass(frozen=True)
class Sample:
    """One image and, unless it belongs to a test split, its label. ``name`` has no slashes."""
    name: str
    image: Path
    label: Path | None


def label_lut(mapping: Mapping[int, int]) -> np.ndarray:
    """Builds a label LUT.

    Args:
        mapping: Train id (0..253, or 255 for ignored) for each legal label value 0..255.

    Returns:
        uint8 array of 256, ``UNMAPPED`` for every other value.

    Raises:
        DataError: A value or train id is out of range.
    """
    lut = np.full(256, UNMAPPED, np.uint8)
    for value, train_id in mapping.items():
        if not 0 <= value <= 255 or not 0 <= train_id <= 255 or train_id == UNMAPPED:
            raise DataError(f"label value {value} -> train id {train_id}: values are 0..255, train ids 0..253 or 255")
        lut[value] = train_id
    return lut


def train_id_lut(num_classes: int, ignore: int = IGNORE) -> np.ndarray:
    """The LUT of label files that hold train ids: 0..num_classes-1 stay, ``ignore`` and 255 become 255."""
    return label_lut({**{i: i for i in range(num_classes)}, ignore: IGNORE, IGNORE: IGNORE})


# name, official label id, colour: https://github.com/mcordts/cityscapesScripts (helpers/labels.py)
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)
_CITYSCAPES_IDS = {**{value: IGNORE for value in range(34)}, **{row[1]: i for i, row in enumerate(_CITYSCAPES)}}
CITYSCAPES = DatasetInfo(
    "cityscapes", tuple(row[0] for row in _CITYSCAPES), tuple(row[2] for row in _CITYSCAPES),
    id_to_train=label_lut(_CITYSCAPES_IDS), train_to_id=tuple(row[1] for row in _CITYSCAPES))


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """The PASCAL VOC colours: bit k of the class id goes to bit 7 - k // 3 of red, green or blue in turn."""
    colours = []
    for index in range(count):
        rgb = [0, 0, 0]
        for bit in range(8):
            rgb[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colours.append(tuple(rgb))
    return tuple(colours)


VOC = DatasetInfo(
    "voc", ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
            "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    voc_palette(21))


_VOC_IMAGES = ("JPEGImages", "img")    # the second name is that of the SBD archive and of older MindSpore recipes
_VOC_LABELS = ("SegmentationClass", "SegmentationClassAug", "cls_png")


def dataset_info(data: Mapping) -> DatasetInfo:
    """The data set that a configuration's ``data`` section describes.

    Args:
        data: ``name``; for ``list`` also ``class_names`` and, if wanted, ``palette``, ``ignore_id`` (the label value
            to leave out) or ``label_map`` (``{label value: train id}``, for files whose values are not 0..C-1).

    Raises:
        DataError: Unknown name, or class names and palette do not fit each other.
    """
    name = data["name"]
    if name in ("cityscapes", "voc"):
        return CITYSCAPES if name == "cityscapes" else VOC
    if name != "list":
        raise DataError(f"data.name = {name}: no such data set; use cityscapes, voc or list")
    classes = tuple(data.get("class_names") or ())
    if not 1 <= len(classes) < UNMAPPED:
        raise DataError(f"data.name = list: data.class_names holds {len(classes)} names; give 1 to {UNMAPPED - 1}")
    palette = data.get("palette") or voc_palette(len(classes))
    if len(palette) != len(classes) or not all(map(_is_colour, palette)):
        raise DataError(f"data.palette: give one [r, g, b] of 0..255 for each of the {len(classes)} classes")
    mapping = data.get("label_map")
    if mapping:
        lut = label_lut({IGNORE: IGNORE, **{_whole(k): _whole(v) for k, v in mapping.items()}})
        wrong = sorted(int(i) for i in np.unique(lut) if len(classes) <= i < UNMAPPED)
        if wrong:
            raise DataError(f"data.label_map: train id {wrong[0]} has no class; there are {len(classes)} classes")
    else:
        lut = train_id_lut(len(classes), data.get("ignore_id", IGNORE))
    return DatasetInfo("list", classes, tuple(map(tuple, palette)), id_to_train=lut)


def _is_colour(value: object) -> bool:
    return (isinstance(value, (list, tuple)) and len(value) == 3
            and all(isinstance(v, int) and 0 <= v <= 255 for v in value))


def _whole(value: object) -> int:
    """A label value or train id of ``data.label_map``; a text of digits will do."""
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    raise DataError(f"data.label_map: {value!r} is no whole number; write {{label value: train id}}, such as "
                    "{0: 0, 255: 1}")


def cityscapes_encoding(label_values: Iterable[np.ndarray], file_name: str = "") -> str:
    """Tells ``labelIds`` from ``labelTrainIds`` by the values of some label files.

    19..33 occur only in ids; 255 only in train ids. If neither is seen the file name decides.

    Args:
        label_values: The values of each file, looked at until one of them settles it.
        file_name: Name of one of the files.
    """
    for values in label_values:
        if ((values >= len(_CITYSCAPES)) & (values < 34)).any():
            return "labelIds"
        if (values == IGNORE).any():
            return "labelTrainIds"
    return "labelTrainIds" if "TrainIds" in file_name else "labelIds"


def split_and_list(data: Mapping, split: str) -> tuple[str, str | None]:
    """Turns the roles ``train`` and ``eval`` into a split name and a list file; other names pass through."""
    if split in ("train", "eval"):
        default = "train" if split == "train" else "val"
        return data.get(f"{split}_split") or default, data.get(f"{split}_list")
    return split, None


def list_samples(data: Mapping, split: str, problems: list[str] | None = None) -> list[Sample]:
    """Lists the samples of a split, from a list file if the configuration names one, else from the folders.

    Args:
        data: ``name`` and ``root``; optional ``train_split``, ``eval_split``, ``train_list``, ``eval_list``,
            ``label_file``.
        split: The role ``train`` or ``eval``, or the name of a split such as ``val``, ``test`` or ``trainval``.
        problems: If given, images without label and labels without image are appended here instead of raised.

    Returns:
        The samples in a fixed order.

    Raises:
        DataError: Nothing found (says what was searched), a pair is incomplete, or a listed file is missing.
    """
    name = data["name"]
    if not data.get("root"):
        raise DataError("data.root is not set: give the folder of the data set, --set data.root=FOLDER")
    root = Path(data["root"])
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data.root must be the folder of the data set")
    split, list_file = split_and_list(data, split)
    if list_file:
        samples = _read_list(Path(list_file), root, name, problems)
    elif name == "cityscapes":
        samples = _cityscapes(root, split, data.get("label_file") or "auto", problems)
    elif name == "voc":
        samples = _read_list(_voc_root(root) / "ImageSets" / "Segmentation" / f"{split}.txt", root, name, problems)
    else:
        samples = _listed_or_paired_folders(root, split, problems)
    return _unique_names(samples, root)


def _report(problems: list[str] | None, text: str) -> None:
    if problems is None:
        raise DataError(text)
    problems.append(text)


def _cityscapes(root: Path, split: str, label_file: str, problems: list[str] | None) -> list[Sample]:
    samples = []
    for part in ("train", "val") if split == "trainval" else (split,):
        images = sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.*"))
        if not images:
            raise DataError(f"split '{part}' is empty: searched {root}/leftImg8bit/{part}/*/*_leftImg8bit.png; "
                            "check data.root and the split")
        found = {p.as_posix() for p in (root / "gtFine" / part).glob("*/*_gtFine_label*Ids.png")}
        if part == "test" and not found:
            samples += [Sample(_stem(p), p, None) for p in images]
            continue
        kinds = ("labelIds", "labelTrainIds") if label_file == "auto" else (label_file,)
        for image in images:
            base = f"{root.as_posix()}/gtFine/{part}/{image.parent.name}/{_stem(image)}_gtFine_"
            label = next((f"{base}{kind}.png" for kind in kinds if f"{base}{kind}.png" in found), None)
            if label is None:
                _report(problems, f"{image}: no label; searched {' and '.join(f'{base}{kind}.png' for kind in kinds)}")
            else:
                samples.append(Sample(_stem(image), image, Path(label)))
        names = {(image.parent.name, _stem(image)) for image in images}
        for label in sorted(found):
            if (Path(label).parent.name, Path(label).name.split("_gtFine_")[0]) not in names:
                _report(problems, f"{label}: label without an image; add the image or remove it")
    return samples


def _stem(image: Path) -> str:
    return image.stem.removesuffix("_leftImg8bit")


def _voc_root(root: Path) -> Path:
    """VOC archives unpack to ``VOCdevkit/VOC2012``; any of the three levels is accepted."""
    return next((p for p in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
                 if (p / "JPEGImages").is_dir()), root)


def read_lines(list_file: Path) -> list[tuple[int, str]]:
    """Numbered lines of a list, without blanks, comments, byte order mark, or the CR of a CRLF.

    Raises:
        DataError: The list cannot be read.
    """
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{list_file}: no such list of samples; check data.root, the split and the list") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot read this list of samples ({error})") from None
    lines = ((i, line.strip()) for i, line in enumerate(text.splitlines(), 1))
    return [(i, line) for i, line in lines if line and not line.startswith("#")]


def _read_list(list_file: Path, root: Path, name: str, problems: list[str] | None) -> list[Sample]:
    """Reads ``image,label`` (also split by blanks) or, for VOC, a bare image id, one a line."""
    samples = []
    bases = (root, list_file.parent)
    if name == "voc":
        bases = (_voc_root(root), *bases)
    for number, line in read_lines(list_file):
        fields = [f.strip() for f in line.split(",")] if "," in line else line.split()
        if len(fields) == 1 and name == "voc":
            images = [f"{d}/{line}{e}" for d in _VOC_IMAGES for e in (".jpg", ".png")]
            labels = [f"{d}/{line}.png" for d in _VOC_LABELS]
        elif len(fields) == 2:
            images, labels = [fields[0]], [fields[1]]
        else:
            raise DataError(f"{list_file}:{number}: '{line}' is not of the form image,label")
        image, label = _first_file(bases, images), _first_file(bases, labels)
        if image and label:
            samples.append(Sample(_stem(image), image, label))
        else:
            tried = ", ".join(str(base / n) for base in dict.fromkeys(bases) for n in (labels if image else images))
            _report(problems, f"{list_file}:{number}: no such file; searched {tried}")
    if not samples and not problems:
        raise DataError(f"{list_file}: the list holds no samples; write one image,label a line")
    return samples


def _first_file(bases: Iterable[Path], names: list[str]) -> Path | None:
    return next((base / name for base in bases for name in names if (base / name).is_file()), None)


def _listed_or_paired_folders(root: Path, split: str, problems: list[str] | None) -> list[Sample]:
    """``<split>.txt`` in the root, or folders ``<split>`` and ``<split>annot`` with files of equal stems (CamVid)."""
    list_file, images_dir, labels_dir = root / f"{split}.txt", root / split, root / f"{split}annot"
    if list_file.is_file():
        return _read_list(list_file, root, "list", problems)
    images = {p.stem: p for p in sorted(images_dir.glob("*")) if p.suffix.lower() in IMAGE_SUFFIXES}
    labels = {p.stem: p for p in sorted(labels_dir.glob("*.png"))}
    if not images:
        raise DataError(f"split '{split}' is empty: searched the list {list_file} and images in {images_dir}; "
                        "check data.root, the split or data.train_list / data.eval_list")
    for stem in sorted(images.keys() ^ labels.keys()):
        if stem in images:
            _report(problems, f"{images[stem]}: no label; searched {labels_dir / stem}.png")
        else:
            _report(problems, f"{labels[stem]}: label without an image; searched {images_dir / stem}.*")
    return [Sample(stem, image, labels[stem]) for stem, image in images.items() if stem in labels]


def _unique_names(samples: list[Sample], root: Path) -> list[Sample]:
    """Names are file stems; where two images share one, the folder is put in front."""
    counts = Counter(s.name for s in samples)
    if len(counts) == len(samples):
        return samples
    renamed = []
    for s in samples:
        if counts[s.name] > 1:
            path = s.image.relative_to(root) if s.image.is_relative_to(root) else s.image.absolute()
            s = Sample("__".join(p for p in path.with_suffix("").parts if p != "/"), s.image, s.label)
        renamed.append(s)
    twice = [name for name, count in Counter(s.name for s in renamed).items() if count > 1]
    if twice:
        raise DataError(f"sample '{twice[0]}' is listed more than once; every image must occur once in a split")
    return renamed
