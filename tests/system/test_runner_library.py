"""The installed C++ library: a program of another folder finds it, and its masks are those of ``segment run``."""
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.runner import (
    NUM_CLASSES,
    ROOT,
    RUNNER,
    TinyModel,
    assert_ids_match,
    build_folder,
    make_images,
    read_ids,
    run_program,
    segment,
)


def run_cmake(*arguments: object) -> None:
    program = shutil.which("cmake") or ROOT / ".venv" / "bin" / "cmake"
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """The example, copied and built outside the repository against the installed library alone."""
    folder = tmp_path_factory.mktemp("library")
    run_cmake("--install", build_folder(), "--prefix", folder / "an installation")
    shutil.copytree(RUNNER / "examples", folder / "example")
    run_cmake("-S", folder / "example", "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={folder}/an installation",
              "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    run_cmake("--build", folder / "build")
    return folder / "build" / "segment_one"


def make_mask(example: Path, model: TinyModel, image: Path, folder: Path) -> np.ndarray:
    """The class ids that the example writes for an image."""
    done = run_program(example, model.yaml_path, image, folder / "mask.png")
    assert done.returncode == 0, done.stderr
    return read_ids(folder / "mask.png")


@pytest.mark.parametrize("batch", [1, 4, -1])
def test_the_example_writes_the_mask_of_segment_run(tmp_path, example, batch):
    model = TinyModel(tmp_path / "model", seed=90, batch=batch)
    images = make_images(tmp_path / "images", 2, seed=91)
    assert segment("run", "--manifest", model.yaml_path, "--input", tmp_path / "images", "--output",
                   tmp_path / "out").returncode == 0
    for name, image in images.items():
        mask = make_mask(example, model, tmp_path / "images" / f"{name}.png", tmp_path)
        np.testing.assert_array_equal(mask, read_ids(tmp_path / "out" / f"{name}.png"))
        assert_ids_match(mask, model.logits(image))


@pytest.mark.parametrize(("resize", "content"), [({"rule": "exact", "size": [24, 40], "pad": False}, (24, 40)),
                                                 ({"rule": "long_side", "size": [24, 40], "pad": True}, (24, 31))])
def test_a_mask_has_the_size_of_its_image(tmp_path, example, resize, content):
    """The padding is cut off, and each pixel takes the nearest id of the mask of ``segment run``."""
    model = TinyModel(tmp_path / "model", seed=92)
    model.manifest["input"]["resize"] = resize
    model.save()
    make_images(tmp_path / "images", 1, seed=93, height=61, width=79)
    assert segment("run", "--manifest", model.yaml_path, "--input", tmp_path / "images", "--output",
                   tmp_path / "out").returncode == 0
    inner = read_ids(tmp_path / "out" / "img_000.png")[:content[0], :content[1]]
    expected = cv2.resize(inner, (79, 61), interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(make_mask(example, model, tmp_path / "images" / "img_000.png", tmp_path), expected)


@pytest.mark.parametrize("size", [(24, 40), (61, 79)])
def test_logits_are_interpolated_to_the_size_of_the_image(tmp_path, example, size):
    model = TinyModel(tmp_path / "model", seed=94, output_type="logits")
    (image,) = make_images(tmp_path / "images", 1, seed=95, height=size[0], width=size[1]).values()
    mask = make_mask(example, model, tmp_path / "images" / "img_000.png", tmp_path)
    assert mask.shape == size
    logits = model.logits(image).astype(np.float32)
    assert_ids_match(mask, np.stack([cv2.resize(plane, size[::-1]) for plane in logits]))
    assert len(np.unique(mask)) == NUM_CLASSES


def test_errors_reach_the_program(tmp_path, example):
    model = TinyModel(tmp_path / "model", seed=96)
    make_images(tmp_path / "images", 1, seed=97)
    arguments = [model.yaml_path, tmp_path / "images" / "img_000.png", tmp_path / "mask.png"]
    model.path.unlink()
    done = run_program(example, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {model.path}: no such model file")
    assert done.stderr.count("\n") == 1
    model.manifest["input"]["pad_value"] = [0, 0, 256]
    model.save()
    assert "input.pad_value" in run_program(example, *arguments).stderr


def test_only_the_interface_is_installed(example):
    """Not the test libraries, not the inner headers; and the example stays as short as its page promises."""
    installation = example.parents[1] / "an installation"
    files = {str(path.relative_to(installation)) for path in installation.rglob("*") if path.is_file()}
    assert {"bin/segment", "include/mindseg/predictor.h"} <= files
    assert [name for name in files if name.startswith("include/")] == ["include/mindseg/predictor.h"]
    assert not any("ascendcl" in name or "simulated" in name or "test" in name for name in files)
    done = run_program(installation / "bin" / "segment", "--version", env={"LD_LIBRARY_PATH": ""})
    assert "openvino" in done.stdout
    assert os.access(installation / "bin" / "segment", os.X_OK)
    assert len((RUNNER / "examples" / "segment_one.cc").read_text(encoding="utf-8").splitlines()) < 60
