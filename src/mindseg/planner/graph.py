"""Amounts of work in a compiled graph: products, bytes, kernels, counted operator by operator in MindSpore's text form.

MindSpore writes the graph after its own optimisation, with the shape and type of every tensor. Its last form before
the back end chooses kernels is the same for all devices.
"""
from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspore import Tensor, nn

from mindseg.errors import UserError

# Operators that only arrange values for others, so no kernel runs.
NO_KERNEL = {"Depend", "UpdateState", "Load", "MakeTuple", "TupleGetItem", "Return", "Reshape", "ExpandDims", "Squeeze",
             "StopGradient", "Partial", "Switch", "call", "TupleToTensor", "ScalarToTensor", "Shape", "make_tuple"}
# Kernels work on blocks of 16 or more neighbouring values. Maps (N, C, H, W) are kept in blocks of 16 channels, other
# tensors in rows along their last axis, of which a short one fills its blocks badly.
SHORT_ROW, LARGE = 64, 2**16
# These read no more of their inputs than they write.
PARTIAL_READERS = {"Slice", "StridedSlice", "Gather", "GatherD", "SliceExt", "SplitWithSize", "SplitV"}
_MATRICES = ("MatMul", "BatchMatMul", "MatMulExt", "BatchMatMulExt", "Mm")
# Tensor with the pixels, tensor with the weights (number of the input, -1: the result), and how many products of them.
_CONVOLUTIONS = {"Conv2D": (-1, 1, 1), "Conv2DExt": (-1, 1, 1), "Conv2DTranspose": (0, 1, 1),
                 "Conv2DBackpropInput": (0, 1, 1), "Conv2DBackpropFilter": (0, -1, 1), "ConvolutionGrad": (0, 2, 2)}
_BYTES = {"Bool": 1, "Int8": 1, "UInt8": 1, "Int16": 2, "Float16": 2, "BFloat16": 2, "Int64": 8, "Float64": 8}
_NODE = re.compile(r"^  %\d+\(.*?\) = (?:PrimFunc_)?([A-Za-z]\w*)\(")
_TYPES = re.compile(r"^      : \((.*)\) -> \((.*)\)$")
_TENSOR = re.compile(r"<(?:Ref\[)?Tensor\[(\w+)\]\]?, \(([\d, ]*)\)|<Tuple\[([^>]*?)\], TupleShape\((.*?)\)>")
_TYPE = re.compile(r"Tensor\[(\w+)\](?:\*(\d+))?")


@dataclass(frozen=True)
class Costs:
    """Work of a graph.

    Attributes:
        flops: Floating-point operations of convolutions and matrix products, two for each multiplication with addition.
        bytes: Bytes that kernels read and write, as if none kept its result on the chip for the next.
        short_bytes: Those of kernels on large tensors with rows of fewer than 64 values, which ``bytes`` leaves out.
        launches: Number of kernels.
    """
    flops: float = 0.0
    bytes: float = 0.0
    short_bytes: float = 0.0
    launches: int = 0

    def __add__(self, other: Costs) -> Costs:
        """Work of both."""
        return Costs(self.flops + other.flops, self.bytes + other.bytes, self.short_bytes + other.short_bytes,
                     self.launches + other.launches)

    def __mul__(self, factor: float) -> Costs:
        """Work of ``factor`` runs."""
        return Costs(self.flops * factor, self.bytes * factor, self.short_bytes * factor,
                     round(self.launches * factor))


@dataclass(frozen=True)
class Operator:
    """One operator of a graph.

    Attributes:
        name: MindSpore's name of the primitive.
        inputs: Element type and shape of each tensor that it reads.
        outputs: Those of the tensors that it writes.
    """
    name: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]


def costs(operator: Operator) -> Costs:
    """Work of one operator."""
    if operator.name in NO_KERNEL or not operator.outputs:
        return Costs()
    read, written = _size(operator.inputs), _size(operator.outputs)
    if operator.name in PARTIAL_READERS:
        read = min(read, written)
    if _has_short_rows(operator):
        return Costs(_flops(operator), 0, read + written, 1)
    return Costs(_flops(operator), read + written, 0, 1)


def _has_short_rows(operator: Operator) -> bool:
    shapes = [shape for _, shape in (*operator.inputs, *operator.outputs) if math.prod(shape) >= LARGE]
    moved = operator.name == "Transpose"
    return any(shape[-1] < SHORT_ROW and (moved or len(shape) != 4) for shape in shapes)


def _size(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    return sum(math.prod(shape) * _BYTES.get(kind, 4) for kind, shape in tensors)


def _flops(operator: Operator) -> float:
    """Products of a convolution, of its gradients, or of matrices; 0 for other operators."""
    name, shapes, result = operator.name, [shape for _, shape in operator.inputs], operator.outputs[0][1]
    if name in _MATRICES:
        # (.., m, k) x (.., k, n): the numbers of elements give k also where one of them is transposed or broadcast.
        left, right = shapes[0][-2:], shapes[1][-2:]
        inner = math.isqrt(math.prod(left) * math.prod(right) // math.prod(result[-2:]))
        return 2.0 * math.prod(result) * inner
    if name in _CONVOLUTIONS:
        # Each weight meets each pixel of the result of the convolution that the operator is, or is the gradient of.
        place, weight, count = _CONVOLUTIONS[name]
        pixels = [*shapes, result][place]
        return 2.0 * count * pixels[0] * math.prod(pixels[2:]) * math.prod([*shapes, result][weight])
    if "conv" in name.lower() or "matmul" in name.lower():
        raise UserError(f"the planner has no rule for the products of operator {name}; add one to {__file__}")
    return 0.0


def _tensors(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Types and shapes of the tensors in the signature of an operator, also of those in tuples."""
    for kind, shape, kinds, tuple_shape in _TENSOR.findall(text):
        if kind:
            yield kind, _shape(shape)
            continue
        repeated = [name for name, count in _TYPE.findall(kinds) for _ in range(int(count or 1))]
        yield from zip(repeated, map(_shape, re.findall(r"\(([\d, ]*)\)", tuple_shape)), strict=False)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.replace(",", " ").split())


def operators(lines: Iterable[str]) -> Iterator[Operator]:
    """Reads the operators of a graph.

    Args:
        lines: Text that MindSpore saved; the constants of an operator may fill several lines.
    """
    name = None
    for line in lines:
        node = _NODE.match(line)
        name = node[1] if node else name
        types = _TYPES.match(line)
        if name and types:
            yield Operator(name, tuple(_tensors(types[1])), tuple(_tensors(types[2])))
            name = None


def compiled_costs(cell: nn.Cell, *arguments: Tensor) -> Costs:
    """Compiles a cell without running it, and counts.

    Args:
        cell: Cell in graph mode.
        *arguments: What it is to be called with; only shapes and types matter.

    Raises:
        UserError: MindSpore saved no graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder, "MS_DEV_DUMP_IR_PASSES": "validate"}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            cell.compile(*arguments)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        files = sorted(Path(folder).glob("**/*_validate_*.ir"))
        if not files:
            raise UserError(f"{folder}: MindSpore saved no graph of {type(cell).__name__}; the planner needs the full "
                            "package of MindSpore 2.7 to 2.10")
        total = Costs()
        for file in files:
            with file.open(encoding="utf-8", errors="replace") as lines:
                total = sum(map(costs, operators(lines)), total)
        return total
