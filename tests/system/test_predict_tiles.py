"""predict.py --tile: the same results as without, written row by row, and memory that does not grow with the image."""
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from mindseg.commands import predict as predict_verb
from mindseg.commands.predict import predict
from mindseg.data.datasets import CITYSCAPES
from mindseg.deploy.exporter import export_network
from mindseg.errors import UserError
from mindseg.inference import row_files
from mindseg.inference.exported import open_exported
from mindseg.inference.jobs import Output
from mindseg.inference.pictures import KINDS, PICTURES, VALUES
from mindseg.inference.tiles import Tiling
from mindseg.manifest import load_manifest
from tests.support import ROOT
from tests.support.evaluation import street_config
from tests.support.images import tiff
from tests.support.networks import make_tiny_network
from tests.support.predictors import FunctionPredictor

WEIGHTS = ROOT / "weights" / "fast_scnn_camvid-e133a889.ckpt"


def by_colour(images, size):
    """Each pixel by itself, so that tiles make no difference."""
    assert images.shape[1:3] == tuple(size)
    return images.astype(np.uint16).sum(-1).astype(np.uint8) % 19


MODEL = FunctionPredictor(by_colour, CITYSCAPES)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def pictures(folder):
    """Pixels (and palette) of every PNG in a folder."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as picture:
            found[path.relative_to(folder).as_posix()] = (picture.mode, picture.getpalette(), np.array(picture))
    return found


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_all_kinds_are_those_of_the_whole_image(tmp_path, rng, suffix):
    image = rng.integers(0, 256, (30, 48, 3), np.uint8).repeat(5, 0).repeat(5, 1)[:, :237]
    image[35:70, 50:90] = rng.integers(0, 256, (35, 40, 3))     # where four tiles meet, every pixel differs
    if suffix == "tif":
        (tmp_path / "a.tif").write_bytes(tiff(image, tile=(32, 64), compression=8, big=True))
    else:
        cv2.imwrite(str(tmp_path / "a.png"), image)
    source = str(tmp_path / f"a.{suffix}")
    for name, tiling in (("whole", None), ("tiles", Tiling((64, 80), 24))):
        assert predict(MODEL, source, Output(tmp_path / name, KINDS, submission=True, tiling=tiling)) == 0
    whole, tiles = pictures(tmp_path / "whole"), pictures(tmp_path / "tiles")
    assert set(whole) == set(tiles)
    assert len(whole) == len(PICTURES + VALUES) + 2         # the legend, and a mask of the submission
    polygons = [(tmp_path / name / "a.json").read_text() for name in ("whole", "tiles")]
    assert polygons[0] == polygons[1]
    for name, (mode, palette, pixels) in whole.items():
        assert tiles[name][:2] == (mode, palette)
        np.testing.assert_array_equal(tiles[name][2], pixels, name)


def test_large_pictures_are_reduced_and_masks_are_not(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(row_files.Reduction.__init__, "__defaults__", (2000,))
    image = cv2.resize(rng.integers(0, 256, (8, 9, 3), np.uint8), (171, 140))
    cv2.imwrite(str(tmp_path / "a.png"), image)
    output = Output(tmp_path / "out", ("overlay", "mask"), 0.0, tiling=Tiling((64, 64), 16))
    assert predict(MODEL, str(tmp_path / "a.png"), output) == 0
    assert cv2.imread(str(tmp_path / "out" / "a_mask.png"), cv2.IMREAD_UNCHANGED).shape[:2] == image.shape[:2]
    overlay = cv2.imread(str(tmp_path / "out" / "a_overlay.png"))
    factor = 4                                  # 140 * 171 / 4 ** 2 < 2000 < 140 * 171 / 3 ** 2
    assert overlay.shape[:2] == (len(range(2, 140, factor)), len(range(2, 171, factor)))
    # A square of four pixels has no middle: OpenCV's mean lies half a pixel above and left of the one taken.
    expected = cv2.blur(image, (factor, factor))[2::factor, 2::factor]
    assert np.abs(overlay.astype(int) - expected).mean() < 1
    assert np.abs(overlay.astype(int) - image[2::factor, 2::factor]).max() < 60


def test_video_frames_go_through_tiles(tmp_path, rng, monkeypatch):
    frames = [rng.integers(0, 256, (70, 90, 3), np.uint8) for _ in range(2)]
    monkeypatch.setattr("mindseg.inference.jobs.frames", lambda _: iter(frames))
    cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (90, 70)).release()
    sizes = set()
    model = FunctionPredictor(lambda images, size: sizes.add(size) or by_colour(images, size), CITYSCAPES)
    output = Output(tmp_path / "out", ("ids", "confidence"), tiling=Tiling((32, 64), 8))
    assert predict(model, str(tmp_path / "a.avi"), output) == 0
    assert sizes == {(32, 64)}
    for number, frame in enumerate(frames, 1):
        ids, confidence = (cv2.imread(str(tmp_path / "out" / f"a_{kind}" / f"{number:06d}.png"), cv2.IMREAD_UNCHANGED)
                           for kind in ("ids", "confidence"))
        np.testing.assert_array_equal(ids, by_colour(frame[None], (70, 90))[0])
        np.testing.assert_array_equal(confidence, frame[..., 2])


def test_an_image_that_fails_among_its_tiles_leaves_no_file(tmp_path, rng):
    calls = []

    def fails(images, size):
        calls.append(1)
        if len(calls) == 5:
            raise UserError("too small")
        return by_colour(images, size)

    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (100, 100, 3), np.uint8))
    output = Output(tmp_path / "out", ("ids", "overlay"), tiling=Tiling((64, 64), 8))
    assert predict(FunctionPredictor(fails, CITYSCAPES), str(tmp_path), output) == 3
    assert "b.png: too small" in summary(tmp_path / "out")["failed"][0]["error"]
    assert not list((tmp_path / "out").rglob("b_*"))
    assert not [path for path in (tmp_path / "out").rglob(".*tmp*")]


@pytest.mark.parametrize("output_type", ["logits", "argmax"])
def test_exported_models(tmp_path, rng, monkeypatch, output_type):
    """Logits are blended as a network's own; an arg-max model gives each pixel from the nearest tile."""
    network = make_tiny_network()
    cfg = street_config(tmp_path, "export.height=64", "export.width=96", f"export.output_type={output_type}")
    export_network(network, cfg, {"checkpoint": "x.ckpt", "checkpoint_sha256": "0" * 64}, ["ONNX"], tmp_path / "export")
    predictor = open_exported(load_manifest(tmp_path / "export"))
    assert predictor.blends == (output_type == "logits")
    image = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (160, 128), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    monkeypatch.setattr(predict_verb, "setup_logging", lambda: None)
    words = f"predict.py --manifest {tmp_path}/export --input {tmp_path}/a.png --output {tmp_path}/out --save ids"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--tile", "--overlap", "32"])     # tiles as large as the input
    assert predict_verb.main() == 0
    ids = cv2.imread(str(tmp_path / "out" / "a_ids.png"), cv2.IMREAD_UNCHANGED)
    assert ids.shape == (128, 160)
    rgb = np.ascontiguousarray(image[..., ::-1])
    # The corners belong to one tile alone.
    for rows, columns, tile in ((slice(0, 32), slice(0, 60), (slice(0, 64), slice(0, 96))),
                                (slice(96, 128), slice(100, 160), (slice(64, 128), slice(64, 160)))):
        alone = np.zeros((128, 160), np.uint8)
        alone[tile] = predictor(rgb[None][:, tile[0], tile[1]], (64, 96))[0]
        np.testing.assert_array_equal(ids[rows, columns], alone[rows, columns])


