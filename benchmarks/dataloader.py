"""Measures the loader: its speed beside the decoding limit, the cost of its stages, Python's lock, ranks, and memory.

The limit is all cores doing nothing but `cv2.imdecode` on the very image and label bytes that the loader reads. The
loader can pass it where it need not decode the whole image. Only one thread of a process can hold Python's lock, so the
time that an image holds it limits the images per second of a process, however many workers it has.
Ratios and figures are printed, nothing is asserted: absolute numbers belong to the machine.
"""
import argparse
import contextlib
import gc
import itertools
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from support import lock, stages
from support.photographs import make_samples

from mindseg.config import load_config
from mindseg.data.datasets import CITYSCAPES
from mindseg.data.loader import Loader, train_transform
from mindseg.data.mindrecord import CODECS, Packing, build_records
from mindseg.data.pipeline import LoaderOptions
from mindseg.data.samples import Sample
from mindseg.data.sources import FolderSource, RecordSource, Source, read_samples
from mindseg.data.transforms import TrainTransform
from mindseg.errors import run_main

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "fast_scnn" / "fast_scnn_cityscapes.yaml"
PARTS = ("speed", "stages", "ranks", "memory")
_EPOCH = 2975       # least images of an epoch, as many as Cityscapes has
EXAMPLES = """examples:
  python benchmarks/dataloader.py
  python benchmarks/dataloader.py --part speed --codec webp --seconds 20
  python benchmarks/dataloader.py --part stages --codec folder jpeg
  python benchmarks/dataloader.py --part memory"""


def recipe() -> TrainTransform:
    """The augmentation of the Fast-SCNN recipe."""
    return train_transform(load_config(RECIPE).data, CITYSCAPES.label_lut())


@dataclass
class Speed:
    """Images per second, and processor time of one image in ms (which other work on the machine hardly changes)."""
    rate: float
    cpu: float


class Clock:
    """Counts images from now on."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def speed(self, images: int) -> Speed:
        return Speed(images / (time.perf_counter() - self.wall), 1000 * (time.process_time() - self.cpu) / images)


def decode_speed(pairs: list[tuple[np.ndarray, np.ndarray]], seconds: float) -> Speed:
    """All cores running only ``cv2.imdecode`` on these (image, label) bytes."""
    workers = os.cpu_count() or 1
    clock = Clock()

    def work(first: int) -> int:
        done = 0
        while time.perf_counter() - clock.wall < seconds:
            for data in pairs[(first + done) % len(pairs)]:
                cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            done += 1
        return done

    with ThreadPoolExecutor(workers) as pool:
        return clock.speed(sum(pool.map(work, range(workers))))


def loader_speed(loader: Loader, seconds: float) -> Speed:
    """The loader in its steady state: what the queues hold at first is not counted."""
    warm_up, batches, clock = 2 * loader.options.prefetch, 0, Clock()
    for epoch in itertools.count():
        for _ in loader.epoch(epoch):
            batches += 1
            if batches == warm_up:
                clock = Clock()
            elif batches > warm_up and time.perf_counter() - clock.wall > seconds:
                return clock.speed((batches - warm_up) * loader.options.batch_size)
    raise AssertionError("epochs never end")


def open_codec(codec: str, samples: list[Sample], folder: Path) -> Source:
    """The samples in an encoding, packed if need be; ``folder`` as codec reads the files themselves."""
    if codec == "folder":
        return FolderSource(samples)
    output = folder / f"{codec}.mindrecord"
    if not output.exists():
        packing = Packing(codec.removesuffix("+"), fast_labels=codec.endswith("+"))
        build_records(samples, output, CITYSCAPES, CITYSCAPES.label_lut(), packing, {})
    return RecordSource(output)


def make_loader(source: Source, args: argparse.Namespace, workers: int, rank: int = 0, size: int = 1) -> Loader:
    repeat = -(-_EPOCH // len(source))      # each epoch starts threads
    options = LoaderOptions(args.batch_size, rank, size, repeat=repeat, num_workers=workers, prefetch=args.prefetch)
    return Loader(source, CITYSCAPES, CITYSCAPES.label_lut(), recipe(), options)


def speed(codec: str, source: Source, args: argparse.Namespace) -> None:
    """Prints the loader's speed beside the limit."""
    pairs = [(data.copy(), label.copy()) for _, data, label in read_samples(source, range(8))]
    loader = make_loader(source, args, args.num_workers)
    # Measured in turns, because other work on the machine slows both.
    limits, speeds = [], []
    for _ in range(args.rounds):
        limits.append(decode_speed(pairs, args.seconds))
        speeds.append(loader_speed(loader, args.seconds))
    ratios = [speed.rate / limit.rate for speed, limit in zip(speeds, limits, strict=True)]
    sizes = [np.mean([p[i].size for p in pairs]) / 1e6 for i in (0, 1)]
    cpu = [float(np.median([speed.cpu for speed in column])) for column in (limits, speeds)]
    print(f"{codec:<7} {sizes[0]:4.2f} + {sizes[1]:4.2f} MB   limit {np.median([s.rate for s in limits]):6.1f}/s   "
          f"loader {np.median([s.rate for s in speeds]):6.1f}/s   ratio {np.median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f})   CPU {cpu[0]:5.1f} and {cpu[1]:5.1f} ms, {cpu[0] / cpu[1]:.2f}",
          flush=True)


