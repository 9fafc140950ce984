"""Many tensors in one flat buffer, so that one operator or one sum over devices serves them all."""
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindseg.compat import SPLITS, cast, cut, kernels, split

SMALL = 2**20       # values up to which a tensor goes into a buffer; to copy a larger one costs more than a launch


class Join(nn.Cell):
    """Joins tensors in one buffer."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        # A map instead of a loop: graph mode nests the calls of a loop, and ENet has more parameters than it can nest.
        self.map = ops.HyperMap()

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Maps tensors of any shapes, P values in all, to (P,) float32."""
        return ops.concat(self.map(_flat, tensors))


class Split(nn.Cell):
    """Cuts a buffer into tensors of the shapes and types of parameters.

    Args:
        parameters: Parameters, P values in all.
    """

    def __init__(self, parameters: tuple[Parameter, ...]) -> None:
        super().__init__(auto_prefix=False)
        # The graph engine splits into 63 parts at most, and lists of hundreds of sizes exceed the depth of a graph.
        sizes = [p.size for p in parameters]
        groups = [tuple(sizes[i:i + 60]) for i in range(0, len(sizes), 60)]
        self.groups = tuple((sum(map(sum, groups[:i])), sum(group), group) for i, group in enumerate(groups))
        self.starts = tuple(sum(sizes[:i]) for i in range(len(sizes)))
        self.splits = SPLITS or kernels() != "cpu"
        self.map = ops.HyperMap()

    def construct(self, buffer: Tensor, parameters: tuple[Parameter, ...]) -> tuple[Tensor, ...]:
        """Maps (P,) float32 to one tensor for each of the parameters."""
        if not self.splits:
            return self.map(ops.partial(_part, buffer), parameters, self.starts)
        parts = ()
        for start, count, sizes in self.groups:
            parts = parts + split(cut(buffer, (start,), (count,)), sizes)
        return self.map(_shaped, parts, parameters)


def _flat(x: Tensor) -> Tensor:
    return cast(ops.reshape(x, (-1,)), mstype.float32)


def _part(buffer: Tensor, like: Parameter, start: int) -> Tensor:
    return _shaped(cut(buffer, (start,), (like.size,)), like)


def _shaped(part: Tensor, like: Parameter) -> Tensor:
    return cast(ops.reshape(part, like.shape), like.dtype)