PEAK = r"""
import re, sys
sys.path[:0] = [{src!r}, {root!r}]
import mindseg
from pathlib import Path
from mindseg.commands.predict import main
sys.argv = ["predict.py", *{words!r}]
status = main()
# ru_maxrss would be at least that of the process that started this one.
print(status, int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def peak_memory(*words):
    """Exit status and peak resident memory in MiB of ``predict.py`` in a process of its own."""
    program = PEAK.format(src=str(ROOT / "src"), root=str(ROOT), words=[str(word) for word in words])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()[-2:]))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path):
    """Fast-SCNN on a tiled TIFF of 6000x6000 pixels: 108 MB as pixels, and 36 MB as classes.

    Whole, decoding alone would hold the file's bytes twice and the pixels, another 300 MB.
    """
    small = cv2.resize(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8), (6000, 6000))
    small += np.random.default_rng(1).integers(0, 8, small.shape, np.uint8) // 4
    for name, image in (("small", small[:1200, :1200]), ("large", small)):
        (tmp_path / f"{name}.tif").write_bytes(tiff(image, tile=(256, 256)))
    peaks = {}
    for name in ("small", "large"):
        words = ("--ckpt_path", WEIGHTS, "--input", tmp_path / f"{name}.tif", "--output", tmp_path / name, "--tile",
                 "256", "--save", "mask", "confidence")
        status, peaks[name] = peak_memory(*words)
        assert status == 0
    with Image.open(tmp_path / "large" / "large_mask.png") as mask:
        assert mask.size == (6000, 6000)
    # Rows five times as long: 4 MB more in tiles, decoded in blocks of 256 rows, and seams of 1 MB. The network needs
    # the same memory for both, little for such tiles, so that an image that was read whole would show.
    assert peaks["large"] - peaks["small"] < 100, peaks
