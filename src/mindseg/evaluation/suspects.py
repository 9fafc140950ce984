"""Labels that disagree with a trained network more than others: where to look for mistakes."""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Suspect:
    """An image whose label disagrees with the network.

    Attributes:
        name: Name of the sample.
        score: Disagreement of its most suspicious class; of ten images that have the class nine are usually below 1.
        class_id: That class.
        missing: Share of the image's pixels that the network calls so and the label does not, 0..1.
    """
    name: str
    score: float
    class_id: int
    missing: float


class Suspects:
    """Ranking of the images of a data set by disagreement between network and label.

    Counted for each class are the pixels that the network calls so and the label does not: a class that was forgotten
    or confused in a label, or the label of another image. The part that is usual for the class is subtracted, and the
    rest divided by the root of the predicted area and by the 0.9 quantile over all images. Ignored pixels count too,
    because a forgotten object may be there.

    Args:
        num_classes: Number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.names: list[str] = []
        self.pixels: list[int] = []
        self.counts: list[np.ndarray] = []      # (3, C): predicted, labelled, both

    def add(self, name: str, ids: np.ndarray, matrix: np.ndarray) -> None:
        """Adds an image.

        Args:
            name: Name of the sample.
            ids: Predicted class ids, (H, W).
            matrix: Pixels by label (row) and prediction (column), (C, C).
        """
        predicted = np.bincount(ids.ravel(), minlength=self.num_classes)[:self.num_classes]
        self.names.append(name)
        self.pixels.append(ids.size)
        self.counts.append(np.stack([predicted, matrix.sum(1), np.diag(matrix)]))

    def scores(self) -> np.ndarray:
        """Disagreement of each image and class, (N, C); 0 for a class that fewer than three images have."""
        predicted, _, both = np.stack(self.counts, 1).astype(np.float64)
        missing = predicted - both
        usual = missing.sum(0) / np.maximum(predicted.sum(0), 1)
        excess = (missing - usual * predicted) / np.sqrt(np.maximum(predicted, 1))
        scores = np.zeros_like(excess)
        for k in range(self.num_classes):
            present = predicted[:, k] > 0
            if present.sum() > 2:       # below 1: all disagreement is in less than a tenth of the images
                scores[present, k] = excess[present, k] / max(np.quantile(excess[present, k], 0.9), 1.0)
        return scores

    def ranking(self) -> list[Suspect]:
        """All images, the most suspicious one first."""
        scores = self.scores()
        suspects = []
        for i in np.argsort(-scores.max(1), kind="stable"):
            k = int(scores[i].argmax())
            predicted, _, both = self.counts[i][:, k]
            suspects.append(Suspect(self.names[i], float(scores[i, k]), k, float((predicted - both) / self.pixels[i])))
        return suspects

    def classes(self) -> list[tuple[int, float, str]]:
        """Classes by disagreement, the worst first; those that are never predicted are left out.

        Returns:
            Class id, share of the pixels predicted so that are not labelled so (0..1), and the most suspicious image.
        """
        predicted, _, both = np.stack(self.counts, 1)
        share = (predicted - both).sum(0) / np.maximum(predicted.sum(0), 1)
        worst = self.scores().argmax(0)
        return [(int(k), float(share[k]), self.names[worst[k]]) for k in np.argsort(-share, kind="stable")
                if predicted[:, k].any()]
