"""The training loop: steps, log lines, evaluation, checkpoints, and resuming an interrupted run."""
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import Tensor

from mindseg.checkpoint import Progress, name_last, periodic_checkpoints, read_checkpoint, save_checkpoint
from mindseg.comm import broadcast_object, broadcast_parameters
from mindseg.config import Config, parse_saved
from mindseg.data.loader import Loader
from mindseg.data.sink import SinkLoader
from mindseg.engine.metrics_file import EventFile, MetricsFile
from mindseg.engine.signals import StopRequested, StopSignals
from mindseg.engine.trackers import Tracker
from mindseg.engine.train_step import TrainStep
from mindseg.errors import UserError
from mindseg.logs import log
from mindseg.models.weight_files import check_finite
from mindseg.runtime import Runtime

OVERFLOW_LIMIT = 64     # steps in a row; a dynamic loss scale falls from 2**32 to 1 in 32


@dataclass(frozen=True)
class Job:
    """Description of one training.

    Attributes:
        cfg: Resolved configuration.
        run_dir: Run folder.
        runtime: Device, rank and number of ranks of this process.
        learning_rates: (steps,) float32, learning rate of every optimizer step of the run.
        accumulation: Micro-batches per step.
        command: Command line that resumes the run, for messages.
        samples: Training samples, over all ranks; 0: not known.
    """
    cfg: Config
    run_dir: Path
    runtime: Runtime
    learning_rates: np.ndarray
    accumulation: int = 1
    command: str = ""
    samples: int = 0


@dataclass
class LogWindow:
    """Measurements since the last log line.

    Attributes:
        started: Time at which the timed steps began, in seconds.
        losses: Loss of every step.
        data_s: Seconds spent waiting for batches.
        untimed: Steps whose time does not count, because they compiled the graph.
    """
    started: float
    losses: list[float] = field(default_factory=list)
    data_s: float = 0.0
    untimed: int = 0


