"""Line charts as plain SVG text, and the history of a run that they show."""
import csv
import html
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindseg.errors import DataError

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 26
MAX_POINTS = 300  # per line; more cannot be told apart at this size
NUM_STYLES = 6    # line styles that the style sheet knows


@dataclass(frozen=True)
class Series:
    """One line: positions ``x`` and values ``y`` of equal length, a name, a style number (1..6).

    ``raw`` draws it thin and pale, behind its smoothed twin; ``dots`` marks the points.
    """
    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 1
    raw: bool = False
    dots: bool = False


def read_history(path: Path) -> list[dict[str, str]]:
    """Reads ``metrics.csv``. Rows that a resumed run wrote again replace the older ones of the same phase.

    Raises:
        DataError: The file cannot be read or has no ``phase`` and ``step`` column.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    kept: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if not row.get("phase") or number(row.get("step")) is None:
            raise DataError(f"{path}: a line without phase or step; it is not a metrics.csv of this project")
        done = kept.setdefault(row["phase"], [])
        while done and number(done[-1]["step"]) >= number(row["step"]):
            done.pop()
        done.append(row)
    return [row for done in kept.values() for row in done]


def number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def column(history: Sequence[dict[str, str]], phase: str, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one column in one phase; empty fields are left out."""
    pairs = [(number(row["step"]), number(row.get(name))) for row in history if row["phase"] == phase]
    pairs = [(step, value) for step, value in pairs if value is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean over up to ``reach`` neighbours on either side; it does not lag behind, as a running mean would."""
    total = [0.0, *itertools.accumulate(values)]
    low = [max(0, k - reach) for k in range(len(values))]
    high = [min(len(values), k + reach + 1) for k in range(len(values))]
    return [(total[b] - total[a]) / (b - a) for a, b in zip(low, high, strict=True)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers that span low..high; the last one is not below ``high``."""
    span = max(high - low, 1e-12)
    power = 10 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * count >= span * 0.999)
    first = math.floor(low / step + 1e-9)
    return [k * step for k in range(first, math.ceil(high / step - 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis."""
    if value == 0:
        return "0"
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.4g}"


def line_chart(title: str, series: Sequence[Series], describe: Callable[[float], str], rest: str = "") -> str:
    """A chart over training steps, from 0 upwards.

    Args:
        title: What it shows.
        series: Lines; at least one with at least one point.
        describe: Text for a step, shown when the cursor is on it.
        rest: Text that is shown otherwise.

    Returns:
        A ``<figure>``.
    """
    shown = [s for s in series if not s.raw] or list(series)
    y_ticks = ticks(0.0, max(max(s.y) for s in shown) or 1.0)
    x_high = max(max(s.x) for s in series) or 1.0
    x_ticks = [t for t in ticks(0.0, x_high) if t <= x_high]

    def px(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * x / x_high, 1)

    def py(y: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(y / y_ticks[-1], 1.0), 1)

    parts = []
    for tick in y_ticks:
        y = py(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{short(tick)}</text>')
    for tick in x_ticks:
        anchor = "end" if px(tick) > WIDTH - 20 else "middle"
        parts.append(f'<text x="{px(tick)}" y="{HEIGHT - 8}" text-anchor="{anchor}">{short(tick)}</text>')
    for s in series:
        stride = max(1, -(-len(s.x) // MAX_POINTS))
        keep = [*range(0, len(s.x) - 1, stride), len(s.x) - 1]
        points = " ".join(f"{px(s.x[k])},{py(s.y[k])}" for k in keep)
        parts.append(f'<polyline class="line s{s.style}{" raw" if s.raw else ""}" points="{points}"/>')
        if s.dots and len(keep) <= 60:
            parts += [f'<circle class="dot s{s.style}" cx="{px(s.x[k])}" cy="{py(s.y[k])}" r="2.6"/>' for k in keep]
    steps = sorted({x for s in shown for x in s.x})
    steps = steps[::max(1, -(-len(steps) // MAX_POINTS))]
    data = html.escape(json.dumps([[px(x), describe(x)] for x in steps], ensure_ascii=False))
    label = html.escape(f"{title}. {rest}. Arrow keys read single points.")
    return (f'<figure class="chart"><figcaption><span>{html.escape(title)}</span><output>{html.escape(rest)}</output>'
            f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{label}" '
            f'data-points="{data}">{"".join(parts)}<line class="cursor" x1="0" x2="0" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/></svg></figure>')
