"""Synthetic data sets in the folder layouts and encodings of Cityscapes and Pascal VOC 2012.

Every picture is a function of (seed, split, index, size) alone, so that pictures can be made in any order, in parallel,
or one at a time in a test. Splits of the streets use different cities, with other colours of houses and vehicles.
"""
from pathlib import Path

import numpy as np

from mindseg.drawing import save_png

from .canvas import check_size
from .street import CITIES, Street, make_street
from .voc import make_voc, voc_name, write_voc, write_voc_lists

__all__ = ["CITIES", "VERSION", "Street", "check_size", "make_street", "make_voc", "street_name", "voc_name",
           "write_street", "write_voc", "write_voc_lists"]

VERSION = 2  # raised whenever the same arguments give other pictures


def street_name(split: str, index: int) -> str:
    """Name of a picture in the style of Cityscapes, ``<city>_<sequence>_<frame>``."""
    cities = CITIES[split]
    return f"{cities[index % len(cities)]}_{index // len(cities):06d}_000019"


def write_street(root: Path, seed: int, split: str, index: int, height: int, width: int) -> None:
    """Makes one street and writes its three PNG files below ``root`` in the layout of Cityscapes.

    ``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` and, in ``gtFine/<split>/<city>``, ``*_gtFine_labelIds.png`` and
    ``*_gtFine_instanceIds.png`` (16 bits). As in the original, the test split's annotation is a dummy: everything that
    is not the camera car or the border is "out of roi". See ``make_street`` for the arguments.
    """
    street = make_street(seed, split, index, height, width)
    ids, instances = street.label_ids, street.instance_ids
    if split == "test":
        ids = np.where(ids < 4, ids, 3).astype(np.uint8)
        instances = ids.astype(np.uint16)
    name = street_name(split, index)
    for kind, pixels in (("leftImg8bit", street.image), ("gtFine_labelIds", ids), ("gtFine_instanceIds", instances)):
        folder = root / kind.split("_")[0] / split / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        save_png(folder / f"{name}_{kind}.png", pixels)
