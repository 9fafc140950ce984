"""Trains one configuration with several sets of options, each for the same processor time, and compares the scores.

Every run is a training with one kernel thread, in a process of its own. Some steps are measured first, and the number
of epochs follows from them, so that the learning rate ends with the run. Processor time is that of all threads, and
includes start and compilation of each sitting. Scoring is a later process, and does not count. "best" is the best of
about five checkpoints of a run.

A study can be stopped (Ctrl-C, SIGTERM) and continued by the same command: finished runs are kept, the interrupted one
goes on. Several studies may share an output folder; each takes runs that no other works on.
"""
import argparse
import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mindseg.config import Config, load_config
from mindseg.data.loader import crop_phases
from mindseg.errors import UserError, run_main
from mindseg.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
# Changes to the configuration, as --set takes them; the sizes are those of CamVid's frames of 360x480.
OPTIONS = {
    "baseline": [],
    "crops": ["data.crop_size=[240,320]"],
    "growing_crops": ["data.crop_schedule=[{until: 0.5, crop_size: [180, 240]}]"],
    "class_weights": ["loss.class_weights=auto", "loss.class_weight_power=0.5"],
    "lovasz": ["loss.also={lovasz: 1.0}"],
    "photometric": ["data.photometric=true"],
    "ema": ["train.ema_decay=0.99"],
    "warm_start": [],
    "distillation": [],
    "combined": ["data.crop_size=[240,320]", "data.photometric=true", "loss.class_weights=auto",
                 "loss.class_weight_power=0.5", "train.ema_decay=0.99"],
}
# Sets of options that need a checkpoint, each with the argument that names it.
CHECKPOINTS = {"warm_start": "warm_start", "distillation": "teacher"}
# Of every run: reproducible, on one core, with about five checkpoints.
FIXED = ["runtime.threads=1", "data.num_workers=1", "train.run_eval=false", "train.keep_checkpoint_max=0",
         "train.save_all_ranks=false"]
MEASURED_STEPS = 24
EXAMPLES = """examples:
  python tools/training_study.py --root data/camvid --output study --options baseline crops ema --seeds 1
  python tools/training_study.py --root data/camvid --output study --minutes 30 --warm_start streets.ckpt
  python tools/training_study.py --output study --table"""


@dataclass
class State:
    """Progress of a run, kept in its folder.

    Attributes:
        epochs: Length of the run.
        steps: Optimizer steps of it.
        step_seconds: Processor seconds of a step, as measured before.
        cpu: Processor seconds of each sitting.
        wall: Seconds of each sitting.
        trained: Whether the last step is done.
    """
    epochs: int
    steps: int
    step_seconds: float
    cpu: list[float]
    wall: list[float]
    trained: bool = False


