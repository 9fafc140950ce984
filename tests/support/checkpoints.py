"""Checkpoint files made record by record, with MindSpore's own message classes."""
import zlib
from pathlib import Path

import numpy as np

from mindspore.train.checkpoint_pb2 import Checkpoint


def record(name: str, kind: str, dims: list[int], content: bytes) -> bytes:
    """Return one record of a checkpoint; nothing is checked."""
    message = Checkpoint()
    value = message.value.add()
    value.tag = name
    value.tensor.dims.extend(dims)
    value.tensor.tensor_type = kind
    value.tensor.tensor_content = content
    return message.SerializeToString()


def array(name: str, values: np.ndarray) -> bytes:
    """Return the record of an array."""
    kind = {"f": "Float", "i": "Int", "u": "UInt"}[values.dtype.kind] + str(8 * values.dtype.itemsize)
    return record(name, kind, list(values.shape), values.tobytes())


def text(name: str, value: str) -> bytes:
    """Return the record of a text."""
    return record(name, "str", [0], value.encode("utf-32-le"))


def with_checksum(*records: bytes) -> bytes:
    """Return the records and the checksum behind them."""
    content = b"".join(records)
    return content + b"crc_num" + zlib.crc32(content).to_bytes(10, "big")


def edit(path: Path, change) -> bytes:
    """Return a checkpoint in which ``change(records)`` has changed the records; the checksum fits.

    Args:
        path: Checkpoint.
        change: Function of the list of records, which it changes in place; a record is ``Checkpoint.Value``.
    """
    message = Checkpoint.FromString(path.read_bytes()[:-17])
    records = list(message.value)
    change(records)
    return with_checksum(*(Checkpoint(value=[value]).SerializeToString() for value in records))
