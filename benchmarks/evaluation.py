"""Measures what evaluation costs beside the network: scoring, the whole loop, time and memory of scales and flips.

Ratios are printed, nothing is asserted: absolute numbers belong to the machine.
"""
import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from support.streets import label_path, make_streets

import mindseg  # noqa: F401  (prepares the environment before MindSpore is loaded)
from mindseg.config import Config, load_config
from mindseg.data.datasets import CITYSCAPES
from mindseg.data.loader import create_loader
from mindseg.errors import run_main
from mindseg.evaluation.cityscapes import instance_counts
from mindseg.evaluation.evaluator import evaluate
from mindseg.inference.network import NetworkPredictor
from mindseg.metrics import ConfusionMatrix
from mindseg.models import build_network
from mindseg.runtime import setup_runtime

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  python benchmarks/evaluation.py
  python benchmarks/evaluation.py --part loop --images 50
  python benchmarks/evaluation.py --part memory --model bisenetv2"""
PARTS = ("scoring", "loop", "passes", "memory")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="measure only this")
    parser.add_argument("--images", type=int, default=12, help="images of the loop (%(default)s)")
    parser.add_argument("--mode", default="msflip", help="eval.mode of the passes and of memory (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the passes (%(default)s)")
    parser.add_argument("--height", type=int, default=1024, help="rows (%(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="columns (%(default)s)")
    parser.add_argument("--model", default="fast_scnn", help="network (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="runtime.threads of the passes (%(default)s)")
    return parser.parse_args()


def median_ms(call: Callable[[], object], times: int = 7) -> float:
    """Processor time of a call in milliseconds: one core, whatever else runs."""
    found = []
    for _ in range(times):
        started = time.process_time()
        call()
        found.append(1000 * (time.process_time() - started))
    return float(np.median(found))


def scoring(size: tuple[int, int]) -> None:
    """Our confusion matrix and iIoU against cityscapesScripts' Python path, on the same picture."""
    import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as official

    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        (picture,) = make_streets(Path(folder), "val", 1, 3, *size)
        names = [str(label_path(picture, kind)) for kind in ("pred", "labelIds", "instanceIds")]
        label_ids, instance_ids = (cv2.imread(name, cv2.IMREAD_UNCHANGED) for name in names[1:])
        label = CITYSCAPES.id_to_train[label_ids]
        pred = np.roll(np.where(label == 255, 0, label), 9, axis=1).astype(np.uint8)
        ours = median_ms(lambda: ConfusionMatrix(19).update(pred, label))
        instances = median_ms(lambda: instance_counts().update(pred, instance_ids))
        cv2.imwrite(names[0], np.array([*CITYSCAPES.train_to_id, *[0] * 237], np.uint8)[pred])
        official.args.quiet, official.args.JSONOutput = True, False

        def theirs(with_instances: bool) -> float:
            official.args.evalInstLevelScore = with_instances
            matrix, stats = official.generateMatrix(official.args), official.generateInstanceStats(official.args)
            return median_ms(lambda: official.evaluatePair(*names[:2], matrix, stats, {}, official.args), 3)

        reading = median_ms(lambda: [np.array(official.Image.open(name)) for name in names[:2]], 3)
        plain, whole = theirs(False) - reading, theirs(True) - reading
    print(f"scoring one {size[0]}x{size[1]} image: {ours:.1f} ms; cityscapesScripts, without reading the files, "
          f"{plain:.1f} ms ({plain / ours:.1f} times as much)")
    print(f"with instances: {ours + instances:.1f} ms; cityscapesScripts {whole:.1f} ms "
          f"({whole / (ours + instances):.1f} times as much)")


def config(root: str, model: str, *overrides: str) -> Config:
    path = ROOT / "configs" / model / f"{model}_cityscapes.yaml"
    if not path.exists():
        path = ROOT / "configs" / "_base_" / "cityscapes.yaml"
    return load_config(path, [f"model.name={model}", f"data.root={root}", "model.num_classes=19",
                              "runtime.device_target=CPU", *overrides])


