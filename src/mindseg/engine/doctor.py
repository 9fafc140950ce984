"""Checks of a device and its host, each with the question that it answers and its verdict.

What is computed must be right. Times and rates fail only if they are so far from what is assumed that something must
be broken.
"""
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mindspore import Tensor, ops

from mindseg.chips import Chip
from mindseg.comm import all_reduce_sum
from mindseg.compat import BatchNorm2d
from mindseg.config import load_config
from mindseg.engine import device_checks, device_speed, device_training
from mindseg.engine.batch_norm import SyncBatchNorm
from mindseg.errors import first_line

PASS, FAIL, MEASURED, IMPOSSIBLE = "pass", "fail", "measured", "not possible here"
# About ten times slower than assumed: 10 to 15 us a launch, 10 GB/s over PCIe; 15 images a thread were measured.
LAUNCH_US = 150.0           # at most
COPY_GB = 1.0               # GB/s at least
THREAD_IMAGES = 1.5         # PNG images of 1024x2048 a second and thread at least
VARIANCE_ERROR = 2e-3       # the platform's synchronised kernel is right to 1e-3
TRANSPOSED_ERROR = 5e-3     # float16 operands: 2^-11 each, of sums of 8 products
RANKING_ERROR = 1e-6
LOSS_ERROR = {"CPU": 2e-5, "GPU": 5e-3, "Ascend": 5e-3}         # emulated float16 and HF32: at most 1.6e-4

Value = dict[str, float | int | bool | str]


