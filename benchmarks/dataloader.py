"""Measures how close the loader comes to the decoding limit of this machine, and whether its memory stays flat.

The limit is all cores doing nothing but `cv2.imdecode` on the very image and label bytes that the loader reads. The
loader can pass it where it need not decode the whole image.
Ratios are printed, nothing is asserted: absolute numbers belong to the machine.
"""
import argparse
import contextlib
import io
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
from PIL import Image

from mindseg.config import load_config
from mindseg.data.datasets import CITYSCAPES
from mindseg.data.loader import Loader, train_transform
from mindseg.data.mindrecord import CODECS, Packing, build_records
from mindseg.data.pipeline import LoaderOptions
from mindseg.data.samples import Sample
from mindseg.data.sources import FolderSource, RecordSource, as_bytes
from mindseg.data.transforms import TrainTransform
from mindseg.errors import run_main

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "fast_scnn" / "fast_scnn_cityscapes.yaml"
EXAMPLES = """examples:
  python benchmarks/dataloader.py
  python benchmarks/dataloader.py --codec webp --seconds 20
  python benchmarks/dataloader.py --memory"""


def photograph(seed: int, height: int = 1024, width: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """A picture with the statistics of a photograph, and its label map.

    Dead leaves (Lee, Mumford, Huang 2001): discs of power-law sizes that cover each other, each with its own colour and
    grain, seen through a slightly soft lens and a noisy sensor. At 1024x2048 the PNG has about 2.3 MB, the WebP 1.9 MB,
    and they take as long to decode as those of street scenes; smoother synthetic scenes are three times too easy.

    Returns:
        uint8 BGR image (H, W, 3) and uint8 label (H, W) of Cityscapes label ids.
    """
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    label = np.full((height, width), CITYSCAPES.train_to_id[0], np.uint8)
    grains = [cv2.resize(rng.standard_normal((height >> k, width >> k)).astype(np.float32), (width, height),
                         interpolation=cv2.INTER_CUBIC) for k in range(6)]
    for radius in sorted(1 / np.sqrt(rng.uniform(1 / 400 ** 2, 1 / 6 ** 2, 3000)), reverse=True):
        x, y, reach = int(rng.integers(width)), int(rng.integers(height)), int(radius) + 1
        box = np.s_[max(0, y - reach):y + reach, max(0, x - reach):x + reach]
        mask = np.zeros(label[box].shape, np.uint8)
        cv2.ellipse(mask, (x - max(0, x - reach), y - max(0, y - reach)),
                    (int(radius), max(1, int(radius * rng.uniform(0.3, 1)))), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        grain = grains[int(rng.integers(6))][box] * rng.uniform(0, 8)
        shade = np.linspace(0, rng.uniform(-20, 20), mask.shape[1])
        patch = (grain + shade)[..., None] + rng.uniform(20, 150) + rng.normal(0, 12, 3)
        image[box][mask > 0] = patch[mask > 0]
        if radius > 12:
            label[box][mask > 0] = CITYSCAPES.train_to_id[int(rng.integers(19))]
    image = cv2.GaussianBlur(image, (0, 0), 0.8) + 0.55 * rng.standard_normal(image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), label


def write_png(pixels: np.ndarray, path: Path) -> None:
    """Writes with all PNG filters and zlib level 6, as cameras' tools do; OpenCV's quick setting decodes faster."""
    stream = io.BytesIO()
    Image.fromarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels).save(stream, "PNG", compress_level=6)
    path.write_bytes(stream.getvalue())


def make_samples(folder: Path, count: int, distinct: int = 8) -> list[Sample]:
    """``count`` samples; all but the first ``distinct`` are links to those, so that 2000 need no 5 GB."""
    samples = []
    for i in range(count):
        image, label = folder / f"s{i:05d}.png", folder / f"s{i:05d}_label.png"
        if image.exists():
            pass
        elif i < distinct:
            picture, ids = photograph(i)
            write_png(picture, image)
            write_png(ids, label)
        else:
            os.link(folder / f"s{i % distinct:05d}.png", image)
            os.link(folder / f"s{i % distinct:05d}_label.png", label)
        samples.append(Sample(image.stem, image, label))
    return samples


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


def measure(codec: str, samples: list[Sample], folder: Path, args: argparse.Namespace) -> None:
    """Prints the line of one codec; ``folder`` as codec reads the files themselves."""
    lut = CITYSCAPES.label_lut()
    if codec == "folder":
        source = FolderSource(samples)
    else:
        output = folder / f"{codec}.mindrecord"
        if not output.exists():
            packing = Packing(codec.removesuffix("+"), fast_labels=codec.endswith("+"))
            build_records(samples, output, CITYSCAPES, lut, packing, {})
        source = RecordSource(output)
    rows = source.rows(range(8)).create_dict_iterator(num_epochs=1, output_numpy=True)
    pairs = [(as_bytes(row["data"]).copy(), as_bytes(row["label"]).copy()) for row in rows]
    options = LoaderOptions(args.batch_size, num_workers=args.num_workers, prefetch=args.prefetch)
    loader = Loader(source, CITYSCAPES, lut, recipe(), options)
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


def main() -> None:
    """Runs the comparison, or the memory measurement."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*CODECS, *(f"{codec}+" for codec in CODECS), "folder"]
    parser.add_argument("--codec", nargs="*", default=choices, choices=choices, metavar="CODEC",
                        help=f"of {' '.join(choices)}; + means --fast_labels (default: all)")
    parser.add_argument("--folder", type=Path, help="keep the samples here and use those of an earlier run")
    parser.add_argument("--samples", type=int, default=128, help="samples in the data set (default: 128)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each measurement (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of limit and loader in turn (default: 3)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prefetch", type=int, default=4)
    parser.add_argument("--memory", action="store_true", help="measure memory for 20, 200 and 2000 images instead")
    parser.add_argument("--memory_child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_child:
        return peak_memory(args.memory_child, 100)
    if args.memory:
        for count in (20, 200, 2000):
            subprocess.run([sys.executable, __file__, "--memory_child", str(count)], check=True)
        return None
    print(f"{os.cpu_count()} cores, OpenCV {cv2.__version__}; 1024x2048, crop {recipe().geometry.size}, "
          f"batch {args.batch_size}, {args.num_workers} workers")
    with contextlib.nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        samples = make_samples(Path(folder), args.samples)
        for codec in args.codec:
            measure(codec, samples, Path(folder), args)
    return None


if __name__ == "__main__":
    run_main(main)
