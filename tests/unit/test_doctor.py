"""``mindseg doctor``: each check passes on this CPU, and fails on a device with a wrong operator or slow times."""
import json
import math
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, nn, ops

from benchmarks.support.chip_numbers import emulated
from mindseg import losses
from mindseg.chips import find_chip
from mindseg.commands import doctor as verb
from mindseg.compat import as_if_on, assign, cast
from mindseg.config import load_config
from mindseg.engine import device_checks, device_speed, doctor
from mindseg.engine.doctor import CHECKS, FAIL, IMPOSSIBLE, MEASURED, PASS, Machine, impossible, run_check
from mindseg.errors import UserError
from mindseg.models import layers
from tests.support.steps import isfinite

pytestmark = pytest.mark.usefixtures("graph_mode")
CPU, TWO = Machine("CPU"), Machine("CPU", size=2)
FIRST, SECOND = Machine("Ascend", find_chip("910A")), Machine("Ascend", find_chip("910B2"))


class Changed(nn.Cell):
    """An operator whose result is multiplied by a factor, or the gradient of its first input."""

    def __init__(self, operator, forward=1.0, backward=1.0):
        super().__init__(auto_prefix=False)
        self.operator, self.factor = operator, Factor(forward, 1.0)
        self.gradient = Factor(1.0, backward)

    def construct(self, x, *rest):
        return self.factor(self.operator(self.gradient(x), *rest))


class Factor(nn.Cell):
    def __init__(self, forward, backward):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = forward, backward

    def construct(self, x):
        return x * self.forward

    def bprop(self, x, out, dout):
        return (dout * self.backward,)


def changed(name, **factors):
    """A device on which one primitive is wrong."""
    primitive = getattr(ops, name)
    return patch.object(ops, name, lambda *words, **options: Changed(primitive(*words, **options), **factors))


class BiasedBatchNorm(nn.Cell):
    """BatchNorm that stores the variance of the batch itself, not corrected by n / (n - 1)."""

    def __init__(self, is_training, epsilon, momentum=0.1):
        super().__init__(auto_prefix=False)
        self.momentum = momentum

    def construct(self, x, gamma, beta, moving_mean, moving_variance):
        centred = x - x.mean((0, 2, 3), keep_dims=True)
        variance = ops.square(centred).mean((0, 2, 3))
        assign(moving_variance, (1 - self.momentum) * moving_variance + self.momentum * variance)
        return (centred,)


@ms.ops.constexpr
def saturated(seed, name, number, count, low, high):
    """Random numbers that are all the largest."""
    return Tensor(np.full(count, high - 1, np.int32))


def all_true(x, dtype):
    """A cast that takes every bool for true."""
    return cast(ops.ones_like(x) if x.dtype == ms.bool_ else x, dtype)


def no_sum(*_):
    """An all-reduce that leaves each device its own values."""
    def all_reduce(x):
        return x
    return all_reduce


def threefold(*_):
    """An all-reduce between this device and one with doubled values."""
    def all_reduce(x):
        return 3.0 * x
    return all_reduce


SORT, RESHAPE = ops.sort, ops.reshape


def rounded_sort(x, axis, descending):
    values, places = SORT(cast(x, ms.float16), axis, descending)
    return cast(values, ms.float32), places


def rounded_reshape(x, shape):
    return RESHAPE(cast(cast(x, ms.float16), x.dtype), shape)


@contextmanager
def no_overflow_seen():
    with emulated("float16"), patch.object(ms.amp, "all_finite", isfinite):
        yield


@contextmanager
def counting(wrong=False):
    """OHEM in its form for Ascend, which needs no sort; a wrong device compares in float16."""
    with as_if_on(find_chip("910B2")):
        if not wrong:
            yield
        else:
            with patch.object(losses.ops, "reshape", rounded_reshape):
                yield


