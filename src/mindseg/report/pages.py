"""HTML pages about models: what a page shows of a run, and the report of one evaluation.

Pages need no network: style, script and pictures are inside, and the content security policy forbids everything else.
"""
import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mindseg.drawing import CORRECT, UNSCORED, WRONG, Palette, error_map, overlay
from mindseg.errors import DataError
from mindseg.files import write_text
from mindseg.report.charts import column, number, reliability_chart, training_charts

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
        spread: Standard deviation of each score, by class or by label of ``overall``, if scores are means over runs.

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
    spread: Mapping[str, float | None] = field(default_factory=dict)

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
    figures = [(label, f"{percent(value)} %") for label, value in data.overall.items()
               if value is not None and label != "mean IoU"]
    if data.scores.get("images"):
        figures.append(("images", f"{data.scores['images']:,}"))
    figures += data.facts
    bins = data.scores.get("reliability")
    reliability = [reliability_chart(bins, data.scores["ece"])] if bins else []
    speeds = column(data.history, "train", "images_per_s")[1]
    return write_page(path, "run.html", data=data, figures=figures, error=largest_error(data), programs=programs,
                       classes=classes, examples=examples, error_colours=(CORRECT, WRONG, UNSCORED), settings=settings,
                       charts=training_charts([data.history]), reliability=reliability,
                       speed=float(np.median(speeds)) if speeds else None)


def write_page(path: Path, template: str, **content: object) -> Path:
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
