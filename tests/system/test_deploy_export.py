"""Export: what is written is complete, checked, equal to the network in other programs, and never half there."""
import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import mindspore as ms

from mindseg.checkpoint import Progress, save_checkpoint
from mindseg.config import load_config
from mindseg.data.transforms import normalize
from mindseg.deploy import exporter, onnx_graph
from mindseg.deploy.backend import openvino_core
from mindseg.errors import UserError
from mindseg.inference.exported import open_exported
from mindseg.manifest import load_manifest
from tests.support.hostile import check_refused
from tests.support.networks import make_network, make_tiny_network
from tests.support.runner import MEAN, STD

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "_base_" / "cityscapes.yaml"
SOURCE = {"checkpoint": "best.ckpt", "checkpoint_sha256": "0" * 64}


def config(height, width, *overrides):
    return load_config(CONFIG, [f"export.height={height}", f"export.width={width}", *overrides])


def export(network, folder, *overrides, size=(96, 128), formats=("ONNX", "MINDIR"), output_type=None, **keys):
    cfg = config(*size, *overrides)
    cfg.export.update(keys)
    return exporter.export_network(network, cfg, SOURCE, formats, folder, output_type)


def random_images(seed, count, size=(96, 128)):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def network_logits(network, images):
    x = np.stack([((image.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1) for image in images])
    return network(ms.Tensor(x.astype(np.float32))).asnumpy()


def assert_ids(ids, logits):
    """Equal to the arg-max wherever the two best logits are not a rounding error apart."""
    top = np.sort(logits, 1)
    clear = top[:, -1] - top[:, -2] > 1e-4 * np.abs(logits).max()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ids[clear], logits.argmax(1)[clear])


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module")
def tiny():
    return make_tiny_network()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "folder é 1"
    export(network, folder)
    return folder


def test_the_folder_is_complete(exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        ".mindseg-files", "deploy.yaml", "export.json", "fast_scnn.mindir", "fast_scnn.onnx"]
    assert {path.stat().st_mode & 0o777 for path in exported.iterdir()} == {0o644}
    manifest = load_manifest(exported)
    assert manifest.input.shape == (1, 3, 96, 128)
    assert manifest.output.shape == (1, 96, 128)
    assert manifest.model == {"name": "fast_scnn", "num_classes": 19}
    assert manifest.source == SOURCE
    assert manifest.dataset.label_ids[:3] == (7, 8, 11)
    assert [(entry.format, entry.file, entry.batch) for entry in manifest.models] == [
        ("onnx", "fast_scnn.onnx", 1), ("mindir", "fast_scnn.mindir", 1)]
    for entry in manifest.models:
        manifest.model_path(entry)
    report = json.loads((exported / "export.json").read_text())
    assert report["comparison"]["onnx"]["logits_max_abs_diff"] <= 1e-4 * report["comparison"]["onnx"]["logits_max_abs"]
    assert report["comparison"]["onnx"]["nodes"] <= 108
    assert report["comparison"]["mindir"]["ids_agreement"] == 1.0
    assert report["bytes_per_image"] == {"input": 96 * 128 * 12, "output": 96 * 128}


def test_the_onnx_file_is_valid_and_has_one_named_input_and_output(exported):
    model = onnx.load(exported / "fast_scnn.onnx")
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(str(exported / "fast_scnn.onnx"))
    assert [(value.name, value.shape, value.type) for value in session.get_inputs()] == [
        ("image", [1, 3, 96, 128], "tensor(float)")]
    assert [(value.name, value.shape, value.type) for value in session.get_outputs()] == [
        ("segmentation", [1, 96, 128], "tensor(uint8)")]
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Conv"] == 45
    assert "BatchNormalization" not in operators


def test_every_program_answers_as_the_network(network, exported):
    images = random_images(1, 2)
    logits = network_logits(network, images)
    for fmt in ("onnx", "mindir"):
        ids = open_exported(exported, fmt)(images)
        assert ids.dtype == np.uint8
        assert_ids(ids, logits)
    core = openvino_core()
    compiled = core.compile_model(core.read_model(exported / "fast_scnn.onnx"), "CPU", FLOAT32)
    x = np.stack([normalize(image, MEAN, STD) for image in images])
    assert_ids(np.concatenate([compiled(x[i:i + 1])[0] for i in range(2)]), logits)


