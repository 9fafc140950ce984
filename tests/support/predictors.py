"""Predictors for tests: any function, and class names without a data set."""
from collections.abc import Callable

import numpy as np

from mindseg.data.datasets import DatasetInfo, dataset_info
from mindseg.resize import EvalResize


def info_of(count: int) -> DatasetInfo:
    """A data set of so many classes."""
    return dataset_info({"name": "list", "class_names": [f"class{i}" for i in range(count)]})


class FunctionPredictor:
    """A predictor whose answer is ``function(images, size)``, and whose confidence is each image's first channel."""
    size_step = None
    trained_size = None
    blends = False
    gives_confidence = True
    backend = "function"

    def __init__(self, function: Callable[[np.ndarray, tuple[int, int]], np.ndarray], info: DatasetInfo,
                 resize: EvalResize | None = None, color_order: str = "RGB") -> None:
        self.function, self.info, self.color_order = function, info, color_order
        self.resize = resize or EvalResize()

    def __call__(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return self.function(images, size)

    def with_confidence(self, images: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return self.function(images, size), images[..., 0]
