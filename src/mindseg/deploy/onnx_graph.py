"""What MindSpore's ONNX exporter leaves to do: fold, repair, rename, convert and check, with the ``onnx`` package.

Every function takes an ``onnx.ModelProto``, changes it in place unless it says otherwise, and returns it.
"""
from collections import Counter

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper, shape_inference, version_converter
from onnx.reference import ReferenceEvaluator

from mindseg.errors import UserError

MIN_OPSET, MAX_OPSET = 11, 17
BATCH_NAME = "batch"
# The oldest IR that allows each opset: older readers refuse a newer one than they know.
_IR_OF_OPSET = {11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8}


def _wiring(model: ModelProto) -> tuple[dict[str, TensorProto], dict[str, NodeProto], Counter[str]]:
    """Constants by name, the node that makes each other tensor, and how often each is used; an output is a use."""
    graph = model.graph
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    return ({tensor.name: tensor for tensor in graph.initializer},
            {name: node for node in graph.node for name in node.output}, uses)


def rename_tensors(model: ModelProto, names: dict[str, str]) -> ModelProto:
    """Renames inputs, outputs and every use of them."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    return model


def repair_transposed_convs(model: ModelProto) -> int:
    """Removes ``output_shape`` from ConvTranspose: MindSpore writes all four dimensions where ONNX wants the last two,
    and padding and strides give the size anyway.

    Returns:
        Number of nodes repaired.
    """
    repaired = 0
    for node in model.graph.node:
        wrong = [item for item in node.attribute if node.op_type == "ConvTranspose" and item.name == "output_shape"]
        for item in wrong:
            node.attribute.remove(item)
            repaired += 1
    return repaired


def fold_constants(model: ModelProto) -> int:
    """Computes nodes whose inputs are all constants and stores their results as initializers.

    Returns:
        Number of nodes removed.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    folded = []
    for node in graph.node:
        if not all(name in constants for name in node.input) or outputs.intersection(node.output):
            continue
        feeds = {name: numpy_helper.to_array(constants[name]) for name in node.input}
        values = ReferenceEvaluator(node, opsets={"": _opset(model)}).run(None, feeds)
        for name, value in zip(node.output, values, strict=True):
            constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
            graph.initializer.append(constants[name])
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
    drop_unused_initializers(model)
    return len(folded)


def fold_batch_norm(model: ModelProto) -> int:
    """Folds every BatchNormalization that follows a Conv or ConvTranspose into its weights and bias.

    With ``s = gamma / sqrt(var + eps)`` the weights become ``w * s`` and the bias ``(b - mean) * s + beta``, computed
    in float64 and stored as float32.

    Returns:
        Number of BatchNormalization nodes removed.
    """
    graph = model.graph
    tensors, producers, uses = _wiring(model)
    folded = []
    for norm in graph.node:
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type not in ("Conv", "ConvTranspose") or uses[norm.input[0]] != 1:
            continue
        # A weight shared by two layers, or a grouped transposed convolution, cannot take one scale.
        if uses[conv.input[1]] != 1 or (conv.op_type == "ConvTranspose" and _attribute(conv, "group", 1) != 1):
            continue
        _fold_one(graph, conv, norm, tensors)
        conv.output[0] = norm.output[0]
        producers[conv.output[0]] = conv
        folded.append(norm)
    for norm in folded:
        graph.node.remove(norm)
    drop_unused_initializers(model)
    return len(folded)


def _fold_one(graph: onnx.GraphProto, conv: NodeProto, norm: NodeProto, tensors: dict[str, TensorProto]) -> None:
    gamma, beta, mean, variance = (numpy_helper.to_array(tensors[name]).astype(np.float64) for name in norm.input[1:5])
    scale = gamma / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
    weight = numpy_helper.to_array(tensors[conv.input[1]]).astype(np.float64)
    axis = 1 if conv.op_type == "ConvTranspose" else 0
    shape = [1] * weight.ndim
    shape[axis] = -1
    bias = numpy_helper.to_array(tensors[conv.input[2]]).astype(np.float64) if len(conv.input) > 2 else 0.0
    names = (conv.input[1], f"{conv.input[1]}.folded_bias")
    for name, value in zip(names, (weight * scale.reshape(shape), (bias - mean) * scale + beta), strict=True):
        tensor = numpy_helper.from_array(value.astype(np.float32), name)
        if name in tensors:
            tensors[name].CopyFrom(tensor)
        else:
            graph.initializer.append(tensor)
            tensors[name] = graph.initializer[-1]
    conv.input[:] = [conv.input[0], *names]


