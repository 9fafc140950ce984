"""The pages in a real browser: silent, offline, readable on a phone and in the dark, usable by keyboard and touch."""
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mindseg.data.datasets import CITYSCAPES, dataset_info
from mindseg.evaluation.evaluator import Example
from mindseg.evaluation.suspects import Suspects
from mindseg.metrics import ConfusionMatrix
from mindseg.report.charts import read_history
from mindseg.report.comparison import write_comparison
from mindseg.report.pages import ReportData, write_report
from mindseg.report.suspects_page import write_suspects

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
         "--remote-debugging-pipe")

# Contrast (WCAG 2) of every visible piece of text against the nearest painted background; matrix cells have a tint.
CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const background = (node) => {
    for (; node; node = node.parentElement) {
      const style = getComputedStyle(node), colour = rgb(style.backgroundColor);
      const tint = style.backgroundImage.match(/rgba?\\([^)]*\\)/);
      if (tint) {
        const top = rgb(tint[0]), alpha = top[3] ?? 1;
        return colour.slice(0, 3).map((v, k) => v * (1 - alpha) + top[k] * alpha);
      }
      if ((colour[3] ?? 1) > 0.9) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    const style = getComputedStyle(node), size = parseFloat(style.fontSize), colour = rgb(style.color);
    if (!own || !size || !node.getBoundingClientRect().width || node.closest("svg, script, style, .sr")) continue;
    if (style.visibility === "hidden" || colour[3] === 0) continue;
    const [a, b] = [luminance(colour), luminance(background(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (size >= 24 ? 3 : 4.5)) bad.push([node.className, node.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return bad;
})()"""


class Browser:
    """Headless Chromium, spoken to through its debugging pipe."""

    def __init__(self, profile: Path) -> None:
        pairs = [[fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in os.pipe()] for _ in range(2)]
        (child_in, self.write_end), (self.read_end, child_out) = pairs
        command = ["bash", "-c", f'exec "$@" 3<&{child_in} 4>&{child_out}', "bash", CHROMIUM, *FLAGS,
                   f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(child_in, child_out), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(child_in)
        os.close(child_out)
        self.rest, self.count, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def receive(self) -> dict:
        while b"\0" not in self.rest:
            data = os.read(self.read_end, 1 << 20)
            assert data, "the browser has gone"
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **params) -> dict:
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.write_end, json.dumps(request).encode() + b"\0")
        while True:
            message = self.receive()
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, page: Path, width: int, height: int, scheme: str) -> None:
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 700)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 700)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def run(self, script: str):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        codes = {"Enter": 13, "ArrowRight": 39, "ArrowDown": 40, "ArrowLeft": 37, "End": 35, "Escape": 27}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key],
                      **(text if kind == "keyDown" else {}))

    def tap(self, selector: str) -> None:
        """A short touch in the middle of the first such element."""
        x, y = self.run(f"""(() => {{
            const node = document.querySelector({json.dumps(selector)});
            node.scrollIntoView({{behavior: "instant", block: "center", inline: "center"}});
            const box = node.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()""")
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def complaints(self) -> list:
        """Console messages, exceptions, log entries, and requests for anything but the page and its own data."""
        self.run("1")  # whatever was under way has been reported before this answer
        wrong = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                wrong.append(params)
            if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
                wrong.append(params["request"]["url"])
        return wrong

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write_end)
        os.close(self.read_end)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests of this file."""
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def make_data(title: str, seed: int, history: Path, info=CITYSCAPES) -> ReportData:
    """A report with every part, from random predictions."""
    rng, count = np.random.default_rng(seed), len(info.classes)
    matrix, examples = ConfusionMatrix(count), []
    for k in range(4):
        label = rng.integers(0, count, (6, 12)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        pred = np.where(rng.random(label.shape) < 0.2 * k, np.roll(label, 9, 1), label)
        matrix.update(pred, label)
        image = rng.integers(0, 256, (*label.shape, 3), np.uint8)
        examples.append(Example(1 - 0.2 * k, f"image_{k}", image, pred, label))
    scores = matrix.compute() | {"images": 4, "checkpoint": "run/ckpt/best.ckpt", "mode": "whole"}
    return ReportData(title, info.classes, info.palette, scores, subtitle="a run",
                      history=read_history(history), config="a: 1\n",
                      programs=[("MindSpore", scores["miou"]), ("onnxruntime", scores["miou"] - 1e-4)],
                      worst=examples[:1:-1], best=examples[:2], environment={"python": "3.11"}, facts=[("FPS", "22")])


def make_suspects(path: Path, data: ReportData) -> Path:
    """The page of labels to look at, for the examples of a report."""
    suspects, examples = Suspects(len(data.classes)), {example.name: example for example in data.worst}
    for example in examples.values():
        suspects.add(example.name, example.pred, ConfusionMatrix(19).update(example.pred, example.label))
    shown = [(suspect, examples[suspect.name]) for suspect in suspects.ranking()]
    return write_suspects(path, "Labels to look at", "best.ckpt", CITYSCAPES, suspects, shown)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A full report, one of eval.json alone, one of classes with long names, a comparison, and labels to look at."""
    folder = tmp_path_factory.mktemp("pages with space")
    history = folder / "metrics.csv"
    lines = ["phase,epoch,step,total_steps,loss,lr,data_ms,step_ms,images_per_s,eta_s,miou,pixel_accuracy"]
    for step in range(1, 101):
        lines.append(f"train,1,{step},100,{3 / step},{0.01 * (100 - step)},1,2,8.5,3,,")
        if step % 25 == 0:
            lines.append(f"eval,1,{step},100,,,,,,,{step / 200},0.9")
    history.write_text("\n".join(lines) + "\n")
    full, other = make_data("Full report", 1, history), make_data("fast_scnn_cityscapes/20260131-141516", 2, history)
    info = dataset_info({"name": "list", "class_names": [f"class with a long name {k}" for k in range(30)]})
    bare = ReportData("Bare report", CITYSCAPES.classes, CITYSCAPES.palette,
                      {"miou": 0.5, "iou": [0.5] * 18 + [None], "pixel_accuracy": 0.9})
    return {"full": write_report(folder / "full.html", full), "bare": write_report(folder / "bare.html", bare),
            "long": write_report(folder / "long.html", make_data("Long_names" * 8, 3, history, info)),
            "suspects": make_suspects(folder / "suspects.html", full),
            "compare": write_comparison(folder / "compare.html", [full, other])}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("name", "scheme"), [*itertools.product(("full", "bare", "compare"), ("light", "dark")),
                                              ("long", "light"), ("suspects", "light")])
def test_opens_silently_and_is_legible(browser, pages, name, width, scheme):
    browser.open(pages[name], width, 900, scheme)
    assert browser.complaints() == []
    assert browser.run("innerWidth") == width
    assert browser.run("document.scrollingElement.scrollWidth") <= width, "the page scrolls sideways"
    dark = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((v) => v < 60)")
    assert dark == (scheme == "dark")
    assert browser.run(CONTRAST) == []


def test_pictures_are_there(browser, pages):
    browser.open(pages["full"], 1280, 900, "light")
    assert browser.run("[...document.images].filter((i) => i.closest('.panels')).length") == 16
    assert browser.run("[...document.images].every((i) => !i.closest('.panels') || i.naturalWidth > 0)")
    assert browser.run("[...document.images].every((i) => i.closest('dialog') || i.alt)")


def test_everything_that_can_be_focused_has_a_name(browser, pages):
    browser.open(pages["full"], 1280, 900, "light")
    nameless = browser.run("""[...document.querySelectorAll("a, button, summary, [tabindex='0']")].filter((n) =>
        !(n.getAttribute("aria-label") || n.textContent.trim())).map((n) => n.outerHTML.slice(0, 80))""")
    assert nameless == []
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map((n) => Number(n.tagName[1]))")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_matrix_by_keyboard(browser, pages):
    browser.open(pages["full"], 1280, 900, "light")
    browser.run("document.querySelector('.matrix td[tabindex=\"0\"]').focus()")
    assert "road predicted as road: " in browser.run("document.getElementById('readout-1').textContent")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        browser.press(key)
    assert "sidewalk predicted as building: " in browser.run("document.getElementById('readout-1').textContent")
    browser.press("End")
    assert "sidewalk predicted as bicycle: " in browser.run("document.getElementById('readout-1').textContent")
    browser.press("ArrowRight")  # stays inside
    assert browser.run("document.querySelectorAll('.matrix td[tabindex=\"0\"]').length") == 1
    assert browser.complaints() == []


def test_sorting_by_keyboard(browser, pages):
    browser.open(pages["full"], 1280, 900, "light")
    values = "[...document.querySelectorAll('.classes tbody tr')].map((r) => Number(r.children[2].textContent))"
    browser.run("document.querySelector('.classes th:nth-child(3) button').focus()")
    browser.press("Enter")
    assert browser.run(values) == sorted(browser.run(values))
    browser.press("Enter")
    assert browser.run(values) == sorted(browser.run(values), reverse=True)
    assert browser.run("document.querySelector('.classes th[aria-sort]').ariaSort") == "descending"
    browser.open(pages["compare"], 1280, 900, "light")
    values = "[...document.querySelectorAll('#classes tbody tr')].map((r) => r.children[{}].firstChild.data)"
    browser.run("document.querySelector('#classes th:nth-child(3) button').focus()")
    browser.press("Enter")
    scores = list(map(float, browser.run(values.format(2))))
    assert scores == sorted(scores)
    assert len(set(scores)) > 5


def test_chart_and_pictures_by_keyboard(browser, pages):
    browser.open(pages["full"], 1280, 900, "light")
    browser.run("document.querySelectorAll('.chart svg')[1].focus()")
    browser.press("ArrowLeft")
    assert "step 75, epoch 1: 37.50 %" in browser.run("document.querySelectorAll('.chart output')[1].textContent")
    browser.run("document.querySelector('.panels button').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('dialog').open")
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('dialog p').textContent") == "image_3, prediction"
    browser.press("Escape")
    assert not browser.run("document.querySelector('dialog').open")
    assert browser.complaints() == []


EDGES = "[...document.querySelectorAll({})].map((n) => n.getBoundingClientRect()).map((b) => [b.left, b.right])"


def edges(browser: Browser, selector: str) -> np.ndarray:
    """Left and right edges of elements in the window, (N, 2)."""
    found = np.array(browser.run(EDGES.format(json.dumps(selector))))
    assert len(found), selector
    return found


@pytest.mark.parametrize("name", ["full", "long"])
def test_matrix_has_numbers_and_names_on_a_phone(browser, pages, name):
    browser.open(pages[name], 390, 844, "light")
    sizes = np.array(browser.run("""[...document.querySelectorAll(".matrix tbody td:not(.z), .matrix tbody th")]
        .map((n) => [parseFloat(getComputedStyle(n).fontSize), n.clientWidth - n.scrollWidth])"""))
    assert sizes[:, 0].min() >= 10
    assert sizes[:, 1].min() >= 0, "a number or name does not fit its cell"
    cut = browser.run("""[...document.querySelectorAll(".matrix thead .name")].filter((n) =>
        n.getBoundingClientRect().height < 20 || n.scrollHeight > n.clientHeight).map((n) => n.textContent)""")
    assert cut == []
    for end in ("0", "1e6"):        # the left end of the matrix, then the right one: names stay, cells come
        browser.run(f"document.querySelector('.scroll:has(.matrix)').scrollLeft = {end}")
        names, cells = edges(browser, ".matrix tbody th"), edges(browser, ".matrix tbody tr td:last-child")
        assert names.min() >= 0
        assert names.max() < 390 / 3
    assert cells.max() <= 390


def test_scores_and_all_runs_are_on_a_phone(browser, pages):
    browser.open(pages["long"], 390, 844, "light")
    assert edges(browser, ".classes td").max() <= 390 - 16, "the margin is kept"
    browser.open(pages["full"], 390, 844, "light")
    heads = browser.run("[...document.querySelectorAll('.classes thead button')].map((n) => n.textContent)")
    assert heads == ["class", "IoU %", "accuracy %", "pixels %"]
    assert edges(browser, ".classes td, .classes thead button").max() <= 390
    assert (np.diff(edges(browser, ".classes td.num")) > 20).all()
    browser.open(pages["compare"], 390, 844, "light")
    assert edges(browser, ".versus td, .versus thead th").max() <= 390


def test_headline_fills_the_row(browser, pages):
    browser.open(pages["full"], 1280, 900, "light")
    left, right = edges(browser, "header h1")[0]
    boxes = edges(browser, ".headline dl > div")
    assert boxes[:, 0].min() == pytest.approx(left, abs=1)
    assert boxes[:, 1].max() == pytest.approx(right, abs=1)


@pytest.mark.parametrize("width", [1280, 390])
def test_axes_and_classes_have_names(browser, pages, width):
    browser.open(pages["full"], width, 844, "light")
    axes = browser.run("[...document.querySelectorAll('.chart')].map((c) => [...c.querySelectorAll('.axis')]"
                       ".map((t) => t.textContent))")
    assert [sorted(names) for names in axes] == [sorted((name, "training step"))
                                                 for name in ("loss", "mIoU, %", "learning rate")]
    drawings, texts = edges(browser, ".chart svg"), edges(browser, ".chart text")
    assert texts.min() >= drawings.min() - 1
    assert texts.max() <= drawings.max() + 1
    legends = browser.run("""[...document.querySelectorAll(".legend")].map((list) =>
        [...list.children].map((n) => n.firstElementChild.nextSibling.data))""")
    assert sorted(legends[0]) == sorted(legends[1]) == sorted(CITYSCAPES.classes)


def test_touch(browser, pages):
    browser.open(pages["full"], 390, 844, "light")
    browser.tap(".matrix tbody tr:nth-child(2) td:nth-child(4)")
    assert "sidewalk predicted as building: " in browser.run("document.getElementById('readout-1').textContent")
    box = browser.run("document.getElementById('readout-1').getBoundingClientRect().toJSON()")
    assert 0 <= box["top"] < box["bottom"] <= 844, "what a tap shows is in the window"
    browser.tap(".chart svg")
    assert browser.run("document.querySelector('.chart output').textContent").startswith("step ")
    browser.tap(".classes th:nth-child(4) button")
    assert browser.run("document.querySelector('.classes th[aria-sort]').textContent") == "accuracy %"
    browser.tap(".panels button")
    assert browser.run("document.querySelector('dialog').open")
    browser.tap("dialog button[data-step='1']")
    assert browser.run("document.querySelector('dialog p').textContent") == "image_3, prediction"
    assert browser.run("document.querySelectorAll('[title]').length") == 0, "a title is shown to a mouse only"
    assert browser.complaints() == []


def test_the_test_can_fail(browser, pages, tmp_path):
    """A page that does what a report must not do is caught."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><p style='color:#eee;background:#fff'>x</p>"
                   "<script>undefined.x</script>")
    browser.open(bad, 390, 900, "light")
    assert len(browser.complaints()) >= 2
    assert browser.run(CONTRAST)
