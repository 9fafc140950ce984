"""The command line of ``train.py``, with the training itself recorded."""
import os
import re
import sys
from pathlib import Path

import pytest

import mindspore as ms
from mindspore import Parameter, Tensor

from mindseg.checkpoint import Progress, save_checkpoint
from mindseg.commands import train
from mindseg.config import dump_config, load_config
from mindseg.errors import UserError
from mindseg.runtime import Runtime
from tests.support import ROOT
from tests.support.hostile import check_refused

PLAIN = ROOT / "configs" / "enet" / "enet_camvid.yaml"
STAGED = ROOT / "configs" / "enet" / "enet_cityscapes_staged.yaml"


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the verb; gives (network's stage, folder, start, command) of every training.

    ``trained`` replaces the function that is called for a training.
    """
    def run(config, *words, ends=True, trained=None):
        calls = []

        def record(cfg, folder, runtime, start, command):
            calls.append((cfg, folder, start, command))
            return ends

        monkeypatch.setattr(train, "train", trained or record)
        monkeypatch.setattr(train, "setup_runtime", lambda cfg, training: Runtime("CPU", 0))
        monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(config), "--set",
                                          f"runtime.output_dir={tmp_path / 'out'}", *map(str, words)])
        train.main()
        return calls
    return run


def save(path, step=2, saved_at=None):
    """Writes a checkpoint with one small parameter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg = load_config(PLAIN)
    save_checkpoint(path, [Parameter(Tensor([1.0]), name="w")], Progress(1, step), cfg, saved_at=saved_at)
    return path


@pytest.fixture
def earlier(tmp_path):
    """Makes an earlier run's folder."""
    def make(config, name, stages=0, saved_at=None):
        run = tmp_path / "out" / config.stem / name
        for folder in [run / f"stage{i}" for i in range(1, stages + 1)] or [run]:
            save(folder / "ckpt" / "step2.ckpt", saved_at=saved_at)
        dump_config(load_config(config), run / "config.yaml")
        return run
    return make


def test_a_new_run_has_a_folder_of_its_own(call, tmp_path):
    (one,), (other,) = call(PLAIN), call(PLAIN, "--pretrained", "x.ckpt")
    assert one[1].parent == other[1].parent == tmp_path / "out" / "enet_camvid"
    assert one[1] != other[1]
    assert (one[2].checkpoint, other[2].checkpoint, other[2].resumed) == (None, Path("x.ckpt"), False)
    assert one[3].endswith(f"--resume {one[1]}")
    assert "--pretrained" not in other[3]


def test_a_run_is_resumed_by_folder_by_file_and_by_itself(call, earlier):
    earlier(PLAIN, "20260101-000000")
    run = earlier(PLAIN, "20260102-000000")
    for word, checkpoint in ((run, None), ("auto", run / "ckpt" / "step2.ckpt")):
        ((_, folder, start, command),) = call(PLAIN, "--resume", word)
        assert (folder, start.checkpoint) == (run, checkpoint)
        assert command.endswith(f"--resume {run}")
        assert command.count("--resume") == 1
    for place in (run / "ckpt", run / "rank1" / "ckpt"):
        save(place / "step2.ckpt")
        ((_, folder, start, _),) = call(PLAIN, "--resume", place / "step2.ckpt")
        assert (folder, start.checkpoint, start.resumed) == (run, place / "step2.ckpt", True)


def resumed_by_auto(call):
    ((_, folder, start, _),) = call(PLAIN, "--resume", "auto")
    return folder, start.checkpoint and start.checkpoint.name


def test_auto_goes_by_the_time_written_inside_and_not_by_names(call, earlier):
    earlier(PLAIN, "20260103-000000", saved_at=1000.0)
    run = earlier(PLAIN, "20260102-000000_seed3", saved_at=3000.0)
    earlier(PLAIN, "zzz", saved_at=2000.0)
    save(run / "ckpt" / "last.ckpt", step=1, saved_at=500.0)
    empty = run.with_name("zzzz")       # a run that was killed before it saved anything
    (empty / "ckpt").mkdir(parents=True)
    dump_config(load_config(PLAIN), empty / "config.yaml")
    assert resumed_by_auto(call) == (run, "step2.ckpt")
    deep = earlier(PLAIN, "seeds/run_seed1", saved_at=4000.0)
    assert resumed_by_auto(call) == (deep, "step2.ckpt")


def test_auto_goes_by_the_step_if_the_times_are_equal(call, earlier):
    run = earlier(PLAIN, "run", saved_at=1000.0)
    for step in (9, 10, 8):
        save(run / "ckpt" / f"step{step}.ckpt", step, 1000.0)
    save(run / "ckpt" / "not_finite.ckpt", 11, 1001.0)
    save(run / "rank1" / "ckpt" / "last.ckpt", 12, 1002.0)
    assert resumed_by_auto(call) == (run, "step10.ckpt")


def test_checkpoints_of_earlier_versions_go_by_the_time_of_their_files(call, earlier):
    run = earlier(PLAIN, "run", saved_at=1000.0)
    for name, moment in (("older.ckpt", 2000), ("old.ckpt", 3000)):
        path = run / "ckpt" / name
        ms.save_checkpoint([{"name": "w", "data": Tensor([1.0])}], str(path),
                           append_dict={"epoch": 1, "step": 5, "best_miou": "0.5", "eval_step": 5, "config": ""},
                           crc_check=True)
        os.utime(path, (moment, moment))
    assert resumed_by_auto(call) == (run, "old.ckpt")


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b""),
                                    lambda path: path.write_bytes(b"no checkpoint" * 9)])
