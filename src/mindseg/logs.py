"""The project's logger: lines for the console and for the run folder."""
import logging
import sys
from pathlib import Path

log = logging.getLogger("mindseg")


def setup_logging(run_dir: Path | None = None, rank: int = 0, name: str = "train.log") -> None:
    """Sends log lines to the console (rank 0 only) and to the run folder.

    Args:
        run_dir: Folder of ``rank<n>.log`` and, for rank 0, of ``name``; None: console only.
        rank: Rank of this process.
        name: File with rank 0's lines.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.raiseExceptions = False     # a full disk must not print a traceback for every line
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if rank == 0 else []
    if run_dir is not None:
        names = [f"rank{rank}.log"] + ([name] if rank == 0 else [])
        handlers += [logging.FileHandler(run_dir / file, encoding="utf-8", errors="backslashreplace") for file in names]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)
