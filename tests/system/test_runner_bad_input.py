"""The runner and bad input: one clear line, the right exit status, nothing half-written."""
import os
import resource
import shutil
import signal
import subprocess

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mindseg.version import __version__
from tests.support.runner import (
    ROOT,
    RUN_FILES,
    TinyModel,
    assert_ids_match,
    assert_user_error,
    build_folder,
    make_images,
    read_ids,
    read_summary,
    run_and_signal,
    run_program,
    segment,
)


@pytest.fixture
def model(tmp_path):
    return TinyModel(tmp_path / "model", seed=1)


def run(model, images, output, *options, **settings):
    return segment("run", "--manifest", model.yaml_path, "--input", images, "--output", output, *options, **settings)


def leftovers(folder):
    return [path.name for path in folder.iterdir() if ".tmp" in path.name]


@pytest.mark.parametrize("arguments", [["test_core"], ["test_pipeline"], ["test_manifests", ROOT / "tests/manifests"]])
def test_unit_tests_pass(arguments):
    done = run_program(build_folder() / "test" / arguments[0], *arguments[1:])
    assert done.returncode == 0, done.stdout


def test_unreadable_images_are_counted_and_the_rest_go_on(tmp_path, model):
    images = make_images(tmp_path / "images", 6, seed=2)
    whole = (tmp_path / "images" / "img_000.png").read_bytes()
    bad = {"img_001.png": whole[:200], "img_002.png": b"", "img_004.png": b"not an image at all"}
    for name, content in bad.items():
        (tmp_path / "images" / name).write_bytes(content)
    cv2.imwrite(str(tmp_path / "whole.jpg"), images["img_000"])
    (tmp_path / "images" / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-40])
    done = run(model, tmp_path / "images", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    summary = read_summary(tmp_path / "out")
    assert summary["images"] == 7
    assert summary["failures"] == 4
    assert [os.path.basename(item["file"]) for item in summary["failed"]] == ["cut.jpg", *bad]
    for item in summary["failed"]:
        assert item["file"] in item["error"]
        assert item["error"] in done.stderr
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"img_000", "img_003", "img_005"}
    assert_ids_match(read_ids(tmp_path / "out" / "img_005.png"), model.logits(images["img_005"]))


def test_bad_images_do_not_shift_their_batch(tmp_path):
    model = TinyModel(tmp_path / "model", seed=3, batch=4)
    images = make_images(tmp_path / "images", 9, seed=4)
    for name in ("img_000", "img_005", "img_008"):  # 008 is alone in its batch
        (tmp_path / "images" / f"{name}.png").write_bytes(b"broken")
        del images[name]
    assert run(model, tmp_path / "images", tmp_path / "out").returncode == 3
    for name, image in images.items():
        assert_ids_match(read_ids(tmp_path / "out" / f"{name}.png"), model.logits(image))
    assert len(list((tmp_path / "out").glob("*.png"))) == len(images)


def test_bins_of_a_wrong_size_or_missing(tmp_path, model):
    bins = tmp_path / "bins"
    bins.mkdir()
    tensor = model.tensor(np.zeros((24, 40, 3), np.uint8))
    tensor.tofile(bins / "good.bin")
    tensor[:2].tofile(bins / "short.bin")
    np.zeros(20000, np.float32).tofile(bins / "long.bin")
    (bins / "huge.bin").touch()
    os.truncate(bins / "huge.bin", 20 << 30)     # takes no room on the disk, and must take none in memory
    (bins / "files.txt").write_text("good\nshort\nlong\nhuge\nabsent\n", encoding="utf-8")
    done = run(model, bins, tmp_path / "out")
    assert done.returncode == 3
    errors = {os.path.basename(i["file"]): i["error"] for i in read_summary(tmp_path / "out")["failed"]}
    assert list(errors) == ["short.bin", "long.bin", "huge.bin", "absent.bin"]
    assert "7680 bytes" in errors["short.bin"]
    assert "11520" in errors["short.bin"]
    assert "preprocess.py" in errors["long.bin"]
    assert f"{20 << 30} bytes, the manifest's input" in errors["huge.bin"]
    assert "No such file" in errors["absent.bin"]
    assert (tmp_path / "out" / "good.png").exists()


