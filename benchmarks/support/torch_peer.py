"""A PyTorch network in a process of its own, to be timed beside ours.

A process of its own, because the two frameworks would share thread pools and ``ONEDNN_MAX_CPU_ISA``, which our side
sets and which would slow PyTorch's kernels down.
"""
import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


class TorchPeer:
    """The parent's side: starts the process, and has it run one pass at a time."""

    def __init__(self, spec: str, shape: tuple[int, int, int], classes: int, train: bool, threads: int = 0) -> None:
        """
        Args:
            spec: ``FILE.py:CLASS[,name=value…]``; called as ``CLASS(classes, name="value")``.
            shape: Batch, height and width.
            classes: Number of classes.
            train: Time training steps instead of forward passes.
            threads: CPU threads, 0: PyTorch's default.

        Raises:
            SystemExit: PyTorch, the file or the class is not there; the process has said which.
        """
        words = [sys.executable, str(Path(__file__).resolve()), spec, *(str(n) for n in shape), str(classes),
                 "train" if train else "forward", str(threads)]
        environment = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
        folder = str(Path(spec.split(",")[0].rpartition(":")[0]).resolve().parent)     # for imports of the file's own
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, environment.get("PYTHONPATH"))))
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment)
        self.peak = 0.0     # megabytes of memory that the process has used at most
        self.run()      # waits until the network is built

    def run(self) -> float:
        """Seconds of one pass."""
        try:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
            seconds, self.peak = map(float, self.process.stdout.readline().split())
            return seconds
        except (BrokenPipeError, ValueError):
            sys.exit(self.process.wait() or 1)

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def peak_memory() -> float:
    """Megabytes of memory that this process has used at most; Linux.

    ``getrusage`` would count the parent's, too, if that was larger when it started this process.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(functions: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Seconds of each function and round; they take turns, so that a busy machine slows all alike."""
    for function in functions:
        for _ in range(2):
            function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for times, function in zip(seconds, functions, strict=True):
            time.sleep(0.1)     # threads of the other framework that still wait for work fall asleep
            function()          # wakes our own
            times.append(function())
    return seconds


def build(spec: str, classes: int):
    """The network that ``spec`` names; ends the process with one line if it is not there."""
    target, *words = spec.split(",")
    path, _, name = target.rpartition(":")
    if not Path(path).is_file():
        sys.exit(f"error: --torch {spec}: write FILE.py:CLASS with an existing file")
    definition = importlib.util.spec_from_file_location("torch_network", path)
    module = importlib.util.module_from_spec(definition)
    definition.loader.exec_module(module)
    if not hasattr(module, name):
        sys.exit(f"error: --torch {spec}: {path} has no class {name!r}")
    return getattr(module, name)(classes, **dict(word.split("=", 1) for word in words))


def forward_pass(torch, net, image) -> Callable[[], object]:
    """Inference without gradients."""
    net.eval()

    def run() -> object:
        with torch.no_grad():
            return net(image)

    return run


def training_step(torch, net, image, label) -> Callable[[], object]:
    """Cross entropy of every output (auxiliary ones count 0.4), its gradient and SGD with momentum."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9, weight_decay=4e-5)
    entropy = torch.nn.functional.cross_entropy

    def run() -> float:
        outputs = net(image)
        main, *others = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        loss = entropy(main, label, ignore_index=255)
        for other in others:
            loss = loss + 0.4 * entropy(other, label, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def serve() -> None:
    """The child's side: runs a pass for every line that comes in, and answers with its seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    for name in ("batch", "height", "width", "classes"):
        parser.add_argument(name, type=int)
    parser.add_argument("mode", choices=("forward", "train"))
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    try:
        import torch  # only for this comparison
    except ImportError:
        sys.exit("error: --torch needs PyTorch: pip install -r requirements-convert.txt")
    if args.threads:
        torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    size = (args.height, args.width)
    image = torch.from_numpy(rng.normal(0, 1, (args.batch, 3, *size)).astype(np.float32))
    net = build(args.spec, args.classes)
    if args.mode == "train":
        run = training_step(torch, net, image, torch.from_numpy(rng.integers(0, args.classes, (args.batch, *size))))
    else:
        run = forward_pass(torch, net, image)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, peak_memory(), flush=True)


if __name__ == "__main__":
    serve()
