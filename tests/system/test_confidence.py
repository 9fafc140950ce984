"""Confidence: checkpoint, exports and runner give NumPy's probabilities to 1/255, and only if they are asked."""
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import mindspore as ms
from mindspore import nn

from mindseg.compat import set_mode
from mindseg.config import Config, load_config
from mindseg.data.datasets import dataset_info
from mindseg.data.samples import Sample
from mindseg.deploy import ascend, exporter
from mindseg.deploy.backend import openvino_core
from mindseg.deploy.export_folder import open_folder
from mindseg.deploy.quantize import quantize
from mindseg.inference.exported import open_exported
from mindseg.inference.loading import open_checkpoint
from mindseg.inference.network import NetworkPredictor
from mindseg.inference.results import Results
from mindseg.manifest import Manifest, load_manifest, save_manifest
from tests.support import ROOT
from tests.support.checkpoints import edit
from tests.support.hostile import check_refused
from tests.support.inference import softmax
from tests.support.networks import make_network, make_tiny_network
from tests.support.runner import MEAN, STD, read_ids, segment

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
CONFIG = ROOT / "configs" / "_base_" / "cityscapes.yaml"
WEIGHTS = sorted((ROOT / "weights").glob("*.ckpt"))
SIZE, TEMPERATURE = (64, 96), 1.7


def config(*overrides: str) -> Config:
    return load_config(CONFIG, [f"export.height={SIZE[0]}", f"export.width={SIZE[1]}", "export.confidence=true",
                                "runtime.device_target=CPU", *overrides])


def export(network: nn.Cell, cfg: Config, folder: Path, temperature: float = TEMPERATURE) -> Manifest:
    source = {"checkpoint": "best.ckpt", "checkpoint_sha256": "0" * 64}
    return exporter.export_network(network, cfg, source, ["ONNX", "MINDIR"], folder, temperature=temperature)


def make_images(seed: int, count: int) -> np.ndarray:
    """Smooth random colours: many probabilities between 0 and 1."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 8, 3), np.uint8)
    return np.stack([cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for image in coarse])


def logits_of(network: nn.Cell, images: np.ndarray) -> np.ndarray:
    x = np.stack([((image.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1) for image in images])
    return network(ms.Tensor(x.astype(np.float32))).asnumpy().astype(np.float64)


def numpys(network: nn.Cell, images: np.ndarray, temperature: float = TEMPERATURE) -> np.ndarray:
    """255 times the probability of the best class, float64 (N, H, W), from the network's logits."""
    return 255 * softmax(logits_of(network, images) / temperature).max(1)


def assert_levels(confidence: np.ndarray, expected: np.ndarray) -> None:
    """``round(255 * p)``, but for rounding errors near a half."""
    assert confidence.dtype == np.uint8
    assert confidence.shape == expected.shape
    assert np.ptp(expected) > 30
    assert np.abs(confidence - expected).max() < 0.51
    assert (confidence == np.rint(expected)).mean() > 0.98


@pytest.fixture(scope="module")
def network():
    return make_tiny_network()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """Opset 11, the oldest: conversions to newer ones have to rewrite the sum over classes."""
    return export(network, config("export.opset=11"), tmp_path_factory.mktemp("confidence"))


def test_python_programs(network, exported):
    images = make_images(1, 2)
    expected = numpys(network, images)
    cfg = config()
    answers = {fmt: open_exported(exported, fmt).with_confidence(images) for fmt in ("onnx", "mindir")}
    segmenter = NetworkPredictor(cfg, network, dataset_info(cfg.data), TEMPERATURE)
    answers["network"] = segmenter.with_confidence(images, SIZE)
    for ids, confidence in answers.values():
        assert_levels(confidence, expected)
        assert (ids == answers["network"][0]).mean() > 0.999
    compiled = openvino_core().compile_model(str(exported.model_path(exported.find("onnx"))), "CPU", FLOAT32)
    parts = [compiled([exported.input.prepare(image)[None]])["confidence"] for image in images]
    assert_levels(np.concatenate(parts), expected)


def test_another_size_takes_the_confidence_of_the_pixel_whose_class_it_takes(exported):
    image = make_images(2, 1)
    predictor = open_exported(exported)
    small = predictor.with_confidence(image)
    for answer, own in zip(predictor.with_confidence(image, (128, 192)), small, strict=True):
        np.testing.assert_array_equal(answer[0], own[0].repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(predictor(image), small[0])


def test_the_manifest_and_the_report_record_it(exported):
    output = load_manifest(exported.path).output
    assert (output.name, output.confidence, output.temperature) == ("segmentation", "confidence", TEMPERATURE)
    for figures in json.loads((exported.path.parent / "export.json").read_text())["comparison"].values():
        assert 0 <= figures["confidence_max_abs_diff"] <= 1 / 255


def test_runner(network, exported, tmp_path):
    images = make_images(3, 3)
    (tmp_path / "in").mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), image[..., ::-1])
    for name, options in (("with", ["--confidence"]), ("without", [])):
        done = segment("run", "--manifest", exported.path, "--input", tmp_path / "in", "--output", tmp_path / name,
                       "--backend", "openvino", *options)
        assert done.returncode == 0, done.stderr
    assert_levels(np.stack([read_ids(tmp_path / "with" / f"{i}_confidence.png") for i in range(3)]),
                  numpys(network, images))
    for i in range(3):
        ids = read_ids(tmp_path / "without" / f"{i}.png")
        np.testing.assert_array_equal(read_ids(tmp_path / "with" / f"{i}.png"), ids)
        np.testing.assert_array_equal(Results(tmp_path / "with", exported).read(str(i)), ids)
    assert sorted(path.name for path in (tmp_path / "without").glob("*.png")) == ["0.png", "1.png", "2.png"]


