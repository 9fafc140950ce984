"""One self-contained page about a model: how good it is, where it fails, how it was trained.

The page needs no network: style, script and pictures are inside it, and its content security policy forbids the rest.
"""
import base64
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from mindseg.drawing import RIGHT, UNSCORED, WRONG, Palette, error_map, overlay
from mindseg.errors import DataError
from mindseg.report.charts import Series, column, line_chart, number, smooth

ASSETS = Path(__file__).parent
PICTURE_WIDTH = 640
PICTURE_BYTES = 3_200_000  # of all pictures together, before base64; the page stays below 5 MB
esc = html.escape


@dataclass(frozen=True)
class Example:
    """One evaluated image. Any object with these attributes will do.

    Attributes:
        name: What to call it.
        miou: mIoU of this image alone, 0..1.
        image: uint8 RGB (H, W, 3).
        pred: Predicted class ids, uint8 (h, w).
        label: True class ids, uint8 (h, w), 255 = not scored. If (h, w) differs from (H, W) the image is resized.
    """
    name: str
    miou: float
    image: np.ndarray
    pred: np.ndarray
    label: np.ndarray


@dataclass
class ReportData:
    """What the page shows. Only title, classes, palette and scores are needed.

    Attributes:
        title: Heading.
        classes: Class names, in the order of the class ids.
        palette: One (r, g, b) a class.
        scores: Content of ``eval.json``: ``miou`` and ``iou`` (0..1, None or NaN = absent), and if known
            ``pixel_accuracy``, ``class_accuracy``, ``fwiou``, ``confusion`` (counts by truth and prediction),
            ``images``, ``seconds``, ``checkpoint``, ``mode``, ``split``.
        subtitle: One line below the heading.
        facts: More headline figures, as (label, value) texts.
        programs: mIoU (0..1) of the same model in several programs, the reference first.
        worst: Images of the lowest mIoU, worst first.
        best: Images of the highest mIoU, best first.
        history: Rows of ``metrics.csv`` (``charts.read_history``).
        config: The resolved configuration as YAML.
        environment: Content of ``env.json``.
    """
    title: str
    classes: Sequence[str]
    palette: Palette
    scores: Mapping
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()
    programs: Sequence[tuple[str, float]] = ()
    worst: Sequence[Example] = ()
    best: Sequence[Example] = ()
    history: Sequence[dict[str, str]] = ()
    config: str = ""
    environment: Mapping = field(default_factory=dict)


def write_report(path: str | Path, data: ReportData) -> Path:
    """Writes the page.

    Args:
        path: File to write, ``*.html``.
        data: What it shows.

    Returns:
        The path.

    Raises:
        DataError: The scores do not fit the classes, or the file cannot be written.
    """
    count = len(data.classes)
    if len(data.palette) != count or len(data.scores.get("iou", ())) != count:
        raise DataError(f"report {path}: {count} classes, {len(data.palette)} colours and "
                        f"{len(data.scores.get('iou', ()))} IoU values do not fit each other")
    sections = [
        ("programs", "One model, several programs", programs_section(data)),
        ("classes", "Classes", classes_section(data)),
        ("confusion", "Confusions", confusion_section(data)),
        ("examples", "Images", examples_section(data)),
        ("training", "Training", training_section(data.history)),
        ("details", "How it was made", details_section(data)),
    ]
    sections = [section for section in sections if section[2]]
    content = "".join(section_html(*section) for section in sections)
    body = (f"<header><h1>{esc(data.title)}</h1>{lede(data.subtitle)}{headline(data)}{navigation(sections)}</header>"
            f"<main>{content}</main>{LIGHTBOX if data.worst or data.best else ''}")
    return write_page(path, data.title, body)


# --------------------------------------------------------------------------------------------------- parts of any page
LIGHTBOX = ('<dialog aria-label="Picture"><img alt="" src="data:,"><form method="dialog"><p></p>'
            '<button type="button" data-step="-1">Previous</button><button type="button" data-step="1">Next</button>'
            "<button>Close</button></form></dialog>")


