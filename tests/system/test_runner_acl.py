"""The AscendCL backend end to end on the simulated library: results, types, batches, rules, faults, releases."""
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from onnx import TensorProto

from tests.support.runner import (
    MEAN,
    RUNNER,
    STD,
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
    """The program that is linked to the simulated library; status 86 means that a rule of AscendCL was broken."""
    done = run_program(build_folder() / "test" / "segment_simulated", *arguments, env=env)
    assert "VIOLATION" not in done.stderr, done.stderr
    return done


def add_om(model, batch, **lines):
    """Writes a simulated ``.om`` of the model's ONNX file and lists it in the manifest."""
    name = f"tiny_{len(model.manifest['models'])}.om"
    text = "".join(f"{key}: {value}\n" for key, value in {"onnx": model.path.name, **lines}.items())
    return model.add_file(name, "SIMULATED OM\n" + text, batch)


def run(model, images, output, *options, **env):
    return simulated("run", "--backend", "acl", "--manifest", model.yaml_path, "--input", images, "--output", output,
                     *options, **env)


def run_ok(*arguments, **env):
    done = run(*arguments, **env)
    assert done.returncode == 0, (done.returncode, done.stderr)
    summary = read_summary(arguments[2])
    assert summary["simulated"] is True
    assert summary["backend"] == "acl"
    assert "simulated" in summary["device"]
    assert summary["backend_version"] == "AscendCL 0.0.0-simulated"
    return summary


def compare_ids(folder, model, images):
    for name, image in images.items():
        assert_ids_match(read_ids(folder / f"{name}.png"), model.logits(image))


@pytest.mark.parametrize("batch", [1, 4])
def test_static_batch_equals_openvino(tmp_path, batch):
    model = TinyModel(tmp_path / "model", seed=30 + batch, batch=batch)
    images = make_images(tmp_path / "images", 10, seed=31)
    add_om(model, batch)
    summary = run_ok(model, tmp_path / "images", tmp_path / "acl")
    assert summary["batch"] == batch
    done = simulated("run", "--backend", "openvino", "--manifest", model.yaml_path, "--input", tmp_path / "images",
                     "--output", tmp_path / "openvino")
    assert done.returncode == 0
    assert read_summary(tmp_path / "openvino")["simulated"] is False
    compare_ids(tmp_path / "acl", model, images)
    for name in images:
        np.testing.assert_array_equal(read_ids(tmp_path / "acl" / f"{name}.png"),
                                      read_ids(tmp_path / "openvino" / f"{name}.png"))


@pytest.mark.parametrize(("batch", "count"), [(1, 3), (4, 9), (4, 8), (8, 3)])
def test_dynamic_batch_uses_its_gears(tmp_path, batch, count):
    """9 images at 4 leave one, which runs on gear 1; 3 images at 8 run on gear 4, padded."""
    model = TinyModel(tmp_path / "model", seed=33, batch=-1)
    images = make_images(tmp_path / "images", count, seed=34)
    add_om(model, -1, gears="1 4 8")
    summary = run_ok(model, tmp_path / "images", tmp_path / "out", "--batch", batch)
    assert summary["batch"] == batch
    compare_ids(tmp_path / "out", model, images)


@pytest.mark.parametrize("lines", [{}, {"outputs": "1 0"}, {"gears": "1 4"}])
def test_confidence_by_name_whatever_the_order(tmp_path, lines):
    batch = -1 if "gears" in lines else 4
    model = TinyModel(tmp_path / "model", seed=36, batch=batch, temperature=0.7)
    images = make_images(tmp_path / "images", 9, seed=37)
    add_om(model, batch, **lines)
    for options in (["--confidence"], []):
        run_ok(model, tmp_path / "images", tmp_path / f"out{len(options)}", "--batch", 4, *options)
        compare_ids(tmp_path / f"out{len(options)}", model, images)
    for name, image in images.items():
        assert np.abs(read_ids(tmp_path / "out1" / f"{name}_confidence.png") - model.confidence(image)).max() < 0.51
    assert len(list((tmp_path / "out0").glob("*.png"))) == 9
    del model.manifest["output"]["confidence"]
    model.save()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "2 outputs", "one result;")


