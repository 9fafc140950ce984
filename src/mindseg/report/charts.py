"""Training curves: the history of a run, and the coordinates of its line charts."""
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindseg.errors import DataError

PLOT = (46, 392, 26, 196)   # left, right, top and bottom of the plot area in a drawing of 400 x 236
MAX_POINTS = 300            # per line; more cannot be told apart at this size
NUM_STYLES = 6              # line styles in the style sheet
# Title, name of the y axis, phase and column in metrics.csv, factor, number format, and the value that sums up a curve.
CURVES = (("Training loss", "loss", "train", "loss", 1, "{:.3f}", "last"),
          ("Validation mIoU", "mIoU, %", "eval", "miou", 100, "{:.2f} %", "best"),
          ("Learning rate", "learning rate", "train", "lr", 1, "{:.3g}", "peak"))


def read_history(path: Path) -> list[dict[str, str]]:
    """Reads ``metrics.csv``, which need not exist; of rows with equal phase and step the last one counts.

    Raises:
        DataError: The file cannot be read or has no ``phase`` and ``step`` column.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            return list({(row["phase"], int(row["step"])): row for row in csv.DictReader(stream)}.values())
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no metrics.csv of a training run ({error}); restore or remove it") from error


def number(value: str | float | None) -> float | None:
    """Converts text or a score to a finite number; anything else, such as NaN, becomes None."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def column(history: Sequence[Mapping[str, str]], phase: str, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column in one phase; empty fields are left out."""
    values = {int(row["step"]): number(row.get(name)) for row in history if row["phase"] == phase}
    values = {step: value for step, value in values.items() if value is not None}
    return list(values), list(values.values())


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean over up to ``reach`` neighbours on either side; unlike a running mean, it does not lag behind."""
    kernel = np.ones(2 * reach + 1)
    return (np.convolve(values, kernel)[reach:][:len(values)]
            / np.convolve(np.ones(len(values)), kernel)[reach:][:len(values)]).tolist()


def ticks(high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers from 0 upwards; the last one is not below ``high``."""
    power = 10 ** math.floor(math.log10(high / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * count >= high * 0.999)
    return [k * step for k in range(math.ceil(high / step - 1e-9) + 1)]


def axis_text(value: float) -> str:
    """A number in few characters."""
    if value >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.4g}"


def thin_out(items: Sequence) -> list:
    """Every n-th item and the last one, about ``MAX_POINTS`` in all."""
    return [*items[:-1:math.ceil(len(items) / MAX_POINTS)], items[-1]]


def line_chart(title: str, axes: tuple[str, str], lines: Sequence[tuple[str, Sequence, Sequence]], form: str = "{:g}",
               summary: str = "", epochs: Mapping[int, str] | None = None) -> dict:
    """Lays out a chart whose axes begin at 0.

    Args:
        title: Heading.
        axes: Names of the x axis and of the y axis.
        lines: Classes in the style sheet, training steps and values of each line. The classes are ``s1`` to ``s6``,
            with ``raw`` for a pale line without readout, with ``dots`` for marked points.
        form: Format of a value.
        summary: Text beside the heading while no step is selected.
        epochs: The epoch of each step, if it is to be shown.

    Returns:
        Positions and texts for the macro ``line_charts`` of the templates.
    """
    left, right, top, bottom = PLOT
    read = [dict(zip(x, y, strict=True)) for style, x, y in lines if "raw" not in style]
    y_ticks = ticks(max(max(values.values()) for values in read) or 1.0)
    x_high = max(max(values) for values in read) or 1

    def px(x: float) -> float:
        return round(left + (right - left) * x / x_high, 1)

    def py(y: float) -> float:
        return round(bottom - (bottom - top) * min(y / y_ticks[-1], 1.0), 1)

    def describe(step: int) -> str:
        epoch = f", epoch {epochs[step]}" if epochs and epochs.get(step) else ""
        return f"step {step}{epoch}: " + " · ".join(form.format(v[step]) if step in v else "-" for v in read)

    return {"title": title, "summary": summary, "plot": PLOT, "x_axis": axes[0], "y_axis": axes[1],
            "x_ticks": [(px(x), axis_text(x)) for x in ticks(x_high) if x <= x_high],
            "y_ticks": [(py(y), axis_text(y)) for y in y_ticks],
            "steps": [(px(step), describe(step)) for step in thin_out(sorted(set().union(*read)))],
            "lines": [(style, [(px(step), py(value)) for step, value in thin_out(list(zip(x, y, strict=True)))])
                      for style, x, y in lines]}


def training_charts(histories: Sequence[Sequence[Mapping[str, str]]]) -> list[dict]:
    """Charts of training loss, validation mIoU and learning rate; a chart without values is left out.

    Args:
        histories: Rows of ``metrics.csv``, one list a run; the first run gets line style ``s1``.
    """
    charts, epochs, single = [], {}, len(histories) == 1
    if single:
        epochs = {int(row["step"]): row.get("epoch") for row in histories[0]}
    for title, axis, phase, name, factor, form, kind in CURVES:
        lines, summary = [], ""
        for k, history in enumerate(histories, 1):
            x, y = column(history, phase, name)
            y = [factor * value for value in y]
            if single and y:
                summary = f"{kind} {form.format(y[-1] if kind == 'last' else max(y))}"
            if single and name == "loss" and len(y) > 40:
                lines.append(("s1 raw", x, y))
            if y:
                y = smooth(y, len(y) // 25) if name == "loss" else y
                lines.append((f"s{k} dots" if phase == "eval" else f"s{k}", x, y))
        if lines:
            charts.append(line_chart(title, ("training step", axis), lines, form, summary, epochs))
    return charts


def reliability_chart(rows: Sequence[Sequence[float]], error: float) -> dict:
    """Lays out the reliability diagram: the accuracy of pixels by their confidence, and the diagonal of equality.

    Args:
        rows: Mean confidence and accuracy (0..1) and number of pixels of each bin, see ``metrics.Reliability``.
        error: Expected calibration error, 0..1.

    Returns:
        As :func:`line_chart`.
    """
    left, right, top, bottom = PLOT

    def px(share: float) -> float:
        return round(left + (right - left) * share, 1)

    def py(share: float) -> float:
        return round(bottom - (bottom - top) * share, 1)

    total, fifths = sum(pixels for _, _, pixels in rows), [k / 5 for k in range(6)]
    return {"title": "Accuracy by confidence", "summary": f"calibration error {100 * error:.2f} %", "plot": PLOT,
            "x_axis": "confidence, %", "y_axis": "accuracy, %",
            "x_ticks": [(px(share), f"{100 * share:.0f}") for share in fifths],
            "y_ticks": [(py(share), f"{100 * share:.0f}") for share in fifths],
            "steps": [(px(confidence), f"confidence {100 * confidence:.1f} %: {100 * accuracy:.1f} % correct, "
                                       f"{100 * pixels / total:.1f} % of the pixels")
                      for confidence, accuracy, pixels in rows],
            "lines": [("s2", [(px(0), py(0)), (px(1), py(1))]),
                      ("s1 dots", [(px(confidence), py(accuracy)) for confidence, accuracy, _ in rows])]}
