"""Mixed precision: the number type in which each layer computes, and the loss scale that half precision needs."""
from mindspore import dtype as mstype
from mindspore import nn

from mindseg import chips
from mindseg.compat import BatchNorm2d, Conv2d, Conv2dTranspose

DYNAMIC_START = 2.0**16     # value that a dynamic loss scale starts with


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


def choose_loss_scale(setting: float | str, saturates: bool) -> tuple[float, bool]:
    """Chooses the factor of the loss in the backward pass.

    Args:
        setting: ``optim.loss_scale``: a number, ``dynamic``, or ``auto``, which is ``dynamic`` on devices that compute
            convolutions in float16 whatever the level of mixed precision, and 1 on others.
        saturates: The device is one of these, see :func:`saturates`.

    Returns:
        The factor at the start, and True if it follows the overflows.
    """
    if setting == "dynamic" or (setting == "auto" and saturates):
        return DYNAMIC_START, True
    return 1.0 if setting == "auto" else float(setting), False


def saturates(device_target: str) -> bool:
    """True if the device computes convolutions in float16 and the largest number instead of infinity.

    An Ascend whose name is unknown, as in containers without ``npu-smi``, counts as such.

    Args:
        device_target: ``CPU``, ``Ascend`` or ``GPU``.
    """
    if device_target != "Ascend":
        return False
    chip = chips.installed_chip()
    return chip is None or chip.saturates.value
