"""The run folder: logs, metrics.csv and the description of the run."""
import csv
import json
import logging
import os
import sys
import time
from pathlib import Path

from mindseg.config import Config, dump_config
from mindseg.errors import UserError
from mindseg.runtime import Runtime, environment, from_main

COLUMNS = ("phase", "epoch", "step", "total_steps", "loss", "lr", "data_ms", "step_ms", "images_per_s", "eta_s", "miou",
           "pixel_accuracy")
log = logging.getLogger("segmentation")


def create_run_dir(cfg: Config, config_path: str | Path, runtime: Runtime) -> Path:
    """Makes ``<output_dir>/<config name>/<timestamp>``, a folder that was not there before.

    Returns:
        The run folder, the same one on all ranks.

    Raises:
        UserError: The folder cannot be written.
    """
    parent = Path(cfg.runtime.output_dir) / Path(config_path).stem
    moment = int(time.time())
    try:
        while runtime.is_main:
            try:
                (parent / _stamp(moment)).mkdir(parents=True)
                break
            except FileExistsError:     # another run of this second
                if not (parent / _stamp(moment)).is_dir():
                    raise
                moment += 1
    except OSError as error:
        raise _not_writable(parent, error) from None
    return parent / _stamp(from_main(moment, runtime.size))


def _stamp(moment: int) -> str:
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(moment))


def _not_writable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot write there ({error.strerror}); set runtime.output_dir to a folder that can be "
                     "written")


def describe_run(cfg: Config, run_dir: Path, runtime: Runtime) -> None:
    """Writes ``config.yaml`` and ``env.json`` into a run folder, which is made if need be.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        if runtime.is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            dump_config(cfg, run_dir / "config.yaml")
            write_json(run_dir / "env.json", environment(runtime))
    except OSError as error:
        raise _not_writable(run_dir, error) from None


def make_folder(path: Path) -> None:
    """Makes a folder with its parents.

    Raises:
        UserError: It cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from None


def write_json(path: Path, tree: dict) -> None:
    """Writes JSON under a temporary name and renames it; NaN becomes null, as JSON has no NaN."""
    tmp = path.with_name(f".{path.name}.tmp")
    tmp.write_text(json.dumps(_without_nan(tree), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(tmp, path)


def _without_nan(tree):
    if isinstance(tree, dict):
        return {k: _without_nan(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_without_nan(v) for v in tree]
    return None if isinstance(tree, float) and tree != tree else tree


def setup_logging(run_dir: Path | None = None, rank: int = 0, name: str = "train.log") -> None:
    """Sends log lines to the console (rank 0) and to the run folder: ``rank<n>.log``, for rank 0 also ``train.log``."""
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.raiseExceptions = False     # a full disk must not print a traceback for every line
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    form = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
    handlers: list[logging.Handler] = []
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stdout))
    if run_dir is not None:
        files = [f"rank{rank}.log"] + ([name] if rank == 0 else [])
        handlers += [logging.FileHandler(run_dir / file, encoding="utf-8") for file in files]
    for handler in handlers:
        handler.setFormatter(form)
        log.addHandler(handler)


class MetricsFile:
    """``metrics.csv``: one line for every log line. A resumed run goes on in it.

    Args:
        path: The file.
        step: Step that the run starts from; rows of later steps are of a part that was lost, and are removed.
        eval_step: The same for evaluations.
    """

    def __init__(self, path: Path, step: int = 0, eval_step: int = -1) -> None:
        self.path = path
        rows = []
        if path.exists():
            limits = {"train": step, "eval": eval_step}
            with open(path, newline="", encoding="utf-8") as stream:
                # A row that was cut off while it was written has no numbers, or columns missing.
                rows = [row for row in csv.DictReader(stream) if None not in row.values()
                        and row["step"].isdigit() and int(row["step"]) <= limits.get(row["phase"], -1)]
        tmp = path.with_name(f".{path.name}.tmp")
        with open(tmp, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(tmp, path)

    def add(self, **values) -> None:
        """Appends one row; columns that are not given stay empty."""
        values = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()}
        with open(self.path, "a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS, restval="").writerow(values)

    def close(self) -> None:
        """Nothing is kept open between rows."""


class EventFile:
    """TensorBoard's event file with the numbers of ``metrics.csv``; what it held after ``step`` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError("train.tensorboard = true needs the package tensorboardX; install it (pip install "
                            "tensorboardX) or set train.tensorboard=false") from None
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, phase: str, step: int, **values) -> None:
        """Writes every number of a row as ``phase/name``."""
        for name, value in values.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{phase}/{name}", value, step)
        self.writer.flush()

    def close(self) -> None:
        """Writes what is left; ``flush`` alone leaves the last row to a thread."""
        self.writer.close()
