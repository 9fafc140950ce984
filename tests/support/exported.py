"""Shapes of the tensors in exported graphs."""
from pathlib import Path

from mindspore.train import mind_ir_pb2

# isort: split
from onnx import ModelProto, shape_inference


def onnx_rank(model: ModelProto) -> int:
    """Return the largest number of axes of any tensor."""
    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim)
             for value in (*graph.input, *graph.value_info, *graph.output)}
    assert {name for node in graph.node for name in node.output} <= set(ranks)
    return max(*ranks.values(), *(len(tensor.dims) for tensor in graph.initializer))


def mindir_rank(path: Path) -> int:
    """Return the largest number of axes of any result or constant."""
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    nodes = [node for graph in (model.graph, *model.functions) for node in graph.node]
    ranks = [rank for node in nodes for attribute in node.attribute if attribute.name in ("shape", "value")
             for rank in _ranks(attribute)]
    assert len(ranks) > len(nodes) / 2
    return max(ranks)


def _ranks(attribute: mind_ir_pb2.AttributeProto) -> list[int]:
    return [len(tensor.dims) for tensor in attribute.tensors] + [r for item in attribute.values for r in _ranks(item)]
