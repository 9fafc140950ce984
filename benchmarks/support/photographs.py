"""Samples with the statistics of photographs, for measuring the loader."""
import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mindseg.data.datasets import CITYSCAPES
from mindseg.data.samples import Sample


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
