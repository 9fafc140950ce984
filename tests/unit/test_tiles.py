"""Tiles: grid and weights, blending against sums over whole arrays, and networks whose receptive field is known."""
import cv2
import numpy as np
import pytest

from mindseg.data.bands import WholeImage
from mindseg.errors import UserError
from mindseg.inference.decision import decide_by_logits, decide_by_sums
from mindseg.inference.network import NetworkPredictor
from mindseg.inference.tiles import Tiling, count_tiles, read_tiling, segment_bands, segment_tiled, spans
from tests.support.evaluation import street_config
from tests.support.networks import make_network, make_tiny_network
from tests.support.predictors import FunctionPredictor, info_of

CLASSES = 3


class ScorePredictor(FunctionPredictor):
    """A predictor whose scores are a function of the image, (H, W, 3) to (K, H, W)."""
    blends = True

    def __init__(self, scores):
        super().__init__(lambda images, size: scores(images[0]).argmax(0)[None].astype(np.uint8), info_of(CLASSES))
        self.one = scores

    def scores(self, images, size, confidence=False):
        assert images.shape[1:3] == tuple(size)
        return self.one(images[0])[None]

    def decide(self, scores, confidence=False):
        return decide_by_logits(scores, 1.0 if confidence else None)


def blurred(radius):
    """Scores with a receptive field: sums over squares of 2 * radius + 1 pixels, zeros outside."""
    def scores(image):
        side = (2 * radius + 1, 2 * radius + 1)
        sums = cv2.boxFilter(image.astype(np.float32), -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT)
        return sums.transpose(2, 0, 1)
    return ScorePredictor(scores)


