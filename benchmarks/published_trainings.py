"""Finds the amounts behind the table of docs/ascend.md that compares the planner with published trainings.

Counts: operators of a step on one card, with the losses as those projects wrote them. Loaders: seconds in which one
core of this machine makes a sample as those projects' loaders do. tests/unit/test_planner.py keeps both.
"""
import argparse
import io
import random
import time
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFilter
from support.photographs import photograph

from mindseg import losses
from mindseg.commands import plan
from mindseg.commands.arguments import read_config
from mindseg.commands.train import divide_batch
from mindseg.compat import SoftmaxCrossEntropy, cast, transpose
from mindseg.errors import run_main
from mindseg.models import build_network
from mindseg.planner.costs import Costs

from mindspore import Tensor  # isort: skip  (after mindseg, which prepares the environment)
from mindspore import dtype as mstype  # isort: skip

# Configuration, cards, and changes to it. The older FCN-8s and BiSeNet V2 compute in float16.
_PYTORCH = ["data.crop_size=[480,480]", "train.amp_level=O2", "optim.name=sgd", "train.sync_bn=never"]
TRAININGS = {
    "FCN-8s": ("fcn8s_voc_modelzoo", 1, []),
    "BiSeNet V2": ("bisenetv2_cityscapes_modelzoo", 4, ["train.amp_level=O3", "train.sync_bn=never"]),
    "Fast-SCNN, four": ("fast_scnn_cityscapes_modelzoo", 4, ["train.global_batch=8", "train.run_eval=true"]),
    "Fast-SCNN, eight": ("fast_scnn_cityscapes_modelzoo", 8, []),
    "ENet": ("enet_cityscapes_stage3", 1, []),
    "ENet, encoder": ("enet_cityscapes_stage1", 1, []),
    "PyTorch, one": ("enet_cityscapes", 1, [*_PYTORCH, "train.global_batch=4"]),
    "PyTorch, eight": ("enet_cityscapes", 8, [*_PYTORCH, "train.global_batch=32"]),
}
# PyTorch's SGD is four operators for each parameter, not one; to unscale a gradient and to clear it is one each.
PYTORCH_LAUNCHES = 5
EXAMPLES = """examples:
  python benchmarks/published_trainings.py --part counts --trainings FCN-8s "BiSeNet V2"
  python benchmarks/published_trainings.py --part loaders --rounds 50"""


class RowLoss(losses.CrossEntropyLoss):
    """Cross entropy of those projects: a row of classes for each pixel, for MindSpore's kernel."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.softmax_loss = SoftmaxCrossEntropy()

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the softmax cross entropy of each pixel, as the base class does."""
        classes = logits.shape[1]
        rows = cast(transpose(logits, (0, 2, 3, 1)).reshape(-1, classes), mstype.float32)
        return self.softmax_loss(rows, self.clip_label(label.reshape(-1), classes))


def count(name: str) -> plan.Amounts:
    """Counts a published training.

    Args:
        name: One of ``TRAININGS``.
    """
    config, cards, changes = TRAININGS[name]
    cfg = read_config(config, changes)
    with patch.object(losses, "CrossEntropyLoss", RowLoss):
        amounts = plan.amounts(cfg, divide_batch(cfg, cards), cards, plan.find_chip("910A"))
    if name.startswith("PyTorch"):
        more = PYTORCH_LAUNCHES * len(build_network(cfg).trainable_params())
        amounts = replace(amounts, step=amounts.step + Costs(launches=more))
    return amounts


def fast_scnn_sample(image: bytes, label: bytes) -> None:
    """A sample of the older Fast-SCNN: short side to 512 to 2048, crop, blur of every second, normalisation."""
    _flipped_crop(image, label, (512, 2048), 768)


def pytorch_sample(image: bytes, label: bytes) -> None:
    """A sample of PyTorch's ENet: as Fast-SCNN's, but the short side to 260 to 1040 and a smaller crop."""
    _flipped_crop(image, label, (260, 1040), 480)