@dataclass(frozen=True)
class Machine:
    """Device, chip and settings that the checks run with.

    Attributes:
        target: ``CPU``, ``Ascend`` or ``GPU``.
        chip: Ascend chip; None: there is none, or it is unknown.
        settings: ``section.key=value`` texts that change the default configuration.
        size: Number of devices that run the checks together.
        rank: Number of this one.
        reference: Losses of the small training on this host's CPU, by another process.
    """
    target: str
    chip: Chip | None = None
    settings: tuple[str, ...] = ()
    size: int = 1
    rank: int = 0
    reference: tuple[float, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes:
        status: ``pass``, ``fail``, ``measured`` or ``not possible here``.
        value: What was found, by name.
        expected: What is right, or the limits.
        note: What is wrong, or why nothing was found; empty if all is well.
        seconds: Time of the check.
    """
    status: str
    value: Value = field(default_factory=dict)
    expected: str = ""
    note: str = ""
    seconds: float = 0.0


def judge(value: Value, expected: str, problems: list[str], note: str = "") -> Finding:
    """Makes the finding of a check: it fails if there are problems.

    Args:
        value: What was found.
        expected: What is right.
        problems: One text for each thing that is wrong.
        note: Text for a check that passes.
    """
    return Finding(FAIL if problems else PASS, value, expected, "; ".join(problems) or note)


def check_device(machine: Machine) -> Finding:
    """A first kernel, and the chip's entry in the table of chips."""
    total = float((Tensor(np.ones(8, np.float32)) + 1.0).sum().asnumpy())
    name = machine.chip.name if machine.chip else "unknown" if machine.target == "Ascend" else "none"
    problems = [] if total == 16 else [f"eight sums 1 + 1 add up to {total:g}, not 16"]
    note = "npu-smi names no known chip, so the most careful settings are used" if name == "unknown" else ""
    if machine.chip and machine.target == "CPU":
        note = "this chip runs converted models only; its host's CPU was checked"
    return judge({"device": machine.target, "chip": name, "sum": total}, "sum 16", problems, note)


def check_overflow(machine: Machine) -> Finding:
    """Notice of an overflow, and its result beside what the table of chips says."""
    noticed, infinite = device_checks.overflow()
    problems = [] if noticed else ["MindSpore's all_finite does not see an overflow: loss scale and stop on lost "
                                   "weights cannot work"]
    expected = "noticed"
    if machine.target != "Ascend" or machine.chip:
        right = machine.target != "Ascend" or not machine.chip.saturates.value
        expected += f", {'infinity' if right else 'the largest number'}"
        if infinite != right:
            problems.append(f"an overflow gives {'infinity' if infinite else 'the largest number'}: chips.py is wrong")
    return judge({"noticed": noticed, "infinity": infinite}, expected, problems)


def check_precision(machine: Machine) -> Finding:
    """Bits of the mantissa that convolutions, products and their gradients keep."""
    hf32 = load_config("defaults", machine.settings).runtime.hf32
    bits = device_checks.mantissa_bits()
    limits = device_checks.expected_bits(machine.chip, machine.target, hf32)
    problems, better = [], []
    for name, found in bits.items():
        fewest, most = limits[name.split(",")[0]]
        text = f"{name} keeps {found} bits of the mantissa, {fewest} expected"
        (problems if found < fewest else better if found > most else []).append(text)
    expected = ", ".join(f"{name} {low}" if low == high else f"{name} {low} to {high}"
                         for name, (low, high) in limits.items())
    return judge(dict(bits), expected, problems, "; ".join(better))


def check_transposed(machine: Machine) -> Finding:
    """A transposed convolution of 2x2 pixels and stride 2, in both its forms."""
    errors = {name: device_checks.transposed_error(name == "training") for name in ("training", "evaluation")}
    problems = [f"in its form for {name} the largest error is {error:.2g} of the largest value"
                for name, error in errors.items() if not error <= TRANSPOSED_ERROR]
    return judge(dict(errors), f"at most {TRANSPOSED_ERROR:g}", problems)


def check_dropout(machine: Machine) -> Finding:
    """Share that dropout keeps, of values and of channels."""
    value, problems = {}, []
    for rate, spatial in ((0.1, False), (0.5, False), (0.1, True)):
        name = f"{rate} of {'channels' if spatial else 'values'}"
        value[name], deviation = device_checks.kept_share(rate, spatial)
        if not device_checks.share_is_right(rate, value[name], deviation):
            problems.append(f"a rate of {name} keeps {value[name]:.3f} instead of {1 - rate:.3f}")
    return judge(value, "1 - rate", problems)


def check_variance(machine: Machine) -> Finding:
    """Variance that BatchNorm stores behind a global pooling and elsewhere, beside NumPy's of the whole batch."""
    value, problems, size = {}, [], machine.size
    for images, side in ((1, 1), (2, 1), (4, 1), (2, 32)):
        if images * side * side * size == 1:
            continue        # one value has no variance; the layer refuses it
        whole = np.random.default_rng(images).normal(2, 3, (size * images, 8, side, side)).astype(np.float32)
        layer = SyncBatchNorm(8, 1e-5, 0.9, size, machine.target != "CPU") if size > 1 else BatchNorm2d(8)
        found = device_checks.moving_variance(layer, whole[machine.rank * images:(machine.rank + 1) * images])
        error = float(np.abs(found / whole.astype(np.float64).var((0, 2, 3), ddof=1) - 1).max())
        name = f"{images} x {side}x{side}"
        value[name] = error
        if not error <= VARIANCE_ERROR:
            problems.append(f"{name} values a channel: the stored variance is {error:.2g} beside NumPy's")
    return judge(value, f"relative error at most {VARIANCE_ERROR:g}", problems)


def check_ranking(machine: Machine) -> Finding:
    """OHEM's ranking beside NumPy's; the operator that sorts is measured, and counts only where OHEM uses it."""
    ranking, ordered = device_checks.Hardest(), device_checks.Sorted()
    error, (own, sort) = device_checks.ranking_error(ranking), device_speed.ranking_seconds(ranking, ordered)
    problems = [] if error <= RANKING_ERROR else [f"OHEM's bound is {error:.2g} of its threshold away from NumPy's"]
    value = {"error": error, "ms": 1e3 * own, "error of sort": device_checks.sort_error(ordered), "sort ms": 1e3 * sort}
    return judge(value, f"error at most {RANKING_ERROR:g}", problems)


def check_training(machine: Machine) -> Finding:
    """Losses of ten steps beside those of the CPU."""
    return compare_losses(training_losses(machine), machine)


def training_losses(machine: Machine) -> list[float]:
    """Losses of the small training on this machine."""
    cfg = load_config("defaults", [*device_training.SETTINGS, *machine.settings])
    return device_training.train_losses(cfg, machine.target)


def compare_losses(losses: list[float], machine: Machine) -> Finding:
    """Judges the losses of the small training.

    Args:
        losses: Loss of each step, NaN after an overflow.
        machine: Machine with the CPU's losses.
    """
    limit = LOSS_ERROR[machine.target]
    errors = [abs(loss - right) / right for loss, right in zip(losses, machine.reference, strict=True)]
    problems = []
    if not all(map(math.isfinite, losses)):
        problems.append("a step overflowed")
    elif max(errors) > limit:
        step = next(i for i, error in enumerate(errors) if error > limit)
        problems.append(f"step {step + 1} has a loss of {losses[step]:.6g}, on the CPU {machine.reference[step]:.6g}")
    elif losses[-1] >= losses[0]:
        problems.append(f"the loss does not fall: {losses[0]:.4g}, after ten steps {losses[-1]:.4g}")
    value = {"first": losses[0], "last": losses[-1], "largest difference": max(errors)}
    return judge(value, f"relative difference at most {limit:g}", problems)


def check_launches(machine: Machine) -> Finding:
    """Time of a kernel that has nothing to do; on a CPU, where it does not matter, without a limit."""
    value = {"us": 1e6 * device_speed.launch_seconds()}
    if machine.target == "CPU":
        return Finding(MEASURED, value)
    problems = [] if value["us"] <= LAUNCH_US else [f"a launch takes {value['us']:.3g} us"]
    return judge(value, f"at most {LAUNCH_US:g} us", problems)


def check_copies(machine: Machine) -> Finding:
    """Rates of copies between host and device."""
    value = {f"{way} GB/s": rate / 1e9 for way, rate in device_speed.copy_rates().items()}
    problems = [f"{name} {rate:.3g}" for name, rate in value.items() if rate < COPY_GB]
    return judge(value, f"at least {COPY_GB:g} GB/s", problems)


def check_loader(machine: Machine) -> Finding:
    """Rate of the training loader, on images of 1024x2048 that are made for it."""
    with tempfile.TemporaryDirectory() as folder:
        loader = device_speed.open_images(device_speed.make_images(Path(folder)), machine.settings)
        rate, threads = device_speed.loader_rate(loader), loader.options.num_workers
    problems = [] if rate >= THREAD_IMAGES * threads else [f"{threads} threads prepare {rate:.3g} images a second"]
    return judge({"images a second": rate, "threads": threads}, f"at least {THREAD_IMAGES:g} a thread", problems)


def check_all_reduce(machine: Machine) -> Finding:
    """Sum over the devices, right and timed."""
    own = np.arange(1000, dtype=np.float32) * (machine.rank + 1)
    total = ops.AllReduce()(Tensor(own)).asnumpy()
    right = np.arange(1000) * (machine.size * (machine.size + 1) / 2)
    problems = [] if np.array_equal(total, right) else ["the sum over the devices is wrong"]
    small, large = device_speed.all_reduce_seconds(256), device_speed.all_reduce_seconds(2**24)
    return judge({"1 kB us": 1e6 * small, "64 MB ms": 1e3 * large}, "the sum of all devices", problems)


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        run: The check itself.
        risk: What could be wrong, in plain words.
        devices: ``one``, ``several`` (started by msrun) or ``any``.
        on_cpu: It says something on a machine without a card.
    """
    run: Callable[[Machine], Finding]
    risk: str
    devices: str = "one"
    on_cpu: bool = True


CHECKS = {
    "device": Check(check_device, "The device cannot be used, or is a chip that the programs do not know."),
    "overflow": Check(check_overflow, "Overflows are not noticed: the loss scale grows for ever."),
    "precision": Check(check_precision, "Float32 is computed with fewer bits than the table of chips says."),
    "transposed convolution": Check(check_transposed, "A transposed convolution of 2x2 and stride 2 is wrong."),
    "dropout": Check(check_dropout, "Dropout's integers are computed otherwise: it drops another share."),
    "moving variance": Check(check_variance, "BatchNorm stores a wrong variance behind a global pooling, which spoils "
                             "evaluation; under msrun: synchronised BatchNorm.", "any"),
    "ranking": Check(check_ranking, "OHEM takes other pixels, because sorts or comparisons round."),
    "training": Check(check_training, "Something else in a training step computes wrongly."),
    "launches": Check(check_launches, "Small networks wait for the start of their kernels."),
    "copies": Check(check_copies, "Copies between host and device are slow.", on_cpu=False),
    "loader": Check(check_loader, "The host cannot prepare images as fast as a device trains."),
    "all-reduce": Check(check_all_reduce, "Sums over devices are wrong or slow.", "several"),
}


def impossible(check: Check, machine: Machine) -> str:
    """Reason for which a check is not possible on a machine; empty if it is."""
    if check.devices == "several" and machine.size == 1:
        return "needs several devices: start it with msrun"
    if check.devices == "one" and machine.size > 1:
        return "is for one device: start it without msrun"
    if machine.target == "CPU" and not check.on_cpu:
        return "needs an Ascend chip"
    return ""


def run_check(name: str, machine: Machine) -> Finding:
    """Runs a check; an exception becomes its result. On several devices it fails if it fails on one.

    Args:
        name: Key of ``CHECKS``.
        machine: Machine.
    """
    start = time.perf_counter()
    try:
        found = CHECKS[name].run(machine)
    except Exception as error:
        found = Finding(FAIL, note=f"{type(error).__name__}: {first_line(error)}")
    if machine.size > 1:
        failed = int(all_reduce_sum(np.array([found.status == FAIL], np.int64))[0])
        if failed:
            found = Finding(**{**asdict(found), "status": FAIL, "note": f"wrong on {failed} of {machine.size} devices: "
                               + (found.note or "not on this one")})
    return Finding(**{**asdict(found), "seconds": time.perf_counter() - start})
