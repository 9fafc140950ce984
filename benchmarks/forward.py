"""Times forward passes in evaluation, and the same networks in PyTorch if their code is given, in one interleaved run.

Ratios and times are printed, nothing is asserted: absolute numbers belong to the machine.
"""
import argparse
import os
import time
from collections.abc import Callable

import numpy as np

import mindseg  # noqa: F401  (prepares the environment, so it must come before MindSpore)

# isort: split
from support.torch_peer import TorchPeer, measure

from mindspore import Tensor, ops

from mindseg.cpu_kernels.fusion import fuse_network
from mindseg.errors import run_main
from mindseg.models import MODELS, create_model
from mindseg.runtime import tune_cpu, use_device

EXAMPLES = """examples:
  python benchmarks/forward.py --models fast_scnn enet
  python benchmarks/forward.py --models enet --torch PyTorch-ENet/models/enet.py:ENet
  python benchmarks/forward.py --models fcn8s --height 256 --width 256 --torch fcn.py:FCN8s
  python benchmarks/forward.py --models fast_scnn --torch Fast-SCNN-pytorch/models/fast_scnn.py:FastSCNN

FILE.py:CLASS is imported and called as CLASS(classes); it must take an (N, 3, H, W) image. Further arguments stand
behind commas: bisenetv2.py:BiSeNetV2,aux_mode=eval."""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["fast_scnn"], help="networks (fast_scnn)")
    parser.add_argument("--torch", metavar="FILE.py:CLASS", help="PyTorch implementation to compare one network with")
    parser.add_argument("--height", type=int, default=512, help="rows (%(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="columns (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="measured passes of each (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both (default: one for each core)")
    args = parser.parse_args()
    if args.torch and len(args.models) > 1:
        parser.error("--torch compares one network: give one name to --models")
    return args


def mindspore_forward(name: str, image: np.ndarray, classes: int, threads: int) -> Callable[[], float]:
    """A function that runs one of our networks as in evaluation, waits for its logits, and returns the seconds."""
    network = create_model(name, classes).set_train(False)
    fuse_network(network, threads)
    tensor = Tensor(image)
    return lambda: seconds_of(lambda: network(tensor).asnumpy())


def matmul_rate(rounds: int) -> float:
    """The machine's float32 matrix product rate in 10^9 multiply-accumulates a second, by MindSpore."""
    size = 2048
    x = Tensor(np.random.default_rng(0).normal(0, 1, (size, size)).astype(np.float32))
    seconds = measure([lambda: seconds_of(lambda: ops.matmul(x, x).asnumpy())], rounds)[0]
    return size**3 / min(seconds) / 1e9


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    use_device("CPU")
    tune_cpu(args.threads or len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (args.batch, 3, args.height, args.width)).astype(np.float32)
    print(f"matrix product 2048: {matmul_rate(args.rounds):.0f} GMAC/s")
    for name in args.models:
        classes = 21 if name == "fcn8s" else 19
        functions = [mindspore_forward(name, image, classes, args.threads)]
        if args.torch:
            functions.append(TorchPeer(args.torch, (args.batch, args.height, args.width), classes, False,
                                       args.threads).run)
        ours, *theirs = measure(functions, args.rounds)
        line = (f"{name} {args.height}x{args.width} batch {args.batch}: MindSpore {1000 * np.median(ours):.1f} ms "
                f"(fastest {1000 * min(ours):.1f})")
        for times in theirs:
            line += (f", PyTorch {1000 * np.median(times):.1f} ms (fastest {1000 * min(times):.1f}), ratio "
                     f"{np.median(ours) / np.median(times):.2f} (of the fastest {min(ours) / min(times):.2f})")
        print(line, flush=True)


if __name__ == "__main__":
    run_main(main)
