"""Weights of other implementations: names of the fixtures, or derived from ours by the other's naming rules."""
import json
import os
import pickle
import sys
import types

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from mindseg.compat import no_init_parameters, set_mode
from mindseg.errors import UserError
from mindseg.models import create_model
from mindseg.models.weights import (
    clean_state,
    convert,
    convert_state_dict,
    detect_source,
    read_weights,
    save_weights,
)
from tests.goldens import rule
from tests.goldens.rule import GOLDENS
from tests.support.networks import assign, vgg_state

FIXTURES = [("fast_scnn", "fast_scnn_paper", {}), ("fast_scnn", "fast_scnn_segmentron", {"variant": "segmentron"}),
            ("enet", "enet", {}), ("bisenetv2", "bisenetv2", {})]


def zeros_state(fixture: str) -> dict[str, np.ndarray]:
    """The keys and shapes of a fixture, without the time to draw its weights."""
    spec = json.loads((GOLDENS / f"{fixture}.json").read_text())
    return {key: np.zeros(shape, np.float32) for key, shape in spec["state"]}


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


@pytest.mark.parametrize("layout", ["layers.{index}.", "vgg16_feature_extractor.conv{stage}_{conv}.{kind}."])
def test_older_mindspore_vgg16_is_read(rng, layout):
    state, places, index = {}, {}, 0
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        for conv in range(count):
            target = f"backbone.stage{stage}.convs.{conv}"
            shapes = {p.name: p.shape for p in create_model_shapes("fcn8s")}
            for kind, tensors in enumerate((("weight",), ("gamma", "beta", "moving_mean", "moving_variance"))):
                for tensor in tensors:
                    ours = f"{target}.{('conv', 'bn')[kind]}.{tensor}"
                    key = layout.format(index=index + kind, stage=stage, conv=conv + 1, kind=kind) + tensor
                    state[key] = rng.normal(0, 1, shapes[ours]).astype(np.float32)
                    places[ours] = key
            index += 3
        index += 1
    result = convert("fcn8s", {**state, "classifier.6.bias": np.zeros(1000)})
    assert result.params.keys() == places.keys()
    for ours, key in places.items():
        np.testing.assert_array_equal(result.params[ours], state[key])


def create_model_shapes(name: str) -> list[ms.Parameter]:
    """The parameters of a network without their initial values."""
    with no_init_parameters():
        return list(create_model(name, 21).get_parameters())


@pytest.mark.parametrize("name", ["fast_scnn", "enet", "bisenetv2"])
def test_older_mindspore_checkpoints_compute_the_same(name):
    """Logits of the older projects' own code; fcn8s has the layout and names of its golden fixture."""
    set_mode("pynative")
    spec = json.loads((GOLDENS / f"modelzoo_{name}.json").read_text())
    words = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    state = {}
    for key, shape in spec["state"]:
        layer, _, tensor = key.rpartition(".")
        state[key] = rule.tensor(spec["seed"], f"{layer}.{words.get(tensor, tensor)}", tuple(shape))
    network = create_model(name, spec["num_classes"], variant="modelzoo").set_train(False)
    assign(network, convert_state_dict(name, state, variant="modelzoo"))
    logits = network(Tensor(rule.image(spec["seed"], tuple(spec["eval_shape"])))).asnumpy()
    with np.load(GOLDENS / f"modelzoo_{name}.npz") as golden:
        step = spec["stride"]
        difference = np.abs(logits[:, :, ::step, ::step] - golden["eval_logits"]).max()
        assert difference <= 1e-4 * golden["eval_abs_mean"]


