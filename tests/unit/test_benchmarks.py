"""``make bench`` runs every file of benchmarks/ without a word on its command line."""
import importlib.util
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
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


def loop(seconds: float) -> None:
    """Python code alone for so much processor time."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def decode(photo: np.ndarray, seconds: float) -> None:
    """OpenCV without the lock for so much processor time."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        cv2.imdecode(photo, cv2.IMREAD_COLOR)


@pytest.fixture
def photo(rng):
    """A JPEG that takes long to decode."""
    ok, data = cv2.imencode(".jpg", cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (4000, 3000)))
    assert ok
    return data


def test_lock_held_by_known_work(photo):
    """Work that holds the lock always, never, and while asleep."""
    assert lock.measure(lambda: loop(0.3)).share > 0.95
    assert lock.measure(lambda: decode(photo, 0.3)).share < 0.2
    asleep = lock.measure(lambda: time.sleep(0.3))
    assert asleep.cpu < 0.1


@pytest.mark.slow
def test_lock_held_half_of_the_time(photo):
    """By two threads, which the sampler finds some time after their start."""
    def both() -> None:
        threads = [threading.Thread(target=loop, args=(3,)), threading.Thread(target=decode, args=(photo, 3))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    use = lock.measure(both)
    assert 0.4 < use.share < 0.6
    assert 0.008 < use.error < 0.03
