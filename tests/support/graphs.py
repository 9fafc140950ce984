"""Compiled graphs: which operands of convolutions and matrix products the emulation of a chip has rounded."""
import pickle
import re
import subprocess
import sys
from pathlib import Path

from mindseg.planner.graph import Graph
from tests.support import ROOT

WORKER = ROOT / "tests" / "support" / "graph_worker.py"
_PRODUCT = re.compile(r"conv|matmul|bmm|baddbmm|addmm|dense|einsum", re.IGNORECASE)
# Operators that move or choose values, but compute none.
_MOVES = {"Reshape", "Transpose", "Load", "Depend", "TensorMove", "ExpandDims", "Squeeze", "BroadcastTo", "Tile"}


def compile_graphs(folder: Path, kind: str, network: str, forgotten: str = "", evaluation: bool = False) -> list[Graph]:
    """Compiles a training step, or an evaluation, under the emulation of a chip, in a process of its own.

    Args:
        folder: Folder for the worker's result.
        kind: ``float16`` or ``hf32``.
        network: Name of a network of the project, or ``mixed``: a small one with each kind of operator.
        forgotten: Name of an operator that the emulation leaves out.
        evaluation: Compile the evaluation.
    """
    output = folder / "graphs"
    words = [kind, network, forgotten, "evaluation" if evaluation else "", str(output)]
    done = subprocess.run([sys.executable, str(WORKER), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(output.read_bytes())


def products(nodes: Graph) -> list[str]:
    """Names of the nodes that are convolutions or matrix products."""
    return [name for name, node in nodes.items() if _PRODUCT.search(node.operator)]


def unrounded(nodes: Graph, kind: str) -> list[str]:
    """Operands of convolutions and products that are not rounded, as text."""
    is_rounded = {"float16": _is_widened, "hf32": _is_split}[kind]
    return [f"{nodes[name].operator}({', '.join(nodes[name].operands[:2])}): {operand}"
            for name in products(nodes) for operand in nodes[name].operands[:2]
            if not is_rounded(nodes, _source(nodes, operand))]


def _source(nodes: Graph, operand: str) -> str:
    while operand in nodes and nodes[operand].operator in _MOVES:
        operand = nodes[operand].operands[0]
    return operand


def _is_widened(nodes: Graph, name: str) -> bool:
    """The value is limited, and is cast from float16 to float32 or a constant, for which MindSpore has cast already."""
    for operator, place in (("Select", 1), ("Minimum", 0), ("Maximum", 0)):
        if name not in nodes or nodes[name].operator != operator:
            return False
        name = _source(nodes, nodes[name].operands[place])
    if name not in nodes:
        return name.startswith("Tensor(")
    return nodes[name].operator == "Cast" and nodes[name].inputs[0][0] == "Float16"


def _is_split(nodes: Graph, name: str) -> bool:
    """The value is ``large - (large - x)``, with ``large`` = ``x`` * a parameter."""
    if name not in nodes or nodes[name].operator != "Sub":
        return False
    large, rest = (_source(nodes, operand) for operand in nodes[name].operands[:2])
    return (rest in nodes and nodes[rest].operator == "Sub" and large in nodes and nodes[large].operator == "Mul"
            and _source(nodes, nodes[rest].operands[0]) == large)
