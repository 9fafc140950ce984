"""Graph repairs: each rewritten graph gives onnxruntime's result of the original, or NumPy's."""
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mindseg.deploy import onnx_graph
from mindseg.deploy.onnx_simplify import simplify
from mindseg.errors import UserError
from mindseg.models.layers import bilinear_matrix


def make_model(nodes, constants, shape_in, shape_out, opset=11):
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
                              [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    onnx.checker.check_model(model)
    return model


def run(model, feed):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})[0]


def simplified(model, **options):
    """The simplified and checked graph; the argument stays as it is."""
    return onnx_graph.check_graph(simplify(model, "x", "y", **options))


def ops_of(model):
    return [node.op_type for node in model.graph.node]


def norm_constants(rng, channels, prefix="n"):
    values = {"gamma": rng.normal(1, 0.3, channels), "beta": rng.normal(size=channels),
              "mean": rng.normal(size=channels), "var": rng.uniform(0.3, 3, channels)}
    return {f"{prefix}_{key}": value.astype(np.float32) for key, value in values.items()}


def norm_node(source, target, prefix="n", epsilon=1e-3):
    names = [f"{prefix}_{key}" for key in ("gamma", "beta", "mean", "var")]
    return helper.make_node("BatchNormalization", [source, *names], [target], epsilon=epsilon)


@pytest.mark.parametrize(("op", "shape", "group", "bias"), [
    ("Conv", (6, 4, 3, 3), 1, False), ("Conv", (4, 1, 3, 3), 4, True), ("ConvTranspose", (4, 6, 2, 2), 1, True)])
def test_batch_norm_folds_into_convolutions(op, shape, group, bias):
    rng = np.random.default_rng(1)
    channels = shape[1] if op == "ConvTranspose" else shape[0]
    constants = {"w": rng.normal(size=shape).astype(np.float32), **norm_constants(rng, channels)}
    if bias:
        constants["b"] = rng.normal(size=channels).astype(np.float32)
    conv = helper.make_node(op, ["x", "w", "b"][:3 if bias else 2], ["c"], group=group)
    model = make_model([conv, norm_node("c", "y")], constants, [1, 4, 8, 9], ["n", channels, "h", "w"])
    x = rng.normal(size=(1, 4, 8, 9)).astype(np.float32)
    folded = simplified(model)
    assert ops_of(folded) == [op]
    assert len(folded.graph.initializer) == 2
    np.testing.assert_allclose(run(folded, x), run(model, x), atol=2e-5)


def test_batch_norm_stays_where_folding_would_change_another_branch():
    rng = np.random.default_rng(2)
    constants = {"w": rng.normal(size=(4, 4, 1, 1)).astype(np.float32), **norm_constants(rng, 4)}
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    add = helper.make_node("Add", ["c", "m"], ["y"])
    branch = make_model([conv, norm_node("c", "m"), add], constants, [1, 4, 5, 5], [1, 4, 5, 5])
    shared = make_model([conv, norm_node("c", "m"), helper.make_node("Conv", ["m", "w"], ["y"])], constants,
                        [1, 4, 5, 5], [1, 4, 5, 5])
    alone = make_model([norm_node("x", "y")], norm_constants(rng, 4), [1, 4, 5, 5], [1, 4, 5, 5])
    x = rng.normal(size=(1, 4, 5, 5)).astype(np.float32)
    for model in (branch, shared, alone):
        kept = simplified(model)
        assert ops_of(kept) == ops_of(model)
        np.testing.assert_array_equal(run(kept, x), run(model, x))


