"""Trainings and scores with the numbers of a chip, emulated on the CPU."""
import csv
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import mindseg  # noqa: F401  (prepares the environment before MindSpore is loaded)
from mindseg.checkpoint import load_network
from mindseg.commands.train import Start, train
from mindseg.config import Config, load_config
from mindseg.data.loader import create_loader
from mindseg.evaluation.evaluator import evaluate
from mindseg.inference.network import NetworkPredictor
from mindseg.runtime import setup_runtime

from .chip_numbers import emulated
from .streets import TOOL

SETTINGS = ("runtime.device_target=CPU", "train.run_eval=true")


def numbers(kind: str) -> AbstractContextManager:
    """The context of :func:`emulated`, or none for float32."""
    return nullcontext() if kind == "float32" else emulated(kind)


def quickstart_streets(folder: Path, train: int = 160, val: int = 40) -> Path:
    """Makes the streets of scripts/quickstart.sh, or fewer, unless the folder holds them; returns it."""
    command = [sys.executable, TOOL, "--output", folder, "--num", train, "--num_val", val, "--keep"]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return folder


def train_network(kind: str, config: str | Path, words: list[str], folder: Path) -> float:
    """Trains, or goes on with a training that was ended.

    Args:
        kind: ``float32``, ``float16`` (with the loss scale that the first Ascend 910 gets) or ``hf32``.
        config: Configuration.
        words: Overrides of it.
        folder: Run folder.

    Returns:
        mIoU of the last step, 0..1.
    """
    scale = ["optim.loss_scale=dynamic"] if kind == "float16" else []
    cfg = load_config(config, [*SETTINGS, *scale, *words])
    runtime = setup_runtime(cfg.runtime)
    folder.mkdir(parents=True, exist_ok=True)
    with numbers(kind):
        train(cfg, folder, runtime, Start())
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as stream:
        return float([row["miou"] for row in csv.DictReader(stream) if row["phase"] == "eval"][-1])


def score_checkpoint(kind: str, cfg: Config, checkpoint: str | Path) -> float:
    """Scores a checkpoint on the validation split; returns its mIoU, 0..1."""
    runtime = setup_runtime(cfg.runtime)
    loader = create_loader(cfg, "eval", runtime.rank, runtime.size)
    with numbers(kind):
        predictor = NetworkPredictor(cfg, load_network(cfg, checkpoint), loader.info)
        return evaluate(predictor, loader).scores["miou"]
