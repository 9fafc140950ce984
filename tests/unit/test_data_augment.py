"""Augmentations of ``data.augment`` against NumPy."""
import cv2
import numpy as np
import pytest

from mindseg.config import load_config
from mindseg.data.augment import create_augmentation
from mindseg.data.labels import IGNORE
from mindseg.data.loader import create_loader
from mindseg.errors import ConfigError
from tests.support.data import BASE, config, make_camvid

FILL = (10, 20, 30)


@pytest.fixture
def sample(rng):
    return rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), rng.integers(0, 5, (40, 60), dtype=np.uint8)


def run(entries, sample, seed=0):
    return create_augmentation(entries, FILL)(*sample, np.random.default_rng(seed))


def test_flip(sample):
    image, label = run([{"flip": {"prob": 1}}], sample)
    np.testing.assert_array_equal(image, sample[0][:, ::-1])
    np.testing.assert_array_equal(label, sample[1][:, ::-1])


def test_rotation_turns_image_and_label_alike():
    """A smooth picture and its thresholds stay together; corners are filled and ignored."""
    y, x = np.mgrid[:80, :80]
    image = np.repeat((x + y)[..., None], 3, 2).astype(np.uint8)
    label = ((x + y) > 79).astype(np.uint8)
    turned, ids = run([{"rotate": {"degrees": 30, "prob": 1}}], (image, label), seed=3)
    assert (ids == IGNORE).any()
    np.testing.assert_array_equal(turned[ids == IGNORE][0], FILL)
    inner = (slice(25, 55), slice(25, 55))
    clear = np.abs(turned[inner][..., 0].astype(int) - 79) > 2      # away from the threshold
    np.testing.assert_array_equal(ids[inner][clear], (turned[inner][..., 0] > 79)[clear])
    assert not np.array_equal(ids[inner], label[inner])
    # By hand: the gradient of x + y turns by the angle that the generator gives.
    rng = np.random.default_rng(3)
    rng.random()
    angle = np.deg2rad(rng.uniform(-30, 30))
    cy = cx = 39.5
    source = (np.cos(angle) * (x - cx) - np.sin(angle) * (y - cy) + cx
              + np.sin(angle) * (x - cx) + np.cos(angle) * (y - cy) + cy)
    np.testing.assert_allclose(turned[inner][..., 0], source[inner], atol=1.5)


def test_noise_has_its_deviation(sample):
    grey = np.full((200, 300, 3), 128, np.uint8)
    noisy, label = run([{"noise": {"std": [8, 8], "prob": 1}}], (grey, sample[1]))
    assert noisy.std() == pytest.approx(8, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.1)
    np.testing.assert_array_equal(label, sample[1])


def test_blur_and_jpeg_change_the_image_alone(sample):
    blurred, label = run([{"blur": {"sigma": [2, 2], "prob": 1}}], sample)
    np.testing.assert_array_equal(blurred, cv2.GaussianBlur(sample[0], (0, 0), 2))
    packed, ids = run([{"jpeg": {"quality": [30, 30], "prob": 1}}], sample)
    expected = cv2.imdecode(cv2.imencode(".jpg", sample[0], [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(packed, expected)
    assert np.array_equal(label, sample[1])
    assert np.array_equal(ids, sample[1])


def test_entries_run_in_their_order(sample):
    first = [{"jpeg": {"quality": [20, 20], "prob": 1}}, {"blur": {"sigma": [3, 3], "prob": 1}}]
    there, back = run(first, sample)[0], run(first[::-1], sample)[0]
    assert not np.array_equal(there, back)
    one = run(first[:1], sample)
    np.testing.assert_array_equal(there, run(first[1:], one)[0])


def test_probabilities(sample):
    flipped = [np.array_equal(run([{"flip": {"prob": 0.3}}], sample, seed)[0], sample[0][:, ::-1])
               for seed in range(400)]
    assert 0.2 < np.mean(flipped) < 0.4
    np.testing.assert_array_equal(run([{"flip": {"prob": 0}}], sample)[0], sample[0])


@pytest.mark.parametrize(("entries", "message"), [
    (["mirror"], "'mirror' is no augmentation; use flip, rotate"),
    ([{"rotate": {"angle": 3}}], "rotate has no option 'angle'; use prob, degrees"),
    ([{"rotate": {"degrees": 200}}], "rotate.degrees = 200 must be a number from 0 to 180"),
    ([{"blur": {"sigma": 2}}], r"blur.sigma = 2 must be \[low, high\] within 0 and 20"),
    ([{"noise": {"std": [5, 1]}}], "noise.std"), ([{"jpeg": {"quality": [0, 50]}}], "jpeg.quality"),
    ([{"flip": {"prob": 2}}], "flip.prob = 2 must be a number from 0 to 1"),
    ([{"flip": {}, "blur": {}}], "no augmentation"),
    ([3], "3 is no augmentation"), ([{"flip": 3}], "no augmentation")])
def test_mistakes_are_named(entries, message):
    with pytest.raises(ConfigError, match=r"data\.augment: .*" + message.split(";")[0]):
        create_augmentation(entries, FILL)


def test_colour_distortions_are_checked_like_the_key():
    with pytest.raises(ConfigError, match=r"unknown key 'data\.augment: color_jitter\.contrst'"):
        load_config(BASE / "camvid.yaml", ["data.augment=[{color_jitter: {contrst: 0.4}}]"])


def test_a_loader_takes_the_list(tmp_path, rng):
    """The same crops as without it, then the list alone; the same again for the same seed."""
    make_camvid(tmp_path, rng, 4)
    words = ["data.crop_size=[32, 32]", "data.scale_range=[1, 1]", "train.global_batch=4", "data.blur_prob=1"]
    plain = config("camvid", tmp_path, *words, "data.augment=[]")
    flipped = config("camvid", tmp_path, *words, "data.augment=[{flip: {prob: 1}}]")
    first, second, again = (next(create_loader(cfg, "train").epoch(0)) for cfg in (plain, flipped, flipped))
    np.testing.assert_array_equal(second["image"], first["image"][:, :, ::-1])
    np.testing.assert_array_equal(second["label"], first["label"][:, :, ::-1])
    np.testing.assert_array_equal(again["image"], second["image"])
