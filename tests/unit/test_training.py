"""From a configuration to a training: every switch arrives, and what a resumed run must find again."""
import errno
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mindspore import Tensor, nn
from mindspore.ops import constexpr

from mindseg import chips
from mindseg.checkpoint import read_checkpoint
from mindseg.commands import train as training
from mindseg.commands.train import Batches, Start, build_step, divide_batch, find_checkpoint
from mindseg.config import load_config
from mindseg.engine.trainer import Job, Trainer
from mindseg.errors import UserError
from mindseg.logs import setup_logging
from mindseg.models import layers
from mindseg.runtime import Runtime
from tests.support import ROOT
from tests.support.data import make_camvid
from tests.support.hostile import check_refused, files_below
from tests.support.predictors import FunctionPredictor
from tests.support.steps import CLASSES, Net, make_step
from tests.support.train import assert_same_state

pytestmark = pytest.mark.usefixtures("graph_mode")
CONFIG = ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml"


class Batches8x8:
    """Four steps an epoch, of four images of 8x8 that differ by epoch and step."""
    steps_per_epoch = 4

    def epoch(self, epoch, start_step=0):
        for i in range(start_step, self.steps_per_epoch):
            rng = np.random.default_rng((epoch, i))
            yield {"image": rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8),
                   "label": rng.integers(0, CLASSES, (4, 8, 8)).astype(np.uint8), "names": [f"{epoch}_{i}"] * 4}


def trainer_in(folder, total=12, evaluate=None, accumulation=1, step=None, **options):
    """A trainer over a real step with Adam, BatchNorm and what ``options`` switch on."""
    cfg = load_config(CONFIG, ["train.log_interval=1", "train.save_interval_steps=1", "train.eval_start=1",
                               "train.eval_interval=1"])
    (folder / "ckpt").mkdir(parents=True, exist_ok=True)
    setup_logging(folder)
    step = step or make_step(Net(norm=True), optim="adam", accumulation=accumulation, **options)
    job = Job(cfg, folder, Runtime("CPU", 0), np.full(total, 0.01), accumulation)
    return Trainer(job, step, Batches8x8(), evaluate)


