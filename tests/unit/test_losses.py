"""Losses against NumPy in float64, written from the formulas and not from the code under test."""
import numpy as np
import pytest

import mindspore as ms

from mindseg.chips import find_chip
from mindseg.compat import as_if_on, set_mode
from mindseg.config import Config
from mindseg.cpu_kernels.library import installed_library
from mindseg.cpu_kernels.operators import ResizedCrossEntropy
from mindseg.errors import ConfigError
from mindseg.losses import (
    BCELoss,
    CrossEntropyLoss,
    DiceLoss,
    LovaszLoss,
    MultiHeadLoss,
    OhemLoss,
    SumLoss,
    create_loss,
)

IGNORE = 255
CLASSES = 5


def make_batch(seed, ignored=0.2, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (2, CLASSES, 7, 9)).astype(np.float32)
    label = rng.integers(0, CLASSES, (2, 7, 9)).astype(np.int32)
    label[rng.uniform(size=label.shape) < ignored] = IGNORE
    return logits, label


def flat(logits, label):
    rows = logits.astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, logits.shape[1])
    ids = label.reshape(-1)
    return rows[ids != IGNORE], ids[ids != IGNORE]


def pixel_cross_entropy(rows, ids):
    return np.log(np.exp(rows).sum(1)) - rows[np.arange(len(ids)), ids]


def run(loss, logits, label):
    return float(loss(ms.Tensor(logits), ms.Tensor(label)).asnumpy())


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0, 1.0, 3.0]])
def test_cross_entropy_is_the_weighted_mean_over_valid_pixels(weights):
    logits, label = make_batch(1)
    rows, ids = flat(logits, label)
    w = np.ones(len(ids)) if weights is None else np.array(weights)[ids]
    loss = CrossEntropyLoss(IGNORE, weights)
    assert run(loss, logits, label) == pytest.approx((pixel_cross_entropy(rows, ids) * w).sum() / w.sum(), rel=1e-5)
    assert float(loss.weight_sum(ms.Tensor(label)).asnumpy()) == pytest.approx(w.sum(), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [0.1, 6.0])