def own_weights(length, tile, overlap):
    """The rule of docs/deployment.md, written out pixel by pixel: (tile, start) and float64 weights (length,)."""
    tile = min(tile, length)
    step = tile - overlap
    starts, k = [], 0
    while not starts or starts[-1] < length - tile:
        starts.append(min(k * step, length - tile))
        k += 1
    ramp = min(64, overlap, step // 2)
    result = []
    for i, start in enumerate(starts):
        weights = np.zeros(length)
        for x in range(start, start + tile):
            rising, falling = 1.0, 0.0
            if i:
                rising = own_ramp(x, (starts[i - 1] + tile + start) / 2, ramp)
            if i + 1 < len(starts):
                falling = own_ramp(x, (start + tile + starts[i + 1]) / 2, ramp)
            weights[x] = rising - falling
        result.append((start, weights))
    return result


def own_ramp(x, seam, ramp):
    if ramp == 0:
        return 1.0 if x + 0.5 > seam else 0.0
    return min(max((x + 0.5 - seam) / ramp + 0.5, 0.0), 1.0)


def test_weights_sum_to_one_and_follow_the_rule():
    rng = np.random.default_rng(3)
    for _ in range(60):
        length, tile = int(rng.integers(33, 400)), int(rng.integers(32, 150))
        overlap = int(rng.integers(0, min(tile, length)))
        found, expected = spans(length, tile, overlap), own_weights(length, tile, overlap)
        assert [span.start for span in found] == [start for start, _ in expected]
        total = np.zeros(length)
        for number, (span, (_, weights)) in enumerate(zip(found, expected, strict=True)):
            full = np.zeros(length)
            full[span.first:span.end] = span.weights
            np.testing.assert_allclose(full, weights, atol=1e-6)
            total += full
            assert number + 2 >= len(found) or span.end <= found[number + 2].first      # two tiles a pixel at most
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_without_blending_the_nearest_centre_decides():
    for length, tile, overlap in ((100, 40, 10), (101, 40, 39), (97, 32, 0), (50, 64, 8)):
        found = spans(length, tile, overlap, blend=False)
        centres = np.array([span.start + span.length / 2 for span in found])
        owner = np.concatenate([np.full(span.end - span.first, i) for i, span in enumerate(found)])
        assert len(owner) == length
        distance = np.abs(np.arange(length)[:, None] + 0.5 - centres)
        np.testing.assert_array_equal(owner, distance.argmin(1))        # of two equally near the first


def test_bands_are_the_weighted_sum_of_whole_tiles(rng):
    """Every tile has other scores, as with networks that pool globally."""
    image = rng.integers(0, 256, (150, 213, 3), np.uint8)
    tiling, noise = Tiling((64, 80), 24), {}

    def scores(tile):
        key = tile.tobytes()
        noise.setdefault(key, np.random.default_rng(len(noise)).normal(size=(CLASSES, *tile.shape[:2])))
        return noise[key].astype(np.float32)

    predictor = ScorePredictor(scores)
    predictor.color_order = "BGR"
    bands = list(segment_bands(predictor, WholeImage(image), tiling, confidence=True))
    total = np.zeros((CLASSES, *image.shape[:2]))
    for top, rows in own_weights(150, 64, 24):
        for left, columns in own_weights(213, 80, 24):
            part = noise[image[top:top + 64, left:left + 80].tobytes()]
            weights = rows[top:top + 64, None] * columns[left:left + 80]
            total[:, top:top + 64, left:left + 80] += part * weights
    assert len(noise) == count_tiles(image.shape[:2], tiling)
    np.testing.assert_array_equal(np.concatenate([band.image for band in bands]), image)
    ids, confidence = (np.concatenate([band.answer[i] for band in bands]) for i in (0, 1))
    best = np.sort(total, 0)
    clear = best[-1] - best[-2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ids[clear], total.argmax(0)[clear])
    probability = np.exp(total).max(0) / np.exp(total).sum(0)
    assert np.abs(confidence / 255 - probability).max() < 0.502 / 255


def test_tiles_equal_the_whole_image_where_the_overlap_covers_the_receptive_field(rng):
    image = rng.integers(0, 256, (200, 230, 3), np.uint8)
    predictor = blurred(radius=12)
    whole = predictor(image[None, ..., ::-1], image.shape[:2])[0]
    ids, confidence = segment_tiled(predictor, image, Tiling((128, 128), 2 * 12 + 36))
    assert confidence is None
    assert np.mean(ids != whole) < 1e-4     # equal sums, which blending rounds
    assert np.mean(segment_tiled(predictor, image, Tiling((128, 128), 16))[0] != whole) > 1e-3


def test_models_without_scores_give_each_pixel_from_one_tile(rng):
    image = rng.integers(0, 256, (90, 140, 3), np.uint8)
    predictor = FunctionPredictor(lambda images, size: np.full((1, *size), len(calls.append(1) or calls), np.uint8),
                                  info_of(CLASSES))
    calls: list[int] = []
    ids, confidence = segment_tiled(predictor, image, Tiling((64, 64), 16), confidence=True)
    expected = [np.concatenate([np.full((span.end - span.first), i) for i, span in enumerate(spans(n, 64, 16, False))])
                for n in (90, 140)]
    np.testing.assert_array_equal(ids, 1 + expected[0][:, None] * 3 + expected[1])
    np.testing.assert_array_equal(confidence, image[..., 2])        # the first channel, in RGB order


@pytest.mark.parametrize("mode", ["whole", "flip", "slide"])
def test_tiles_of_a_network_choose_as_the_network_does(tmp_path, rng, mode):
    """One tile is the whole image; scores and decisions are those of the graphs, with a temperature, too."""
    cfg = street_config(tmp_path, f"eval.mode={mode}", "eval.window=[32, 64]")
    predictor = NetworkPredictor(cfg, make_tiny_network(), info_of(19), temperature=1.7)
    image = rng.integers(0, 256, (50, 70, 3), np.uint8)
    ids, confidence = predictor.with_confidence(image[None], (50, 70))
    found = predictor.decide(predictor.scores(image[None], (50, 70), True)[0], True)
    assert np.mean(found[0] != ids[0]) < 1e-3
    same = found[0] == ids[0]
    assert np.abs(found[1].astype(int) - confidence[0])[same].max() <= 1
    assert len(np.unique(confidence)) > 5
    np.testing.assert_array_equal(predictor(image[None], (50, 70))[0], ids[0])


def test_decisions_of_sums_by_hand():
    sums = np.array([[[1.24, 0.4]], [[0.76, 1.6]]], np.float32)
    ids, confidence = decide_by_sums(np.concatenate([sums, sums / 2]), 2, 2)
    assert ids.tolist() == [[0, 1]]
    assert confidence.tolist() == [[round(255 * 0.31), round(255 * 0.4)]]
    assert decide_by_sums(sums, 2, None)[1] is None


@pytest.mark.parametrize(("tile", "overlap", "expected"), [
    ("512", None, Tiling((512, 512), 64)), ("360x480", None, Tiling((360, 480), 45)), ("64X96", 0, Tiling((64, 96), 0)),
    ("64x96", 63, Tiling((64, 96), 63))])
def test_sizes_of_tiles(tile, overlap, expected):
    assert read_tiling(tile, overlap) == expected


@pytest.mark.parametrize(("tile", "overlap", "words"), [
    ("31", None, "32 to 16384"), ("16x512", None, "32 to 16384"), ("512x", None, "HxW"), ("1e3", None, "HxW"),
    ("9" * 5000, None, "HxW"), ("-64", None, "HxW"), ("64x64x3", None, "HxW"), ("64x128", 64, "--overlap 64"),
    ("64", -1, "--overlap -1")])
def test_sizes_that_are_none(tile, overlap, words):
    with pytest.raises(UserError, match=words) as info:
        read_tiling(tile, overlap)
    assert len(str(info.value)) < 300


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "radius", "along"), [
    ("enet", {}, 624, 1), ("fcn8s", {"fc_channels": 32}, 273, 0)])
def test_networks_without_global_pooling_equal_the_whole_image(tmp_path, rng, name, options, radius, along):
    """The radius of the receptive field follows from kernels, strides and dilations."""
    predictor = NetworkPredictor(street_config(tmp_path), make_network(name, **options), info_of(19))
    enough = -(-(2 * radius + 64) // 32) * 32
    sides = [32, 32]
    sides[along] = 3 * enough
    image = rng.integers(0, 256, (*sides, 3), np.uint8)
    whole = predictor.scores(image[None, ..., ::-1], tuple(sides))[0]
    largest, differences = np.abs(whole).max(), {}
    for tile, overlap in ((enough, 32), (2 * enough, enough)):
        parts = []
        predictor.decide = lambda scores, _, parts=parts: (parts.append(scores.copy()) or scores[0].astype(np.uint8),
                                                           None)
        segment_tiled(predictor, image, Tiling((tile, tile), overlap))
        blended = np.concatenate(parts, 1 + along)
        assert blended.shape == whole.shape
        differences[overlap] = np.abs(blended - whole).max() / largest
    assert differences[enough] < 1e-4
    assert differences[32] > 1e-2
