"""The manifest: what is written loads back, and every wrong value is one line that names file, key and remedy."""
import pytest
import yaml

from mindseg.errors import UserError
from mindseg.manifest import ManifestError, ModelFile, OutputSpec, load_manifest, save_manifest
from tests.support.deploy import make_manifest


def broken(folder, change):
    """Saves a good manifest, changes its YAML tree, loads it, returns the error text."""
    path = save_manifest(make_manifest(folder))
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(tree)
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    with pytest.raises(ManifestError) as error:
        load_manifest(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_round_trip_by_file_and_by_folder(tmp_path):
    manifest = make_manifest(tmp_path)
    save_manifest(manifest)
    assert load_manifest(tmp_path / "deploy.yaml") == manifest
    assert load_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["deploy.yaml"]


def test_what_is_written_by_hand_for_the_lite_runner_stays(tmp_path):
    manifest = make_manifest(tmp_path, ascend={"fusion_switch": "fusion.cfg", "note": 1})
    assert load_manifest(save_manifest(manifest)) == manifest
    (tmp_path / "fusion.cfg").write_text("ConvBatchnormFusionPass:off\n")
    manifest.copy_fusion_switch(tmp_path / "lite")
    assert (tmp_path / "lite" / "fusion.cfg").read_text() == "ConvBatchnormFusionPass:off\n"


@pytest.mark.parametrize(("value", "words"), [("fusion.cfg", "ascend is 'fusion.cfg'"),
                                              ({"fusion_switch": 1}, "ascend.fusion_switch is 1"),
                                              ({"fusion_switch": "/opt/fusion.cfg"}, "a relative path"),
                                              ({"fusion_switch": "../fusion.cfg"}, "a relative path")])
def test_a_wrong_fusion_switch_is_named(tmp_path, value, words):
    assert words in broken(tmp_path, lambda tree: tree.update(ascend=value))


def test_yaml_is_plain_block_style(tmp_path):
    text = save_manifest(make_manifest(tmp_path)).read_text(encoding="utf-8")
    assert not {"{", "[", "!", "&"} & set(text)
    tree = yaml.safe_load(text)
    assert list(tree) == ["format_version", "model", "input", "output", "dataset", "source", "versions", "models"]
    assert tree["models"][0] == {"format": "onnx", "file": "net.onnx", "batch": 2, "precision": "int8",
                                 "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


@pytest.mark.parametrize(("keys", "value", "words"), [
    (("format_version",), 2, "reads version 1"),
    (("input", "layout"), "NCWH", "NCHW, NHWC"),
    (("input", "shape"), [1, 4, 48, 64], "three channels"),
    (("input", "shape"), [0, 3, 48, 64], "batch"),
    (("input", "shape"), [1, 3, 48], "4 numbers"),
    (("input", "dtype"), "uint8", "float32"),
    (("input", "normalize"), "graph", "host"),
    (("input", "color_order"), "GBR", "RGB, BGR"),
    (("input", "value_range"), 256, "1, 255"),
    (("input", "mean"), [1.0, "x", 2.0], "3 numbers"),
    (("input", "std"), [1.0, 0, 1.0], "may be 0"),
    (("input", "pad_value"), [0, 0, 256], "0..255"),
    (("input", "resize", "rule"), "fit", "none, exact"),
    (("input", "resize", "size"), [48], "2 numbers"),
    (("input", "resize", "pad"), "no", "bool"),
    (("input", "resize", "size"), [48, 60], "48x64"),
    (("input", "resize", "size"), [49, 64], "48x64"),
    (("input", "resize"), {"rule": "exact", "size": [0, 64], "pad": True}, "positive"),
    (("input", "resize"), {"rule": "short_side", "size": 49, "pad": True}, "48x64"),
    (("input", "resize"), {"rule": "short_side", "size": [48, 64], "pad": True}, "int"),
    (("input", "resize"), {"rule": "long_side", "size": 65, "pad": True}, "48x64"),
    (("input", "resize"), {"rule": "long_side", "size": 0, "pad": True}, "positive"),
    (("input", "resize"), {"rule": "long_side", "size": [49, 64], "pad": True}, "48x64"),
    (("input", "resize"), {"rule": "long_side", "size": [48, -1], "pad": True}, "positive"),
    (("output", "type"), "softmax", "argmax, logits"),
    (("output", "dtype"), "float32", "uint8"),
    (("output", "shape"), [2, 48, 63], "input's"),
    (("dataset", "classes"), [], "names"),
    (("dataset", "palette"), [[1, 2, 3]], "2 colours"),
    (("dataset", "palette"), [[1, 2, 3], [1, 2, 256]], "2 colours"),
    (("dataset", "label_ids"), [7], "2 numbers"),
    (("dataset", "label_map"), {0: 256}, "0..255"),
    (("dataset", "ignore_id"), True, "type int"),
    (("models", 0, "format"), "tflite", "onnx"),
    (("models", 0, "batch"), 0, "positive"),
])
def test_a_wrong_value_is_named(tmp_path, keys, value, words):
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    message = broken(tmp_path, change)
    assert str(keys[-1]) in message
    assert words in message
    assert "export.py" in message


@pytest.mark.parametrize("keys", [("input",), ("input", "mean"), ("output", "type"), ("dataset", "palette"),
                                  ("models",), ("models", 0, "sha256")])
def test_a_missing_key_is_named(tmp_path, keys):
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        del tree[keys[-1]]

    message = broken(tmp_path, change)
    assert f"{keys[-1]} is missing" in message


def test_logits_need_one_channel_a_class(tmp_path):
    output = OutputSpec("segmentation", "logits", "float32", (2, 3, 48, 64))
    path = save_manifest(make_manifest(tmp_path, output=output))
    with pytest.raises(ManifestError, match="must have 2 channels"):
        load_manifest(path)


@pytest.mark.parametrize(("text", "words"), [("a: [1", "no valid YAML at line 1"), ("- 1\n", "must be a mapping"),
                                             ("", "must be a mapping")])
def test_a_file_that_is_no_manifest(tmp_path, text, words):
    (tmp_path / "deploy.yaml").write_text(text)
    with pytest.raises(ManifestError, match=words):
        load_manifest(tmp_path)


def test_no_manifest_at_all(tmp_path):
    with pytest.raises(ManifestError, match="cannot read the manifest"):
        load_manifest(tmp_path / "deploy.yaml")
    (tmp_path / "deploy.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="UTF-8"):
        load_manifest(tmp_path)
    (tmp_path / "deploy.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ManifestError, match="over 1 MiB"):
        load_manifest(tmp_path)


def test_model_file_missing_damaged_or_not_listed(tmp_path):
    manifest = make_manifest(tmp_path)
    entry = manifest.find("onnx")
    with pytest.raises(ManifestError, match=r"net\.onnx: model file named by .* is missing; copy it"):
        manifest.model_path(entry)
    (tmp_path / "net.onnx").write_bytes(b"abd")
    with pytest.raises(ManifestError, match="SHA-256 differs"):
        manifest.model_path(entry)
    (tmp_path / "net.onnx").write_bytes(b"abc")
    assert manifest.model_path(entry) == tmp_path / "net.onnx"
    with pytest.raises(ManifestError, match=r"lists no mindir model \(listed: onnx \(batch 2\)\)"):
        manifest.find("mindir")


def test_find_prefers_the_batch_and_takes_a_dynamic_model_for_any(tmp_path):
    listed = (("onnx", "a.onnx", 1), ("onnx", "b.onnx", 4), ("om", "c.om", -1))
    entries = tuple(ModelFile(*fields, "0") for fields in listed)
    manifest = make_manifest(tmp_path, models=entries)
    assert manifest.find("onnx").file == "a.onnx"
    assert manifest.find("onnx", 4).file == "b.onnx"
    assert manifest.find("om", 8).file == "c.om"
    with pytest.raises(ManifestError, match="onnx with batch 8"):
        manifest.find("onnx", 8)


def test_saving_into_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_manifest(make_manifest(tmp_path / "file"))