def test_ohem_fraction_rule_follows_coincheung(seed, scale):
    """Losses above -ln(thresh); if they are fewer than n_valid / 16, the hardest n_valid / 16."""
    logits, label = make_batch(seed, scale=scale)
    # Most pixels are made easy, so that both branches are met over the seeds and scales.
    easy = np.random.default_rng(seed + 50).uniform(size=label.shape) < 0.99
    for n, y, x in np.argwhere(easy & (label != IGNORE)):
        logits[n, label[n, y, x], y, x] += 12.0
    losses = np.sort(pixel_cross_entropy(*flat(logits, label)))[::-1]
    hard = losses[losses > -np.log(0.7)]
    expected = hard if len(hard) >= len(losses) // 16 else losses[:len(losses) // 16]
    assert run(OhemLoss(IGNORE, thresh=0.7), logits, label) == pytest.approx(expected.mean(), rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("min_kept", [1, 20, 10_000])
def test_ohem_min_kept_rule_follows_mmsegmentation(min_kept):
    """Probabilities below max(thresh, the min_kept-th lowest), summed and divided by the valid pixels."""
    logits, label = make_batch(3)
    losses = pixel_cross_entropy(*flat(logits, label))
    kept = min(min_kept * 2, len(losses))
    hard = (losses > -np.log(0.4)) | (losses >= np.sort(losses)[::-1][kept - 1])
    expected = losses[hard].sum() / len(losses)
    loss = OhemLoss(IGNORE, thresh=0.4, rule="min_kept", min_kept=min_kept)
    assert run(loss, logits, label) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("thresh", [0.01, 0.7])
@pytest.mark.parametrize("rule", ["fraction", "min_kept"])
def test_ohem_weighs_the_pixels_that_it_chose_without_weights(rule, thresh):
    """At 0.7 the threshold chooses, at 0.01 the least number that is kept: n_valid / 16, or 30 pixels an image."""
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
    logits, label = make_batch(17, scale=1.0)
    rows, ids = flat(logits, label)
    losses, w = pixel_cross_entropy(rows, ids), weights[ids]
    kept = len(losses) // 16 if rule == "fraction" else 2 * 30
    hard = np.zeros(len(losses), bool)
    hard[np.argsort(-losses)[:kept]] = True
    above = losses > -np.log(thresh)
    assert (above.sum() > kept) == (thresh == 0.7)      # each rule is met on both of its branches
    hard |= above
    # The first rule is the weighted mean of the chosen pixels, the second divides by the weights of all valid ones.
    divisor = w[hard].sum() if rule == "fraction" else w.sum()
    expected = (losses * w)[hard].sum() / divisor
    loss = OhemLoss(IGNORE, weights.tolist(), thresh=thresh, rule=rule, min_kept=30)
    assert run(loss, logits, label) == pytest.approx(expected, rel=1e-5)


def test_ohem_sends_gradients_to_the_hard_pixels_only():
    logits, label = make_batch(4, ignored=0.0, scale=0.5)
    hard = np.zeros(label.shape, bool)
    hard[:, :2] = True
    for n, y, x in np.argwhere(~hard):
        logits[n, label[n, y, x], y, x] += 9.0
    for n, y, x in np.argwhere(hard):
        logits[n, label[n, y, x], y, x] -= 9.0
    gradient = ms.grad(OhemLoss(IGNORE))(ms.Tensor(logits), ms.Tensor(label)).asnumpy()
    np.testing.assert_array_equal(np.abs(gradient).max(1) > 0, hard)


def test_sigmoid_loss_is_the_mean_of_binary_cross_entropies():
    logits, label = make_batch(5)
    rows, ids = flat(logits, label)
    truth = np.eye(CLASSES)[ids]
    p = 1 / (1 + np.exp(-rows))
    expected = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    assert run(BCELoss(IGNORE), logits, label) == pytest.approx(expected, rel=1e-5)


def test_sigmoid_loss_with_class_weights_weighs_each_pixel_by_its_class():
    """A pixel's weight is that of its true class, for the cross entropies of all classes at that pixel."""
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
    logits, label = make_batch(18)
    rows, ids = flat(logits, label)
    total, divisor = 0.0, 0.0
    for row, true in zip(rows, ids, strict=True):
        p = 1 / (1 + np.exp(-row))
        pixel = -sum(np.log(p[c]) if c == true else np.log(1 - p[c]) for c in range(CLASSES)) / CLASSES
        total += weights[true] * pixel
        divisor += weights[true]
    loss = BCELoss(IGNORE, weights.tolist())
    assert run(loss, logits, label) == pytest.approx(total / divisor, rel=1e-5)
    assert float(loss.weight_sum(ms.Tensor(label)).asnumpy()) == pytest.approx(divisor, rel=1e-6)


def test_sigmoid_loss_stays_finite_for_large_logits():
    logits, label = make_batch(6, scale=1.0)
    assert np.isfinite(run(BCELoss(IGNORE), logits * 1e4, label))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 0.0, 1.0]])
def test_dice_loss(weights):
    logits, label = make_batch(7)
    rows, ids = flat(logits, label)
    p, truth = np.exp(rows) / np.exp(rows).sum(1, keepdims=True), np.eye(CLASSES)[ids]
    scores = (2 * (p * truth).sum(0) + 1) / (p.sum(0) + truth.sum(0) + 1)
    expected = 1 - np.average(scores, weights=weights)
    assert run(DiceLoss(IGNORE, weights), logits, label) == pytest.approx(expected, rel=1e-5)