def test_int8_and_dynamic_batch_keep_it(network, exported, tmp_path):
    images = make_images(4, 3)
    cv2.imwrite(str(tmp_path / "a.png"), images[0][..., ::-1])
    made = quantize(exported, [Sample("a", tmp_path / "a.png", None)], tmp_path / "int8")
    exact = open_exported(exported).outputs(images)[1].astype(int)
    assert 0 < np.abs(open_exported(made).outputs(images)[1] - exact).mean() < 10
    static = save_manifest(replace(exported, path=tmp_path / "deploy.yaml", models=exported.models[:1]))
    (tmp_path / exported.models[0].file).write_bytes(exported.model_path(exported.models[0]).read_bytes())
    with open_folder(tmp_path) as folder:
        twin = ascend.derive_dynamic_onnx(load_manifest(static), folder)
    session = openvino_core().compile_model(str(twin.model_path(twin.find("onnx", 3))), "CPU", FLOAT32)
    answer = session([np.stack([exported.input.prepare(image) for image in images])])["confidence"]
    assert_levels(answer, numpys(network, images))


def test_requests_that_cannot_be_met(exported, tmp_path):
    check_refused(lambda: exporter.describe(config(), {}, tmp_path / "deploy.yaml", "logits"), "export.confidence",
                  "--output_type argmax")
    for changes in ({"confidence": None, "temperature": None}, {"confidence": "sureness"}):
        other = replace(exported, output=replace(exported.output, **changes))
        check_refused(lambda other=other: open_exported(other), "deploy.yaml", "'segmentation, confidence'",
                      "another model")
    plain = replace(exported, output=replace(exported.output, confidence=None, temperature=None))
    check_refused(lambda: open_exported(plain, "mindir").infer(make_images(5, 1)), "deploy.yaml", "another model")
    check_refused(plain.check_confidence, "deploy.yaml", "no confidence", "--set export.confidence=true")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("fast_scnn", {}), ("fcn8s", {"fc_channels": 64}), ("enet", {}),
                                               ("bisenetv2", {})])
def test_every_network(tmp_path, name, options):
    """With random weights logits are large; a temperature of their size makes probabilities of them."""
    network, images = make_network(name, **options), make_images(6, 3)
    temperature = float(logits_of(network, images).std())
    manifest = export(network, config(f"model.name={name}", "export.batch_size=0"), tmp_path, temperature)
    expected = numpys(network, images, temperature)
    for fmt in ("onnx", "mindir"):
        assert_levels(open_exported(manifest, fmt).with_confidence(images)[1], expected)


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda path: path.stem.partition("_camvid")[0])
def test_a_calibrated_checkpoint(weights, tmp_path):
    """Trained weights with a temperature: the classes stay, and every program divides the logits by it."""
    set_mode("graph")

    def calibrate(records):
        record = type(records[0])(tag="temperature")
        record.tensor.dims.append(0)
        record.tensor.tensor_type, record.tensor.tensor_content = "str", str(TEMPERATURE).encode("utf-32-le")
        records.append(record)

    path = tmp_path / "calibrated.ckpt"
    path.write_bytes(edit(weights, calibrate))
    plain, predictor = open_checkpoint(weights), open_checkpoint(path)
    assert (plain.temperature, predictor.temperature) == (1, TEMPERATURE)
    images = make_images(7, 1)
    ids, confidence = predictor.with_confidence(images, SIZE)
    np.testing.assert_array_equal(ids, plain(images, SIZE))
    assert_levels(confidence, numpys(predictor.net, images))
    assert np.abs(confidence - numpys(predictor.net, images, 1.0)).max() > 10
    cfg = load_config(weights.stem.partition("-")[0], [f"export.height={SIZE[0]}", f"export.width={SIZE[1]}",
                                                       "export.confidence=true", "runtime.device_target=CPU"])
    manifest = exporter.export(cfg, path, ["ONNX", "MINDIR"], tmp_path / "export")
    assert manifest.output.temperature == TEMPERATURE
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), images[0][..., ::-1])
    done = segment("run", "--manifest", manifest.path, "--input", tmp_path / "in", "--output", tmp_path / "out",
                   "--backend", "openvino", "--confidence")
    assert done.returncode == 0, done.stderr
    answers = [open_exported(manifest, fmt).with_confidence(images)[1][0] for fmt in ("onnx", "mindir")]
    for answer in (*answers, read_ids(tmp_path / "out" / "a_confidence.png")):
        assert np.abs(answer.astype(int) - confidence[0]).max() <= 1
