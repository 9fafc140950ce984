"""Run folders as reports: one run, or several side by side."""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from mindseg.data.datasets import CITYSCAPES, VOC, voc_palette
from mindseg.drawing import Palette
from mindseg.errors import DataError
from mindseg.report.charts import NUM_STYLES, Series, column, line_chart, read_history, smooth
from mindseg.report.html import (
    ReportData,
    chip,
    confusion,
    confusion_table,
    difference,
    esc,
    lede,
    missing,
    navigation,
    percent,
    plain,
    section_html,
    sort_key,
    write_page,
)

SCROLLER = '<div class="scroll" tabindex="0" role="region" aria-label="Table">'


def read_run(folder: str | Path) -> ReportData:
    """Reads what a run folder holds: ``eval.json``, and if present ``metrics.csv``, ``config.yaml`` and ``env.json``.

    Args:
        folder: The run folder, or any folder that ``eval.py --output`` wrote.

    Returns:
        The report's content, without images.

    Raises:
        DataError: ``eval.json`` is missing, or a file is damaged.
    """
    folder = Path(folder)
    if not (folder / "eval.json").is_file():
        raise DataError(f"{folder / 'eval.json'} is missing: run eval.py for this run first")
    scores, environment = _read_json(folder / "eval.json"), {}
    if not isinstance(scores.get("classes"), list) or not isinstance(scores.get("iou"), list):
        raise DataError(f"{folder / 'eval.json'} names no classes or IoU values: write it again with eval.py")
    if (folder / "env.json").is_file():
        environment = _read_json(folder / "env.json")
    config = folder / "config.yaml"
    history = folder / "metrics.csv"
    return ReportData(
        title=folder.resolve().name, classes=tuple(scores["classes"]), palette=palette_of(scores["classes"]),
        scores=scores, history=read_history(history) if history.is_file() else (),
        config=config.read_text(encoding="utf-8") if config.is_file() else "", environment=environment)


def palette_of(classes: Sequence[str]) -> Palette:
    """The colours of a known data set with these classes, else those of PASCAL VOC."""
    known = {info.classes: info.palette for info in (CITYSCAPES, VOC)}
    return known.get(tuple(classes)) or voc_palette(len(classes))


def _read_json(path: Path) -> dict:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} holds no JSON object")
    return tree


def write_comparison(path: str | Path, runs: Sequence[ReportData]) -> Path:
    """Writes a page with several runs side by side; the first one is the reference.

    Args:
        path: File to write, ``*.html``.
        runs: Two to six runs with the same classes; ``title`` names them.

    Returns:
        The path.

    Raises:
        DataError: Too few or too many runs, different classes, or the file cannot be written.
    """
    if not 2 <= len(runs) <= NUM_STYLES:
        raise DataError(f"{len(runs)} runs cannot be compared: 2 to {NUM_STYLES} can be told apart on one page")
    for run in runs[1:]:
        if tuple(run.classes) != tuple(runs[0].classes):
            raise DataError(f"{run.title} has other classes than {runs[0].title}: they cannot be compared")
    sections = [("overview", "Overview", overview_section(runs)), ("classes", "Classes", classes_section(runs)),
                ("training", "Training", training_section(runs)), ("confusion", "Confusions", confusion_section(runs)),
                ("differences", "What differs", differences_section(runs))]
    sections = [section for section in sections if section[2]]
    title = " / ".join(run.title for run in runs)
    content = "".join(section_html(*section) for section in sections)
    names = f"Differences are in percentage points against {runs[0].title}."
    head = f"<header><h1>{len(runs)} runs side by side</h1>{lede(names)}{navigation(sections)}</header>"
    return write_page(path, title, f"{head}<main>{content}</main>")


def key(style: int) -> str:
    """A piece of line as it is drawn in the charts."""
    line = f'<line class="s{style}" x1="0" x2="26" y1="4" y2="4"/>'
    return f'<svg class="key" viewBox="0 0 26 8" aria-hidden="true">{line}</svg>'


def score_cell(values: Sequence[float | None], k: int) -> str:
    """The k-th of the runs' scores, with its distance from the first; the best one is marked."""
    value, present, delta = values[k], [v for v in values if not missing(v)], ""
    if k > 0:
        text = difference(value, values[0], 2)
        delta = f'<small class="{"up" if text[0] == "+" else "down" if text[0] == "-" else ""}">{text}</small>'
    strong = " best" if not missing(value) and max(present) == value > min(present) else ""
    return f'<td class="num{strong}" data-key="{sort_key(value)}">{percent(value, 2)}{delta}</td>'


