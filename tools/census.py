"""Counts the operators of training steps and of evaluation, as an Ascend chip would launch them.

    python tools/census.py --models enet --chips A2 910A

The steps of the Cityscapes recipes are compiled, not run. Each operator is looked up in the inventory of the installed
MindSpore: its wheel holds the Ascend plug-in, too. Counts are launches before MindSpore fuses any; nothing is measured.
"""
import argparse
import pickle
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path

from mindseg.chips import CHIPS, Chip
from mindseg.planner.graph import NO_KERNEL, Node

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("fast_scnn", "fcn8s", "enet", "bisenetv2")
LOSSES = ("cross_entropy", "bce", "ohem", "dice")
# Names of primitives that differ in the inventory. MindSpore's back end puts them there; SyncBatchNorm, counted as one
# here, becomes sums, an all-reduce and an update.
ACLNN_NAMES = {"BatchMatMul": "BMM", "ReLU": "ReLU"}
ENGINE_NAMES = {
    "Adam": "ApplyAdam", "AddScalar": "Add", "AllReduce": "HcomAllReduce", "Argmax": "ArgMaxV2",
    "BatchMatMul": "BatchMatMulV2", "Concat": "ConcatD", "Conv2DTranspose": "Conv2DTransposeD", "Divs": "RealDiv",
    "Gather": "GatherV2", "GatherD": "GatherElements", "LogSoftmax": "LogSoftmaxV2", "MatMul": "MatMulV2",
    "MatMulExt": "BatchMatMulV2", "Muls": "Mul", "PReLU": "PRelu", "PReLUGrad": "PReluGrad", "PowTensorScalar": "Pow",
    "ReLU": "Relu", "ReLU6": "Relu6", "ReLU6Grad": "Relu6Grad", "ResizeNearestNeighbor": "ResizeNearestNeighborV2",
    "ResizeNearestNeighborGrad": "ResizeNearestNeighborV2Grad", "Softmax": "SoftmaxV2", "SplitWithSize": "SplitV",
    "Stack": "Pack", "SumExt": "ReduceSum", "SyncBatchNorm": "BNTrainingReduce",
    "SyncBatchNormGrad": "BNTrainingReduceGrad", "TensorScatterElements": "ScatterElements"}
MOVES = {"Transpose", "Tile", "Reshape"}
RANKED = {"Sort", "SortExt", "TopK", "TopkExt", "ArgSort", "ArgSortWithIndex"}


@cache
def inventory() -> dict[str, frozenset[str]]:
    """Operators that the Ascend plug-in of the installed MindSpore knows, read from the type names in its libraries.

    Returns:
        ``aclnn``: kernels that Atlas A2 and A3 launch one by one. ``ge``: operators of the graph engine. ``aicpu``:
        operators of the graph engine that only the chip's ARM processors compute.
    """
    plugin = Path(find_spec("mindspore").submodule_search_locations[0]) / "lib" / "plugin"
    kernels = set()
    library = (plugin / "libmindspore_ops_ascend.so").read_bytes()
    for match in re.finditer(rb"\x00N9mindspore6kernel(\w+)E\x00", library):
        name = _last_part(match[1])
        for end in ("AclnnKernelMod", "AscendKernelMod", "AscendCall", "Ascend", "KernelMod"):
            if name.endswith(end) and name != end:
                kernels.add(name[:-len(end)].removeprefix("Aclnn"))
                break
    engine = {match[2][:int(match[1]) - 2].decode() for match in re.finditer(
        rb"OpAdapterINS1_(\d+)cz(\w+)", (plugin / "ascend" / "libmindspore_ascend_res_manager.so").read_bytes())}
    aicpu = {name.removeprefix("Cust") for name in engine if name.startswith("Cust")}
    return {"aclnn": frozenset(kernels), "ge": frozenset(engine), "aicpu": frozenset(aicpu - engine)}


