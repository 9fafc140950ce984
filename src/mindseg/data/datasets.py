"""Data sets: classes, colours, label encodings, folder layouts and submission formats.

Everything that one data set does differently from another is in its :class:`DatasetInfo`; a new one is added here and
to the legal values of ``data.name``.
"""
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mindseg.data.label_tables import ADE20K as ADE20K_TABLE
from mindseg.data.label_tables import MAPILLARY as MAPILLARY_TABLE
from mindseg.data.labels import IGNORE, UNMAPPED, label_lut, train_id_lut
from mindseg.data.palettes import default_palette
from mindseg.data.samples import IMAGE_SUFFIXES, Sample, image_stem, pair_files, read_list, unique_names
from mindseg.errors import ConfigError, DataError


@dataclass(frozen=True)
class Submission:
    """Format in which a benchmark server takes masks.

    Attributes:
        suffix: What follows the sample's name in the name of its mask.
        palette: The masks are palette images of class ids; otherwise grey images of official label ids.
        archive: File name of the archive; ``.tgz`` or ``.zip``.
        folder: Folder of the masks in the archive, with a slash behind it.
    """
    suffix: str = "_labelIds.png"
    palette: bool = False
    archive: str = "submission.zip"
    folder: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """One data set. This class is the one that users describe in a configuration; a benchmark has a subclass.

    Attributes:
        name: Value of ``data.name``.
        classes: Class names, in the order of the train ids.
        palette: One ``(r, g, b)`` a class.
        ignore_id: Train id that is left out, always 255.
        id_to_train: Label LUT, uint8 (256,); ``None``: the label files hold train ids already.
        train_to_id: Official label id of each class; ``None``: train ids are official.
        categories: Train ids of each category of classes, for the categories' IoU; empty if there are none.
        instance_sizes: Mean pixels of an instance, by class name, for iIoU; empty if there are no instance ids.
        submission: Format for the benchmark server.
    """
    name: str
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore_id: int = IGNORE
    id_to_train: np.ndarray | None = None
    train_to_id: tuple[int, ...] | None = None
    categories: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    instance_sizes: Mapping[str, float] = field(default_factory=dict)
    submission: Submission = Submission()

    two_encodings = False       # label files may hold official ids or train ids

    @property
    def label_map(self) -> dict[int, int] | None:
        """Train id of each legal label value; ``None`` for a benchmark, whose name tells it."""
        return {value: int(train_id) for value, train_id in enumerate(self.label_lut()) if train_id != UNMAPPED}

    def label_lut(self) -> np.ndarray:
        """Label LUT of the official label files, uint8 (256,)."""
        return train_id_lut(len(self.classes)) if self.id_to_train is None else self.id_to_train

    def choose_lut(self, label_file: str, values: Iterable[np.ndarray], file_name: str) -> np.ndarray:
        """Chooses between the LUTs for official ids and for train ids, where label files may hold either.

        Args:
            label_file: ``labelIds``, ``labelTrainIds``, or ``auto``: by a value that only one of the LUTs knows.
            values: Label values of some files, read until such a value is seen.
            file_name: Name of one of the files, which decides if none is seen.
        """
        if not self.two_encodings:
            return self.label_lut()
        luts = {"labelIds": self.label_lut(), "labelTrainIds": train_id_lut(len(self.classes))}
        if label_file in luts:
            return luts[label_file]
        ids, train_ids = (lut != UNMAPPED for lut in luts.values())
        for array in values:
            seen = np.bincount(array.ravel(), minlength=256) > 0
            if (seen & ids & ~train_ids).any():
                return luts["labelIds"]
            if (seen & train_ids & ~ids).any():
                return luts["labelTrainIds"]
        return luts["labelTrainIds" if "TrainIds" in file_name else "labelIds"]

    def read_list(self, list_file: Path, root: Path, problems: list[str]) -> list[Sample]:
        """Reads a list of samples below ``root``; ``problems`` receives a message for each missing file."""
        return read_list(list_file, (root,), problems)

    def find_samples(self, root: Path, split: str, label_file: str, problems: list[str]) -> list[Sample]:
        """Finds a split below ``root``: ``<split>.txt``, or folders ``<split>`` and ``<split>annot`` as in CamVid.

        ``problems`` receives a message for each missing file; ``label_file`` is the configuration's.
        """
        list_file, image_folder, label_folder = root / f"{split}.txt", root / split, root / f"{split}annot"
        if list_file.is_file():
            return self.read_list(list_file, root, problems)
        images = {p.stem: p for p in sorted(image_folder.glob("*")) if p.suffix.lower() in IMAGE_SUFFIXES}
        if not images:
            raise DataError(f"split '{split}' is empty: searched the list {list_file} and images in {image_folder}; "
                            "check data.root, the split or data.train_list / data.eval_list")
        labels = {p.stem: p for p in label_folder.glob("*.png")}
        return pair_files(images, labels, lambda stem: f"{label_folder / stem}.png", problems)