def test_a_batch_that_was_not_converted_is_refused(tmp_path):
    model = TinyModel(tmp_path / "model", seed=35, batch=-1)
    make_images(tmp_path / "images", 1, seed=36)
    add_om(model, -1, gears="1 4")
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out", "--batch", 2), "--batch 2", "[1, 4]")
    static = TinyModel(tmp_path / "static", seed=35)
    add_om(static, 1)
    assert_user_error(run(static, tmp_path / "images", tmp_path / "out", "--batch", 2), "batch 2", "om batch 1")


def test_the_named_model_file_runs(tmp_path):
    """Not the first one listed; no other option has to say its batch or its backend."""
    model = TinyModel(tmp_path / "model", seed=58, batch=-1)
    images = make_images(tmp_path / "images", 5, seed=59)
    first, second = add_om(model, -1, gears="1 4"), add_om(model, -1, gears="2 8")
    for file, batch in ((first, 1), (second, 2), (second.name, 2)):
        summary = run_ok(model, tmp_path / "images", tmp_path / f"out{batch}", "--model", file)
        assert (summary["model_file"], summary["batch"]) == (file if isinstance(file, str) else file.name, batch)
        compare_ids(tmp_path / f"out{batch}", model, images)
    for file, backend in ((second, "acl"), (model.path, "openvino")):
        done = simulated("info", "--manifest", model.yaml_path, "--json", "--model", file)
        assert json.loads(done.stdout)["backend"] == backend
    (tmp_path / "model" / "tiny_9.om").write_bytes(second.read_bytes())
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out", "--model", tmp_path / "model" / "tiny_9.om"),
                      "tiny_9.om", "not listed", first.name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output_dtype", ["float16", "float32"])
@pytest.mark.parametrize("input_dtype", ["float16", "float32"])
def test_logits_in_half_and_single_precision(tmp_path, input_dtype, output_dtype):
    model = TinyModel(tmp_path / "model", seed=37, batch=4, output_type="logits")
    images = make_images(tmp_path / "images", 5, seed=38)
    add_om(model, 4, input_dtype=input_dtype, output_dtype=output_dtype)
    summary = run_ok(model, tmp_path / "images", tmp_path / "out")
    width = {"float16": 2, "float32": 4}
    assert summary["input_bytes_per_image"] == 3 * 24 * 40 * width[input_dtype]
    assert summary["output_bytes_per_image"] == 5 * 24 * 40 * width[output_dtype]
    tolerance = 2e-5 if input_dtype == output_dtype == "float32" else 1e-2
    for name, image in images.items():
        values = np.fromfile(tmp_path / "out" / f"{name}.bin", np.float32).reshape(5, 24, 40)
        np.testing.assert_allclose(values, model.logits(image), atol=tolerance)


@pytest.mark.parametrize("output_dtype", ["uint8", "int32", "int64", "float16"])
def test_class_ids_of_any_type(tmp_path, output_dtype):
    model = TinyModel(tmp_path / "model", seed=39, ids_type=TensorProto.INT32)
    images = make_images(tmp_path / "images", 3, seed=40)
    add_om(model, 1, output_dtype=output_dtype)
    run_ok(model, tmp_path / "images", tmp_path / "out")
    compare_ids(tmp_path / "out", model, images)


def test_uint8_input_with_normalisation_in_the_graph(tmp_path):
    model = TinyModel(tmp_path / "model", seed=41, batch=4, graph_normalize=True)
    images = make_images(tmp_path / "images", 6, seed=42)
    add_om(model, 4)
    summary = run_ok(model, tmp_path / "images", tmp_path / "out")
    assert summary["input_bytes_per_image"] == 3 * 24 * 40
    compare_ids(tmp_path / "out", model, images)


def aipp_numbers():
    means = [int(m) for m in MEAN]
    return " ".join(map(str, [*means, *(m - i for m, i in zip(MEAN, means, strict=True)), *(1 / s for s in STD)]))


def test_aipp_model_takes_pixels_though_the_manifest_normalises(tmp_path):
    model = TinyModel(tmp_path / "model", seed=43, batch=4, output_type="logits")
    images = make_images(tmp_path / "images", 6, seed=44, height=30, width=50)
    add_om(model, 4, aipp=aipp_numbers())
    summary = run_ok(model, tmp_path / "images", tmp_path / "out")
    assert summary["input_bytes_per_image"] == 3 * 24 * 40
    for name, image in images.items():
        values = np.fromfile(tmp_path / "out" / f"{name}.bin", np.float32).reshape(5, 24, 40)
        np.testing.assert_allclose(values, model.logits(image), atol=2e-2)


