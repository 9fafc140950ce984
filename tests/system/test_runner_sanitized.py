"""Runner, unit tests and simulation under the address and undefined-behaviour sanitizers.

tests/system/test_runner_slow.py runs all the other runner tests on this build.
"""
import re

import pytest

from tests.support.runner import (
    ROOT,
    RUNNER,
    SANITIZED,
    SANITIZER_ENVIRONMENT,
    TinyModel,
    assert_ids_match,
    assert_user_error,
    build,
    make_images,
    read_ids,
    read_summary,
    run_program,
)

pytestmark = pytest.mark.slow       # the build alone takes a minute and a half


@pytest.fixture(scope="module")
def folder():
    """The build; a sanitizer's finding ends a program with another status than any that is expected here."""
    return build(*SANITIZED)


def run(program, model, images, output, *options, **variables):
    done = run_program(program, "run", "--manifest", model.yaml_path, "--input", images, "--output", output, *options,
                       env={**SANITIZER_ENVIRONMENT, **variables})
    assert "Sanitizer" not in done.stderr, done.stderr
    assert "runtime error" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("arguments", [["test_core"], ["test_pipeline"], ["test_manifests", ROOT / "tests/manifests"]])
def test_unit_tests(folder, arguments):
    done = run_program(folder / "test" / arguments[0], *arguments[1:], env=SANITIZER_ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout or "0 failures" in done.stdout


@pytest.mark.parametrize(("program", "options"), [("out/segment", ["--backend", "openvino", "--batch", 3]),
                                                  ("test/segment_simulated", ["--backend", "acl", "--batch", 4])])
def test_images_good_and_bad(tmp_path, folder, program, options):
    model = TinyModel(tmp_path / "model", seed=80, batch=-1)
    model.manifest["input"]["resize"] = {"rule": "long_side", "size": [24, 40], "pad": True}
    model.add_file("tiny.om", "SIMULATED OM\nonnx: tiny.onnx\ngears: 1 4\n", -1)
    images = make_images(tmp_path / "images", 6, seed=81, height=31, width=33)
    (tmp_path / "images" / "broken.png").write_bytes((tmp_path / "images" / "img_000.png").read_bytes()[:300])
    done = run(folder / program, model, tmp_path / "images", tmp_path / "out", *options)
    assert done.returncode == 3, done.stderr
    assert read_summary(tmp_path / "out")["failures"] == 1
    for name, image in images.items():
        assert_ids_match(read_ids(tmp_path / "out" / f"{name}.png"), model.logits(image))


def test_failures_of_the_device(tmp_path, folder):
    """An early end releases everything: the simulation looks for leaks on the device, the sanitizer on the host."""
    model = TinyModel(tmp_path / "model", seed=82, height=512, width=512)
    make_images(tmp_path / "images", 1, seed=83)
    model.add_file("tiny.om", "SIMULATED OM\nonnx: tiny.onnx\n", 1)
    program = folder / "test" / "segment_simulated"
    for name, value in (("MEMORY_MB", "2"), ("FAIL", "aclmdlExecuteAsync:1"), ("DEVICES", "0")):
        done = run(program, model, tmp_path / "images", tmp_path / "out", "--backend", "acl",
                   **{f"FAKE_ACL_{name}": value})
        assert_user_error(done)


def test_the_simulation_convicts_without_a_fault_of_its_own(tmp_path, folder):
    """Wrong programs end by the simulation's judgement (86) and not by a sanitizer's."""
    model = TinyModel(tmp_path / "model", seed=84, batch=-1, height=4, width=5)
    om = model.folder / "tiny.om"
    om.write_text("SIMULATED OM\nonnx: tiny.onnx\ngears: 1 2\n", encoding="utf-8")
    source = (RUNNER / "test" / "fake_ascendcl" / "misuse.cc").read_text(encoding="utf-8")
    for mistake in sorted(set(re.findall(r'Is\("(\w+)"\)', source))):
        done = run_program(folder / "test" / "misuse", om, mistake, env=SANITIZER_ENVIRONMENT)
        assert done.returncode == 86, (mistake, done.stderr)
