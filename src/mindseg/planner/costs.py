"""Amounts of work in a compiled graph: products, bytes, kernels, counted operator by operator."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from mindseg.errors import UserError
from mindseg.planner.graph import NO_KERNEL, Graph, Node, TensorType

# Maps (N, C, H, W) are kept as NC1HWC0, in blocks of 16 channels, and so are weights for the matrix units: CANN's
# documents of its data formats. Other tensors lie in rows along their last axis; kernels work on blocks of neighbouring
# values, which a short row fills badly.
BLOCK, SHORT_ROW, LARGE = 16, 64, 2**16
# These read no more of their inputs than they write.
PARTIAL_READERS = {"Slice", "StridedSlice", "Gather", "GatherD", "SliceExt", "SplitWithSize", "SplitV"}
# All-reduces of a few bytes. A synchronised BatchNorm adds up sums and squares, and its gradient two sums.
REDUCTIONS = {"AllReduce": 1, "SyncBatchNorm": 2, "SyncBatchNormGrad": 2}
_MATRICES = ("MatMul", "BatchMatMul", "MatMulExt", "BatchMatMulExt", "Mm")
# Tensor with the pixels, tensor with the weights (number of the input, -1: the result), and how many products of them.
_CONVOLUTIONS = {"Conv2D": (-1, 1, 1), "Conv2DExt": (-1, 1, 1), "Conv2DTranspose": (0, 1, 1),
                 "Conv2DBackpropInput": (0, 1, 1), "Conv2DBackpropFilter": (0, -1, 1), "ConvolutionGrad": (0, 2, 2)}
_BYTES = {"Bool": 1, "Int8": 1, "UInt8": 1, "Int16": 2, "Float16": 2, "BFloat16": 2, "Int64": 8, "Float64": 8}


@dataclass(frozen=True)
class Costs:
    """Work of a graph.

    Attributes:
        flops: Floating-point operations of convolutions and matrix products, two for each multiplication with addition,
            with channels filled up to blocks.
        bytes: Bytes that kernels read and write, as if none kept its result on the chip for the next.
        short_bytes: Those of kernels on large tensors with rows of fewer than 64 values, which ``bytes`` leaves out.
        launches: Number of kernels.
        reductions: All-reduces inside the graph.
        loss_bytes: Bytes of kernels on scores (N, classes, pixels), which ``bytes`` leaves out, too.
    """
    flops: float = 0.0
    bytes: float = 0.0
    short_bytes: float = 0.0
    launches: int = 0
    reductions: int = 0
    loss_bytes: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        """Work of both."""
        return Costs(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, number: int) -> Costs:
        """Work of so many runs."""
        return Costs(*(getattr(self, f.name) * number for f in fields(self)))


def graph_costs(graphs: Iterable[Graph]) -> Costs:
    """Work of all operators."""
    return sum((costs(node) for graph in graphs for node in graph.values()), Costs())


def costs(node: Node) -> Costs:
    """Work of one operator."""
    if node.operator in NO_KERNEL or not node.outputs:
        return Costs()
    read, written = _size(node.inputs), _size(node.outputs)
    if node.operator in PARTIAL_READERS:
        read = min(read, written)
    flops, reductions = products(node), REDUCTIONS.get(node.operator, 0)
    large = [shape for _, shape in (*node.inputs, *node.outputs) if math.prod(shape) >= LARGE]
    moved = node.operator == "Transpose"
    if any(shape[-1] < SHORT_ROW and (moved or len(shape) != 4) for shape in large):
        return Costs(flops, 0, read + written, 1, reductions)
    if any(len(shape) == 3 and 1 < shape[1] < SHORT_ROW and shape[2] >= LARGE for shape in large):
        return Costs(flops, 0, 0, 1, reductions, read + written)
    return Costs(flops, read + written, 0, 1, reductions)


def _size(tensors: Iterable[TensorType]) -> int:
    return sum(math.prod(_filled(shape, 1)) * _BYTES.get(kind, 4) for kind, shape in tensors)


def _filled(shape: tuple[int, ...], axes: int, block: int = BLOCK) -> tuple[int, ...]:
    """Shape in memory: the second axis of four, or the first two, are filled up to whole blocks."""
    if len(shape) != 4:
        return shape
    full = [-(-length // block) * block for length in shape[:2]]
    return (shape[0] if axes == 1 else full[0], full[1], *shape[2:])


def products(node: Node, block: int = BLOCK) -> float:
    """Floating-point operations of a convolution, of its gradients, or of matrices; 0 for other operators.

    Args:
        node: The operator.
        block: Channels of a convolution are filled up to a multiple of this; 1 counts what the network needs.

    Raises:
        UserError: The planner knows no rule for this convolution or product.
    """
    name, shapes = node.operator, [shape for _, shape in node.inputs]
    result = node.outputs[0][1] if node.outputs else ()
    if name in _MATRICES:
        # (.., m, k) x (.., k, n): the numbers of elements give k also where one of them is transposed or broadcast.
        left, right = shapes[0][-2:], shapes[1][-2:]
        inner = math.isqrt(math.prod(left) * math.prod(right) // math.prod(result[-2:]))
        return 2.0 * math.prod(result) * inner
    if name in _CONVOLUTIONS:
        # Each weight meets each pixel of the result of the convolution that the operator is, or is the gradient of.
        place, weight, count = _CONVOLUTIONS[name]
        pixels = [*shapes, result][place]
        return 2.0 * count * pixels[0] * math.prod(pixels[2:]) * math.prod(_filled([*shapes, result][weight], 2, block))
    if "conv" in name.lower() or "matmul" in name.lower():
        raise UserError(f"the planner has no rule for the products of operator {name}; add one to {__file__}")
    return 0.0