WRONG = {
    "a sum": ("device", CPU, patch.object(Tensor, "__add__", lambda x, y: x), "add up to 8, not 16"),
    "an overflow without a sign": ("overflow", FIRST, no_overflow_seen(), "all_finite does not see an overflow"),
    "saturation": ("overflow", CPU, emulated("float16"), "an overflow gives the largest number: chips.py is wrong"),
    "infinity": ("overflow", FIRST, emulated("hf32"), "an overflow gives infinity: chips.py is wrong"),
    "rounding": ("precision", CPU, emulated("hf32"),
                 "product, gradient of the weight keeps 10 bits of the mantissa, 23 expected"),
    "rounded products": ("precision", SECOND, emulated("hf32"), "product keeps 10 bits of the mantissa, 23 expected"),
    "transposed convolution": ("transposed convolution", CPU, changed("Conv2DTranspose", forward=1.01),
                               "in its form for training the largest error is"),
    "convolution": ("transposed convolution", CPU, changed("Conv2D", forward=1.01),
                    "in its form for evaluation the largest error is"),
    "random numbers": ("dropout", CPU, patch.object(layers, "_random", saturated), "a rate of 0.1 of channels keeps"),
    "casts": ("dropout", CPU, patch.object(layers, "cast", all_true), "a rate of 0.5 of values keeps 1.000 instead of"),
    "variance": ("moving variance", CPU, patch.object(ops, "BatchNorm", BiasedBatchNorm),
                 "2 x 1x1 values a channel: the stored variance is 0.5 beside"),
    "sort": ("ranking", CPU, patch.object(ops, "sort", rounded_sort), "OHEM's bound is"),
    "comparisons": ("ranking", SECOND, counting(wrong=True), "OHEM's bound is"),
    "all-reduce": ("all-reduce", TWO, patch.object(ops, "AllReduce", no_sum), "the sum over the devices is wrong"),
}
RIGHT = {
    **{name: (name, CPU, nullcontext()) for name in
       ("device", "overflow", "precision", "transposed convolution", "dropout", "moving variance", "ranking")},
    "overflow of a 910A": ("overflow", FIRST, emulated("float16")),
    "precision of a 910A": ("precision", FIRST, emulated("float16")),
    "precision of A2 with HF32": ("precision", replace(SECOND, settings=("runtime.hf32=true",)), emulated("hf32")),
    "transposed convolution of a 910A": ("transposed convolution", FIRST, emulated("float16")),
    "ranking of A2": ("ranking", SECOND, counting()),
    "all-reduce": ("all-reduce", TWO, patch.object(ops, "AllReduce", threefold)),
}


# Other tests of the fast suite look at the same numbers.
SLOW = ("rounded products", "precision", "dropout", "precision of a 910A", "precision of A2 with HF32")


