"""Procedural data sets in the folder layouts and encodings of Cityscapes and Pascal VOC 2012.

Every picture is a function of (seed, split, index, size) alone, so that pictures can be made in any order, in parallel,
or one at a time in a test. Splits use different cities, and with them other palettes, vehicle liveries and plants.
"""
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mindseg.data.datasets import CITYSCAPES, voc_palette
from mindseg.drawing import save_palette_png
from mindseg.errors import DataError

from .objects import BUS, CAR, TRAIN, TRUCK
from .street import make_city, paint_street, to_ids
from .voc import paint_voc

SPLITS = ("train", "val", "test")
CITIES = {
    "train": ("aldenau", "bergheim", "corvale", "dunmere", "elmstadt", "farnsee", "grauwerk", "hollenbach"),
    "val": ("ibenstein", "jorvik", "kestrel"),
    "test": ("lindmoor", "mistelfeld"),
}
# Colours of the label ids that training ignores (cityscapesScripts, helpers/labels.py); those not named are black.
_VOID_COLOURS = {5: (111, 74, 0), 6: (81, 0, 81), 9: (250, 170, 160), 10: (230, 150, 140), 14: (180, 165, 180),
                 15: (150, 100, 100), 16: (150, 120, 90), 18: (153, 153, 153), 29: (0, 0, 90), 30: (0, 0, 110)}
MIN_HEIGHT, MIN_WIDTH = 64, 128
_MUST = (("bus", BUS), ("truck", TRUCK), ("car", CAR))


@dataclass(frozen=True)
class Street:
    """One synthetic street: ``image`` uint8 RGB (H, W, 3), ``label_ids`` uint8 and ``instance_ids`` uint16 (H, W)."""
    image: np.ndarray
    label_ids: np.ndarray
    instance_ids: np.ndarray


def street_name(split: str, index: int) -> str:
    """Name of a picture in the style of Cityscapes, ``<city>_<sequence>_<frame>``."""
    cities = CITIES[split]
    return f"{cities[index % len(cities)]}_{index // len(cities):06d}_000019"


def label_colours() -> np.ndarray:
    """Colours of the 34 official label ids, uint8 (34, 3), RGB."""
    colours = np.zeros((34, 3), np.uint8)
    for label, colour in (*_VOID_COLOURS.items(), *zip(CITYSCAPES.train_to_id, CITYSCAPES.palette, strict=True)):
        colours[label] = colour
    return colours


def check_size(height: int, width: int) -> None:
    """Raises ``DataError`` if a picture of this size would be too small to show anything, or too large to draw."""
    if not (MIN_HEIGHT <= height <= 4096 and MIN_WIDTH <= width <= 4096):
        raise DataError(f"a picture of {height}x{width} cannot be drawn: use {MIN_HEIGHT}x{MIN_WIDTH} to 4096x4096")


def make_street(seed: int, split: str, index: int, height: int = 512, width: int = 1024) -> Street:
    """Makes one street.

    Args:
        seed: Seed of the data set, >= 0.
        split: "train", "val" or "test".
        index: Number of the picture in its split, >= 0.
        height: Rows, at least 64.
        width: Columns, at least 128.

    Returns:
        Picture and annotation with the 34 official label ids; instance classes (ids 24..33) have instance ids
        ``id * 1000 + k``, all others and groups the plain id.

    Raises:
        DataError: The size is not between 64x128 and 4096x4096.
    """
    check_size(height, width)
    part = SPLITS.index(split)
    city = make_city(np.random.default_rng([seed, part, 1, index % len(CITIES[split])]))
    must, must_id = _MUST[index % len(_MUST)]
    for attempt in range(4):
        rng = np.random.default_rng([seed, part, 0, index, attempt])
        tram = index % 2 == 0 or rng.random() < 0.4
        image, codes = paint_street(rng, city, height, width, tram, must)
        ids = to_ids(codes)
        wanted = [must_id] + [TRAIN] * (index % 2 == 0)
        if all(np.count_nonzero(ids == label) >= 0.003 * ids.size for label in wanted):
            break
    return Street(image, ids, codes)


