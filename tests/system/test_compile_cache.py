"""Graphs of the training step that are kept between runs: the results are those of a run without, whatever changes."""
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mindseg.cpu_kernels.library import installed_library
from mindseg.engine import compile_cache
from tests.support import ROOT


@pytest.fixture(scope="module")
def make_steps():
    """``make_steps(cache, name, height, width, *overrides, switch=...)`` makes three steps in a process of its own."""
    def run(cache, *words, switch="1", start=(str(ROOT / "tests" / "support" / "cache_worker.py"),)):
        variables = os.environ | {compile_cache.SWITCH: switch, "XDG_CACHE_HOME": str(cache)}
        done = subprocess.run([sys.executable, *start, *map(str, words)], capture_output=True, text=True, check=False,
                              env=variables)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        print(words, switch, result)
        return result["losses"], result["parameters"]

    return run


@pytest.fixture(scope="module")
def plain(make_steps):
    """Results of Fast-SCNN at 64x128 where no graph is kept."""
    return make_steps(os.environ.get("XDG_CACHE_HOME", ""), "fast_scnn", 64, 128, switch="0")


@pytest.fixture
def steps(tmp_path, make_steps):
    """``make_steps`` with a cache folder of the test; it has nothing but the C++ operators, if they were built."""
    (tmp_path / "mindseg").mkdir()
    if installed_library():
        (tmp_path / "mindseg" / Path(installed_library()).name).symlink_to(installed_library())
    return partial(make_steps, tmp_path)


def graphs(tmp_path):
    """The files of all graphs that were kept, with the times at which they were written."""
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "mindseg" / "graphs").glob("[!.]*/**/*.mindir")}


WORDS = {"fast_scnn": (), "enet": (), "bisenetv2": (), "fcn8s": ("model.fc_channels=32",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_kept_graphs_compute_the_same(name, tmp_path, steps):
    plain = steps(name, 64, 128, *WORDS[name], switch="0")
    assert not graphs(tmp_path)
    assert steps(name, 64, 128, *WORDS[name]) == plain
    kept = graphs(tmp_path)
    assert len(kept) == 2
    assert steps(name, 64, 128, *WORDS[name]) == plain
    assert graphs(tmp_path) == kept     # and nothing was compiled


SWITCHES = [("optim.loss_scale=dynamic", "optim.clip_norm=1.0", "train.ema_decay=0.9"),
            ("optim.drop_overflow=true", "optim.nesterov=true"), ("train.amp_level=O2", "optim.name=adamw")]


@pytest.mark.slow
@pytest.mark.parametrize("switches", SWITCHES)
def test_graphs_with_switches_are_kept(switches, tmp_path, steps):
    first = steps("fast_scnn", 64, 64, *switches)
    kept = graphs(tmp_path)
    assert len(kept) >= 2
    assert steps("fast_scnn", 64, 64, *switches) == first
    assert graphs(tmp_path) == kept


@pytest.mark.slow
def test_a_process_without_a_script_trains(tmp_path, steps, plain):
    """MindSpore reads the script that was started, and finds none."""
    code = "from tests.support.cache_worker import main; main()"
    assert steps("fast_scnn", 64, 128, start=("-c", code)) == plain
    assert not list((tmp_path / "mindseg" / "graphs").iterdir())


@pytest.mark.slow
def test_what_changes_is_noticed(tmp_path, steps):
    found = [steps("fast_scnn", 64, 128)]
    for words in [(96, 128), (64, 128, "optim.lr=0.5")]:
        kept = graphs(tmp_path)
        found.append(steps("fast_scnn", *words))
        assert found[-1] == steps("fast_scnn", *words, switch="0")
        assert len(graphs(tmp_path)) == len(kept) + 2
        assert kept.items() < graphs(tmp_path).items()
    assert found[0] != found[1] != found[2] != found[0]


@pytest.mark.slow
def test_only_the_first_step_of_a_process_is_kept(tmp_path, steps, plain):
    """MindSpore takes every further graph from the folder of the first one."""
    assert steps("fast_scnn", 64, 128, "+optim.lr=0.5") == plain
    assert steps("fast_scnn", 64, 128, "+optim.lr=0.5") == plain
    assert len(graphs(tmp_path)) == 2


@pytest.mark.slow
def test_a_damaged_file_is_written_anew(tmp_path, steps):
    first = steps("fast_scnn", 64, 128)
    for path in graphs(tmp_path):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:5000])
    damaged = graphs(tmp_path)
    assert steps("fast_scnn", 64, 128) == first
    assert graphs(tmp_path).keys() == damaged.keys()
    assert all(path.stat().st_size > 5000 for path in damaged)


@pytest.mark.slow
def test_without_a_cache_folder_nothing_is_kept(tmp_path, steps, plain):
    (tmp_path / "mindseg" / "graphs").write_text("a file in its place")
    assert steps("fast_scnn", 64, 128) == plain