def test_bins_go_into_half_precision_but_not_into_aipp(tmp_path):
    model = TinyModel(tmp_path / "model", seed=45, output_type="logits")
    image = np.random.default_rng(46).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    (tmp_path / "bins").mkdir()
    model.tensor(image).tofile(tmp_path / "bins" / "a.bin")
    add_om(model, 1, input_dtype="float16")
    run_ok(model, tmp_path / "bins", tmp_path / "out")
    values = np.fromfile(tmp_path / "out" / "a.bin", np.float32).reshape(5, 24, 40)
    np.testing.assert_allclose(values, model.logits(image), atol=1e-2)
    del model.manifest["models"][1:]
    add_om(model, 1, aipp=aipp_numbers())
    assert_user_error(run(model, tmp_path / "bins", tmp_path / "out"), "AIPP", "images")


def test_streams_run_side_by_side(tmp_path):
    model = TinyModel(tmp_path / "model", seed=47)
    images = make_images(tmp_path / "images", 12, seed=48)
    add_om(model, 1)
    summary = run_ok(model, tmp_path / "images", tmp_path / "out", "--streams", 3, "--threads", 2)
    assert summary["streams"] == 3
    compare_ids(tmp_path / "out", model, images)


def latencies(copy_in, execute, copy_out):
    """Environment that makes the simulated device take this long, in microseconds of its own clock."""
    return {"FAKE_ACL_H2D_US": str(copy_in), "FAKE_ACL_EXECUTE_US": str(execute), "FAKE_ACL_D2H_US": str(copy_out)}


def simulated_time(done):
    """Executions and the simulated microseconds that they took with all copies, whatever the machine's own speed."""
    assert done.returncode == 0, (done.returncode, done.stderr)
    counts = re.search(r"(\d+) executions in (\d+) simulated microseconds", done.stderr).groups()
    return int(counts[0]), int(counts[1])


STAGES = {"equal": (1000, 1000, 1000), "slow execution": (500, 1000, 500), "slow copy in": (1000, 400, 100)}


@pytest.mark.parametrize("stages", STAGES)
def test_copies_overlap_with_execution(tmp_path, stages):
    """Copying in, executing and copying out at once: what the slowest of them allows, less the first and last batch."""
    model = TinyModel(tmp_path / "model", seed=66, batch=-1)
    images = make_images(tmp_path / "images", 80, seed=67)
    add_om(model, -1, gears="1 2")
    done = run(model, tmp_path / "images", tmp_path / "out", "--batch", 2, **latencies(*STAGES[stages]))
    executions, microseconds = simulated_time(done)
    assert executions == 40
    assert read_summary(tmp_path / "out")["streams"] == 2
    slowest = max(STAGES[stages])
    assert 40 * slowest <= microseconds <= 40 * slowest / 0.9
    compare_ids(tmp_path / "out", model, images)
    one_slot = run(model, tmp_path / "images", tmp_path / "one", "--batch", 2, "--streams", 1,
                   **latencies(*STAGES[stages]))
    assert simulated_time(one_slot) == (40, 40 * sum(STAGES[stages]))


def test_bench_overlaps_and_names_its_slots(tmp_path):
    model = TinyModel(tmp_path / "model", seed=68)
    add_om(model, 1)
    done = simulated("bench", "--manifest", model.yaml_path, "--iterations", 80, **latencies(1000, 1000, 1000))
    assert "batch       1, streams 2" in done.stdout
    executions, microseconds = simulated_time(done)
    assert executions == 84
    assert microseconds <= 84 * 1000 / 0.9
    figures = json.loads(simulated("bench", "--manifest", model.yaml_path, "--json", "--streams", 3).stdout)
    assert figures["streams"] == 3


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("call", ["aclrtMemcpyAsync:9", "aclmdlExecuteAsync:6", "aclrtSynchronizeStream:11"])
def test_an_error_in_the_midst_ends_what_is_under_way(tmp_path, call, streams):
    """Copies and executions that were begun use memory that the end frees: it waits for them."""
    model = TinyModel(tmp_path / "model", seed=69)
    make_images(tmp_path / "images", 20, seed=70)
    add_om(model, 1)
    done = run(model, tmp_path / "images", tmp_path / "out", "--streams", streams, FAKE_ACL_FAIL=call,
               **latencies(1000, 1000, 1000))
    lines = [line for line in done.stderr.splitlines(keepends=True) if "simulated microseconds" not in line]
    done.stderr = "".join(lines)
    assert_user_error(done, call.partition(":")[0], "injected")
    assert 0 < len(list((tmp_path / "out").glob("img_*.png"))) < 20


