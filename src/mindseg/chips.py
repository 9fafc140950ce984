"""Ascend chips: number types, overflow, compilation and what their converters accept.

Nothing here was measured by us. Every fact has a source and a confidence: ``certain`` (stated there), ``likely``
(follows from it) or ``guess``. The rest of the package asks this module instead of comparing names of chips.
"""
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

from mindseg.errors import UserError

DEVICES = Path("/dev")
# Rows of `npu-smi info` that name a device look like "| 0       310P3     | OK   | …".
_NPU_ROW = re.compile(r"^\|\s*\d+\s+([0-9][0-9A-Za-z_]*)\s*\|\s*[A-Za-z]", re.MULTILINE)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Fact(Generic[Value]):
    """A property of a chip.

    Attributes:
        value: The property.
        confidence: ``certain``, ``likely`` or ``guess``.
        source: Where it is written.
    """
    value: Value
    confidence: str
    source: str


@dataclass(frozen=True)
class Chip:
    """A generation of Ascend chips.

    Attributes:
        name: As people call it.
        soc_names: Pattern of the names that ``npu-smi`` and ATC use, without ``Ascend`` in front.
        trains: MindSpore trains on it.
        convolution: Number type of a float32 convolution if nothing is set: ``float16``, ``hf32`` (float32 with a
            mantissa of 11 bits) or ``float32``.
        float32: Convolutions can be computed in float32.
        saturates: An overflow gives the largest number instead of infinity, and no operator sees it.
        aclnn: Has the aclnn kernels, which are newer and launched one by one; others have those of the graph engine.
        jit_level: ``runtime.jit_level`` that ``auto`` stands for; ``None``: MindSpore's own choice.
        atc_precisions: Values of ATC's ``--precision_mode_v2``.
        lite_precisions: Values of ``precision_mode`` for MindSpore Lite's converter.
    """
    name: str
    soc_names: str
    trains: Fact[bool]
    convolution: Fact[str]
    float32: Fact[bool]
    saturates: Fact[bool]
    aclnn: Fact[bool]
    jit_level: Fact[str | None]
    atc_precisions: Fact[tuple[str, ...]]
    lite_precisions: Fact[tuple[str, ...]]

    def facts(self) -> dict[str, Fact]:
        """All facts by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "soc_names")}


_PRODUCTS = "MindSpore's installation guide: products for training"
_ATC = "CANN 8.0, ATC, --precision_mode_v2: origin uses an AI CPU operator, or ends, where a float32 kernel is missing"
_TBE = "CANN's tables of float types of conv2d (TBE)"
_HF32 = "MindSpore 2.10, device_context.ascend.op_precision.conv_allow_hf32: on by default"
_OVERFLOW = "CANN, aclrtFloatOverflowMode; MindSpore 2.10, amp.py: _all_finite"
_JIT = "MindSpore 2.10, JitConfig: O1 fuses operators; the kernels launched one by one exist for Atlas A2 and A3"
_LITE = "MindSpore Lite's converter passes the mode on to the graph engine"
# Values of ATC's older --precision_mode, with a value of --precision_mode_v2 that needs the same number types.
_OLDER_MODES = {"force_fp16": "fp16", "force_fp32": "cube_fp16in_fp32out", "cube_fp16in_fp32out": "cube_fp16in_fp32out",
                "allow_fp32_to_fp16": "fp16", "allow_mix_precision": "mixed_float16",
                "allow_mix_precision_fp16": "mixed_float16", "must_keep_origin_dtype": "origin",
                "allow_fp32_to_bf16": "mixed_bfloat16", "allow_mix_precision_bf16": "mixed_bfloat16"}
_FP16_MODES = ("fp16", "mixed_float16", "cube_fp16in_fp32out")
_LITE_FP16 = ("enforce_fp16", "preferred_fp32", "preferred_optimal")
_LITE_ALL = (*_LITE_FP16, "enforce_origin", "enforce_fp32")


def _float16_chip(name: str, soc_names: str, trains: bool, saturates: Fact[bool]) -> Chip:
    """A chip whose matrix unit knows float16 and int8 only."""
    return Chip(name, soc_names, Fact(trains, "certain", _PRODUCTS), Fact("float16", "likely", _TBE),
                Fact(False, "likely", _TBE), saturates, Fact(False, "likely", _JIT), Fact(None, "certain", _JIT),
                Fact(_FP16_MODES, "likely", _ATC), Fact(_LITE_FP16, "likely", _LITE))


def _float32_chip(name: str, soc_names: str) -> Chip:
    """A chip for training of the second generation or later."""
    return Chip(name, soc_names, Fact(True, "certain", _PRODUCTS), Fact("hf32", "certain", _HF32),
                Fact(True, "certain", _HF32), Fact(False, "certain", _OVERFLOW), Fact(True, "certain", _JIT),
                Fact("O1", "likely", _JIT),
                Fact((*_FP16_MODES, "origin", "mixed_bfloat16"), "certain", _ATC), Fact(_LITE_ALL, "likely", _LITE))


# The names in soc_names are those of CANN's platform files. Ascend910B without a number is of the first generation.
CHIPS = (
    _float16_chip("910A", r"910(A|B|ProA|ProB|PremiumA)?", True, Fact(True, "certain", _OVERFLOW)),
    _float32_chip("A2", r"910B[1-9]\w*(-\d)?"),
    _float32_chip("A3", r"910_93\w*"),
    _float16_chip("310", r"310", False, Fact(True, "likely", _OVERFLOW)),
    _float16_chip("310P", r"310P\w*", False, Fact(True, "likely", _OVERFLOW)),
    # CANN 9 lists float32 for it, others found float16 and int8 only; so float32 is not relied upon.
    _float16_chip("310B", r"310B\d\w*", False, Fact(True, "guess", _OVERFLOW)),
)


def find_chip(name: str) -> Chip | None:
    """Chip of a name that ``npu-smi`` or ATC uses; ``None``: not in the table.

    Args:
        name: Such as ``Ascend310P3``, ``310P3`` or ``910B2``; upper or lower case.
    """
    plain = re.sub(r"^ascend", "", name, flags=re.IGNORECASE)
    return next((chip for chip in CHIPS if re.fullmatch(chip.soc_names, plain, re.IGNORECASE)), None)


@cache
def soc_from_npu_smi() -> str:
    """Asks ``npu-smi info`` for the chip's name, such as ``Ascend310P3``.

    Raises:
        UserError: The program is missing, fails, or names no chip.
    """
    remedy = "give SOC_VERSION, such as Ascend310P3"
    try:
        done = subprocess.run(["npu-smi", "info"], capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise UserError(f"npu-smi: not found, so the chip is unknown; {remedy}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"npu-smi info: cannot be run ({error}); {remedy}") from error
    names = _NPU_ROW.findall(done.stdout)
    if done.returncode or not names:
        raise UserError(f"npu-smi info: names no chip (status {done.returncode}); {remedy}")
    return f"Ascend{names[0]}"


def installed_chip() -> Chip | None:
    """Chip of this machine; ``None``: there is none, or it is unknown."""
    if not has_driver():
        return None
    try:
        return find_chip(soc_from_npu_smi())
    except UserError:
        return None


def has_driver() -> bool:
    """True if Ascend's driver is loaded."""
    return (DEVICES / "davinci_manager").exists()