def test_auto_passes_over_what_it_cannot_read(call, earlier, damage, monkeypatch):
    warnings = []
    monkeypatch.setattr(train.log, "warning", lambda text, *values: warnings.append(text % values))
    run = earlier(PLAIN, "run", saved_at=1000.0)
    bad = save(run / "ckpt" / "last.ckpt", step=3, saved_at=2000.0)
    damage(bad)
    assert resumed_by_auto(call) == (run, "step2.ckpt")
    assert len(warnings) == 1
    assert warnings[0].startswith(f"passed over: {bad}: ")
    damage(run / "ckpt" / "step2.ckpt")
    check_refused(lambda: call(PLAIN, "--resume", "auto"), run)


def test_a_bare_name_in_the_folder_of_the_checkpoints(call, earlier, monkeypatch):
    run = earlier(PLAIN, "run")
    monkeypatch.chdir(run / "ckpt")
    ((_, folder, start, _),) = call(PLAIN, "--resume", "step2.ckpt")
    assert (folder, start.checkpoint, start.resumed) == (run, run / "ckpt" / "step2.ckpt", True)


def test_a_checkpoint_outside_a_run_is_refused_and_nothing_is_written(call, tmp_path):
    path = save(tmp_path / "downloads" / "best.ckpt")
    check_refused(lambda: call(PLAIN, "--resume", path), path, "--pretrained")
    assert not (tmp_path / "ckpt").exists()


def test_auto_starts_anew_if_there_is_nothing(call, tmp_path):
    ((_, folder, start, _),) = call(PLAIN, "--resume", "auto")
    assert folder.is_dir()
    assert start.checkpoint is None


