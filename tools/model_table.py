"""Counts parameters and multiply-accumulate operations of every network and writes docs/model_zoo.md."""
import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src  # noqa: F401  (prepares the environment, so it must come before MindSpore)

# isort: split
import mindspore as ms
from mindspore import Tensor, nn, ops

from src.errors import UserError, run_main
from src.models import create_model
from src.models.layers import TransposedConv

SIZES = ((512, 1024), (1024, 2048))
EXAMPLES = """examples:
  python tools/model_table.py                        writes docs/model_zoo.md
  python tools/model_table.py --output zoo.md"""


@dataclass(frozen=True)
class Row:
    """A network of the table.

    Attributes:
        name: For ``create_model``.
        options: Its constructor arguments.
        classes: Number of classes.
        stride: Output stride: input pixels for one step of the last feature map before up-sampling.
        text: What is special about it.
    """
    name: str
    options: dict[str, object]
    classes: int
    stride: int
    text: str


ROWS = (
    Row("fast_scnn", {}, 19, 8, "Tramac's; one auxiliary head at 1/8"),
    Row("fast_scnn", {"ppm_kernel": 3}, 19, 8, "3x3 fusion after the pyramid, as in the recipes above 70 % mIoU"),
    Row("fast_scnn", {"variant": "segmentron"}, 19, 8, "SegmenTron's: ReLU6, full 1x1 fusion, two auxiliary heads"),
    Row("fast_scnn", {"variant": "seed"}, 19, 8, "the MindSpore model zoo's: one-sided first padding, two heads"),
    Row("enet", {}, 19, 2, "davidtvs': max-unpooling, one slope a PReLU"),
    Row("enet", {"unpool": "bilinear"}, 19, 2, "bilinear main branch in the decoder"),
    Row("enet", {"variant": "seed"}, 20, 2, "the MindSpore model zoo's: bilinear, one slope a channel, 20 classes"),
    Row("enet", {"encoder_only": True}, 19, 8, "encoder and 1x1 classifier, for staged training"),
    Row("bisenetv2", {}, 19, 8, "CoinCheung's: head of 1024 channels, four auxiliary heads"),
    Row("bisenetv2", {"head_channels": 128}, 19, 8, "head of 128 channels"),
    Row("bisenetv2", {"variant": "seed"}, 19, 8, "Rogersiy's: bilinear aggregation, epsilon 1e-3"),
    Row("fcn8s", {}, 21, 8, "VGG16-BN, fc6 and fc7 of 4096 channels"),
)


