"""Experiment trackers: each gets the numbers of ``metrics.csv``; a tracker that fails does not end a training.

Stand-ins have the documented calls of wandb and swanlab (init, log, finish). MLflow is itself, where it is installed.
"""
import logging
import sys
import types

import numpy as np
import pytest

from mindseg.config import load_config
from mindseg.engine.trackers import Tracker
from mindseg.errors import ConfigError, UserError
from tests.support import ROOT

CONFIG = ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml"
SECRET = "hunter2"


@pytest.fixture
def cfg():
    return load_config(CONFIG, ["runtime.modelarts={data_url: 's3://bucket'}"])


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "fast_scnn_camvid" / "20260101-120000"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(logging.getLogger("mindseg"), "warning", lambda text, *values: found.append(text % values))
    return found


def fake(monkeypatch, name, fails=()):
    """A stand-in for a package; returns the list of its calls, of which those in ``fails`` raise."""
    calls = []

    def function(call):
        def run(*args, **kwargs):
            calls.append((call, args, kwargs))
            if call in fails:
                raise ConnectionError(f"https://user:{SECRET}@server refused")
            return package
        return run

    package = types.ModuleType(name)
    for call in ("init", "log", "finish"):
        setattr(package, call, function(call))
    monkeypatch.setitem(sys.modules, name, package)
    return calls


def rows(tracker):
    """Passes on the rows of a trainer: a log line, an evaluation, the end."""
    tracker.add(phase="train", epoch=1, step=20, total_steps=40, loss=0.5, lr=0.1)
    tracker.add(phase="eval", epoch=2, step=40, total_steps=40, miou=0.25, pixel_accuracy=0.75,
                iou={"road": 0.5, "Wort (neu)": 0.125, "pole": float("nan")}, pictures={"a": np.zeros((2, 2, 3))})
    tracker.close()


EXPECTED = {20: {"train/loss": 0.5, "train/lr": 0.1},
            40: {"eval/miou": 0.25, "eval/pixel_accuracy": 0.75, "iou/road": 0.5, "iou/Wort _neu_": 0.125}}


@pytest.mark.parametrize(("name", "place"), [("wandb", "dir"), ("swanlab", "logdir")])
def test_a_tracker_gets_settings_and_rows(name, place, cfg, run_dir, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    calls = fake(monkeypatch, name)
    rows(Tracker(name, run_dir, cfg))
    assert [call for call, _, _ in calls] == ["init", "log", "log", "finish"]
    settings = calls[0][2]
    assert settings["project"] == "mindseg"
    assert "fast_scnn_camvid-20260101-120000" in settings.values()
    assert str(run_dir) in settings[place]
    assert settings["config"]["optim"]["lr"] == 0.03
    assert "runtime" not in settings["config"], "addresses of a platform stay out"
    assert {kwargs["step"]: args[0] for _, args, kwargs in calls[1:3]} == EXPECTED


@pytest.mark.parametrize(("fails", "made"), [({"init"}, ["init"]), ({"log"}, ["init", "log"]),
                                             ({"finish"}, ["init", "log", "log", "finish"])])
def test_a_tracker_that_fails_is_one_warning_without_its_text(fails, made, cfg, run_dir, monkeypatch, warnings):
    calls = fake(monkeypatch, "wandb", fails)
    rows(Tracker("wandb", run_dir, cfg))
    assert [call for call, _, _ in calls] == made
    assert warnings == ["train.trackers: wandb failed (ConnectionError) and gets no further numbers; the training goes "
                        "on"]
    assert SECRET not in "".join(warnings)


def test_a_tracker_that_is_not_installed_or_not_known(cfg, run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(UserError, match="swanlab is not installed; pip install swanlab, or leave it out of"):
        Tracker("swanlab", run_dir, cfg)
    with pytest.raises(ConfigError, match=r"train\.trackers: 'clearml' is not known; use mlflow, wandb, swanlab"):
        load_config(CONFIG, ["train.trackers=[wandb, clearml]"])


def test_mlflow_stores_the_run_in_files(cfg, run_dir, tmp_path, monkeypatch, warnings):
    """The store on disk is read as text: a folder a run, a file a number, with lines of time, value and step."""
    mlflow = pytest.importorskip("mlflow")
    store = tmp_path / "store"
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(store.as_uri())
    try:
        rows(Tracker("mlflow", run_dir, cfg))
        tracker = Tracker("mlflow", run_dir, cfg, resumed=True)
        tracker.add(phase="train", epoch=3, step=60, loss=0.25)
        tracker.close()
    finally:
        mlflow.set_tracking_uri(None)
    assert not warnings
    (loss,) = store.glob("*/*/metrics/train/loss")     # one run, although it was resumed
    assert [line.split()[1:3] for line in loss.read_text().splitlines()] == [["0.5", "20"], ["0.25", "60"]]
    folder = loss.parents[2]
    assert (folder / "metrics" / "iou" / "Wort _neu_").read_text().split()[1] == "0.125"
    assert (folder / "params" / "optim.lr").read_text() == "0.03"
    assert not list((folder / "params").glob("runtime*"))
    assert "fast_scnn_camvid-20260101-120000" in (folder / "meta.yaml").read_text()