def check_device(number: int) -> None:
    """Refuses a device that is not there; MindSpore would end at its first kernel.

    Args:
        number: Logical number, counted from 0 among the devices that this process sees.

    Raises:
        UserError: There is no such device.
    """
    present = sorted(path.name for path in DEVICES.glob("davinci[0-9]*") if path.name[7:].isdigit())
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "")
    count = len([word for word in visible.split(",") if word.strip()]) if visible else len(present)
    if number < count:
        return
    if not present:
        raise UserError("runtime.device_target = Ascend: no Ascend device on this machine (/dev/davinci0 and so on); "
                        "check its driver, or set runtime.device_target=CPU")
    seen = f"ASCEND_RT_VISIBLE_DEVICES={visible} shows {count}" if visible else f"this machine has {', '.join(present)}"
    raise UserError(f"runtime.device_id = {number}: no such Ascend device, {seen}; the first has the number 0")


def check_atc_precision(soc: str, mode: str, older: bool = False) -> None:
    """Refuses a precision of ATC that the chip cannot compute in.

    Args:
        soc: Chip, such as ``Ascend310P3``; an unknown one is left to ATC.
        mode: Value of ``--precision_mode_v2``.
        older: It is a value of ``--precision_mode``, which older versions of ATC have.

    Raises:
        UserError: The chip does not have it; names the ones that it has.
    """
    chip = find_chip(soc)
    if not chip:
        return
    allowed, option = chip.atc_precisions.value, "--precision_mode_v2"
    if older:
        allowed, option = [name for name, newer in _OLDER_MODES.items() if newer in allowed], "--precision_mode"
    _check_precision(f"{option}={mode}", soc, chip, mode, allowed)


def check_lite_precision(soc: str, mode: str) -> None:
    """Refuses a precision of MindSpore Lite's converter that the chip cannot compute in.

    Args:
        soc: Chip, such as ``Ascend310P3``; an unknown one is left to the converter; empty: that of this machine.
        mode: The value.

    Raises:
        UserError: The chip does not have it; names the ones that it has.
    """
    chip = find_chip("910B1" if soc.lower().endswith("910b") else soc) if soc else installed_chip()
    if chip:    # Lite writes 910b for Atlas A2
        _check_precision(f"--precision {mode}", soc or chip.name, chip, mode, chip.lite_precisions.value)


def _check_precision(option: str, soc: str, chip: Chip, mode: str, allowed: Sequence[str]) -> None:
    if mode not in allowed:
        reason = "" if chip.float32.value else ", whose convolutions know float16 only"
        raise UserError(f"{option}: not for {soc}{reason}; use one of {', '.join(allowed)}")
