"""Throughput of offline inference on a CPU: OpenVINO's benchmark_app, the runner's bench and run, and onnxruntime.

``run`` goes from images on disk to PNG masks on disk. All compute in float32 on the same model, in turns, and the best
of the rounds counts. Ratios are printed, nothing is asserted: absolute numbers belong to the machine.
"""
import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.streets import make_streets

import mindseg  # noqa: F401  (prepares the environment before MindSpore is loaded)
from mindseg.errors import UserError, run_main
from mindseg.manifest import Manifest, load_manifest

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "ascend310_infer" / "out" / "segment"
EXAMPLES = """examples:
  python benchmarks/offline.py
  python benchmarks/offline.py --manifest export/deploy.yaml --images 50 --rounds 5 --streams 2
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, help="exported model (default: Fast-SCNN with random weights)")
    parser.add_argument("--images", type=int, default=24, help="images, and inferences of the others (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (%(default)s)")
    parser.add_argument("--height", type=int, default=1024, help="rows of the default model (%(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="columns of the default model (%(default)s)")
    parser.add_argument("--streams", type=int, help="inferences at once (default: OpenVINO's choice)")
    return parser.parse_args()


def export_default(folder: Path, height: int, width: int) -> Path:
    """Exports Fast-SCNN with random weights: its speed does not depend on them."""
    import mindspore as ms

    from mindseg.config import load_config
    from mindseg.models import build_network

    config = ROOT / "configs/fast_scnn/fast_scnn_cityscapes.yaml"
    ms.save_checkpoint(build_network(load_config(config)), str(folder / "random.ckpt"))
    check([sys.executable, ROOT / "export.py", "--config", config, "--ckpt_path", folder / "random.ckpt",
           "--file_format", "ONNX", "--output", folder / "export",
           "--set", f"export.height={height}", "--set", f"export.width={width}"])
    return folder / "export" / "deploy.yaml"


def make_images(folder: Path, count: int, height: int, width: int) -> None:
    """Writes ``count`` streets as PNG, of which at most four differ, because they take long to make."""
    folder.mkdir()
    streets = make_streets(folder.with_name(f"{folder.name}_streets"), "val", min(count, 4), 5, height, width)
    for index in range(count):
        shutil.copy(streets[index % len(streets)], folder / f"{index:06d}.png")


def check(command: list) -> str:
    """Runs a program and returns what it printed.

    Raises:
        UserError: It failed.
    """
    # The cap is against a fault of MindSpore's oneDNN; OpenVINO and onnxruntime do without.
    env = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise UserError(f"{command[0]} failed with status {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


def benchmark_app(model: Path, args: argparse.Namespace) -> float:
    """Images a second that OpenVINO's own program reaches."""
    command = [Path(sys.executable).with_name("benchmark_app"), "-m", model, "-d", "CPU", "-infer_precision", "f32",
               "-niter", args.images]
    text = check(command + (["-nstreams", args.streams, "-nireq", args.streams] if args.streams else []))
    return float(re.search(r"Throughput:\s+([\d.]+)", text).group(1))


def runner(manifest: Manifest, *words: object) -> dict:
    """Figures that ``segment bench`` or ``segment run`` report."""
    text = check([RUNNER, words[0], "--backend", "openvino", "--manifest", manifest.path, *words[1:]])
    return json.loads(text) if words[0] == "bench" else {}


def onnxruntime_rate(manifest: Manifest, model: Path, count: int) -> float:
    """Images a second of onnxruntime, one inference at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    shape = [max(side, 1) for side in manifest.input.shape]
    dtype = np.uint8 if manifest.input.dtype == "uint8" else np.float32
    image = np.random.default_rng(0).integers(0, 3, shape).astype(dtype)
    session.run(None, {manifest.input.name: image})
    started = time.perf_counter()
    for _ in range(count):
        session.run(None, {manifest.input.name: image})
    return count * shape[0] / (time.perf_counter() - started)


def children_seconds() -> float:
    """Processor time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processor_seconds(call: Callable[[], object]) -> float:
    """Processor time of the programs that ``call`` runs."""
    before = children_seconds()
    call()
    return children_seconds() - before


def mean_size(folder: Path) -> float:
    """Mean bytes of the PNG files of a folder; 0 if there are none."""
    sizes = [path.stat().st_size for path in folder.glob("*.png")]
    return sum(sizes) / max(len(sizes), 1)


def measure(manifest: Manifest, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Best images a second of each program; processor time and bytes on disk that an image costs."""
    model = manifest.model_path(manifest.find("onnx"))
    streams = ["--streams", args.streams] if args.streams else []
    images, few, output = folder / "images", folder / "few", folder / "out"
    make_images(images, args.images, *manifest.input.size)
    make_images(few, 2, *manifest.input.size)
    rates: dict[str, list[float]] = {"benchmark_app": [], "bench": [], "run": [], "onnxruntime": []}

    def run(source: Path) -> None:
        runner(manifest, "run", "--input", source, "--output", output, *streams)

    def bench(count: int) -> dict:
        return runner(manifest, "bench", "--iterations", count, "--json", *streams)

    for _ in range(args.rounds):
        rates["benchmark_app"].append(benchmark_app(model, args))
        rates["bench"].append(bench(args.images)["images_per_second"])
        run(images)
        rates["run"].append(json.loads((output / "summary.json").read_text(encoding="utf-8"))["images_per_second"])
        rates["onnxruntime"].append(onnxruntime_rate(manifest, model, max(args.images // 4, 2)))
    found = {name: max(values) for name, values in rates.items()}
    batches = max(manifest.find("onnx").batch, 1)
    more = args.images - 2
    found["bench_cpu"] = (processor_seconds(lambda: bench(args.images)) - processor_seconds(lambda: bench(2))
                          ) / more / batches
    found["run_cpu"] = (processor_seconds(lambda: run(images)) - processor_seconds(lambda: run(few))) / more
    found["bytes_read"] = mean_size(images)
    found["bytes_written"] = mean_size(output)
    return found


def main() -> None:
    args = parse_args()
    if args.images < 4:
        raise UserError(f"--images {args.images}: give at least 4")
    if not RUNNER.exists():
        check(["bash", ROOT / "ascend310_infer" / "build.sh"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = load_manifest(args.manifest or export_default(folder, args.height, args.width))
        found = measure(manifest, folder, args)
    height, width = manifest.input.size
    print(f"{manifest.model['name']}, {height}x{width}, batch {manifest.find('onnx').batch}, float32, "
          f"{args.images} images, {args.rounds} rounds, {os.cpu_count()} cores")
    for key, text in (("benchmark_app", "OpenVINO benchmark_app"), ("bench", "segment bench"),
                      ("run", "segment run, disk to disk"), ("onnxruntime", "onnxruntime, one at a time")):
        print(f"{text:28} {found[key]:7.2f} images/s")
    print(f"bench / benchmark_app {found['bench'] / found['benchmark_app']:.2f}   "
          f"run / bench {found['run'] / found['bench']:.2f}   bench / onnxruntime "
          f"{found['bench'] / found['onnxruntime']:.2f}")
    print(f"processor time an image: bench {1000 * found['bench_cpu']:.0f} ms, run {1000 * found['run_cpu']:.0f} ms, "
          f"ratio {found['bench_cpu'] / found['run_cpu']:.2f}")
    print(f"disk an image: {found['bytes_read'] / 1e6:.2f} MB read, {found['bytes_written'] / 1e6:.3f} MB written")


if __name__ == "__main__":
    run_main(main)