def lovasz(rows, ids, weights=None):
    """Lovász extension of the Jaccard loss by its definition: sums over the sets of the k largest errors."""
    p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    losses, counted = [], []
    for k in range(CLASSES):
        truth = ids == k
        if not truth.any():
            continue
        errors = np.abs(truth - p[:, k])
        value, before = 0.0, 0.0
        wrong = np.zeros(len(ids), bool)
        for i in np.argsort(-errors, kind="stable"):
            wrong[i] = True
            jaccard = 1 - (truth & ~wrong).sum() / (truth | wrong).sum()
            value, before = value + errors[i] * (jaccard - before), jaccard
        losses.append(value)
        counted.append(1.0 if weights is None else weights[k])
    return np.average(losses, weights=counted)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 0.0, 1.0]])
@pytest.mark.parametrize("absent", [False, True])
def test_lovasz_softmax(weights, absent):
    logits, label = make_batch(17)
    if absent:
        label[label == 2] = 1
    expected = lovasz(*flat(logits, label), weights)
    assert run(LovaszLoss(IGNORE, weights), logits, label) == pytest.approx(expected, rel=1e-5)


def test_lovasz_softmax_of_certain_answers_is_one_minus_iou():
    """With probabilities of 0 and 1 the surrogate equals the Jaccard loss."""
    _, label = make_batch(18)
    answer = np.random.default_rng(1).integers(0, CLASSES, label.shape)
    logits = 60.0 * np.eye(CLASSES, dtype=np.float32)[answer].transpose(0, 3, 1, 2)
    valid = label != IGNORE
    iou = [((label == k) & (answer == k) & valid).sum() / (((label == k) | (answer == k)) & valid).sum()
           for k in range(CLASSES)]
    assert run(LovaszLoss(IGNORE), logits, label) == pytest.approx(1 - np.mean(iou), rel=1e-5)


def test_lovasz_softmax_of_many_pixels_equals_the_one_of_sorted_errors():
    """With 48,000 pixels several share an interval of the count that takes the place of sorting."""
    rng = np.random.default_rng(20)
    logits = (2 * rng.normal(size=(2, CLASSES, 150, 160))).astype(np.float32)
    label = rng.integers(0, CLASSES, (2, 150, 160)).astype(np.int32)
    rows, ids = flat(logits, label)
    p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    losses, slopes = [], np.zeros_like(p)
    for k in range(CLASSES):
        errors = np.abs((ids == k) - p[:, k])
        order = np.argsort(-errors)
        own = (ids == k)[order]
        jaccard = 1 - (own.sum() - np.cumsum(own)) / (own.sum() + np.cumsum(~own))
        steps = np.diff(jaccard, prepend=0.0)
        losses.append((errors[order] * steps).sum())
        slopes[order, k] = np.where(own, -steps, steps) / CLASSES
    expected = p * (slopes - (slopes * p).sum(1, keepdims=True))
    value, gradient = ms.value_and_grad(LovaszLoss(IGNORE))(ms.Tensor(logits), ms.Tensor(label))
    assert float(value.asnumpy()) == pytest.approx(np.mean(losses), rel=1e-5)
    gradient = gradient.asnumpy().transpose(0, 2, 3, 1).reshape(-1, CLASSES)
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())


def test_further_losses_are_added_with_their_weights():
    logits, label = make_batch(19)
    loss = create_loss(config(also={"lovasz": 0.5, "dice": 2.0}, class_weights=[1.0, 2.0, 1.0, 0.5, 1.0]), IGNORE)
    assert type(loss.loss) is SumLoss
    parts = [run(kind(IGNORE, [1.0, 2.0, 1.0, 0.5, 1.0]), logits, label)
             for kind in (CrossEntropyLoss, LovaszLoss, DiceLoss)]
    value = float(loss((ms.Tensor(logits),), ms.Tensor(label)).asnumpy())
    assert value == pytest.approx(parts[0] + 0.5 * parts[1] + 2.0 * parts[2], rel=1e-5)
    alone = create_loss(config(class_weights=[1.0, 2.0, 1.0, 0.5, 1.0]), IGNORE)
    assert float(loss.weight_sum(ms.Tensor(label)).asnumpy()) == float(alone.weight_sum(ms.Tensor(label)).asnumpy())
    with pytest.raises(ConfigError, match=r"loss\.also: 'focal' is no loss; use cross_entropy, .*lovasz"):
        create_loss(config(also={"focal": 1.0}), IGNORE)
    with pytest.raises(ConfigError, match=r"loss\.ohem_thresh"):
        create_loss(config(also={"ohem": 1.0}, ohem_thresh=1.0), IGNORE)


