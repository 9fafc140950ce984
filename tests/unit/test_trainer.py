"""The loop around the compiled step, with a step of two lines in its place."""
import re
import signal
import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest

import mindspore as ms
from mindspore import Parameter, Tensor

from mindseg.checkpoint import read_checkpoint
from mindseg.config import load_config
from mindseg.engine.trainer import OVERFLOW_LIMIT, Job, Trainer
from mindseg.errors import UserError
from mindseg.logs import setup_logging
from mindseg.runtime import Runtime
from tests.support import ROOT
from tests.support.train import metrics

PER_EPOCH = 5


class FakeStep:
    """The sum of all samples seen, so that leaving one out or seeing it twice shows; the loss is 1 / the step's number.

    Args:
        hooks: Functions by step that replace its loss.
        overflows: Steps whose gradients overflow.
    """

    def __init__(self, hooks=None, overflows=()) -> None:
        self.total = Parameter(Tensor(0.0, ms.float32), name="total")
        self.moment = Parameter(Tensor(np.zeros(3, np.float32)), name="moments.total")
        self.hooks, self.overflows = hooks or {}, overflows
        self.training = True
        self.calls = 0

    def state_parameters(self):
        return [self.total, self.moment]

    def set_train(self, mode=True):
        self.training = mode

    def swap_averages(self):
        pass

    def __call__(self, image, label, stop, last):
        assert self.training
        self.total.set_data(Tensor(float(self.total.asnumpy()) * 1.01 + float(image.asnumpy().sum()), ms.float32))
        self.calls += 1
        loss = self.hooks.get(self.calls, lambda: 1.0 / self.calls)()
        return Tensor([loss, float(stop.asnumpy()), self.calls in self.overflows], ms.float32)


class FakeLoader:
    """Five batches of two samples; their numbers differ by epoch and place."""
    steps_per_epoch = PER_EPOCH

    def epoch(self, epoch, start_step=0):
        for i in range(start_step, PER_EPOCH):
            yield {"image": np.full((2, 1), 100 * epoch + i, np.float32), "label": np.zeros((2, 1), np.uint8),
                   "names": [f"image_{epoch}_{i}_a", f"image_{epoch}_{i}_b"]}


@pytest.fixture
def make(tmp_path):
    def build(folder="run", step=None, evaluate=None, accumulation=1, total=None, **changes):
        overrides = [f"train.{key}={value}" for key, value in changes.items()]
        cfg = load_config(ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml", ["train.epochs=4", *overrides])
        run_dir = tmp_path / folder
        (run_dir / "ckpt").mkdir(parents=True, exist_ok=True)
        setup_logging(run_dir)
        rates = np.linspace(1, 0.1, total or 4 * PER_EPOCH)
        job = Job(cfg, run_dir, Runtime("CPU", 0), rates, accumulation, "python train.py --resume RUN")
        return Trainer(job, step or FakeStep(), FakeLoader(), evaluate)
    return build


def files(trainer):
    return sorted(path.name for path in (trainer.job.run_dir / "ckpt").iterdir())


def test_every_batch_once_and_the_log_says_so(make):
    trainer = make(log_interval=2)
    progress = trainer.fit()
    assert (progress.epoch, progress.step) == (4, 20)
    assert trainer.step.calls == 20
    rows = metrics(trainer.job.run_dir)
    assert [int(row["step"]) for row in rows] == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]
    assert float(rows[1]["loss"]) == pytest.approx((1 / 3 + 1 / 4) / 2, rel=1e-4)
    assert float(rows[-1]["lr"]) == pytest.approx(0.1)
    first, line, *_ = (trainer.job.run_dir / "train.log").read_text().splitlines()
    assert re.search(r"first step after \d+\.\d s, with the compilation of the graph$", first)
    assert re.search(r"epoch 1/4 step 2/20 loss \d+\.\d{4} lr \d\.\d{6} data [\d.]+ ms step [\d.]+ ms [\d.]+ images/s "
                     r"eta \d+:\d\d:\d\d$", line)


@pytest.fixture
def lasting(monkeypatch):
    """Function that makes a step of so many seconds; no other time passes."""
    clock = [0.0]
    monkeypatch.setattr("mindseg.engine.trainer.time.perf_counter", lambda: clock[0])

    def step(seconds):
        def hook():
            clock[0] += seconds
            return 0.5
        return hook

    return step