class Trainer:
    """Training loop, from the first step or that of a checkpoint to the last.

    Args:
        job: Description of the training.
        step: Training step.
        loader: Training batches.
        evaluate: Function that takes ``check``, a function to call after every image, which may raise an exception, and
            returns a dict with ``miou`` and ``pixel_accuracy``, 0..1, and perhaps ``classes`` (names), ``iou`` (of
            each class, 0..1) and ``pictures`` (uint8 (H, W, 3) by name). None: no evaluation.
    """

    def __init__(self, job: Job, step: TrainStep, loader: Loader | SinkLoader,
                 evaluate: Callable[[Callable[[], None]], dict] | None = None) -> None:
        self.job = job
        self.cfg = job.cfg
        self.step = step
        self.loader = loader
        self.evaluate = evaluate
        self.progress = Progress()
        self.saved: Progress | None = None
        self.overflows = 0      # steps in a row with an overflow
        self.step_seconds = 0.0
        self.compiled: tuple | None = None      # shape of the batches whose graph this process has compiled
        self.stopped = False
        self.signals = StopSignals()
        self.writers: list = []

    @property
    def total(self) -> int:
        """Number of optimizer steps of the whole run."""
        return len(self.job.learning_rates)

    def restore(self, path: Path | None) -> None:
        """Loads a checkpoint of this run: weights, optimizer state, counters and position.

        Args:
            path: Checkpoint, for rank 0; other ranks receive the values from it and need no file.

        Raises:
            UserError: The file is damaged, or of another network or optimizer. Names an earlier checkpoint, if any.
        """
        if self.job.runtime.is_main:
            self._read(path)
        broadcast_parameters(self.step.state_parameters(), self.job.runtime.size)
        self.progress = Progress(**broadcast_object(asdict(self.progress), self.job.runtime.size))
        self.saved = self.progress
        log.info("resumed %s at step %d of %d", path or "rank 0's checkpoint", self.progress.step, self.total)

    def _read(self, path: Path) -> None:
        try:
            arrays, extras = read_checkpoint(path)
            check_finite(arrays, path)
        except UserError as error:
            others = [other for other in periodic_checkpoints(path.parent) if not path.exists() or
                      not other.samefile(path)]
            hint = f"; the one before it: --resume {others[0]}" if others else ""
            raise UserError(f"{error}{hint}") from None
        own = self.step.state_parameters()
        saved = parse_saved(extras.get("config", ""), f"{path}: its configuration")
        missing = [p.name for p in own if p.name not in arrays or tuple(arrays[p.name].shape) != tuple(p.shape)]
        if missing or "step" not in extras:
            what = f"{missing[0]} is missing or has another shape" if missing else "it holds weights only"
            raise UserError(f"{path}: cannot be resumed ({_other_model(saved, self.cfg) or what}); resume with the "
                            f"configuration of that run, or start anew from its weights with --pretrained {path}")
        for param in own:
            param.set_data(Tensor(arrays[param.name], param.dtype))
        self.progress = Progress(**{key: extras[key] for key in ("epoch", "step", "best_miou", "eval_step")
                                    if key in extras})
        for key in ("pretrained", "pretrained_sha256"):     # the weights that the run started from
            self.cfg.train[key] = saved.get("train", {}).get(key)
        for line in _changed_values(saved, self.cfg):
            log.info("resumed with another value: %s", line)
        if extras.get("samples") and self.job.samples not in (0, extras["samples"]):
            log.warning("resumed with %d training images, the run had %d when it was saved; check data.root and "
                        "data.train_split", self.job.samples, extras["samples"])

    def fit(self) -> Progress:
        """Trains to the last step, or until a signal asks to stop.

        Returns:
            Position at which the run ended; the attribute ``stopped`` is True if a signal ended it.

        Raises:
            UserError: The loss is not finite, or the run folder cannot be written.
        """
        try:
            if self.job.runtime.is_main:
                self._open_writers()
            with StopSignals() as self.signals:
                self._after_step()      # was due when the run was interrupted
                while self.progress.step < self.total and not self.stopped:
                    self._train_epoch()
        except OSError as error:
            raise UserError(f"{self.job.run_dir}: cannot write there ({error.strerror}); free space, then continue "
                            f"with: {self.job.command}") from None
        finally:
            for writer in self.writers:
                writer.close()
        return self.progress

    def _open_writers(self) -> None:
        run_dir, done = self.job.run_dir, self.progress
        self.writers = [MetricsFile(run_dir / "metrics.csv", done.step, done.eval_step)]
        if self.cfg.train.tensorboard:
            self.writers.append(EventFile(run_dir / "tensorboard", done.step))
        self.writers += [Tracker(name, run_dir, self.cfg, resumed=done.step > 0) for name in self.cfg.train.trackers]

    def _train_epoch(self) -> None:
        """Trains to the end of the current epoch."""
        epoch, start = divmod(self.progress.step, self.loader.steps_per_epoch)
        started, first = time.perf_counter(), self.progress.step
        window, fetched = LogWindow(started), started
        for batch in self.loader.epoch(epoch, start):
            window.data_s += time.perf_counter() - fetched
            window.losses.append(self._train_step(batch))
            step = self.progress.step
            finished = step % self.loader.steps_per_epoch == 0
            if finished or self.stopped or step == self.total or step % self.cfg.train.log_interval == 0:
                window = self._log(window)
            if self.compiled != batch["image"].shape:
                self._exclude_compilation(window, time.perf_counter() - started)
                self.compiled = batch["image"].shape
            if finished:
                seconds = time.perf_counter() - started
                log.info("epoch %d finished in %.1f s, %.0f ms per step", self.progress.epoch, seconds,
                         1000 * seconds / (step - first))
            before = time.perf_counter()
            self._after_step()
            window.started += time.perf_counter() - before
            if self.stopped or step == self.total:
                break
            fetched = time.perf_counter()

    def _train_step(self, batch: dict) -> float:
        """Makes one optimizer step; returns its loss."""
        parts, size = self.job.accumulation, len(batch["image"]) // self.job.accumulation
        stop = Tensor(bool(self.signals.received), ms.float32)
        for i in range(parts):
            image, label = batch["image"], batch["label"]
            if parts > 1:       # a slice of all would be a copy on the device
                part = slice(i * size, (i + 1) * size)
                image, label = image[part], label[part]
            result = self.step(_tensor(image), _tensor(label), stop, i + 1 == parts)
        # Fetching the result waits for the device; otherwise all times in the log would be wrong.
        loss, stops, overflow = result.asnumpy()
        step = self.progress.step + 1
        self.progress = replace(self.progress, step=step, epoch=step // self.loader.steps_per_epoch)
        self._check_finite(loss, overflow > 0, batch["names"])
        self.stopped = bool(stops > 0)
        return float(loss)

    def _after_step(self) -> None:
        """Evaluates and saves a checkpoint, if either is due."""
        step, t = self.progress.step, self.cfg.train
        if self.evaluate is not None and self.progress.eval_step != step and self._evaluation_is_due():
            self._evaluate()
        due = step > 0 and (step == self.total or self._epoch_is_due(t.save_interval_epochs, 0)
                            or bool(t.save_interval_steps and step % t.save_interval_steps == 0))
        if (due or self.stopped) and self.progress != self.saved:
            self._save(f"step{step}" if due else "last")
            if due and self._writes_checkpoints():
                name_last(self._checkpoint(f"step{step}"), t.keep_checkpoint_max)
            self.saved = self.progress
        if self.stopped:
            log.info("stopped by %s after step %d of %d; to continue: %s", self.signals.received or "another rank",
                     step, self.total, self.job.command)

    def _evaluation_is_due(self) -> bool:
        step, t = self.progress.step, self.cfg.train
        if step == 0 or self.stopped:
            return False
        if t.eval_interval_steps:
            return step == self.total or step % t.eval_interval_steps == 0
        return step == self.total or self._epoch_is_due(t.eval_interval, t.eval_start)

    def _epoch_is_due(self, interval: int, start: int) -> bool:
        """Tests for the end of an epoch that is ``start`` or a multiple of ``interval`` later."""
        epoch, rest = divmod(self.progress.step, self.loader.steps_per_epoch)
        return rest == 0 and epoch >= max(start, 1) and (epoch - start) % interval == 0

    def _exclude_compilation(self, window: LogWindow, seconds: float) -> None:
        """Restarts the timing after a step that compiled the graph: the first of a process, or of a size of crops."""
        log.info("first step after %.1f s, with the compilation of the graph", seconds)
        window.started, window.data_s, window.untimed = time.perf_counter(), 0.0, len(window.losses)
        self.step_seconds = 0.0

    def _log(self, window: LogWindow) -> LogWindow:
        """Writes one log line and one row of metrics.csv, and starts the next window."""
        now, count = time.perf_counter(), len(window.losses) - window.untimed
        step_s, step = (now - window.started) / count, self.progress.step
        self.step_seconds = step_s if not self.step_seconds else 0.7 * self.step_seconds + 0.3 * step_s
        epoch = (step - 1) // self.loader.steps_per_epoch + 1
        row = {"epoch": epoch, "step": step, "total_steps": self.total, "loss": float(np.mean(window.losses)),
               "lr": float(self.job.learning_rates[step - 1]), "data_ms": 1000 * window.data_s / count,
               "step_ms": 1000 * step_s, "images_per_s": self.cfg.train.global_batch / step_s,
               "eta_s": (self.total - step) * self.step_seconds}
        log.info("epoch %d/%d step %d/%d loss %.4f lr %.6f data %.1f ms step %.1f ms %.1f images/s eta %s",
                 epoch, -(-self.total // self.loader.steps_per_epoch), step, self.total, row["loss"], row["lr"],
                 row["data_ms"], row["step_ms"], row["images_per_s"], timedelta(seconds=round(row["eta_s"])))
        self._record(phase="train", **row)
        return LogWindow(time.perf_counter())

    def _record(self, **row) -> None:
        for writer in self.writers:
            writer.add(**row)

    def _evaluate(self) -> None:
        # With several ranks, which sum their parts of the scores, one rank alone must not leave the evaluation.
        check = self.signals.check if self.job.runtime.size == 1 else lambda: None
        try:
            scores = self._scores(check)
        except StopRequested:
            self.stopped = True
            return
        step, epoch, miou = self.progress.step, self.progress.epoch, scores["miou"]
        best = miou > self.progress.best_miou
        log.info("epoch %d step %d evaluation mIoU %.2f %% pixel accuracy %.2f %%%s", epoch, step, 100 * miou,
                 100 * scores["pixel_accuracy"], " (best so far)" if best else "")
        self._record(phase="eval", epoch=epoch, step=step, total_steps=self.total, miou=miou,
                     pixel_accuracy=scores["pixel_accuracy"], pictures=scores.get("pictures"),
                     iou=dict(zip(scores.get("classes", ()), scores.get("iou", ()), strict=True)))
        self.progress = replace(self.progress, eval_step=step, best_miou=max(miou, self.progress.best_miou))
        if best:
            self._save("best")

    def _scores(self, check: Callable[[], None]) -> dict:
        """Evaluates the network, with the moving averages of its weights if there are any."""
        self.step.set_train(False)
        self.step.swap_averages()
        try:
            return self.evaluate(check)
        finally:
            self.step.swap_averages()
            self.step.set_train(True)

    def _writes_checkpoints(self) -> bool:
        return self.job.runtime.is_main or self.cfg.train.save_all_ranks

    def _checkpoint(self, name: str) -> Path:
        return checkpoint_folder(self.job.run_dir, self.job.runtime) / f"{name}.ckpt"

    def _save(self, name: str) -> None:
        if self._writes_checkpoints():
            save_checkpoint(self._checkpoint(name), self.step.state_parameters(), self.progress, self.cfg,
                            self.job.samples)

    def _check_finite(self, loss: float, overflow: bool, names: list[str]) -> None:
        """Ends the training if its last step shows that it has diverged.

        Args:
            loss: Loss of the step.
            overflow: The gradients overflowed. On chips that compute no infinity that is all that shows.
            names: Samples of the step.
        """
        self.overflows = self.overflows + 1 if overflow else 0
        step = self.progress.step
        if not np.isfinite(loss):
            reason = f"loss is {loss} at step {step}; lower optim.lr"
        elif self.overflows == OVERFLOW_LIMIT:
            reason = (f"the gradients overflow in each of {OVERFLOW_LIMIT} steps up to step {step}; lower optim.lr or "
                      "optim.loss_scale")
        else:
            return
        self._save("not_finite")
        broadcast_object("saved", self.job.runtime.size)      # a rank that ends first would end rank 0 too
        raise UserError(f"{reason}, or check these samples: {', '.join(names)} (state after the step: "
                        f"{self.job.run_dir / 'ckpt' / 'not_finite.ckpt'}; last.ckpt beside it, if there is one, is "
                        "from before)")


def _tensor(values: np.ndarray | Tensor) -> Tensor:
    """Makes a tensor, unless data sinking has made one on the device already."""
    return values if isinstance(values, Tensor) else Tensor(values)


def checkpoint_folder(run_dir: Path, runtime: Runtime) -> Path:
    """Names the folder of a rank's checkpoints: ``ckpt`` for rank 0, ``rank<n>/ckpt`` for others.

    Args:
        run_dir: Run folder.
        runtime: Rank of this process; others than 0 write checkpoints with ``train.save_all_ranks`` only.
    """
    return run_dir / "ckpt" if runtime.is_main else run_dir / f"rank{runtime.rank}" / "ckpt"


def _other_model(saved: dict, cfg: Config) -> str:
    """Describes how the network of a checkpoint differs from the configured one, or returns ""."""
    model = saved.get("model", {})
    different = [f"{key} {model[key]} instead of {cfg.model[key]}" for key in cfg.model
                 if key in model and model[key] != cfg.model[key] and key != "pretrained_part"]
    return f"it holds a model with {', '.join(different)}" if different else ""


def _changed_values(saved: dict, cfg: Config) -> list[str]:
    """Lists the keys of model, data, loss, optim and train whose values differ from those in a checkpoint."""
    return [f"{section}.{key} {saved[section][key]} -> {value}"
            for section in ("model", "data", "loss", "optim", "train") for key, value in cfg[section].items()
            if key in saved.get(section, {}) and saved[section][key] != value]
