"""What Cityscapes' benchmark reports beside the mIoU of the classes: categories and instance-weighted scores."""
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mindseg.data.datasets import CITYSCAPES
from mindseg.data.samples import Sample
from mindseg.errors import DataError
from mindseg.metrics import InstanceCounts

# Train ids by category, https://github.com/mcordts/cityscapesScripts (helpers/labels.py).
CATEGORIES = {"flat": (0, 1), "construction": (2, 3, 4), "object": (5, 6, 7), "nature": (8, 9), "sky": (10,),
              "human": (11, 12), "vehicle": (13, 14, 15, 16, 17, 18)}
# Mean pixels of an instance over the training set, a constant of evalPixelLevelSemanticLabeling.py.
_SIZES = {"person": 3462.4756337644, "rider": 3930.4788056518, "car": 12794.0202738185, "truck": 27855.1264367816,
          "bus": 35732.1511111111, "train": 67583.7075812274, "motorcycle": 6298.7200839748,
          "bicycle": 4672.3249222261}


def instance_counts() -> InstanceCounts:
    """New counts for Cityscapes' iIoU."""
    sizes = {CITYSCAPES.classes.index(name): size for name, size in _SIZES.items()}
    return InstanceCounts(CITYSCAPES.train_to_id, sizes, CATEGORIES)


def instance_reader(samples: Sequence[Sample]) -> Callable[[str], np.ndarray] | None:
    """Finds the instance ids that belong to the labels of some samples.

    Args:
        samples: With labels ``*_gtFine_label(Train)Ids.png``.

    Returns:
        ``read(name) -> int (H, W)``, or ``None`` if the first label has no ``*_gtFine_instanceIds.png`` beside it.
    """
    paths = {sample.name: _instance_file(sample.label) for sample in samples}
    if not paths or not next(iter(paths.values())).is_file():
        return None

    def read(name: str) -> np.ndarray:
        path = paths.get(name)
        if path is None:    # a MindRecord file of other images than the folder's
            raise DataError(f"sample '{name}' is not among the images of data.root, so its instance ids are unknown; "
                            "correct data.root or set eval.instance_iou=false")
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if ids is None or ids.ndim != 2:
            raise DataError(f"{path}: no readable instance ids, needed for iIoU; restore it or set "
                            "eval.instance_iou=false")
        return ids

    return read


def _instance_file(label: Path) -> Path:
    return label.with_name(label.name.split("_gtFine_")[0] + "_gtFine_instanceIds.png")