def test_mindspores_transposed_convolutions_become_readable():
    """It writes four output sizes, and the padding as top, bottom, left, right."""
    rng = np.random.default_rng(3)
    constants = {"w": rng.normal(size=(3, 5, 3, 3)).astype(np.float32)}
    attributes = {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "strides": [2, 2], "output_shape": [1, 5, 10, 14]}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 7])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 10, 14])],
                              [numpy_helper.from_array(constants["w"], "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    x = rng.normal(size=(1, 3, 5, 7)).astype(np.float32)
    full = np.zeros((1, 5, 11, 15))
    for i, j in np.ndindex(5, 7):
        full[:, :, 2 * i:2 * i + 3, 2 * j:2 * j + 3] += np.einsum("nc,cokl->nokl", x[:, :, i, j], constants["w"])
    np.testing.assert_allclose(run(simplified(model), x), full[:, :, 1:, :-1], atol=1e-5)


@pytest.mark.parametrize(("sizes", "inputs"), [([1, 2, 12, 8], 3), ([1, 2, 9, 8], 4)])
def test_a_resize_by_whole_factors_follows_a_dynamic_batch(sizes, inputs):
    attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    constants = {"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32), "sizes": np.array(sizes)}
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Resize", ["r", *constants], ["y"], **attributes)]
    model = simplified(make_model(nodes, constants, [1, 2, 6, 4], sizes))
    assert ops_of(model) == ["Relu", "Resize"]
    assert len(model.graph.node[1].input) == inputs
    if inputs == 3:
        model = onnx_graph.check_graph(onnx_graph.set_dynamic_batch(onnx_graph.convert_opset(model, 17)))
        x = np.random.default_rng(5).uniform(size=(3, 2, 6, 4)).astype(np.float32)
        np.testing.assert_array_equal(run(model, x), x.repeat(2, 2).repeat(2, 3))


def test_constants_are_computed_once():
    rng = np.random.default_rng(3)
    constants = {"a": rng.normal(size=(7, 5)).astype(np.float32), "s": np.array([5, 7], np.int64)}
    nodes = [helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0]), helper.make_node("Reshape", ["t", "s"], ["r"]),
             helper.make_node("MatMul", ["x", "r"], ["y"])]
    model = make_model(nodes, constants, [2, 5], [2, 7])
    x = rng.normal(size=(2, 5)).astype(np.float32)
    model = simplified(model)
    assert ops_of(model) == ["MatMul"]
    assert [tensor.name for tensor in model.graph.initializer] == ["r"]
    np.testing.assert_allclose(run(model, x), x @ constants["a"].T, atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False, "low"])
@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize(("size", "target"), [((6, 8), (48, 64)), ((12, 15), (95, 127)), ((1, 3), (7, 9))])
def test_matrix_products_become_resize(align_corners, rows_first, size, target):
    rng = np.random.default_rng(4)
    rows, columns = (bilinear_matrix(o, i, align_corners) for o, i in zip(target, size, strict=True))
    constants = {"a": rows, "b": np.ascontiguousarray(columns.T)}
    order = [("a", "x", "t"), ("t", "b", "y")] if rows_first else [("x", "b", "t"), ("a", "t", "y")]
    nodes = [helper.make_node("MatMul", [left, right], [out]) for left, right, out in order]
    model = make_model(nodes, constants, [2, 3, *size], [2, 3, *target])
    x = rng.normal(size=(2, 3, *size)).astype(np.float32)
    assert ops_of(simplified(model)) == ["MatMul", "MatMul"]
    model = simplified(model, use_resize=True)
    assert ops_of(model) == ["Resize"]
    np.testing.assert_allclose(run(model, x), rows @ x @ columns.T, atol=2e-5)


def test_other_matrices_are_not_taken_for_a_resize():
    constants = {"a": np.full((1, 6), 1 / 6, np.float32), "b": np.full((8, 1), 1 / 8, np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "b"], ["t"]), helper.make_node("MatMul", ["a", "t"], ["y"])]
    model = make_model(nodes, constants, [1, 2, 6, 8], [1, 2, 1, 1])
    assert ops_of(simplified(model, use_resize=True)) == ["MatMul", "MatMul"]


def test_concatenated_constants_become_padding_and_free_the_batch():
    nodes = [helper.make_node("Concat", ["x", "rows"], ["t"], axis=2),
             helper.make_node("Concat", ["left", "t", "right"], ["y"], axis=-1)]
    constants = {"rows": np.full((1, 2, 3, 4), -1e30, np.float32), "left": np.zeros((1, 2, 8, 1), np.float32),
                 "right": np.zeros((1, 2, 8, 5), np.float32)}
    model = make_model(nodes, constants, [1, 2, 5, 4], [1, 2, 8, 10])
    model = simplified(model)
    assert ops_of(model) == ["Pad", "Pad"]
    model = onnx_graph.check_graph(onnx_graph.set_dynamic_batch(model))
    x = np.random.default_rng(5).normal(size=(3, 2, 5, 4)).astype(np.float32)
    rows = np.pad(x, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=np.float32(-1e30))
    np.testing.assert_array_equal(run(model, x), np.pad(rows, ((0, 0), (0, 0), (0, 0), (1, 5))))


