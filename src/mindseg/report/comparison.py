"""Comparison of several runs on one page, and means over runs that repeat each other."""
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mindseg.data.datasets import DATASETS, dataset_info
from mindseg.drawing import Palette
from mindseg.errors import DataError
from mindseg.report.charts import NUM_STYLES, number, read_history, training_charts
from mindseg.report.pages import ReportData, plain, write_page
from mindseg.yaml_text import YamlError, parse

# Keys in which repeated runs may differ: the seed, the fold, and where their files are.
OF_A_REPEAT = ("runtime.seed", "runtime.name", "runtime.output_dir", "data.train_list", "data.eval_list",
               "data.mindrecord", "data.eval_mindrecord")


def read_run(folder: Path, title: str) -> ReportData:
    """Reads ``eval.json`` of a run folder, or else the best evaluation in ``metrics.csv``; and settings, if present.

    Args:
        folder: The run folder, or any folder that ``eval.py --output`` wrote.
        title: Name of the run.

    Returns:
        Everything but images. Without ``eval.json`` there are no classes.

    Raises:
        DataError: Neither file is there, or one is damaged.
    """
    scores = _read(folder / "eval.json", json.loads)
    history = read_history(folder / "metrics.csv")
    if scores is None and history:
        scores = _best_evaluation(history) | {"classes": [], "iou": []}
    if not isinstance(scores, dict) or not all(isinstance(scores.get(name), list) for name in ("classes", "iou")):
        raise DataError(f"{folder / 'eval.json'}: missing, or without classes and IoU, and there is no metrics.csv; "
                        "give the folder of a training, or run eval.py --output for it first")
    classes = tuple(scores["classes"])
    black = ((0, 0, 0),) * len(classes)
    run = ReportData(title, classes, black, scores, history=history, config=_read(folder / "config.yaml", str) or "",
                     environment=_read(folder / "env.json", json.loads) or {})
    return replace(run, palette=_palette(run)) if classes else run