@pytest.mark.parametrize("name", ["fast_scnn", "enet", "bisenetv2"])
def test_weights_of_zh320_compute_the_same(name):
    """Logits of a float64 run of that project's own code."""
    set_mode("pynative")
    fixture = GOLDENS / f"zh320_{name}"
    spec, state = json.loads(fixture.with_suffix(".json").read_text()), rule.state_dict(fixture)
    options = detect_source(name, clean_state(state)).options
    assert options["variant"] == "zh320"
    network = create_model(name, spec["num_classes"], **options).set_train(False)
    result = convert(name, state, **options)
    assert result.unused == result.missing == ()
    assign(network, result.params)
    logits = network(Tensor(rule.image(spec["seed"], tuple(spec["eval_shape"])))).asnumpy()
    with np.load(fixture.with_suffix(".npz")) as golden:
        step = spec["stride"]
        difference = np.abs(logits[:, :, ::step, ::step] - golden["eval_logits"]).max()
        print(name, difference / golden["eval_abs_mean"])
        assert difference <= 1e-4 * golden["eval_abs_mean"]
    fewer = convert(name, state, drop_classifier=None, num_classes=7, **options)
    assert 0 < len(fewer.missing) < 20
    assert all(key.startswith(("classifier.conv.", "decoder.fullconv.", "head.conv_out.", "aux"))
               for key in fewer.missing)


def test_an_older_fcn8s_checkpoint_is_read():
    words = {"running_mean": "moving_mean", "running_var": "moving_variance", "weight": "gamma", "bias": "beta"}
    state = {}
    for key, value in zeros_state("fcn8s").items():
        layer, _, tensor = key.rpartition(".")
        if tensor != "num_batches_tracked":
            state[f"{layer}.{words.get(tensor, tensor) if value.ndim == 1 else tensor}"] = value
    result = convert("fcn8s", state)
    assert result.source == "the MindSpore model zoo's FCN-8s"
    assert set(result.params) == {p.name for p in create_model_shapes("fcn8s")}


def test_an_encoder_checkpoint_fills_the_encoder_of_the_whole_network():
    encoder = create_model("enet", 5, encoder_only=True)
    state = {p.name: p.asnumpy() for p in encoder.get_parameters()}
    result = convert("enet", state, part="encoder", num_classes=19)
    assert result.source == "this project"
    assert set(result.params) == {key for key in state if key.startswith("encoder.")}
    assert all(key.startswith("decoder.") for key in result.missing)
    with pytest.raises(UserError, match="not in the file: decoder"):
        convert("enet", state)
    with pytest.raises(UserError, match="pretrained_part 'decoder'"):
        convert("enet", state, part="decoder")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".ckpt", ".pth"])
def test_every_format_gives_the_same_arrays(suffix, tmp_path, rng):
    state = {"a.weight": rng.normal(0, 1, (3, 2)).astype(np.float32), "b": rng.normal(0, 1, 4).astype(np.float32)}
    path = tmp_path / f"file{suffix}"
    if suffix == ".npz":
        np.savez(path, **state)
    elif suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file(state, str(path))
    elif suffix == ".ckpt":
        save_weights(path, state)
    else:
        torch = pytest.importorskip("torch", reason="requirements-convert.txt is not installed")
        tensors = {key: torch.from_numpy(value) for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"lr": 0.1}}, path)
    result = read_weights(path)
    assert result.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(result[key], value)


def test_nested_torch_files_are_joined(tmp_path):
    torch = pytest.importorskip("torch", reason="requirements-convert.txt is not installed")
    torch.save({"detail": {"S1.0.conv.weight": torch.ones(2)}, "segment": {"x": torch.zeros(1)}}, tmp_path / "b.pth")
    assert set(read_weights(tmp_path / "b.pth")) == {"detail.S1.0.conv.weight", "segment.x"}


def test_a_backbone_file_without_head_is_read():
    state = {key: value for key, value in zeros_state("bisenetv2").items() if key.startswith(("detail.", "segment."))}
    result = convert("bisenetv2", state)
    assert {key.split(".")[0] for key in result.params} == {"detail", "segment"}
    assert {key.split(".")[0] for key in result.missing} == {"bga", "head", "aux2", "aux3", "aux4", "aux5_4"}


@pytest.mark.parametrize("lost", [("bga.",), ("head.", "aux"), ("bga.", "head.")])
def test_a_whole_file_that_lost_a_part_is_no_backbone_file(lost):
    state = {key: value for key, value in zeros_state("bisenetv2").items() if not key.startswith(lost)}
    with pytest.raises(UserError, match=rf"are not in the file: {lost[0]}"):
        convert("bisenetv2", state, num_classes=19)