def padded_pool(constants, kernel=3, **attributes):
    """Two Pads, a max-pooling that overlaps them; odd sizes."""
    nodes = [helper.make_node("Pad", ["x", "low", "number"], ["a"]),
             helper.make_node("Pad", ["a", "right", "number"], ["b"]),
             helper.make_node("MaxPool", ["b"], ["y"], kernel_shape=[kernel, kernel], strides=[2, 2], **attributes)]
    values = {"low": np.array([0, 0, 1, 0, 0, 0, 1, 0]), "right": np.array([0, 0, 0, 0, 0, 0, 0, 1]),
              "number": np.float32(-1e30)}
    return make_model(nodes, {**values, **constants}, [1, 2, 7, 8], [1, 2, 4, 4])


@pytest.mark.parametrize("attributes", [{}, {"auto_pad": "VALID"}])
def test_padding_below_all_numbers_goes_into_the_pooling(attributes):
    model = padded_pool({}, **attributes)
    x = np.random.default_rng(8).normal(-5, 1, size=(1, 2, 7, 8)).astype(np.float32)     # 0 would win
    expected = run(model, x)
    model = simplified(model)
    assert ops_of(model) == ["MaxPool"]
    assert not model.graph.initializer
    np.testing.assert_array_equal(run(model, x), expected)


@pytest.mark.parametrize("constants", [{"number": np.float32(0)}, {"right": np.array([0, 0, 0, 0, 0, 0, 0, 3])},
                                       {"right": np.array([0, 1, 0, 0, 0, 0, 0, 1])}])
def test_other_padding_stays_before_the_pooling(constants):
    """Zeros, more than the kernel takes, and channels."""
    shape = [1, 2 + int(constants.get("right", np.zeros(2))[1]), 4, 5 if constants.get("right", [0])[-1] == 3 else 4]
    model = padded_pool(constants)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    x = np.random.default_rng(9).normal(size=(1, 2, 7, 8)).astype(np.float32)
    expected = run(model, x)
    model = simplified(model)
    assert ops_of(model) == ["Pad", "Pad", "MaxPool"]
    np.testing.assert_array_equal(run(model, x), expected)


def prelu_nodes(subtrahend="p", slope_first=True):
    return [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["m"]),
            helper.make_node("Relu", ["m"], ["b"]),
            helper.make_node("Mul", ["s", "b"] if slope_first else ["b", "s"], ["p"]),
            helper.make_node("Sub", ["a", subtrahend], ["y"])]


@pytest.mark.parametrize("slope_first", [True, False])
def test_the_written_out_prelu_becomes_one_operator(slope_first):
    slope = np.random.default_rng(6).uniform(0, 1, (1, 3, 1, 1)).astype(np.float32)
    model = make_model(prelu_nodes(slope_first=slope_first), {"s": slope}, [2, 3, 4, 5], [2, 3, 4, 5])
    model = simplified(model)
    assert ops_of(model) == ["PRelu"]
    x = np.random.default_rng(7).normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), np.where(x > 0, x, slope * x), atol=1e-7)


def test_what_only_looks_like_prelu_stays():
    slope = {"s": np.full((1, 3, 1, 1), 0.25, np.float32)}
    other = make_model(prelu_nodes(subtrahend="b"), slope, [1, 3, 4, 5], [1, 3, 4, 5])
    assert "PRelu" not in ops_of(simplified(other))
    nodes = [*prelu_nodes()[:4], helper.make_node("Sub", ["a", "p"], ["d"]), helper.make_node("Add", ["d", "b"], ["y"])]
    shared = make_model(nodes, slope, [1, 3, 4, 5], [1, 3, 4, 5])
    assert sorted(ops_of(simplified(shared))) == sorted(ops_of(shared))


@pytest.mark.parametrize("axis", [2, 0])
def test_a_concatenation_with_several_numbers_or_along_the_batch_stays(axis):
    block = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) if axis else np.zeros((1, 2, 5, 4), np.float32)
    node = helper.make_node("Concat", ["x", "rows"], ["y"], axis=axis)
    model = make_model([node], {"rows": block}, [1, 2, 5, 4], [1, 2, 8, 4] if axis else [2, 2, 5, 4])
    assert ops_of(simplified(model)) == ["Concat"]