def test_dynamic_batch_logits_and_a_size_that_is_no_multiple(network, tmp_path):
    manifest = export(network, tmp_path, "export.batch_size=0", "export.opset=11", size=(95, 127), output_type="logits")
    assert manifest.input.batch == -1
    assert [entry.file for entry in manifest.models] == ["fast_scnn_dynamic.onnx", "fast_scnn_dynamic.mindir"]
    assert onnx.load(tmp_path / "fast_scnn_dynamic.onnx").opset_import[0].version == 11
    images = random_images(2, 3, (95, 127))
    logits = network_logits(network, images)
    for fmt in ("onnx", "mindir"):
        session = open_exported(manifest, fmt)
        for count in (1, 3):
            answer = session.infer(images[:count])
            assert answer.shape == (count, 19, 95, 127)
            np.testing.assert_allclose(answer, logits[:count], atol=1e-5 * np.abs(logits).max())


def test_ids_in_the_graph_equal_ids_from_logits(tiny, tmp_path):
    images = random_images(6, 2)
    ids = open_exported(export(tiny, tmp_path / "ids", formats=["ONNX"]))
    logits = open_exported(export(tiny, tmp_path / "logits", formats=["ONNX"], output_type="logits"))
    np.testing.assert_array_equal(ids(images), logits(images))
    # At another size ids are sampled nearest, logits bilinearly: the same but for the borders of the regions.
    small = ids(images, (48, 64)) == logits(images, (48, 64))
    assert 0.5 < small.mean() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("fcn8s", {"fc_channels": 64}), ("enet", {}), ("bisenetv2", {})])
def test_every_network_with_a_dynamic_batch_and_an_odd_size(tmp_path, name, options):
    network = make_network(name, **options)
    manifest = export(network, tmp_path, f"model.name={name}", "export.batch_size=0", size=(65, 97))
    images = random_images(8, 3, (65, 97))
    logits = network_logits(network, images)
    for fmt in ("onnx", "mindir"):
        assert_ids(open_exported(manifest, fmt)(images), logits)
    compiled = openvino_core().compile_model(str(manifest.model_path(manifest.find("onnx"))), "CPU", FLOAT32)
    assert_ids(compiled([np.stack([normalize(image, MEAN, STD) for image in images])])[0], logits)


@pytest.mark.slow
def test_full_size(network, tmp_path):
    manifest = export(network, tmp_path, "export.normalize_in_graph=true", size=(1024, 2048))
    report = json.loads((tmp_path / "export.json").read_text())
    assert report["comparison"]["onnx"]["logits_max_abs_diff"] <= 1e-4 * report["comparison"]["onnx"]["logits_max_abs"]
    assert report["bytes_per_image"] == {"input": 1024 * 2048 * 3, "output": 1024 * 2048}
    assert manifest.input.shape == (1, 1024, 2048, 3)


def test_normalisation_in_the_graph_and_a_batch_of_four(tiny, tmp_path):
    manifest = export(tiny, tmp_path, "export.batch_size=4", "export.normalize_in_graph=true", resize_op="resize")
    assert manifest.input.shape == (4, 96, 128, 3)
    assert manifest.input.dtype == "uint8"
    images = random_images(3, 6)
    logits = network_logits(tiny, images)
    for fmt in ("onnx", "mindir"):
        assert_ids(open_exported(manifest, fmt)(images), logits)
    operators = {node.op_type for node in onnx.load(tmp_path / "fast_scnn_bs4.onnx").graph.node}
    assert "Resize" in operators


def test_a_second_batch_size_joins_the_first_and_another_checkpoint_replaces_both(tiny, tmp_path):
    export(tiny, tmp_path, formats=["ONNX"])
    with open(tmp_path / "deploy.yaml", "a", encoding="utf-8") as stream:
        stream.write("ascend: {fusion_switch: fusion.cfg}\n")      # by hand, for the Lite runner
    manifest = export(tiny, tmp_path, "export.batch_size=4", formats=["ONNX"])
    assert manifest.ascend == load_manifest(tmp_path).ascend == {"fusion_switch": "fusion.cfg"}
    assert [(entry.file, entry.batch) for entry in load_manifest(tmp_path).models] == [
        ("fast_scnn_bs4.onnx", 4), ("fast_scnn.onnx", 1)]
    assert manifest.find("onnx", 1).file == "fast_scnn.onnx"
    other = {**SOURCE, "checkpoint_sha256": "1" * 64}
    exporter.export_network(tiny, config(96, 128, "export.file_name=mine"), other, ["ONNX"], tmp_path)
    assert [entry.file for entry in load_manifest(tmp_path).models] == ["mine.onnx"]
    assert not load_manifest(tmp_path).ascend


