"""Wrong labels that were planted, in the ranking of images by disagreement with a network."""
import numpy as np
import pytest

from mindseg.evaluation.suspects import Suspects
from mindseg.metrics import ConfusionMatrix

IMAGES, CLASSES = 40, 6


def make_labels(rng):
    """Scenes of two horizontal regions with rectangles of the other classes, most of them in most images."""
    labels = np.zeros((IMAGES, 60, 80), np.uint8)
    for label in labels:
        label[rng.integers(25, 40):] = 1
        for k in range(2, CLASSES):
            for _ in range(rng.integers(0, 4)):
                top, left = rng.integers(0, 45), rng.integers(0, 60)
                label[top:top + rng.integers(5, 15), left:left + rng.integers(5, 20)] = k
    return labels


def predict(labels, rng):
    """A network's answers: shifted by a pixel, with 3 % of the pixels and some whole rectangles wrong."""
    ids = np.stack([np.roll(label, tuple(rng.integers(-1, 2, 2)), (0, 1)) for label in labels])
    noise = rng.random(ids.shape) < 0.03
    ids[noise] = rng.integers(0, CLASSES, noise.sum())
    for image in ids[::7]:
        top, left = rng.integers(0, 50), rng.integers(0, 70)
        image[top:top + 8, left:left + 8] = rng.integers(0, CLASSES)
    return ids


def rank(labels, ids):
    suspects = Suspects(CLASSES)
    for i, (label, image) in enumerate(zip(labels, ids, strict=True)):
        suspects.add(str(i), image, ConfusionMatrix(CLASSES).update(image, label))
    return suspects.ranking()


@pytest.mark.parametrize("kind", ["swapped", "ignored", "background"])
def test_planted_mistakes_come_first(rng, kind):
    """Of 20 plantings at least 18 are among the first five."""
    found = 0
    for _ in range(20):
        labels = make_labels(rng)
        ids = predict(labels, rng)
        first, second = rng.choice(IMAGES, 2, replace=False)
        if kind == "swapped":
            labels[[first, second]] = labels[[second, first]]
            planted = {str(first), str(second)}
        else:
            k = max(range(2, CLASSES), key=lambda k: (labels[first] == k).sum())    # an object of some size
            labels[first][labels[first] == k] = 255 if kind == "ignored" else 0
            planted = {str(first)}
        ranking = rank(labels, ids)
        found += planted <= {suspect.name for suspect in ranking[:5]}
        if kind != "swapped" and ranking[0].name == str(first):
            assert ranking[0].class_id == k
    assert found >= 18


@pytest.mark.parametrize("wrong", [(0, 1, 2, 9), (100, 100, 1000, 5000)])
def test_figures_by_hand(wrong):
    suspects = Suspects(2)
    label = np.zeros((100, 100), np.uint8)
    label[0] = 1        # every image has both classes
    for i, count in enumerate(wrong):
        ids = label.copy()
        ids.ravel()[100:100 + count] = 1
        suspects.add(str(i), ids, ConfusionMatrix(2).update(ids, label))
    scores = suspects.scores()
    missing = np.array(wrong, np.float64)
    usual = missing.sum() / (missing + 100).sum()
    excess = (missing - usual * (missing + 100)) / np.sqrt(missing + 100)
    np.testing.assert_allclose(scores[:, 1], excess / max(np.quantile(excess, 0.9), 1.0))
    assert not scores[:, 0].any()       # class 0 is never predicted wrongly
    best = suspects.ranking()[0]
    assert (best.name, best.class_id, best.missing) == ("3", 1, wrong[3] / 10000)
    assert suspects.classes() == [(1, pytest.approx(usual), "3"), (0, 0.0, "0")]
