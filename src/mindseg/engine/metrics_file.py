"""Files with the numbers of a training run: ``metrics.csv`` and TensorBoard's event file."""
import csv
import math
from pathlib import Path

import numpy as np

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
            **values: Values by column; other columns stay empty, and values without a column are left out.
        """
        values = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()}
        with open(self.path, "a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS, restval="", extrasaction="ignore").writerow(values)

    def close(self) -> None:
        """Does nothing, as the file is closed after every row."""


def scalars(phase: str, iou: dict[str, float] | None = None, **values) -> dict[str, float]:
    """Numbers of a row under the names that TensorBoard and experiment trackers show.

    Args:
        phase: ``train`` or ``eval``.
        iou: IoU of each class by its name, 0..1; NaN for a class that is not there.
        **values: Values by column; those that are no floats are left out.

    Returns:
        Finite numbers by ``phase/column`` and ``iou/class``.
    """
    named = {f"{phase}/{name}": value for name, value in values.items()}
    named |= {f"iou/{name}": value for name, value in (iou or {}).items()}
    return {name: value for name, value in named.items() if isinstance(value, float) and math.isfinite(value)}


class EventFile:
    """TensorBoard's event file: the numbers of ``metrics.csv``, the IoU of each class, and validation pictures.

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

    def add(self, step: int, pictures: dict[str, np.ndarray] | None = None, **row) -> None:
        """Writes the numbers and pictures of a row.

        Args:
            step: Optimizer step.
            pictures: uint8 (H, W, 3) RGB by name.
            **row: As :func:`scalars` takes it.
        """
        for name, value in scalars(**row).items():
            self.writer.add_scalar(name, value, step)
        for name, picture in (pictures or {}).items():
            self.writer.add_image(f"validation/{name}", picture, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Writes the last row, which ``flush`` leaves to a thread, and closes the file."""
        self.writer.close()