def test_a_device_that_holds_the_model_once_gets_one_slot(tmp_path):
    """Unless two were asked for. 512 x 512 in float32 are 3 MB."""
    model = TinyModel(tmp_path / "model", seed=73, height=512, width=512)
    images = make_images(tmp_path / "images", 3, seed=74, height=512, width=512)
    add_om(model, 1)
    done = run(model, tmp_path / "images", tmp_path / "out", FAKE_ACL_MEMORY_MB="5")
    assert done.returncode == 0, done.stderr
    assert "does not fit twice" in done.stderr
    assert read_summary(tmp_path / "out")["streams"] == 1
    compare_ids(tmp_path / "out", model, images)
    done = run(model, tmp_path / "images", tmp_path / "two", "--streams", 2, FAKE_ACL_MEMORY_MB="5")
    assert_user_error(done, "aclrtMalloc", "207001", "fewer --streams")


def test_predictors_share_the_device(tmp_path):
    """Each opens the device; AscendCL itself is initialised once a process."""
    model = TinyModel(tmp_path / "model", seed=71)
    (name, image), = make_images(tmp_path / "images", 1, seed=72).items()
    add_om(model, 1)
    done = run_program(build_folder() / "test" / "two_predictors", model.yaml_path, tmp_path / "images" / f"{name}.png",
                       tmp_path / "mask.png")
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert_ids_match(read_ids(tmp_path / "mask.png"), model.logits(image))


def test_auto_prefers_the_device_and_falls_back_with_a_note(tmp_path):
    model = TinyModel(tmp_path / "model", seed=49)
    add_om(model, 1)
    done = simulated("info", "--manifest", model.yaml_path, "--json")
    assert json.loads(done.stdout)["backend"] == "acl"
    done = simulated("info", "--manifest", model.yaml_path, "--json", FAKE_ACL_DEVICES="0")
    assert json.loads(done.stdout)["backend"] == "openvino"
    assert "note: backend acl" in done.stderr
    text = simulated("info", "--manifest", model.yaml_path).stdout
    assert "SIMULATED" in text
    bench = simulated("bench", "--manifest", model.yaml_path, "--iterations", 3, "--json")
    assert json.loads(bench.stdout)["simulated"] is True


def test_device_that_does_not_exist_and_memory_that_is_not_there(tmp_path):
    model = TinyModel(tmp_path / "model", seed=50, height=512, width=512)
    make_images(tmp_path / "images", 1, seed=51)
    om = add_om(model, 1)
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out", "--device_id", 2), "--device_id 2", "are 1")
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out", FAKE_ACL_DEVICES="0"), "are 0", "npu-smi")
    done = run(model, tmp_path / "images", tmp_path / "out", FAKE_ACL_MEMORY_MB="2")
    assert_user_error(done, "aclrtMalloc", "207001", "out of device memory", "--batch")
    done = run(model, tmp_path / "images", tmp_path / "out", FAKE_ACL_PINNED_MB="4")
    assert_user_error(done, "aclrtMallocHost", "207001", "out of pinned host memory", "--batch")
    shutil.rmtree(tmp_path / "out")
    om.write_bytes(b"garbage")
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), str(om), "SHA-256", "damaged")
    model.save_with_hashes()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "aclmdlLoadFromFile", "145006")
    om.unlink()
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), str(om), "no such model file")
    assert not (tmp_path / "out").exists()


