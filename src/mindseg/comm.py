"""Communication between the ranks of a job; with one rank every function returns its argument."""
import json
import os
import socket
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from mindseg.errors import UserError, shorten


def cores_of_rank(size: int) -> int:
    """CPU cores for this process: those that it is bound to, or its share of the host's.

    Args:
        size: Number of ranks; they are taken to run on this host unless ``MINDSEG_LOCAL_RANKS`` tells how many do.
    """
    cores = len(os.sched_getaffinity(0))
    if cores < (os.cpu_count() or 1):
        return cores
    return max(1, cores // int(os.environ.get("MINDSEG_LOCAL_RANKS", size)))


def broadcast_object(value: Any, size: int, root: int = 0) -> Any:
    """One rank's value on every rank; called by all of them.

    Args:
        value: Anything that JSON can hold; the values of other ranks are ignored.
        size: Number of ranks.
        root: Rank whose value it is.
    """
    if size == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)
    length = int(_broadcast(np.array([text.size], np.int32), root)[0])
    return json.loads(_broadcast(np.resize(text, length), root).astype(np.uint8).tobytes())


def check_port(name: str, value: str, address: str) -> None:
    """Refuses a port that the scheduler of a job cannot listen on; MindSpore tries for five minutes.

    Args:
        name: Variable that sets the port, for messages.
        value: Port as text.
        address: Address of this host that the scheduler listens on.

    Raises:
        UserError: It is no port, or another program uses it.
    """
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and 1 <= int(value) <= 65535):
        raise UserError(f"{name} = {shorten(value)} is not a port; set it to a number from 1 to 65535, such as 8118")
    try:
        socket.create_server((address, int(value))).close()
    except OSError as error:
        reason = str(error.strerror or error).split(" (")[0]        # create_server adds the address
        raise UserError(f"{name} = {value} cannot be used on {address} ({reason}); set another port") from None


def check_equal(values: dict[str, Any], rank: int, size: int) -> None:
    """Stops all ranks if one was started with other settings than rank 0; called by all of them.

    Ranks that disagree would wait for each other for ever, or train different networks.

    Args:
        values: Settings by name; anything that JSON can hold.
        rank: Rank of this process.
        size: Number of ranks.

    Raises:
        UserError: A value differs. The message is the same on all ranks and names it.
    """
    if size == 1:
        return
    values = json.loads(json.dumps(values))     # keys of dicts become texts, as in those that come from rank 0
    first = broadcast_object(values, size)
    key = next((key for key in {**first, **values} if first.get(key) != values.get(key)), None)
    different = np.zeros(size, np.int64)
    different[rank] = key is not None
    ranks = np.flatnonzero(all_reduce_sum(different))
    if ranks.size:
        message = (f"{key} is {shorten(first.get(key))} on rank 0 and {shorten(values.get(key))} on rank {rank}; start "
                   "all processes with the same configuration and options")
        raise UserError(broadcast_object(message, size, int(ranks[0])))


def broadcast_parameters(parameters: Iterable, size: int) -> None:
    """Gives every rank rank 0's values; called by all of them, before a step.

    MindSpore's ``parameter_broadcast`` does so whenever a graph is compiled. The graph of a step's last micro-batch is
    compiled after the others ran: the broadcast would replace the sums that a rank has gathered by those of rank 0.

    Args:
        parameters: ``mindspore.Parameter`` objects, changed in place.
        size: Number of ranks.
    """
    from mindspore import Tensor
    from mindspore.communication import GlobalComm

    if size == 1 or not GlobalComm.INITED:      # a planned job has other ranks, but no communication
        return
    for param in parameters:
        values = param.asnumpy()
        param.set_data(Tensor(_broadcast(values.reshape(-1)).reshape(values.shape), param.dtype))


def _broadcast(values: np.ndarray, root: int = 0) -> np.ndarray:
    from mindspore import Tensor, ops

    return ops.Broadcast(root)((Tensor(values),))[0].asnumpy()


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
