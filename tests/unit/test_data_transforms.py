"""Augmentations against worked examples, colorsys, Pillow, and the promises of the recipes."""
import colorsys

import cv2
import numpy as np
import pytest

from mindseg.config import load_config
from mindseg.data.datasets import CITYSCAPES
from mindseg.data.labels import IGNORE, train_id_lut
from mindseg.data.loader import train_transform
from mindseg.data.transforms import (
    PHOTOMETRIC,
    ColorJitter,
    CropResize,
    ScaleCrop,
    TrainTransform,
    color_jitter,
    gaussian_blur,
    normalize,
)
from tests.support.data import BASE, random_image, random_label

LUT = train_id_lut(19)
PLAIN = {"flip_prob": 0.0, "rgb": False}


def ramp(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image whose colours are its coordinates, and a label whose value says in which of 4x4 tiles a pixel is.

    A pixel at row y and column x has blue x * 255 / width, green y * 255 / height, and label 4 * row + column of its
    tile.
    """
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 128)], -1).astype(np.uint8)
    return image, (y * 4 // height * 4 + x * 4 // width).astype(np.uint8)


@pytest.mark.parametrize("geometry", [ScaleCrop((96, 128)), ScaleCrop((48, 160), scale_base=64),
                                      CropResize((40, 56), (1.0, 1.3), 0.5)])
def test_image_and_label_stay_together(rng, geometry):
    image, label = ramp(120, 320)
    transform = TrainTransform(geometry, LUT, rgb=False)
    for _ in range(40):
        out, ids = transform(image, label, rng)
        assert out.shape == (*geometry.size, 3)
        assert ids.shape == geometry.size
        assert out.flags["C_CONTIGUOUS"]
        assert ids.flags["C_CONTIGUOUS"]
        seen = ids != IGNORE
        for channel, tile, length in ((0, ids % 4, 320), (1, ids // 4, 120)):
            place = ((out[..., channel] + 0.5) * length / 255)[seen]        # exact to one level of colour
            first = tile[seen].astype(int) * (length // 4)
            # The label is that of the source pixel whose centre is nearest to the place that the image shows.
            tolerance = 0.5 + 1.05 * length / 255
            assert (place >= first - tolerance).all()
            assert (place <= first + length // 4 - 1 + tolerance).all()


def test_scale_bounds_and_mean(rng):
    crop = ScaleCrop((512, 1024), (0.5, 2.0))
    scales = [crop.draw_scale(1024, 2048, rng) for _ in range(3000)]
    assert 0.5 <= min(scales) < 0.52
    assert 1.98 < max(scales) <= 2.0
    assert np.mean(scales) == pytest.approx(1.25, abs=0.05)


def test_base_size_speaks_of_one_side(rng):
    # Short side to 0.5..2 times 1024, whatever the image's own size; likewise the long side to 2048.
    short = ScaleCrop((768, 768), (0.5, 2.0), scale_base=1024)
    assert 512 / 600 <= short.draw_scale(600, 900, rng) <= 2048 / 600
    long = ScaleCrop((1024, 1024), (0.5, 2.0), scale_base=2048, scale_side="long")
    assert 1024 / 900 <= long.draw_scale(600, 900, rng) <= 4096 / 900


def test_stepped_scales_are_sixteen(rng):
    crop = ScaleCrop((1024, 1024), (0.5, 2.0), scale_base=2048, scale_side="long", scale_step=0.1)
    seen = {round(crop.draw_scale(1024, 2048, rng), 6) for _ in range(1000)}
    assert sorted(seen) == pytest.approx([0.5 + 0.1 * k for k in range(16)])


def test_windows_lie_inside_and_reach_every_edge(rng):
    crop = ScaleCrop((32, 48), (0.5, 2.0))
    label = np.zeros((40, 200), np.uint8)
    tops, lefts, bottoms, rights = set(), set(), set(), set()
    for _ in range(3000):
        w = crop.draw(label, LUT, rng)
        assert 0 <= w.top <= w.top + w.height <= 40
        assert 0 <= w.left <= w.left + w.width <= 200
        assert 0 < w.size[0] <= 32
        assert 0 < w.size[1] <= 48
        tops.add(w.top)
        lefts.add(w.left)
        bottoms.add(w.top + w.height)
        rights.add(w.left + w.width)
    assert (min(tops), max(bottoms), min(lefts), max(rights)) == (0, 40, 0, 200)


def test_crop_equals_scaling_everything_first():
    # At scale 2 a window of the source, resized, is a window of the resized source away from its border.
    image, label = ramp(64, 96)
    rng = np.random.default_rng(3)
    window = ScaleCrop((48, 64), (2.0, 2.0)).draw(label, LUT, rng)
    ours = cv2.resize(window.crop(image), (64, 48), interpolation=cv2.INTER_LINEAR)
    whole = cv2.resize(image, (192, 128), interpolation=cv2.INTER_LINEAR)
    theirs = whole[2 * window.top:2 * window.top + 48, 2 * window.left:2 * window.left + 64]
    assert window.size == (48, 64)
    assert np.abs(ours[2:-2, 2:-2].astype(int) - theirs[2:-2, 2:-2]).max() <= 1


def test_small_images_are_padded_bottom_and_right(rng):
    image = np.full((20, 30, 3), 200, np.uint8)
    transform = TrainTransform(ScaleCrop((32, 48), (1.0, 1.0)), LUT, (11, 22, 33), **PLAIN)
    out, ids = transform(image, np.full((20, 30), 4, np.uint8), rng)
    assert (ids[:20, :30] == 4).all()
    assert (out[:20, :30] == 200).all()
    for part in (np.s_[20:], np.s_[:, 30:]):
        assert (ids[part] == IGNORE).all()
        assert (out[part] == (11, 22, 33)).all()


def test_padding_is_zero_after_normalisation_even_with_jitter(rng):
    cfg = load_config(BASE / "cityscapes.yaml", ["data.crop_size=[64, 64]", "data.scale_range=[0.5, 0.5]",
                                                 "data.photometric=true"])
    transform = train_transform(cfg.data, LUT)
    for _ in range(10):
        out, ids = transform(random_image(rng, 64, 64), np.zeros((64, 64), np.uint8), rng)
        normal = normalize(out, cfg.data.mean, cfg.data.std, cfg.data.value_range)
        assert (ids[32:] == IGNORE).all()
        assert np.abs(normal[:, 32:]).max() < 0.5 / min(cfg.data.std) + 1e-6      # the mean, rounded to whole levels


def test_labels_are_translated(rng):
    label = np.array([[7, 8], [33, 0]], np.uint8).repeat(16, 0).repeat(16, 1)
    transform = TrainTransform(ScaleCrop((32, 32), (1.0, 1.0)), CITYSCAPES.label_lut(), **PLAIN)
    _, ids = transform(np.zeros((32, 32, 3), np.uint8), label, rng)
    assert [ids[0, 0], ids[0, 31], ids[31, 0], ids[31, 31]] == [0, 1, 18, IGNORE]


def test_cat_max_ratio(rng):
    # Left three quarters one class, right quarter another: a 64-wide crop shows two classes only near the seam.
    label = np.zeros((64, 512), np.uint8)
    label[:, 384:] = 1
    image = np.zeros((64, 512, 3), np.uint8)

    def shares(ratio: float) -> np.ndarray:
        transform = TrainTransform(ScaleCrop((64, 64), (1.0, 1.0), cat_max_ratio=ratio), LUT, **PLAIN)
        ids = [transform(image, label, rng)[1] for _ in range(200)]
        return np.array([max((i == 0).mean(), (i == 1).mean()) for i in ids])

    free, limited = shares(1.0), shares(0.75)
    assert (free > 0.8).mean() > 0.8
    # One window in 14 is balanced; ten tries find one in about half of the cases.
    assert (limited <= 0.8).mean() > 0.3


def test_ignored_pixels_do_not_count_as_a_class(rng):
    label = np.full((64, 256), IGNORE, np.uint8)
    label[:, 200:228], label[:, 228:] = 1, 2
    crop = ScaleCrop((64, 64), (1.0, 1.0), cat_max_ratio=0.75)
    hits = [crop.draw(label, LUT, rng).left for _ in range(200)]
    assert np.mean(np.array(hits) > 160) > 0.4        # a free draw would get there in 16 % of the cases


def test_crop_resize_follows_its_ratio(rng):
    label = np.zeros((120, 240), np.uint8)
    half = CropResize((50, 100), (1.0, 1.3), 0.5)
    windows = [half.draw(label, LUT, rng) for _ in range(1000)]
    whole = np.mean([(w.height, w.width) == (120, 240) for w in windows])
    assert 0.4 < whole < 0.65
    assert min(w.height for w in windows) == int(120 / 1.3)
    fixed = CropResize((50, 100), (1.2, 1.2)).draw(label, LUT, rng)
    assert (fixed.height, fixed.width, fixed.size) == (100, 200, (50, 100))


def test_flip_probability(rng):
    image, label = ramp(32, 32)
    transform = TrainTransform(ScaleCrop((32, 32), (1.0, 1.0)), LUT, flip_prob=0.5, rgb=False)
    flips = 0
    for _ in range(300):
        out, ids = transform(image, label, rng)
        if np.array_equal(ids, label[:, ::-1]):
            assert np.array_equal(out, image[:, ::-1])
            flips += 1
        else:
            assert np.array_equal(out, image)
            assert np.array_equal(ids, label)
    assert 100 < flips < 200


def test_channel_order(rng):
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200                     # blue, as decoded
    for rgb, channel in ((True, 2), (False, 0)):
        transform = TrainTransform(ScaleCrop((32, 32), (1.0, 1.0)), LUT, flip_prob=0.0, rgb=rgb)
        out, _ = transform(image, np.zeros((32, 32), np.uint8), rng)
        assert (out[..., channel] == 200).all()


def test_blur_is_gaussian_and_may_be_off(rng):
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    y, x = np.mgrid[-20:21, -20:21]
    kernel = np.exp(-(x ** 2 + y ** 2) / (2 * 0.9 ** 2))
    expected = 255 * kernel / kernel.sum()
    assert np.abs(gaussian_blur(image, 0.9)[..., 0] - expected).max() < 1.5
    assert gaussian_blur(image, 0.1) is image
    label = np.zeros((41, 41), np.uint8)
    for prob, low, high in ((0.0, 0, 0), (0.5, 35, 115), (1.0, 110, 190)):      # below 0.3 pixels nothing moves
        transform = TrainTransform(ScaleCrop((41, 41), (1.0, 1.0)), LUT, blur_prob=prob, **PLAIN)
        blurred = sum(not np.array_equal(transform(image, label, rng)[0], image) for _ in range(200))
        assert low <= blurred <= high


def jitter_oracle(image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: int) -> np.ndarray:
    """Float arithmetic pixel by pixel with colorsys."""
    levels = np.clip((image + brightness) * 1.0, 0, 255) * contrast
    out = np.empty(image.shape)
    for index in np.ndindex(image.shape[:2]):
        b, g, r = np.clip(levels[index], 0, 255) / 255
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        r, g, b = colorsys.hsv_to_rgb((h + hue / 180) % 1, min(1, s * saturation), v)
        out[index] = 255 * b, 255 * g, 255 * r
    return out


def test_jitter_equals_float_arithmetic(rng):
    image = random_image(rng, 24, 24)
    # A range of one value leaves nothing to chance; contrast comes first or last, which is the same at factor 1.
    fixed = ColorJitter(brightness=(1.2, 1.2), saturation=(0.7, 0.7), prob=1.0)
    expected = jitter_oracle(image * 1.2, 0, 1, 0.7, 0)
    assert np.abs(fixed(image, rng) - expected).mean() < 1.0
    darker = ColorJitter(contrast=(0.6, 0.6), prob=1.0)(image, rng)
    assert np.abs(darker - image * 0.6).max() <= 0.51
    turned = {bytes(ColorJitter(hue=18, prob=1.0)(image, rng)) for _ in range(200)}
    assert 20 < len(turned) <= 37                     # -18..18
    expected = [jitter_oracle(image, 0, 1, 1, hue) for hue in range(-18, 19)]
    for data in list(turned)[:5]:
        out = np.frombuffer(data, np.uint8).reshape(image.shape)
        assert min(np.abs(out - e).mean() for e in expected) < 1.5


def test_brightness_is_added_and_clipped(rng):
    image = np.full((8, 8, 3), 250, np.uint8)
    values = {int(ColorJitter(brightness=32.0, prob=1.0)(image, rng)[0, 0, 0]) for _ in range(5000)}
    assert min(values) == 218
    assert max(values) == 255
    assert ColorJitter(brightness=32.0, prob=0.0)(image, rng) is image


def test_jitter_from_configuration():
    modelzoo_recipe = color_jitter({"brightness": 32, "contrast": [0.4, 1.6], "saturation": [0.4, 1.6], "hue": 18,
                                    "prob": 0.5})
    assert modelzoo_recipe == ColorJitter(32.0, (0.4, 1.6), (0.4, 1.6), 18, 0.5)
    assert color_jitter({"brightness": [0.6, 1.4], "contrast": 0.4, "prob": 1}) == ColorJitter(
        (0.6, 1.4), (0.6, 1.4), (1.0, 1.0), 0, 1.0)


def test_labels_do_not_change_with_the_colours(rng):
    image, label = random_image(rng, 64, 64), random_label(rng, 64, 64, list(range(19)))
    geometry = ScaleCrop((48, 48))
    plain, coloured = (TrainTransform(geometry, LUT, jitters=j) for j in ((), (PHOTOMETRIC,)))
    seed = int(rng.integers(2 ** 32))
    _, a = plain(image, label, np.random.default_rng(seed))
    out, b = coloured(image, label, np.random.default_rng(seed))
    assert np.array_equal(a, b)
    assert out.dtype == np.uint8


def test_stored_arrays_of_a_seeded_transform():
    """The stream of a released version must not change unnoticed: resumed runs would see other data."""
    y, x = np.mgrid[:64, :96]
    image = np.stack([x * 2, y * 3, x + y], -1).astype(np.uint8)
    label = ((x // 12 + y // 16) % 19).astype(np.uint8)
    transform = TrainTransform(ScaleCrop((40, 56), cat_max_ratio=0.75), LUT, (104, 116, 124), 0.5, 0.5,
                               (PHOTOMETRIC,))
    for seed, stored_label, stored_image in STORED:
        out, ids = transform(image, label, np.random.default_rng((1, 2, seed)))
        assert ids[::13, ::11].tolist() == stored_label
        # Resizing differs by a level between processors.
        assert np.abs(out[::13, ::27].astype(int) - np.array(stored_image)).max() <= 2


STORED = (
    (3, [[2, 3, 3, 4, 4, 5], [2, 3, 3, 4, 4, 5], [3, 4, 4, 5, 5, 6], [3, 4, 4, 5, 5, 6]],
     [[[43, 88, 0], [48, 88, 23], [57, 88, 61]], [[56, 114, 0], [58, 114, 17], [72, 114, 61]],
      [[73, 140, 0], [71, 140, 10], [83, 140, 55]], [[88, 165, 0], [79, 165, 4], [94, 165, 49]]]),
    (4, [[0, 1, 3, 4, 6, 255], [1, 2, 4, 5, 7, 255], [2, 3, 5, 6, 8, 255], [255, 255, 255, 255, 255, 255]],
     [[[1, 2, 1], [26, 2, 51], [124, 116, 104]], [[13, 37, 1], [38, 37, 51], [124, 116, 104]],
      [[25, 73, 1], [50, 73, 51], [124, 116, 104]], [[124, 116, 104], [124, 116, 104], [124, 116, 104]]]),
)


@pytest.mark.parametrize(("mean", "std", "value_range"), [
    ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 255.0),
    ((0.3257, 0.3690, 0.3223), (0.2112, 0.2148, 0.2115), 1.0),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0)])
def test_normalize(rng, mean, std, value_range):
    image = rng.integers(0, 256, (5, 7, 3), np.uint8)
    out = normalize(image, mean, std, value_range)
    expected = ((image.astype(np.float64) * value_range / 255 - mean) / std).transpose(2, 0, 1)
    assert out.dtype == np.float32
    assert out.shape == (3, 5, 7)
    assert out.flags["C_CONTIGUOUS"]
    assert np.abs(out - expected).max() < 1e-6


def test_recipes_of_the_model_zoo_from_configuration():
    """The keys that stand for each promise reach the transform."""
    fast = train_transform(load_config(BASE / "cityscapes.yaml", [
        "data.scale_base=1024", "data.crop_size=[768, 768]", "data.blur_prob=0.5"]).data, LUT)
    assert fast.geometry == ScaleCrop((768, 768), (0.5, 2.0), 1024, "short")
    assert (fast.flip_prob, fast.blur_prob, fast.rgb, fast.fill) == (0.5, 0.5, True, (104, 116, 124))
    fcn = train_transform(load_config(BASE / "voc.yaml", [
        "data.color_order=BGR", "data.mean=[103.53, 116.28, 123.675]", "data.std=[57.375, 57.12, 58.395]"]).data, LUT)
    assert fcn.geometry == ScaleCrop((512, 512), (0.5, 2.0))
    assert (fcn.rgb, fcn.fill) == (False, (104, 116, 124))
    enet = train_transform(load_config(BASE / "cityscapes.yaml", [
        "data.resize=[512, 1024]", "data.crop_ratio=[1.0, 1.3]", "data.crop_prob=0.5", "data.blur_prob=1.0",
        "data.value_range=1", "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"]).data, LUT)
    assert enet.geometry == CropResize((512, 1024), (1.0, 1.3), 0.5)
    assert (enet.blur_prob, enet.fill) == (1.0, (0, 0, 0))
    bise = train_transform(load_config(BASE / "cityscapes.yaml", [
        "data.crop_size=[1024, 1024]", "data.scale_base=2048", "data.scale_side=long", "data.scale_step=0.1",
        "data.color_jitter={brightness: 32, contrast: [0.4, 1.6], saturation: [0.4, 1.6], hue: 18, prob: 0.5}",
        "data.value_range=1", "data.mean=[0.3257, 0.3690, 0.3223]", "data.std=[0.2112, 0.2148, 0.2115]"]).data, LUT)
    assert bise.geometry == ScaleCrop((1024, 1024), (0.5, 2.0), 2048, "long", 0.1)
    assert bise.jitters == (ColorJitter(32.0, (0.4, 1.6), (0.4, 1.6), 18, 0.5),)
    assert bise.fill == (82, 94, 83)