class _Cityscapes(DatasetInfo):
    """Cityscapes."""
    two_encodings = True
    label_map = None

    def find_samples(self, root: Path, split: str, label_file: str, problems: list[str]) -> list[Sample]:
        kinds = ("labelIds", "labelTrainIds") if label_file == "auto" else (label_file,)
        samples = []
        for part in ("train", "val") if split == "trainval" else (split,):
            images = sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.*"))
            if not images:
                raise DataError(f"split '{part}' is empty: searched {root}/leftImg8bit/{part}/*/*_leftImg8bit.png; "
                                "check data.root and the split")
            folder = root / "gtFine" / part
            labels = {f"{p.parent.name}/{p.name.split('_gtFine_')[0]}": p
                      for kind in reversed(kinds) for p in folder.glob(f"*/*_gtFine_{kind}.png")}
            if part == "test" and not labels:
                samples += [Sample(image_stem(p), p, None) for p in images]
                continue

            def label_name(key: str, folder: Path = folder) -> str:
                return " and ".join(f"{folder / key}_gtFine_{kind}.png" for kind in kinds)

            images = {f"{p.parent.name}/{image_stem(p)}": p for p in images}
            samples += pair_files(images, labels, label_name, problems)
        return samples


class _Voc(DatasetInfo):
    """PASCAL VOC, whose splits are lists of image ids."""
    label_map = None

    def read_list(self, list_file: Path, root: Path, problems: list[str]) -> list[Sample]:
        return read_list(list_file, (_voc_folder(root), root), problems, _voc_files)

    def find_samples(self, root: Path, split: str, label_file: str, problems: list[str]) -> list[Sample]:
        return self.read_list(_voc_folder(root) / "ImageSets" / "Segmentation" / f"{split}.txt", root, problems)


@dataclass(frozen=True)
class _Folders(DatasetInfo):
    """A data set with folders of images and of labels for each split, whose files have the same stems.

    Attributes:
        folders: Folder of the images, and possible folders of their labels, with ``{}`` for the split.
        splits: Names of splits in these folders.
    """
    folders: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict)

    label_map = None

    def find_samples(self, root: Path, split: str, label_file: str, problems: list[str]) -> list[Sample]:
        images, *labels = (root / folder.format(self.splits.get(split, split)) for folder in self.folders)
        found = {p.stem: p for p in sorted(images.glob("*.jpg"))}
        if not found:
            raise DataError(f"split '{split}' is empty: searched {images}/*.jpg; check data.root and the split")
        folder = next((folder for folder in labels if folder.is_dir()), labels[0])
        if split == "test" and not folder.is_dir():
            return [Sample(image_stem(p), p, None) for p in found.values()]
        known = {p.stem: p for p in folder.glob("*.png")}
        return pair_files(found, known, lambda stem: f"{folder / stem}.png", problems)


