"""Label LUTs (lookup tables): uint8 (256,) arrays from the values of label files to train ids.

Train ids are 0..C-1 and 255 for "ignored", whatever the label files hold.
"""
from collections.abc import Mapping

import cv2
import numpy as np

from mindseg.errors import DataError

IGNORE = 255      # train id of a pixel that neither loss nor metric counts
UNMAPPED = 254    # LUT entry of a label value that must not occur


def label_lut(mapping: Mapping[int, int]) -> np.ndarray:
    """Builds the LUT of a mapping from legal label values 0..255 to train ids 0..253, or 255 for ignored.

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
    """Builds the LUT of label files that hold train ids: 0..num_classes-1 stay, ``ignore`` and 255 become 255."""
    return label_lut({**{i: i for i in range(num_classes)}, ignore: IGNORE, IGNORE: IGNORE})


def has_unmapped(values: np.ndarray, lut: np.ndarray) -> bool:
    """Tests whether any of the label ``values``, uint8 (H, W), has no train id in ``lut``."""
    bad = lut == UNMAPPED
    if not bad.any():
        return False
    # Nearly every LUT allows 0..n-1 and perhaps 255, which wraps to 0: then one maximum over the pixels settles it.
    highest = int(values.max()) if bad[255] else int((values + np.uint8(1)).max()) - 1
    return highest >= np.argmax(bad) and cv2.countNonZero(cv2.LUT(values, bad.astype(np.uint8))) > 0


def describe_unmapped(counts: np.ndarray, lut: np.ndarray) -> str:
    """Describes the most frequent label value without a train id in ``lut``; ``counts`` are pixels a value, (256,)."""
    bad = np.flatnonzero((lut == UNMAPPED) & (counts > 0))
    worst = bad[np.argmax(counts[bad])]
    others = f" and {len(bad) - 1} more such values" if len(bad) > 1 else ""
    legal = np.flatnonzero(lut != UNMAPPED)
    runs = np.split(legal, np.flatnonzero(np.diff(legal) > 1) + 1)
    allowed = ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
    return (f"label value {worst} on {100 * counts[worst] / counts.sum():.3g} % of the pixels{others} is no class; "
            f"allowed are {allowed}: correct the label, the class list or data.ignore_id")