@pytest.mark.parametrize(("order", "count"), [("RGB", 2), ("BGR", 2), ("RGB", 0)])
def test_an_evaluation_brings_classes_and_the_first_pictures(order, count, tmp_path, rng, monkeypatch):
    make_camvid(tmp_path, rng, 3, "val")
    cfg = load_config(CONFIG, [f"data.root={tmp_path}", f"data.color_order={order}", "train.tensorboard=true",
                               f"train.tensorboard_images={count}"])
    monkeypatch.setattr(training, "NetworkPredictor", lambda cfg, net, info: FunctionPredictor(
        lambda images, size: np.full((len(images), *size), 3, np.uint8), info))
    scores = training.evaluation(cfg, None, Runtime("CPU", 0))(lambda: None)
    assert len(scores["classes"]) == len(scores["iou"]) == 11
    first = sorted(tmp_path.glob("val/*.png"))[:count]
    assert list(scores["pictures"]) == [path.stem for path in first]
    colours = np.array([*cfg.data.palette, *[(0, 0, 0)] * 245])
    for path in first:
        left, middle, right = np.split(scores["pictures"][path.stem], 3, axis=1)
        np.testing.assert_array_equal(left, cv2.imread(str(path))[..., ::-1])
        label = cv2.imread(str(tmp_path / "valannot" / path.name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(middle, colours[label])
        assert (right == cfg.data.palette[3]).all()


@pytest.mark.parametrize("options", [{"loss_scale": 2.0**20, "dynamic_scale": True, "ema_decay": 0.9},
                                     {"accumulation": 2, "ema_decay": 0.5, "loss_scale": 8.0}], ids=str)
def test_scale_and_averages_go_on_to_the_bit(tmp_path, options):
    trainer_in(tmp_path / "whole", **options).fit()
    trainer_in(tmp_path / "cut", total=5, **options).fit()
    resumed = trainer_in(tmp_path / "cut", **options)
    resumed.restore(tmp_path / "cut" / "ckpt" / "last.ckpt")
    resumed.fit()
    assert_same_state(tmp_path / "whole" / "ckpt" / "last.ckpt", tmp_path / "cut" / "ckpt" / "last.ckpt")
    arrays, _ = read_checkpoint(tmp_path / "cut" / "ckpt" / "last.ckpt")
    assert {"ema.conv1.weight", "loss_scale", "good_steps", "moment1.conv1.weight"} <= set(arrays)
    if "dynamic_scale" in options:
        assert arrays["good_steps"] == 12


def test_an_evaluation_sees_the_averages_and_training_the_weights(tmp_path):
    seen = []
    trainer = trainer_in(tmp_path, evaluate=lambda check: seen.append(weight()) or {"miou": 0.5, "pixel_accuracy": 0.5},
                         ema_decay=0.9)

    def weight():
        assert not trainer.step.net.training
        return trainer.step.net.conv1.weight.asnumpy().copy()

    trainer.fit()
    arrays, _ = read_checkpoint(tmp_path / "ckpt" / "last.ckpt")
    assert len(seen) == 3
    np.testing.assert_array_equal(seen[-1], arrays["ema.conv1.weight"])
    assert np.abs(seen[-1] - arrays["conv1.weight"]).max() > 1e-3


class StopAt:
    """An evaluation that asks the run to stop, as a signal would, in the last step but one."""

    def __init__(self, trainer) -> None:
        self.trainer, self.original = trainer, trainer._train_step

    def __call__(self, batch):
        if self.trainer.progress.step == 10:
            self.trainer.signals.received = "SIGTERM"
        return self.original(batch)


def test_a_run_stopped_in_its_last_step_is_evaluated_once(tmp_path):
    def evaluate(check):
        return {"miou": 0.7, "pixel_accuracy": 0.9}

    trainer_in(tmp_path / "whole", evaluate=evaluate).fit()
    first = trainer_in(tmp_path / "cut", evaluate=evaluate)
    first._train_step = StopAt(first)
    first.fit()
    assert first.stopped
    last = tmp_path / "cut" / "ckpt" / "last.ckpt"
    for _ in range(2):
        again = trainer_in(tmp_path / "cut", evaluate=evaluate)
        again.restore(last)
        again.fit()
    assert_same_state(tmp_path / "whole" / "ckpt" / "last.ckpt", last)
    assert (tmp_path / "cut" / "train.log").read_text().count("evaluation mIoU") == 3
    assert (tmp_path / "cut" / "train.log").read_text().count("best so far") == 1      # 0.7 again is no better


def test_the_newest_checkpoint_takes_the_place_of_a_removed_one(tmp_path):
    trainer_in(tmp_path, total=6).fit()
    assert find_checkpoint(tmp_path).name == "last.ckpt"
    (tmp_path / "ckpt" / "last.ckpt").unlink()
    assert find_checkpoint(tmp_path).name == "step6.ckpt"
    for path in (tmp_path / "ckpt").iterdir():
        path.unlink()
    assert find_checkpoint(tmp_path) is None


@pytest.fixture
def parts(monkeypatch):
    """Arguments that ``build_step`` passes to the training step."""
    found = {}

    def record(net, loss, optimizer, normalize, options, teacher):
        found.update(net=net, loss=loss, optimizer=optimizer, normalize=normalize, options=options, teacher=teacher)
        return found

    monkeypatch.setattr(training, "TrainStep", record)
    return found


def built(*overrides, size=1, target="CPU"):
    cfg = load_config(CONFIG, ["train.global_batch=8", *overrides])
    runtime = Runtime(target, 0, 0, size)
    build_step(cfg, nn.SequentialCell([Net(norm=True)]), runtime, divide_batch(cfg, size), 6, 3, 255)


@pytest.mark.parametrize(("overrides", "attribute", "value"), [
    ([], "accumulation", 1), (["train.device_batch=2"], "accumulation", 4), (["optim.clip_norm=0.5"], "clip_norm", 0.5),
    (["train.ema_decay=0.99"], "ema_decay", 0.99), (["optim.drop_overflow=true"], "drop_overflow", True),
    (["optim.loss_scale=256"], "loss_scale", 256.0), (["optim.loss_scale=dynamic"], "loss_scale", 65536.0),
    (["optim.loss_scale=dynamic"], "dynamic_scale", True), ([], "dynamic_scale", False),
    ([], "average_statistics", True)])
def test_every_switch_arrives_at_the_step(parts, overrides, attribute, value):
    built(*overrides)
    assert getattr(parts["options"], attribute) == value


@pytest.mark.parametrize(("name", "words", "expected"), [
    ("Ascend910A", [], (65536.0, True, True)), ("Ascend910B", [], (65536.0, True, True)),
    ("Ascend910B2", [], (1.0, False, False)), ("unknown", [], (65536.0, True, True)),
    ("Ascend910A", ["optim.loss_scale=256"], (256.0, False, True)),
    ("Ascend910B2", ["optim.loss_scale=dynamic"], (65536.0, True, False))])
def test_the_first_910_gets_a_dynamic_loss_scale(parts, monkeypatch, name, words, expected):
    """Its convolutions are float16 at every level, and no value shows an overflow."""
    monkeypatch.setattr(chips, "installed_chip", lambda: chips.find_chip(name))
    built(*words, target="Ascend")
    options = parts["options"]
    assert (options.loss_scale, options.dynamic_scale, options.saturates) == expected


def test_frozen_statistics_arrive_at_the_step(parts):
    built("train.frozen_bn=true")
    assert parts["net"][0].norm.frozen
    assert not parts["options"].average_statistics
    built()
    assert not parts["net"][0].norm.frozen


def test_synchronised_statistics_need_no_sharing(parts):
    built("train.sync_bn=always", size=2)
    assert parts["options"].size == 2
    assert not parts["options"].average_statistics
    built("train.sync_bn=never", size=2)
    assert parts["options"].average_statistics


def test_bfloat16_is_refused_on_the_cpu(parts):
    with pytest.raises(UserError, match=r"train\.amp_dtype = bfloat16 does not run on the CPU"):
        built("train.amp_level=O2", "train.amp_dtype=bfloat16")


def test_a_batch_is_divided_evenly():
    cfg = load_config(CONFIG, ["train.global_batch=24", "train.device_batch=3"])
    assert divide_batch(cfg, 2) == Batches(12, 4)


def test_a_refused_checkpoint_leaves_the_run_as_it_is(tmp_path, rng):
    make_camvid(tmp_path / "data", rng, 10)
    run_dir = tmp_path / "run"
    trainer_in(run_dir, total=2).fit()
    for name in ("config.yaml", "env.json"):
        (run_dir / name).write_text("as it was")
    cfg = load_config(CONFIG, [f"data.root={tmp_path / 'data'}", "data.crop_size=[64, 64]", "train.run_eval=false"])
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be resumed"):
        training.train(cfg, run_dir, Runtime("CPU", 0), Start())
    assert {(run_dir / name).read_text() for name in ("config.yaml", "env.json")} == {"as it was"}


@constexpr
def saturated(seed, name, number, count, low, high):
    """Random numbers that are all the largest."""
    return Tensor(np.full(count, high - 1, np.int32))


@pytest.mark.parametrize(("target", "message"), [
    ("Ascend", "dropout of rate 0.1 keeps .* on this device"), ("CPU", "the trainer was made")])
def test_a_training_on_ascend_starts_with_the_check_of_dropout(target, message, tmp_path, rng, monkeypatch):
    def trainer(*_):
        raise UserError("the trainer was made")

    make_camvid(tmp_path / "data", rng, 10)
    cfg = load_config(CONFIG, [f"data.root={tmp_path / 'data'}", "data.crop_size=[64, 64]", "train.run_eval=false"])
    monkeypatch.setattr(layers, "_random", saturated)
    monkeypatch.setattr(training, "Trainer", trainer)
    with pytest.raises(UserError, match=message):
        training.train(cfg, tmp_path / "run", Runtime(target, 0), Start())


@pytest.fixture
def run(tmp_path, rng):
    """A run folder with two steps, and a function that starts a training there, which is refused for its network."""
    make_camvid(tmp_path / "data", rng, 10)
    trainer_in(tmp_path / "run", total=2).fit()
    cfg = load_config(CONFIG, [f"data.root={tmp_path / 'data'}", "data.crop_size=[64, 64]", "train.run_eval=false"])
    return tmp_path / "run", lambda: training.train(cfg, tmp_path / "run", Runtime("CPU", 0), Start())


def test_a_second_training_in_a_folder_is_refused_until_the_first_ends(run):
    folder, start = run
    code = ("import pathlib, sys, time\nfrom mindseg.engine.run_dir import lock_run\n"
            "from mindseg.runtime import Runtime\n"
            "with lock_run(pathlib.Path(sys.argv[1]), Runtime('CPU', 0)): print('locked', flush=True); time.sleep(600)")
    other = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert other.stdout.readline() == "locked\n"
        before = files_below(folder)
        check_refused(start, f"{folder}: another training is running in this folder")
        assert files_below(folder) == before
    finally:
        other.kill()
        other.communicate()
    check_refused(start, "cannot be resumed")       # the kernel has released the lock


def test_a_file_system_without_locks_is_no_obstacle(run, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("mindseg.engine.run_dir.fcntl.flock", refuse)
    check_refused(run[1], "cannot be resumed")


def test_leftovers_of_a_killed_training_are_removed_and_nothing_else(run):
    folder, start = run
    left = ["ckpt/.part.ckpt", "ckpt/.part.tmp", "ckpt/.last.link.tmp", "rank1/ckpt/.part.ckpt",
            ".config.mindseg-99999999.tmp.yaml", ".metrics.mindseg-99999999.tmp.csv"]       # there is no such process
    kept = ["notes.tmp", ".notes.txt", "ckpt/notes.tmp", "ckpt/.notes.tmp", "ckpt/.best.ckpt",
            ".eval.mindseg-1.tmp.json"]       # process 1 runs
    (folder / "rank1" / "ckpt").mkdir(parents=True)
    for name in left + kept:
        (folder / name).write_text("x")
    check_refused(start, "cannot be resumed")
    assert not [name for name in left if (folder / name).exists()]
    assert [name for name in kept if (folder / name).exists()] == kept
