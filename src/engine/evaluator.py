"""Evaluation: one confusion matrix over a data set, and the images to look at."""
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from src.data.datasets import DatasetInfo
from src.data.loader import Loader
from src.errors import UserError
from src.metrics import ConfusionMatrix


@dataclass(order=True)
class Example:
    """One evaluated image, ordered by its own mIoU."""
    miou: float
    name: str
    image: np.ndarray = field(compare=False, repr=False)
    pred: np.ndarray = field(compare=False, repr=False)
    label: np.ndarray = field(compare=False, repr=False)


@dataclass
class Result:
    """What an evaluation found: scores (``ConfusionMatrix.compute()``, ``images``, ``seconds``) and examples."""
    scores: dict
    worst: list[Example]
    best: list[Example]


class _Extremes:
    """Keeps the few images of the lowest and highest mIoU, so that memory does not grow with the data set."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.low: list[tuple[float, str, Example]] = []
        self.high: list[tuple[float, str, Example]] = []

    def add(self, example: Example) -> None:
        for heap, sign in ((self.low, -1.0), (self.high, 1.0)):
            heapq.heappush(heap, (sign * example.miou, example.name, example))
            if len(heap) > self.count:
                heapq.heappop(heap)


def evaluate(segment: Callable[[np.ndarray, tuple[int, int]], np.ndarray], loader: Loader, info: DatasetInfo,
             num_examples: int = 0) -> Result:
    """Scores predictions at the size of the labels; all ranks get the sum over all ranks.

    Args:
        segment: ``segment(images, (height, width))`` returns uint8 class ids (N, height, width) for uint8 images
            (N, H, W, 3).
        loader: Evaluation loader; every image comes once over all ranks.
        info: Classes and ignore id.
        num_examples: Worst and best images to keep, in all.
    """
    matrix = ConfusionMatrix(len(info.classes), info.ignore_id)
    extremes = _Extremes((num_examples + 1) // 2)
    started = time.perf_counter()
    with tqdm(total=loader.steps_per_epoch, desc="evaluate", unit="image", disable=None) as bar:
        for batch in loader.samples():
            preds = segment(batch["image"], batch["label"].shape[1:])
            for row in zip(batch["names"], batch["image"], preds, batch["label"], strict=True):
                miou = image_miou(matrix.update(row[2], row[3]))
                if num_examples:
                    extremes.add(Example(miou, *row))
            bar.update(len(preds))
    matrix.reduce()
    if not matrix.matrix.any():
        raise UserError("no labelled pixel was seen in the evaluation; check data.root and data.eval_split")
    scores = matrix.compute() | {"images": loader.num_samples, "seconds": round(time.perf_counter() - started, 3)}
    worst = sorted(example for _, _, example in extremes.low)
    seen = {example.name for example in worst}
    best = sorted((example for _, _, example in extremes.high if example.name not in seen), reverse=True)
    return Result(scores, worst, best)


def image_miou(counts: np.ndarray) -> float:
    """mIoU of one image over the classes that its label holds; NaN-free: an image without labels scores 0."""
    hit, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    labelled = counts.sum(1) > 0
    return float((hit[labelled] / union[labelled]).mean()) if labelled.any() else 0.0
