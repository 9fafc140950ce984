"""The numbers of a training run: ``metrics.csv`` and TensorBoard's event file."""
import csv
from pathlib import Path

from mindseg.errors import UserError
from mindseg.files import replacing

COLUMNS = ("phase", "epoch", "step", "total_steps", "loss", "lr", "data_ms", "step_ms", "images_per_s", "eta_s", "miou",
           "pixel_accuracy")


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
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

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
