"""HTML pages about evaluated models: the report of one run, and the comparison of several.

Pages need no network: style, script and pictures are inside, and the content security policy forbids everything else.
"""
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mindseg.data.datasets import CITYSCAPES, VOC, voc_palette
from mindseg.drawing import CORRECT, UNSCORED, WRONG, Palette, error_map, overlay
from mindseg.errors import DataError
from mindseg.files import write_text
from mindseg.report.charts import NUM_STYLES, column, number, read_history, training_charts
from mindseg.yaml_text import YamlError, parse

if TYPE_CHECKING:
    from mindseg.evaluation.evaluator import Example  # for its type alone: this import loads MindSpore

PICTURE_WIDTH = 640
PICTURE_BYTES = 3_200_000   # of all pictures together, before base64; the page stays below 5 MB


@dataclass
class ReportData:
    """Results and settings of one run. Only title, classes, palette and scores are needed.

    Attributes:
        title: Heading of the page, or name of the run in a comparison.
        classes: Class names, in the order of the class ids.
        palette: One (r, g, b) a class.
        scores: Content of ``eval.json``: ``miou`` and ``iou`` (0..1, None or NaN = absent), and if known
            ``pixel_accuracy``, ``class_accuracy``, ``fwiou``, ``confusion`` (pixels by true and predicted class),
            ``images``, ``seconds``, ``checkpoint``, ``mode``, ``split``.
        subtitle: One line below the heading.
        facts: Further figures, as (label, text).
        programs: mIoU (0..1) of the same model in several programs, the reference first.
        worst: Images with the lowest mIoU, lowest first.
        best: Images with the highest mIoU, highest first.
        history: Rows of ``metrics.csv``, see ``charts.read_history``.
        config: The resolved configuration as YAML.
        environment: Content of ``env.json``.

    Raises:
        DataError: Classes, colours and scores differ in number.
    """
    title: str
    classes: Sequence[str]
    palette: Palette
    scores: Mapping
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()
    programs: Sequence[tuple[str, float]] = ()
    worst: Sequence["Example"] = ()
    best: Sequence["Example"] = ()
    history: Sequence[Mapping[str, str]] = ()
    config: str = ""
    environment: Mapping = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = len(self.classes), len(self.palette), len(self.iou)
        if len({*counts, *(() if self.confusion is None else self.confusion.shape)}) > 1:
            raise DataError("{}: {} classes, {} colours and {} IoU values, or the confusion matrix, do not fit each "
                            "other; run eval.py again".format(self.title, *counts))

    @property
    def iou(self) -> list[float | None]:
        """IoU of each class, 0..1; None if absent."""
        return [number(value) for value in self.scores.get("iou", ())]

    @property
    def confusion(self) -> np.ndarray | None:
        """Pixels by true class (row) and predicted class (column), int64 (C, C); None if unknown or all 0."""
        matrix = np.asarray(self.scores.get("confusion") or 0, np.int64)
        return matrix if matrix.any() else None

    @property
    def overall(self) -> dict[str, float | None]:
        """Scores over all classes by label, 0..1; None if absent. The mean IoU comes first."""
        accuracies = [value for value in self.scores.get("class_accuracy") or () if number(value) is not None]
        scores = {"mean IoU": self.scores.get("miou"), "pixel accuracy": self.scores.get("pixel_accuracy"),
                  "mean class accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
                  "frequency-weighted IoU": self.scores.get("fwiou")}
        return {label: number(value) for label, value in scores.items()}