def rewrite_constant_concat(model: ModelProto) -> int:
    """Replaces a Concat of one tensor with blocks of one constant number before or behind it by one Pad.

    The networks pad by concatenation, because MindSpore's exporter has no Pad; the blocks are then constants of the
    traced batch size, which would pin a dynamic batch.

    Returns:
        Number of nodes replaced.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    replaced = 0
    for index, node in enumerate(graph.node):
        tensors = [name for name in node.input if name not in constants]
        if node.op_type != "Concat" or len(tensors) != 1 or len(node.input) == 1:
            continue
        blocks = {i: numpy_helper.to_array(constants[name]) for i, name in enumerate(node.input) if name in constants}
        numbers = np.unique(np.concatenate([block.ravel() for block in blocks.values()]))
        rank = next(iter(blocks.values())).ndim
        axis = int(_attribute(node, "axis", 0)) % rank
        if axis == 0 or numbers.size != 1:
            continue
        pads = np.zeros(2 * rank, np.int64)
        for i, block in blocks.items():
            pads[axis if i < list(node.input).index(tensors[0]) else rank + axis] += block.shape[axis]
        names = [f"{node.output[0]}.pads", f"{node.output[0]}.value"]
        graph.initializer.extend([numpy_helper.from_array(pads, names[0]),
                                  numpy_helper.from_array(numbers.reshape(()), names[1])])
        graph.node[index].CopyFrom(helper.make_node("Pad", [tensors[0], *names], list(node.output), mode="constant",
                                                    name=f"{node.name or node.output[0]}.pad"))
        replaced += 1
    drop_unused_initializers(model)
    return replaced


def fold_pool_padding(model: ModelProto) -> int:
    """Takes padding with a number below all others into the max-pooling behind it, whose own padding never wins.

    Call it after :func:`rewrite_constant_concat`. It saves nodes, and OpenVINO cannot compile such a Pad behind
    quantised pixels: it casts the number to uint8.

    Returns:
        Number of Pad nodes removed.
    """
    graph = model.graph
    constants, producers, uses = _wiring(model)
    removed = 0
    for pool in graph.node:
        plain = pool.op_type == "MaxPool" and len(pool.output) == 1 and _attribute(pool, "auto_pad", b"NOTSET") in (
            b"VALID", b"NOTSET")
        pads = list(_attribute(pool, "pads", [0, 0, 0, 0])) if plain else []
        kernel = _attribute(pool, "kernel_shape", [])
        while len(pads) == 4 and uses[pool.input[0]] == 1 and pool.input[0] in producers:
            more = _spatial_padding(producers[pool.input[0]], constants)
            total = [old + new for old, new in zip(pads, more, strict=False)]
            # ONNX wants less padding than the kernel is long.
            if len(total) != 4 or any(total[i] >= kernel[i % 2] for i in range(4)):
                break
            pads, pool.input[0], removed = total, producers[pool.input[0]].input[0], removed + 1
        if any(pads):
            kept = [item for item in pool.attribute if item.name not in ("pads", "auto_pad")]
            del pool.attribute[:]
            pool.attribute.extend([*kept, helper.make_attribute("pads", pads)])
    if removed:
        drop_unused_nodes(model)
    return removed


def _spatial_padding(node: NodeProto, constants: dict[str, TensorProto]) -> list[int]:
    """``[top, left, bottom, right]`` of a Pad of images with a number below -1e29; empty for all other nodes."""
    if node.op_type != "Pad" or len(node.input) != 3 or not set(node.input[1:]) <= set(constants):
        return []
    amounts, value = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
    images_only = amounts.size == 8 and not amounts[[0, 1, 4, 5]].any() and (amounts >= 0).all()
    return amounts[[2, 3, 6, 7]].tolist() if images_only and value.size == 1 and value.item() < -1e29 else []


def rewrite_prelu(model: ModelProto) -> int:
    """Replaces ``relu(x) - slope * relu(-x)`` by one PRelu.

    The networks write it out because MindSpore's own PReLU is slow on the CPU; runtimes fuse the operator, not the
    formula.

    Returns:
        Number of PRelu nodes made.
    """
    graph = model.graph
    constants, producers, uses = _wiring(model)

    def made_by(name: str, operator: str) -> NodeProto | None:
        node = producers.get(name)
        return node if node is not None and node.op_type == operator else None

    replaced = 0
    for index, sub in enumerate(list(graph.node)):
        positive = made_by(sub.input[0], "Relu") if sub.op_type == "Sub" else None
        product = made_by(sub.input[1], "Mul") if positive is not None else None
        if product is None:
            continue
        slope, name = sorted(product.input, key=lambda item: item not in constants)
        negative = made_by(name, "Relu")
        minus = made_by(negative.input[0], "Neg") if negative is not None else None
        chain = (positive, product, negative, minus)
        if minus is None or slope not in constants or minus.input[0] != positive.input[0] or any(
                uses[node.output[0]] != 1 for node in chain):
            continue
        # The nodes that lost their reader are dropped below; the list keeps its order for the others.
        graph.node[index].CopyFrom(helper.make_node("PRelu", [positive.input[0], slope], list(sub.output),
                                                    name=f"{sub.name or sub.output[0]}.prelu"))
        replaced += 1
    if replaced:
        drop_unused_nodes(model)
    return replaced


def drop_unused_nodes(model: ModelProto) -> ModelProto:
    """Removes nodes whose results nobody reads, and constants that only they read."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    return drop_unused_initializers(model)


