"""Training platforms: data come in before a run, results go out after it; the platforms' packages are stand-ins."""
import os
import shutil
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest

from mindseg.commands.evaluate import output_folder
from mindseg.config import Config, load_config
from mindseg.errors import UserError
from mindseg.platforms import modelarts_arguments, platform
from mindseg.runtime import Runtime
from tests.support import ROOT

CPU = Runtime("CPU", 0)


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
    return Config.from_dict({"data": {"root": "elsewhere"}, "runtime": {"modelarts": urls, "openi": False}})


@pytest.fixture
def bucket(tmp_path):
    for name in ("data", "out"):
        (tmp_path / "obs" / name).mkdir(parents=True)
    (tmp_path / "obs" / "data" / "a.png").write_bytes(b"pixels")
    for name in ("start.ckpt", "vgg16_bn.pth"):
        (tmp_path / "obs" / name).write_bytes(b"weights")
    return tmp_path / "obs"


@pytest.mark.parametrize(("fails", "start"), [(False, "start.ckpt"), (True, "start.ckpt"), (False, "vgg16_bn.pth")])
def test_data_come_in_before_and_results_go_out_after_on_modelarts(moxing, bucket, tmp_path, fails, start):
    cfg = settings(data_url=str(bucket / "data"), train_url=str(bucket / "out"), checkpoint_url=str(bucket / start))
    run_dir = tmp_path / "outputs" / "fast_scnn" / "20260101-000000"
    expected = pytest.raises(UserError, match="training failed") if fails else nullcontext()
    with expected, platform(cfg, run_dir, CPU) as checkpoint:
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
        with platform(settings(data_url=str(bucket / "data"), outer_path=str(bucket / "out")), run_dir,
                       Runtime("CPU", 0, rank, 2)):
            pass
        assert len(moxing.calls) == (1 if rank == 1 else 2)


def test_without_the_settings_nothing_happens(tmp_path):
    cfg = Config.from_dict({"data": {"root": "here"}, "runtime": {"modelarts": None, "openi": False}})
    with platform(cfg, tmp_path, CPU) as checkpoint:
        assert checkpoint is None
    assert cfg.data.root == "here"


def test_errors_name_the_address_or_the_package(moxing, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"missing: cannot be copied .*no such bucket"), \
            platform(settings(data_url="s3://missing"), tmp_path, CPU):
        pass
    with pytest.raises(UserError, match="no key 'data_uri'"), \
            platform(settings(data_uri="x"), tmp_path, CPU):
        pass
    monkeypatch.setitem(sys.modules, "moxing", None)
    with pytest.raises(UserError, match="needs the package moxing"), \
            platform(settings(data_url="s3://new"), tmp_path, CPU):
        pass


TASK = """
class C2netContext:
    code_path, dataset_path, pretrain_model_path, output_path = "", {data!r}, {models!r}, {output!r}

def prepare():
    open({calls!r}, "a").write("prepare ")
    return C2netContext()

def upload_output():
    open({calls!r}, "a").write("upload ")
    return C2netContext.output_path
"""


@pytest.fixture
def task(monkeypatch, tmp_path):
    """A task of OpenI with one data set, and a stand-in for its package that writes its calls to the file calls."""
    folders = {name: tmp_path / name for name in ("data", "models", "output")}
    (folders["data"] / "streets").mkdir(parents=True)
    folders["models"].mkdir()
    folders["output"].mkdir()
    (folders["models"] / "start.ckpt").write_bytes(b"weights")
    package = tmp_path / "packages" / "c2net"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "context.py").write_text(TASK.format(calls=str(tmp_path / "calls"), **{
        name: str(path) for name, path in folders.items()}))
    monkeypatch.syspath_prepend(str(package.parent))
    for name in ("c2net", "c2net.context"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("c2net", "c2net.context"):
        sys.modules.pop(name, None)


def openi(tmp_path, root=None):
    return Config.from_dict({"data": {"root": root}, "runtime": {"modelarts": None, "openi": True,
                                                                 "output_dir": str(tmp_path / "outputs")}})


@pytest.mark.parametrize("fails", [False, True])
def test_data_come_in_before_and_results_go_out_after_on_openi(task, fails):
    cfg, run_dir = openi(task), task / "outputs" / "fast_scnn" / "20260101-000000"
    expected = pytest.raises(UserError, match="training failed") if fails else nullcontext()
    with expected, platform(cfg, run_dir, CPU, "start.ckpt") as checkpoint:
        assert cfg.data.root == str(task / "data" / "streets")
        assert checkpoint == task / "models" / "start.ckpt"
        run_dir.mkdir(parents=True)
        (run_dir / "train.log").write_text("lines")
        assert (task / "calls").read_text() == "prepare "
        if fails:
            raise UserError("training failed")
    assert (task / "output" / "fast_scnn" / "20260101-000000" / "train.log").read_text() == "lines"
    assert (task / "calls").read_text() == "prepare upload "


def test_every_process_of_a_task_finds_the_folders_and_rank_0_uploads(task):
    run_dir = task / "output" / "fast_scnn" / "1"       # lies in the output folder already
    run_dir.mkdir(parents=True)
    for rank in (1, 0):
        cfg = openi(task)
        with platform(cfg, run_dir, Runtime("CPU", 0, rank, 2)):
            assert cfg.data.root == str(task / "data" / "streets")
    assert (task / "calls").read_text() == "prepare prepare upload "
    assert [path.name for path in (task / "output").iterdir()] == ["fast_scnn"]


@pytest.mark.parametrize(("root", "chosen"), [("camvid", "camvid"), ("streets/train", "streets/train"), (None, None),
                                              ("else", None)])
def test_one_of_several_data_sets_is_chosen_by_its_name(task, root, chosen):
    (task / "data" / "camvid").mkdir()
    (task / "data" / "streets" / "train").mkdir()
    cfg = openi(task, root)
    expected = nullcontext() if chosen else pytest.raises(UserError, match="this OpenI task, camvid, streets; choose")
    with expected, platform(cfg, task / "run", CPU, "other.ckpt") as checkpoint:
        assert cfg.data.root == str(task / "data" / chosen)
        assert checkpoint is None       # no such model: the path counts as it was typed


def test_errors_of_openi_name_the_package_the_platform_or_the_folder(task, monkeypatch):
    (task / "data" / "streets").rmdir()
    with pytest.raises(UserError, match="which has none; choose one"), \
            platform(openi(task, "data/camvid"), task, CPU):
        pass
    both = openi(task)
    both.runtime.modelarts = {"data_url": "s3://data"}
    with pytest.raises(UserError, match="two platforms"), platform(both, task, CPU):
        pass
    from c2net import context

    monkeypatch.setattr(context, "prepare", lambda: {}["LOCAL_DATASET_PATH"])
    with pytest.raises(UserError, match=r"prepare\(\) failed .*LOCAL_DATASET_PATH"), platform(openi(task), task, CPU):
        pass
    monkeypatch.setitem(sys.modules, "c2net.context", None)
    with pytest.raises(UserError, match="needs the package c2net"), platform(openi(task), task, CPU):
        pass


def test_results_of_an_evaluation_on_openi_do_not_lie_beside_the_code(task):
    """The folder of a checkpoint that is looked up in the task's models would be the current one."""
    args = types.SimpleNamespace(output=None, ckpt_path="start.ckpt", manifest=None, config="configs/a/b.yaml")
    assert output_folder(args, openi(task)) == task / "outputs" / "b" / "eval"