def lock_and_stages(codec: str, source: Source, args: argparse.Namespace) -> None:
    """Prints what each stage of a sample costs and how long it holds Python's lock, then the whole loader's share."""
    gc.collect()        # ends the threads of the loader before
    loader, batches = make_loader(source, args, 1), max(1, args.stage_samples // args.batch_size)

    def run() -> None:
        for _ in itertools.islice(itertools.chain.from_iterable(map(loader.epoch, itertools.count())), batches):
            pass

    calls = stages.record(run)
    for name, _, _ in stages.STAGES:
        if calls[name]:
            print_use(codec, name, *stages.cost(calls[name], batches * args.batch_size))
    calls.clear()
    speeds: list[Speed] = []
    use = lock.measure(lambda: speeds.append(loader_speed(loader, args.seconds)))
    print_use(codec, "whole loader", speeds[0].cpu, use)


def print_use(codec: str, name: str, used: float, use: lock.Use) -> None:
    """Prints ``used``, the processor time of an image in ms, and its part with the lock held: a process's limit."""
    held = used * use.share
    print(f"{codec:<7} {name:<13} {used:7.2f} ms   lock {held:6.3f} ms, {100 * use.share:.1f} % "
          f"(standard error {100 * use.error:.1f}): {1000 / max(held, 1e-3):.0f} images/s a process", flush=True)


def ranks(codec: str, folder: Path, args: argparse.Namespace) -> None:
    """Prints the loaders' speed for numbers of processes and workers that the cores allow; each has its own cores."""
    cores = sorted(os.sched_getaffinity(0))
    powers = [2 ** k for k in range(len(cores).bit_length())]
    for size, workers in ((size, workers) for size in powers for workers in powers if size * workers <= len(cores)):
        own = [cores[rank * workers:(rank + 1) * workers] for rank in range(size)]
        command = [sys.executable, __file__, "--folder", str(folder), "--codec", codec, "--samples", str(args.samples),
                   "--seconds", str(args.seconds), "--batch_size", str(args.batch_size)]
        children = [subprocess.Popen([*command, "--rank_child", str(rank), str(size), *map(str, own[rank])], text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE) for rank in range(size)]
        for child in children:
            child.stdout.readline()     # ready
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        rates = [float(child.communicate()[0].splitlines()[-1]) for child in children]
        print(f"{codec:<7} {size} processes of {workers} workers: {sum(rates):.1f} images/s "
              f"({sum(rates) / (size * workers):.1f} a core)", flush=True)


def rank_child(args: argparse.Namespace, samples: list[Sample]) -> None:
    """One of the processes of :func:`ranks`: reports that it is ready, waits for the others, prints its speed."""
    rank, size, *cores = args.rank_child
    os.sched_setaffinity(0, cores)
    loader = make_loader(open_codec(args.codec[0], samples, args.folder), args, len(cores), rank, size)
    print("ready", flush=True)
    sys.stdin.readline()
    print(loader_speed(loader, args.seconds).rate, flush=True)


def peak_memory(count: int, batches: int) -> None:
    """Child process: runs a folder loader over ``count`` samples and prints its memory after every quarter."""
    with tempfile.TemporaryDirectory() as folder:
        source = FolderSource(make_samples(Path(folder), count))
        loader = Loader(source, CITYSCAPES, CITYSCAPES.label_lut(), recipe(), LoaderOptions(4))
        marks, done, epoch = [], 0, 0
        while done < batches:
            for _ in loader.epoch(epoch):
                done += 1
                if done % (batches // 4) == 0:
                    marks.append(resident_megabytes())
                if done >= batches:
                    break
            epoch += 1
        print(f"{count:5d} images: resident {' -> '.join(f'{m:.0f}' for m in marks)} MB after "
              f"{', '.join(str(batches // 4 * k) for k in (1, 2, 3, 4))} batches of 4", flush=True)


def resident_megabytes() -> float:
    """Memory of this process as the kernel counts it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*CODECS, *(f"{codec}+" for codec in CODECS), "folder"]
    parser.add_argument("--part", choices=PARTS, help="measure only this (default: all but memory)")
    parser.add_argument("--codec", nargs="*", default=choices, choices=choices, metavar="CODEC",
                        help=f"of {' '.join(choices)}; + means --fast_labels (default: all; ranks: the first)")
    parser.add_argument("--folder", type=Path, help="keep the samples here and use those of an earlier run")
    parser.add_argument("--samples", type=int, default=128, help="samples in the data set (default: 128)")
    parser.add_argument("--stage_samples", type=int, default=32, help="samples of the stages (default: 32)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each measurement (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of limit and loader in turn (default: 3)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prefetch", type=int, default=4)
    parser.add_argument("--memory_child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank_child", type=int, nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Runs the measurements that were asked for."""
    args = parse_args()
    if args.memory_child:
        return peak_memory(args.memory_child, 100)
    if args.part == "memory":
        for count in (20, 200, 2000):
            subprocess.run([sys.executable, __file__, "--memory_child", str(count)], check=True)
        return None
    if args.rank_child:
        return rank_child(args, make_samples(args.folder, args.samples))
    print(f"{os.cpu_count()} cores, OpenCV {cv2.__version__}; 1024x2048, crop {recipe().geometry.size}, "
          f"batch {args.batch_size}, {args.num_workers} workers")
    with contextlib.nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        samples = make_samples(folder, args.samples)
        for part in [args.part] if args.part else PARTS[:3]:
            if part == "ranks":
                open_codec(args.codec[0], samples, folder)      # packed once, not by every process
                ranks(args.codec[0], folder, args)
                continue
            for codec in args.codec:
                {"speed": speed, "stages": lock_and_stages}[part](codec, open_codec(codec, samples, folder), args)
    return None


if __name__ == "__main__":
    run_main(main)
