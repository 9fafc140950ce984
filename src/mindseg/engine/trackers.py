"""Experiment trackers: MLflow, Weights & Biases and SwanLab get the numbers of a run, if they are installed."""
import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from mindseg.config import Config
from mindseg.engine.metrics_file import scalars
from mindseg.errors import UserError
from mindseg.logs import log

PROJECT = "mindseg"
# Section runtime stays out: it may hold addresses of a platform.
_SECTIONS = ("model", "data", "loss", "optim", "train")
_LONGEST_VALUE = 500        # characters of a parameter, the limit of older versions of MLflow
_Log, _Finish = Callable[..., object], Callable[[], object]


class Tracker:
    """A tracker that gets the rows of ``metrics.csv`` until one of its calls fails; the training goes on without it.

    Where the tracker writes, and as whom, is its own business: its environment variables and files say so.

    Args:
        name: ``mlflow``, ``wandb`` or ``swanlab``.
        run_dir: Run folder.
        cfg: Resolved configuration; section ``runtime`` is not passed on.
        resumed: Continue the tracker's run of the same name, if there is one.

    Raises:
        UserError: The tracker's package is not installed.
    """

    def __init__(self, name: str, run_dir: Path, cfg: Config, resumed: bool = False) -> None:
        try:
            package = importlib.import_module(name)
        except ImportError:
            raise UserError(f"train.trackers: {name} is not installed; pip install {name}, or leave it out of "
                            "train.trackers") from None
        self.name = name
        self.finish: _Finish | None = None
        config = {section: dict(cfg[section]) for section in _SECTIONS}
        self._try(lambda: self._start(package, run_dir, config, resumed))

    def _start(self, package: ModuleType, run_dir: Path, config: dict, resumed: bool) -> None:
        starts = {"mlflow": _start_mlflow, "wandb": _start_wandb, "swanlab": _start_swanlab}
        self.log, self.finish = starts[self.name](package, _title(run_dir), run_dir, config, resumed)

    def add(self, step: int, pictures: dict | None = None, **row) -> None:
        """Passes the numbers of a row on.

        Args:
            step: Optimizer step.
            pictures: Not passed on.
            **row: As :func:`mindseg.engine.metrics_file.scalars` takes it.
        """
        values = {_plain(name): value for name, value in scalars(**row).items()}
        if self.finish and values:
            self._try(lambda: self.log(values, step=step))

    def close(self) -> None:
        """Ends the tracker's run."""
        if self.finish:
            self._try(self.finish)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:      # a tracker must not end a training; its text could hold a password
            self.finish = None
            log.warning("train.trackers: %s failed (%s) and gets no further numbers; the training goes on", self.name,
                        type(error).__name__)


def _title(run_dir: Path) -> str:
    """Name of a run: configuration, date and time, and the stage if there are several."""
    parts = run_dir.absolute().parts
    return _plain("-".join(parts[-3 if run_dir.name.startswith("stage") else -2:]))


def _plain(name: str) -> str:
    """A name of characters that every tracker takes."""
    return re.sub(r"[^\w./ -]", "_", name)


def _start_mlflow(mlflow: ModuleType, title: str, run_dir: Path, config: dict, resumed: bool) -> tuple[_Log, _Finish]:
    if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
        mlflow.set_experiment(PROJECT)
    earlier = mlflow.search_runs(filter_string=f"attributes.run_name = '{title}'", max_results=1,
                                 output_format="list") if resumed else []
    if earlier:
        mlflow.start_run(run_id=earlier[0].info.run_id)
    else:
        mlflow.start_run(run_name=title)
        for section, values in config.items():      # a request holds 100 parameters at most
            mlflow.log_params({f"{section}.{key}": str(value)[:_LONGEST_VALUE] for key, value in values.items()})
    return mlflow.log_metrics, mlflow.end_run


def _start_wandb(wandb: ModuleType, title: str, run_dir: Path, config: dict, resumed: bool) -> tuple[_Log, _Finish]:
    run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=title, id=title,
                     resume="allow", config=config, dir=str(run_dir))
    return run.log, run.finish


def _start_swanlab(swanlab: ModuleType, title: str, run_dir: Path, config: dict, resumed: bool
                   ) -> tuple[_Log, _Finish]:
    swanlab.init(project=PROJECT, experiment_name=title, config=config, logdir=str(run_dir / "swanlab"))
    return swanlab.log, swanlab.finish