def _last_part(mangled: bytes) -> str:
    """Innermost name of a mangled C++ type, such as ``Conv2DExtAscend`` of ``10conv2d_ext15Conv2DExtAscend``."""
    part = b""
    while match := re.match(rb"(\d+)", mangled):
        length, mangled = int(match[1]), mangled[match.end():]
        part, mangled = mangled[:length], mangled[length:]
    return part.decode()


def kernel_of(name: str, chip: Chip) -> str:
    """Looks an operator up.

    Args:
        name: Name of MindSpore's primitive.
        chip: Chip that shall compute it.

    Returns:
        ``aclnn``, ``ge``, ``aicpu``, or ``unknown``.
    """
    known = inventory()
    if chip.aclnn.value and ACLNN_NAMES.get(name, name) in known["aclnn"]:
        return "aclnn"
    name = ENGINE_NAMES.get(name, name)
    return "aicpu" if name in known["aicpu"] else "ge" if name in known["ge"] else "unknown"


@dataclass(frozen=True)
class Case:
    """A graph to count.

    Attributes:
        model: Network.
        loss: Loss of the training step; ``evaluation``: no step, but the graph of an evaluation.
        chip: Name of a chip.
        devices: Number of devices; from 2 on BatchNorm is synchronised.
    """
    model: str
    loss: str
    chip: str
    devices: int = 1


def count(case: Case) -> list[Node]:
    """Compiles the graphs of a case in a process of its own, and lists their operators."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "nodes"
        words = [case.model, case.loss, case.chip, str(case.devices), str(output)]
        done = subprocess.run([sys.executable, str(ROOT / "tools" / "census_worker.py"), *words], cwd=ROOT,
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
        return pickle.loads(output.read_bytes())


def shapes(node: Node) -> list[tuple[int, ...]]:
    """Shapes of all tensors of an operator."""
    return [shape for _, shape in (*node.inputs, *node.outputs)]


def elements(node: Node) -> int:
    """Values of the largest tensor of an operator."""
    return max(map(prod, shapes(node)), default=0)


def summary(case: Case) -> dict[str, object]:
    """Figures that budgets limit.

    Returns:
        ``launches``: kernels of a step. ``aicpu`` and ``unknown``: names of operators without a fast kernel, or not in
        the inventory. ``moves``: largest transpose, tile or reshape above rank 5, in elements. ``sort``: longest sort,
        in elements. ``operators``: launches by name, the most frequent first.
    """
    chip = next(chip for chip in CHIPS if chip.name == case.chip)
    everything = count(case)
    launched = [node for node in everything if node.operator not in NO_KERNEL]
    kinds = {name: kernel_of(name, chip) for name in {node.operator for node in launched}}
    return {
        "launches": len(launched),
        "aicpu": sorted(name for name, kind in kinds.items() if kind == "aicpu"),
        "unknown": sorted(name for name, kind in kinds.items() if kind == "unknown"),
        "moves": max((elements(node) for node in everything
                      if node.operator in MOVES and max(map(len, shapes(node)), default=0) > 5), default=0),
        "sort": max((elements(node) for node in launched if node.operator in RANKED), default=0),
        "operators": dict(Counter(node.operator for node in launched).most_common()),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--losses", nargs="+", choices=(*LOSSES, "recipe", "evaluation"), default=["recipe"])
    parser.add_argument("--chips", nargs="+", choices=[chip.name for chip in CHIPS], default=["A2", "910A"])
    parser.add_argument("--devices", nargs="+", type=int, default=[1])
    parser.add_argument("--operators", action="store_true", help="print the launches by operator, too")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    print("| network | loss | chip | devices | launches | AICPU | unknown | moves above rank 5 | sort |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in args.models:
        for loss in args.losses:
            for chip in args.chips:
                for devices in args.devices:
                    found = summary(Case(model, loss, chip, devices))
                    print(f"| {model} | {loss} | {chip} | {devices} | {found['launches']} | "
                          f"{', '.join(found['aicpu'])} | {', '.join(found['unknown'])} | {found['moves']} | "
                          f"{found['sort']} |", flush=True)
                    if args.operators:
                        print("    " + ", ".join(f"{name} {n}" for name, n in found["operators"].items()))


if __name__ == "__main__":
    main()
