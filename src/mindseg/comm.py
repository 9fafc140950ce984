"""Communication between the ranks of a job; with one rank every function returns its argument."""
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np


def broadcast_object(value: Any, size: int) -> Any:
    """Rank 0's value on every rank; called by all of them.

    Args:
        value: Anything that JSON can hold; the values of other ranks are ignored.
        size: Number of ranks.
    """
    if size == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)
    length = int(_broadcast(np.array([text.size], np.int32))[0])
    return json.loads(_broadcast(np.resize(text, length)).astype(np.uint8).tobytes())


def broadcast_parameters(parameters: Iterable, size: int) -> None:
    """Gives every rank rank 0's values; called by all of them, before a step.

    MindSpore's ``parameter_broadcast`` does so whenever a graph is compiled. The graph of a step's last micro-batch is
    compiled after the others ran: the broadcast would replace the sums that a rank has gathered by those of rank 0.

    Args:
        parameters: ``mindspore.Parameter`` objects, changed in place.
        size: Number of ranks.
    """
    if size == 1:
        return
    from mindspore import Tensor

    for param in parameters:
        values = param.asnumpy()
        param.set_data(Tensor(_broadcast(values.reshape(-1)).reshape(values.shape), param.dtype))


def _broadcast(values: np.ndarray) -> np.ndarray:
    from mindspore import Tensor, ops

    return ops.Broadcast(0)((Tensor(values),))[0].asnumpy()


def all_reduce_sum(values: np.ndarray) -> np.ndarray:
    """Sums int64 values of 0 or more over all ranks; a process that never joined a job gets its own values back."""
    if "mindspore" not in sys.modules:      # scoring exported models needs no MindSpore
        return values
    from mindspore import Tensor, ops
    from mindspore.communication import GlobalComm, get_group_size

    if not GlobalComm.INITED or get_group_size() == 1:
        return values
    # float32 adds whole numbers exactly up to 2**24: counts travel as 16-bit digits, right for 256 ranks.
    shifts = (0, 16, 32, 48)
    digits = np.stack([(values >> shift) & 0xFFFF for shift in shifts]).astype(np.float32)
    total = ops.AllReduce()(Tensor(digits)).asnumpy().astype(np.int64)
    return sum(digit << shift for digit, shift in zip(total, shifts, strict=True))