def rewrite_resize(model: ModelProto) -> int:
    """Replaces ``A @ (x @ B)`` by one ``Resize`` where A and B are exactly bilinear interpolation matrices.

    The networks export a resize as two constant matrix products, which every ONNX opset and runtime knows; a runtime
    with a fast ``Resize`` may prefer this form.

    Returns:
        Number of pairs replaced.
    """
    graph = model.graph
    constants, producers, uses = _wiring(model)
    replaced = 0
    for outer in list(graph.node):
        pair = _resize_pair(outer, producers, constants, uses)
        if pair is None:
            continue
        inner, source, rows, columns = pair
        mode = _interpolation_mode(rows, columns.T)
        if mode is None:
            continue
        name = f"{outer.output[0]}.scales"
        scales = np.array([1, 1, _resize_scale(*rows.shape), _resize_scale(*columns.T.shape)], np.float32)
        graph.initializer.append(numpy_helper.from_array(scales, name))
        # Opset 11 has no way to leave roi out; it is ignored in these modes.
        roi = f"{outer.output[0]}.roi"
        graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.float32), roi))
        resize = helper.make_node("Resize", [source, roi, name], list(outer.output), mode="linear",
                                  coordinate_transformation_mode=mode, name=f"{outer.name or outer.output[0]}.resize")
        index = list(graph.node).index(outer)
        graph.node.insert(index, resize)
        graph.node.remove(outer)
        graph.node.remove(inner)
        replaced += 1
    drop_unused_initializers(model)
    return replaced


def _resize_pair(outer: NodeProto, producers: dict[str, NodeProto], constants: dict[str, TensorProto],
                 uses: Counter) -> tuple[NodeProto, str, np.ndarray, np.ndarray] | None:
    """Finds ``rows @ (source @ columns)`` or ``(rows @ source) @ columns`` that ends in ``outer``."""
    if outer.op_type != "MatMul":
        return None
    constant_first = outer.input[0] in constants
    inner_name = outer.input[1] if constant_first else outer.input[0]
    inner = producers.get(inner_name)
    if inner is None or inner.op_type != "MatMul" or uses[inner_name] != 1:
        return None
    outer_matrix = outer.input[0 if constant_first else 1]
    source, inner_matrix = inner.input if constant_first else reversed(inner.input)
    if outer_matrix not in constants or inner_matrix not in constants or source in constants:
        return None
    first, second = (numpy_helper.to_array(constants[name]) for name in (outer_matrix, inner_matrix))
    rows, columns = (first, second) if constant_first else (second, first)
    rows, columns = (matrix.reshape(matrix.shape[-2:]) if matrix.size == np.prod(matrix.shape[-2:]) else matrix
                     for matrix in (rows, columns))
    return (inner, source, rows, columns) if rows.ndim == columns.ndim == 2 else None


def _interpolation_mode(rows: np.ndarray, columns: np.ndarray) -> str | None:
    for mode in ("align_corners", "half_pixel"):
        if all(np.allclose(matrix, bilinear_matrix(*matrix.shape, mode), atol=1e-6) for matrix in (rows, columns)):
            return mode
    return None


