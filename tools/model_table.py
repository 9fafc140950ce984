"""Counts parameters and multiply-accumulate operations of every network and writes docs/model_zoo.md."""
import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mindseg  # noqa: F401  (prepares the environment, so it must come before MindSpore)

# isort: split
import mindspore as ms
from mindspore import Tensor, nn, ops

from mindseg.compat import Conv2d, no_init_parameters, set_mode
from mindseg.errors import UserError, run_main
from mindseg.models import create_model
from mindseg.models.layers import TransposedConv

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
    Row("fast_scnn", {"variant": "modelzoo"}, 19, 8, "the MindSpore model zoo's: one-sided first padding, two heads"),
    Row("fast_scnn", {"variant": "zh320"}, 19, 8, "zh320's: padded first convolution, no auxiliary heads"),
    Row("enet", {}, 19, 2, "davidtvs': max-unpooling, one slope a PReLU"),
    Row("enet", {"unpool": "bilinear"}, 19, 2, "bilinear main branch in the decoder"),
    Row("enet", {"variant": "modelzoo"}, 20, 2, "the MindSpore model zoo's: bilinear, one slope a channel, 20 classes"),
    Row("enet", {"variant": "zh320"}, 19, 2, "zh320's: max-unpooling, 1x1 convolution and bilinear resize at the end"),
    Row("enet", {"encoder_only": True}, 19, 8, "encoder and 1x1 classifier, for staged training"),
    Row("bisenetv2", {}, 19, 8, "CoinCheung's: head of 1024 channels, four auxiliary heads"),
    Row("bisenetv2", {"head_channels": 128}, 19, 8, "head of 128 channels"),
    Row("bisenetv2", {"variant": "modelzoo"}, 19, 8, "Rogersiy's: bilinear aggregation, epsilon 1e-3"),
    Row("bisenetv2", {"variant": "zh320", "head_channels": 128}, 19, 8, "zh320's: bilinear, heads of 128 channels"),
    Row("fcn8s", {}, 21, 8, "VGG16-BN, fc6 and fc7 of 4096 channels"),
)


