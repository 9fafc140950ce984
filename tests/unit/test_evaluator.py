"""The evaluation loop with predictions made by hand: what is counted, at which size, and which images are shown."""
import numpy as np
import pytest

from mindseg.commands.evaluate import protocol_overrides
from mindseg.config import CONFIGS, load_config
from mindseg.data.datasets import CITYSCAPES, VOC
from mindseg.errors import ConfigError, UserError
from mindseg.evaluation.evaluator import evaluate, image_miou
from mindseg.report import run_page as run_report
from mindseg.resize import EvalResize
from mindseg.runtime import Runtime
from tests.support.predictors import FunctionPredictor


class FakeLoader:
    """Gives images one by one; the first pixel of an image says how many of its rows will be predicted wrongly."""

    def __init__(self, labels):
        self.labels = labels
        self.num_samples = self.steps_per_epoch = len(labels)
        self.skipped = {}

    def samples(self):
        for index, label in enumerate(self.labels):
            image = np.zeros((*label.shape, 3), np.uint8)
            image[0, 0] = index
            yield {"image": image[None], "label": label[None], "names": [f"image{index}"]}


def rows_wrong(labels):
    """A model that knows the truth and spoils as many rows of image i as i says."""
    def segment(images, size):
        index = int(images[0, 0, 0, 0])
        pred = np.where(labels[index] == 255, 0, labels[index]).astype(np.uint8)
        pred[:index] = 20 - pred[:index]
        assert pred.shape == tuple(size)
        return pred[None]
    return FunctionPredictor(segment, VOC)


def test_counts_ranks_and_calls(rng):
    labels = [rng.integers(0, 9, (20, 10 + i), np.uint8) for i in range(6)]
    calls = {}
    result = evaluate(rows_wrong(labels), FakeLoader(labels), 4,
                      on_image=lambda name, ids, counts: calls.update({name: (ids, counts)}))
    assert [example.name for example in result.worst] == ["image5", "image4"]
    assert [example.name for example in result.best] == ["image0", "image1"]
    assert result.best[0].miou == 1.0
    assert result.scores["images"] == len(calls) == 6
    assert np.array_equal(sum(counts for _, counts in calls.values()), result.scores["confusion"])
    wrong = sum(i * label.shape[1] for i, label in enumerate(labels))
    total = sum(label.size for label in labels)
    assert result.scores["pixel_accuracy"] == pytest.approx(1 - wrong / total, abs=1e-12)
    assert "category_iou" not in result.scores


@pytest.mark.parametrize("examples", [0, 2])
def test_the_first_images_are_kept_if_they_are_wanted(rng, examples):
    labels = [rng.integers(0, 9, (20, 30), np.uint8) for _ in range(4)]
    result = evaluate(rows_wrong(labels), FakeLoader(labels), examples, num_first=3)
    assert [example.name for example in result.first] == ["image0", "image1", "image2"]
    assert len(result.worst) == len(result.best) == examples // 2
    assert (result.first[2].image[0, 0] == 2).all()
    np.testing.assert_array_equal(result.first[2].label, labels[2])
    np.testing.assert_array_equal(result.first[2].pred[:2], 20 - labels[2][:2])
    assert not evaluate(rows_wrong(labels), FakeLoader(labels), examples).first