def _resize_scale(size_out: int, size_in: int) -> np.float32:
    """``size_out / size_in`` in float32, never so small that ONNX's ``floor(size_in * scale)`` loses a pixel."""
    scale = np.float32(size_out / size_in)
    while size_in * float(scale) < size_out:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def bilinear_matrix(size_out: int, size_in: int, mode: str) -> np.ndarray:
    """Matrix (size_out, size_in) of one-dimensional linear interpolation; mode ``align_corners`` or ``half_pixel``."""
    position = np.arange(size_out, dtype=np.float64)
    if mode == "align_corners":
        source = position * (size_in - 1) / max(size_out - 1, 1)
    else:
        source = np.maximum((position + 0.5) * size_in / size_out - 0.5, 0)
    low = np.minimum(np.floor(source).astype(int), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    matrix = np.zeros((size_out, size_in))
    index = np.arange(size_out)
    np.add.at(matrix, (index, low), 1 - (source - low))
    np.add.at(matrix, (index, high), source - low)
    return matrix.astype(np.float32)


def drop_unused_initializers(model: ModelProto) -> ModelProto:
    """Removes constants that no node reads."""
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def set_dynamic_batch(model: ModelProto) -> ModelProto:
    """Gives inputs and outputs a named batch dimension and frees constant reshapes and slices from the traced batch."""
    graph = model.graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    # Operator: the input that holds the traced batch first, and what says "all of it".
    free = {"Reshape": (1, 0), "Slice": (2, np.iinfo(np.int32).max)}
    for node in graph.node:
        place, everything = free.get(node.op_type, (0, 0))
        values = tensors.get(node.input[place]) if place else None
        if values is None or (len(node.input) > 3 and _first_axis(tensors.get(node.input[3])) != 0):
            continue
        target = numpy_helper.to_array(values).copy()
        if target.size and target[0] == batch:
            target[0] = everything
            name = f"{node.output[0]}.{node.op_type.lower()}"
            graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[place] = name
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH_NAME
    del graph.value_info[:]
    return drop_unused_initializers(model)


def _first_axis(axes: TensorProto | None) -> int | None:
    """The first of the axes that a Slice names, ``None`` if it is unknown."""
    return None if axes is None else int(numpy_helper.to_array(axes)[0])


def prepend_normalisation(model: ModelProto, mean: np.ndarray, std: np.ndarray) -> ModelProto:
    """Replaces the float NCHW input by uint8 NHWC pixels: Cast, Transpose, Sub, Mul.

    Args:
        model: Its only input is (N,3,H,W) float32.
        mean: (3,) in pixel units 0..255.
        std: (3,) in pixel units 0..255.
    """
    graph = model.graph
    value = graph.input[0]
    shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    name, inner = value.name, f"{value.name}.normalized"
    for node in graph.node:
        node.input[:] = [inner if item == name else item for item in node.input]
    for label, numbers in (("mean", mean), ("scale", 1 / np.asarray(std, np.float64))):
        tensor = np.asarray(numbers, np.float32).reshape(1, 3, 1, 1)
        graph.initializer.append(numpy_helper.from_array(tensor, f"{name}.{label}"))
    # Transposing bytes before the cast moves a quarter of the memory.
    nodes = [helper.make_node("Transpose", [name], [f"{name}.planes"], perm=[0, 3, 1, 2], name=f"{name}.transpose"),
             helper.make_node("Cast", [f"{name}.planes"], [f"{name}.float"], to=TensorProto.FLOAT, name=f"{name}.cast"),
             helper.make_node("Sub", [f"{name}.float", f"{name}.mean"], [f"{name}.centred"], name=f"{name}.sub"),
             helper.make_node("Mul", [f"{name}.centred", f"{name}.scale"], [inner], name=f"{name}.mul")]
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, [shape[0], *shape[2:], shape[1]]))
    return model


def append_argmax(model: ModelProto) -> ModelProto:
    """Replaces the logits (N,C,H,W) by uint8 class ids (N,H,W); the first of equal maxima wins, as in ``np.argmax``."""
    graph = model.graph
    value = graph.output[0]
    shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    name, logits = value.name, f"{value.name}.logits"
    for node in graph.node:
        node.input[:] = [logits if item == name else item for item in node.input]
        node.output[:] = [logits if item == name else item for item in node.output]
    ids = f"{name}.ids"
    graph.node.append(helper.make_node("ArgMax", [logits], [ids], axis=1, keepdims=0, name=f"{name}.argmax"))
    graph.node.append(helper.make_node("Cast", [ids], [name], to=TensorProto.UINT8, name=f"{name}.cast"))
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, [shape[0], *shape[2:]]))
    return model


def convert_opset(model: ModelProto, opset: int) -> ModelProto:
    """Returns the model in another opset, with the IR version of that opset's time.

    Raises:
        UserError: The opset is out of range, or an operator cannot be converted.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UserError(f"export.opset = {opset} must be {MIN_OPSET} to {MAX_OPSET}")
    if _opset(model) != opset:
        try:
            model = version_converter.convert_version(model, opset)
        except RuntimeError as error:
            raise UserError(f"export.opset = {opset}: the graph cannot be converted ({str(error).splitlines()[0]}); "
                            "try 11 or 17") from error
    model.ir_version = _IR_OF_OPSET[opset]
    return model


def check_graph(model: ModelProto) -> ModelProto:
    """Returns the model with inferred shapes after the full ONNX check (types, shapes, opset, single assignment).

    Raises:
        UserError: The graph is not valid.
    """
    try:
        model = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the exported ONNX graph is not valid: {reason}") from error
    return model


def set_origin(model: ModelProto, version: str, metadata: dict[str, str]) -> ModelProto:
    """Records who made the model: producer version and key-value metadata."""
    model.producer_version = version
    helper.set_model_props(model, metadata)
    return model


def _opset(model: ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _attribute(node: NodeProto, name: str, default: float) -> float:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)