def _palette(run: ReportData) -> Palette:
    """Official colours of the data set, or those of the run's configuration, or default ones."""
    official = {info.classes: info.palette for info in DATASETS.values()}
    data = {"name": "list", "class_names": run.classes, "palette": _settings(run).get("data.palette")}
    try:
        return official.get(run.classes) or dataset_info(data).palette
    except DataError as error:
        raise DataError(f"{run.title}: config.yaml: {error}") from None


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Parsed content of a text file; None if there is none."""
    try:
        return parse(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again with eval.py") from error


def _best_evaluation(history: Sequence[Mapping[str, str]]) -> dict[str, object]:
    """Scores of the evaluation with the highest mIoU while training; empty if there was none."""
    rows = [row for row in history if row["phase"] == "eval" and number(row.get("miou")) is not None]
    if not rows:
        return {}
    best = max(rows, key=lambda row: number(row["miou"]))
    return {"miou": number(best["miou"]), "pixel_accuracy": number(best.get("pixel_accuracy")),
            "checkpoint": f"of step {best['step']}, the best of {len(rows)} evaluations while training"}


def write_comparison(path: Path, runs: Sequence[ReportData]) -> Path:
    """Writes a page with two to six runs side by side to ``path`` (``*.html``) and returns the path.

    Args:
        path: File to write.
        runs: Runs, or means of runs; the first one is the reference. A mean may stand alone.

    Raises:
        DataError: Too few or too many runs, different classes, or a damaged configuration.
        UserError: The file cannot be written.
    """
    if len(runs) > NUM_STYLES or (len(runs) == 1 and not runs[0].spread):
        raise DataError(f"{len(runs)} runs cannot be compared: 2 to {NUM_STYLES} can be told apart on one page"
                        f"{'; --average makes one of those that repeat each other' if len(runs) > 1 else ''}")
    with_classes = [run for run in runs if run.classes]
    for run in with_classes[1:]:
        if tuple(run.classes) != tuple(with_classes[0].classes):
            raise DataError(f"{run.title} has other classes than {with_classes[0].title}: they cannot be compared")
    overall = [(label, None, [run.overall[label] for run in runs], _spreads(runs, label)) for label in runs[0].overall
               if label == "mean IoU" or any(run.overall[label] is not None for run in runs)]
    classes = []
    for k, name in enumerate(with_classes[0].classes if with_classes else ()):
        values = [run.iou[k] if run.classes else None for run in runs]
        classes.append((name, with_classes[0].palette[k], values, _spreads(runs, name)))
    return write_page(path, "comparison.html", runs=runs, overall=overall, classes=classes,
                      charts=training_charts([run.history for run in runs]), differences=differing_settings(runs))


def _spreads(runs: Sequence[ReportData], label: str) -> list[float | None]:
    return [run.spread.get(label) for run in runs]


def average(runs: Sequence[ReportData]) -> list[ReportData]:
    """Puts means in the place of runs whose configurations differ in ``OF_A_REPEAT`` at most.

    Args:
        runs: Runs. One without configuration stays alone.

    Returns:
        Means and single runs, in the order of the first run of each.

    Raises:
        DataError: A configuration is damaged.
    """
    groups: dict[str, list[ReportData]] = {}
    for run in runs:
        settings = {key: value for key, value in _settings(run).items()
                    if key not in OF_A_REPEAT and not key.startswith("env.")}
        key = plain([settings, list(run.classes)]) if run.config else run.title
        groups.setdefault(key, []).append(run)
    return [_mean(group) if len(group) > 1 else group[0] for group in groups.values()]


def _mean(runs: Sequence[ReportData]) -> ReportData:
    """Mean of runs with the same classes; sample standard deviations are its spread."""
    first, spread = runs[0], {}
    iou = []
    for k, name in enumerate(first.classes):
        value, spread[name] = _mean_and_deviation([run.iou[k] for run in runs])
        iou.append(value)
    scores: dict[str, object] = {"classes": list(first.classes), "iou": iou,
                                 "images": first.scores.get("images", "-"),
                                 "checkpoint": ", ".join(str(run.scores.get("checkpoint", "-")) for run in runs)}
    for label, name in (("mean IoU", "miou"), ("pixel accuracy", "pixel_accuracy"),
                        ("frequency-weighted IoU", "fwiou")):
        scores[name], spread[label] = _mean_and_deviation([run.overall[label] for run in runs])
    accuracy, spread["mean class accuracy"] = _mean_and_deviation([run.overall["mean class accuracy"] for run in runs])
    scores["class_accuracy"] = [accuracy]
    matrices = [run.confusion for run in runs]
    if not any(matrix is None for matrix in matrices):
        scores["confusion"] = sum(matrices).tolist()
    settings = [_settings(run) for run in runs]
    joined = {key: values[0] if len(set(values)) == 1 else ", ".join(values) for key in settings[0]
              if (values := [plain(tree.get(key, "-")) for tree in settings])}
    return ReportData(f"{first.title} and {len(runs) - 1} more, mean", first.classes, first.palette, scores,
                      history=_mean_history([run.history for run in runs]),
                      config=yaml.safe_dump(joined, width=1000), spread=spread)


def _mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None if a value is missing."""
    if any(value is None for value in values):
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _mean_history(histories: Sequence[Sequence[Mapping[str, str]]]) -> list[dict[str, str]]:
    """Rows that all runs have, with the means of their numbers."""
    tables = [{(row["phase"], row["step"]): row for row in history} for history in histories]
    rows = []
    for key, row in tables[0].items():
        if all(key in table for table in tables):
            means = {name: _mean_and_deviation([number(table[key].get(name)) for table in tables])[0]
                     for name in ("loss", "lr", "miou", "pixel_accuracy")}
            rows.append({**row, **{name: "" if mean is None else repr(mean) for name, mean in means.items()}})
    return rows


def differing_settings(runs: Sequence[ReportData]) -> list[list[str]]:
    """Configuration keys and ``env.`` entries that are not the same in all runs: rows of key and each run's value.

    Raises:
        DataError: A configuration or environment is damaged.
    """
    trees = [_settings(run) for run in runs]
    names = sorted(set().union(*trees))
    rows = [[name, *(plain(tree.get(name, "-")) for tree in trees)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _settings(run: ReportData) -> dict[str, object]:
    try:
        return flatten(parse(run.config) or {}) | flatten({"env": run.environment})
    except (YamlError, AttributeError) as error:       # the latter: a list or a single value
        raise DataError(f"{run.title}: config.yaml is damaged: {' '.join(str(error).split())}") from error


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested mappings as ``{"a.b": value}``."""
    out: dict[str, object] = {}
    for name, value in tree.items():
        out |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out
