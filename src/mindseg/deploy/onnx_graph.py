"""Operations on ONNX graphs with the ``onnx`` package alone: dynamic batch, class choice, opset and checks.

Every function takes an ``onnx.ModelProto``, changes it in place unless it says otherwise, and returns it.
"""
import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, shape_inference, version_converter

from mindseg.errors import UserError, first_line

MIN_OPSET, MAX_OPSET = 11, 17
BATCH_NAME = "batch"


def opset_of(model: ModelProto) -> int:
    """The opset of ONNX's own operators."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def set_dynamic_batch(model: ModelProto) -> ModelProto:
    """Gives inputs and outputs a named batch dimension and frees constant reshapes and slices from the traced batch."""
    graph = model.graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        # The input that holds the traced batch first, and the number that says "all of it".
        place, everything = {"Reshape": (1, 0), "Slice": (2, np.iinfo(np.int32).max)}.get(node.op_type, (0, 0))
        target = constants.get(node.input[place], np.zeros(0)) if place else np.zeros(0)
        axes = constants.get(node.input[3], [None]) if len(node.input) > 3 else [0]
        if target.size and target[0] == batch and axes[0] == 0:
            name = f"{node.output[0]}.{node.op_type.lower()}"
            values = np.array([everything, *target[1:]], target.dtype)
            graph.initializer.append(numpy_helper.from_array(values, name))
            node.input[place] = name
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH_NAME
    del graph.value_info[:]
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return model


def append_argmax(model: ModelProto) -> ModelProto:
    """Replaces the logits (N,C,H,W), the first output, by uint8 class ids (N,H,W).

    The first of equal maxima wins, as in ``np.argmax``.
    """
    graph = model.graph
    value = graph.output[0]
    shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    name, logits, ids = value.name, f"{value.name}.logits", f"{value.name}.ids"
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [logits if item == name else item for item in names]
    graph.node.append(helper.make_node("ArgMax", [logits], [ids], axis=1, keepdims=0, name=f"{name}.argmax"))
    graph.node.append(helper.make_node("Cast", [ids], [name], to=TensorProto.UINT8, name=f"{name}.cast"))
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, [shape[0], *shape[2:]]))
    return model


def append_confidence(model: ModelProto, name: str, temperature: float) -> ModelProto:
    """Adds a second output behind the logits (N,C,H,W): the highest probability, uint8 (N,H,W), ``round(255 * p)``.

    Args:
        model: Its only output are the logits.
        name: Name of the new output.
        temperature: Divisor of the logits before the softmax; 1 adds no operator.
    """
    graph, logits = model.graph, model.graph.output[0]

    def add(operator: str, *inputs: str, result: str = "", **attributes: int | list[int]) -> str:
        result = result or f"{name}.{operator.lower()}"
        graph.node.append(helper.make_node(operator, inputs, [result], name=f"{result}.node", **attributes))
        return result

    def constant(key: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{name}.{key}"))
        return f"{name}.{key}"

    distance = add("Sub", logits.name, add("ReduceMax", logits.name, axes=[1], keepdims=1))
    if temperature != 1:
        distance = add("Div", distance, constant("temperature", np.float32(temperature)), result=f"{name}.tempered")
    powers = add("Exp", distance)
    if opset_of(model) < 13:
        total = add("ReduceSum", powers, axes=[1], keepdims=0)
    else:
        total = add("ReduceSum", powers, constant("axis", np.array([1])), keepdims=0)
    level = add("Div", constant("255", np.float32(255)), total)
    level = add("Floor", add("Add", level, constant("half", np.float32(0.5))))
    add("Cast", level, result=name, to=TensorProto.UINT8)
    batch, _, height, width = (dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim)
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, height, width]))
    return model


def convert_opset(model: ModelProto, opset: int) -> ModelProto:
    """Returns the model in another opset, with the oldest IR that allows it: readers refuse a newer one than they know.

    Raises:
        UserError: The opset is out of range, or an operator cannot be converted.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UserError(f"export.opset = {opset} must be {MIN_OPSET} to {MAX_OPSET}")
    if opset_of(model) != opset:
        try:
            model = version_converter.convert_version(model, opset)
        except RuntimeError as error:
            raise UserError(f"export.opset = {opset}: the graph cannot be converted ({first_line(error)}); "
                            "try 11 or 17") from error
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
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
