"""The runner under sanitizers, under a fuzzer, and over ten thousand images."""
import os
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tests.support.runner import (
    QUICK,
    RUNNER,
    SANITIZED,
    SANITIZER_ENVIRONMENT,
    TinyModel,
    build,
    build_folder,
    make_images,
    read_summary,
)

pytestmark = pytest.mark.slow
TESTS = ["system/test_runner_run.py", "system/test_runner_bad_input.py", "system/test_runner_acl.py",
         "system/test_runner_output.py", "hostile/test_runner.py"]


def test_address_and_undefined_behaviour_sanitizers():
    """Builds runner, unit tests and simulation with ASan and UBSan, and runs the other runner tests on that build."""
    env = {**os.environ, **SANITIZER_ENVIRONMENT, "SEGMENT_TEST_BUILD": str(build(*SANITIZED))}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider",
               *(f"tests/{name}" for name in TESTS)]
    done = subprocess.run(command, cwd=RUNNER.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


def test_thread_sanitizer_on_the_pipeline(tmp_path):
    folder = RUNNER / "build-thread"
    configure = ["cmake", "-S", RUNNER, "-B", folder, "-DBUILD_TESTING=ON", "-DSANITIZE=thread", "-DOpenVINO_DIR=none",
                 "-DASCEND_HOME_PATH=", "-DMS_LITE_HOME=", *QUICK]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder, "--target", "test_pipeline"], check=True, capture_output=True)
    (tmp_path / "suppressions").write_text("deadlock:libgdal\n", encoding="utf-8")  # loaded by OpenCV, not used here
    done = subprocess.run([folder / "test" / "test_pipeline"], capture_output=True, text=True,
                          env={**os.environ, "LD_PRELOAD": "", "TSAN_OPTIONS": f"suppressions={tmp_path}/suppressions"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ThreadSanitizer" not in done.stderr, done.stderr


def make_corpus(folder, model):
    """One good file of each kind, and a damaged one of each."""
    folder.mkdir()
    image = np.random.default_rng(60).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    samples = {"manifest": b"M" + model.yaml_path.read_bytes(), "names": b"Naachen_1\r\n\nb\n",
               "bin": b"B" + bytes(11520)}
    for extension in ("png", "jpg", "bmp", "webp"):
        samples[extension] = b"I" + cv2.imencode(f".{extension}", image)[1].tobytes()
    for name, content in samples.items():
        (folder / name).write_bytes(content)
        (folder / f"{name}_cut").write_bytes(content[:len(content) * 2 // 3])


def test_fuzzing_manifest_images_and_bins(tmp_path):
    """Half a minute of libFuzzer with ASan and UBSan; skipped only where no clang is installed."""
    compiler = next((path for name in ("clang++", "clang++-14", "clang++-15", "clang++-16", "clang++-19")
                     if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no clang++ here: apt-get install clang")
    folder = RUNNER / "build-fuzz"
    configure = ["cmake", "-S", RUNNER, "-B", folder, "-DBUILD_TESTING=ON", "-DSEGMENT_FUZZ=ON",
                 f"-DCMAKE_CXX_COMPILER={compiler}", *QUICK]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder, "--target", "fuzz_inputs"], check=True, capture_output=True)
    make_corpus(tmp_path / "corpus", TinyModel(tmp_path / "model", seed=61))
    seconds = os.environ.get("SEGMENT_FUZZ_SECONDS", "30")
    # libFuzzer looks at the peak of its memory, which Linux hands on from the process that starts a program, this one
    # with its networks: a shell in between starts it small.
    done = subprocess.run(["bash", "-c", '"$@"; exit $?', "bash", folder / "test" / "fuzz_inputs", tmp_path / "corpus",
                           f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=3000",
                           f"-artifact_prefix={tmp_path}/"], capture_output=True, text=True, errors="replace",
                          env={**os.environ, "LD_PRELOAD": ""})
    assert done.returncode == 0, done.stderr[-5000:]


def resident_kilobytes(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return next((int(line.split()[1]) for line in status if line.startswith("VmRSS")), 0)


@pytest.mark.parametrize("program", ["out/segment", "test/segment_simulated"])
def test_ten_thousand_images_in_flat_memory(tmp_path, program):
    model = TinyModel(tmp_path / "model", seed=62, height=64, width=64, batch=4)
    model.add_file("tiny.om", "SIMULATED OM\nonnx: tiny.onnx\n", 4)
    make_images(tmp_path / "images", 20, seed=63, height=80, width=50)
    sources = sorted((tmp_path / "images").iterdir())
    for i in range(20, 10000):
        (tmp_path / "images" / f"img_{i:05d}.png").hardlink_to(sources[i % 20])
    output = tmp_path / "out"
    samples = []
    with subprocess.Popen([build_folder() / program, "run", "--manifest", model.yaml_path, "--input",
                           tmp_path / "images", "--output", output], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            samples.append((sum(1 for _ in os.scandir(output)) if output.exists() else 0,
                            resident_kilobytes(process.pid)))
            time.sleep(0.05)
    assert process.returncode == 0
    assert read_summary(output)["images"] == 10000
    warm = [memory for done, memory in samples if 1500 < done < 3000]
    late = [memory for done, memory in samples if done > 8500 and memory > 0]
    assert warm
    assert late
    assert max(late) < 1.05 * max(warm), (max(warm), max(late))


def test_build_finds_every_sdk(tmp_path):
    """The product built as on an Ascend machine, with the simulated libraries standing where the SDKs would."""
    libraries = build_folder() / "test"
    ascend, lite = tmp_path / "an ascend toolkit", tmp_path / "lite"
    (ascend / "lib64").mkdir(parents=True)
    (lite / "runtime" / "lib").mkdir(parents=True)
    shutil.copy(libraries / "libascendcl.so", ascend / "lib64")
    shutil.copy(libraries / "libmindspore-lite.so", lite / "runtime" / "lib")
    shutil.copytree(RUNNER / "test" / "fake_mslite" / "include", lite / "runtime" / "include")
    done = subprocess.run(["bash", RUNNER / "build.sh", "-DSEGMENT_WERROR=ON", f"-DSEGMENT_OUTPUT_DIR={tmp_path}/out",
                           *QUICK],
                          env={**os.environ, "BUILD_DIR": str(tmp_path / "build"), "ASCEND_HOME_PATH": str(ascend),
                               "MS_LITE_HOME": str(lite)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    program = tmp_path / "out" / "segment"
    library = tmp_path / "out" / "libmindseg.so"
    paths = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert f"{ascend}/lib64" in paths
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    assert "acl, mslite, openvino" in version
    model = TinyModel(tmp_path / "model", seed=64)
    model.add_file("tiny.om", "SIMULATED OM\nonnx: tiny.onnx\n", 1)
    model.add_file("tiny.mindir", "SIMULATED MINDIR\ntiny.onnx\n", 1)
    for backend in ("acl", "mslite", "openvino", "auto"):
        info = subprocess.run([program, "info", "--backend", backend, "--manifest", model.yaml_path],
                              capture_output=True, text=True, check=True).stdout
        assert ("SIMULATED" in info) is (backend != "openvino")
    (ascend / "lib64" / "libascendcl.so").unlink()
    done = subprocess.run(["bash", RUNNER / "build.sh"], capture_output=True, text=True,
                          env={**os.environ, "BUILD_DIR": str(tmp_path / "other"), "ASCEND_HOME_PATH": str(ascend)})
    assert done.returncode != 0
    assert "set_env.sh" in done.stderr
