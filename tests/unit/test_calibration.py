"""Calibration error against sums by hand, and temperatures that are known."""
import numpy as np
import pytest

from mindseg.checkpoint import Progress, read_checkpoint, save_checkpoint
from mindseg.commands import calibrate
from mindseg.data.loader import create_loader
from mindseg.errors import UserError
from mindseg.evaluation.calibration import assess, fit_temperature
from mindseg.evaluation.evaluator import evaluate
from mindseg.inference.loading import open_checkpoint
from mindseg.metrics import Reliability
from tests.support.evaluation import make_streets, street_config
from tests.support.networks import make_tiny_network


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_error_is_that_of_bins_by_hand(rng):
    levels, pred = rng.integers(0, 256, (40, 50), np.uint8), rng.integers(0, 19, (40, 50), np.uint8)
    label = np.where(rng.random(pred.shape) < levels / 400, pred, 254).astype(np.uint8)
    label[:3] = 255
    reliability = Reliability()
    for rows in (slice(0, 13), slice(13, 40)):
        reliability.update(levels[rows], pred[rows], label[rows])
    error, rows = 0.0, []
    confidence, right = (levels / 255)[3:], (pred == label)[3:]
    for b in range(15):
        inside = (confidence > b / 15 + 1e-9) & (confidence <= (b + 1) / 15 + 1e-9)
        inside |= (confidence == 0) & (b == 0)
        error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        rows.append([confidence[inside].mean(), right[inside].mean(), inside.sum()])
    result = reliability.compute()
    assert result["ece"] == pytest.approx(error, abs=1e-12)
    assert np.allclose(result["reliability"], rows)


def test_a_known_temperature_is_found(rng):
    """Labels are drawn from the softmax of z; the network says z * t."""
    logits = rng.normal(0, 3, (60000, 6)).astype(np.float32)
    chances = softmax(logits.astype(np.float64)).cumsum(1)
    labels = (rng.random((len(logits), 1)) > chances).sum(1).clip(0, 5)
    for temperature in (0.5, 1.0, 2.5):
        assert fit_temperature(logits.T * np.float32(temperature), labels) == pytest.approx(temperature, rel=0.05)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint of a tiny network, which every configuration now means, and the configuration of four streets."""
    monkeypatch.setattr("mindseg.models.build_network", lambda cfg: make_tiny_network())
    monkeypatch.setattr("mindseg.checkpoint.build_network", lambda cfg: make_tiny_network())
    cfg = street_config(make_streets(tmp_path / "data"), "data.num_workers=1")
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, list(make_tiny_network().get_parameters()), Progress(3, 40, 0.25, 40), cfg, 7, 1000.5)
    return path, cfg


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["mindseg calibrate", *map(str, words)])
    monkeypatch.setattr(calibrate, "setup_runtime", lambda cfg: None)      # other tests may have used the device
    calibrate.main()


def test_calibration_changes_the_confidence_alone_and_mends_it(checkpoint, tmp_path, monkeypatch):
    path, cfg = checkpoint
    content = path.read_bytes()
    target = tmp_path / "y.ckpt"
    run(monkeypatch, "--ckpt_path", path, "--output", target)
    assert path.read_bytes() == content
    (old, old_extras), (new, extras) = read_checkpoint(path), read_checkpoint(target)
    temperature = extras.pop("temperature")
    assert extras == old_extras
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name], new[name]) for name in old)

    before, after = open_checkpoint(path, cfg), open_checkpoint(target, cfg)
    batch = next(create_loader(cfg, "eval").samples())
    size = batch["label"].shape[1:]
    ids, levels = after.with_confidence(batch["image"], size)
    assert np.array_equal(ids, before(batch["image"], size))
    expected = softmax(before.logits(batch["image"], size).astype(np.float64) / temperature).max(1)
    assert abs(levels - 255 * expected).max() < 0.51

    others = create_loader(cfg, "eval", 1, 2)       # it was fitted on the other two images
    (_, worse), (_, better) = assess(after, others, (1.0, temperature))
    assert better["ece"] < worse["ece"] / 2
    scores = evaluate(after, others, confidence=True).scores
    assert scores["ece"] == pytest.approx(better["ece"], abs=2e-4)       # both round to levels
    assert sum(pixels for *_, pixels in scores["reliability"]) == sum(map(sum, scores["confusion"]))


def test_no_file_is_replaced_without_being_asked(checkpoint, monkeypatch, tmp_path):
    path, _ = checkpoint
    for target, message in ((path, "exists already"), (tmp_path / "y.pth", "ends in .ckpt"),
                            (tmp_path / "none" / "y.ckpt", "no such folder")):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, "--ckpt_path", path, "--output", target)
