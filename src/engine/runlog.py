"""The run folder: logs, metrics.csv and the description of the run."""
import csv
import json
import logging
import os
import sys
import time
from pathlib import Path

from src.config import Config, dump_config
from src.errors import UserError
from src.runtime import Runtime, environment

COLUMNS = ("phase", "epoch", "step", "total_steps", "loss", "lr", "data_ms", "step_ms", "images_per_s", "eta_s", "miou",
           "pixel_accuracy")
log = logging.getLogger("segmentation")


def create_run_dir(cfg: Config, config_path: str | Path, runtime: Runtime) -> Path:
    """Makes ``<output_dir>/<config name>/<timestamp>/ckpt`` and writes ``config.yaml`` and ``env.json`` into it.

    Returns:
        The run folder. Ranks other than 0 get rank 0's name only if they start within the same second, so they write
        their logs into the newest folder instead.

    Raises:
        UserError: The folder cannot be written.
    """
    parent = Path(cfg.runtime.output_dir) / Path(config_path).stem
    stamp = os.environ.get("SEGMENTATION_RUN_STAMP") or time.strftime("%Y%m%d-%H%M%S")
    run_dir = parent / stamp
    try:
        (run_dir / "ckpt").mkdir(parents=True, exist_ok=True)
        if runtime.is_main:
            dump_config(cfg, run_dir / "config.yaml")
            write_json(run_dir / "env.json", environment(runtime))
    except OSError as error:
        raise UserError(f"{run_dir}: cannot write there ({error.strerror}); set runtime.output_dir") from None
    return run_dir


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
    """``metrics.csv``: one line for every log line; appended to, so that a resumed run goes on in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            with open(path, "w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerow(COLUMNS)

    def add(self, **values) -> None:
        """Appends one row; columns that are not given stay empty."""
        with open(self.path, "a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS, restval="").writerow(values)