def test_steps_of_another_crop_size_are_compiled_and_timed_anew(make, lasting):
    """The first step of epoch 3, of other sizes, takes 50 s; all others take 2 s."""
    class Growing(FakeLoader):
        def epoch(self, epoch, start_step=0):
            for batch in super().epoch(epoch, start_step):
                yield batch | {"image": batch["image"][:, :1].repeat(2 if epoch >= 2 else 1, 1)}

    slow = {1: lasting(90), 2 * PER_EPOCH + 1: lasting(50)}
    trainer = make(step=FakeStep({n: lasting(2) for n in range(2, 21)} | slow), log_interval=5)
    trainer.loader = Growing()
    trainer.fit()
    assert [float(row["step_ms"]) / 1000 for row in metrics(trainer.job.run_dir)] == [2.0] * 4
    assert (trainer.job.run_dir / "train.log").read_text().count("with the compilation of the graph") == 2


@pytest.mark.parametrize(("interval", "expected"), [(2, [2.0, 2.0, 2.0]), (1, [90.0, 2.0, 2.0, 2.0, 2.0])])
def test_compilation_does_not_spoil_rate_and_estimate(make, lasting, interval, expected):
    trainer = make(step=FakeStep({1: lasting(90)} | {n: lasting(2) for n in range(2, 21)}), log_interval=interval)
    trainer.fit()
    rows = metrics(trainer.job.run_dir)
    assert [float(row["step_ms"]) / 1000 for row in rows[:len(expected)]] == expected
    assert all(float(row["eta_s"]) == 2.0 * (20 - int(row["step"])) for row in rows if row["step"] != "1")


def test_steps_end_a_run_within_an_epoch(make):
    trainer = make(total=7)
    assert (trainer.fit().step, files(trainer)) == (7, ["last.ckpt", "step5.ckpt", "step7.ckpt"])


@pytest.mark.parametrize(("changes", "expected"), [
    ({"save_interval_epochs": 1, "keep_checkpoint_max": 2}, [15, 20]),
    ({"save_interval_epochs": 1, "keep_checkpoint_max": 0}, [5, 10, 15, 20]),
    ({"save_interval_epochs": 3, "keep_checkpoint_max": 9}, [15, 20]),
    ({"save_interval_epochs": 9, "save_interval_steps": 7, "keep_checkpoint_max": 0}, [7, 14, 20])])
def test_periodic_checkpoints(make, changes, expected):
    trainer = make(**changes)
    trainer.fit()
    assert files(trainer) == sorted(["last.ckpt", *(f"step{n}.ckpt" for n in expected)])
    arrays, extras = read_checkpoint(trainer.job.run_dir / "ckpt" / "last.ckpt")
    assert extras["step"] == 20
    assert arrays["total"] == trainer.step.total.asnumpy()


@pytest.mark.parametrize(("changes", "expected"), [
    ({"eval_start": 1, "eval_interval": 1}, [5, 10, 15, 20]), ({"eval_start": 2, "eval_interval": 2}, [10, 20]),
    ({"eval_start": 3, "eval_interval": 5}, [15, 20]), ({"eval_interval_steps": 8}, [8, 16, 20])])
def test_evaluations_and_the_best(make, changes, expected):
    scores = iter([0.5, 0.7, 0.6, 0.65])
    trainer = make(evaluate=lambda check: {"miou": next(scores), "pixel_accuracy": 0.9}, **changes)
    progress = trainer.fit()
    rows = [row for row in metrics(trainer.job.run_dir) if row["phase"] == "eval"]
    assert [int(row["step"]) for row in rows] == expected
    assert progress.best_miou == pytest.approx(0.7)
    assert read_checkpoint(trainer.job.run_dir / "ckpt" / "best.ckpt")[1]["step"] == expected[1]