class FakeTensor:
    """Stand-in for a PyTorch tensor, as far as ``read_weights`` uses one."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def is_floating_point(self) -> bool:
        return self.values.dtype.kind == "f"

    def detach(self) -> "FakeTensor":
        return self

    def float(self) -> "FakeTensor":
        return FakeTensor(self.values.astype(np.float32))

    def numpy(self) -> np.ndarray:
        return self.values


def test_pytorch_files_are_read_without_running_their_code(tmp_path, monkeypatch):
    """With a stand-in for torch, whose ``load`` unpickles whatever it is not told to refuse, as torch's own does."""
    def load(path, map_location=None, weights_only=False):
        assert (str(path), map_location) == (str(tmp_path / "file.pth"), "cpu")
        if not weights_only:
            with open(path, "rb") as stream:
                return pickle.load(stream)
        if b"system" in tmp_path.joinpath("file.pth").read_bytes():
            raise pickle.UnpicklingError("Weights only load failed: Unsupported global posix.system")
        return {"epoch": 3, "state_dict": {"a.weight": FakeTensor(np.ones(2, np.float64)),
                                           "a.num": FakeTensor(np.array(7)), "part": {"b": FakeTensor(np.zeros(1))}}}

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path / 'executed'}'",)

    torch = types.ModuleType("torch")
    torch.Tensor, torch.load = FakeTensor, load
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "file.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"file\.pth: damaged or not a \.pth file .*Unsupported global"):
        read_weights(tmp_path / "file.pth")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "file.pth").write_bytes(b"weights")
    found = read_weights(tmp_path / "file.pth")
    assert found.keys() == {"a.weight", "a.num", "part.b"}
    assert found["a.weight"].dtype == np.float32
    assert found["a.num"] == 7


def test_pytorch_files_without_torch_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)      # importing it fails
    (tmp_path / "file.pth").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"file\.pth: reading PyTorch files needs torch; "
                                        r"pip install -r requirements-convert\.txt, .*\.npz or \.safetensors"):
        read_weights(tmp_path / "file.pth")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".ckpt", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_damaged_files_are_named(suffix, content, tmp_path):
    if suffix == ".pth" and content:
        pytest.importorskip("torch", reason="requirements-convert.txt is not installed")
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"file\{suffix}: (the file is empty|damaged or not)"):
        read_weights(path)


def test_missing_and_unknown_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.npz: no such file"):
        read_weights(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"unknown format \.h5; known are \.pth"):
        read_weights(tmp_path / "file.h5")


def test_an_unwritable_folder_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written"):
        save_weights(tmp_path / "file" / "out.ckpt", {"a": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match=r"must end in \.ckpt"):
        save_weights(tmp_path / "out.npz", {"a": np.zeros(1, np.float32)})
    assert os.listdir(tmp_path) == ["file"]


def test_the_tool_converts_and_reports(run_cli, tmp_path):
    state = rule.state_dict(GOLDENS / "fast_scnn_segmentron")
    np.savez(tmp_path / "source.npz", **{f"module.{key}": value for key, value in state.items()})
    done = run_cli("convert-weights", "--model", "fast_scnn", "--source", tmp_path / "source.npz",
                   "--output", tmp_path / "out.ckpt")
    assert done.returncode == 0, done.stderr
    assert "LikeLy-Journey/SegmenTron" in done.stdout
    assert "model.variant=segmentron" in done.stdout
    network = create_model("fast_scnn", 19, variant="segmentron")
    left, unused = ms.load_param_into_net(network, ms.load_checkpoint(str(tmp_path / "out.ckpt")), strict_load=True)
    assert not left
    assert not unused
    failed = run_cli("convert-weights", "--model", "enet", "--source", tmp_path / "source.npz",
                     "--output", tmp_path / "enet.ckpt")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("error: these are weights of LikeLy-Journey/SegmenTron")
    assert sorted(os.listdir(tmp_path)) == ["out.ckpt", "source.npz"]