def write_page(path: str | Path, title: str, body: str) -> Path:
    """Wraps a body into a complete document and writes it atomically.

    Raises:
        DataError: The file cannot be written.
    """
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    page = (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{esc(title)}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<style>\n{style}</style></head>\n<body>{body}\n<script>\n{script}</script></body></html>\n")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}; check folder, free space and permissions") from error
    return path


def lede(text: str) -> str:
    """The line below the heading."""
    return f'<p class="lede">{esc(text)}</p>' if text else ""


def section_html(name: str, title: str, content: str) -> str:
    """One section with its heading."""
    heading = f'<h2 id="{name}-title">{esc(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{content}</section>'


def navigation(sections: Sequence[tuple[str, str, str]]) -> str:
    """Links to the sections."""
    links = "".join(f'<a href="#{name}">{esc(title)}</a>' for name, title, _ in sections)
    return f'<nav aria-label="Sections">{links}</nav>' if len(sections) > 1 else ""


def percent(value: float | None, digits: int = 1) -> str:
    """0..1 as a percentage without its sign; a dash for a missing value."""
    return "-" if missing(value) else f"{100 * value:.{digits}f}"


def missing(value: float | None) -> bool:
    """Whether a score is absent: None or NaN."""
    return value is None or math.isnan(value)


def chip(colour: tuple[int, int, int]) -> str:
    """A patch of a class colour."""
    return f'<span class="chip" style="--c:rgb({colour[0]} {colour[1]} {colour[2]})"></span>'


# ------------------------------------------------------------------------------------------------------------ sections
def headline(data: ReportData) -> str:
    """The large figures, and what they say in a sentence."""
    scores, percentage = data.scores, "<small>%</small>"
    figures = [("lead", "mean IoU", percent(scores.get("miou")) + percentage)]
    accuracy = [value for value in scores.get("class_accuracy") or () if not missing(value)]
    for label, value in (("pixel accuracy", scores.get("pixel_accuracy")),
                         ("mean class accuracy", sum(accuracy) / len(accuracy) if accuracy else None),
                         ("frequency-weighted IoU", scores.get("fwiou"))):
        if not missing(value):
            figures.append(("", label, percent(value) + percentage))
    if scores.get("images"):
        figures.append(("next", "images", f"{scores['images']:,}"))
    figures += [("next", label, esc(str(value))) for label, value in data.facts]

    def cells(wanted: bool) -> str:
        return "".join(f'<div{f" class={kind}" if kind else ""}><dt>{esc(label)}</dt><dd>{value}</dd></div>'
                       for kind, label, value in figures if (kind == "next") == wanted)

    second = f'<dl class="figures">{cells(True)}</dl>' if cells(True) else ""
    origin = f'<p class="lede">Checkpoint {esc(str(scores["checkpoint"]))}</p>' if scores.get("checkpoint") else ""
    return f'<dl class="figures">{cells(False)}</dl>{second}{insight(data)}{origin}'


def insight(data: ReportData) -> str:
    """Best and weakest class, and the most frequent mistake."""
    ranked = sorted((value, name) for name, value in zip(data.classes, data.scores["iou"], strict=True)
                    if not missing(value))
    if len(ranked) < 2:
        return ""
    (low, weakest), (high, strongest) = ranked[0], ranked[-1]
    text = (f"Over {len(ranked)} of {len(data.classes)} classes, <b>{esc(strongest)}</b> is found best "
            f"({percent(high)} %) and <b>{esc(weakest)}</b> worst ({percent(low)} %).")
    matrix = confusion(data)
    if matrix is not None and matrix.sum():
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        np.fill_diagonal(share, 0)
        truth, guess = np.unravel_index(share.argmax(), share.shape)
        if share[truth, guess] >= 0.005:
            text += (f" The largest confusion: {percent(float(share[truth, guess]), 0)} % of all "
                     f"<b>{esc(data.classes[truth])}</b> is taken for <b>{esc(data.classes[guess])}</b>.")
    return f'<p class="insight">{text}</p>'


