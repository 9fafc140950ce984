"""Launchers and devices, without any of them."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mindseg import runtime as module
from mindseg.compat import get_mode
from mindseg.config import Config
from mindseg.errors import UserError
from mindseg.runtime import profiled, setup_runtime
from tests.support import ROOT

RUNTIME = {"device_target": "CPU", "device_id": 0, "mode": "graph", "jit_level": "auto", "hf32": None,
           "deterministic": False, "seed": 1, "threads": 0, "modelarts": None}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("MS_", "OMPI_", "RANK_", "DEVICE_")):
            monkeypatch.delenv(name)


def test_one_process_on_the_cpu():
    """In a process of its own: MindSpore takes no device once a kernel has run."""
    code = ("import json, sys; from dataclasses import asdict; from mindseg.config import Config; "
            "from mindseg.comm import broadcast_object; from mindseg.runtime import environment, setup_runtime; "
            "runtime = setup_runtime(Config(json.loads(sys.argv[1]))); "
            "print(json.dumps([asdict(runtime), runtime.is_main, broadcast_object(1234, runtime.size), "
            "environment(runtime)]))")
    done = subprocess.run([sys.executable, "-c", code, json.dumps(RUNTIME)], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    runtime, is_main, same, facts = json.loads(done.stdout)
    assert runtime == {"device_target": "CPU", "device_id": 0, "rank": 0, "size": 1}
    assert is_main
    assert same == 1234
    assert facts["mindspore"]
    assert facts["device_target"] == "CPU"
    assert facts["onednn_max_cpu_isa"] == os.environ["ONEDNN_MAX_CPU_ISA"]


@pytest.mark.parametrize(("threads", "expected"), [(0, len(os.sched_getaffinity(0))), (3, 3)])
def test_kernels_have_a_fixed_number_of_threads(monkeypatch, threads, expected):
    """Otherwise MindSpore chooses it by timing, and equal runs end with other weights."""
    found = []
    monkeypatch.setattr(module, "use_device", lambda *_: None)
    monkeypatch.setattr(module, "tune_cpu", found.append)
    setup_runtime(Config(RUNTIME | {"threads": threads}))
    assert found == [expected]


def test_environment_chooses_the_device(monkeypatch):
    monkeypatch.setenv("DEVICE_TARGET", "TPU")
    with pytest.raises(UserError, match="DEVICE_TARGET = TPU must be one of auto, CPU, Ascend, GPU"):
        setup_runtime(Config(RUNTIME))


@pytest.mark.parametrize("value", ["0,1", "first", "-1"])
def test_one_device_is_wanted(monkeypatch, value):
    monkeypatch.setenv("DEVICE_ID", value)
    with pytest.raises(UserError, match=f"DEVICE_ID = {value} is not the number of one device"):
        setup_runtime(Config(RUNTIME))


def test_an_empty_device_id_is_none(monkeypatch):
    monkeypatch.setenv("DEVICE_ID", "")
    assert module._device_id(3) == 3


@pytest.mark.skipif(Path("/dev/davinci_manager").exists(), reason="there is an Ascend device here")
def test_an_absent_device_is_one_line():
    with pytest.raises(UserError, match=r"= Ascend: no Ascend device on this machine .*set runtime\.device_target="):
        setup_runtime(Config({**RUNTIME, "device_target": "Ascend"}))


@pytest.mark.parametrize("rank", [0, 1])
def test_mpirun_is_translated(rank, monkeypatch):
    started = []
    monkeypatch.setattr(module.subprocess, "Popen", lambda command, **options: started.append((command, options)))
    monkeypatch.setattr(module, "check_port", lambda *_: None)
    for name, value in {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank), "PMIX_RANK": "0",
                        "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
                        "MS_SCHED_PORT": "9000"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    try:
        assert module._adopt_launcher("CPU")
        assert not [name for name in os.environ if name.startswith(("OMPI_", "PMIX_"))]
        assert (os.environ["MS_ROLE"], os.environ["MS_NODE_ID"]) == ("MS_WORKER", str(rank))
        assert (os.environ["MS_WORKER_NUM"], os.environ["MS_SCHED_PORT"]) == ("2", "9000")
        assert os.environ["MINDSEG_LOCAL_RANKS"] == "1"
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert [options["env"]["MS_ROLE"] for _, options in started] == (["MS_SCHED"] if rank == 0 else [])


@pytest.mark.parametrize("size", ["1", "8"])
def test_a_simulated_job_has_ranks_without_a_role(size, monkeypatch):
    for name, value in {"MS_SIMULATION_LEVEL": "1", "RANK_SIZE": size, "RANK_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert module._adopt_launcher("Ascend") == (size == "8")


def test_mpirun_names_a_port_in_use(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for name, value in {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "MS_SCHED_PORT": port}.items():
            monkeypatch.setenv(name, value)
        before = dict(os.environ)
        try:
            with pytest.raises(UserError, match=f"MS_SCHED_PORT = {port} cannot be used"):
                module._adopt_launcher("CPU")
        finally:
            os.environ.clear()
            os.environ.update(before)


def test_mpirun_with_one_process_is_nothing_special(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert not module._adopt_launcher("CPU")


def test_a_rank_table_that_is_not_read_is_mentioned_once(monkeypatch, capsys):
    monkeypatch.setenv("RANK_TABLE_FILE", "/x/rank_table.json")
    assert not module._adopt_launcher("CPU")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_rank_table_is_left_to_the_versions_that_read_it(monkeypatch):
    monkeypatch.setenv("RANK_TABLE_FILE", "/x/rank_table.json")
    monkeypatch.setenv("RANK_SIZE", "8")
    monkeypatch.setattr(module.ms, "__version__", "2.7.0")
    assert module._adopt_launcher("Ascend")
    monkeypatch.setattr(module.ms, "__version__", "2.10.0")
    assert not module._adopt_launcher("Ascend")


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0rc1", "3.0.0"])
def test_a_newer_mindspore_is_mentioned_once(version, monkeypatch, capsys):
    monkeypatch.setattr(module.ms, "__version__", version)
    monkeypatch.setattr(module.ms, "set_device", lambda *_: None)
    module.warn_untested_version.cache_clear()
    for _ in range(2):
        module.use_device("CPU", mode=get_mode())
    error = capsys.readouterr().err
    assert error == (f"warning: MindSpore {version} is newer than 2.10, the newest version that was tested; "
                     "if something fails, install mindspore<2.11\n")


@pytest.mark.parametrize("version", ["2.7.0", "2.9.0", "2.10.0", "2.10.3"])
def test_a_tested_mindspore_is_not_mentioned(version, capsys):
    module.warn_untested_version.cache_clear()
    module.warn_untested_version(version)
    assert not capsys.readouterr().err


def test_a_profile_is_written_when_enabled(tmp_path):
    for enabled in (False, True):
        with profiled(enabled, tmp_path / "profile", "CPU"):
            module.ms.ops.relu(module.ms.Tensor([-1.0, 2.0])).asnumpy()
        traces = list(tmp_path.glob("profile/*/*/trace_view.json"))
        assert len(traces) == enabled
    assert json.loads(traces[0].read_text())
