"""The report's content: figures, missing parts, hostile names, sizes, histories, and the comparison of runs."""
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mindseg.data.datasets import ADE20K, CITYSCAPES, VOC, voc_palette
from mindseg.data.palettes import default_palette
from mindseg.errors import DataError, UserError
from mindseg.evaluation.evaluator import Example
from mindseg.metrics import ConfusionMatrix
from mindseg.report.charts import column, line_chart, read_history, reliability_chart, smooth, ticks
from mindseg.report.comparison import average, flatten, read_run, write_comparison
from mindseg.report.pages import ReportData, difference, write_report

VOID_TAGS = {"meta", "link", "img", "br", "input"}


class Checker(HTMLParser):
    """Collects ids and text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.tags, self.text = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data):
        self.text.append(data)


def bare(classes=("a", "b", "c"), iou=(0.5, 0.25, None), **scores) -> ReportData:
    return ReportData("Title", classes, voc_palette(len(classes)), {"miou": 0.375, "iou": list(iou), **scores})


def read(path: Path) -> tuple[str, Checker]:
    text = path.read_text(encoding="utf-8")
    return text, Checker(text)


def test_scores_alone_make_a_page(tmp_path):
    text, page = read(write_report(tmp_path / "r.html", bare(iou=(0.5, 0.25, float("nan")), pixel_accuracy=0.8125)))
    words = " ".join(page.text)
    assert "37.5" in words
    assert "81.2" in words
    assert "absent" in words
    assert re.findall(r'<section id="(\w+)"', text) == ["classes"]
    assert len(set(page.ids)) == len(page.ids)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_figures_are_those_of_the_matrix(tmp_path):
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0, 1, 1, 2, 0], np.uint8), np.array([0, 0, 0, 1, 1, 2], np.uint8))
    data = bare(iou=matrix.compute()["iou"])
    data.scores = matrix.compute() | {"images": 1234}
    text, page = read(write_report(tmp_path / "r.html", data))
    # By hand: TP, FP, FN are (2, 1, 1), (1, 1, 1) and (0, 1, 1), so IoU is 50, 33.3 and 0 %; c is always taken for a.
    row = r'<th scope="row">.*?</span>(\w)</th>\s*<td class="bar".*?</td>\s*<td class="num">([\d.]+)'
    cells = re.findall(row, text)
    assert cells == [("a", "50.0"), ("b", "33.3"), ("c", "0.0")]
    words = " ".join(page.text)
    assert "1,234" in words
    assert "100 % of all" in words
    counts = json.loads(re.search(r"data-counts='([^']+)'", text).group(1))
    assert counts == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert re.search(r'class="d" tabindex="0" style="--v:0.67">67<', text)


def test_share_of_the_pixels_settings_and_environment_are_on_the_page(tmp_path):
    data = bare(confusion=[[5, 1, 0], [0, 3, 0], [0, 0, 1]], mode="msflip", images=1234)
    data.config, data.environment = "optim:\n  lr: 0.045", {"mindspore": "2.7.1", "cpu_count": 64}
    text, page = read(write_report(tmp_path / "r.html", data))
    assert "Share of the labelled pixels" in page.text
    bar = re.search(r'<div class="share" role="img" aria-label="([^"]+)">(.*?)</div>', text, re.DOTALL)
    assert bar[1] == "a 60.0 %, b 30.0 %, c 10.0 %"
    assert re.findall(r'style="flex:([\d.]+);--c:rgb\((\d+) (\d+) (\d+)\)"', bar[2]) == [
        (f"{share:.6f}", *map(str, colour)) for share, colour in zip((0.6, 0.3, 0.1), voc_palette(3), strict=True)]
    details = dict(re.findall(r"<details><summary>(\w+)</summary>(.*?)</details>", text, re.DOTALL))
    assert list(details) == ["Evaluation", "Environment", "Configuration"]
    cells = r'<th scope="row">(.*?)</th><td>(.*?)</td>'
    rows = {title: dict(re.findall(cells, part)) for title, part in details.items()}
    assert rows["Environment"] == {"mindspore": "2.7.1", "cpu_count": "64"}
    assert rows["Evaluation"] == {"mode": "msflip", "images": "1234"}
    assert "optim:\n  lr: 0.045" in details["Configuration"]


def test_reliability_is_a_chart(tmp_path):
    rows = [[0.25, 0.75, 1000], [0.9, 0.8, 3000]]
    chart = reliability_chart(rows, 0.2)
    (_, diagonal), (_, points) = chart["lines"]
    (x0, y0), (x1, y1) = diagonal
    for (x, y), (confidence, accuracy, _) in zip(points, rows, strict=True):
        assert x == pytest.approx(x0 + confidence * (x1 - x0), abs=0.06)
        assert y == pytest.approx(y0 + accuracy * (y1 - y0), abs=0.06)
    text, _ = read(write_report(tmp_path / "r.html", bare(ece=0.2, reliability=rows)))
    for words in ("Accuracy by confidence", "calibration error 20.00 %",
                  "confidence 90.0 %: 80.0 % correct, 75.0 % of the pixels"):
        assert words in text
    assert "Accuracy by confidence" not in read(write_report(tmp_path / "s.html", bare()))[0]


def test_nothing_from_outside_and_nothing_unescaped(tmp_path):
    evil = '<script>alert("x")</script>&\'"'
    image = np.zeros((8, 16, 3), np.uint8)
    label = np.zeros((8, 16), np.uint8)
    data = ReportData(evil, (evil, "b"), ((1, 2, 3), (4, 5, 6)),
                      {"miou": 0.5, "iou": [0.5, 0.4], "confusion": [[3, 1], [1, 3]], "checkpoint": evil},
                      subtitle=evil, facts=[(evil, evil)], programs=[(evil, 0.5)],
                      worst=[Example(0.1, evil, image, label, label)], config=f"a: {evil}", environment={evil: evil})
    text, page = read(write_report(tmp_path / "r.html", data))
    assert "<script>alert" not in text
    assert page.tags.count("script") == 1
    assert "default-src 'none'" in text
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"#]{1,9})', text)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"@import|url\(", text)


def test_page_stays_below_5_mb(tmp_path, rng):
    """Even with many large images of pure noise, which no codec can shrink."""
    image = rng.integers(0, 256, (512, 1024, 3), np.uint8)
    ids = rng.integers(0, 19, (512, 1024)).astype(np.uint8)
    examples = [Example(0.1, str(k), image, ids, ids[::-1]) for k in range(6)]
    data = ReportData("Noise", CITYSCAPES.classes, CITYSCAPES.palette, {"miou": 0.1, "iou": [0.1] * 19},
                      worst=examples[:3], best=examples[3:])
    path = write_report(tmp_path / "r.html", data)
    assert path.stat().st_size < 5_000_000
    assert path.read_text().count("data:image/webp;base64,") == 24


def test_image_of_another_size_than_its_label(tmp_path, rng):
    example = Example(0.5, "x", rng.integers(0, 256, (20, 30, 3), np.uint8), np.zeros((40, 60), np.uint8),
                      np.zeros((40, 60), np.uint8))
    data = bare()
    data.worst = [example]
    assert 'width="60" height="40"' in write_report(tmp_path / "r.html", data).read_text()


def test_programs_and_their_distance(tmp_path):
    data = bare()
    data.programs = [("checkpoint", 0.61234), ("runner", 0.61211), ("same", 0.61234)]
    words = " ".join(read(write_report(tmp_path / "r.html", data))[1].text)
    assert "-0.023" in words
    assert difference(0.5, 0.5) == "0"
    assert difference(None, 0.5) == "-"
    assert difference(0.51, 0.5) == "+1.000"


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(DataError, match="3 classes, 3 colours and 2 IoU"):
        bare(iou=(0.5, 0.25))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/r\.html"):
        write_report(tmp_path / "file" / "r.html", bare())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class TestHistory:
    """metrics.csv and its charts."""

    HEAD = "phase,epoch,step,total_steps,loss,lr,data_ms,step_ms,images_per_s,eta_s,miou,pixel_accuracy\n"

    def test_resumed_run(self, tmp_path):
        path = tmp_path / "metrics.csv"
        path.write_text(self.HEAD + "train,1,1,4,3.0,1,,,,,,\ntrain,1,2,4,2.0,1,,,,,,\neval,1,2,4,,,,,,,0.1,0.5\n"
                        "train,2,3,4,9.0,1,,,,,,\ntrain,2,3,4,1.0,1,,,,,,\ntrain,2,4,4,nan,1,,,,,,\n")
        history = read_history(path)
        assert column(history, "train", "loss") == ([1, 2, 3], [3.0, 2.0, 1.0])
        assert column(history, "eval", "miou") == ([2], [0.1])
        assert column(history, "eval", "loss") == ([], [])

    @pytest.mark.parametrize("content", ["a,b\n1,2\n", "phase,step\ntrain,x\n", b"\xff\xfe\x00phase"])
    def test_foreign_file_is_named(self, tmp_path, content):
        path = tmp_path / "metrics.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=r"metrics\.csv"):
            read_history(path)

    def test_one_row_is_enough(self, tmp_path):
        path = tmp_path / "metrics.csv"
        path.write_text(self.HEAD + "train,1,1,1,0.0,0.0,1,1,1,0,,\n")
        data = bare()
        data.history = read_history(path)
        text, _ = read(write_report(tmp_path / "r.html", data))
        assert "Training loss" in text
        assert "nan" not in re.sub(r"<script>.*</script>", "", text, flags=re.S).lower()

    def test_smooth(self, rng):
        values = rng.random(50).tolist()
        expected = [np.mean(values[max(0, k - 3):k + 4]) for k in range(50)]
        np.testing.assert_allclose(smooth(values, 3), expected)
        np.testing.assert_allclose(smooth(values, 0), values)

    @pytest.mark.parametrize("high", [1, 0.003, 4.2, 99.9, 123456, 1e-9])
    def test_ticks(self, high):
        values = ticks(high)
        assert values[0] == 0
        assert values[-1] >= high * 0.999
        assert 2 <= len(values) <= 7
        np.testing.assert_allclose(np.diff(values), values[1] - values[0])

    def test_points_lie_where_they_should(self):
        chart = line_chart("t", ("x", "y"), [("s1", [0, 50, 100], [0.0, 2.0, 4.0])])
        (style, ((x0, y0), (x1, y1), (x2, y2))), = chart["lines"]
        assert style == "s1"
        assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
        assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
        assert y0 > y1 > y2


def make_run(folder: Path, miou: float, lr: float, classes=CITYSCAPES.classes) -> Path:
    folder.mkdir(parents=True)
    record = {"classes": list(classes), "miou": miou, "iou": [miou] * (len(classes) - 1) + [None], "images": 3,
              "confusion": np.eye(len(classes), dtype=int).tolist()}
    (folder / "eval.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(f"optim: {{lr: {lr}, name: sgd}}\ntrain: {{epochs: 2}}\n")
    (folder / "env.json").write_text('{"python": "3.11"}')
    with open(folder / "metrics.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("phase", "epoch", "step", "loss", "lr", "miou"))
        writer.writerows([("train", 1, step, 1 / step, lr, "") for step in range(1, 6)])
        writer.writerow(("eval", 1, 5, "", "", miou))
    return folder


class TestComparison:
    """Several runs on one page."""

    def test_shows_what_differs(self, tmp_path):
        runs = [read_run(make_run(tmp_path / "a", 0.5, 0.1), "a"), read_run(make_run(tmp_path / "b", 0.625, 0.2), "b")]
        text, page = read(write_comparison(tmp_path / "c.html", runs))
        words = " ".join(page.text)
        assert "+12.50" in words
        assert "3 images" in words
        table = text[text.index('<section id="differences"'):]
        cells = r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>'
        assert re.findall(cells, table) == [("optim.lr", "0.1", "0.2")]
        assert text.count('class="matrix"') == 2
        assert len(set(page.ids)) == len(page.ids)

    def test_metrics_of_a_training_are_enough(self, tmp_path):
        folder = tmp_path / "b"
        folder.mkdir()
        (folder / "metrics.csv").write_text("phase,epoch,step,loss,miou,pixel_accuracy\ntrain,1,5,2.0,,\n"
                                            "eval,1,5,,0.625,0.75\neval,2,10,,0.25,0.5\n")
        runs = [read_run(make_run(tmp_path / "a", 0.5, 0.1), "a"), read_run(folder, "b")]
        text, page = read(write_comparison(tmp_path / "c.html", runs))
        words = " ".join(" ".join(page.text).split())
        assert "+12.50" in words
        assert "of step 5, the best of 2 evaluations" in words
        sections = re.findall(r'<section id="(\w+)"', text)
        assert sections[0] == "differences"
        _, page = read(write_comparison(tmp_path / "d.html", [runs[1], runs[1]]))     # no classes at all
        assert "62.50" in " ".join(page.text)

    def test_repeats_are_averaged(self, tmp_path):
        names = ("a", "b", "c", "other")
        runs = []
        for name, miou, seed, rate in zip(names, (0.5, 0.625, 0.75, 0.25), (1, 2, 3, 1), (0.1, 0.1, 0.1, 0.2),
                                          strict=True):
            folder = make_run(tmp_path / name, miou, rate)
            with open(folder / "config.yaml", "a", encoding="utf-8") as stream:
                stream.write(f"runtime: {{seed: {seed}}}\n")
            runs.append(read_run(folder, name))
        mean, other = average([runs[0], runs[3], *runs[1:3]])
        assert other is runs[3]
        assert mean.overall["mean IoU"] == pytest.approx(0.625)
        assert mean.spread["mean IoU"] == pytest.approx(0.125)      # sqrt((0.125**2 + 0 + 0.125**2) / 2)
        np.testing.assert_array_equal(mean.confusion, sum(run.confusion for run in runs[:3]))
        text, page = read(write_comparison(tmp_path / "c.html", [mean, other]))
        assert "± 12.50" in " ".join(" ".join(page.text).split())
        assert "1, 2, 3" in text[text.index('<section id="differences"'):]
        read(write_comparison(tmp_path / "d.html", [mean]))
        with pytest.raises(DataError, match="--average"):
            write_comparison(tmp_path / "e.html", runs * 2)

    def test_refusals(self, tmp_path):
        first = read_run(make_run(tmp_path / "a", 0.5, 0.1), "a")
        with pytest.raises(DataError, match="2 to 6"):
            write_comparison(tmp_path / "c.html", [first])
        other = read_run(make_run(tmp_path / "b", 0.5, 0.1, VOC.classes), "b")
        with pytest.raises(DataError, match="other classes"):
            write_comparison(tmp_path / "c.html", [first, other])
        (tmp_path / "a" / "eval.json").write_text("{")
        with pytest.raises(DataError, match=r"eval\.json"):
            read_run(tmp_path / "a", "a")

    def test_tool(self, tmp_path, run_cli):
        folders = [make_run(tmp_path / name / "20250101-120000", 0.5, 0.1) for name in ("fast scnn", "enet")]
        page = tmp_path / "page.html"
        done = run_cli("compare", *folders, "--output", page)
        assert done.returncode == 0, done.stderr
        assert "fast scnn / enet" in page.read_text()
        done = run_cli("compare", folders[0], tmp_path / "nothing", "--output", tmp_path / "no.html")
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        assert "eval.py" in done.stderr
        assert not (tmp_path / "no.html").exists()


def test_palettes_and_flat_keys(tmp_path):
    assert read_run(make_run(tmp_path / "a", 0.5, 0.1), "a").palette == CITYSCAPES.palette
    assert read_run(make_run(tmp_path / "b", 0.5, 0.1, ADE20K.classes), "b").palette == ADE20K.palette
    folder = make_run(tmp_path / "c", 0.5, 0.1, ("x", "y"))
    assert read_run(folder, "c").palette == default_palette(2)
    with open(folder / "config.yaml", "a", encoding="utf-8") as stream:
        stream.write("data: {palette: [[1, 2, 3], [4, 5, 6]]}\n")
    assert read_run(folder, "c").palette == ((1, 2, 3), (4, 5, 6))
    (folder / "config.yaml").write_text("data: {palette: [red, green]}\n")
    with pytest.raises(DataError, match=r"c: config\.yaml: data\.palette"):
        read_run(folder, "c")
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": []}) == {"a.b": 1, "a.c.d": 2, "e": []}
