"""Metrics against examples worked by hand, cityscapesScripts' own program, and sums over shards."""
import math

import cv2
import numpy as np
import pytest

from mindseg.data.datasets import CITYSCAPES
from mindseg.errors import DataError
from mindseg.evaluation.cityscapes import instance_counts, instance_reader
from mindseg.metrics import ConfusionMatrix, RunningMean, category_iou, format_table

LABEL = np.array([[0, 0, 1, 1],
                  [0, 0, 1, 1],
                  [2, 2, 255, 255],
                  [2, 2, 255, 255]], np.uint8)
PRED = np.array([[0, 0, 1, 0],
                 [0, 1, 1, 1],
                 [2, 2, 3, 0],
                 [0, 2, 1, 2]], np.uint8)
OFFICIAL = np.array([*CITYSCAPES.train_to_id, *[0] * 237], np.uint8)     # train id -> label id, for predictions


def test_hand_worked_4x4():
    matrix = ConfusionMatrix(5)
    matrix.update(PRED, LABEL)
    expected = np.zeros((5, 5), int)
    expected[0, 0], expected[0, 1] = 3, 1          # truth 0: three hits, one taken for 1
    expected[1, 1], expected[1, 0] = 3, 1
    expected[2, 2], expected[2, 0] = 3, 1
    scores = matrix.compute()
    assert np.array_equal(matrix.matrix, expected)
    # Class 0: 3 hits, 1 missed, 2 wrong. Class 1: 3, 1, 1. Class 2: 3, 1, 0. Predictions on void count nowhere.
    assert scores["iou"][:3] == pytest.approx([3 / 6, 3 / 5, 3 / 4], abs=1e-12)
    assert all(math.isnan(value) for value in scores["iou"][3:])
    assert scores["present"] == 3
    assert scores["miou"] == pytest.approx((3 / 6 + 3 / 5 + 3 / 4) / 3, abs=1e-12)
    assert scores["pixel_accuracy"] == pytest.approx(9 / 12, abs=1e-12)
    assert scores["class_accuracy"][:3] == pytest.approx([0.75] * 3, abs=1e-12)
    assert scores["fwiou"] == pytest.approx((3 / 6 + 3 / 5 + 3 / 4) / 3, abs=1e-12)


def test_hand_worked_with_unequal_counts():
    """Ten labelled pixels, six, three and one of a class: means over classes and over pixels differ."""
    label = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 255, 255], np.uint8)
    pred = np.array([0, 0, 0, 0, 0, 1, 1, 0, 3, 2, 0, 1], np.uint8)
    matrix = ConfusionMatrix(5)
    matrix.update(pred, label)
    scores = matrix.compute()
    # Hit, missed, wrong: class 0 has 5, 1, 1; class 1 has 1, 2, 1; class 2 has 1, 0, 0; class 3 was predicted once.
    assert scores["iou"] == pytest.approx([5 / 7, 1 / 4, 1, 0, math.nan], abs=1e-12, nan_ok=True)
    assert scores["class_accuracy"] == pytest.approx([5 / 6, 1 / 3, 1, math.nan, math.nan], abs=1e-12, nan_ok=True)
    assert scores["fwiou"] == pytest.approx((6 * 5 / 7 + 3 * 1 / 4 + 1 * 1) / 10, abs=1e-12)
    assert scores["miou"] == pytest.approx((5 / 7 + 1 / 4 + 1 + 0) / 4, abs=1e-12)
    assert scores["pixel_accuracy"] == pytest.approx(7 / 10, abs=1e-12)
    assert scores["present"] == 4


def test_predicted_but_never_labelled_counts_as_zero():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([[0, 3]]), np.array([[0, 0]]))
    scores = matrix.compute()
    assert scores["iou"][3] == 0.0
    assert scores["present"] == 2
    assert scores["miou"] == pytest.approx(0.25)
    assert "absent" in format_table(scores, ("a", "b", "c", "d"))


def test_nothing_labelled_is_nan_not_zero():
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    assert math.isnan(matrix.compute()["miou"])