def confusion(data: ReportData) -> np.ndarray | None:
    """Counts by truth and prediction, if they are known."""
    matrix = data.scores.get("confusion")
    return None if matrix is None else np.asarray(matrix, dtype=np.float64)


def programs_section(data: ReportData) -> str:
    """The same model's mIoU in several programs, and how far each is from the first."""
    if not data.programs:
        return ""
    reference = data.programs[0][1]
    rows = "".join(
        f'<tr><th scope="row">{esc(name)}</th><td class="num">{percent(value, 2)}</td>'
        f'<td class="num">{"" if k == 0 else difference(value, reference)}</td></tr>'
        for k, (name, value) in enumerate(data.programs))
    return ('<p class="note">Mean IoU of the same weights on the same images, each program on its own path from the '
            "picture file to the score.</p>"
            '<table class="plain"><thead><tr><th scope="col">program</th><th scope="col" class="num">mIoU %</th>'
            f'<th scope="col" class="num">difference, points</th></tr></thead><tbody>{rows}</tbody></table>')


def difference(value: float, reference: float, digits: int = 3) -> str:
    """How far a score is from another, in percentage points with sign."""
    if missing(value) or missing(reference):
        return "-"
    points = round(100 * (value - reference), digits)
    return f"{points:+.{digits}f}" if points else "0"


