"""Evaluation: one confusion matrix over a data set, and the images to look at."""
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from mindseg.comm import all_reduce_sum
from mindseg.data.loader import Loader
from mindseg.errors import UserError
from mindseg.evaluation.cityscapes import instance_counts
from mindseg.inference.predictor import Predictor
from mindseg.metrics import ConfusionMatrix, Reliability, RunningMean, category_iou
from mindseg.resize import EvalResize


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
    """The result of an evaluation: scores (``ConfusionMatrix.compute()``, ``images``, ``seconds``) and examples."""
    scores: dict
    worst: list[Example]
    best: list[Example]
    first: list[Example] = field(default_factory=list)


class _Kept:
    """Keeps the first images and those of the lowest and highest mIoU, so that memory does not grow with the data set.

    Args:
        count: Images of the lowest mIoU, and as many of the highest.
        num_first: First images.
    """

    def __init__(self, count: int, num_first: int) -> None:
        self.count, self.num_first = count, num_first
        self.low: list[tuple[float, str, Example]] = []
        self.high: list[tuple[float, str, Example]] = []
        self.first: list[Example] = []

    @property
    def wants_more(self) -> bool:
        return self.count > 0 or len(self.first) < self.num_first

    def add(self, example: Example) -> None:
        if len(self.first) < self.num_first:
            self.first.append(example)
        for heap, sign in ((self.low, -1.0), (self.high, 1.0)):
            heapq.heappush(heap, (sign * example.miou, example.name, example))
            if len(heap) > self.count:
                heapq.heappop(heap)

    def result(self, scores: dict) -> Result:
        worst = sorted(example for _, _, example in self.low)
        seen = {example.name for example in worst}
        best = sorted((example for _, _, example in self.high if example.name not in seen), reverse=True)
        return Result(scores, worst, best, self.first)


def evaluate(predictor: Predictor, loader: Loader, num_examples: int = 0,
             instances: Callable[[str], np.ndarray] | None = None,
             on_image: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
             loss: Callable[[np.ndarray, np.ndarray], tuple[float, int]] | None = None,
             confidence: bool = False, num_first: int = 0) -> Result:
    """Scores predictions; all ranks get the sum over all ranks.

    Args:
        predictor: Model; its ``resize`` says at which size labels are scored.
        loader: Evaluation loader; every image comes once over all ranks.
        num_examples: Worst and best images of this rank to keep, in all.
        instances: Reads Cityscapes' instance ids (H, W) by sample name, for iIoU; None leaves iIoU out.
        on_image: Called as ``on_image(name, ids, counts)`` with the prediction and the confusion matrix of each image.
        loss: ``loss(images, labels)``, such as ``NetworkPredictor.loss``, returns a sum over pixels and their number;
            the mean becomes ``scores["loss"]``. None leaves it out.
        confidence: Score the confidence too: ``scores["ece"]`` and ``scores["reliability"]``, see
            ``metrics.Reliability``. The predictor must give it.
        num_first: First images of this rank to keep, the same ones at every call.

    Raises:
        UserError: Not one labelled pixel was seen.
    """
    info, resize = predictor.info, predictor.resize
    matrix = ConfusionMatrix(len(info.classes), info.ignore_id)
    counts = instance_counts(info) if instances is not None else None
    kept, mean_loss = _Kept((num_examples + 1) // 2, num_first), RunningMean()
    reliability = Reliability(info.ignore_id)
    started, inside = time.perf_counter(), 0.0
    with tqdm(total=loader.steps_per_epoch, desc="evaluate", unit="image", disable=None) as bar:
        for batch in loader.samples():
            labels = np.stack([resize.label(label) for label in batch["label"]])
            asked = time.perf_counter()
            if confidence:
                preds, levels = predictor.with_confidence(batch["image"], labels.shape[1:])
            else:
                preds = predictor(batch["image"], labels.shape[1:])
            inside += time.perf_counter() - asked
            if confidence:
                reliability.update(levels, preds, labels)
            if loss is not None:
                mean_loss.update(*loss(batch["image"], labels))
            for name, image, pred, label in zip(batch["names"], batch["image"], preds, labels, strict=True):
                own = matrix.update(pred, label)
                if instances is not None:
                    counts.update(pred, resize.label(instances(name)))
                if kept.wants_more:
                    kept.add(Example(image_miou(own), name, _sized(image, resize, label), pred, label))
                if on_image is not None:
                    on_image(name, pred, own)
            bar.update(len(preds))
    matrix.reduce()
    if not matrix.matrix.any():
        raise UserError("no labelled pixel was seen in the evaluation; check data.root and data.eval_split")
    scores = matrix.compute()
    if info.categories:
        scores |= category_iou(matrix.matrix, info.categories)
    if instances is not None:
        counts.reduce()
        scores |= counts.compute(matrix.matrix)
    if loss is not None:
        mean_loss.reduce()
        scores["loss"] = mean_loss.compute()
    if confidence:
        reliability.reduce()
        scores |= reliability.compute()
    skipped = int(all_reduce_sum(np.array([len(loader.skipped)]))[0])
    scores |= {"images": loader.num_samples - skipped, "skipped": skipped,
               "seconds": round(time.perf_counter() - started, 3), "model_seconds": round(inside, 3)}
    return kept.result(scores)


def _sized(image: np.ndarray, resize: EvalResize, label: np.ndarray) -> np.ndarray:
    """The image as its label shows it: at its own size, or resized and cropped when labels are."""
    if image.shape[:2] == label.shape:
        return image
    return resize.apply(image)[:label.shape[0], :label.shape[1]]


def image_miou(counts: np.ndarray) -> float:
    """Mean IoU of one image over the classes that its label holds; NaN-free: an image without labels scores 0."""
    hit, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    labelled = counts.sum(1) > 0
    return float((hit[labelled] / union[labelled]).mean()) if labelled.any() else 0.0
