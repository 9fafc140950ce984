"""The MindSpore Lite backend end to end on a simulated library."""
import json

import numpy as np
import pytest

from tests.support.runner import (
    TinyModel,
    assert_ids_match,
    assert_user_error,
    build_folder,
    make_images,
    read_ids,
    read_summary,
    run_program,
)


def simulated(*arguments, **env):
    return run_program(build_folder() / "test" / "segment_simulated", *arguments, env=env)


def add_mindir(model, batch, **extra):
    model.add_file("tiny.mindir", "SIMULATED MINDIR\ntiny.onnx\n", batch, **extra)


def run(model, images, output, *options, **env):
    return simulated("run", "--backend", "mslite", "--manifest", model.yaml_path, "--input", images, "--output", output,
                     *options, **env)


@pytest.mark.parametrize(("batch", "options"), [(1, []), (4, ["--streams", 2]), (-1, []), (-1, ["--batch", 3])])
def test_ids_equal_numpy(tmp_path, batch, options):
    model = TinyModel(tmp_path / "model", seed=70, batch=batch)
    images = make_images(tmp_path / "images", 7, seed=71)
    add_mindir(model, batch)
    done = run(model, tmp_path / "images", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    summary = read_summary(tmp_path / "out")
    assert summary["backend"] == "mslite"
    assert summary["simulated"] is True
    assert summary["batch"] == (3 if options[:1] == ["--batch"] else max(batch, 1))
    for name, image in images.items():
        assert_ids_match(read_ids(tmp_path / "out" / f"{name}.png"), model.logits(image))


def test_confidence(tmp_path):
    model = TinyModel(tmp_path / "model", seed=76, batch=2, temperature=2.0)
    images = make_images(tmp_path / "images", 3, seed=77)
    add_mindir(model, 2)
    for options in (["--confidence"], []):
        done = run(model, tmp_path / "images", tmp_path / f"out{len(options)}", *options)
        assert done.returncode == 0, done.stderr
    for name, image in images.items():
        assert np.abs(read_ids(tmp_path / "out1" / f"{name}_confidence.png") - model.confidence(image)).max() < 0.51
        assert_ids_match(read_ids(tmp_path / "out0" / f"{name}.png"), model.logits(image))
    del model.manifest["output"]["confidence"]
    model.save()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "has 2 outputs, must have 1")


def test_gears_of_a_converted_model(tmp_path):
    model = TinyModel(tmp_path / "model", seed=72, batch=-1)
    add_mindir(model, -1, batches=[2, 4])
    info = simulated("info", "--backend", "mslite", "--manifest", model.yaml_path, "--json")
    assert json.loads(info.stdout)["batch"] == 2
    info = simulated("info", "--backend", "mslite", "--manifest", model.yaml_path, "--batch", 4, "--json")
    assert json.loads(info.stdout)["batch"] == 4
    info = simulated("info", "--backend", "mslite", "--manifest", model.yaml_path, "--batch", 3)
    assert_user_error(info, "--batch 3", "[2, 4]")


def test_devices(tmp_path):
    model = TinyModel(tmp_path / "model", seed=73)
    add_mindir(model, 1)
    info = ["info", "--backend", "mslite", "--manifest", model.yaml_path]
    for device in ("ascend", "cpu", "gpu"):
        assert f"{device} 0" in simulated(*info, "--device", device).stdout
    assert_user_error(simulated(*info, "--device_id", 3), "MindSpore Lite", "no such Ascend device")
    assert_user_error(simulated(*info, "--device", "npu"), "--device", "npu", "ascend")
    assert_user_error(simulated("info", "--backend", "openvino", "--device", "gpu", "--manifest", model.yaml_path),
                      "openvino", "cpu")
    model.manifest["ascend"] = {"fusion_switch": "fusion.cfg"}
    model.save()
    assert_user_error(simulated(*info), "fusion.cfg")
    (model.folder / "fusion.cfg").write_text("ConvBatchnormFusionPass:off\n", encoding="utf-8")
    assert simulated(*info).returncode == 0


def test_bad_models(tmp_path):
    model = TinyModel(tmp_path / "model", seed=74)
    make_images(tmp_path / "images", 1, seed=75)
    add_mindir(model, 4)
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "[4, 3, 24, 40]", "[1, 3, 24, 40]")
    (model.folder / "tiny.mindir").write_text("garbage", encoding="utf-8")
    model.save_with_hashes()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "tiny.mindir", "Build")
    (model.folder / "tiny.mindir").unlink()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "tiny.mindir", "no such model file")
