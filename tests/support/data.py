"""Toy data sets in the real folder layouts, and loaders over them."""
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mindseg.config import Config, load_config
from mindseg.data.datasets import CITYSCAPES, voc_palette
from mindseg.data.loader import Loader, create_loader
from tests.support import ROOT

BASE = ROOT / "configs" / "_base_"


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """Write an image (BGR) or a label with OpenCV; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_palette(path: Path, ids: np.ndarray) -> Path:
    """Write a palette PNG as PASCAL VOC does: the pixels are indices, the colours are VOC's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids, "P")
    picture.putpalette([value for colour in voc_palette(256) for value in colour])
    picture.save(path)
    return path


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth random image, so that lossy codecs and resizing stay close to it."""
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def random_label(rng: np.random.Generator, height: int, width: int, values: list[int]) -> np.ndarray:
    """A label of random 8x8 blocks."""
    coarse = rng.choice(np.array(values, np.uint8), (height // 8 + 1, width // 8 + 1))
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])


def make_cityscapes(root: Path, rng: np.random.Generator, count: int = 6, split: str = "train",
                    size: tuple[int, int] = (64, 128), kinds: tuple[str, ...] = ("labelIds",)) -> list[str]:
    """Write samples in Cityscapes' layout, in two cities.

    Args:
        root: Data set folder.
        rng: Source of the pixels.
        count: Number of samples.
        split: ``train``, ``val`` or ``test``.
        size: Height and width in pixels.
        kinds: Kinds of label files; ``labelTrainIds`` are those that the ``labelIds`` translate to.

    Returns:
        The sample names in alphabetical order.
    """
    names = []
    for i in range(count):
        city = "aachen" if i % 2 else "bremen"
        name = f"{city}_{i:06d}_{'000019' if split == 'train' else '000020'}"
        ids = random_label(rng, *size, [0, 3, 7, 8, 11, 21, 23, 26, 33])
        ids[:4, :4] = 33          # settles that these are ids: 33 is no train id
        write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", random_image(rng, *size))
        for kind in kinds:
            label = ids if kind == "labelIds" else CITYSCAPES.id_to_train[ids]
            write_image(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", label)
        names.append(name)
    return sorted(names)


def make_camvid(root: Path, rng: np.random.Generator, count: int = 6, split: str = "train",
                size: tuple[int, int] = (48, 64), classes: int = 11, prefix: str = "f") -> list[str]:
    """Write samples in CamVid's layout, with label values 0 to ``classes`` - 1, and 11 for ignored pixels.

    Args:
        root: Data set folder.
        rng: Source of the pixels.
        count: Number of samples.
        split: ``train``, ``val`` or ``test``.
        size: Height and width in pixels.
        classes: Number of classes, at most 11.
        prefix: Start of the sample names, which end with a number of three digits.

    Returns:
        The sample names.
    """
    names = [f"{prefix}{i:03d}" for i in range(count)]
    for name in names:
        write_image(root / split / f"{name}.png", random_image(rng, *size))
        write_image(root / f"{split}annot" / f"{name}.png", random_label(rng, *size, [*range(classes), 11]))
    return names


def config(base: str, root: Path, *overrides: str) -> Config:
    """The configuration of one of the base files over a toy data set: small crops, two workers."""
    return load_config(BASE / f"{base}.yaml", [f"data.root={root}", "data.crop_size=[32, 48]",
                                               "train.global_batch=4", *overrides])


def train_loader(base: str, root: Path, *overrides: str, **kwargs: int) -> Loader:
    """The training loader of :func:`config`."""
    return create_loader(config(base, root, *overrides), "train", **kwargs)


def collect(loader: Loader, *epochs: int, start_step: int = 0) -> list[tuple[str, bytes, bytes]]:
    """(name, image, label) of every sample of the epochs."""
    rows = []
    for epoch in epochs:
        for batch in loader.epoch(epoch, start_step):
            rows += [(n, i.tobytes(), a.tobytes()) for n, i, a in
                     zip(batch["names"], batch["image"], batch["label"], strict=True)]
    return rows