def test_missing_and_corrupt_model(tmp_path, model):
    make_images(tmp_path / "images", 1, seed=5)
    content = bytearray(model.path.read_bytes())
    content[len(content) // 2] ^= 1
    model.path.write_bytes(content)
    done = run(model, tmp_path / "images", tmp_path / "out")
    assert_user_error(done, str(model.path), "SHA-256", "damaged")
    model.path.write_bytes(b"\x00garbage" * 50)
    model.save_with_hashes()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), str(model.path), "export it again")
    model.path.unlink()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), str(model.path), "no such model file")
    assert not (tmp_path / "out").exists()


def test_manifest_of_another_model(tmp_path, model):
    make_images(tmp_path / "images", 1, seed=6)
    other = TinyModel(tmp_path / "other", seed=7, height=32, width=48)
    shutil.copy(other.path, model.path)
    done = run(model, tmp_path / "images", tmp_path / "out")
    assert_user_error(done, str(model.yaml_path), "SHA-256")
    model.save_with_hashes()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "[1, 3, 24, 40]", "[1, 3, 32, 48]",
                      "another model")
    model.manifest["output"]["name"] = "mask"
    other.manifest["output"]["name"] = "mask"
    other.save()
    assert_user_error(run(other, tmp_path / "images", tmp_path / "out"), "'mask'", "'segmentation'")
    whole_numbers = TinyModel(tmp_path / "int32", seed=8)
    graph = onnx.load(whole_numbers.path)
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    graph.graph.node[0].input[0] = "pixels"
    graph.graph.node.insert(0, helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT))
    onnx.save(graph, whole_numbers.path)
    whole_numbers.save_with_hashes()
    assert_user_error(run(whole_numbers, tmp_path / "images", tmp_path / "out"), "input.dtype", "float32", "int32")


@pytest.mark.parametrize(("change", "words"), [
    (lambda m: m.pop("input"), ["input", "missing"]),
    (lambda m: m["input"].update(mean="a"), ["input.mean", "'a'"]),
    (lambda m: m["input"]["resize"].update(rule="crop"), ["input.resize.rule", "crop", "exact"]),
    (lambda m: m["input"].update(resize={"rule": "long_side", "size": [25, 40], "pad": True}), ["[25, 40]", "takes"]),
    (lambda m: m["input"].update(resize={"rule": "long_side", "size": 0, "pad": True}), ["input.resize.size", "'0'"]),
    (lambda m: m.update(models=[]), ["models", "no model file"]),
    (lambda m: m["models"][0].update(format="mindir"), ["no file that a built backend reads"]),
])
def test_bad_manifests(tmp_path, model, change, words):
    make_images(tmp_path / "images", 1, seed=9)
    change(model.manifest)
    model.save()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), str(model.yaml_path), *words)
    assert not list(tmp_path.glob("out/*"))


def test_manifest_that_is_missing_or_no_yaml(tmp_path, model):
    make_images(tmp_path / "images", 1, seed=10)
    model.yaml_path.write_text("a: [1, 2\nb: }", encoding="utf-8")
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), str(model.yaml_path), "YAML")
    model.yaml_path.unlink()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), str(model.yaml_path), "export.py")


def test_absent_backends_devices_and_batches(tmp_path, model):
    assert_user_error(segment("info", "--manifest", model.yaml_path, "--backend", "mslite"), "mslite", "MS_LITE_HOME")
    assert_user_error(segment("info", "--manifest", model.yaml_path, "--backend", "tpu"), "tpu", "openvino")
    assert_user_error(segment("info", "--manifest", model.yaml_path, "--device_id", 7), "--device_id 7", "device 0")
    assert_user_error(segment("info", "--manifest", model.yaml_path, "--batch", 8), "batch 8", "onnx batch 1")
    assert_user_error(segment("info", "--manifest", model.yaml_path, "--backend", "openvino", "--frames", 8),
                      "--frames", "--help")


def test_two_images_of_one_name(tmp_path, model):
    make_images(tmp_path / "images" / "a", 1, seed=11)
    make_images(tmp_path / "images" / "b", 1, seed=12)
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "a/img_000.png", "b/img_000.png", "rename")


def test_output_folder_that_cannot_be_made_or_written(tmp_path, model):
    make_images(tmp_path / "images", 1, seed=13)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for output in (tmp_path / "file", tmp_path / "file" / "below", "/proc/self"):
        assert_user_error(run(model, tmp_path / "images", output), f"--output {output}", "choose another")