def write_street(root: Path, seed: int, split: str, index: int, height: int, width: int) -> None:
    """Makes one street and writes its four PNG files below ``root`` in the layout of Cityscapes.

    ``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` and, in ``gtFine/<split>/<city>``, ``*_gtFine_labelIds.png``,
    ``*_gtFine_instanceIds.png`` (16 bits) and ``*_gtFine_color.png`` (RGBA). As in the original, the test split's
    annotation is a dummy: everything that is not the camera car or the border is "out of roi".
    """
    street = make_street(seed, split, index, height, width)
    ids, instances = street.label_ids, street.instance_ids
    if split == "test":
        ids = np.where(ids < 4, ids, 3).astype(np.uint8)
        instances = ids.astype(np.uint16)
    name = street_name(split, index)
    folder = Path(split) / name.split("_")[0]
    images, labels = root / "leftImg8bit" / folder, root / "gtFine" / folder
    for path in (images, labels):
        path.mkdir(parents=True, exist_ok=True)
    colour = np.dstack([label_colours()[ids][..., ::-1], np.full(ids.shape, 255, np.uint8)])
    write_image(images / f"{name}_leftImg8bit.png", street.image[..., ::-1])
    write_image(labels / f"{name}_gtFine_labelIds.png", ids)
    write_image(labels / f"{name}_gtFine_instanceIds.png", instances)
    write_image(labels / f"{name}_gtFine_color.png", colour)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG or JPEG (BGR or grey); fast compression, because these files are made by the hundred.

    Raises:
        DataError: The file cannot be written.
    """
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 95]
    done, data = cv2.imencode(path.suffix, pixels, options)
    try:
        if not done:
            raise OSError("encoding failed")
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}; check free space and permissions") from error


@dataclass(frozen=True)
class VocPicture:
    """One synthetic VOC picture: ``image`` uint8 RGB (H, W, 3); ``class_ids`` and ``object_ids`` uint8 (H, W)."""
    image: np.ndarray
    class_ids: np.ndarray
    object_ids: np.ndarray


def voc_name(split: str, index: int) -> str:
    """Name of a picture in the style of VOC 2012, ``2012_<six digits>``; the first digit is the split's."""
    return f"2012_{SPLITS.index(split)}{index:05d}"


def make_voc(seed: int, split: str, index: int, height: int = 375, width: int = 500) -> VocPicture:
    """Makes one VOC picture; as in the original, sizes vary: the given one, its transpose, and narrower ones.

    Args:
        seed: Seed of the data set, >= 0.
        split: "train", "val" or "test".
        index: Number of the picture in its split, 0 to 99999. Seven in a row hold all 21 classes.
        height: Rows of a landscape picture.
        width: Columns of a landscape picture.

    Returns:
        Picture, class ids (0 = background, 255 = ring around an object) and object numbers (likewise).

    Raises:
        DataError: The size cannot be drawn.
    """
    check_size(height, width)
    rng = np.random.default_rng([seed, SPLITS.index(split), 2, index])
    shape = index % 4
    if shape == 1:
        height = int(height * rng.uniform(0.85, 0.99))
    elif shape == 3:
        height, width = width, height
    return VocPicture(*paint_voc(rng, index, height, width))


def write_voc(root: Path, seed: int, split: str, index: int, height: int, width: int) -> None:
    """Makes one VOC picture and writes ``JPEGImages/*.jpg`` and, except for the test split, the palette PNGs of
    ``SegmentationClass`` and ``SegmentationObject`` below ``root``."""
    picture, name = make_voc(seed, split, index, height, width), voc_name(split, index)
    folders = [root / folder for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    write_image(folders[0] / f"{name}.jpg", picture.image[..., ::-1])
    if split != "test":
        colours = voc_palette(256)  # 255, the ring, is the devkit's pale (224, 224, 192)
        save_palette_png(folders[1] / f"{name}.png", picture.class_ids, colours)
        save_palette_png(folders[2] / f"{name}.png", picture.object_ids, colours)


def write_voc_lists(root: Path, counts: dict[str, int]) -> None:
    """Writes ``ImageSets/Segmentation/{train,val,trainval,test}.txt`` for so many pictures of each split."""
    names = {split: [voc_name(split, index) for index in range(count)] for split, count in counts.items()}
    names["trainval"] = sorted(names.get("train", []) + names.get("val", []))
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in names.items():
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
