"""``segment run`` on good input: every geometry, layout, batch and kind of input against NumPy and onnxruntime."""
import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from tests.support.runner import (
    RUN_FILES,
    TinyModel,
    assert_ids_match,
    assert_user_error,
    build_folder,
    make_images,
    read_ids,
    read_summary,
    segment,
    segment_json,
)


def run_ok(model, images, output, *options):
    done = segment("run", "--manifest", model.yaml_path, "--input", images, "--output", output, *options)
    assert done.returncode == 0, done.stderr
    return read_summary(output)


@pytest.mark.parametrize("batch", [1, 4, -1])
def test_ids_equal_numpy_and_onnxruntime(tmp_path, batch):
    model = TinyModel(tmp_path / "model", seed=batch + 1, batch=batch)
    images = make_images(tmp_path / "images", 10, seed=5)  # 10: the last batch of 4 is half full
    summary = run_ok(model, tmp_path / "images", tmp_path / "out")
    session = onnxruntime.InferenceSession(model.path)
    for name, image in images.items():
        ids = read_ids(tmp_path / "out" / f"{name}.png")
        assert_ids_match(ids, model.logits(image))
        tensor = np.repeat(model.tensor(image)[None], max(batch, 1), axis=0)
        assert (ids == session.run(None, {"image": tensor})[0][0]).mean() > 0.999
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{n}.png" for n in images} | RUN_FILES
    assert summary["images"] == 10
    assert summary["failures"] == 0
    assert summary["failed"] == []
    assert summary["batch"] == max(batch, 1)
    assert summary["backend"] == "openvino"
    assert summary["precision"] == "f32"
    assert summary["simulated"] is False
    assert summary["images_per_second"] > 0
    for stage in ("decode", "preprocess", "infer", "write"):
        latency = summary["latency_ms"][stage]
        assert 0 < latency["min"] <= latency["median"] <= latency["p99"]
        assert latency["min"] <= latency["mean"] <= latency["p99"]


def test_dynamic_batch_can_be_chosen(tmp_path):
    model = TinyModel(tmp_path / "model", seed=3, batch=-1)
    images = make_images(tmp_path / "images", 7, seed=6)
    summary = run_ok(model, tmp_path / "images", tmp_path / "out", "--batch", 3)
    assert summary["batch"] == 3
    for name, image in images.items():
        assert_ids_match(read_ids(tmp_path / "out" / f"{name}.png"), model.logits(image))