def test_manifest_of_another_model(tmp_path):
    model = TinyModel(tmp_path / "model", seed=52)
    other = TinyModel(tmp_path / "other", seed=53, height=32)
    make_images(tmp_path / "images", 1, seed=54)
    add_om(model, 1)
    shutil.copy(other.path, model.path)
    assert_user_error(run(model, tmp_path / "images", tmp_path / "out"), "[1, 3, 24, 40]", "[1, 3, 32, 40]",
                      "another model")


def test_the_simulation_sees_every_mistake(tmp_path):
    """A correct program ends well and computes; each mutant of it is convicted."""
    model = TinyModel(tmp_path / "model", seed=57, batch=-1, height=4, width=5)
    om = add_om(model, -1, gears="1 2")
    program = build_folder() / "test" / "misuse"
    correct = run_program(program, om, "none")
    assert correct.returncode == 0, correct.stderr
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    logits = np.einsum("oc,nchw->nohw", model.weight, pixels) + model.bias[:, None, None]
    np.testing.assert_array_equal(np.array(correct.stdout.split(), int).reshape(2, 4, 5), logits.argmax(axis=1))
    source = (RUNNER / "test" / "fake_ascendcl" / "misuse.cc").read_text(encoding="utf-8")
    mistakes = sorted(set(re.findall(r'Is\("(\w+)"\)', source)))
    assert len(mistakes) > 30
    for mistake in mistakes:
        done = run_program(program, om, mistake)
        assert done.returncode == 86, (mistake, done.returncode, done.stderr)
        assert "VIOLATION" in done.stderr, mistake


def used_functions():
    source = (RUNNER / "src" / "backend_acl.cc").read_text(encoding="utf-8")
    names = set(re.findall(r"ACL_(?:CALL|MAKE|RELEASE)\((acl\w+)", source))
    return sorted(names | set(re.findall(r"\b(acl(?:rt|mdl)?[A-Z]\w*)\((?!.*\bvoid\b)", source)))


WITHOUT_STATUS = {"aclGetRecentErrMsg", "aclrtGetSocName", "aclmdlGetNumInputs", "aclmdlGetNumOutputs",
                  "aclmdlGetInputSizeByIndex", "aclmdlGetOutputSizeByIndex", "aclmdlGetInputNameByIndex",
                  "aclmdlGetInputDataType", "aclmdlGetOutputDataType"}
RELEASING = {"aclFinalize", "aclrtResetDevice", "aclrtDestroyContext", "aclrtDestroyStream", "aclmdlUnload",
             "aclmdlDestroyDesc", "aclDestroyDataBuffer", "aclrtFree", "aclrtFreeHost", "aclmdlDestroyDataset"}


@pytest.mark.parametrize("call", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_return_code_is_checked_and_everything_is_released_then(tmp_path, call):
    """Lets each function fail at its first or second call: one clear error, and no leak behind it."""
    model = TinyModel(tmp_path / "model", seed=55, batch=-1)
    make_images(tmp_path / "images", 4, seed=56)
    add_om(model, -1, gears="1 2")
    functions = set(used_functions()) - WITHOUT_STATUS
    assert len(functions) > 25
    for function in sorted(functions):
        done = run(model, tmp_path / "images", tmp_path / "out", "--batch", 2, "--streams", 2,
                   FAKE_ACL_FAIL=f"{function}:{call}")
        if "injected" not in done.stderr:
            assert call == 2, f"{function} is never called"
            continue
        assert f"{function} failed" in done.stderr
        if function in RELEASING:
            assert done.returncode == 0, (function, done.stderr)
        else:
            assert_user_error(done, "AscendCL", function, "injected")


def test_the_product_has_nothing_of_the_simulation():
    for program in (build_folder() / "out" / "segment", build_folder() / "out" / "libmindseg.so"):
        libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        assert "ascendcl" not in libraries
        assert b"SIMULATED AscendCL" not in program.read_bytes()
    simulated_libraries = subprocess.run(["ldd", build_folder() / "test" / "segment_simulated"], capture_output=True,
                                         text=True, check=True).stdout
    assert "libascendcl.so" in simulated_libraries


def test_backend_includes_only_standard_library_acl_and_this_folder():
    source = (RUNNER / "src" / "backend_acl.cc").read_text(encoding="utf-8")
    for include in re.findall(r"#include (\S+)", source):
        assert include.startswith('"inc/') or re.fullmatch(r"<[a-z_]+>", include), include
