"""Compiled graphs, read from the text that MindSpore saves of them.

MindSpore writes a graph after its own optimisation, with the shape and type of every tensor. Its last form before the
back end chooses kernels is the same for all devices.
"""
from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspore import Tensor, nn

from mindseg.errors import UserError

# Operators that name, order or reinterpret values, so no kernel runs.
NO_KERNEL = {"Depend", "ExpandDims", "Flatten", "Load", "MakeTuple", "Partial", "Reshape", "Return", "ScalarToTensor",
             "Shape", "Squeeze", "StopGradient", "Switch", "TupleGetItem", "TupleToTensor", "UpdateState", "call",
             "make_tuple"}
# Variables that make MindSpore save the last form of each graph, and compile it for no device.
_SETTINGS = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_DUMP_IR_PASSES": "validate", "MS_DEV_PRECOMPILE_ONLY": "1"}
_NODE = re.compile(r"^  (%\d+)\(.*?\) = (?:PrimFunc_|DoSignaturePrimitive_)?([A-Za-z]\w*)\((.*)$")
_TYPES = re.compile(r"^      : \((.*)\) -> \((.*)\)$")
_TENSOR = re.compile(r"<(?:Ref\[)?Tensor\[(\w+)\]\]?, \(([\d, ]*)\)|<Tuple\[([^>]*?)\], TupleShape\((.*?)\)>")
_TYPE = re.compile(r"Tensor\[(\w+)\](?:\*(\d+))?")

TensorType = tuple[str, tuple[int, ...]]        # element type, such as Float32, and shape


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        operator: MindSpore's name of the primitive.
        operands: Its inputs as they are printed: ``%5``, ``%para3_x``, or a constant.
        inputs: Element type and shape of each tensor that it reads.
        outputs: Those of the tensors that it writes.
    """
    operator: str
    operands: tuple[str, ...]
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]


Graph = dict[str, Node]     # by the name of the result, such as %5


def read_graphs(lines: Iterable[str]) -> list[Graph]:
    """Reads the graphs of a file.

    Args:
        lines: Text that MindSpore saved; the constants of an operator may fill several lines.
    """
    graphs, node = [{}], None
    for line in lines:
        line = line.rstrip("\n")
        if line.startswith("subgraph @"):       # names begin anew
            graphs.append({})
        start, types = _NODE.match(line), _TYPES.match(line)
        if start:
            node, text = start, [start[3]]
        elif node and types:
            graphs[-1][node[1]] = Node(node[2], _operands(" ".join(text)), tuple(_tensors(types[1])),
                                       tuple(_tensors(types[2])))
            node = None
        elif node:
            text.append(line)
    return [graph for graph in graphs if graph]


def _operands(text: str) -> tuple[str, ...]:
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
    return tuple(operands)


def _tensors(text: str) -> Iterator[TensorType]:
    """Types and shapes of the tensors in the signature of an operator, also of those in tuples."""
    for kind, shape, kinds, tuple_shape in _TENSOR.findall(text):
        if kind:
            yield kind, _shape(shape)
            continue
        repeated = [name for name, count in _TYPE.findall(kinds) for _ in range(int(count or 1))]
        yield from zip(repeated, map(_shape, re.findall(r"\(([\d, ]*)\)", tuple_shape)), strict=False)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.replace(",", " ").split())


def compile_graphs(cell: nn.Cell, *arguments: Tensor) -> list[Graph]:
    """Compiles a cell for no device, without running it.

    MindSpore reads some of the variables once: a process that has called this goes on saving graphs, wherever it is.

    Args:
        cell: Cell in graph mode.
        *arguments: What it is to be called with; only shapes and types matter.

    Raises:
        UserError: MindSpore saved no graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = _SETTINGS | {"MS_DEV_SAVE_GRAPHS_PATH": folder}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            cell.compile(*arguments)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        graphs = []
        for file in sorted(Path(folder).rglob("*_validate_*.ir")):
            with file.open(encoding="utf-8", errors="replace") as lines:
                graphs += read_graphs(lines)
    if not graphs:
        raise UserError(f"MindSpore saved no graph of {type(cell).__name__}; use the full package of MindSpore 2.7 to "
                        "2.10")
    return graphs