class Process:
    """A command in a session of its own, so that Ctrl-C reaches it only once; it stops when this program is stopped.

    Args:
        words: Command line.
        log: File that gets its output.
    """

    def __init__(self, words: Sequence[object], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.started = log, time.perf_counter()
        with open(log, "w", encoding="utf-8") as stream:
            self.process = subprocess.Popen([str(word) for word in words], cwd=ROOT, stdout=stream, stderr=stream,
                                            start_new_session=True)
        self.cpu = 0.0

    def running(self) -> bool:
        """Notes the processor seconds of all threads so far, and tells whether the process runs."""
        if self.process.returncode is not None:
            return False
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        self.cpu = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")     # a process that has ended, too
        return self.process.poll() is None

    def wall(self) -> float:
        """Seconds since its start."""
        return time.perf_counter() - self.started

    def check(self) -> None:
        """Raises a UserError with the end of the output if the process failed."""
        if self.process.wait():
            text = self.log.read_text(encoding="utf-8", errors="replace").strip()
            raise UserError(f"{self.log}: status {self.process.returncode}: {text[-300:]}")

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()        # a training saves its state
            self.process.wait()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fast_scnn_camvid", help="configuration (%(default)s)")
    parser.add_argument("--root", type=Path, help="folder of the data set (default: the configuration's)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, metavar="NAME",
                        help=f"sets of options (all that are possible): {', '.join(OPTIONS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="runs of each set of options (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="processor time of a run (%(default)s)")
    parser.add_argument("--warm_start", type=Path, metavar="CKPT", help="weights that the set warm_start begins with")
    parser.add_argument("--teacher", type=Path, metavar="CKPT",
                        help="network whose soft targets the set distillation learns from; its training is not counted")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change of all runs")
    parser.add_argument("--table", action="store_true", help="only print the table of the runs so far")
    return parser.parse_args()


def changes(args: argparse.Namespace, name: str, seed: int) -> list[str]:
    """The changes to the configuration that make up a run, without its length."""
    values = [*FIXED, *args.set, *OPTIONS[name], f"runtime.seed={seed}"]
    values += [f"data.root={args.root.resolve()}"] if args.root else []
    if name == "warm_start":
        values.append(f"train.pretrained={args.warm_start.resolve()}")
    if name == "distillation":
        teacher = json.dumps(str(args.teacher.resolve()))
        values.append(f"loss.distill={{ckpt: {teacher}, weight: 0.5, temperature: 2}}")
    return values


def command(script: str, config: str, values: Sequence[str], *words: object) -> list[object]:
    """A command line of one of the project's scripts."""
    sets = [word for value in values for word in ("--set", value)]
    return [sys.executable, ROOT / script, "--config", config, *sets, *words]


def phases(cfg: Config) -> list[tuple[float, list[str]]]:
    """Shares of a run whose steps cost differently, each with the changes under which they can be measured."""
    if not cfg.data.crop_schedule:
        return [(1.0, [])]
    ends, sizes = zip(*crop_phases(cfg.data), strict=True)
    shares = np.diff(ends, prepend=0.0)
    return [(float(share), ["data.crop_schedule=null", f"data.crop_size={list(size)}"])
            for share, size in zip(shares, sizes, strict=True)]


def measure(config: str, values: Sequence[str], folder: Path) -> tuple[float, float, int]:
    """Measures the first steps of a run.

    Returns:
        Processor seconds before the first step, those of a step, and the steps of an epoch.
    """
    shutil.rmtree(folder, ignore_errors=True)
    values = [*values, "train.epochs=1", "train.steps=null", "train.log_interval=1", f"runtime.output_dir={folder}"]
    times: dict[int, float] = {}
    per_epoch = 0
    with Process(command("train.py", config, values), folder / "log.txt") as process:
        while process.running() and max(times, default=0) < MEASURED_STEPS:
            for row in read_metrics(folder)[-1:]:
                times.setdefault(int(row["step"]), process.cpu)
                per_epoch = int(row["total_steps"])
            time.sleep(0.1)
        if not times:
            process.check()
            raise UserError(f"{process.log}: the training ended before its first step")
        process.process.kill()
    # The queue of batches is full, and the graph compiled, behind the first steps.
    counted = [step for step in times if step >= min(8, max(times) // 2)]
    first, last = min(counted), max(counted)
    seconds = (times[last] - times[first]) / max(last - first, 1)
    shutil.rmtree(folder)
    return max(0.0, times[first] - first * seconds), seconds, per_epoch


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Complete rows of the training in metrics.csv of the run below a folder."""
    rows = []
    for path in sorted(folder.glob("*/*/metrics.csv")):
        with open(path, newline="", encoding="utf-8") as stream:
            rows += [row for row in csv.DictReader(stream) if row["phase"] == "train" and row["eta_s"]]
    return rows


def plan(config: str, values: Sequence[str], minutes: float, folder: Path) -> State:
    """Chooses the number of epochs that comes nearest to the processor time."""
    start, mean, per_epoch = 0.0, 0.0, 0
    for share, other in phases(load_config(config, values)):
        start, seconds, per_epoch = measure(config, [*values, *other], folder / "measured")
        mean += share * seconds
    epochs = max(1, round((60 * minutes - start) / (mean * per_epoch)))
    return State(epochs, epochs * per_epoch, mean, [], [])


def train(config: str, values: Sequence[str], state: State, folder: Path) -> None:
    """Trains to the end, or goes on with an interrupted training; counts its time in the state."""
    values = [*values, f"train.epochs={state.epochs}", "train.steps=null", f"runtime.output_dir={folder}",
              f"train.save_interval_epochs={max(1, state.epochs // 5)}"]
    state.cpu.append(0.0)
    state.wall.append(0.0)

    def note() -> None:
        state.cpu[-1], state.wall[-1] = round(process.cpu, 1), round(process.wall(), 1)
        write_json(folder / "state.json", asdict(state))

    with Process(command("train.py", config, values, "--resume", "auto"), folder / "train.txt") as process:
        try:
            while process.running():
                note()
                time.sleep(1)
            process.check()
            state.trained = int(read_metrics(folder)[-1]["step"]) == state.steps
        except KeyboardInterrupt:
            process.process.terminate()
            while process.running():
                time.sleep(0.1)
            raise
        finally:
            note()
    if not state.trained:
        raise UserError(f"{folder}: another program has stopped the training; the same command continues it")


def score(config: str, values: Sequence[str], folder: Path) -> dict:
    """Scores the checkpoints of a run; keeps the last one alone.

    Returns:
        mIoU of the last and of the best checkpoint, and the IoU of each class of the last one, 0..1.
    """
    scored = folder / "scored"
    steps = sorted(folder.glob("*/*/ckpt/step*.ckpt"), key=lambda path: int(path.stem[4:]))
    shutil.rmtree(scored, ignore_errors=True)
    scored.mkdir()
    for path in steps:
        os.link(path, scored / path.name)
    with Process(command("eval.py", config, values, "--ckpt_path", scored), folder / "eval.txt") as process:
        process.check()
    records = [json.loads((scored / f"{path.name}.eval.json").read_text(encoding="utf-8")) for path in steps]
    for path in [*scored.glob("*.ckpt"), *steps[:-1]]:
        path.unlink()
    last = records[-1]
    return {"miou": last["miou"], "best_miou": max(record["miou"] for record in records),
            "iou": dict(zip(last["classes"], last["iou"], strict=True))}


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Claims a run for this process; False if another one works on it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run(args: argparse.Namespace, name: str, seed: int) -> None:
    """Makes one run, or what is left of it."""
    folder = args.output / f"{name}-seed{seed}"
    with claimed(folder) as mine:
        if not mine or (folder / "result.json").exists():
            return
        values, saved = changes(args, name, seed), folder / "state.json"
        if saved.exists():
            state = State(**json.loads(saved.read_text(encoding="utf-8")))
        else:
            state = plan(args.config, values, args.minutes, folder)
        print(f"{folder.name}: {state.epochs} epochs of {state.step_seconds:.2f} s a step", flush=True)
        if not state.trained:
            train(args.config, values, state, folder)
        cpu, wall = (round(sum(seconds) / 60, 2) for seconds in (state.cpu, state.wall))
        result = {"options": name, "changes": values, "seed": seed, "epochs": state.epochs, "steps": state.steps,
                  "minutes": args.minutes, "cpu_minutes": cpu, "wall_minutes": wall, "sittings": len(state.cpu)}
        write_json(folder / "result.json", result | score(args.config, values, folder))
    lines = [json.dumps(found, ensure_ascii=False) for found in results(args.output)]
    write_text(args.output / "results.jsonl", "\n".join(lines) + "\n")


def results(output: Path) -> list[dict]:
    """Results of all finished runs, by options and seed."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("*/result.json")]
    order = list(OPTIONS)
    return sorted(found, key=lambda result: (order.index(result["options"]), result["seed"]))


def table(found: Sequence[Mapping]) -> str:
    """A Markdown table: one row for each set of options, with means and standard deviations over the seeds."""
    if not found:
        return "no run has finished"
    names = list(found[0]["iou"])
    lines = [f"| options | runs | epochs | CPU minutes | minutes | mIoU, last | mIoU, best | {' | '.join(names)} |",
             "|---|" + "---|" * (6 + len(names))]
    for options in dict.fromkeys(result["options"] for result in found):
        group = [result for result in found if result["options"] == options]
        iou = [spread([100 * result["iou"][name] for result in group if result["iou"][name] is not None])
               for name in names]
        lines.append(" | ".join([
            f"| {options}", str(len(group)), spread([result["epochs"] for result in group], 0),
            spread([result["cpu_minutes"] for result in group]), spread([result["wall_minutes"] for result in group]),
            *(spread([100 * result[key] for result in group], 2) for key in ("miou", "best_miou")), *iou]) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and with several values the standard deviation behind it."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def main() -> None:
    args = parse_args()
    args.output = args.output.resolve()
    missing = [name for name, word in CHECKPOINTS.items() if getattr(args, word) is None]
    names = args.options or [name for name in OPTIONS if name not in missing]
    for name in names:
        if name in missing:
            raise UserError(f"--options {name}: give its checkpoint, --{CHECKPOINTS[name]} CKPT")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for seed in args.seeds if not args.table else ():
        for name in names:
            run(args, name, seed)
    print(table(results(args.output)))


if __name__ == "__main__":
    run_main(main)
