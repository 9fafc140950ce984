"""Further scores of the Cityscapes benchmark: IoU of categories and instance-weighted IoU."""
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mindseg.data.datasets import CITYSCAPES, DatasetInfo
from mindseg.data.decode import decode_instances
from mindseg.data.samples import Sample
from mindseg.errors import DataError
from mindseg.files import read_bytes
from mindseg.metrics import InstanceCounts


def instance_counts(info: DatasetInfo = CITYSCAPES) -> InstanceCounts:
    """New counts for the iIoU of a data set with instance sizes."""
    sizes = {info.classes.index(name): size for name, size in info.instance_sizes.items()}
    return InstanceCounts(info.train_to_id, sizes, info.categories)


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
        try:
            return decode_instances(read_bytes(path), str(path))
        except DataError as error:
            raise DataError(f"{error}, or set eval.instance_iou=false, as only iIoU needs it") from None

    return read


def _instance_file(label: Path) -> Path:
    return label.with_name(label.name.split("_gtFine_")[0] + "_gtFine_instanceIds.png")
