"""Numbers as an Ascend computes them, emulated on the CPU for tests and benchmarks. Nothing here runs on a device.

``emulated("float16")`` stands for the first Ascend 910, ``emulated("hf32")`` for Atlas A2 and A3. What is built and
compiled in that context gets rounded convolutions and matrix products, forward and backward: automatic differentiation
runs the same operators on rounded values. Other operators compute in float32, as on the chips.

float16: inputs and results are rounded to the nearest float16, ties to even, as by a cast. Beyond +-65504 they become
+-65504, NaN becomes 0, and either sets a flag, which is read and cleared by the stand-in for ``ms.amp.all_finite``
(CANN, aclrtFloatOverflowMode). The chip sums within an operator in float32, and so does the CPU. Gradients of weights
are results too; the chip may keep those in float32.

HF32: inputs are rounded to 10 explicit bits of mantissa, ties to even (Ascend C, SetHF32: the default mode). CANN's
documents count 11 bits; the coarser number is emulated. Results are float32, and infinity stays infinity.
"""
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindseg.models import layers

LARGEST = 65504.0       # of float16
KINDS = ("float16", "hf32")
_SPLIT = 2.0**13 + 1    # Dekker's factor that leaves 24 - 13 significant bits
# What builds a convolution or product in mindseg. The graph check of the tests finds what is not listed.
PRIMITIVES = ("Conv2D", "Conv2DTranspose")


def round_float16(values: np.ndarray) -> np.ndarray:
    """Rounds to float16 as the first Ascend 910 does; returns float32."""
    return np.nan_to_num(np.clip(values, -LARGEST, LARGEST), nan=0.0).astype(np.float16).astype(np.float32)