def send(name):
    def hook():
        signal.raise_signal(getattr(signal, name))
        return 0.5
    return hook


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", [1, 4, 5, 13, 19, 20])
def test_a_stopped_run_continues_exactly(make, name, moment):
    def evaluate(check):
        return {"miou": 0.25, "pixel_accuracy": 0.5}

    whole = make("whole", evaluate=evaluate, log_interval=1, eval_start=1, eval_interval=2)
    whole.fit()
    before = signal.getsignal(signal.SIGTERM)
    first = make(step=FakeStep({moment: send(name)}), evaluate=evaluate, log_interval=1, eval_start=1, eval_interval=2)
    stopped = first.fit()
    assert signal.getsignal(signal.SIGTERM) is before
    assert first.stopped is (moment < 20)
    assert stopped.step == min(moment + 1, 20)      # the flag goes into the step after the signal
    text = (first.job.run_dir / "train.log").read_text()
    assert ("to continue: python train.py --resume RUN" in text) is (moment < 20)
    second = make(evaluate=evaluate, log_interval=1, eval_start=1, eval_interval=2)
    second.restore(second.job.run_dir / "ckpt" / "last.ckpt")
    assert second.fit() == whole.progress
    assert second.step.total.asnumpy() == whole.step.total.asnumpy()
    one, other = (metrics(trainer.job.run_dir) for trainer in (whole, second))
    assert [(r["phase"], r["step"], r["lr"]) for r in one] == [(r["phase"], r["step"], r["lr"]) for r in other]


def test_a_signal_leaves_an_evaluation_which_is_made_up_for(make):
    def interrupted(check):
        signal.raise_signal(signal.SIGTERM)
        check()
        raise AssertionError("not reached")

    first = make(evaluate=interrupted, eval_start=1, eval_interval=2)
    assert first.fit().step == 5
    second = make(evaluate=lambda check: {"miou": 0.4, "pixel_accuracy": 0.5}, eval_start=1, eval_interval=2)
    second.restore(second.job.run_dir / "ckpt" / "last.ckpt")
    second.fit()
    rows = metrics(second.job.run_dir)
    assert [int(r["step"]) for r in rows if r["phase"] == "eval"] == [5, 15, 20]


def test_rows_of_a_lost_part_are_removed(make):
    first = make(log_interval=1, save_interval_epochs=2, total=15)
    first.fit()
    second = make(log_interval=1, save_interval_epochs=2)
    second.restore(second.job.run_dir / "ckpt" / "step10.ckpt")
    second.fit()
    assert [int(row["step"]) for row in metrics(second.job.run_dir)] == list(range(1, 21))


def test_a_loss_that_is_not_finite_stops_and_names_the_samples(make):
    trainer = make(step=FakeStep({8: lambda: float("nan")}))
    with pytest.raises(UserError, match=r"loss is nan at step 8; .*image_1_2_a, image_1_2_b .*not_finite\.ckpt"):
        trainer.fit()
    assert files(trainer) == ["last.ckpt", "not_finite.ckpt", "step5.ckpt"]
    assert read_checkpoint(trainer.job.run_dir / "ckpt" / "last.ckpt")[1]["step"] == 5


def test_overflows_in_many_steps_in_a_row_stop_where_no_loss_shows_them(make):
    """A chip without infinity computes finite losses from weights that are lost."""
    trainer = make(step=FakeStep(overflows={1, 2, 3, *range(5, 5 + OVERFLOW_LIMIT)}), epochs=20, total=100)
    last = 4 + OVERFLOW_LIMIT
    with pytest.raises(UserError, match=rf"overflow in each of {OVERFLOW_LIMIT} steps up to step {last}; .*optim\.lr"):
        trainer.fit()
    assert {"last.ckpt", "not_finite.ckpt"} < set(files(trainer))


def test_fewer_overflows_in_a_row_are_the_loss_scales_matter(make):
    overflows = set(range(1, 3 * OVERFLOW_LIMIT)) - {OVERFLOW_LIMIT, 2 * OVERFLOW_LIMIT}
    trainer = make(step=FakeStep(overflows=overflows), epochs=40, total=3 * OVERFLOW_LIMIT)
    assert trainer.fit().step == 3 * OVERFLOW_LIMIT


def test_micro_batches_share_a_step(make):
    trainer = make(accumulation=2)
    assert trainer.fit().step == 20
    assert trainer.step.calls == 40


def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(make):
    trainer = make()
    trainer.fit()
    path = trainer.job.run_dir / "ckpt" / "last.ckpt"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:len(data) // 2])
    with pytest.raises(UserError, match=r"last\.ckpt: damaged.*the one before it: --resume .*step20\.ckpt"):
        make().restore(path)


def test_a_checkpoint_of_another_network_is_named(make, tmp_path):
    trainer = make()
    trainer.fit()
    other = make("other")
    other.cfg.model.name = "enet"
    other.step.total.name = "encoder.total"
    with pytest.raises(UserError, match=r"cannot be resumed .it holds a model with name fast_scnn instead of enet"):
        other.restore(trainer.job.run_dir / "ckpt" / "last.ckpt")