@pytest.mark.parametrize("kind", [CrossEntropyLoss, OhemLoss, BCELoss, DiceLoss, LovaszLoss])
def test_a_crop_without_valid_pixels_gives_zero_and_zero_gradients(kind):
    logits, label = make_batch(8)
    label[:] = IGNORE
    loss = kind(IGNORE)
    value, gradient = ms.value_and_grad(loss)(ms.Tensor(logits), ms.Tensor(label))
    assert float(value.asnumpy()) == 0.0
    assert not gradient.asnumpy().any()
    assert float(loss.weight_sum(ms.Tensor(label)).asnumpy()) == 0.0


@pytest.mark.parametrize("kind", [CrossEntropyLoss, OhemLoss, BCELoss, DiceLoss, LovaszLoss])
def test_gradient_is_the_slope(kind):
    logits, label = make_batch(9)
    loss = kind(IGNORE)
    gradient = ms.grad(loss)(ms.Tensor(logits), ms.Tensor(label)).asnumpy()
    direction = np.random.default_rng(0).normal(size=logits.shape).astype(np.float32)
    up, down = run(loss, logits + 5e-3 * direction, label), run(loss, logits - 5e-3 * direction, label)
    assert (gradient * direction).sum() == pytest.approx((up - down) / 1e-2, rel=3e-2, abs=2e-4)


@pytest.mark.parametrize(("kind", "fused"), [(CrossEntropyLoss, False), (CrossEntropyLoss, True), (OhemLoss, False),
                                         (OhemLoss, True), (BCELoss, False), (DiceLoss, False)])
def test_repeated_calls_are_equal_to_the_bit(kind, fused):
    """MindSpore measures some kernels in their first five calls, and then changes their number of threads."""
    if fused and installed_library() is None:
        pytest.skip("the operators are not built")
    rng = np.random.default_rng(12)
    logits = ms.Tensor(rng.normal(0, 2, (4, 3, 256, 512)).astype(np.float32))
    label = ms.Tensor(rng.choice([0, 1, 2, IGNORE], (4, 256, 512)).astype(np.int32))
    loss = kind(IGNORE, [0.63, 1.16, 2.49])
    loss.fused = ResizedCrossEntropy() if fused else None
    both = ms.value_and_grad(loss)
    results = {b"".join(part.asnumpy().tobytes() for part in both(logits, label)) for _ in range(8)}
    assert len(results) == 1


@pytest.mark.parametrize("kind", [CrossEntropyLoss, BCELoss])
def test_weighted_means_of_parts_are_the_mean_of_the_whole(kind):
    logits, label = make_batch(10)
    label[0, :5] = IGNORE       # so that the parts have different numbers of valid pixels
    loss = kind(IGNORE, [1.0, 2.0, 1.0, 0.5, 1.0])
    parts = [(run(loss, logits[i:i + 1], label[i:i + 1]), float(loss.weight_sum(ms.Tensor(label[i:i + 1])).asnumpy()))
             for i in range(2)]
    whole = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
    assert run(loss, logits, label) == pytest.approx(whole, rel=1e-6)


def config(**changes):
    return Config({"name": "cross_entropy", "also": None, "weights": None, "class_weights": None, "ohem_thresh": 0.7,
                   "ohem_rule": "fraction", "ohem_min_kept": 100, "label_stride": 1, **changes})