@pytest.mark.parametrize("batch", [1, 4])
def test_logits(tmp_path, batch):
    model = TinyModel(tmp_path / "model", seed=7, batch=batch, output_type="logits")
    images = make_images(tmp_path / "images", 5, seed=8)
    run_ok(model, tmp_path / "images", tmp_path / "out")
    for name, image in images.items():
        values = np.fromfile(tmp_path / "out" / f"{name}.bin", np.float32).reshape(5, 24, 40)
        np.testing.assert_allclose(values, model.logits(image), atol=2e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_confidence_on_request(tmp_path, batch):
    model = TinyModel(tmp_path / "model", seed=23, height=23, width=39, batch=batch, temperature=1.6)
    images = make_images(tmp_path / "images", 6, seed=24, height=23, width=39)
    for options in ([], ["--confidence"], []):
        summary = run_ok(model, tmp_path / "images", tmp_path / f"out{len(options)}", *options)
        assert summary.get("confidence", False) == bool(options)
        assert_no_mask_changed(model, images, tmp_path / f"out{len(options)}")
    masks = {f"{name}.png" for name in images}
    assert {path.name for path in (tmp_path / "out0").iterdir()} == masks | RUN_FILES
    both = masks | {f"{name}_confidence.png" for name in images}
    assert {path.name for path in (tmp_path / "out1").iterdir()} == both | RUN_FILES
    for name, image in images.items():
        assert np.abs(read_ids(tmp_path / "out1" / f"{name}_confidence.png") - model.confidence(image)).max() < 0.51
    run_ok(model, tmp_path / "images", tmp_path / "out1", "--confidence")       # over its own files


def assert_no_mask_changed(model, images, folder):
    for name, image in images.items():
        assert_ids_match(read_ids(folder / f"{name}.png"), model.logits(image))


def test_confidence_that_cannot_be_given_is_refused_before_the_work(tmp_path):
    make_images(tmp_path / "images", 1, seed=25)
    plain = TinyModel(tmp_path / "plain", seed=26)
    words = ("--input", tmp_path / "images", "--output", tmp_path / "out", "--confidence")
    assert_user_error(segment("run", "--manifest", plain.yaml_path, *words), "--confidence", "deploy.yaml",
                      "export.confidence=true")
    plain.manifest["output"] |= {"confidence": "confidence", "temperature": 1.0}
    plain.save()
    assert_user_error(segment("run", "--manifest", plain.yaml_path, *words), "1 outputs", "must have 1 and 2")
    assert not (tmp_path / "out").exists()
    model = TinyModel(tmp_path / "model", seed=27, temperature=1.0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "img_000_confidence.png").write_text("mine")
    assert_user_error(segment("run", "--manifest", model.yaml_path, *words), "img_000_confidence.png", "--overwrite")
    (tmp_path / "images" / "img_000_confidence.png").write_bytes((tmp_path / "images" / "img_000.png").read_bytes())
    assert_user_error(segment("run", "--manifest", model.yaml_path, *words, "--overwrite"), "img_000_confidence.png",
                      "rename")
    model.manifest["output"]["confidence"] = "sureness"
    model.save()
    assert_user_error(segment("run", "--manifest", model.yaml_path, *words), "sureness", "another model")


def test_normalisation_in_the_graph(tmp_path):
    model = TinyModel(tmp_path / "model", seed=9, graph_normalize=True)
    images = make_images(tmp_path / "images", 3, seed=10)
    summary = run_ok(model, tmp_path / "images", tmp_path / "out")
    assert summary["input_bytes_per_image"] == 24 * 40 * 3
    for name, image in images.items():
        assert_ids_match(read_ids(tmp_path / "out" / f"{name}.png"), model.logits(image))


@pytest.mark.parametrize("ids_type", [TensorProto.INT32, TensorProto.INT64])
def test_wider_class_ids_become_uint8(tmp_path, ids_type):
    model = TinyModel(tmp_path / "model", seed=11, ids_type=ids_type)
    images = make_images(tmp_path / "images", 2, seed=12)
    run_ok(model, tmp_path / "images", tmp_path / "out")
    for name, image in images.items():
        assert_ids_match(read_ids(tmp_path / "out" / f"{name}.png"), model.logits(image))


@pytest.mark.parametrize("color_order", ["RGB", "BGR"])
@pytest.mark.parametrize(("resize", "size"), [
    ({"rule": "exact", "size": [24, 40], "pad": False}, (61, 77)),
    ({"rule": "exact", "size": [24, 40], "pad": False}, (11, 13)),
    ({"rule": "exact", "size": [20, 40], "pad": True}, (33, 90)),
    ({"rule": "none", "pad": True}, (17, 31)),
    ({"rule": "short_side", "size": 24, "pad": True}, (50, 71)),
    ({"rule": "long_side", "size": 40, "pad": True}, (37, 95)),
    ({"rule": "long_side", "size": [20, 40], "pad": True}, (61, 77)),
    ({"rule": "long_side", "size": [24, 30], "pad": True}, (9, 95)),
])
def test_preprocessing_is_that_of_cv2_within_one_level(tmp_path, resize, size, color_order):
    """Logits of an identity network are the input tensor itself: one level is value_range / 255 / std."""
    model = TinyModel(tmp_path / "model", seed=13, output_type="logits")
    model.manifest["input"] |= {"resize": resize, "color_order": color_order, "value_range": 1,
                                "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                                "pad_value": [200, 100, 50]}
    model.save()
    images = make_images(tmp_path / "images", 2, seed=14, height=size[0], width=size[1])
    run_ok(model, tmp_path / "images", tmp_path / "out")
    for name, image in images.items():
        values = np.fromfile(tmp_path / "out" / f"{name}.bin", np.float32).reshape(5, -1).astype(np.float64)
        solved, *_ = np.linalg.lstsq(model.weight.astype(np.float64), values - model.bias[:, None], rcond=None)
        expected = model.tensor(image).reshape(3, -1)
        levels = np.abs(solved - expected) * np.array([[0.229], [0.224], [0.225]]) * 255
        assert levels.max() < 1.01


def test_bins_and_images_give_equal_masks(tmp_path):
    model = TinyModel(tmp_path / "model", seed=15, batch=4)
    images = make_images(tmp_path / "images", 6, seed=16)
    bins = tmp_path / "bins"
    bins.mkdir()
    names = list(reversed(images))
    for name in names:
        model.tensor(images[name]).tofile(bins / f"{name}.bin")
    (bins / "files.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    run_ok(model, tmp_path / "images", tmp_path / "from_images")
    run_ok(model, bins, tmp_path / "from_bins")
    for name in names:
        np.testing.assert_array_equal(read_ids(tmp_path / "from_images" / f"{name}.png"),
                                      read_ids(tmp_path / "from_bins" / f"{name}.png"))


def test_cityscapes_tree_gives_its_photographs_only(tmp_path):
    model = TinyModel(tmp_path / "model", seed=17)
    rng = np.random.default_rng(18)
    for city in ("aachen", "ulm"):
        for kind, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            folder = tmp_path / "city scapes" / kind / "val" / city
            folder.mkdir(parents=True)
            image = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
            assert cv2.imwrite(str(folder / f"{city}_000000_000019_{suffix}.png"), image)
    summary = run_ok(model, tmp_path / "city scapes", tmp_path / "results here")
    assert summary["images"] == 2
    names = {path.name for path in (tmp_path / "results here").glob("*.png")}
    assert names == {"aachen_000000_000019.png", "ulm_000000_000019.png"}


def test_one_image_several_formats_and_relative_paths(tmp_path):
    model = TinyModel(tmp_path / "model", seed=19)
    image = np.random.default_rng(20).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for extension in ("PNG", "bmp", "webp"):
        assert cv2.imwrite(str(tmp_path / "images" / f"{extension}.{extension}"), image,
                           [cv2.IMWRITE_WEBP_QUALITY, 101])
    program = build_folder() / "out" / "segment"
    done = subprocess.run([program, "run", "--manifest=model", "--input=images", "--output=a/b/c"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for extension in ("PNG", "bmp", "webp"):
        assert_ids_match(read_ids(tmp_path / "a" / "b" / "c" / f"{extension}.png"), model.logits(image))
    run_ok(model, tmp_path / "images" / "bmp.bmp", tmp_path / "single")
    assert (tmp_path / "single" / "bmp.png").exists()


def test_bench_and_info_describe_the_model(tmp_path):
    model = TinyModel(tmp_path / "model", seed=21, batch=4)
    figures = segment_json("bench", "--manifest", model.yaml_path, "--iterations", 7, "--streams", 2)
    assert figures["iterations"] == 7
    assert figures["streams"] == 2
    assert figures["batch"] == 4
    assert figures["images_per_second"] > 0
    text = segment("bench", "--manifest", model.yaml_path, "--iterations", 3).stdout
    for word in ("warm-up", "mean", "p99", "images/s", "device", "batch", "precision"):
        assert word in text
    info = segment_json("info", "--manifest", model.yaml_path)
    assert info["input_shape"] == "[4, 3, 24, 40]"
    assert info["simulated"] is False
    assert "tiny.onnx" in segment("info", "--manifest", model.yaml_path).stdout


def test_bf16_is_only_used_when_asked_for(tmp_path):
    model = TinyModel(tmp_path / "model", seed=22)
    assert segment_json("info", "--manifest", model.yaml_path)["precision"] == "f32"
    # The cap that this project sets for MindSpore must not reach OpenVINO, where it would switch bfloat16 off.
    done = segment("info", "--manifest", model.yaml_path, "--precision", "bf16", "--json",
                   env={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        assert json.loads(done.stdout)["precision"] == "bf16", done.stderr
    else:
        assert_user_error(done, "--precision bf16", "no bfloat16")