class Counter:
    """Adds up the multiply-accumulates of convolutions while a network runs on zeros, without computing them."""

    def __init__(self, network: nn.Cell) -> None:
        self.macs = 0
        for _, cell in network.cells_and_names():
            if isinstance(cell, TransposedConv):
                cell.construct = self._transposed(cell)
            elif isinstance(cell, nn.Conv2d):
                cell.construct = self._convolution(cell)

    def _convolution(self, cell: nn.Conv2d):
        (tall, wide), (down, across) = cell.kernel_size, cell.stride

        def size(length: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
            if cell.pad_mode == "same":
                return -(-length // stride)
            return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

        def count(x: Tensor) -> Tensor:
            height = size(x.shape[2], tall, down, cell.dilation[0], cell.padding)
            width = size(x.shape[3], wide, across, cell.dilation[1], cell.padding)
            self.macs += x.shape[0] * height * width * cell.weight.size
            return ops.zeros((x.shape[0], cell.out_channels, height, width), x.dtype)

        return count

    def _transposed(self, cell: TransposedConv):
        def count(x: Tensor) -> Tensor:
            n, _, height, width = x.shape
            self.macs += n * height * width * cell.weight.size
            return ops.zeros((n, cell.out_channels, height * cell.factor, width * cell.factor), x.dtype)

        return count


def count_macs(row: Row, size: tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions for one image; resizing, pooling and BatchNorm are not counted."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = create_model(row.name, row.classes, **row.options).set_train(False)
    counter = Counter(network)
    network(ops.zeros((1, 3, *size), ms.float32))
    return counter.macs


def count_parameters(row: Row) -> tuple[int, int]:
    """Trainable parameters in evaluation (without auxiliary heads) and in training."""
    with nn.no_init_parameters():
        params = create_model(row.name, row.classes, **row.options).trainable_params()
    total = sum(p.size for p in params)
    return total - sum(p.size for p in params if p.name.startswith("aux")), total


def make_table() -> list[str]:
    """The lines of the table."""
    title = "| network | options | classes | M parameters (with auxiliary heads) | output stride | " + " | ".join(
        f"GMACs {h}x{w}" for h, w in SIZES) + " | notes |"
    lines = [title, "|" + "---|" * (6 + len(SIZES))]
    for row in ROWS:
        options = ", ".join(f"`{key}={value}`" for key, value in row.options.items()) or "default"
        evaluation, training = count_parameters(row)
        params = f"{evaluation / 1e6:.3f}" + (f" ({training / 1e6:.3f})" if training > evaluation else "")
        macs = " | ".join(f"{count_macs(row, size) / 1e9:.2f}" for size in SIZES)
        lines.append(f"| `{row.name}` | {options} | {row.classes} | {params} | {row.stride} | {macs} | {row.text} |")
        print(lines[-1], flush=True)
    return lines


QUOTED = (
    ("Fast-SCNN", "paper (1902.04502)", "68.0 Cityscapes test", "123.5 FPS, 1024x2048, Titan Xp"),
    ("Fast-SCNN", "mmsegmentation, 160k x 32, 3x3 pyramid fusion", "70.96 Cityscapes val", "56.45 FPS, V100"),
    ("Fast-SCNN", "SegmenTron, 1000 epochs x 12", "68.9 Cityscapes val", "145.8 FPS, V100"),
    ("Fast-SCNN", "older MindSpore project, 8 x Ascend 910, 768x768 centre crops", "55.48 Cityscapes val",
     "157 ms a step (4 cards x 2)"),
    ("Fast-SCNN", "older MindSpore project, offline, SegmenTron's weights", "-",
     "Ascend 310: 10.21 (batch 1), 12.88 (4) images/s; 310P: 39.17 (1), 32.73 (4), 37.60 (8)"),
    ("FCN-8s", "PAMI paper", "67.2 VOC 2012 test", "-"),
    ("FCN-8s", "older MindSpore project, Ascend 910, batch 32", "64.67 VOC 2012 val", "564.7 ms a step"),
    ("ENet", "paper (1606.02147)", "58.3 Cityscapes test", "76.9 FPS, 1024x512, Titan X"),
    ("ENet", "PaddleSeg, 80k x 32", "67.42 Cityscapes val", "-"),
    ("ENet", "davidtvs, 300 epochs x 4, 512x1024", "59.5 Cityscapes val", "-"),
    ("ENet", "older MindSpore project, Ascend 910, 512x1024", "62.19 Cityscapes val", "882 ms a step"),
    ("ENet", "older MindSpore project, RTX 3090, 512x1024", "62.22 Cityscapes val", "571 ms a step"),
    ("BiSeNet V2", "paper (2004.02147)", "72.6 Cityscapes test", "156 FPS, 512x1024, GTX 1080 Ti with TensorRT"),
    ("BiSeNet V2", "mmsegmentation, 160k x 32", "75.76 Cityscapes val (77.79 multi-scale and flip)", "-"),
    ("BiSeNet V2", "CoinCheung, pre-trained backbone, OHEM", "74.95 Cityscapes val (77.08 multi-scale and flip)", "-"),
    ("BiSeNet V2", "older MindSpore project, Ascend 910", "73.10 Cityscapes val (multi-scale and flip)",
     "728 ms a step (4 cards)"),
    ("BiSeNet V2", "older MindSpore project, Ascend 310", "69.37 Cityscapes val (one scale)", "-"),
)
HEAD = """# Model zoo

Written by `python tools/model_table.py`; change that file, not this one.

## The networks

`create_model(name, num_classes, **options)` makes them. GMACs are 10^9 multiply-accumulates of the convolutions for
one image in evaluation, counted while the network runs. Output stride is the step of the last feature map before the
logits are resized to the input (ENet ends in a transposed convolution of stride 2).
"""
TAIL = """
Every network takes any height and width from 32 on: it pads to a multiple of 32 with zeros at the bottom and right
and crops the logits. Each variant computes what its public implementation computes, and loads its weights
(`tools/convert_weights.py --help`); the tests compare with float64 runs of those implementations, in evaluation and
through five training steps.

## Quoted results

mIoU in percent as their authors report them. **None of these numbers was measured here**; the rows of the older
MindSpore projects are what those projects promise for their hardware, not re-measured. Results of this repository
stand in the README with their setting.

| network | whose | mIoU | speed |
|---|---|---|---|
"""


def main() -> None:
    """Counts and writes."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(Path(__file__).resolve().parents[1] / "docs" / "model_zoo.md"),
                        help="Markdown file (%(default)s)")
    path = Path(parser.parse_args().output)
    quoted = "".join(f"| {' | '.join(row)} |\n" for row in QUOTED)
    text = HEAD + "\n" + "\n".join(make_table()) + "\n" + TAIL + quoted
    tmp = path.with_name(f".{path.name}.tmp")
    try:
        tmp.write_text(text, encoding="utf-8")
        os.replace(tmp, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None


if __name__ == "__main__":
    run_main(main)
