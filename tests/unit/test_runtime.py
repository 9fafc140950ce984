"""Launchers, devices and ModelArts, without any of them."""
import json
import os
import shutil
import socket
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest

from mindseg import runtime as module
from mindseg.compat import get_mode
from mindseg.config import Config, load_config
from mindseg.errors import UserError
from mindseg.modelarts import modelarts, modelarts_arguments
from mindseg.runtime import Runtime, profiled, setup_runtime
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


def test_flags_of_modelarts_become_one_setting():
    words = ["--config", "c.yaml", "--data_url", "s3://a b/d", "--train_url=s3://out/", "--use_modelarts", "1",
             "--run_eval"]
    assert modelarts_arguments(words) == [
        "--config", "c.yaml", "--run_eval", "--set",
        'runtime.modelarts={data_url: "s3://a b/d", train_url: "s3://out/"}']
    assert modelarts_arguments(["--config", "x"]) == ["--config", "x"]
    for switch in (["--use_modelarts"], ["--use_modelarts=1"], ["--modelarts", "True"], ["--enable_modelarts", "0"]):
        assert modelarts_arguments([*switch, "--config", "x"]) == ["--config", "x"]
        assert modelarts_arguments(["--config", "x", *switch]) == ["--config", "x"]
    cfg = load_config(ROOT / "configs" / "fast_scnn" / "fast_scnn_cityscapes.yaml", [modelarts_arguments(words)[-1]])
    assert cfg.runtime.modelarts == {"data_url": "s3://a b/d", "train_url": "s3://out/"}


@pytest.fixture
def moxing(monkeypatch, tmp_path):
    """A stand-in that copies between folders; it remembers its calls."""
    calls = []

    def copy_parallel(source, target):
        calls.append((source, target))
        shutil.copytree(source, target, dirs_exist_ok=True)

    def copy(source, target):
        calls.append((source, target))
        if "missing" in source:
            raise OSError("no such bucket")
        shutil.copyfile(source, target)

    package = types.ModuleType("moxing")
    package.file = types.SimpleNamespace(copy_parallel=copy_parallel, copy=copy, is_directory=os.path.isdir)
    package.calls = calls
    monkeypatch.setitem(sys.modules, "moxing", package)
    monkeypatch.setenv("MODELARTS_CACHE", str(tmp_path / "cache"))
    return package


def settings(**urls):
    return Config.from_dict({"data": {"root": "elsewhere"}, "runtime": {"modelarts": urls}})


@pytest.fixture
def bucket(tmp_path):
    for name in ("data", "out"):
        (tmp_path / "obs" / name).mkdir(parents=True)
    (tmp_path / "obs" / "data" / "a.png").write_bytes(b"pixels")
    for name in ("start.ckpt", "vgg16_bn.pth"):
        (tmp_path / "obs" / name).write_bytes(b"weights")
    return tmp_path / "obs"


@pytest.mark.parametrize(("fails", "start"), [(False, "start.ckpt"), (True, "start.ckpt"), (False, "vgg16_bn.pth")])
def test_data_come_in_before_and_results_go_out_after(moxing, bucket, tmp_path, fails, start):
    cfg = settings(data_url=str(bucket / "data"), train_url=str(bucket / "out"), checkpoint_url=str(bucket / start))
    run_dir = tmp_path / "outputs" / "fast_scnn" / "20260101-000000"
    expected = pytest.raises(UserError, match="training failed") if fails else nullcontext()
    with expected, modelarts(cfg, run_dir, Runtime("CPU", 0)) as checkpoint:
        assert (Path(cfg.data.root) / "a.png").read_bytes() == b"pixels"
        assert checkpoint.read_bytes() == b"weights"
        run_dir.mkdir(parents=True)
        (run_dir / "train.log").write_text("lines")
        if fails:
            raise UserError("training failed")
    assert (bucket / "out" / "fast_scnn" / "20260101-000000" / "train.log").read_text() == "lines"


def test_one_process_of_a_host_copies_and_rank_0_brings_out(moxing, bucket, tmp_path):
    run_dir = tmp_path / "run" / "1"
    run_dir.mkdir(parents=True)
    for rank in (1, 0):
        with modelarts(settings(data_url=str(bucket / "data"), outer_path=str(bucket / "out")), run_dir,
                       Runtime("CPU", 0, rank, 2)):
            pass
        assert len(moxing.calls) == (1 if rank == 1 else 2)


def test_without_the_settings_nothing_happens(tmp_path):
    cfg = Config.from_dict({"data": {"root": "here"}, "runtime": {"modelarts": None}})
    with modelarts(cfg, tmp_path, Runtime("CPU", 0)) as checkpoint:
        assert checkpoint is None
    assert cfg.data.root == "here"


def test_errors_name_the_address_or_the_package(moxing, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"missing: cannot be copied .*no such bucket"), \
            modelarts(settings(data_url="s3://missing"), tmp_path, Runtime("CPU", 0)):
        pass
    with pytest.raises(UserError, match="no key 'data_uri'"), \
            modelarts(settings(data_uri="x"), tmp_path, Runtime("CPU", 0)):
        pass
    monkeypatch.setitem(sys.modules, "moxing", None)
    with pytest.raises(UserError, match="needs the package moxing"), \
            modelarts(settings(data_url="s3://new"), tmp_path, Runtime("CPU", 0)):
        pass