def test_changed_settings_are_mentioned(make):
    make(log_interval=3).fit()
    trainer = make(log_interval=4)
    trainer.restore(trainer.job.run_dir / "ckpt" / "last.ckpt")
    assert "resumed with another value: train.log_interval 3 -> 4" in (trainer.job.run_dir / "train.log").read_text()


@pytest.mark.parametrize(("now", "warned"), [(10, False), (7, True), (12, True)])
def test_another_number_of_images_is_mentioned(make, now, warned):
    trainer = make(epochs=1)
    trainer.job = replace(trainer.job, samples=10)
    trainer.fit()
    again = make()
    again.job = replace(again.job, samples=now)
    again.restore(again.job.run_dir / "ckpt" / "last.ckpt")
    lines = [line for line in (again.job.run_dir / "train.log").read_text().splitlines() if "training images" in line]
    assert len(lines) == warned
    if warned:
        assert f"resumed with {now} training images, the run had 10 when it was saved" in lines[0]


def test_the_old_name_of_a_variant_in_a_checkpoint_is_no_other_model(make):
    first = make()
    first.cfg.model.variant = "seed"
    first.fit()
    trainer = make(log_interval=4)
    trainer.cfg.model.variant = "modelzoo"
    trainer.restore(trainer.job.run_dir / "ckpt" / "last.ckpt")
    text = (trainer.job.run_dir / "train.log").read_text()
    assert "another value: train.log_interval" in text
    assert "model.variant" not in text.split("another value")[1]
    trainer.cfg.model.variant = "paper"
    trainer.step.total.name = "other"
    with pytest.raises(UserError, match="it holds a model with variant modelzoo instead of paper"):
        trainer.restore(trainer.job.run_dir / "ckpt" / "last.ckpt")


def test_event_files_hold_the_same_numbers(make):
    pytest.importorskip("tensorboardX")
    trainer = make(tensorboard="true", log_interval=5)
    trainer.fit()
    (events,) = (trainer.job.run_dir / "tensorboard").iterdir()
    text = events.read_bytes()
    assert text.count(b"train/loss") == 4
    assert b"train/images_per_s" in text


def events_of(run_dir):
    """Scalars and pictures of an event file by name and step; records are framed by their length and two checksums."""
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    (path,) = (run_dir / "tensorboard").iterdir()
    data, found, pictures = path.read_bytes(), {}, {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        record = event.FromString(data[12:12 + length])
        data = data[16 + length:]
        for value in record.summary.value:
            if value.HasField("image"):
                bgr = cv2.imdecode(np.frombuffer(value.image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
                pictures[value.tag, record.step] = bgr[..., ::-1]
            else:
                found[value.tag, record.step] = value.simple_value
    return found, pictures


def test_event_files_show_classes_learning_rate_and_pictures(make, rng):
    picture = rng.integers(0, 256, (5, 12, 3), np.uint8)

    def evaluate(check):
        return {"miou": 0.5, "pixel_accuracy": 0.75, "classes": ("road", "traffic light", "pole"),
                "iou": [0.25, 0.75, float("nan")], "pictures": {"streets/one": picture}}

    trainer = make(tensorboard="true", log_interval=5, eval_interval=2, eval_start=2, evaluate=evaluate)
    trainer.fit()
    found, pictures = events_of(trainer.job.run_dir)
    rates = np.linspace(1, 0.1, 20)
    assert [found["train/lr", step] for step in (5, 10, 15, 20)] == pytest.approx(rates[[4, 9, 14, 19]], rel=1e-6)
    for step in (10, 20):
        values = [found[name, step] for name in ("iou/road", "iou/traffic_light", "eval/miou")]
        assert values == [0.25, 0.75, 0.5]
        np.testing.assert_array_equal(pictures["validation/streets/one", step], picture)
    assert not [name for name, _ in found if "pole" in name], "a class without pixels has no IoU"
    assert len(pictures) == 2
    assert "iou" not in metrics(trainer.job.run_dir)[-1]


def test_a_folder_that_vanishes_is_one_line(make):
    import shutil
    trainer = make(step=FakeStep({3: lambda: shutil.rmtree(trainer.job.run_dir) or 0.5}), log_interval=1)
    with pytest.raises(UserError, match="cannot write there"):
        trainer.fit()
