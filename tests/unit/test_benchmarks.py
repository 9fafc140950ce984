"""``make bench`` runs every file of benchmarks/ without a word on its command line."""
import importlib.util
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

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