def _voc_folder(root: Path) -> Path:
    """VOC archives unpack to ``VOCdevkit/VOC2012``; any of the three levels is accepted."""
    return next((p for p in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
                 if (p / "JPEGImages").is_dir()), root)


def _voc_files(name: str) -> tuple[list[str], list[str]]:
    """Possible files of an image id; the second folders are those of the SBD archive and of older MindSpore recipes."""
    return ([f"{folder}/{name}{suffix}" for folder in ("JPEGImages", "img") for suffix in (".jpg", ".png")],
            [f"{folder}/{name}.png" for folder in ("SegmentationClass", "SegmentationClassAug", "cls_png")])


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Builds ``count`` PASCAL VOC colours: bit k of the id goes to bit 7 - k // 3 of red, green or blue in turn."""
    colours = []
    for index in range(count):
        rgb = [0, 0, 0]
        for bit in range(8):
            rgb[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colours.append(tuple(rgb))
    return tuple(colours)


# name, official label id, colour: https://github.com/mcordts/cityscapesScripts (helpers/labels.py)
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)
CITYSCAPES = _Cityscapes(
    "cityscapes", *zip(*((name, colour) for name, _, colour in _CITYSCAPES), strict=True),
    id_to_train=label_lut(dict.fromkeys(range(34), IGNORE) | {row[1]: i for i, row in enumerate(_CITYSCAPES)}),
    train_to_id=tuple(row[1] for row in _CITYSCAPES),
    categories={"flat": (0, 1), "construction": (2, 3, 4), "object": (5, 6, 7), "nature": (8, 9), "sky": (10,),
                "human": (11, 12), "vehicle": (13, 14, 15, 16, 17, 18)},
    # Over the training set, a constant of the official evalPixelLevelSemanticLabeling.py.
    instance_sizes={"person": 3462.4756337644, "rider": 3930.4788056518, "car": 12794.0202738185,
                    "truck": 27855.1264367816, "bus": 35732.1511111111, "train": 67583.7075812274,
                    "motorcycle": 6298.7200839748, "bicycle": 4672.3249222261})
VOC = _Voc(
    "voc", ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
            "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    voc_palette(21),
    # The folder is the development kit's for results of a network with training data of its own.
    submission=Submission(".png", True, "submission.tgz", "results/VOC2012/Segmentation/comp6_test_cls/"))
ADE20K = _Folders(
    "ade20k", *zip(*ADE20K_TABLE, strict=True),
    id_to_train=label_lut({0: IGNORE} | {i + 1: i for i in range(len(ADE20K_TABLE))}),
    train_to_id=tuple(range(1, len(ADE20K_TABLE) + 1)), submission=Submission(".png"),
    folders=("images/{}", "annotations/{}"), splits={"train": "training", "val": "validation"})
# The classes of Cityscapes; label files hold train ids.
BDD100K = _Folders("bdd100k", CITYSCAPES.classes, CITYSCAPES.palette, categories=CITYSCAPES.categories,
                   submission=Submission(".png"), folders=("images/10k/{}", "labels/sem_seg/masks/{}"))
MAPILLARY = _Folders(
    "mapillary", *zip(*MAPILLARY_TABLE, strict=True),
    id_to_train=label_lut({i: i for i in range(len(MAPILLARY_TABLE))} | {len(MAPILLARY_TABLE): IGNORE}),
    submission=Submission(".png"), folders=("{}/images", "{}/labels", "{}/v1.2/labels"),
    splits={"train": "training", "val": "validation", "test": "testing"})
DATASETS = {info.name: info for info in (CITYSCAPES, VOC, ADE20K, BDD100K, MAPILLARY, DatasetInfo("list"))}


