"""Compares the planner's time of an all-reduce with measured times, between ranks on the CPU.

Latency and rate are found at two sizes, the other sizes are predicted by latency + ring (src/mindseg/planner). Ratios
are printed, nothing is asserted: a rate on this machine says nothing of another.
"""
import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mindseg.errors import UserError, run_main
from mindseg.planner.prediction import ring

SIZES = (1, 4, 16, 64, 256, 500)        # MB
KNOWN = (4, 256)                        # of them those that latency and rate are found at
EXAMPLES = """examples:
  python benchmarks/all_reduce.py
  python benchmarks/all_reduce.py --ranks 4 --rounds 9"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured all-reduces of each size (%(default)s)")
    parser.add_argument("--output", metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args()


def work(rounds: int, output: Path) -> None:
    """One rank: sums buffers of all sizes in turns; rank 0 writes the seconds, {MB: one number a round}."""
    from mindseg.runtime import use_device  # before MindSpore is loaded
    use_device("CPU", None)
    from mindspore import Tensor, communication, ops

    communication.init()
    reduce = ops.AllReduce()
    buffers = {size: Tensor(np.ones(size * 10**6 // 4, np.float32)) for size in SIZES}
    seconds = {size: [] for size in SIZES}
    for number in range(rounds + 1):
        for size, buffer in buffers.items():
            start = time.perf_counter()
            reduce(buffer)[:1].asnumpy()
            if number:      # the first time compiles
                seconds[size].append(time.perf_counter() - start)
    if communication.get_rank() == 0:
        output.write_text(json.dumps(seconds), encoding="utf-8")


def fit(times: dict[int, float], ranks: int) -> tuple[float, float]:
    """Latency in seconds and rate in bytes per second with which :func:`ring` gives the times of two sizes in MB."""
    (small, first), (large, second) = sorted(times.items())
    rate = ring(ranks, (large - small) * 1e6, 1.0) / (second - first)
    return max(0.0, first - ring(ranks, small * 1e6, rate)), rate


def main() -> None:
    args = parse_args()
    if args.output:
        return work(args.rounds, Path(args.output))
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        output = Path(folder) / "seconds.json"
        done = subprocess.run([str(Path(sys.executable).parent / "msrun"), f"--worker_num={args.ranks}",
                               f"--local_worker_num={args.ranks}", f"--master_port={port}", f"--log_dir={folder}/logs",
                               "--join=True", "--tail_worker_log=0", __file__, "--rounds", str(args.rounds),
                               "--output", str(output)], check=False, capture_output=True,
                              env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
        if done.returncode:
            raise UserError("".join(log.read_text()[-2000:] for log in Path(folder).glob("logs/worker_*.log")))
        seconds = {int(size): float(np.median(times)) for size, times in json.loads(output.read_text()).items()}
    latency, rate = fit({size: seconds[size] for size in KNOWN}, args.ranks)
    print(f"{args.ranks} ranks: latency {1000 * latency:.1f} ms, {rate / 1e6:.0f} MB/s, found at {KNOWN} MB")
    for size, measured in seconds.items():
        predicted = latency + ring(args.ranks, size * 1e6, rate)
        print(f"{size:4d} MB: measured {1000 * measured:7.1f} ms, predicted {1000 * predicted:7.1f} ms, ratio "
              f"{predicted / measured:.2f}{' (used)' if size in KNOWN else ''}")
    return None


if __name__ == "__main__":
    run_main(main)
