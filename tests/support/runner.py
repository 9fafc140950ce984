"""Build the C++ runner once and make tiny exported models for its tests."""
import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from tests.support import ROOT
from tests.support.inference import softmax

RUNNER = ROOT / "ascend310_infer"
BUILD = RUNNER / "build-test"
MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]
NUM_CLASSES = 5
RUN_FILES = {"summary.json", "inputs.txt", ".mindseg-files"}     # beside the results
# Options of ``build``. -O1 compiles a third faster than the product's -O2 and lets as much be found.
QUICK = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1")
SANITIZED = (RUNNER / "build-sanitize", "-DSANITIZE=address,undefined", *QUICK)
# Without the first TBB loads a library in a way that the sanitizers refuse; without the second the sanitizer itself
# sometimes crashes, on a busy machine, over threads of TBB that end while the process does. The third: on processors
# with AMX OpenVINO gives a thread another stack for signals and frees it; the sanitizer would free it again when the
# thread ends, with whatever lies there by then. Status 99 is no program's. LD_PRELOAD: a sanitizer brings its own
# allocator, tests/conftest.py's may not come before it.
SANITIZER_ENVIRONMENT = {"TBB_ENABLE_SANITIZERS": "1", "LD_PRELOAD": "",
                         "ASAN_OPTIONS": "intercept_tls_get_addr=0:use_sigaltstack=0:exitcode=99",
                         "UBSAN_OPTIONS": "exitcode=99:print_stacktrace=1",
                         "LSAN_OPTIONS": f"suppressions={RUNNER}/test/leaks.txt:print_suppressions=0:exitcode=99"}


def require_toolchain() -> None:
    """Skip only where the machine cannot compile the runner at all; the quick start installs what is missing."""
    headers = {"yaml-cpp/yaml.h": "libyaml-cpp-dev", "opencv4/opencv2/imgcodecs.hpp": "libopencv-imgcodecs-dev",
               "nlohmann/json.hpp": "nlohmann-json3-dev", "CLI/CLI.hpp": "libcli11-dev", "openssl/evp.h": "libssl-dev",
               "zlib.h": "zlib1g-dev"}
    missing = [package for header, package in headers.items()
               if not any((Path(base) / header).exists() for base in ("/usr/include", "/usr/local/include"))]
    if shutil.which("g++") is None:
        missing.append("g++")
    if missing:
        pytest.skip(f"the C++ runner cannot be compiled here, install {' '.join(missing)}")


