"""``make bench`` runs every file of benchmarks/ without a word on its command line."""
import importlib.util
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.support import lock
from tests.support import ROOT


class Parsed(Exception):
    """Ends a benchmark once its command line is accepted."""


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_runs_without_arguments(path, monkeypatch):
    parse = ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs) -> Namespace:
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(path)])
    # As in ``python benchmarks/x.py``: the folder of the file can be imported from, the checkout's root cannot.
    elsewhere = [place for place in sys.path if Path(place).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", [str(path.parent), *elsewhere])
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "tools")]:
        monkeypatch.delitem(sys.modules, name)
    definition = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(definition)
    monkeypatch.setitem(sys.modules, definition.name, module)       # dataclasses look their module up
    definition.loader.exec_module(module)
    with pytest.raises(Parsed):
        module.main()


def test_make_bench_runs_all_of_them():
    assert "for file in benchmarks/*.py; do" in (ROOT / "Makefile").read_text(encoding="utf-8")


def loop(seconds: float) -> float:
    """Python code alone for so much processor time; returns the time."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass
    return time.thread_time() - began


def test_lock_held_by_known_work(rng):
    """Work that holds the lock always, never, while asleep, and a part of its time that was counted beside it.

    A busy machine may take the processor away from any thread, so one of several attempts has to give the known values.
    """
    ok, photo = cv2.imencode(".jpg", cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (4000, 3000)))
    assert ok
    began = time.thread_time()
    cv2.imdecode(photo, cv2.IMREAD_COLOR)
    decoding = time.thread_time() - began
    held = []

    def both() -> None:
        for _ in range(3):
            held.append(loop(decoding))
            cv2.imdecode(photo, cv2.IMREAD_COLOR)

    def share(work: Callable[[], object]) -> float:
        use = lock.measure(work, interval=0.02)
        return use.held / use.cpu

    def attempt() -> tuple[float, float, float, float]:
        held.clear()
        found = (share(lambda: loop(0.3)), share(lambda: [cv2.imdecode(photo, cv2.IMREAD_COLOR) for _ in range(3)]),
                 lock.measure(lambda: time.sleep(0.3)).held)
        use = lock.measure(both, interval=0.02)
        return *found, abs(use.held - sum(held)) / use.cpu

    attempts = []
    for _ in range(6):
        attempts.append(attempt())
        always, never, asleep, difference = attempts[-1]
        if always > 0.5 and never < 0.3 and asleep < 0.1 and difference < 0.4:
            return
    raise AssertionError(attempts)