@pytest.mark.parametrize("what", ["nothing", "empty"])
def test_what_is_no_run_is_refused(call, tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--resume .*{what}: not a run folder"):
        call(PLAIN, "--resume", tmp_path / what)


def test_a_name_is_part_of_the_folder(call, tmp_path):
    ((_, folder, _, _),) = call(PLAIN, "--set", "runtime.name=wide-crop_2")
    assert re.fullmatch(r"\d{8}-\d{6}-wide-crop_2", folder.name)
    for name in ("a/b", "../x", "x" * 65, "a b", "''"):
        with pytest.raises(UserError, match=r"runtime\.name = .*letters, digits"):
            call(PLAIN, "--set", f"runtime.name={name}")
    assert len(list((tmp_path / "out" / PLAIN.stem).iterdir())) == 1


@pytest.mark.parametrize(("left", "stays"), [
    ({}, False), ({"metrics.csv": "phase,step\n"}, False), ({"metrics.csv": "phase,step\ntrain,20\n"}, True),
    ({"ckpt/step2.ckpt": ""}, True), ({"notes.txt": "mine"}, True), ({"ckpt/rank0.log": ""}, False)])
def test_a_start_that_fails_removes_its_folder(call, tmp_path, left, stays):
    """Unless it has trained, or holds somebody else's files."""
    def fail(cfg, folder, *rest):
        for name, text in {"config.yaml": "", "env.json": "", "train.log": "", "rank0.log": "", **left}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        raise UserError("data.root = x: there is no such folder")

    with pytest.raises(UserError, match="no such folder"):
        call(PLAIN, trained=fail)
    folder = tmp_path / "out" / PLAIN.stem
    assert len([path for path in folder.rglob("*") if path.is_file()]) == (4 + len(left) if stays else 0)
    assert any(folder.iterdir()) == stays


def test_stages_follow_each_other(call):
    calls = call(STAGED)
    run = calls[0][1].parent
    assert [folder for _, folder, _, _ in calls] == [run / f"stage{i}" for i in (1, 2, 3)]
    assert [start.checkpoint for _, _, start, _ in calls] == [
        None, run / "stage1" / "ckpt" / "last.ckpt", run / "stage2" / "ckpt" / "last.ckpt"]
    assert not any(start.resumed for _, _, start, _ in calls)
    assert len({cfg.model.encoder_only for cfg, *_ in calls}) == 2
    assert len(call(STAGED, ends=False)) == 1       # a signal


def test_a_checkpoint_of_a_stage_is_resumed_in_its_stage(call, earlier):
    run = earlier(STAGED, "20260101-000000", stages=2)
    file = run / "stage1" / "ckpt" / "step2.ckpt"
    calls = call(STAGED, "--resume", file)
    assert [folder for _, folder, _, _ in calls] == [run / f"stage{i}" for i in (1, 2, 3)]
    assert [(start.checkpoint, start.resumed) for _, _, start, _ in calls][:2] == [
        (file, True), (run / "stage1" / "ckpt" / "last.ckpt", False)]
    assert calls[0][0].model.encoder_only       # the first stage's network, not the last one's
    assert all(command.endswith(f"--resume {run}") for *_, command in calls)


def test_auto_goes_on_in_the_stage_that_saved_last(call, earlier):
    run = earlier(STAGED, "run", stages=2, saved_at=1000.0)
    newest = save(run / "stage2" / "ckpt" / "step1.ckpt", 1, 2000.0)
    calls = call(STAGED, "--resume", "auto")
    assert [folder for _, folder, _, _ in calls] == [run / f"stage{i}" for i in (1, 2, 3)]
    assert [(start.checkpoint, start.resumed) for _, _, start, _ in calls] == [
        (None, False), (newest, True), (run / "stage2" / "ckpt" / "last.ckpt", False)]


def test_modelarts_copies_for_a_resumed_checkpoint_too(call, earlier, monkeypatch):
    seen = []

    def copy(source, target):
        seen.append(source)

    run = earlier(PLAIN, "20260101-000000")
    monkeypatch.setattr("mindseg.platforms._moxing_copy", copy)
    monkeypatch.setenv("MODELARTS_CACHE", str(run.parent / "cache"))
    ((cfg, folder, start, _),) = call(PLAIN, "--resume", run / "ckpt" / "step2.ckpt", "--data_url", "s3://data",
                                      "--train_url", "s3://out")
    assert (folder, start.checkpoint) == (run, run / "ckpt" / "step2.ckpt")
    assert cfg.data.root == str(run.parent / "cache" / "data")
    assert seen == ["s3://data", str(run)]


def test_the_installed_command_is_repeated_as_it_was_typed(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["mindseg train", "--config", "enet camvid.yaml", "--pretrained", "x.ckpt"])
    assert train.resume_command(tmp_path) == f"mindseg train --config 'enet camvid.yaml' --resume {tmp_path}"


def test_a_wrapper_leaves_its_own_command(call, monkeypatch):
    monkeypatch.setenv("MINDSEG_COMMAND", "DEVICE_IDS=4,5 'bash' 'run.sh' 'a b.yaml' '2' '--resume' 'old' 'Grün' ")
    ((_, folder, _, command),) = call(PLAIN)
    assert command == f"DEVICE_IDS=4,5 bash run.sh 'a b.yaml' 2 'Grün' --resume {folder}"