def kinds(table):
    return [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in table]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One process that stands for all devices, and less work."""
    monkeypatch.setattr(doctor, "all_reduce_sum", lambda values: values)
    monkeypatch.setattr(device_checks, "RANKED", 2**14)
    monkeypatch.setattr(device_speed, "LAUNCHES", 32)
    monkeypatch.setattr(device_speed, "COPIED", 2**20)


@pytest.mark.parametrize("kind", kinds(WRONG))
def test_a_wrong_operator_fails_its_check(kind):
    name, machine, wrong, note = WRONG[kind]
    with wrong:
        found = run_check(name, machine)
    assert found.status == FAIL, found
    assert note in found.note


@pytest.mark.parametrize("kind", kinds(RIGHT))
def test_a_right_device_passes(kind):
    name, machine, right = RIGHT[kind]
    with right:
        found = run_check(name, machine)
    assert (found.status, found.note) == (PASS, ""), found
    assert found.value
    assert found.expected


class Clock:
    """A clock that goes on by a step whenever it is read."""

    def __init__(self, step):
        self.step, self.now = step, 0.0

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.mark.parametrize(("name", "fast", "slow", "note"), [
    ("launches", 0.004, 0.006, "a launch takes 187 us"),
    ("copies", 0.001, 0.002, "to_device GB/s 0.524; to_host GB/s 0.524"),
    ("loader", 20, 25, "2 threads prepare 2.56 images a second")])
def test_times_have_wide_limits(name, fast, slow, note, monkeypatch):
    machine = replace(FIRST, settings=("data.num_workers=2", "data.crop_size=[64, 64]"))
    monkeypatch.setattr(device_speed, "make_images", partial(device_speed.make_images, height=96, width=128))
    for step, status in ((fast, PASS), (slow, FAIL)):
        monkeypatch.setattr(device_speed, "clock", Clock(step))
        found = run_check(name, machine)
        assert found.status == status, found
        assert found.note == (note if status == FAIL else "")


def test_launches_of_a_cpu_are_measured_only(monkeypatch):
    monkeypatch.setattr(device_speed, "clock", Clock(32.0))
    found = run_check("launches", CPU)
    assert (found.status, found.value) == (MEASURED, {"us": 1e6})


def test_a_copy_that_changes_the_data_fails(monkeypatch):
    original = Tensor.asnumpy
    monkeypatch.setattr(Tensor, "asnumpy", lambda x: np.roll(original(x), 1))
    found = run_check("copies", FIRST)
    assert found.status == FAIL
    assert found.note == "ValueError: an array that was copied to the device and back has changed"


@pytest.mark.slow
def test_the_small_training_sees_a_wrong_gradient():
    right = tuple(doctor.training_losses(CPU))
    assert right[-1] < 0.9 * right[0]
    with changed("Conv2D", backward=0.9):
        losses = doctor.training_losses(CPU)
    assert losses[0] == right[0]        # it comes before any gradient
    for target, step in (("CPU", 2), ("Ascend", 4)):
        found = doctor.compare_losses(losses, Machine(target, reference=right))
        assert found.status == FAIL
        assert found.note.startswith(f"step {step} has a loss of {losses[step - 1]:.6g}, on the CPU "), found


REFERENCE = tuple(2.0 - 0.1 * i for i in range(10))


@pytest.mark.parametrize(("step", "factor", "target", "note"), [
    (3, 1.006, "Ascend", "step 4 has a loss of 1.7102, on the CPU 1.7"), (3, 1.004, "Ascend", ""),
    (3, 1.0001, "CPU", "step 4 has a loss of 1.70017, on the CPU 1.7"), (9, math.nan, "Ascend", "a step overflowed")])
def test_losses_are_those_of_the_cpu_within_a_limit(step, factor, target, note):
    losses = [loss * (factor if i == step else 1.0) for i, loss in enumerate(REFERENCE)]
    found = doctor.compare_losses(losses, Machine(target, reference=REFERENCE))
    assert (found.status, found.note) == (FAIL if note else PASS, note)


def test_losses_must_fall():
    found = doctor.compare_losses([2.0] * 10, Machine("Ascend", reference=(2.0,) * 10))
    assert found.note == "the loss does not fall: 2, after ten steps 2"


@pytest.mark.parametrize("kind", ["float16", "hf32"])
@pytest.mark.slow
def test_the_numbers_of_chips_pass_as_ascend_and_are_no_cpus(kind):
    reference = tuple(doctor.training_losses(CPU))
    with emulated(kind):
        losses = doctor.training_losses(FIRST if kind == "float16" else SECOND)
    for target, status in (("Ascend", PASS), ("CPU", FAIL)):
        assert doctor.compare_losses(losses, Machine(target, reference=reference)).status == status


@pytest.mark.parametrize(("machine", "hf32", "convolution", "product"), [
    (FIRST, None, (10, 10), (10, 10)), (FIRST, True, (10, 10), (10, 10)), (SECOND, None, (10, 11), (23, 23)),
    (SECOND, True, (10, 11), (10, 11)), (SECOND, False, (23, 23), (23, 23)), (CPU, True, (23, 23), (23, 23)),
    (Machine("Ascend"), None, (10, 23), (10, 23)), (Machine("CPU", find_chip("310P3")), None, (23, 23), (23, 23))])
def test_the_bits_that_a_chip_should_keep(machine, hf32, convolution, product):
    found = device_checks.expected_bits(machine.chip, machine.target, hf32)
    assert found == {"convolution": convolution, "product": product}


def test_what_is_not_possible_says_why():
    reasons = {name: impossible(check, CPU) for name, check in CHECKS.items()}
    assert {name: reason for name, reason in reasons.items() if reason} == {
        "copies": "needs an Ascend chip", "all-reduce": "needs several devices: start it with msrun"}
    assert not any(impossible(check, FIRST) for name, check in CHECKS.items() if name != "all-reduce")
    assert verb.names_for(replace(FIRST, size=8)) == ["moving variance", "all-reduce"]


def test_an_exception_is_a_finding():
    with patch.object(ops, "Conv2DTranspose", lambda *words, **options: 1 / 0):
        found = run_check("transposed convolution", CPU)
    assert (found.status, found.note) == (FAIL, "ZeroDivisionError: division by zero")


PROCESS = """
import json, os, pathlib, sys, time
words = sys.argv[1:]
result = pathlib.Path(words[words.index("--result") + 1])
names = words[words.index("--checks") + 1:]
if names == ["reference"]:
    if "no reference" in words[words.index("--set") + 1]:
        sys.exit("error: no CPU")
    result.write_text('{"reference": [1.0, 0.5]}')
elif "crash" in words[words.index("--set") + 1] and names[0] == "dropout":
    print("[CRITICAL] a kernel of /home/alice/cann/lib.so failed", flush=True)
    os.abort()
elif "hang" in words[words.index("--set") + 1] and names[0] == "dropout":
    time.sleep(60)
else:
    value = {"reference": " ".join(words[words.index("--reference") + 1:words.index("--checks")])}
    result.write_text(json.dumps({name: {"status": "pass", "value": value, "expected": "", "note": "", "seconds": 1.0}
                                  for name in names}))
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the verb with checks that are played by a small program; gives status, report and what was printed."""
    (tmp_path / "program.py").write_text(PROCESS)
    monkeypatch.setattr(verb, "PROGRAM", [sys.executable, "-S", str(tmp_path / "program.py")])
    monkeypatch.setattr(verb, "load_config", lambda name, settings: load_config(name))
    monkeypatch.setenv("DEVICE_TARGET", "CPU")

    def run(behaviour, *words):
        monkeypatch.setattr(sys, "argv", ["doctor", "--set", behaviour, "--output", str(tmp_path / "d.json"), *words])
        return verb.main(), json.loads((tmp_path / "d.json").read_text()), capsys.readouterr().out
    return run


def test_the_file_has_all_checks_and_versions(call):
    status, report, printed = call("nothing")
    assert status == 0
    assert report["versions"]["mindspore"] == ms.__version__
    assert [check["name"] for check in report["checks"]] == list(CHECKS)
    for check in report["checks"]:
        assert len(check["risk"]) > 20
        assert check["status"] == (IMPOSSIBLE if check["name"] in ("copies", "all-reduce") else PASS)
        assert f"{check['status']:<18}{check['name']}" in printed
    assert next(c["value"] for c in report["checks"] if c["name"] == "training") == {"reference": "1.0 0.5"}
    assert "say nothing of a chip" in printed


@pytest.mark.parametrize(("behaviour", "note"), [
    ("crash", "ended by SIGABRT: [CRITICAL] a kernel of .../lib.so failed"),
    pytest.param("hang", "no result within 5 s", marks=pytest.mark.slow)])
def test_a_check_that_crashes_or_hangs_does_not_stop_the_others(call, behaviour, note, monkeypatch):
    monkeypatch.setattr(verb, "CHECK_SECONDS", 5.0)
    status, report, printed = call(behaviour)
    assert status == 1
    found = {check["name"]: (check["status"], check["note"]) for check in report["checks"]}
    assert found.pop("dropout") == (FAIL, note)
    assert {status for status, _ in found.values()} == {PASS, IMPOSSIBLE}
    assert note.split(":")[0] in printed


def test_no_losses_of_the_cpu(call):
    status, report, _ = call("no reference")
    training = next(check for check in report["checks"] if check["name"] == "training")
    assert (status, training["status"]) == (1, FAIL)
    assert training["note"] == "no losses of the CPU to compare with: ended with status 1: error: no CPU"


def test_checks_without_time_are_left_out(call, monkeypatch):
    monkeypatch.setattr(verb, "SECONDS", 0.0)
    status, report, _ = call("nothing")
    assert status == 0
    assert {check["status"] for check in report["checks"]} == {IMPOSSIBLE}
    assert report["checks"][0]["note"] == "the time for all checks was over"


def test_a_file_of_the_user_stays(call, tmp_path):
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(UserError, match=r"d\.json: exists already; choose another --output or give --overwrite"):
        call("nothing")
    assert (tmp_path / "d.json").read_text() == "{}"
    assert call("nothing", "--overwrite")[0] == 0


def test_the_report_has_no_names(monkeypatch):
    monkeypatch.setattr(verb.socket, "gethostname", lambda: "kiwi-7")
    monkeypatch.setattr(verb.getpass, "getuser", lambda: "alice")
    text = ("error in /home/alice/.venv/lib/ops.py:12 and '/home/alice' and ~/x/data of alice@kiwi-7, "
            "data.root=/d/alice, 10.1.2.3:8118; ratio 1/2, 3 images/s, HF32")
    assert verb.without_names({"a": [text], "b": 0.5, "c": (True, None)}) == {
        "a": ["error in .../ops.py:12 and '<path>' and <path> of <user>@<host>, data.root=<path>, <address>:8118; "
              "ratio 1/2, 3 images/s, HF32"], "b": 0.5, "c": [True, None]}


def test_the_version_of_cann_is_read_where_its_variables_point(tmp_path, monkeypatch):
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "version.info").write_text("Version=7.6.0.1.220\n")
    for name in verb.CANN_FOLDERS:
        monkeypatch.delenv(name, raising=False)
    assert verb.versions()["cann"] == ""
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert verb.versions()["cann"] == "7.6.0.1.220"
    (tmp_path / "aarch64-linux").mkdir()
    (tmp_path / "aarch64-linux" / "ascend_toolkit_install.info").write_text("package_name=x\nversion=8.2.RC1\n")
    assert verb.versions()["cann"] == "8.2.RC1"
