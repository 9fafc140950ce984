"""Pictures in the layout of Pascal VOC 2012: coloured polygons, whose hue and number of corners tell the class."""
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mindseg.data.datasets import VOC, voc_palette
from mindseg.drawing import save_palette_png
from mindseg.files import replacing, write_text

from .canvas import SPLITS, check_size, hsv

RING = 255  # class id and object number of the ring around every object


def voc_name(split: str, index: int) -> str:
    """Name of a picture in the style of VOC 2012, ``2012_<six digits>``; the first digit is the split's."""
    return f"2012_{SPLITS.index(split)}{index:05d}"


def make_voc(seed: int, split: str, index: int, height: int = 375, width: int = 500) -> tuple[np.ndarray, ...]:
    """Makes one VOC picture with three objects; one picture in four is upright, as sizes vary in the original.

    Args:
        seed: Seed of the data set, >= 0.
        split: "train", "val" or "test".
        index: Number of the picture in its split, 0 to 99999. Seven in a row hold all 21 classes.
        height: Rows of a landscape picture.
        width: Columns of a landscape picture.

    Returns:
        Picture, uint8 RGB (H, W, 3); class ids and object numbers, uint8 (H, W), 0 = background, 255 = ring around an
        object.

    Raises:
        DataError: The size cannot be drawn.
    """
    check_size(height, width)
    rng = np.random.default_rng([seed, SPLITS.index(split), 2, index])
    if index % 4 == 3:
        height, width = width, height
    image = np.full((height, width, 3), hsv(rng.random(), 0.1, rng.uniform(0.4, 0.8)))
    class_ids, object_ids = np.zeros((2, height, width), np.uint8)
    for number, place in enumerate(rng.permutation([0.2, 0.5, 0.8]), 1):
        label = 1 + (index * 3 + number - 1) % (len(VOC.classes) - 1)
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, 3 + label % 4, endpoint=False)
        radius = rng.uniform(0.15, 0.3) * min(height, width)
        centre = np.array([place * width, rng.uniform(0.35, 0.65) * height])
        corners = np.rint(centre + radius * np.stack([np.cos(angle), np.sin(angle)], -1)).astype(np.int32)
        cv2.fillConvexPoly(image, corners, hsv(label / 20, 0.7, rng.uniform(0.6, 1.0)).tolist())
        for ids, value in ((class_ids, label), (object_ids, number)):
            cv2.fillConvexPoly(ids, corners, value)
            cv2.polylines(ids, [corners], True, RING, 1 if min(height, width) < 200 else 5)
    image += rng.normal(0.0, 8.0, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), class_ids, object_ids


def write_voc(root: Path, seed: int, split: str, index: int, height: int, width: int) -> None:
    """Makes one VOC picture and writes its files below ``root``; see ``make_voc`` for the arguments.

    They are ``JPEGImages/*.jpg`` and, except for the test split, the palette PNGs of ``SegmentationClass`` and
    ``SegmentationObject``.
    """
    image, class_ids, object_ids = make_voc(seed, split, index, height, width)
    name = voc_name(split, index)
    with replacing(root / "JPEGImages" / f"{name}.jpg") as path:
        Image.fromarray(image).save(path, quality=95)
    if split != "test":
        for folder, ids in (("SegmentationClass", class_ids), ("SegmentationObject", object_ids)):
            (root / folder).mkdir(exist_ok=True)
            save_palette_png(root / folder / f"{name}.png", ids, voc_palette(256))


def write_voc_lists(root: Path, counts: dict[str, int]) -> None:
    """Writes ``ImageSets/Segmentation/{train,val,trainval,test}.txt`` for so many pictures of each split."""
    names = {split: [voc_name(split, index) for index in range(count)] for split, count in counts.items()}
    names["trainval"] = sorted(names.get("train", []) + names.get("val", []))
    for split, lines in names.items():
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{line}\n" for line in lines))