def classes_section(data: ReportData) -> str:
    """IoU of every class as bars, with accuracy and share of the pixels; the table is its own fallback."""
    iou, mean = data.scores["iou"], data.scores.get("miou")
    accuracy = data.scores.get("class_accuracy") or [None] * len(iou)
    matrix = confusion(data)
    share = [None] * len(iou) if matrix is None or not matrix.sum() else (matrix.sum(1) / matrix.sum()).tolist()
    mark = "" if missing(mean) else f'<i style="left:{100 * mean:.2f}%"></i>'
    rows = []
    for name, colour, value, acc, part in zip(data.classes, data.palette, iou, accuracy, share, strict=True):
        weak = ' class="weak"' if not missing(value) and not missing(mean) and value < mean else ""
        bar = f'<div><span style="width:{0 if missing(value) else 100 * value:.2f}%"></span>{mark}</div>'
        shown = '<span title="neither labelled nor predicted">absent</span>' if missing(value) else percent(value)
        rows.append(f'<tr{weak}><th scope="row">{chip(colour)}{esc(name)}</th>'
                    f'<td class="bar" aria-hidden="true">{bar}</td>'
                    f'<td class="num" data-key="{sort_key(value)}">{shown}</td>'
                    f'<td class="num wide" data-key="{sort_key(acc)}">{percent(acc)}</td>'
                    f'<td class="num" data-key="{sort_key(part)}">{percent(part, 2)}</td></tr>')
    heads = [("class", 0, ""), ("IoU %", 2, "num"), ("accuracy %", 3, "num wide"), ("pixels %", 4, "num")]
    cells = [f'<th scope="col" class="{kind}"><button type="button" data-column="{k}">{title}</button></th>'
             for title, k, kind in heads]
    cells.insert(1, '<td aria-hidden="true"></td>')
    note = ("IoU = TP / (TP + FP + FN) over all pixels of all images. The upright line is the mean, classes below it "
            "are orange. Column titles sort the table.")
    return (f'<p class="note">{note}</p><table class="classes sortable"><thead><tr>{"".join(cells)}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>{share_bar(data, share)}")


def sort_key(value: float | None) -> float:
    """A number to sort by; absent values come last."""
    return -1.0 if missing(value) else round(value, 6)


def share_bar(data: ReportData, share: Sequence[float | None]) -> str:
    """One bar that is divided as the labelled pixels are."""
    if share[0] is None:
        return ""
    order = sorted(range(len(share)), key=lambda k: -share[k])
    parts = "".join(f'<span style="flex:{share[k]:.6f};--c:rgb{tuple(data.palette[k])}" '
                    f'title="{esc(data.classes[k])} {percent(share[k], 2)} %"></span>' for k in order if share[k] > 0)
    text = ", ".join(f"{data.classes[k]} {percent(share[k])} %" for k in order[:5])
    items = "".join(f'<li>{chip(data.palette[k])}{esc(data.classes[k])}<span class="num">{percent(share[k])} %</span>'
                    "</li>" for k in order[:6])
    return (f'<h3>Share of the labelled pixels</h3><div class="share" role="img" aria-label="{esc(text)}, and smaller '
            f'ones">{parts}</div><ul class="legend">{items}</ul>')


def confusion_section(data: ReportData) -> str:
    """The confusion matrix as a heat map."""
    matrix = confusion(data)
    if matrix is None or not matrix.sum():
        return ""
    note = ("Rows are the truth, columns the prediction; every row adds up to 100 %. Teal is right, orange wrong. "
            "Point at a cell, or walk through the cells with the arrow keys.")
    return f'<p class="note">{note}</p>{confusion_table(data.classes, data.palette, matrix, "confusion-readout")}'


def confusion_table(classes: Sequence[str], palette: Palette, matrix: np.ndarray, readout: str) -> str:
    """The heat map itself; ``readout`` is the id of the line that shows a cell's value in words."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    head = "".join(f'<th scope="col"><div><span class="name">{esc(name)}</span>{chip(colour)}</div></th>'
                   for name, colour in zip(classes, palette, strict=True))
    rows = []
    for k, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        cells = []
        for j, value in enumerate(share[k]):
            strength = value if j == k else min(1.0, 1.6 * math.sqrt(value))  # small mistakes should be seen, too
            kinds = ["d" if j == k else "x"] + ["z"] * (value < 0.005)
            first = ' tabindex="0"' if j == k == 0 else ' tabindex="-1"'
            paint = f' style="--v:{strength:.2f}"' if strength >= 0.02 else ' style="--v:0"'
            cells.append(f'<td class="{" ".join(kinds)}"{first}{paint}>{100 * value:.0f}</td>')
        rows.append(f'<tr><th scope="row">{esc(name)}{chip(colour)}</th>{"".join(cells)}</tr>')
    names, counts = esc(json.dumps(list(classes))), json.dumps(matrix.astype(np.int64).tolist(), separators=(",", ":"))
    return (f'<div class="scroll"><table class="matrix" style="--n:{len(classes)}" data-readout="{readout}" '
            f'data-names="{names}" data-counts="{counts}"><caption class="sr">Confusion matrix in percent of each true '
            f'class</caption><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
            f'<output class="readout" id="{readout}" aria-live="polite"></output>')


def examples_section(data: ReportData) -> str:
    """Worst and best images as input, prediction, truth and errors."""
    groups = [("Where it fails", data.worst), ("Where it works", data.best)]
    total = sum(len(examples) for _, examples in groups)
    if not total:
        return ""
    key = legend_html(("right", "wrong", "not scored"), (RIGHT, WRONG, UNSCORED))
    parts = ['<p class="note">Each row is one image: as it came in, with the predicted classes, with the true classes, '
             f"and where the two differ. Click to enlarge.</p>{legend_html(data.classes, data.palette)}{key}"]
    for title, examples in groups:
        if examples:
            rows = "".join(example_html(example, data.palette, PICTURE_BYTES // (4 * total)) for example in examples)
            parts.append(f"<h3>{title}</h3>{rows}")
    return "".join(parts)


def legend_html(names: Sequence[str], colours: Palette) -> str:
    """Colour patches with names."""
    items = "".join(f"<li>{chip(colour)}{esc(name)}</li>" for name, colour in zip(names, colours, strict=True))
    return f'<ul class="legend">{items}</ul>'


def example_html(example: Example, palette: Palette, budget: int) -> str:
    """One row of pictures, each of at most ``budget`` bytes."""
    size = example.label.shape[::-1]
    image = example.image if example.image.shape[1::-1] == size else cv2.resize(example.image, size,
                                                                                interpolation=cv2.INTER_AREA)
    scale = min(1.0, PICTURE_WIDTH / size[0])
    target = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    pictures = [("input", image), ("prediction", overlay(image, example.pred, palette)),
                ("truth", overlay(image, example.label, palette)),
                ("errors", error_map(example.pred, example.label, image))]
    panels = []
    for name, picture in pictures:
        source = embed(cv2.resize(picture, target, interpolation=cv2.INTER_AREA), budget)
        text = esc(f"{example.name}, {name}")
        panels.append(f'<button type="button" aria-label="Enlarge {text}"><img alt="{text}" width="{target[0]}" '
                      f'height="{target[1]}" src="{source}"><span>{name}</span></button>')
    return (f'<figure class="example"><figcaption><span>{esc(example.name)}</span><span class="num">mIoU '
            f'{percent(example.miou)} %</span></figcaption><div class="panels">{"".join(panels)}</div></figure>')


def embed(picture: np.ndarray, budget: int) -> str:
    """A picture (uint8 RGB) as a data URL; quality and size give way until it fits the budget (bytes)."""
    picture = picture[..., ::-1]
    for quality, scale in ((82, 1.0), (70, 1.0), (60, 0.75), (50, 0.5), (40, 0.25), (30, 0.12)):
        smaller = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
        data = cv2.imencode(".webp", smaller, [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
        if len(data) <= budget:
            break
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def training_section(history: Sequence[dict[str, str]]) -> str:
    """Loss, learning rate, and validation scores over the steps."""
    if not history:
        return ""
    epochs = {number(row["step"]): row.get("epoch") for row in history}

    def at(step: float) -> str:
        return f"step {step:g}" + (f", epoch {epochs[step]}" if epochs.get(step) else "")

    def reader(x: Sequence[float], y: Sequence[float], form: str):
        values = dict(zip(x, y, strict=True))
        return lambda step: f"{at(step)}: {form.format(values[step])}"

    charts = []
    x, y = column(history, "train", "loss")
    if x:
        mean = smooth(y, len(y) // 25)
        lines = [Series("loss", x, mean)] + ([Series("single steps", x, y, raw=True)] if len(y) > 40 else [])
        charts.append(line_chart("Training loss", lines[::-1], reader(x, mean, "{:.3f}"), f"last {mean[-1]:.3f}"))
    x, y = column(history, "eval", "miou")
    if x:
        scores = [Series("mIoU", x, [100 * v for v in y], dots=True)]
        charts.append(line_chart("Validation mIoU, %", scores, reader(x, [100 * v for v in y], "{:.2f} %"),
                                 f"best {percent(max(y), 2)} %"))
    x, y = column(history, "train", "lr")
    if x:
        charts.append(line_chart("Learning rate", [Series("lr", x, y)], reader(x, y, "{:.3g}"), f"peak {max(y):.3g}"))
    x, y = column(history, "train", "images_per_s")
    note = f'<p class="note">{throughput(y)}</p>' if x else ""
    return f'{note}<div class="charts">{"".join(charts)}</div>' if charts else ""


def throughput(values: Sequence[float]) -> str:
    """The training speed in words."""
    return f"Median speed {sorted(values)[len(values) // 2]:.1f} images per second."


def details_section(data: ReportData) -> str:
    """Configuration, environment and the evaluation's own settings, folded away."""
    settings = {key: value for key, value in data.scores.items()
                if isinstance(value, (str, int, float)) and key not in ("miou", "pixel_accuracy", "fwiou", "present")}
    blocks = [("Evaluation", table_of(settings)), ("Environment", table_of(data.environment)),
              ("Configuration", f'<pre tabindex="0">{esc(data.config.strip())}</pre>' if data.config.strip() else "")]
    return "".join(f"<details><summary>{title}</summary>{content}</details>" for title, content in blocks if content)


def table_of(values: Mapping) -> str:
    """Names and values as a table."""
    if not values:
        return ""
    rows = "".join(f'<tr><th scope="row">{esc(str(key))}</th><td>{esc(plain(value))}</td></tr>'
                   for key, value in values.items())
    return f'<table class="plain"><tbody>{rows}</tbody></table>'


def plain(value: object) -> str:
    """A value as text; lists and mappings as JSON."""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, tuple)) else str(value)
