"""Small training runs in processes of their own, on data made on the spot."""
import csv
import glob
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mindseg.checkpoint import read_checkpoint
from tests.support import ROOT
from tests.support.data import make_cityscapes

BASE = {"data.crop_size": "[64,64]", "data.num_workers": 1, "train.global_batch": 2, "train.log_interval": 1,
        "train.steps": 12, "optim.warmup_steps": 0, "optim.lr": 0.01, "runtime.threads": 1,
        "train.save_interval_steps": 3, "train.run_eval": "false"}


def make_splits(folder: Path, number: int = 10) -> Path:
    """Make a training split and a validation split of four in Cityscapes' layout, 64x128 pixels; return the folder."""
    rng = np.random.default_rng(3)
    make_cityscapes(folder, rng, number)
    make_cityscapes(folder, rng, 4, "val")
    return folder


def train_command(config: str, root: Path, output: Path, *words: str, **changes: object) -> list[str]:
    """The command line of a small run; ``changes`` are keys with ``__`` for the dot."""
    values = BASE | {"data.root": root, "runtime.output_dir": output}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / config), *sets, *words]


def run_to_end(command: list[str], **options) -> subprocess.CompletedProcess:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def only_run(output: Path) -> Path:
    """The one run folder below an output folder; those of runs that were killed before their first checkpoint aside."""
    found = [config.parent for config in output.glob("*/*/config.yaml")]
    if len(found) > 1:
        found = [folder for folder in found if any(folder.glob("**/*.ckpt"))]
    (folder,) = found
    return folder


def run_and_signal(command: list[str], output: Path, number: int, ready) -> subprocess.CompletedProcess:
    """Start a run, and send a signal as soon as ``ready(run folder)`` is true."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        # glob.glob, because Path.glob fails when a folder vanishes meanwhile. The folders' names are times.
        found = sorted(glob.glob("*/*/config.yaml", root_dir=output))
        if found and ready((output / found[-1]).parent):
            break
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it was to be stopped: " + "".join(process.communicate())
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def reached(step: int):
    """A condition for ``run_and_signal``: the log has that step."""
    return lambda run_dir: steps_logged(run_dir) >= step


def steps_logged(run_dir: Path) -> int:
    """The last step in train.log, which is written line by line."""
    log = run_dir / "train.log"
    found = re.findall(r" step (\d+)/", log.read_text()) if log.exists() else []
    return int(found[-1]) if found else 0


def kill_at(command: list[str], output: Path, ready) -> None:
    """Kill a run with SIGKILL; it must die of it."""
    assert run_and_signal(command, output, signal.SIGKILL, ready).returncode == -signal.SIGKILL


def metrics(run_dir: Path) -> list[dict]:
    """The rows of metrics.csv."""
    with open(run_dir / "metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def assert_same_state(one: Path, other: Path) -> None:
    """Parameters, optimizer state, counters and position are equal to the bit; the times of saving differ."""
    (a, extras_a), (b, extras_b) = read_checkpoint(one), read_checkpoint(other)
    assert list(a) == list(b)
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []
    for extras in (extras_a, extras_b):
        del extras["config"], extras["saved_at"]
    assert extras_a == extras_b
