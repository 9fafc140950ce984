"""Shared fixtures. Importing mindseg first caps the oneDNN instruction set: see src/mindseg/__init__.py."""
import ctypes.util
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# Processes that share cores slow each other down by far more than half, because MindSpore's threads spin while they
# wait (docs/performance.md): each worker of pytest-xdist gets a core of its own, and so do the processes it starts.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if _WORKER:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(_WORKER.removeprefix("gw")) % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = "1"

# With jemalloc MindSpore compiles its graphs in a quarter less time (docs/performance.md). Workers, and all programs
# that tests start, take it where it is installed and nothing else is asked for. The second variable keeps OpenVINO's
# TBB from loading a library past it, which ends in a crash.
if not _WORKER and (jemalloc := ctypes.util.find_library("jemalloc")):
    os.environ.setdefault("LD_PRELOAD", jemalloc)
    os.environ.setdefault("TBB_ENABLE_SANITIZERS", "1")

import mindseg  # noqa: E402, F401
from tests.support import ROOT, future  # noqa: E402
from tests.support.hostile import SEED, register_profiles  # noqa: E402

if future.FUTURE:
    future.install()

# For the processes that tests start: this checkout's package, whatever is installed, and the tests' own modules.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])


# Tests draw the same numbers in every run. With MINDSEG_TEST_SEED=random (make nightly) they draw others, and the
# number that is printed in its place repeats that run.
register_profiles()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Draw the seed of the run, before worker processes inherit the environment, and print it."""
    if os.environ.get(SEED) == "random":
        os.environ[SEED] = str(int.from_bytes(os.urandom(4), "little"))
    if SEED in os.environ and not _WORKER:
        session.config.get_terminal_writer().line(f"{SEED}={os.environ[SEED]} repeats this run")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name and the seed of the run, which is printed when the test fails."""
    run = int(os.environ.get(SEED, "0"))
    print(f"{SEED}={run}")
    return np.random.default_rng((run, zlib.crc32(request.node.nodeid.encode())))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[float], Path]]:
    """``small_disk(megabytes)`` makes a folder that is a file system of that size."""
    mounted = []

    def make(megabytes: float) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(1024 * megabytes)}k", "none", str(folder)],
                              capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting a tmpfs needs root")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="module")
def graph_mode() -> Iterator[None]:
    """Compiled graphs, as the commands use; MindSpore's own default is PyNative."""
    from mindseg.compat import get_mode, set_mode

    before = get_mode()
    set_mode("graph")
    yield
    set_mode(before)


@pytest.fixture(scope="session")
def run_cli():
    """Runs a root verb or a command as a user does, ``run_cli("train.py", …)`` or ``run_cli("pack", …)``."""

    def run(script: str, *words, cwd: Path | None = None, timeout: float = 600) -> subprocess.CompletedProcess:
        program = [str(ROOT / script)] if script.endswith(".py") else ["-m", "mindseg", script]
        command = [sys.executable, *program, *map(str, words)]
        return subprocess.run(command, cwd=cwd or ROOT, capture_output=True, text=True, timeout=timeout, check=False)

    return run