def _flipped_crop(image: bytes, label: bytes, short_sides: tuple[int, int], crop: int) -> None:
    picture, ids = Image.open(io.BytesIO(image)).convert("RGB"), Image.open(io.BytesIO(label))
    if random.random() < 0.5:
        picture, ids = picture.transpose(Image.FLIP_LEFT_RIGHT), ids.transpose(Image.FLIP_LEFT_RIGHT)
    picture, ids = _scaled_crop(picture, ids, random.randint(*short_sides), crop)
    _class_ids(ids)
    _normalised(picture)


def enet_sample(image: bytes, label: bytes) -> None:
    """A sample of the older ENet: blur of the whole image, crop of every second, resizing to 512x1024."""
    picture, ids = Image.open(io.BytesIO(image)), Image.open(io.BytesIO(label))
    picture = picture.filter(ImageFilter.GaussianBlur(random.random()))
    if random.random() > 0.5:
        width, height = (int(side / random.uniform(1, 1.3)) for side in (2048, 1024))
        box = (0, 0, width, height)
        picture, ids = picture.crop(box), ids.crop(box)
    picture, ids = picture.resize((1024, 512), Image.BILINEAR), ids.resize((1024, 512), Image.NEAREST)
    if random.random() < 0.5:
        picture, ids = picture.transpose(Image.FLIP_LEFT_RIGHT), ids.transpose(Image.FLIP_LEFT_RIGHT)
    np.ascontiguousarray((np.asarray(picture).astype(np.float32) / 255).transpose(2, 0, 1))
    target = np.asarray(ids).astype(np.uint32)
    target[target == 255] = 19


def _scaled_crop(picture: Image.Image, ids: Image.Image, short: int, crop: int) -> tuple[Image.Image, Image.Image]:
    size = (2 * short, short)
    picture, ids = picture.resize(size, Image.BILINEAR), ids.resize(size, Image.NEAREST)
    box = (0, 0, crop, crop)        # padded with zeros where the image is smaller
    picture, ids = picture.crop(box), ids.crop(box)
    if random.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(random.random()))
    return picture, ids


def _class_ids(ids: Image.Image) -> np.ndarray:
    numbers = np.asarray(ids).astype(np.int32)
    np.unique(numbers)
    return np.arange(-1, 34)[np.digitize(numbers.ravel(), np.arange(-1, 34), right=True)].reshape(numbers.shape)


def _normalised(picture: Image.Image) -> np.ndarray:
    pixels = (np.asarray(picture).astype(np.float32) / 255).transpose(2, 0, 1)
    return (pixels - np.full((3, 1, 1), 0.45, np.float32)) / np.full((3, 1, 1), 0.22, np.float32)


SAMPLES = {"Fast-SCNN": fast_scnn_sample, "ENet": enet_sample, "PyTorch's ENet": pytorch_sample}


def sample_seconds(make: Callable[[bytes, bytes], None], rounds: int) -> float:
    """Mean processor time of a sample in seconds.

    Args:
        make: Makes a sample of the bytes of an image and of a label, both PNG.
        rounds: Number of samples.
    """
    random.seed(0)
    pairs = [[_png(pixels) for pixels in photograph(seed)] for seed in range(2)]
    make(*pairs[0])
    start = time.process_time()
    for number in range(rounds):
        make(*pairs[number % 2])
    return (time.process_time() - start) / rounds


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("counts", "loaders"), default=("counts", "loaders"))
    parser.add_argument("--trainings", nargs="+", choices=tuple(TRAININGS), default=tuple(TRAININGS))
    parser.add_argument("--rounds", type=int, default=30, help="samples of each loader (%(default)s)")
    args = parser.parse_args()
    for name in args.trainings if "counts" in args.part else ():
        print(f"{name}: {count(name)}", flush=True)
    for name, make in SAMPLES.items() if "loaders" in args.part else ():
        print(f"{name}: {1000 * sample_seconds(make, args.rounds):.0f} ms a sample", flush=True)


if __name__ == "__main__":
    run_main(main)