def overview_section(runs: Sequence[ReportData]) -> str:
    """The overall scores of every run."""
    columns = [("mIoU %", "miou"), ("pixel accuracy %", "pixel_accuracy"), ("frequency-weighted IoU %", "fwiou")]
    columns = [pair for pair in columns if any(not missing(run.scores.get(pair[1])) for run in runs)]
    rows = []
    for k, run in enumerate(runs):
        cells = []
        for _, name in columns:
            cells.append(score_cell([r.scores.get(name) for r in runs], k))
        checkpoint = esc(str(run.scores.get("checkpoint", "")))
        rows.append(f'<tr><th scope="row">{key(k + 1)}{esc(run.title)}</th>{"".join(cells)}'
                    f'<td class="num">{esc(plain(run.scores.get("images", "-")))}</td>'
                    f'<td class="wide">{checkpoint}</td></tr>')
    heads = "".join(f'<th scope="col" class="num">{title}</th>' for title, _ in columns)
    return (f'{SCROLLER}<table class="plain versus"><thead><tr><th scope="col">run</th>'
            f'{heads}<th scope="col" class="num">images</th><th scope="col" class="wide">checkpoint</th></tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>')


def classes_section(runs: Sequence[ReportData]) -> str:
    """IoU of every class in every run."""
    rows = []
    for k, name in enumerate(runs[0].classes):
        values = [run.scores["iou"][k] for run in runs]
        cells = "".join(score_cell(values, j) for j in range(len(runs)))
        rows.append(f'<tr><th scope="row">{chip(runs[0].palette[k])}{esc(name)}</th>{cells}</tr>')
    heads = [f'<th scope="col"{" class=num" if j else ""}><button type="button" data-column="{j}">{esc(title)}</button>'
             "</th>" for j, title in enumerate(["class", *(run.title for run in runs)])]
    return ('<p class="note">IoU in percent; the best run of a class is bold. Column titles sort the table.</p>'
            f'{SCROLLER}<table class="plain versus sortable"><thead><tr>{"".join(heads)}</tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>')


def training_section(runs: Sequence[ReportData]) -> str:
    """Loss, validation mIoU and learning rate of all runs in the same charts."""
    charts = []
    for title, phase, name, factor, form in (("Training loss", "train", "loss", 1, "{:.3f}"),
                                             ("Validation mIoU, %", "eval", "miou", 100, "{:.2f}"),
                                             ("Learning rate", "train", "lr", 1, "{:.3g}")):
        lines = []
        for k, run in enumerate(runs):
            x, y = column(run.history, phase, name)
            y = [factor * value for value in (smooth(y, len(y) // 25) if name == "loss" else y)]
            if x:
                lines.append(Series(run.title, x, y, style=k + 1, dots=phase == "eval"))
        if lines:
            charts.append(line_chart(title, lines, _reader(lines, form)))
    legend = "".join(f"<li>{key(k + 1)}{esc(run.title)}</li>" for k, run in enumerate(runs))
    return f'<ul class="legend">{legend}</ul><div class="charts">{"".join(charts)}</div>' if charts else ""


def _reader(lines: Sequence[Series], form: str):
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    return lambda step: f"step {step:g}: " + " · ".join(form.format(v[step]) if step in v else "-" for v in values)


def confusion_section(runs: Sequence[ReportData]) -> str:
    """The confusion matrices beside each other."""
    parts = []
    for k, run in enumerate(runs):
        matrix = confusion(run)
        if matrix is not None and matrix.sum():
            table = confusion_table(run.classes, run.palette, matrix, f"readout-{k}")
            parts.append(f"<div><h3>{esc(run.title)}</h3>{table}</div>")
    note = '<p class="note">Rows are the truth, columns the prediction. Teal is right, orange wrong.</p>'
    return f'{note}<div class="runs">{"".join(parts)}</div>' if parts else ""


def differences_section(runs: Sequence[ReportData]) -> str:
    """Settings and environment entries that are not the same in all runs."""
    trees = []
    for run in runs:
        try:
            config = yaml.safe_load(run.config) or {}
        except yaml.YAMLError as error:
            raise DataError(f"{run.title}: config.yaml is damaged: {' '.join(str(error).split())}") from error
        trees.append({**flatten(config), **flatten(run.environment, "env.")})
    names = sorted({name for tree in trees for name in tree})
    rows = []
    for name in names:
        values = [plain(tree[name]) if name in tree else "-" for tree in trees]
        if len(set(values)) > 1:
            cells = "".join(f"<td>{esc(value)}</td>" for value in values)
            rows.append(f'<tr><th scope="row"><code>{esc(name)}</code></th>{cells}</tr>')
    if not rows:
        return '<p class="note">Nothing: configuration and environment are the same, as far as they are recorded.</p>'
    heads = "".join(f'<th scope="col">{esc(title)}</th>' for title in ("key", *(run.title for run in runs)))
    return (f'{SCROLLER}<table class="plain versus"><thead><tr>' + heads
            + f'</tr></thead><tbody>{"".join(rows)}</tbody></table></div>')


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested mappings as ``{"a.b": value}``."""
    out: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{name}."))
        else:
            out[f"{prefix}{name}"] = value
    return out