def read_run(folder: Path, title: str) -> ReportData:
    """Reads ``eval.json`` of a run folder, and ``metrics.csv``, ``config.yaml`` and ``env.json`` if present.

    Args:
        folder: The run folder, or any folder that ``eval.py --output`` wrote.
        title: Name of the run.

    Returns:
        Everything but images.

    Raises:
        DataError: ``eval.json`` is missing, or a file is damaged.
    """
    scores = _read(folder / "eval.json", json.loads)
    if not isinstance(scores, dict) or not all(isinstance(scores.get(name), list) for name in ("classes", "iou")):
        raise DataError(f"{folder / 'eval.json'}: missing, or without classes and IoU; run eval.py for this run first")
    classes = tuple(scores["classes"])
    known = {info.classes: info.palette for info in (CITYSCAPES, VOC)}
    return ReportData(title, classes, known.get(classes) or voc_palette(len(classes)), scores,
                      history=read_history(folder / "metrics.csv"), config=_read(folder / "config.yaml", str) or "",
                      environment=_read(folder / "env.json", json.loads) or {})


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Parsed content of a text file; None if there is none."""
    try:
        return parse(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again with eval.py") from error


def write_report(path: Path, data: ReportData) -> Path:
    """Writes the page about one run to ``path`` (``*.html``) and returns the path.

    Raises:
        UserError: The file cannot be written.
    """
    matrix, absent = data.confusion, [None] * len(data.classes)
    shares = absent if matrix is None else (matrix.sum(1) / matrix.sum()).tolist()
    accuracies = [number(value) for value in data.scores.get("class_accuracy") or absent]
    columns = zip(data.classes, data.palette, data.iou, accuracies, shares, strict=True)
    classes = [dict(zip(("name", "colour", "iou", "accuracy", "share"), row, strict=True)) for row in columns]
    budget = PICTURE_BYTES // (4 * max(1, len(data.worst) + len(data.best)))
    examples = {title: [(example, draw_example(example, data.palette, budget)) for example in group]
                for title, group in (("Lowest mIoU", data.worst), ("Highest mIoU", data.best)) if group}
    settings = {key: value for key, value in data.scores.items()
                if isinstance(value, (str, int, float)) and key not in ("miou", "pixel_accuracy", "fwiou", "present")}
    programs = [(name, percent(miou, 2), difference(miou, data.programs[0][1]) if k else "")
                for k, (name, miou) in enumerate(data.programs)]
    facts = [("images", f"{data.scores['images']:,}"), *data.facts] if data.scores.get("images") else data.facts
    speeds = column(data.history, "train", "images_per_s")[1]
    return _write_page(path, "run.html", data=data, facts=facts, error=largest_error(data), programs=programs,
                       classes=classes, examples=examples, error_colours=(CORRECT, WRONG, UNSCORED), settings=settings,
                       charts=training_charts([data.history]), speed=float(np.median(speeds)) if speeds else None)


def write_comparison(path: Path, runs: Sequence[ReportData]) -> Path:
    """Writes a page with two to six runs side by side to ``path`` (``*.html``) and returns the path.

    Raises:
        DataError: Too few or too many runs, different classes, or a damaged configuration.
        UserError: The file cannot be written.
    """
    if not 2 <= len(runs) <= NUM_STYLES:
        raise DataError(f"{len(runs)} runs cannot be compared: 2 to {NUM_STYLES} can be told apart on one page")
    first = runs[0]
    for run in runs[1:]:
        if tuple(run.classes) != tuple(first.classes):
            raise DataError(f"{run.title} has other classes than {first.title}: they cannot be compared")
    overall = [(label, None, [run.overall[label] for run in runs]) for label in first.overall]
    by_class = zip(first.classes, first.palette, zip(*(run.iou for run in runs), strict=True), strict=True)
    return _write_page(path, "comparison.html", runs=runs, overall=overall, classes=list(by_class),
                       charts=training_charts([run.history for run in runs]), differences=differing_settings(runs))


def _write_page(path: Path, template: str, **content: object) -> Path:
    """Fills in a template of this package; text is escaped."""
    engine = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                         trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    engine.filters |= {"percent": percent, "difference": difference, "plain": plain}
    write_text(path, engine.get_template(template).render(content))
    return path


def percent(value: float | None, digits: int = 1) -> str:
    """A score 0..1 as a percentage without its sign; a dash for a missing value."""
    return "-" if number(value) is None else f"{100 * value:.{digits}f}"


def difference(value: float | None, reference: float | None, digits: int = 3) -> str:
    """Difference of two scores in percentage points, with sign; a dash if one is missing."""
    if number(value) is None or number(reference) is None:
        return "-"
    points = round(100 * (value - reference), digits)
    return f"{points:+.{digits}f}" if points else "0"


def plain(value: object) -> str:
    """A value as text; lists and mappings as JSON."""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, tuple)) else str(value)


def largest_error(data: ReportData) -> tuple[float, str, str] | None:
    """The most frequent error: share of the true class (0..1), true class, predicted class; None below 0.5 %."""
    if data.confusion is None:
        return None
    shares = data.confusion / np.maximum(data.confusion.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    true, predicted = np.unravel_index(shares.argmax(), shares.shape)
    share = float(shares[true, predicted])
    return (share, data.classes[true], data.classes[predicted]) if share >= 0.005 else None


def draw_example(example: "Example", palette: Palette, budget: int) -> dict[str, str]:
    """Input, prediction, label and errors of an image as data URLs of at most ``budget`` bytes each."""
    image = cv2.resize(example.image, example.label.shape[::-1], interpolation=cv2.INTER_AREA)
    pictures = {"input": image, "prediction": overlay(image, example.pred, palette),
                "label": overlay(image, example.label, palette),
                "errors": error_map(example.pred, example.label, image)}
    return {kind: data_url(picture, budget) for kind, picture in pictures.items()}


def data_url(picture: np.ndarray, budget: int, width: int = PICTURE_WIDTH) -> str:
    """Encodes a picture (uint8 RGB), at most ``width`` pixels wide, smaller if it would take more than the budget."""
    scale = min(1.0, width / picture.shape[1])
    size = [max(1, round(scale * length)) for length in picture.shape[1::-1]]
    smaller = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".webp", smaller[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 80])[1]
    if len(data) > budget and width > 16:
        return data_url(picture, budget, round(0.7 * size[0]))
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def differing_settings(runs: Sequence[ReportData]) -> list[list[str]]:
    """Configuration keys and ``env.`` entries that are not the same in all runs: rows of key and each run's value.

    Raises:
        DataError: A configuration or environment is damaged.
    """
    trees = []
    for run in runs:
        try:
            trees.append(flatten(parse(run.config) or {}) | flatten({"env": run.environment}))
        except (YamlError, AttributeError) as error:       # the latter: a list or a single value
            raise DataError(f"{run.title}: config.yaml is damaged: {' '.join(str(error).split())}") from error
    names = sorted(set().union(*trees))
    rows = [[name, *(plain(tree.get(name, "-")) for tree in trees)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested mappings as ``{"a.b": value}``."""
    out: dict[str, object] = {}
    for name, value in tree.items():
        out |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out
