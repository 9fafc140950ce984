"""Times training steps in graph mode, in PyNative and without our C++ operators, on several ranks, and beside another
checkout; the peak memory of the largest rank stands beside.

The participants take turns step by step, so that a busy machine slows all alike. Times and ratios to graph mode are
printed, nothing is asserted: absolute numbers belong to the machine.
"""
import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).resolve().parent / "support" / "step_worker.py"
_PAUSE = 0.1        # seconds in which the threads of the participant before stop waiting for work
MODELS = ("fast_scnn", "enet", "bisenetv2", "fcn8s")
EXAMPLES = """examples:
  python benchmarks/step_modes.py --models fast_scnn enet --ranks 1 2
  python benchmarks/step_modes.py --models enet --modes graph --plain
  python benchmarks/step_modes.py --models enet --ranks 1 --modes graph --before ../mindseg-before/src"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["fast_scnn"], help="networks (fast_scnn)")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1], help="numbers of processes (1)")
    parser.add_argument("--modes", nargs="+", choices=("graph", "pynative"), default=["graph", "pynative"])
    parser.add_argument("--height", type=int, default=512, help="rows of a crop (%(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="columns of a crop (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="samples a step of all ranks (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="measured steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads of all ranks; 0: as many as there are cores")
    parser.add_argument("--alone", action="store_true",
                        help="one participant in memory at a time, each twice in turns: large steps on many ranks")
    parser.add_argument("--plain", action="store_true", help="also graph mode with MindSpore's operators alone")
    parser.add_argument("--before", metavar="SRC", help="folder of another checkout's package, in graph mode")
    return parser.parse_args()


class Participant:
    """Ranks that train in one mode.

    Args:
        label: Name in the table.
        source: Folder of the package.
        mode: ``graph``, ``pynative``, or ``plain``: graph mode without our C++ operators.
        ranks: Number of processes.
        folder: For messages between this process and the ranks.
        settings: Network, height, width, batch of all ranks, and threads of each rank.
    """

    def __init__(self, label: str, source: Path, mode: str, ranks: int, folder: Path, settings: list) -> None:
        self.label, self.ranks, self.folder, self.count, self.peak = label, ranks, folder, 0, 0.0
        folder.mkdir()
        words = [str(WORKER), "pynative" if mode == "pynative" else "graph", str(folder), *map(str, settings)]
        switch = {"MINDSEG_CPU_KERNELS": "0"} if mode == "plain" else {}
        command = [sys.executable, *words]
        if ranks > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            command = [str(Path(sys.executable).parent / "msrun"), f"--worker_num={ranks}",
                       f"--local_worker_num={ranks}", f"--master_port={port}", f"--log_dir={folder / 'logs'}",
                       "--join=True", *words]
        # A process started by msrun finds Python on the PATH.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log,
                                            env=os.environ | switch | {"PYTHONPATH": str(source), "PATH": path})
        self.first = self.run()

    def run(self) -> float:
        """Makes one step; returns the seconds of the slowest rank."""
        time.sleep(_PAUSE)
        (self.folder / f"go{self.count}").touch()
        results = [self.folder / f"done{self.count}.{rank}" for rank in range(self.ranks)]
        while not all(path.exists() for path in results):
            if self.process.poll() is not None:
                sys.exit(f"error: {self.label} ended:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)
        self.count += 1
        seconds, peaks = zip(*(map(float, path.read_text().split()) for path in results), strict=True)
        self.peak = max(peaks)
        return max(seconds)

    def close(self) -> None:
        """Ends the ranks."""
        (self.folder / "stop").touch()
        (self.folder / f"go{self.count}").touch()
        self.process.wait()


def measure(args: argparse.Namespace, model: str, ranks: int, folder: Path) -> None:
    """Prints a line for each participant."""
    threads = max(1, (args.threads or len(os.sched_getaffinity(0))) // ranks) if args.threads or ranks > 1 else 0
    settings = [model, args.height, args.width, args.batch, threads]
    variants = [(mode, ROOT / "src", mode) for mode in args.modes]
    if args.plain:
        variants.append(("plain", ROOT / "src", "plain"))
    if args.before:
        variants.append(("before", Path(args.before).resolve(), "graph"))
    rounds = [[variant] for variant in variants] * 2 if args.alone else [variants]
    seconds, first, peaks = {}, {}, {}
    for number, present in enumerate(rounds):
        participants = [Participant(label, source, mode, ranks, folder / f"{model}{ranks}{label}{number}", settings)
                        for label, source, mode in present]
        for participant in participants:
            participant.run()
        for _ in range(args.steps):
            for participant in participants:
                seconds.setdefault(participant.label, []).append(participant.run())
        for participant in participants:
            first[participant.label], peaks[participant.label] = participant.first, participant.peak
            participant.close()
    base = seconds[variants[0][0]]
    for label, times in seconds.items():
        name = f"{model} {args.height}x{args.width} batch {args.batch}, ranks {ranks}, {label}"
        ratio, fastest = np.median(times) / np.median(base), min(times) / min(base)
        print(f"{name}: first step {first[label]:.1f} s, median {1000 * np.median(times):.0f} ms, fastest "
              f"{1000 * min(times):.0f} ms, ratio {ratio:.3f} (of the fastest {fastest:.3f}), {peaks[label]:.0f} MB",
              flush=True)


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            for ranks in args.ranks:
                measure(args, model, ranks, Path(folder))


if __name__ == "__main__":
    main()
