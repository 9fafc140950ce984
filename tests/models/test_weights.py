"""Weights of other implementations: names from the golden fixtures, or derived from ours by the other's naming rules."""
import json
import os

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from src.errors import UserError
from src.models import create_model
from src.models.weights import convert, convert_state_dict, read_weights, save_weights
from tests.goldens import rule
from tests.models.base import GOLDENS, assign

FIXTURES = [("fast_scnn", "fast_scnn_paper", {}), ("fast_scnn", "fast_scnn_segmentron", {"variant": "segmentron"}),
            ("enet", "enet", {}), ("bisenetv2", "bisenetv2", {})]


def zeros_state(fixture: str) -> dict[str, np.ndarray]:
    """The keys and shapes of a fixture, without the time to draw its weights."""
    spec = json.loads((GOLDENS / f"{fixture}.json").read_text())
    return {key: np.zeros(shape, np.float32) for key, shape in spec["state"]}


def vgg_state(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """torchvision's vgg16_bn with narrow classifier layers, whose shapes do not matter."""
    state, index, inputs = {}, 0, 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            state[f"features.{index}.weight"] = rng.normal(0, 1, (width, inputs, 3, 3)).astype(np.float32)
            state[f"features.{index}.bias"] = rng.normal(0, 1, width).astype(np.float32)
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                state[f"features.{index + 1}.{tensor}"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
            state[f"features.{index + 1}.num_batches_tracked"] = np.zeros((), np.int64)
            index, inputs = index + 3, width
        index += 1
    for layer in (0, 3, 6):
        state[f"classifier.{layer}.weight"] = np.zeros((4, 4), np.float32)
        state[f"classifier.{layer}.bias"] = np.zeros(4, np.float32)
    return state


@pytest.mark.parametrize(("name", "fixture", "options"), FIXTURES)
def test_every_parameter_gets_a_value(name, fixture, options):
    params = convert_state_dict(name, zeros_state(fixture), **options)
    network = create_model(name, 19, **options)
    assert {key: value.shape for key, value in params.items()} == \
        {p.name: tuple(p.shape) for p in network.get_parameters()}


@pytest.mark.parametrize(("name", "fixture", "options"), FIXTURES)
def test_a_key_too_few_or_too_many_is_named(name, fixture, options):
    state = zeros_state(fixture)
    lost = next(key for key in reversed(state) if "aux" not in key and key.endswith("running_mean"))
    with pytest.raises(UserError, match=r"1 parameters of the network are not in the file: \S+moving_mean$"):
        convert(name, {key: value for key, value in state.items() if key != lost}, **options)
    with pytest.raises(UserError, match=r"1 keys of the file have no place in the network: extra\.weight$"):
        convert(name, {**state, "extra.weight": np.zeros(3)}, **options)


@pytest.mark.parametrize(("name", "fixture", "options"), [FIXTURES[1], FIXTURES[3]])
def test_auxiliary_heads_may_be_absent_on_either_side(name, fixture, options):
    state = zeros_state(fixture)
    without = convert(name, {key: value for key, value in state.items() if not key.startswith("aux")}, **options)
    assert without.missing
    assert all(key.startswith("aux") for key in without.missing)
    switched_off = convert(name, state, aux=False, **options)
    assert set(switched_off.params) == {p.name for p in create_model(name, 19, aux=False, **options).get_parameters()}
    assert set(switched_off.unused) == {key for key in state if key.startswith("aux")
                                        and not key.endswith("num_batches_tracked")}


def test_half_a_head_is_an_error():
    state = zeros_state("fast_scnn_paper")
    del state["auxlayer.4.bias"]
    with pytest.raises(UserError, match=r"aux_head1\.conv2\.bias"):
        convert("fast_scnn", state)


def test_prefixes_and_training_state_are_removed():
    state = zeros_state("fast_scnn_paper")
    plain = convert("fast_scnn", state)
    parallel = {f"module.{key}": value for key, value in state.items()}
    assert convert("fast_scnn", parallel).params.keys() == plain.params.keys()
    trained = {**state, "moments.classifier.conv.1.bias": np.zeros(19), "global_step": np.zeros(1),
               "learning_rate": np.zeros(1)}
    assert convert("fast_scnn", trained).params.keys() == plain.params.keys()


def test_another_number_of_classes_needs_drop_classifier():
    state = zeros_state("fast_scnn_paper")
    with pytest.raises(UserError, match=r"\(19, 128, 1, 1\) .* \(4, 128, 1, 1\) .*--drop_classifier"):
        convert("fast_scnn", state, num_classes=4)
    dropped = convert("fast_scnn", state, drop_classifier=True, num_classes=4)
    assert dropped.missing == ("classifier.conv.weight", "classifier.conv.bias", "aux_head1.conv2.weight",
                               "aux_head1.conv2.bias")


def test_the_wrong_variant_network_or_file_is_explained():
    segmentron = zeros_state("fast_scnn_segmentron")
    with pytest.raises(UserError, match=r"SegmenTron: they need fast_scnn with variant=segmentron"):
        convert("fast_scnn", segmentron)
    with pytest.raises(UserError, match="the model is fast_scnn, not enet"):
        convert("enet", segmentron)
    with pytest.raises(UserError, match=r"no known enet has keys like foo.*davidtvs"):
        convert("enet", {"foo": np.zeros(3)})
    with pytest.raises(UserError, match="VGG16 without BatchNorm"):
        convert("fcn8s", {"features.0.weight": np.zeros((64, 3, 3, 3)), "features.2.weight": np.zeros((64, 64, 3, 3))})


def test_vgg16_bn_fills_the_backbone_and_folds_the_biases(rng):
    state = vgg_state(rng)
    result = convert("fcn8s", state)
    assert all(key.startswith("backbone.") for key in result.params)
    assert set(result.unused) == {key for key in state if key.startswith("classifier.")}
    assert {key.split(".")[0] for key in result.missing} == {
        "fc6", "fc7", "score_fr", "score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8"}
    last = "backbone.stage5.convs.2"
    np.testing.assert_array_equal(result.params[f"{last}.conv.weight"], state["features.40.weight"])
    np.testing.assert_array_equal(result.params[f"{last}.bn.gamma"], state["features.41.weight"])
    np.testing.assert_array_equal(result.params[f"{last}.bn.moving_mean"],
                                  state["features.41.running_mean"] - state["features.40.bias"])


def test_older_mindspore_vgg16_is_read(rng):
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    state = {}
    for key, value in vgg_state(rng).items():
        _, index, tensor = key.split(".")
        if key.startswith("features."):
            is_norm = f"features.{index}.running_mean" in vgg_state(rng) if False else value.ndim == 1
            if is_norm and tensor in names:
                tensor = names[tensor]
        state[key] = value
    assert state