@pytest.mark.parametrize(("pred", "label", "text"), [
    (np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8), "label value 7"),
    (np.full((2, 2), 7, np.uint8), np.zeros((2, 2), np.uint8), "predicted id 7"),
    (np.full((2, 2), -1), np.zeros((2, 2), np.uint8), "-1"),
    (np.full((2, 2), 256), np.zeros((2, 2), np.uint8), "256"),
    (np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.uint8), "differ in size"),
])
def test_impossible_values_are_refused_and_not_counted(pred, label, text):
    matrix = ConfusionMatrix(3)
    with pytest.raises(DataError, match=text):
        matrix.update(pred, label)
    assert matrix.matrix.sum() == 0


def test_one_rank_equals_three():
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 19, (40, 60), np.uint8), rng.integers(0, 20, (40, 60), np.uint8)) for _ in range(7)]
    images = [(pred, np.where(label == 19, 255, label).astype(np.uint8)) for pred, label in images]
    instances = [rng.integers(24000, 34000, (40, 60), np.int32) for _ in images]
    whole, whole_inst = ConfusionMatrix(19), instance_counts()
    shards, shards_inst = [ConfusionMatrix(19) for _ in range(3)], [instance_counts() for _ in range(3)]
    for i, (pair, ids) in enumerate(zip(images, instances, strict=True)):
        for matrix, counts in ((whole, whole_inst), (shards[i % 3], shards_inst[i % 3])):
            matrix.update(*pair)
            counts.update(pair[0], ids)
    assert np.array_equal(whole.matrix, sum(m.matrix for m in shards))
    assert np.array_equal(whole_inst.counts, sum(c.counts for c in shards_inst))


def voc_scores(pred: np.ndarray, label: np.ndarray, classes: int) -> list[float]:
    """VOCevalseg's loop: border pixels (255) leave the truth, then intersection over union class by class."""
    valid = label != 255
    scores = []
    for index in range(classes):
        truth, guess = (label == index) & valid, (pred == index) & valid
        union = np.count_nonzero(truth | guess)
        scores.append(np.count_nonzero(truth & guess) / union if union else math.nan)
    return scores


