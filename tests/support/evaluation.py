"""A small street data set and checkpoints with random weights, for the tests of eval.py and predict.py."""
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms

from mindseg.checkpoint import Progress, save_checkpoint
from mindseg.config import Config, load_config
from mindseg.files import file_sha256, write_json
from mindseg.models import build_network
from tests.support import ROOT
from tools.synthetic import write_street

CONFIG = ROOT / "configs" / "fast_scnn" / "fast_scnn_cityscapes.yaml"
SIZE = (96, 160)


def make_streets(root: Path, count: int = 4, size: tuple[int, int] = SIZE) -> Path:
    """Make a validation split of synthetic streets in Cityscapes' layout, with instance ids; return the folder."""
    for index in range(count):
        write_street(root, 7, "val", index, *size)
    return root


def street_config(root: Path, *overrides: str) -> Config:
    """Return Fast-SCNN's configuration for Cityscapes over the data set in ``root``, on the CPU."""
    return load_config(CONFIG, [f"data.root={root}", "runtime.device_target=CPU", *overrides])


def make_checkpoint(path: Path, cfg: Config, seed: int = 1) -> Path:
    """Write a checkpoint of the configuration's network with its first weights; many classes occur in its masks."""
    ms.set_seed(seed)
    net = build_network(cfg)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, list(net.get_parameters()), Progress(), cfg)
    return path


def write_scores(path: Path, ckpt: Path, classes: Sequence[str], **changes: object) -> Path:
    """Write an ``eval.json`` of a checkpoint: the IoU of class i is 0.05 i, the last class is not in the data."""
    iou = [0.05 * index for index in range(len(classes) - 1)]
    write_json(path, {"checkpoint": str(ckpt), "checkpoint_sha256": file_sha256(ckpt), "device": "CPU", "mode": "whole",
                      "resize": None, "split": "val", "images": 3, "classes": list(classes), "pixel_accuracy": 0.75,
                      "iou": [*iou, float("nan")], "miou": sum(iou) / len(iou), **changes})
    return path
