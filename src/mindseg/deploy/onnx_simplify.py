"""Smaller ONNX graphs: onnxscript's optimizer folds constants and BatchNorm, the rules here undo MindSpore's detours.

MindSpore's ONNX exporter lacks operators that the networks therefore spell out: a padding as a concatenation, PReLU as
a formula, a resize as two matrix products.
"""
import numpy as np
import onnx_ir as ir
from onnx import ModelProto
from onnxscript import optimizer
from onnxscript.rewriter.pattern import MatchResult, RewriteRule, RewriteRuleClassBase, RewriteRuleSet

from mindseg.models.layers import bilinear_matrix

_NO_LIMIT = 1 << 40     # elements of a constant that may be folded; the default would leave out large weights


def simplify(model: ModelProto, input_name: str, output_name: str, use_resize: bool = False) -> ModelProto:
    """Returns an equal graph with fewer nodes.

    Args:
        model: Graph with one input and one output, opset 11.
        input_name: New name of the input.
        output_name: New name of the output.
        use_resize: Write ``Resize`` operators instead of the products with interpolation matrices. Every opset and
            runtime knows the products; a runtime with a fast ``Resize`` may prefer the operator.
    """
    graph_model = ir.from_proto(model)
    graph = graph_model.graph
    graph.inputs[0].name, graph.outputs[0].name = input_name, output_name
    for node in graph:
        if node.op_type == "ConvTranspose":
            _repair(node)
    optimizer.optimize(graph_model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    rules = [_SizesToScales.rule(), _ConcatToPad.rule(), _PadIntoMaxPool.rule(),
             RewriteRule(_written_out_prelu, _prelu, _slope_is_constant)]
    if use_resize:
        rules += [_MatMulsToResize.rule(rows_first=True), _MatMulsToResize.rule(rows_first=False)]
    rules = RewriteRuleSet(rules, commute=True)
    while rules.apply_to_model(graph_model):
        pass
    optimizer.remove_unused_nodes(graph_model)
    return ir.to_proto(graph_model)


def _repair(transposed: ir.Node) -> None:
    """Makes a transposed convolution of MindSpore's exporter readable."""
    # MindSpore writes all four dimensions, ONNX allows the last two, and padding and strides give the size anyway.
    transposed.attributes.pop("output_shape", None)
    # MindSpore writes top, bottom, left, right.
    top, bottom, left, right = transposed.attributes.get_ints("pads", (0, 0, 0, 0))
    transposed.attributes.add(ir.AttrInt64s("pads", (top, left, bottom, right)))


def _array(value: ir.Value) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


class _SizesToScales(RewriteRuleClassBase):
    """A ``Resize`` by whole factors gets these instead of the size, which holds the traced batch."""

    def pattern(self, op, x, roi, scales, sizes):
        return op.Resize(x, roi, scales, sizes, _outputs=["resized"])

    def check(self, context, x: ir.Value, sizes: ir.Value, resized: ir.Value, **_) -> MatchResult:
        result, sizes = MatchResult(), _array(sizes)
        if sizes is None or x.shape is None or not x.shape.is_static():
            return result.fail("an unknown size")
        factors = sizes / x.shape.numpy()
        if (factors != np.round(factors)).any():
            return result.fail("no whole factors")
        self._scales = factors.astype(np.float32)
        return result

    def rewrite(self, op, x: ir.Value, roi: ir.Value, resized: ir.Value, **_):
        scales = op.initializer(ir.tensor(self._scales), name=f"{resized.name}.scales")
        return op.Resize(x, roi, scales, **resized.producer().attributes)


class _ConcatToPad(RewriteRuleClassBase):
    """A concatenation of one tensor with constant blocks of a single number becomes one ``Pad``.

    The blocks have the traced batch size, which would rule out a dynamic batch.
    """

    def pattern(self, op, joined):
        return op.Concat(_allow_other_inputs=True, _outputs=["joined"])

    def check(self, context, joined: ir.Value) -> MatchResult:
        result, node = MatchResult(), joined.producer()
        blocks = [_array(value) for value in node.inputs]
        constants = [block for block in blocks if block is not None]
        if len(constants) != len(blocks) - 1 or not constants:
            return result.fail("not one tensor with constant blocks")
        self._numbers = np.unique(np.concatenate([block.ravel() for block in constants]))
        rank = constants[0].ndim
        axis = node.attributes.get_int("axis") % rank
        if axis == 0 or self._numbers.size != 1:
            return result.fail("along the batch, or more than one number")
        place = next(i for i, block in enumerate(blocks) if block is None)
        self._source = node.inputs[place]
        self._pads = np.zeros(2 * rank, np.int64)
        self._pads[axis] = sum(block.shape[axis] for block in blocks[:place])
        self._pads[rank + axis] = sum(block.shape[axis] for block in blocks[place + 1:])
        return result

    def rewrite(self, op, joined: ir.Value):
        pads = op.initializer(ir.tensor(self._pads), name=f"{joined.name}.pads")
        number = op.initializer(ir.tensor(self._numbers.reshape(())), name=f"{joined.name}.number")
        return op.Pad(self._source, pads, number, mode="constant")


class _PadIntoMaxPool(RewriteRuleClassBase):
    """Padding with a number below all others moves into the max-pooling behind it, whose own padding never wins.

    OpenVINO cannot compile such a ``Pad`` behind quantised pixels: it casts the number to uint8.
    """

    def pattern(self, op, x, amounts, number):
        return op.MaxPool(op.Pad(x, amounts, number), _outputs=["pooled"])

    def check(self, context, x: ir.Value, amounts: ir.Value, number: ir.Value, pooled: ir.Value) -> MatchResult:
        result, pool = MatchResult(), pooled.producer()
        pads, value = _array(amounts), _array(number)
        if pads is None or value is None or pads.size != 8 or value.size != 1 or value.item() > -1e29:
            return result.fail("no images padded with a constant below all numbers")
        if pads[[0, 1, 4, 5]].any() or (pads < 0).any():
            return result.fail("padded along batch or channels, or cropped")
        kernel, own = pool.attributes.get_ints("kernel_shape"), pool.attributes.get_ints("pads", (0, 0, 0, 0))
        self._total = [int(a + b) for a, b in zip(own, pads[[2, 3, 6, 7]], strict=True)]
        # ONNX allows less padding than the kernel is long.
        if any(self._total[i] >= kernel[i % 2] for i in range(4)):
            return result.fail("more than the kernel takes")
        if len(pool.outputs) > 1 or pool.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return result.fail("indices are read, or the pooling computes its padding")
        return result

    def rewrite(self, op, x: ir.Value, amounts: ir.Value, number: ir.Value, pooled: ir.Value):
        attributes = {key: value for key, value in pooled.producer().attributes.items() if key != "auto_pad"}
        return op.MaxPool(x, **(attributes | {"pads": self._total}))


def _written_out_prelu(op, x, slope):
    return op.Sub(op.Relu(x), op.Mul(op.Relu(op.Neg(x)), slope))


def _slope_is_constant(context, slope: ir.Value, **_) -> bool:
    return _array(slope) is not None


def _prelu(op, x: ir.Value, slope: ir.Value):
    return op.PRelu(x, slope)


class _MatMulsToResize(RewriteRuleClassBase):
    """``rows @ x @ columns`` becomes a ``Resize`` where both matrices are exactly those of bilinear interpolation.

    Args:
        rows_first: Match ``(rows @ x) @ columns`` instead of ``rows @ (x @ columns)``.
    """

    def __init__(self, rows_first: bool) -> None:
        super().__init__()
        self.rows_first = rows_first

    def pattern(self, op, x, rows, columns):
        if self.rows_first:
            return op.MatMul(op.MatMul(rows, x), columns)
        return op.MatMul(rows, op.MatMul(x, columns))

    def check(self, context, x: ir.Value, rows: ir.Value, columns: ir.Value) -> MatchResult:
        matrices = [_array(rows), _array(columns)]
        if any(matrix is None or matrix.ndim < 2 or matrix[..., 0, 0].size != 1 for matrix in matrices):
            return MatchResult().fail("no constant matrices")
        rows, columns = (matrix.reshape(matrix.shape[-2:]) for matrix in matrices)
        for self._mode, align_corners in (("align_corners", True), ("half_pixel", False), ("asymmetric", "low")):
            if all(np.allclose(matrix, bilinear_matrix(*matrix.shape, align_corners), atol=1e-6)
                   for matrix in (rows, columns.T)):
                self._scales = np.array([1, 1, _scale(*rows.shape), _scale(*columns.T.shape)], np.float32)
                return MatchResult()
        return MatchResult().fail("other matrices")

    def rewrite(self, op, x: ir.Value, rows: ir.Value, columns: ir.Value):
        scales = op.initializer(ir.tensor(self._scales), name=f"{x.name}.scales")
        # Opset 11 has no way to leave roi out; it is ignored in these modes.
        roi = op.initializer(ir.tensor(np.zeros(0, np.float32)), name=f"{x.name}.roi")
        return op.Resize(x, roi, scales, mode="linear", coordinate_transformation_mode=self._mode)


def _scale(size_out: int, size_in: int) -> np.float32:
    """``size_out / size_in`` in float32, never so small that ONNX's ``floor(size_in * scale)`` loses a pixel."""
    scale = np.float32(size_out / size_in)
    while size_in * float(scale) < size_out:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale
