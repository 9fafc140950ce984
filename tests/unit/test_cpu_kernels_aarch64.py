"""The C++ operators, compiled for aarch64 and run in an emulator: the tests of test_cpu_kernels.py, x86's results."""
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mindseg.cpu_kernels import library
from tests.support import ROOT
from tests.unit import test_cpu_kernels as native

COMPILER = "aarch64-linux-gnu-g++"
SYSTEM = "/usr/aarch64-linux-gnu"      # its C and C++ libraries
pytestmark = pytest.mark.slow
call_here = native.call

# Every test there that calls an operator; here `call` is another function.
globals().update({name: test for name, test in vars(native).items()
                  if name.startswith("test_") and "call" in test.__code__.co_names})


class Emulated:
    """A function as ``test_cpu_kernels.call``, in an emulator.

    Args:
        command: Emulator, driver and library.
    """

    def __init__(self, command: list[str]) -> None:
        self.command, self.threads = command, 0

    def set_threads(self, count: int) -> None:
        self.threads = count

    def __call__(self, name: str, *arrays: np.ndarray) -> int:
        parts = []
        for array in arrays:
            numbers = np.array([array.itemsize, array.ndim, *array.shape], np.int64)
            parts += [str(array.dtype).encode().ljust(16, b"\0"), numbers.tobytes(), array.tobytes()]
        done = subprocess.run([*self.command, f"mindseg_{name}", str(self.threads)], input=b"".join(parts),
                              capture_output=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        start = 8
        for array in arrays:
            array[...] = np.frombuffer(done.stdout, array.dtype, array.size, start).reshape(array.shape)
            start += array.nbytes
        assert start == len(done.stdout)
        return int(np.frombuffer(done.stdout, np.int64, 1)[0])


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The operators on aarch64; the library is built as on such a machine, but by a compiler that runs here."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if shutil.which(COMPILER) is None or emulator is None:
        pytest.skip("no compiler or emulator for aarch64 here: apt-get install g++-aarch64-linux-gnu qemu-user-static")
    folder = tmp_path_factory.mktemp("aarch64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", COMPILER)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        path = library.build_library()
    driver = folder / "driver"
    subprocess.run([COMPILER, "-std=c++17", "-O1", "-Wall", "-Werror", "-o", str(driver),
                    str(ROOT / "tests" / "support" / "operator_driver.cc"), "-ldl"], check=True)
    return Emulated([emulator, "-L", SYSTEM, str(driver), str(path)])


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, emulated):
    """Lets the tests of the other module use the emulator."""
    monkeypatch.setattr(native, "call", emulated)
    monkeypatch.setattr(library, "set_threads", emulated.set_threads)


def test_the_library_is_one_for_aarch64(emulated):
    header = Path(emulated.command[-1]).read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183       # EM_AARCH64


def test_results_are_those_of_this_machine(emulated, rng):
    """Up to the rounding of a product that one machine adds in the same instruction, and of sums in another order."""
    library.build_library()
    library.installed_library.cache_clear()
    x, dy = rng.standard_normal((2, 2, 6, 61, 83)).astype(np.float32)
    gamma, beta, mean, inverse, slopes = rng.uniform(0.5, 1.5, (5, 6)).astype(np.float32)
    label, size = rng.integers(0, 6, (2, 250, 330)).astype(np.int32), np.array([256, 352, 0], np.int32)
    dlosses = rng.standard_normal(label.shape).astype(np.float32)
    options, cap = np.array([1e-5, 2.0], np.float32), np.array([2.0], np.float32)
    channels = (6,)
    operators = {
        "activate": ((x, gamma, beta, slopes, cap), [x.shape]),
        "activate_grad": ((x, gamma, beta, slopes, cap, dy), [x.shape, channels, channels, channels]),
        "batch_norm": ((x, gamma, beta, slopes, options), [x.shape, channels, channels, channels]),
        "batch_norm_grad": ((x, gamma, beta, slopes, options, mean, inverse, dy),
                            [x.shape, channels, channels, channels]),
        "cross_entropy": ((x, label, size), [label.shape]),
        "cross_entropy_grad": ((x, label, size, dlosses), [x.shape])}
    for name, (inputs, shapes) in operators.items():
        here, there = ([np.full(shape, np.nan, np.float32) for shape in shapes] for _ in range(2))
        assert call_here(name, *inputs, *here) == 0
        assert emulated(name, *inputs, *there) == 0
        for a, b in zip(here, there, strict=True):
            print(name, a.shape, "equal bits", (a == b).mean(), "largest difference", np.abs(a - b).max())
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=2e-6 * np.abs(a).max())