def test_a_disk_that_fills_up(tmp_path):
    """A small disk in a mount namespace of the runner's own: what fits is whole, and the error says what is wrong."""
    model = TinyModel(tmp_path / "model", seed=24, height=256, width=256, output_type="logits")
    make_images(tmp_path / "images", 8, seed=25, height=256, width=256)
    output = tmp_path / "out"
    output.mkdir()
    in_namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c",
                    'mount -t tmpfs -o size=3m small "$0" && "$@"; status=$?; ls -lA "$0"; exit $status', output]
    if shutil.which("unshare") is None or subprocess.run([*in_namespace, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here; test_disk_full_leaves_no_half_file still sees a write that fails")
    program = build_folder() / "out" / "segment"
    done = subprocess.run([*in_namespace, program, "run", "--manifest", model.yaml_path, "--input", tmp_path / "images",
                           "--output", output], capture_output=True, text=True, timeout=120)
    assert_user_error(done, "img_00", "cannot write", "No space left on device", "free some space")
    files = [line.split() for line in done.stdout.splitlines() if ".bin" in line]
    assert 1 <= len(files) <= 2     # 1.25 MiB each
    assert all(words[4] == str(4 * 5 * 256 * 256) and words[-1].startswith("img_") for words in files)


def limit_file_size():
    """Writing fails half-way with EFBIG."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))


def test_disk_full_leaves_no_half_file(tmp_path):
    model = TinyModel(tmp_path / "model", seed=14, height=256, width=256, output_type="logits")
    make_images(tmp_path / "images", 8, seed=15, height=256, width=256)
    program = build_folder() / "out" / "segment"
    done = subprocess.run([program, "run", "--manifest", model.yaml_path, "--input", tmp_path / "images", "--output",
                           tmp_path / "out"], capture_output=True, text=True, preexec_fn=limit_file_size, timeout=120)
    assert_user_error(done, "img_00", "cannot write", "File too large", "free some space")
    assert {path.name for path in (tmp_path / "out").iterdir()} == RUN_FILES
    assert read_summary(tmp_path / "out")["status"] == "running"


@pytest.mark.parametrize(("number", "batch"), [(signal.SIGINT, 1), (signal.SIGINT, 4), (signal.SIGTERM, 1)])
def test_interrupt_finishes_files_in_flight_and_writes_the_summary(tmp_path, number, batch):
    model = TinyModel(tmp_path / "model", seed=16, height=256, width=256, batch=batch)
    output = tmp_path / "out"
    status, _, stderr = run_and_signal(model, tmp_path, 3000, number)
    assert status == 128 + number, stderr
    assert "interrupted" in stderr
    summary = read_summary(output)
    assert summary["interrupted"] is True
    masks = sorted(output.glob("*.png"))
    assert 5 <= len(masks) == summary["images"] < 3000
    assert [path.stem for path in masks] == sorted(f.stem for f in (tmp_path / "images").iterdir())[:len(masks)]
    expected = read_ids(masks[0])
    for mask in masks:
        np.testing.assert_array_equal(read_ids(mask), expected)
    assert leftovers(output) == []


def test_file_names_of_any_bytes(tmp_path, model):
    images = make_images(tmp_path / "images", 1, seed=18)
    source = tmp_path / "images" / "img_000.png"
    for name in ('quote"d\n.png', "街道.png", b"\xff.png".decode("utf-8", "surrogateescape")):
        shutil.copy(source, tmp_path / "images" / name)
    (tmp_path / "images" / 'br"oken\n.png').write_bytes(b"x")
    assert run(model, tmp_path / "images", tmp_path / "out").returncode == 3
    failed = read_summary(tmp_path / "out")["failed"]
    assert len(failed) == 2
    assert all("control character" in item["error"] for item in failed)     # such names cannot stand in a list
    assert_ids_match(read_ids(tmp_path / "out" / "img_000.png"), model.logits(images["img_000"]))
    results = {os.fsencode(path.name) for path in (tmp_path / "out").glob("*.png")}
    assert results == {b"img_000.png", "街道.png".encode(), b"\xff.png"}
    assert (tmp_path / "out" / "inputs.txt").read_bytes().splitlines() == [
        b'br"oken?', b"img_000", b'quote"d?', "街道".encode(), b"\xff"]


def test_usage():
    done = segment()
    assert_user_error(done, "run, bench or info", "--help")
    done = segment("--help")
    assert done.returncode == 0
    assert "Example: segment run" in done.stdout
    assert "openvino" in done.stdout
    done = segment("run", "--help")
    assert done.returncode == 0
    assert "--threads" in done.stdout
    assert segment("--version").stdout == f"segment {__version__}, backends: openvino\n"