def test_voc_equals_the_class_loop():
    rng = np.random.default_rng(1)
    label = rng.integers(0, 21, (50, 70), np.uint8)
    label[rng.random(label.shape) < 0.1] = 255
    label[label == 20] = 0                                         # absent class
    pred = np.where(rng.random(label.shape) < 0.6, label % 20, rng.integers(0, 20, label.shape)).astype(np.uint8)
    matrix = ConfusionMatrix(21)
    matrix.update(pred, label)
    expected = voc_scores(pred, label, 21)
    assert matrix.compute()["iou"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert matrix.compute()["miou"] == pytest.approx(np.nanmean(expected), abs=1e-12)


def random_scene(rng: np.random.Generator, structured: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train-id predictions, label ids (all 34 of them) and instance ids of one small picture."""
    shape = (48, 64)
    if structured:
        cells = rng.integers(0, 34, (6, 8), np.uint8)
        ids = np.kron(cells, np.ones((8, 8), np.uint8))
        instances = np.kron(cells * 1000 + rng.integers(0, 4, cells.shape), np.ones((8, 8), np.int32)).astype(np.int32)
        instances = np.where((ids >= 24) & (rng.random((6, 8)) < 0.8).repeat(8, 0).repeat(8, 1), instances, ids)
        truth = CITYSCAPES.id_to_train[ids]
        pred = np.where(truth == 255, 3, truth)
        pred = np.roll(pred, int(rng.integers(1, 4)), axis=1)      # objects found, their borders missed
    else:
        ids = rng.integers(0, 34, shape, np.uint8)
        instances = np.where((ids >= 24) & (rng.random(shape) < 0.7), ids * 1000 + rng.integers(0, 9, shape), ids)
        pred = rng.integers(0, 19, shape)
    absent = rng.random() < 0.5
    if absent:
        ids[ids == 31] = 0
        instances[instances // 1000 == 31] = 0
        pred = np.where(pred == 16, 0, pred)
    return pred.astype(np.uint8), ids, instances.astype(np.uint16)


@pytest.mark.parametrize("structured", [False, True])
def test_equals_cityscapesscripts(tmp_path, structured):
    import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as official
    rng = np.random.default_rng(2 + structured)
    matrix, counts, preds, truths = ConfusionMatrix(19), instance_counts(), [], []
    for i in range(3):
        pred, ids, instances = random_scene(rng, structured)
        name = f"town_{i:06d}_000019"
        preds.append(str(tmp_path / f"{name}_pred.png"))
        truths.append(str(tmp_path / f"{name}_gtFine_labelIds.png"))
        cv2.imwrite(preds[-1], OFFICIAL[pred])
        cv2.imwrite(truths[-1], ids)
        cv2.imwrite(str(tmp_path / f"{name}_gtFine_instanceIds.png"), instances)
        matrix.update(pred, CITYSCAPES.id_to_train[ids])
        counts.update(pred, instances)
    official.args.quiet, official.args.JSONOutput = True, False
    expected = official.evaluateImgLists(preds, truths, official.args)

    scores = matrix.compute() | category_iou(matrix.matrix, CITYSCAPES.categories) | counts.compute(matrix.matrix)
    for name, iou, iiou in zip(CITYSCAPES.classes, scores["iou"], scores["iiou"], strict=True):
        assert iou == pytest.approx(expected["classScores"][name], abs=1e-9, nan_ok=True), name
        assert iiou == pytest.approx(expected["classInstScores"][name], abs=1e-9, nan_ok=True), name
    for name, value in scores["category_iou"].items():
        assert value == pytest.approx(expected["categoryScores"][name], abs=1e-9, nan_ok=True), name
    for name, value in scores["category_iiou"].items():
        assert value == pytest.approx(expected["categoryInstScores"][name], abs=1e-9, nan_ok=True), name
    for key, theirs in (("miou", "averageScoreClasses"), ("miiou", "averageScoreInstClasses"),
                        ("mean_category_iou", "averageScoreCategories"),
                        ("mean_category_iiou", "averageScoreInstCategories")):
        assert scores[key] == pytest.approx(expected[theirs], abs=1e-9), key


def test_instance_weight_by_hand():
    """Two cars of 1 and 3 pixels weigh the same; the small one is found, of the other two thirds."""
    pred = np.array([[13, 0, 13, 13]], np.uint8)
    instances = np.array([[26000, 26001, 26001, 26001]], np.uint16)
    counts = instance_counts()
    counts.update(pred, instances)
    confusion = np.zeros((19, 19), np.int64)
    confusion[13, 13], confusion[13, 0], confusion[0, 13] = 3, 1, 100      # 100 pixels of road were taken for car
    size = 12794.0202738185
    hit = size * (1 + 2 / 3)
    scores = counts.compute(confusion)
    assert scores["iiou"][13] == pytest.approx(hit / (2 * size + 100), abs=1e-12)
    assert scores["category_iiou"]["vehicle"] == pytest.approx(hit / (2 * size + 100), abs=1e-12)
    assert math.isnan(scores["iiou"][0])
    with pytest.raises(DataError, match="differ in size"):
        counts.update(pred, instances[:, :3])


def test_running_mean():
    mean = RunningMean()
    assert math.isnan(mean.compute())
    mean.update(3.0, 2)
    mean.update(0.0, 1)
    mean.update(0.1, 0)
    assert mean.compute() == pytest.approx(3.1 / 3, abs=1e-6)


def test_instance_reader_names_a_broken_file(tmp_path):
    from mindseg.data.datasets import Sample
    label = tmp_path / "a_000000_000019_gtFine_labelIds.png"
    samples = [Sample("a_000000_000019", tmp_path / "a.png", label)]
    assert instance_reader(samples) is None
    broken = tmp_path / "a_000000_000019_gtFine_instanceIds.png"
    broken.write_bytes(b"no png")
    with pytest.raises(DataError, match="instanceIds"):
        instance_reader(samples)("a_000000_000019")
    with pytest.raises(DataError, match="instance_iou=false"):
        instance_reader(samples)("b_000000_000019")
    cv2.imwrite(str(broken), np.full((2, 2), 26001, np.uint16))
    assert np.array_equal(instance_reader(samples)("a_000000_000019"), np.full((2, 2), 26001))