class Counter:
    """Adds up the multiply-accumulates of convolutions while a network runs on zeros, without computing them."""

    def __init__(self, network: nn.Cell) -> None:
        self.macs = 0
        for _, cell in network.cells_and_names():
            if isinstance(cell, TransposedConv):
                cell.construct = self._transposed(cell)
            elif isinstance(cell, Conv2d):
                cell.construct = self._convolution(cell)

    def _convolution(self, cell: Conv2d):
        tall, wide = cell.kernel

        def size(length: int, kernel: int) -> int:
            if cell.padding == "same":
                return -(-length // cell.stride)
            return (length + 2 * cell.padding - cell.dilation * (kernel - 1) - 1) // cell.stride + 1

        def count(x: Tensor) -> Tensor:
            height = size(x.shape[2], tall)
            width = size(x.shape[3], wide)
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
    set_mode("pynative")
    network = create_model(row.name, row.classes, **row.options).set_train(False)
    counter = Counter(network)
    network(ops.zeros((1, 3, *size), ms.float32))
    return counter.macs


def count_parameters(row: Row) -> str:
    """Millions of trainable parameters: in evaluation, and in brackets with auxiliary heads if there are any."""
    with no_init_parameters():
        params = create_model(row.name, row.classes, **row.options).trainable_params()
    total = sum(p.size for p in params)
    heads = sum(p.size for p in params if p.name.startswith("aux"))
    return f"{(total - heads) / 1e6:.3f}" + (f" ({total / 1e6:.3f})" if heads else "")


def table_line(row: Row, params: str, gmacs: Sequence[str]) -> str:
    """A network's line, given its parameters, and its multiply-accumulates for each of ``SIZES``."""
    options = ", ".join(f"`{key}={value}`" for key, value in row.options.items()) or "default"
    return f"| `{row.name}` | {options} | {row.classes} | {params} | {row.stride} | {' | '.join(gmacs)} | {row.text} |"


def page(table: Sequence[str]) -> str:
    """The whole page, given the lines of :func:`table_line`."""
    title = "| network | options | classes | M parameters (with auxiliary heads) | output stride | " + " | ".join(
        f"GMACs {h}x{w}" for h, w in SIZES) + " | notes |"
    lines = "\n".join([title, "|" + "---|" * (6 + len(SIZES)), *table])
    quoted, recipes, older = ("".join(f"| {' | '.join(row)} |\n" for row in rows) for rows in (QUOTED, RECIPES, OLDER))
    return f"{HEAD}\n{lines}\n{TAIL}{quoted}{RECIPES_HEAD}{recipes}{OLDER_HEAD}{older}"


QUOTED = (
    ("Fast-SCNN", "paper (1902.04502)", "68.0 Cityscapes test", "123.5 FPS, 1024x2048, Titan Xp"),
    ("Fast-SCNN", "mmsegmentation, 160k x 32, 3x3 pyramid fusion", "70.96 Cityscapes val", "56.45 FPS, V100"),
    ("Fast-SCNN", "SegmenTron, 1000 epochs x 12", "68.9 Cityscapes val", "145.8 FPS, V100"),
    ("Fast-SCNN", "zh320, 800 epochs, 1024x1024 crops", "69.37 Cityscapes val", "358 FPS, 512x1024, RTX 2080"),
    ("Fast-SCNN", "older MindSpore project, 8 x Ascend 910, 768x768 centre crops", "55.48 Cityscapes val",
     "157 ms a step (4 cards x 2)"),
    ("Fast-SCNN", "older MindSpore project, offline, SegmenTron's weights", "-",
     "Ascend 310: 10.21 (batch 1), 12.88 (4) images/s; 310P: 39.17 (1), 32.73 (4), 37.60 (8)"),
    ("FCN-8s", "PAMI paper", "67.2 VOC 2012 test", "-"),
    ("FCN-8s", "older MindSpore project, Ascend 910, batch 32", "64.67 VOC 2012 val", "564.7 ms a step"),
    ("ENet", "paper (1606.02147)", "58.3 Cityscapes test", "76.9 FPS, 1024x512, Titan X"),
    ("ENet", "PaddleSeg, 80k x 32", "67.42 Cityscapes val", "-"),
    ("ENet", "zh320, 800 epochs, 1024x1024 crops", "71.31 Cityscapes val", "140 FPS, 512x1024, RTX 2080"),
    ("ENet", "davidtvs, 300 epochs x 4, 512x1024", "59.5 Cityscapes val", "-"),
    ("ENet", "older MindSpore project, Ascend 910, 512x1024", "62.19 Cityscapes val", "882 ms a step"),
    ("ENet", "older MindSpore project, RTX 3090, 512x1024", "62.22 Cityscapes val", "571 ms a step"),
    ("BiSeNet V2", "paper (2004.02147)", "72.6 Cityscapes test", "156 FPS, 512x1024, GTX 1080 Ti with TensorRT"),
    ("BiSeNet V2", "mmsegmentation, 160k x 32", "75.76 Cityscapes val (77.79 multi-scale and flip)", "-"),
    ("BiSeNet V2", "CoinCheung, pre-trained backbone, OHEM", "74.95 Cityscapes val (77.08 multi-scale and flip)", "-"),
    ("BiSeNet V2", "zh320, 800 epochs, 1024x1024 crops", "73.73 Cityscapes val", "142 FPS, 512x1024, RTX 2080"),
    ("BiSeNet V2", "older MindSpore project, Ascend 910", "73.10 Cityscapes val (multi-scale and flip)",
     "728 ms a step (4 cards)"),
    ("BiSeNet V2", "older MindSpore project, Ascend 310", "69.37 Cityscapes val (one scale)", "-"),
)
RECIPES = (
    ("`fast_scnn_cityscapes`", "70.96, 71.53", "160 000", "4.1 h (1.1 to 17)", "3.2 h (0.89 to 14)"),
    ("`enet_cityscapes`", "67.42", "80 000", "2.1 h (0.79 to 6.0)", "1.7 h (0.63 to 5.0)"),
    ("`enet_cityscapes_zh320`", "71.31", "74 400", "3.2 h (1.3 to 9.3)", "2.6 h (1.0 to 7.5)"),
    ("`bisenetv2_cityscapes`", "75.76", "160 000", "12 h (3.8 to 47)", "9.2 h (2.8 to 37)"),
)
OLDER = (
    ("Fast-SCNN", "8 x Ascend 910, batch 2 a card, 1000 epochs, learning rate 0.001", "master of June 2021", "0.4",
     "mIoU 55.48 % (768x768 centre crops)", "8 h 20 min; checkpoint 14.51 MB"),
    ("Fast-SCNN", "4 x Ascend 910, batch 2 a card, 372 steps an epoch", "", "1.127 at the end of epoch 20",
     "pixel accuracy / mIoU: epoch 10 83.40 / 24.46 %, epoch 20 89.36 / 31.58 %", "157 ms a step"),
    ("Fast-SCNN, offline", "Ascend 310 (batch 1 and 4), 310P (1 and 8), SegmenTron's weights, 1024x2048", "", "",
     "AvgmIou / AvgpixAcc: 310 68.6667 / 95.3527, 310P 68.6666 / 95.3526", "images per second: the table above"),
    ("FCN-8s", "1 x Ascend 910, VOC 2012 and SBD, batch 32, 500 epochs of 330 steps, learning rate 0.015",
     "1.1.0-alpha", "0.038", "mean IoU 64.67 % (VOC 2012, batch 16)", "564.652 ms a step"),
    ("ENet", "1 x Ascend 910, 512x1024, batch 6, 250 epochs of 496 steps, learning rate 5e-4", "1.2.0", "0.17356214",
     "mIoU 62.19 %; in a table 62.1 against 59.5 of PyTorch; an example: mean_iou 0.62192, mean_loss 0.31619",
     "882 ms a step, 30 h; 0.34 M parameters, checkpoint 4.40 MB, AIR 9.97 MB"),
    ("ENet", "1 x RTX 3090, 512x1024, batch 6, 250 epochs of 495 steps, learning rate 5e-4", "1.6.1", "0.20114072",
     "mIoU 62.22 %", "571 ms a step, 25 h; checkpoint 4.60 MB, AIR 9.97 MB"),
    ("BiSeNet V2", "4 x Ascend 910, batch 4 a card, 160000 steps", "2.0alpha", "0.06756218",
     "mIoU 0.7309769 (as configured: six scales and flips)", "728 ms a step, 33 h"),
    ("BiSeNet V2, offline", "Ascend 310", "2.0alpha", "", "mIoU 0.6936929 (one scale, as far as its files tell)", ""),
)
RECIPES_HEAD = """
## Recipes for Cityscapes, and what they would take

The recipes with the highest public numbers, at one scale, and the hours that `mindseg plan --config NAME --devices 8`
(`--chip A2`) predicts for training alone, 4 images a card. **Nothing was measured**; in brackets the range to expect
([ascend.md](ascend.md)), which an older ENet missed by a factor of 4.6.

| recipe | public mIoU | steps of 32 | 8 x 910A | 8 x A2 |
|---|---|---|---|---|
"""
OLDER_HEAD = """
## What the older MindSpore projects report

The numbers in the READMEs of the projects that [migration.md](migration.md) covers. They are those projects' own,
**not measured here**, because we had no such hardware. A blank means that the README does not say.

| project | setting | MindSpore | training loss | accuracy | time and files |
|---|---|---|---|---|---|
"""
HEAD = """# Model zoo

Generated by `python tools/model_table.py`; do not edit this page by hand.

## The networks

Created with `mindseg.create_model(name, num_classes, **options)`. GMACs are 10^9 multiply-accumulates of the
convolutions for one image in evaluation, counted while the network runs. Output stride is the ratio of the input's
size to that of the last feature map, before the logits are resized (ENet ends in a transposed convolution of stride 2).
"""
TAIL = """
Every network takes any height and width from 32 on: it pads the input with zeros at the bottom and right to a multiple
of 32, and crops the logits. Each variant gives the same outputs as its public implementation and loads its weights
(`mindseg convert-weights --help`). The tests compare the defaults and `variant=segmentron` with float64 runs of those
implementations in evaluation and through five training steps, and the other variants in evaluation. `ppm_kernel=3`,
`unpool=bilinear`, `head_channels=128` and `encoder_only=True` are not compared, because there are no such runs.

## Published results

mIoU in percent as the authors report it. **None of these numbers was measured here**, those of the older MindSpore
projects neither. [results.md](results.md) has the results of this repository.

| network | source | mIoU | speed |
|---|---|---|---|
"""


def main() -> None:
    """Counts and writes."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(Path(__file__).resolve().parents[1] / "docs" / "model_zoo.md"),
                        help="Markdown file (%(default)s)")
    path = Path(parser.parse_args().output)
    table = []
    for row in ROWS:
        table.append(table_line(row, count_parameters(row), [f"{count_macs(row, size) / 1e9:.2f}" for size in SIZES]))
        print(table[-1], flush=True)
    text = page(table)
    tmp = path.with_name(f".{path.name}.tmp")
    try:
        tmp.write_text(text, encoding="utf-8")
        os.replace(tmp, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None


if __name__ == "__main__":
    run_main(main)
