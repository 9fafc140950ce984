"""Files with the numbers of a training run: ``metrics.csv`` and TensorBoard's event file."""
import csv
from pathlib import Path

from mindseg.errors import UserError
from mindseg.files import replacing

COLUMNS = ("phase", "epoch", "step", "total_steps", "loss", "lr", "data_ms", "step_ms", "images_per_s", "eta_s", "miou",
           "pixel_accuracy")


class MetricsFile:
    """``metrics.csv``, with one row per log line; a resumed run appends to it.

    Args:
        path: File to write.
        step: Step at which the run starts; rows of later steps, written before an interruption, are removed.
        eval_step: Step of the last evaluation; rows of later evaluations are removed.
    """

    def __init__(self, path: Path, step: int = 0, eval_step: int = -1) -> None:
        self.path = path
        rows = []
        if path.exists():
            limits = {"train": step, "eval": eval_step}
            with open(path, newline="", encoding="utf-8") as stream:
                # A row whose writing was interrupted lacks numbers or columns.
                rows = [row for row in csv.DictReader(stream) if None not in row.values()
                        and row["step"].isdigit() and int(row["step"]) <= limits.get(row["phase"], -1)]
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def add(self, **values) -> None:
        """Appends one row.

        Args:
            **values: Values by column; other columns stay empty.
        """
        values = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()}
        with open(self.path, "a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS, restval="").writerow(values)

    def close(self) -> None:
        """Does nothing, as the file is closed after every row."""


class EventFile:
    """TensorBoard's event file with the numbers of ``metrics.csv``.

    Args:
        folder: Folder of the event files.
        step: Step at which the run starts; TensorBoard hides numbers of later steps from before.

    Raises:
        UserError: The package tensorboardX is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError("train.tensorboard = true needs the package tensorboardX; install it (pip install "
                            "tensorboardX) or set train.tensorboard=false") from None
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, phase: str, step: int, **values) -> None:
        """Writes every float of a row as ``phase/name``.

        Args:
            phase: ``train`` or ``eval``.
            step: Optimizer step.
            **values: Values by name.
        """
        for name, value in values.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{phase}/{name}", value, step)
        self.writer.flush()

    def close(self) -> None:
        """Writes the last row, which ``flush`` leaves to a thread, and closes the file."""
        self.writer.close()