def round_hf32(values: np.ndarray) -> np.ndarray:
    """Rounds finite float32 to 10 explicit bits of mantissa, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def _float16(flags: Parameter) -> Callable:
    # Primitives alone: MindSpore loses library functions with branches that forward and backward pass share.
    # These are the fastest on the CPU, too.
    cast, add, equal, select, zeros = ops.Cast(), ops.AssignAdd(), ops.Equal(), ops.Select(), ops.ZerosLike()
    low, high, every, negate = ops.Maximum(), ops.Minimum(), ops.ReduceAll(), ops.LogicalNot()

    def rounded(x: Tensor) -> Tensor:
        wide = cast(cast(x, ms.float16), ms.float32)        # infinite beyond the range
        limited = high(low(wide, -LARGEST), LARGEST)
        add(flags, cast(negate(every(equal(wide, limited), ())), ms.float32))       # NaN equals nothing
        return select(equal(wide, wide), limited, zeros(wide))

    return rounded


def _hf32(split: Parameter) -> Callable:
    multiply, subtract = ops.Mul(), ops.Sub()

    def rounded(x: Tensor) -> Tensor:
        large = multiply(x, split)
        return subtract(large, subtract(large, x))

    return rounded


def _unchanged(x: Tensor) -> Tensor:
    return x


class _Rounding(nn.Cell):
    """Rounds a value on its way forward and its gradient on the way back.

    Args:
        forward: Function of the value.
        backward: Function of the gradient.
    """

    def __init__(self, forward: Callable, backward: Callable) -> None:
        super().__init__(auto_prefix=False)
        self.forward, self.backward = forward, backward

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.backward(dout),)


class _Rounded(nn.Cell):
    """A convolution or a product whose operands are rounded, and on float16 chips its results.

    Args:
        operator: Primitive or function; its first two inputs are the operands.
        kind: ``float16`` or ``hf32``.
        state: Scalar float32: number of overflows, or Dekker's factor. A parameter, because MindSpore computes what
            depends on constants alone while it compiles, and the graph would not show the rounding of a matrix.
    """

    def __init__(self, operator: Callable, kind: str, state: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.operator = operator
        rounded, results = (_float16(state),) * 2 if kind == "float16" else (_hf32(state), _unchanged)
        self.operands = _Rounding(rounded, results)
        self.result = _Rounding(results, rounded)       # its gradient is an operand of the backward pass

    def construct(self, x: Tensor, y: Tensor, *rest: tuple[int, ...]) -> Tensor:
        return self.result(self.operator(self.operands(x), self.operands(y), *rest))


class _Product(nn.Cell):
    """The product of :class:`mindseg.models.layers.Resample`, differentiated automatically.

    MindSpore refuses a ``bprop`` that uses a parameter, as rounding does. The values are the same.

    Args:
        rows: Multiply from the left.
    """

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.rows = rows

    def construct(self, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        return ops.matmul(matrix, x) if self.rows else ops.matmul(x, matrix)


@contextmanager
def emulated(kind: str) -> Iterator[None]:
    """Context in which networks, losses and steps are built that compute as the chip.

    Args:
        kind: ``float16`` or ``hf32``.
    """
    flags = Parameter(Tensor(0.0, ms.float32), name="overflows", requires_grad=False)
    state = flags if kind == "float16" else Parameter(Tensor(_SPLIT, ms.float32), name="split", requires_grad=False)
    product = _Rounded(ops.matmul, kind, state)

    def build(primitive: type) -> Callable:
        return lambda *words, **options: _Rounded(primitive(*words, **options), kind, state)

    def matmul(x: Tensor, y: Tensor) -> Tensor:
        return product(x, y)

    def all_finite(gradients: tuple[Tensor, ...]) -> Tensor:
        finite = ops.equal(ops.depend(flags, gradients), 0.0)
        ops.Assign()(flags, Tensor(0.0, ms.float32))
        return finite

    with ExitStack() as stack:
        for name in PRIMITIVES:
            stack.enter_context(patch.object(ops, name, build(getattr(ops, name))))
        stack.enter_context(patch.object(ops, "matmul", matmul))
        stack.enter_context(patch.object(layers, "Product", _Product))
        if kind == "float16":
            stack.enter_context(patch.object(ms.amp, "all_finite", all_finite))
        yield


class SplitSyncBatchNorm(nn.Cell):
    """The SyncBatchNorm kernel as Ascend splits it: sums of a device, an all-reduce, and an update.

    The update corrects the stored variance by the number of values on one device (MindSpore, bn_split.cc, SyncBnSplit;
    CANN's bn_training_update takes it from the shape of its input, and the factor of one value is 0). Arguments are
    those of :func:`mindseg.compat.sync_batch_norm_kernel`.
    """

    def __init__(self, eps: float, momentum: float, group: str, size: int) -> None:
        super().__init__(auto_prefix=False)
        self.eps, self.momentum, self.size = eps, momentum, size
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor, moving_mean: Parameter,
                  moving_variance: Parameter) -> tuple[Tensor]:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        mean = self.all_reduce(x.sum((0, 2, 3))) / self.size / count
        variance = self.all_reduce(ops.square(x).sum((0, 2, 3))) / self.size / count - ops.square(mean)
        stored = variance * (count / (count - 1) if count > 1 else 0.0)
        ops.Assign()(moving_mean, self.momentum * moving_mean + (1 - self.momentum) * ops.stop_gradient(mean))
        ops.Assign()(moving_variance,
                     self.momentum * moving_variance + (1 - self.momentum) * ops.stop_gradient(stored))
        scale = gamma * ops.rsqrt(variance + self.eps)
        return ((x - mean.reshape(1, -1, 1, 1)) * scale.reshape(1, -1, 1, 1) + beta.reshape(1, -1, 1, 1),)


@contextmanager
def split_sync_batch_norm() -> Iterator[None]:
    """Context in which synchronised BatchNorm with the platform's kernel gets :class:`SplitSyncBatchNorm`."""
    with patch("mindseg.engine.batch_norm.sync_batch_norm_kernel", SplitSyncBatchNorm):
        yield
