"""The training loop: epochs of compiled steps, log lines, evaluation, checkpoints."""
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import Tensor

from src.config import Config
from src.engine.checkpoint import Progress, load_weights, read_checkpoint, save_checkpoint
from src.engine.runlog import MetricsFile, log
from src.engine.train_step import TrainStep, state_parameters
from src.errors import UserError
from src.runtime import Runtime


@dataclass
class _Window:
    """What happened since the last log line."""
    losses: list[Tensor]
    data_s: float = 0.0
    started: float = 0.0


class Trainer:
    """Runs the epochs of one training.

    Args:
        cfg: Resolved configuration.
        step: Compiled training step.
        loader: Training batches.
        rates: (steps,) learning rate of every step, for the log.
        run_dir: Run folder.
        runtime: Where this process runs.
        evaluate: Called after epochs that evaluate; returns scores (``miou``, ``pixel_accuracy``). None: no evaluation.
    """

    def __init__(self, cfg: Config, step: TrainStep, loader, rates: np.ndarray, run_dir: Path, runtime: Runtime,
                 evaluate: Callable[[], dict] | None = None) -> None:
        self.cfg = cfg
        self.step = step
        self.loader = loader
        self.rates = rates
        self.run_dir = run_dir
        self.runtime = runtime
        self.evaluate = evaluate
        self.progress = Progress()
        self.metrics = MetricsFile(run_dir / "metrics.csv") if runtime.is_main else None
        self.step_seconds = 0.0

    def restore(self, path: Path) -> None:
        """Continues from a checkpoint of this run: weights, optimizer state, counters, position.

        Raises:
            UserError: The file is damaged, or of another network or optimizer.
        """
        arrays, extras = read_checkpoint(path)
        own = state_parameters(self.step)
        missing = [p.name for p in own if p.name not in arrays or tuple(arrays[p.name].shape) != tuple(p.shape)]
        if missing or "step" not in extras:
            what = f"{missing[0]} is missing or has another shape" if missing else "it holds weights only"
            raise UserError(f"{path}: cannot be resumed ({what}); resume with the configuration of that run, or start "
                            f"anew from its weights with --pretrained {path}")
        for param in own:
            param.set_data(Tensor(arrays[param.name], param.dtype))
        self.progress = Progress(extras["epoch"], extras["step"], extras["best_miou"])
        log.info("resumed %s at epoch %d, step %d", path, self.progress.epoch, self.progress.step)

    def fit(self) -> Progress:
        """Trains to the last epoch.

        Returns:
            Where the run ended.

        Raises:
            UserError: The loss is not finite, or a checkpoint cannot be written.
        """
        epochs = self.cfg.train.epochs
        while self.progress.epoch < epochs:
            epoch = self.progress.epoch
            self._train_epoch(epoch)
            self.progress = replace(self.progress, epoch=epoch + 1)
            last = epoch + 1 == epochs
            if self.evaluate is not None and self._evaluates(epoch + 1, last):
                self._evaluate()
            if last or (epoch + 1) % self.cfg.train.save_interval_epochs == 0:
                self._save("last")
        return self.progress

    def _evaluates(self, epoch: int, last: bool) -> bool:
        t = self.cfg.train
        return last or (epoch >= t.eval_start and (epoch - t.eval_start) % t.eval_interval == 0)

    def _train_epoch(self, epoch: int) -> None:
        started = time.perf_counter()
        window = _Window([], started=started)
        first_step = self.progress.step
        fetched = time.perf_counter()
        for batch in self.loader.epoch(epoch):
            window.data_s += time.perf_counter() - fetched
            result = self.step(Tensor(batch["image"]), Tensor(batch["label"]), Tensor(0.0, ms.float32))
            # Without a look at the loss the device would run ahead and every time below would be wrong.
            window.losses.append(result.asnumpy()[0])
            self.progress = replace(self.progress, step=self.progress.step + 1)
            if not np.isfinite(window.losses[-1]):
                self._stop_not_finite(batch["names"], window.losses[-1])
            if len(window.losses) == self.cfg.train.log_interval:
                window = self._log(epoch, window)
            fetched = time.perf_counter()
        if window.losses:
            self._log(epoch, window)
        steps = self.progress.step - first_step
        seconds = time.perf_counter() - started
        log.info("epoch %d/%d finished in %.1f s, %.0f ms per step", epoch + 1, self.cfg.train.epochs, seconds,
                 1000 * seconds / steps)

    def _log(self, epoch: int, window: _Window) -> _Window:
        """Writes one log line and one row of metrics.csv; starts the next window."""
        now, count = time.perf_counter(), len(window.losses)
        step_s, step = (now - window.started) / count, self.progress.step
        # The first window of a process holds the compilation of the graph and would spoil the estimate.
        self.step_seconds = step_s if not self.step_seconds else 0.7 * self.step_seconds + 0.3 * step_s
        total = len(self.rates)
        row = {"epoch": epoch + 1, "step": step, "total_steps": total, "loss": float(np.mean(window.losses)),
               "lr": float(self.rates[step - 1]), "data_ms": 1000 * window.data_s / count, "step_ms": 1000 * step_s,
               "images_per_s": self.cfg.train.global_batch / step_s, "eta_s": (total - step) * self.step_seconds}
        log.info("epoch %d/%d step %d/%d loss %.4f lr %.6f data %.1f ms step %.1f ms %.1f images/s eta %s",
                 row["epoch"], self.cfg.train.epochs, step, total, row["loss"], row["lr"], row["data_ms"],
                 row["step_ms"], row["images_per_s"], timedelta(seconds=round(row["eta_s"])))
        if self.metrics is not None:
            rounded = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            self.metrics.add(phase="train", **rounded)
        return _Window([], started=time.perf_counter())

    def _evaluate(self) -> None:
        self.step.set_train(False)
        scores = self.evaluate()
        self.step.set_train(True)
        epoch, miou = self.progress.epoch, scores["miou"]
        best = miou > self.progress.best_miou
        log.info("epoch %d/%d evaluation mIoU %.2f %% pixel accuracy %.2f %%%s", epoch, self.cfg.train.epochs,
                 100 * miou, 100 * scores["pixel_accuracy"], " (best so far)" if best else "")
        if self.metrics is not None:
            self.metrics.add(phase="eval", epoch=epoch, step=self.progress.step, total_steps=len(self.rates),
                             miou=f"{miou:.6f}", pixel_accuracy=f"{scores['pixel_accuracy']:.6f}")
        if best:
            self.progress = replace(self.progress, best_miou=miou)
            self._save("best")

    def _save(self, name: str) -> None:
        if self.runtime.is_main:
            path = self.run_dir / "ckpt" / f"{name}.ckpt"
            save_checkpoint(path, state_parameters(self.step), self.progress, self.cfg)

    def _stop_not_finite(self, names: list[str], loss: np.ndarray) -> None:
        self._save("not_finite")
        raise UserError(f"loss is {loss} at step {self.progress.step}; lower optim.lr, or check these samples: "
                        f"{', '.join(names)} (state saved as {self.run_dir}/ckpt/not_finite.ckpt)")


def load_pretrained(net: ms.nn.Cell, path: str | Path) -> None:
    """Starts a network from a checkpoint's weights; step counter and optimizer stay new.

    Raises:
        UserError: The file is damaged, or holds another network.
    """
    arrays, _ = read_checkpoint(path)
    load_weights(net, arrays, str(path))
    log.info("weights of %s loaded", path)