def loop(args: argparse.Namespace) -> None:
    """The evaluation of a folder: what part of the time is not the network's."""
    from mindspore import Tensor

    with tempfile.TemporaryDirectory() as folder:
        streets = make_streets(Path(folder), "val", min(args.images, 4), 3, args.height, args.width)
        for index in range(len(streets), args.images):
            copy_street(Path(folder), streets[index % len(streets)], index)
        cfg = config(folder, args.model)
        setup_runtime(cfg.runtime)
        segment = NetworkPredictor(cfg, build_network(cfg), CITYSCAPES)
        image = cv2.imread(str(streets[0]))[None, ..., ::-1].copy()
        segment(image, image.shape[1:3])     # compiles
        loader = create_loader(cfg, "eval")
        started = time.process_time()
        scores = evaluate(segment, loader).scores
        used = time.process_time() - started
    pixels = Tensor(image)
    bare, bare_used = [], median_ms(lambda: segment._to_ids(pixels).asnumpy()) / 1000
    for _ in range(7):
        started = time.perf_counter()
        segment._to_ids(pixels).asnumpy()
        bare.append(time.perf_counter() - started)
    seconds, bare_seconds = scores["seconds"], args.images * float(np.median(bare))
    print(f"evaluating {args.images} images of {args.height}x{args.width} with {args.model}: {seconds:.1f} s, "
          f"{100 * (1 - scores['model_seconds'] / seconds):.1f} % of it outside the calls of the network; "
          f"the bare network, nothing else running: {bare_seconds:.1f} s")
    other = 1 - args.images * bare_used / used
    print(f"in processor time: {used:.1f} s, {100 * other:.1f} % of it not the network's")


def passes(args: argparse.Namespace) -> None:
    """Scales and flips of one image: what part of the time is not the network's.

    The network's time is that of its calls, from images to logits before the resize that ends some networks.
    """
    cfg = config(".", args.model, f"eval.mode={args.mode}", f"runtime.threads={args.threads}")
    setup_runtime(cfg.runtime)
    segment = NetworkPredictor(cfg, build_network(cfg), CITYSCAPES)
    size, run, inside = (args.height, args.width), segment._run, []
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)

    def timed(*arguments):
        results = []

        def call() -> None:
            results.append(run(*arguments))
            results[0][0, 0, 0, 0].asnumpy()    # waits for the end without copying all

        inside.append(seconds(call))
        return results[0]

    segment._run = timed
    rounds = []
    for _ in range(args.rounds + 1):
        inside.clear()
        whole = seconds(lambda: segment(image, size))
        rounds.append((whole, np.sum(inside, 0)))
    rounds = np.array(rounds[1:])       # round, all and network, time and processor time; the first round compiles
    shares = 100 * (1 - rounds[:, 1] / rounds[:, 0])
    print(f"{len(inside)} passes ({args.mode}) over {args.height}x{args.width} with {args.model}: "
          f"{np.median(rounds[:, 0, 0]):.2f} s, {np.median(shares[:, 0]):.1f} % of it outside the network; in "
          f"processor time {np.median(shares[:, 1]):.1f} % ({', '.join(f'{share:.1f}' for share in shares[:, 1])})")


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a call takes, and processor time of all threads."""
    started, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - used


def copy_street(root: Path, picture: Path, index: int) -> None:
    """Copies picture and labels of a street under another frame number, because streets take long to make."""
    old = picture.name.removesuffix("_leftImg8bit.png")
    new = f"{old.rpartition('_')[0]}_{100 + index:06d}"
    for path in root.glob(f"*/val/*/{old}_*"):
        shutil.copy(path, path.with_name(path.name.replace(old, new)))


def memory(args: argparse.Namespace) -> None:
    """Peak resident memory of a fresh process that segments one image, by default with six scales and their flips."""
    command = [sys.executable, __file__, "--part", "memory", "--model", args.model, "--mode", args.mode,
               "--height", str(args.height), "--width", str(args.width)]
    text = subprocess.run(command, env={**os.environ, "SEGMENTATION_BENCHMARK_CHILD": "1"}, check=True,
                          capture_output=True, text=True).stdout
    print(text.splitlines()[-1])


def memory_child(args: argparse.Namespace) -> None:
    cfg = config(".", args.model, f"eval.mode={args.mode}")
    setup_runtime(cfg.runtime)
    segment = NetworkPredictor(cfg, build_network(cfg), CITYSCAPES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    segment(np.zeros((1, args.height, args.width, 3), np.uint8), (args.height, args.width))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{args.mode} over {cfg.eval.scales} at {args.height}x{args.width} with {args.model}: "
          f"peak {peak / 2**20:.2f} GiB ({before / 2**20:.2f} GiB before the first image)")


def main() -> None:
    args = parse_args()
    if "SEGMENTATION_BENCHMARK_CHILD" in os.environ:
        memory_child(args)
        return
    for part in [args.part] if args.part else PARTS:
        if part == "scoring":
            scoring((args.height, args.width))
        else:
            {"loop": loop, "passes": passes, "memory": memory}[part](args)


if __name__ == "__main__":
    run_main(main)