@pytest.mark.parametrize(("weights", "factors"), [(None, (1.0, 0.4, 0.4)), ([1.0, 0.2, 0.7], (1.0, 0.2, 0.7))])
def test_heads_are_weighted(weights, factors):
    heads = [make_batch(seed)[0] for seed in (11, 12, 13)]
    label = make_batch(11)[1]
    total = create_loss(config(weights=weights), IGNORE)(tuple(ms.Tensor(h) for h in heads), ms.Tensor(label))
    expected = sum(f * pixel_cross_entropy(*flat(h, label)).mean() for f, h in zip(factors, heads, strict=True))
    assert float(total.asnumpy()) == pytest.approx(expected, rel=1e-5)


def test_a_wrong_number_of_head_weights_names_the_key():
    logits, label = make_batch(14)
    loss = create_loss(config(weights=[1.0, 0.4]), IGNORE)
    with pytest.raises(ConfigError, match=r"loss\.weights has 2 numbers, the network has 1"):
        loss((ms.Tensor(logits),), ms.Tensor(label))


def test_label_stride_compares_the_centres_of_the_cells():
    logits, small = make_batch(15)
    label = np.full((2, 7 * 8, 9 * 8), IGNORE, np.int32)
    label[:, 4::8, 4::8] = small
    loss = create_loss(config(label_stride=8), IGNORE)
    expected = pixel_cross_entropy(*flat(logits, small)).mean()
    assert float(loss((ms.Tensor(logits),), ms.Tensor(label)).asnumpy()) == pytest.approx(expected, rel=1e-5)
    assert float(loss.weight_sum(ms.Tensor(label)).asnumpy()) == (small != IGNORE).sum()


@pytest.mark.parametrize(("name", "kind"), [("cross_entropy", CrossEntropyLoss), ("ohem", OhemLoss),
                                            ("bce", BCELoss), ("dice", DiceLoss), ("lovasz", LovaszLoss)])
def test_names(name, kind):
    loss = create_loss(config(name=name), IGNORE)
    assert isinstance(loss, MultiHeadLoss)
    assert type(loss.loss) is kind


@pytest.mark.parametrize("changes", [{"class_weights": [1.0, -1.0]}, {"class_weights": [0.0, 0.0]},
                                     {"name": "ohem", "ohem_thresh": 1.0}, {"name": "ohem", "ohem_min_kept": 0}])
def test_values_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=r"loss\.(class_weights|ohem_thresh)"):
        create_loss(config(**changes), IGNORE)


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_execution_modes_agree(mode):
    logits, label = make_batch(16)
    set_mode(mode)
    try:
        value = run(OhemLoss(IGNORE, thresh=0.6), logits, label)
    finally:
        set_mode("graph")
    losses = pixel_cross_entropy(*flat(logits, label))
    assert value == pytest.approx(losses[losses > -np.log(0.6)].mean(), rel=1e-5)


@pytest.mark.parametrize("rule", ["fraction", "min_kept"])
@pytest.mark.parametrize("scale", [0.3, 2.0])
@pytest.mark.parametrize("kind", [CrossEntropyLoss, OhemLoss, BCELoss, DiceLoss, LovaszLoss])
def test_the_form_for_ascend_has_the_same_value_and_gradient(kind, scale, rule):
    """Comparisons instead of look-ups, and for OHEM counting instead of a sort, on both branches of both rules."""
    options = {"rule": rule, "min_kept": 30, "thresh": 0.3} if kind is OhemLoss else {}
    logits, label = make_batch(21, scale=scale)
    with as_if_on(find_chip("Ascend910B1")):
        other = kind(IGNORE, **options)
    own = kind(IGNORE, **options)
    assert run(other, logits, label) == pytest.approx(run(own, logits, label), rel=2e-5)
    gradients = [ms.grad(loss)(ms.Tensor(logits), ms.Tensor(label)).asnumpy() for loss in (own, other)]
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-3, atol=2e-5 * np.abs(gradients[0]).max())