def test_a_constant_reshape_follows_a_dynamic_batch():
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["t"]), helper.make_node("Reshape", ["t", "back"], ["y"])]
    constants = {"flat": np.array([1, 2, 20], np.int64), "back": np.array([1, 2, 4, 5], np.int64)}
    model = make_model(nodes, constants, [1, 2, 5, 4], [1, 2, 4, 5])
    model = onnx_graph.check_graph(onnx_graph.set_dynamic_batch(model))
    x = np.random.default_rng(6).normal(size=(4, 2, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(model, x), x.reshape(4, 2, 4, 5))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == onnx_graph.BATCH_NAME
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == onnx_graph.BATCH_NAME


@pytest.mark.parametrize("axes", [None, [0, 1, 2, 3], [2, 3]])
def test_a_slice_follows_a_dynamic_batch(axes):
    box = np.array([[0, 0, 1, 2], [1, 2, 4, 5]], np.int64)[:, axes or slice(None)]
    constants = {"starts": box[0], "ends": box[1]} | ({"axes": np.array(axes, np.int64)} if axes else {})
    model = make_model([helper.make_node("Slice", ["x", *constants], ["y"])], constants, [1, 2, 5, 6], [1, 2, 3, 3])
    model = onnx_graph.check_graph(onnx_graph.set_dynamic_batch(model))
    x = np.random.default_rng(8).normal(size=(4, 2, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(model, x), x[:, :, 1:4, 2:5])


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_argmax_takes_the_first_of_equal_maxima_and_gives_bytes(opset):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {}, [2, 300, 3, 4], [2, 300, 3, 4])
    model = onnx_graph.append_argmax(onnx_graph.convert_opset(model, opset))
    model = onnx_graph.check_graph(model)
    x = np.random.default_rng(7).integers(0, 3, (2, 300, 3, 4)).astype(np.float32)
    answer = run(model, x)
    assert answer.dtype == np.uint8
    np.testing.assert_array_equal(answer, x.argmax(1))
    assert model.graph.output[0].name == "y"


@pytest.mark.parametrize(("opset", "temperature"), [(11, 1.0), (13, 0.3), (17, 2.5)])
def test_confidence_equals_a_softmax_written_out(opset, temperature):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {}, [2, 7, 9, 4], [2, 7, 9, 4], opset)
    x = np.random.default_rng(8).uniform(0, 6, (2, 7, 9, 4)).astype(np.float32)
    x[0, :, 0, 0] = 1e4, 0, 0, 0, 0, 0, 3e38       # neither overflows
    x[0, :, 0, 1] = 2
    onnx_graph.append_confidence(model, "sure", temperature)
    model = onnx_graph.check_graph(onnx_graph.append_argmax(model))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, confidence = session.run(["y", "sure"], {"x": x})
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("y", [2, 9, 4]), ("sure", [2, 9, 4])]
    np.testing.assert_array_equal(ids, x.argmax(1))
    scaled = x.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    expected = 255 * np.take_along_axis(powers / powers.sum(1, keepdims=True), ids[:, None].astype(int), 1)[:, 0]
    assert confidence.dtype == np.uint8
    assert confidence[0, 0, :2].tolist() == [255, 36]       # 255 / 7
    np.testing.assert_array_equal(confidence, np.floor(expected + 0.5))
    assert ops_of(model).count("Div") == (1 if temperature == 1 else 2)


@pytest.mark.parametrize("opset", range(11, 18))
def test_every_opset_is_valid_and_keeps_the_numbers(opset):
    rng = np.random.default_rng(9)
    constants = {name: rng.normal(size=shape).astype(np.float32)
                 for name, shape in (("w", (4, 3, 3, 3)), ("a", (12, 6)))}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Clip", ["c"], ["d"]),
             helper.make_node("MatMul", ["a", "d"], ["m"]),
             helper.make_node("MaxPool", ["m"], ["y"], kernel_shape=[2, 2], strides=[2, 2])]
    model = make_model(nodes, constants, [1, 3, 8, 8], [1, 4, 6, 3])
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    before = run(model, x)
    converted = onnx_graph.check_graph(onnx_graph.convert_opset(model, opset))
    assert converted.opset_import[0].version == opset
    np.testing.assert_allclose(run(converted, x), before, atol=1e-6)


def test_an_opset_out_of_range_is_refused():
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {}, [1], [1])
    for opset in (10, 18):
        with pytest.raises(UserError, match=rf"export\.opset = {opset} must be 11 to 17"):
            onnx_graph.convert_opset(model, opset)


def test_an_invalid_graph_is_refused():
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {}, [1, 2], [1, 2])
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(UserError, match="not valid"):
        onnx_graph.check_graph(model)


def test_renaming_reaches_every_use():
    nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Add", ["t", "x"], ["y"])]
    model = onnx_graph.check_graph(simplify(make_model(nodes, {}, [1, 2], [1, 2]), "image", "segmentation"))
    assert model.graph.input[0].name == "image"
    np.testing.assert_array_equal(run(model, np.float32([[-1, 2]])), [[-1, 4]])
    assert model.graph.output[0].name == "segmentation"