def build(folder: Path, *options: str) -> Path:
    """Build runner and tests into ``folder`` (incremental, one process at a time)."""
    require_toolchain()
    folder.mkdir(exist_ok=True, parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # On all cores: the other worker of pytest-xdist (tests/conftest.py) mostly waits for this build.
        command = ["taskset", "--cpu-list", f"0-{os.cpu_count() - 1}", "bash", RUNNER / "build.sh",
                   f"-DSEGMENT_OUTPUT_DIR={folder}/out", "-DBUILD_TESTING=ON", "-DSEGMENT_WERROR=ON", *options]
        done = subprocess.run(command, env={**os.environ, "BUILD_DIR": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, f"the runner does not build:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return folder


@functools.cache
def build_folder() -> Path:
    """The normal build with tests, made once a session. SEGMENT_TEST_BUILD names one made elsewhere (sanitizers)."""
    made_elsewhere = os.environ.get("SEGMENT_TEST_BUILD")
    return Path(made_elsewhere) if made_elsewhere else build(BUILD, *QUICK)


def segment(*arguments: object, env: dict | None = None, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run the product program and capture its text."""
    return run_program(build_folder() / "out" / "segment", *arguments, env=env, timeout=timeout)


def segment_json(*arguments: object) -> dict:
    """Return what ``segment … --json`` prints, parsed; fail with its message if it fails."""
    done = segment(*arguments, "--json")
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


def run_program(program: Path, *arguments: object, env: dict | None = None,
                timeout: float = 120) -> subprocess.CompletedProcess:
    """Run any program of the build and capture its text."""
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})})


def run_and_signal(model: "TinyModel", folder: Path, count: int, number: signal.Signals) -> tuple[int, int, str]:
    """Segments one image under many names, sends a signal after five masks, and waits for the end.

    Args:
        model: Model; its input size is the image's.
        folder: Gets ``images`` and ``out``.
        count: Number of names, more than can be finished before the signal.
        number: Signal.

    Returns:
        Exit status as ``subprocess`` gives it, process id, and text on stderr.
    """
    images, output = folder / "images", folder / "out"
    make_images(images, 1, seed=9, height=model.manifest["input"]["shape"][2],
                width=model.manifest["input"]["shape"][3])
    for i in range(1, count):
        (images / f"img_{i:04d}.png").hardlink_to(images / "img_000.png")
    command = [build_folder() / "out" / "segment", "run", "--manifest", model.yaml_path, "--input", images, "--output",
               output]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        while len(list(output.glob("*.png"))) < 5:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    return process.returncode, process.pid, stderr


def assert_user_error(done: subprocess.CompletedProcess, *words: str) -> None:
    """One line ``error: …`` on stderr that holds every word, exit status 1."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("note:", "failed:"))]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0], (word, done.stderr)


class TinyModel:
    """A 1x1 convolution of 3 to ``NUM_CLASSES`` channels (and argmax, and confidence), with its manifest.

    Attributes:
        weight: (classes, 3) and bias (classes,), for the NumPy truth.
        manifest: what ``deploy.yaml`` holds; change it and call ``save``.
    """

    def __init__(self, folder: Path, seed: int, height: int = 24, width: int = 40, batch: int = 1,
                 output_type: str = "argmax", graph_normalize: bool = False, ids_type: int = TensorProto.UINT8,
                 temperature: float | None = None):
        self.folder = folder
        self.temperature = temperature      # of the second output; None: there is none
        self.batch = batch
        self.output_type = output_type
        self.graph_normalize = graph_normalize
        rng = np.random.default_rng(seed)
        self.weight = rng.normal(size=(NUM_CLASSES, 3)).astype(np.float32)
        self.bias = rng.normal(size=NUM_CLASSES).astype(np.float32)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "tiny.onnx"
        self._save_onnx(height, width, ids_type)
        self.manifest = self._make_manifest(height, width)
        self.save()

    def _save_onnx(self, height: int, width: int, ids_type: int) -> None:
        n = "N" if self.batch == -1 else self.batch
        nodes = []
        constants = {"weight": self.weight[:, :, None, None], "bias": self.bias}
        source = "image"
        if self.graph_normalize:
            constants |= {"mean": np.float32(MEAN)[:, None, None], "std": np.float32(STD)[:, None, None]}
            nodes += [helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
                      helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
                      helper.make_node("Sub", ["planes", "mean"], ["centred"]),
                      helper.make_node("Div", ["centred", "std"], ["normal"])]
            source = "normal"
        logits = "segmentation" if self.output_type == "logits" else "logits"
        nodes.append(helper.make_node("Conv", [source, "weight", "bias"], [logits]))
        if self.output_type == "argmax":
            nodes += [helper.make_node("ArgMax", ["logits"], ["ids"], axis=1, keepdims=0),
                      helper.make_node("Cast", ["ids"], ["segmentation"], to=ids_type)]
        if self.temperature:
            constants |= {"temperature": np.float32(self.temperature), "255": np.float32(255)}
            nodes += [helper.make_node("Div", ["logits", "temperature"], ["divided"]),
                      helper.make_node("Softmax", ["divided"], ["probabilities"], axis=1),
                      helper.make_node("ReduceMax", ["probabilities"], ["highest"], axes=[1], keepdims=0),
                      helper.make_node("Mul", ["highest", "255"], ["level"]),
                      helper.make_node("Round", ["level"], ["rounded"]),
                      helper.make_node("Cast", ["rounded"], ["confidence"], to=TensorProto.UINT8)]
        image = ((TensorProto.UINT8, [n, height, width, 3]) if self.graph_normalize
                 else (TensorProto.FLOAT, [n, 3, height, width]))
        result = ((ids_type, [n, height, width]) if self.output_type == "argmax"
                  else (TensorProto.FLOAT, [n, NUM_CLASSES, height, width]))
        results = [helper.make_tensor_value_info("segmentation", *result)]
        if self.temperature:
            results.append(helper.make_tensor_value_info("confidence", TensorProto.UINT8, [n, height, width]))
        graph = helper.make_graph(nodes, "tiny", [helper.make_tensor_value_info("image", *image)], results,
                                  [numpy_helper.from_array(value, name) for name, value in constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, self.path)

    def _make_manifest(self, height: int, width: int) -> dict:
        logits = self.output_type == "logits"
        return {
            "format_version": 1,
            "model": {"name": "tiny", "num_classes": NUM_CLASSES},
            "input": {
                "name": "image",
                "shape": [self.batch, height, width, 3] if self.graph_normalize else [self.batch, 3, height, width],
                "layout": "NHWC" if self.graph_normalize else "NCHW",
                "dtype": "uint8" if self.graph_normalize else "float32",
                "color_order": "RGB",
                "normalize": "graph" if self.graph_normalize else "host",
                "value_range": 255,
                "mean": list(MEAN),
                "std": list(STD),
                "resize": {"rule": "exact", "size": [height, width], "pad": False},
                "pad_value": [124, 116, 104],
            },
            "output": {
                "name": "segmentation",
                "type": self.output_type,
                "dtype": "float32" if logits else "uint8",
                "shape": [self.batch, NUM_CLASSES, height, width] if logits else [self.batch, height, width],
                **({"confidence": "confidence", "temperature": self.temperature} if self.temperature else {}),
            },
            "dataset": {"name": "cityscapes", "classes": ["a", "b", "c", "d", "e"],
                        "palette": [[i, i, i] for i in range(NUM_CLASSES)], "ignore_id": 255, "label_ids": None},
            "source": {"checkpoint": "best.ckpt", "checkpoint_sha256": "0" * 64},
            "versions": {"project": "0.1.0"},
            "models": [{"format": "onnx", "file": "tiny.onnx", "batch": self.batch,
                        "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()}],
        }

    @property
    def yaml_path(self) -> Path:
        """The manifest's file."""
        return self.folder / "deploy.yaml"

    def add_file(self, name: str, text: str, batch: int, **facts: object) -> Path:
        """Write a further model file, list it by its suffix as the format, and save the manifest."""
        (self.folder / name).write_text(text, encoding="utf-8")
        self.manifest["models"].append({"format": name.rpartition(".")[2], "file": name, "batch": batch, **facts})
        self.save_with_hashes()
        return self.folder / name

    def save_with_hashes(self) -> None:
        """Write ``deploy.yaml`` with the SHA-256 that the listed files have now."""
        for entry in self.manifest["models"]:
            entry["sha256"] = hashlib.sha256((self.folder / entry["file"]).read_bytes()).hexdigest()
        self.save()

    def save(self) -> None:
        """Write ``deploy.yaml``."""
        self.yaml_path.write_text(yaml.safe_dump(self.manifest, sort_keys=False), encoding="utf-8")

    def tensor(self, bgr: np.ndarray) -> np.ndarray:
        """The float32 (3, H, W) input of an image, by the manifest, in NumPy and cv2 alone."""
        pixels = self.pixels(bgr).astype(np.float64)
        spec = self.manifest["input"]
        normal = (pixels * spec["value_range"] / 255 - np.array(spec["mean"])) / np.array(spec["std"])
        return normal.astype(np.float32).transpose(2, 0, 1)

    def pixels(self, bgr: np.ndarray) -> np.ndarray:
        """The uint8 (H, W, 3) image after resizing and padding, in the manifest's colour order."""
        spec = self.manifest["input"]
        height, width = spec["shape"][1:3] if spec["layout"] == "NHWC" else spec["shape"][2:]
        resize = spec["resize"]
        if resize["rule"] == "exact":
            target = tuple(resize["size"])
        elif resize["rule"] == "none":
            target = bgr.shape[:2]
        elif isinstance(resize["size"], list):
            scale = min(resize["size"][0] / bgr.shape[0], resize["size"][1] / bgr.shape[1])
            target = tuple(int(length * scale + 0.5) for length in bgr.shape[:2])
        else:
            side = (min if resize["rule"] == "short_side" else max)(bgr.shape[:2])
            target = tuple(int(length * resize["size"] / side + 0.5) for length in bgr.shape[:2])
        if target != bgr.shape[:2]:
            bgr = cv2.resize(bgr, target[::-1], interpolation=cv2.INTER_LINEAR)
        image = bgr[..., ::-1] if spec["color_order"] == "RGB" else bgr
        padded = np.empty((height, width, 3), np.uint8)
        padded[:] = spec["pad_value"]
        padded[:target[0], :target[1]] = image
        return padded

    def logits(self, bgr: np.ndarray) -> np.ndarray:
        """(classes, H, W) float32 by NumPy."""
        return np.einsum("oc,chw->ohw", self.weight, self.tensor(bgr)) + self.bias[:, None, None]


    def confidence(self, bgr: np.ndarray) -> np.ndarray:
        """(H, W) float64, 255 times the probability of the best class, by NumPy."""
        return 255 * softmax(self.logits(bgr)[None].astype(np.float64) / self.temperature).max(1)[0]


def make_images(folder: Path, count: int, seed: int, height: int = 24, width: int = 40) -> dict[str, np.ndarray]:
    """Write random BGR images as ``img_<i>.png`` and return them by sample name."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for i in range(count):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"img_{i:03d}.png"), image)
        images[f"img_{i:03d}"] = image
    return images


def read_summary(folder: Path) -> dict:
    """``summary.json`` of a result folder."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def read_ids(path: Path) -> np.ndarray:
    """A class-id PNG, which must be 8-bit grey."""
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert ids is not None, path
    assert ids.dtype == np.uint8
    assert ids.ndim == 2
    return ids


def assert_ids_match(ids: np.ndarray, logits: np.ndarray) -> None:
    """Class ids are the arg-max, up to ties that float rounding may break either way."""
    chosen = np.take_along_axis(logits, ids[None].astype(np.int64), axis=0)[0]
    assert (logits.max(axis=0) - chosen).max() < 1e-4


