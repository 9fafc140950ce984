"""Automatic mixed precision: the number type in which each layer computes."""
from mindspore import dtype as mstype
from mindspore import nn

from mindseg.compat import BatchNorm2d, Conv2d, Conv2dTranspose


def apply_amp(net: nn.Cell, level: str, dtype: str = "float16") -> None:
    """Sets the type in which each layer computes; parameters stay float32.

    Args:
        net: Network, changed in place.
        level: ``O0``: all in float32. ``O1``: convolutions in half precision. ``O2``: all but BatchNorm. ``O3``: all.
        dtype: Half-precision type, ``float16`` or ``bfloat16``.
    """
    if level == "O0":
        return
    half = mstype.float16 if dtype == "float16" else mstype.bfloat16
    net.to_float(mstype.float32 if level == "O1" else half)
    for _, cell in net.cells_and_names():
        if level == "O1" and isinstance(cell, (Conv2d, Conv2dTranspose)):
            cell.to_float(half)
        elif level == "O2" and isinstance(cell, BatchNorm2d):
            cell.to_float(mstype.float32)
