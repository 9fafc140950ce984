"""Compiled graphs as text: which operands of convolutions and matrix products the emulation of a chip has rounded."""
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

WORKER = ROOT / "tests" / "support" / "graph_worker.py"
_NODE = re.compile(r"^  (%\d+)\([^)]*\) = (?:\w+_)?(\w+)\((.*)$")
_PRODUCT = re.compile(r"conv|matmul|bmm|baddbmm|addmm|dense|einsum", re.IGNORECASE)
# Operators that move or choose values, but compute none.
_MOVES = {"Reshape", "Transpose", "Load", "Depend", "TensorMove", "ExpandDims", "Squeeze", "BroadcastTo", "Tile"}


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        operator: Name of the primitive.
        operands: Its inputs as they are printed: ``%5``, ``%para3_x``, or a constant.
        types: Number types and shapes of its inputs and result, as they are printed.
    """
    operator: str
    operands: list[str]
    types: str


def compile_graph(folder: Path, kind: str, network: str, forgotten: str = "", evaluation: bool = False) -> list[Path]:
    """Compiles a training step, or an evaluation, under the emulation of a chip, in a process of its own.

    Args:
        folder: Empty folder for the graphs.
        kind: ``float16`` or ``hf32``.
        network: Name of a network of the project, or ``mixed``: a small one with each kind of operator.
        forgotten: Name of an operator that the emulation leaves out.
        evaluation: Compile the evaluation.

    Returns:
        The files of the graphs.
    """
    words = [kind, network, forgotten, "evaluation" if evaluation else ""]
    done = subprocess.run([sys.executable, str(WORKER), *words], capture_output=True, text=True, check=False,
                          env=os.environ | {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": str(folder),
                                            "MS_DEV_DUMP_IR_PASSES": "validate"})
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted(folder.rglob("*_validate_*.ir"))


def read_graphs(path: Path) -> list[dict[str, Node]]:
    """The nodes of each graph in a file, by name."""
    graphs, nodes = [], {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("subgraph @"):       # names begin anew
            nodes = {}
            graphs.append(nodes)
        match = _NODE.match(line)
        if match:
            end = next(i for i in range(number, len(lines)) if lines[i].startswith("      : ("))
            text = " ".join([match[3], *lines[number + 1:end]])
            nodes[match[1]] = Node(match[2], split_operands(text), lines[end])
    return graphs


def split_operands(text: str) -> list[str]:
    """Splits ``%1, (2, 3), Tensor(…)) primitive_attrs…`` at the commas outside of brackets."""
    operands, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if depth < 0 or (letter == "," and depth == 0):
            operands.append(text[start:place].strip())
            start = place + 1
        if depth < 0:
            break
    return operands


def products(nodes: dict[str, Node]) -> list[str]:
    """Names of the nodes that are convolutions or matrix products."""
    return [name for name, node in nodes.items() if _PRODUCT.search(node.operator)]


def unrounded(nodes: dict[str, Node], kind: str) -> list[str]:
    """Operands of convolutions and products that are not rounded, as text."""
    is_rounded = {"float16": _is_widened, "hf32": _is_split}[kind]
    return [f"{nodes[name].operator}({', '.join(nodes[name].operands[:2])}): {operand}"
            for name in products(nodes) for operand in nodes[name].operands[:2]
            if not is_rounded(nodes, _source(nodes, operand))]


def _source(nodes: dict[str, Node], operand: str) -> str:
    while operand in nodes and nodes[operand].operator in _MOVES:
        operand = nodes[operand].operands[0]
    return operand


def _is_widened(nodes: dict[str, Node], name: str) -> bool:
    """The value is limited, and is cast from float16 to float32 or a constant, for which MindSpore has cast already."""
    for operator, place in (("Select", 1), ("Minimum", 0), ("Maximum", 0)):
        if name not in nodes or nodes[name].operator != operator:
            return False
        name = _source(nodes, nodes[name].operands[place])
    if name not in nodes:
        return name.startswith("Tensor(")
    return nodes[name].operator == "Cast" and "(<Tensor[Float16]" in nodes[name].types.partition("->")[0]


def _is_split(nodes: dict[str, Node], name: str) -> bool:
    """The value is ``large - (large - x)``, with ``large`` = ``x`` * a parameter."""
    if name not in nodes or nodes[name].operator != "Sub":
        return False
    large, rest = (_source(nodes, operand) for operand in nodes[name].operands[:2])
    return (rest in nodes and nodes[rest].operator == "Sub" and large in nodes and nodes[large].operator == "Mul"
            and _source(nodes, nodes[rest].operands[0]) == large)