def dataset_info(data: Mapping) -> DatasetInfo:
    """Describes the data set of a configuration's ``data`` section.

    Args:
        data: ``name``; for ``list`` also ``class_names`` and optionally ``palette``, ``ignore_id`` (the label value
            to leave out) or ``label_map`` (``{label value: train id}``, for files whose values are not 0..C-1).

    Raises:
        DataError: Unknown name, or class names and palette do not fit each other.
    """
    info, classes = _named(data), _classes(data)
    if info.classes:
        return info
    palette = data.get("palette") or default_palette(len(classes))
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
    return replace(info, classes=classes, palette=tuple(map(tuple, palette)), id_to_train=lut)


def _named(data: Mapping) -> DatasetInfo:
    if data["name"] not in DATASETS:
        raise DataError(f"data.name = {data['name']} must be one of {', '.join(DATASETS)}")
    return DATASETS[data["name"]]


def _classes(data: Mapping) -> tuple[str, ...]:
    classes = _named(data).classes or tuple(data.get("class_names") or ())
    if not 1 <= len(classes) < UNMAPPED:
        raise DataError(f"data.name = {data['name']} needs data.class_names, 1 to {UNMAPPED - 1} of them in the order "
                        "of the label values")
    return classes


def _is_colour(value: object) -> bool:
    return (isinstance(value, (list, tuple)) and len(value) == 3
            and all(isinstance(v, int) and 0 <= v <= 255 for v in value))


def _whole(value: object) -> int:
    """A label value or train id of ``data.label_map``; a text of digits will do."""
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal() and len(value) < 4):
        return int(value)
    raise DataError(f"data.label_map: {value!r} is no whole number; write {{label value: train id}}, such as "
                    "{0: 0, 255: 1}")


def check_classes(cfg: Mapping, origin: str = "configuration") -> None:
    """Checks that a network has as many classes as its data set.

    Args:
        cfg: Configuration; its ``data`` and ``model.num_classes`` are read.
        origin: File of the configuration, for messages.

    Raises:
        ConfigError: The number differs, or there is no such data set.
    """
    data, count = cfg["data"], cfg["model"]["num_classes"]
    try:
        expected = len(_classes(data)) + data["void_class"]
    except DataError as error:
        raise ConfigError(f"{origin}: {error}") from None
    if count != expected:
        void = " (void included)" if data["void_class"] else ""
        raise ConfigError(f"{origin}: model.num_classes = {count}, but data.name = {data['name']} has {expected} "
                          f"classes{void}; set model.num_classes={expected}")


def split_and_list(data: Mapping, split: str) -> tuple[str, str | None]:
    """Name and list file of ``split``: a role, ``train`` or ``eval``, of section ``data``, or the name of a split."""
    if split in ("train", "eval"):
        default = "train" if split == "train" else "val"
        return data.get(f"{split}_split") or default, data.get(f"{split}_list")
    return split, None


def list_samples(data: Mapping, split: str, problems: list[str] | None = None) -> list[Sample]:
    """Lists the samples of a split, from a list file if the configuration names one, else from the folders.

    Args:
        data: ``name`` and ``root``; optional ``train_split``, ``eval_split``, ``train_list``, ``eval_list``,
            ``label_file``.
        split: Role ``train`` or ``eval``, or the name of a split such as ``val``, ``test`` or ``trainval``.
        problems: Receives a message for each image without label or label without image; ``None``: the first one is
            raised.

    Returns:
        The samples in a fixed order.

    Raises:
        DataError: Nothing found (says what was searched), a pair is incomplete, or a listed file is missing.
    """
    info = _named(data)
    if not data.get("root"):
        raise DataError("data.root is not set: give the folder of the data set, --set data.root=FOLDER")
    root = Path(data["root"])
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data.root must be the folder of the data set")
    name, list_file = split_and_list(data, split)
    found: list[str] = []
    if list_file:
        samples = info.read_list(Path(list_file), root, found)
    else:
        samples = info.find_samples(root, name, data.get("label_file") or "auto", found)
    if problems is None and found:
        raise DataError(found[0])
    if problems is not None:
        problems += found
    return unique_names(samples, root)
