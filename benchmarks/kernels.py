"""Times every kernel of a training step, beside the bytes that it moves and the products that it computes.

Bytes are those of its inputs and outputs, once each. They are compared with the rate at which the same threads add two
large arrays, and the products (multiplications with addition) with the rate of a matrix product. Nothing is asserted:
the figures belong to the machine.
"""
import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path

import numpy as np

import mindseg  # noqa: F401  (prepares the environment, so it must come before MindSpore)

# isort: split
from forward import matmul_rate
from support import operator_times
from support.step_worker import make_step

from mindseg.cpu_kernels import operators
from mindseg.errors import UserError, run_main
from mindseg.planner.costs import products
from mindseg.planner.graph import NO_KERNEL, compile_graphs
from mindseg.runtime import profiled

MODELS = ("fast_scnn", "enet", "bisenetv2", "fcn8s")
SIZES = {"Bool": 1, "UInt8": 1, "Int8": 1, "Float16": 2, "Int64": 8}        # bytes; all others: 4
EXAMPLES = """examples:
  python benchmarks/kernels.py --model enet
  python benchmarks/kernels.py --model fcn8s --height 256 --width 256"""


@dataclass
class Work:
    """Work of the kernels of one kind in a step.

    Attributes:
        calls: Number of them.
        seconds: Time.
        bytes: Bytes that they read and write.
        products: Multiplications with addition.
    """
    calls: float = 0
    seconds: float = 0.0
    bytes: float = 0.0
    products: float = 0.0

    def add(self, other: "Work") -> None:
        """Adds the work of other kernels."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="fast_scnn", help="network (%(default)s)")
    parser.add_argument("--height", type=int, default=512, help="rows of a crop (%(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="columns of a crop (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="samples of a step (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the kernels (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (%(default)s)")
    parser.add_argument("--least", type=float, default=1.0, help="shares below are summed up, in %% (%(default)s)")
    parser.add_argument("--graphs", type=Path, help=argparse.SUPPRESS)      # of the child that compiles only
    return parser.parse_args()


def addition_rate(threads: int) -> float:
    """Bytes a second that threads read and write while they add arrays of 128 MB."""
    arrays = [[np.ones(2 ** 25, np.float32) for _ in range(3)] for _ in range(threads)]

    def seconds(_: int) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda three: np.add(three[0], three[1], out=three[2]), arrays))
        return time.perf_counter() - started

    return threads * 3 * arrays[0][0].nbytes / min(map(seconds, range(7)))


def graph_work(args: argparse.Namespace) -> dict[str, Work]:
    """Bytes and products of MindSpore's own kernels, from the graphs that a child process compiles and does not run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.json"
        words = [word for name in ("model", "height", "width", "batch") for word in (f"--{name}", getattr(args, name))]
        subprocess.run([sys.executable, __file__, *map(str, words), "--graphs", str(path)], check=True)
        return {kind: Work(**work) for kind, work in json.loads(path.read_text()).items()}


def compile_only(args: argparse.Namespace) -> None:
    """The child of :func:`graph_work`."""
    step, arguments, _ = make_step("graph", args.model, args.height, args.width, args.batch, 1)
    found: dict[str, Work] = defaultdict(Work)
    pieces = (step.gradients, arguments), (step.update, [step.none, *step.empty_sums()])
    for graph in [graph for piece, inputs in pieces for graph in compile_graphs(piece, *inputs)]:
        for node in graph.values():
            if node.operator not in NO_KERNEL and node.operator != "Custom":
                moved = sum(prod(shape) * SIZES.get(kind, 4) for kind, shape in (*node.inputs, *node.outputs))
                found[node.operator].add(Work(1, 0.0, moved, products(node, 1) / 2))
    args.graphs.write_text(json.dumps({kind: vars(work) for kind, work in found.items()}))


def measure(args: argparse.Namespace) -> tuple[dict[str, Work], float]:
    """Work of the kernels by their kind, and seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        times = operator_times.OperatorTimes(Path(folder))
        operators.installed_library = lambda: str(times.library)
        step, arguments, _ = make_step("graph", args.model, args.height, args.width, args.batch, args.threads)
        for _ in range(2):
            step(*arguments).asnumpy()
        times.clear()
        started = time.perf_counter()
        with profiled(True, Path(folder) / "profile", "CPU"):
            for _ in range(args.steps):
                step(*arguments).asnumpy()
        seconds = (time.perf_counter() - started) / args.steps
        found: dict[str, Work] = defaultdict(Work)
        for name, elapsed, shapes in times.calls():
            found[name].add(Work(1, elapsed, 4 * sum(map(prod, shapes)), operator_times.products(name, shapes)))
        with next((Path(folder) / "profile").rglob("cpu_op_type_info_*.csv")).open() as stream:
            for row in csv.DictReader(stream):
                if row["op_type"] != "Custom":
                    found[row["op_type"]].add(Work(int(row["type_occurrences"]),
                                                   float(row["total_compute_time"]) / 1000))
    for work in found.values():
        work.calls, work.seconds, work.bytes, work.products = (
            value / args.steps for value in (work.calls, work.seconds, work.bytes, work.products))
    return found, seconds


def print_table(found: dict[str, Work], seconds: float, least: float, rates: tuple[float, float]) -> None:
    """Prints the kinds by their time, and what is left of a step between the kernels."""
    print("| kernel | calls | ms | share | GB | GB/s | of additions | GMAC | GMAC/s | of the matrix product |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rest = Work()
    for name, work in sorted(found.items(), key=lambda item: -item[1].seconds):
        if work.seconds < least / 100 * seconds:
            rest.add(work)
            continue
        cells = [name, f"{work.calls:.0f}", f"{1000 * work.seconds:.1f}", f"{100 * work.seconds / seconds:.1f} %"]
        for amount, rate in ((work.bytes, rates[0]), (work.products, rates[1])):
            speed = amount / work.seconds
            known = [f"{amount / 1e9:.2f}", f"{speed / 1e9:.1f}", f"{100 * speed / rate:.0f} %"]
            cells += known if amount else ["", "", ""]
        print("| " + " | ".join(cells) + " |")
    between = seconds - sum(work.seconds for work in found.values())
    for name, calls, time_left in ("others", f"{rest.calls:.0f}", rest.seconds), ("between kernels", "", between):
        print(f"| {name} | {calls} | {1000 * time_left:.1f} | {100 * time_left / seconds:.1f} %" + " | " * 6 + "|")


def main() -> None:
    """Measures one network."""
    args = parse_args()
    if args.graphs:
        compile_only(args)
        return
    if operators.installed_library() is None:
        raise UserError("the C++ operators are not built; run mindseg build-kernels")
    static = graph_work(args)
    found, seconds = measure(args)
    for name, work in found.items():
        if name in static:
            work.bytes, work.products = static[name].bytes, static[name].products
    rates = addition_rate(args.threads), 1e9 * matmul_rate(5)
    print(f"{args.model}, {args.batch} x {args.height}x{args.width}, {args.threads} threads: {1000 * seconds:.0f} ms a "
          f"step; additions {rates[0] / 1e9:.1f} GB/s, matrix product {rates[1] / 1e9:.1f} GMAC/s\n")
    print_table(found, seconds, args.least, rates)


if __name__ == "__main__":
    run_main(main)