@pytest.mark.slow
def test_batch_sizes_agree_with_each_other(network, tmp_path):
    """The acceptance rule's second half (docs/ascend.md), on the same eight images in batches of 1, 4 and 8."""
    images = random_images(9, 8)
    logits = network_logits(network, images)
    x = np.stack([normalize(image, MEAN, STD) for image in images])
    for batch in (1, 4, 8):
        manifest = export(network, tmp_path, f"export.batch_size={batch}", formats=["ONNX"])
        path = str(manifest.model_path(manifest.find("onnx", batch)))
        run_ort = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        run_ov = openvino_core().compile_model(path, "CPU", FLOAT32)
        parts = [x[i:i + batch] for i in range(0, 8, batch)]
        assert_ids(np.concatenate([run_ort.run(None, {"image": part})[0] for part in parts]), logits)
        assert_ids(np.concatenate([run_ov([part])[0] for part in parts]), logits)


def test_the_void_channel_is_cut_off(tmp_path):
    manifest = export(make_tiny_network(num_classes=20), tmp_path, "model.num_classes=20", "data.void_class=true",
                      formats=["ONNX"], output_type="logits")
    assert manifest.output.shape == (1, 19, 96, 128)
    assert manifest.num_classes == 19
    assert open_exported(manifest).infer(random_images(4, 1)).shape == (1, 19, 96, 128)


def test_a_model_that_differs_is_not_written(tiny, tmp_path, monkeypatch):
    convert = onnx_graph.convert_opset

    def spoil(model, opset):
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 4:
                values = onnx.numpy_helper.to_array(tensor) * 1.01
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
        return convert(model, opset)

    monkeypatch.setattr(onnx_graph, "convert_opset", spoil)
    with pytest.raises(UserError, match="differs from the checkpoint"):
        export(tiny, tmp_path / "out", formats=["MINDIR", "ONNX"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_leaves_the_earlier_export_as_it_was(tiny, tmp_path, monkeypatch):
    export(tiny, tmp_path, formats=["ONNX"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(model):
        raise UserError("no")

    monkeypatch.setattr(onnx_graph, "check_graph", fail)
    with pytest.raises(UserError):
        export(tiny, tmp_path, formats=["ONNX"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_and_an_operator_that_cannot_be_exported_are_one_line(tiny, tmp_path, monkeypatch):
    def full(model, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    def unknown(*args, **kwargs):
        raise RuntimeError("\n-----\nno such operator\n-----\n")

    with monkeypatch.context() as patch:
        patch.setattr(exporter.onnx, "save", full)
        with pytest.raises(UserError, match="No space left on device"):
            export(tiny, tmp_path, formats=["ONNX"])
    monkeypatch.setattr(exporter.ms, "export", unknown)
    with pytest.raises(UserError, match=r"cannot export this network as MINDIR \(no such operator"):
        export(tiny, tmp_path, formats=["MINDIR"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("overrides", "words"), [
    (["export.height=64"], "set both or neither"), (["export.height=16", "export.width=64"], "at least 32"),
    (["export.height=64", "export.width=96", "eval.resize={rule: short_side, size: 80}"], "cannot hold .* size: 80"),
    (["export.height=64", "export.width=96", "eval.resize={rule: long_side, size: [64, 128]}"], "cannot hold")])
def test_sizes_that_make_no_sense(overrides, words):
    with pytest.raises(UserError, match=words):
        exporter.describe(load_config(CONFIG, overrides), SOURCE, Path("deploy.yaml"))


def test_command_line_refuses_air_and_writes_the_rest(network, tmp_path):
    cfg = config(96, 128)
    checkpoint = tmp_path / "best one.ckpt"
    save_checkpoint(checkpoint, list(network.get_parameters()), Progress(), cfg)
    command = [sys.executable, str(ROOT / "export.py"), "--config", str(CONFIG), "--ckpt_path", str(checkpoint),
               "--output", str(tmp_path / "out"), "--set", "export.height=96", "--set", "export.width=128",
               "--set", "runtime.device_target=CPU", "--file_format", "AIR", "ONNX"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "AIR only on an Ascend device" in errors[0]
    assert "Traceback" not in done.stderr
    assert [entry.format for entry in load_manifest(tmp_path / "out").models] == ["onnx"]
    images = random_images(5, 1)
    assert_ids(open_exported(tmp_path / "out")(images), network_logits(network, images))


def test_mindspore_is_loaded_before_onnx():
    """MindSpore 2.7's protobuf files refuse to be loaded behind onnx's; a process of its own, where neither is yet."""
    code = ("import sys; import mindseg.deploy.exporter; names = list(sys.modules); "
            "assert names.index('mindspore') < names.index('onnx')")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "C:x", "a/x", "a\\x", "..", "a\nx", "x" * 201])
def test_a_name_that_leads_out_of_the_folder_is_refused_before_the_work(tmp_path, name):
    cfg = load_config(CONFIG, [f"export.file_name={name}"])
    check_refused(lambda: exporter.export(cfg, tmp_path / "missing.ckpt", ["ONNX"], tmp_path), "export.file_name")
    assert not list(tmp_path.iterdir())