def test_labels_follow_the_resize_rule():
    label = np.zeros((40, 80), np.uint8)
    label[:, 40:] = 3
    shapes = []

    def segment(images, size):
        shapes.append(tuple(size))
        pred = np.zeros((1, *size), np.uint8)
        pred[:, :, size[1] // 2:] = 3
        return pred

    exact = FunctionPredictor(segment, VOC, EvalResize("exact", (20, 20), label_input=True))
    assert evaluate(exact, FakeLoader([label])).scores["miou"] == 1.0
    original = FunctionPredictor(segment, VOC, EvalResize("exact", (20, 20)))
    result = evaluate(original, FakeLoader([label]), 2)
    assert result.scores["miou"] == 1.0
    cropped = FunctionPredictor(segment, VOC, EvalResize("none", (), center_crop=(30, 30), label_input=True))
    result = evaluate(cropped, FakeLoader([label]), 2)
    assert shapes == [(20, 20), (40, 80), (30, 30)]
    assert result.worst[0].image.shape == (30, 30, 3)


def test_cityscapes_gets_categories_and_instances_only_if_read():
    label = np.full((8, 8), 13, np.uint8)
    trucks = FunctionPredictor(lambda images, size: np.full((1, *size), 14, np.uint8), CITYSCAPES)
    scores = evaluate(trucks, FakeLoader([label])).scores
    assert scores["miou"] == 0
    assert scores["category_iou"]["vehicle"] == 1
    assert "iiou" not in scores
    scores = evaluate(trucks, FakeLoader([label]),
                      instances=lambda name: np.full((8, 8), 26000 + len(name), np.uint16)).scores
    assert scores["iiou"][13] == 0
    assert scores["category_iiou"]["vehicle"] == 1


def test_report_shows_rgb_and_the_curves_of_the_run(tmp_path, monkeypatch, rng):
    label = rng.integers(0, 9, (20, 30), np.uint8)
    result = evaluate(rows_wrong([label, label]), FakeLoader([label, label]), 2)
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "metrics.csv").write_text("phase,step,loss\ntrain,1,2.5\n")
    record = {"checkpoint": str(tmp_path / "ckpt" / "best.ckpt"), "config": "fcn8s_voc.yaml", "mode": "whole",
              "backend": "mindspore", "split": "val", **result.scores}
    pages = []
    monkeypatch.setattr(run_report, "write_report", lambda path, data: pages.append((path, data)))
    for order in ("BGR", "RGB"):
        cfg = load_config("configs/_base_/voc.yaml", ["model.num_classes=21", f"data.color_order={order}"])
        run_report.write_run_report(tmp_path / "out", cfg, record, result, Runtime("CPU", 0))
    (path, bgr), (_, rgb) = pages
    assert path == tmp_path / "out" / "report.html"
    assert bgr.worst[0].name == "image1"
    assert np.array_equal(bgr.worst[0].image, result.worst[0].image[..., ::-1])
    assert np.array_equal(rgb.worst[0].image, result.worst[0].image)
    assert rgb.history[0]["loss"] == "2.5"
    assert "color_order: BGR" in bgr.config


def test_only_void_is_refused():
    with pytest.raises(UserError, match="no labelled pixel"):
        evaluate(FunctionPredictor(lambda images, size: np.zeros((1, *size), np.uint8), VOC),
                 FakeLoader([np.full((8, 8), 255, np.uint8)]))


def test_image_miou_by_hand():
    counts = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert image_miou(counts) == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert image_miou(np.zeros((3, 3), int)) == 0.0


def test_protocols_load_and_say_what_their_names_promise():
    names = sorted(path.stem for path in (CONFIGS / "protocols").glob("*.yaml"))
    assert names == ["bisenetv2_modelzoo", "bisenetv2_paper", "enet_modelzoo", "fast_scnn_modelzoo", "fcn8s_modelzoo"]
    found = {name: load_config("configs/_base_/cityscapes.yaml", protocol_overrides(name)).eval for name in names}
    assert found["fast_scnn_modelzoo"].resize == {"rule": "short_side", "size": 768, "center_crop": [768, 768]}
    assert found["enet_modelzoo"].label_size == "input"
    assert found["bisenetv2_paper"].label_size == "original"
    assert found["bisenetv2_modelzoo"].mode == "msflip"
    assert found["bisenetv2_modelzoo"].scales == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def test_the_old_name_of_a_protocol_is_taken():
    assert protocol_overrides("enet_seed") == protocol_overrides("enet_modelzoo")
    with pytest.raises(ConfigError, match="no such protocol"):
        protocol_overrides("unet_seed")


def test_protocol_errors(tmp_path):
    with pytest.raises(ConfigError, match="enet_modelzoo"):
        protocol_overrides("enet")
    (tmp_path / "own.yaml").write_text("eval:\n  mode: flip\n")
    assert load_config("configs/_base_/voc.yaml", [*protocol_overrides(str(tmp_path / "own.yaml")),
                                                    "model.num_classes=21"]).eval.mode == "flip"
    (tmp_path / "own.yaml").write_text("optim:\n  lr: 1\n")
    with pytest.raises(ConfigError, match="section eval"):
        protocol_overrides(str(tmp_path / "own.yaml"))
