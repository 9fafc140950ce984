"""``segment run --tile`` and ``--save overlay``: masks and pictures of the image's own size, by NumPy and by Python."""
import os
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from mindseg.drawing import overlay
from mindseg.errors import DataError
from mindseg.inference.results import Results
from mindseg.manifest import load_manifest
from tests.support import ROOT
from tests.support.images import exif, tiff, with_exif
from tests.support.runner import (
    NUM_CLASSES,
    RUN_FILES,
    TinyModel,
    assert_ids_match,
    assert_user_error,
    build_folder,
    make_images,
    read_ids,
    read_summary,
    segment,
)

PALETTE = [[128, 64, 128], [244, 35, 232], [0, 0, 0], [255, 255, 255], [10, 200, 90]]


def make_model(folder, seed, resize=None, **options):
    model = TinyModel(folder, seed, **options)
    model.manifest["dataset"]["palette"] = PALETTE
    model.manifest["input"]["resize"] |= resize or {}
    model.save()
    return model


def run(model, images, output, *options):
    return segment("run", "--manifest", model.yaml_path, "--input", images, "--output", output, *options)


def check_overlay(path, image, ids):
    """The overlay is Python's of the same ids, to one level."""
    picture = cv2.imread(str(path))
    expected = overlay(image[..., ::-1], ids, PALETTE)[..., ::-1]
    assert picture.shape == image.shape
    assert np.abs(picture.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("resize", "content"), [({"rule": "exact", "size": [24, 40]}, (24, 40)),
                                                 ({"rule": "long_side", "size": [24, 40], "pad": True}, (24, 31))])
def test_overlays_have_the_size_of_the_photograph(tmp_path, resize, content):
    """Padding is cut off, and ids are resized to the photograph by the nearest pixel."""
    model = make_model(tmp_path / "model", 1, resize, batch=2)
    photographs = make_images(tmp_path / "images", 3, seed=2, height=61, width=79)
    done = run(model, tmp_path / "images", tmp_path / "out", "--save", "overlay")
    assert done.returncode == 0, done.stderr
    for name, image in photographs.items():
        ids = read_ids(tmp_path / "out" / f"{name}.png")
        assert ids.shape == (24, 40)
        inner = ids[:content[0], :content[1]]
        check_overlay(tmp_path / "out" / f"{name}_overlay.png", image,
                      cv2.resize(inner, (79, 61), interpolation=cv2.INTER_NEAREST_EXACT))
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(photographs) + len(RUN_FILES)


def test_overlays_of_logits_are_of_the_largest(tmp_path):
    model = make_model(tmp_path / "model", 3, output_type="logits")
    (image,) = make_images(tmp_path / "images", 1, seed=4).values()
    assert run(model, tmp_path / "images", tmp_path / "out", "--save", "overlay").returncode == 0
    values = np.fromfile(tmp_path / "out" / "img_000.bin", np.float32).reshape(NUM_CLASSES, 24, 40)
    check_overlay(tmp_path / "out" / "img_000_overlay.png", image, values.argmax(axis=0).astype(np.uint8))


def test_names_that_overlays_would_share_are_refused(tmp_path):
    model = make_model(tmp_path / "model", 5)
    make_images(tmp_path / "images", 1, seed=6)
    (tmp_path / "images" / "img_000_overlay.png").hardlink_to(tmp_path / "images" / "img_000.png")
    done = run(model, tmp_path / "images", tmp_path / "out", "--save", "overlay")
    assert_user_error(done, "img_000.png", "would both give results named 'img_000_overlay.png'")
    assert run(model, tmp_path / "images", tmp_path / "out").returncode == 0


def test_bins_have_no_photographs(tmp_path):
    model = make_model(tmp_path / "model", 7)
    (tmp_path / "bins").mkdir()
    model.tensor(np.zeros((24, 40, 3), np.uint8)).tofile(tmp_path / "bins" / "a.bin")
    for option in (["--save", "overlay"], ["--tile"]):
        assert_user_error(run(model, tmp_path / "bins", tmp_path / "out", *option), "bins", "need images")


def tile_starts(length, tile, overlap):
    """First pixels of the tiles of an axis, after docs/deployment.md."""
    step = tile - overlap
    return [min(k * step, length - tile) for k in range(-(-(length - tile) // step) + 1)]


def nearest(length, tile, overlap):
    """Start of the tile whose centre is nearest to each pixel; of two, that of the first."""
    starts = np.array(tile_starts(length, tile, overlap))
    distances = np.abs(np.arange(length)[:, None] + 0.5 - (starts + tile / 2))
    return starts[distances.argmin(axis=1)]


def ramps(length, tile, overlap):
    """Weights (length,) of each tile of an axis by its start, after docs/deployment.md."""
    starts = tile_starts(length, tile, overlap)
    width = min(64, overlap, (tile - overlap) // 2)
    middles = np.add(starts[:-1], starts[1:]) / 2 + tile / 2
    shares = [np.clip((np.arange(length) + 0.5 - middle) / width + 0.5, 0, 1) for middle in middles]
    return dict(zip(starts, np.subtract([np.ones(length), *shares], [*shares, np.zeros(length)]), strict=True))


class PlaceModel:
    """A model whose answer depends on the place in the tile, so that each pixel tells which tile it comes from."""

    def __init__(self, folder, output_type):
        self.model = TinyModel(folder, 8, height=32, width=48, output_type=output_type)
        self.place = np.random.default_rng(9).normal(scale=3, size=(NUM_CLASSES, 32, 48)).astype(np.float32)
        network = onnx.load(self.model.path)
        conv = next(node for node in network.graph.node if node.op_type == "Conv")
        result, conv.output[0] = conv.output[0], "plain"
        network.graph.initializer.append(numpy_helper.from_array(self.place[None], "place"))
        network.graph.node.insert(list(network.graph.node).index(conv) + 1,
                                  helper.make_node("Add", ["plain", "place"], [result]))
        onnx.save(network, self.model.path)
        self.model.manifest["dataset"]["palette"] = PALETTE
        self.model.save_with_hashes()

    def logits(self, tile):
        return self.model.logits(tile) + self.place


@pytest.mark.parametrize("overlap", [0, 9, 20])
def test_each_pixel_comes_from_the_nearest_tile(tmp_path, overlap):
    net = PlaceModel(tmp_path / "model", "argmax")
    photographs = make_images(tmp_path / "images", 1, seed=10, height=101, width=139)
    done = run(net.model, tmp_path / "images", tmp_path / "out", "--tile", "--overlap", overlap)
    assert done.returncode == 0, done.stderr
    image, ids = photographs["img_000"], read_ids(tmp_path / "out" / "img_000.png")
    tops, lefts = nearest(101, 32, overlap), nearest(139, 48, overlap)
    wrong = 0
    for top in np.unique(tops):
        for left in np.unique(lefts):
            logits = net.logits(image[top:top + 32, left:left + 48])
            mine = ids[np.ix_(tops == top, lefts == left)]
            rows, columns = np.flatnonzero(tops == top) - top, np.flatnonzero(lefts == left) - left
            assert_ids_match(mine, logits[:, rows][:, :, columns])
            wrong += (mine != net.logits(image[:32, :48])[:, rows][:, :, columns].argmax(axis=0)).sum()
    assert wrong > 1000         # which tile a pixel comes from matters
    assert read_summary(tmp_path / "out")["tiles"] == {"height": 32, "width": 48, "overlap": overlap}
    with pytest.raises(DataError, match="without --tile"):
        Results(tmp_path / "out", load_manifest(net.model.yaml_path))


@pytest.mark.parametrize("overlap", [9, 20])
def test_logits_are_blended(tmp_path, overlap):
    net = PlaceModel(tmp_path / "model", "logits")
    photographs = make_images(tmp_path / "images", 1, seed=11, height=101, width=139)
    done = run(net.model, tmp_path / "images", tmp_path / "out", "--tile", "--overlap", overlap, "--save", "overlay")
    assert done.returncode == 0, done.stderr
    image, sums = photographs["img_000"], np.zeros((NUM_CLASSES, 101, 139))
    for top, down in ramps(101, 32, overlap).items():
        for left, across in ramps(139, 48, overlap).items():
            place = (slice(top, top + 32), slice(left, left + 48))
            sums[(slice(None), *place)] += np.outer(down[place[0]], across[place[1]]) * net.logits(image[place])
    ids = read_ids(tmp_path / "out" / "img_000.png")
    assert_ids_match(ids, sums)
    check_overlay(tmp_path / "out" / "img_000_overlay.png", image, ids)


def test_confidence_of_tiles(tmp_path):
    """The network works on single pixels, so every tile that holds a pixel gives the same."""
    model = make_model(tmp_path / "model", 21, temperature=1.5)
    (image,) = make_images(tmp_path / "images", 1, seed=22, height=61, width=79).values()
    done = run(model, tmp_path / "images", tmp_path / "out", "--tile", "--overlap", 5, "--confidence")
    assert done.returncode == 0, done.stderr
    levels = read_ids(tmp_path / "out" / "img_000_confidence.png")
    assert levels.shape == (61, 79)
    for top in tile_starts(61, 24, 5):
        for left in tile_starts(79, 40, 5):
            tile = (slice(top, top + 24), slice(left, left + 40))
            assert np.abs(levels[tile] - model.confidence(image[tile])).max() < 0.51


def test_tiles_of_another_size_go_through_the_resize_rule(tmp_path):
    model = make_model(tmp_path / "model", 12, {"rule": "long_side", "size": [24, 40], "pad": True})
    photographs = make_images(tmp_path / "images", 1, seed=13, height=48, width=200)
    assert run(model, tmp_path / "images", tmp_path / "out", "--tile", "48x50", "--overlap", 0).returncode == 0
    ids = read_ids(tmp_path / "out" / "img_000.png")
    for left in range(0, 200, 50):
        small = model.logits(photographs["img_000"][:, left:left + 50])[:, :24, :25].argmax(axis=0).astype(np.uint8)
        expected = cv2.resize(small, (50, 48), interpolation=cv2.INTER_NEAREST_EXACT)
        assert (ids[:, left:left + 50] == expected).mean() > 0.999


def test_files_of_all_kinds_give_the_same_mask(tmp_path):
    """The TIFFs are read by tiles, by strips, by rows of one strip, and turned."""
    model = make_model(tmp_path / "model", 14)
    image = np.random.default_rng(15).integers(0, 256, (101, 139, 3), dtype=np.uint8)
    rgb, folder = np.ascontiguousarray(image[..., ::-1]), tmp_path / "images"
    folder.mkdir()
    turned = {274: (3, [6])}        # as it is stored, it lies on its left side
    stored = np.ascontiguousarray(rgb.transpose(1, 0, 2)[::-1])
    done, png = cv2.imencode(".png", np.ascontiguousarray(stored[..., ::-1]))
    files = {"plain.png": cv2.imencode(".png", image)[1].tobytes(), "tiles.tif": tiff(rgb, tile=(16, 64)),
             "packed_tiles.tif": tiff(rgb, tile=(32, 32), compression=8, order=">", big=True),
             "strips.tif": tiff(rgb, rows=3, compression=8), "planes.tif": tiff(rgb, rows=7, planes=2),
             "one_strip.tif": tiff(rgb, rows=101), "packed_strip.tif": tiff(rgb, rows=101, compression=8),
             "turned_tiles.tif": tiff(stored, tile=(16, 64), tags=turned), "turned.tif": tiff(stored, tags=turned),
             "turned.png": with_exif(png.tobytes(), exif(6), 101, 139)}
    files["turned_photograph.png"] = files.pop("turned.png")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    done = run(model, folder, tmp_path / "out", "--tile", "--overlap", 5, "--save", "overlay")
    assert done.returncode == 0, done.stderr
    expected = read_ids(tmp_path / "out" / "plain.png")
    assert_ids_match(expected[:24, :40], model.logits(image[:24, :40]))
    for name in files:
        stem = name.rpartition(".")[0]
        np.testing.assert_array_equal(read_ids(tmp_path / "out" / f"{stem}.png"), expected, name)
        check_overlay(tmp_path / "out" / f"{stem}_overlay.png", image, expected)


def test_limits_and_errors(tmp_path):
    model = make_model(tmp_path / "model", 16)
    rgb = np.random.default_rng(17).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    whole = tiff(rgb, tile=(32, 32))
    for name, content in {"a": whole, "b": whole[:len(whole) // 2], "c": whole}.items():
        (folder / f"{name}.tif").write_bytes(content)
    done = run(model, folder, tmp_path / "out", "--tile", "--max_pixels", 24 * 200)
    assert done.returncode == 3, done.stderr        # 300 x 200 pixels are above the limit, a row of tiles is not
    assert {path.name for path in (tmp_path / "out").iterdir()} == RUN_FILES | {"a.png", "c.png"}
    assert [item["file"] for item in read_summary(tmp_path / "out")["failed"]] == [str(folder / "b.tif")]
    assert "not a whole image" in done.stderr
    done = run(model, folder / "a.tif", tmp_path / "out", "--tile", "--max_pixels", 24 * 200 - 1)
    assert done.returncode == 3
    assert "rows 0 to 24" in done.stderr
    assert "--max_pixels" in done.stderr
    for options, words in ((["--tile", "24x40"], ["--tile 24x40", "32 to 16384"]),
                           (["--tile", "--overlap", 24], ["--overlap 24", "0 to 23"]), (["--overlap", 3], ["--tile"]),
                           (["--save", "mask"], ["--save", "mask"])):
        assert_user_error(run(model, folder, tmp_path / "other", *options), *words)


MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_a_large_tiff_is_never_in_memory(tmp_path):
    """An image of 48 MB, of which rows of tiles of 1.5 MB are decoded; a run on a small one is the yardstick."""
    model = make_model(tmp_path / "model", 18, height=64, width=512)
    tile = np.random.default_rng(19).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    memory = {}
    for name, rows in (("small", 512), ("large", 8192)):
        pixels = np.broadcast_to(tile[None, :, None], (rows // 256, 256, 8, 256, 3)).reshape(rows, 2048, 3)
        (folder / f"{name}.tif").write_bytes(tiff(pixels, tile=(256, 256)))
        del pixels
        command = [sys.executable, "-c", MEASURE, build_folder() / "out" / "segment", "run", "--manifest",
                   model.yaml_path, "--input", folder / f"{name}.tif", "--output", tmp_path / name, "--tile",
                   "--overlap", "0"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=dict(os.environ))
        assert done.stdout.split()[-2] == "0", done.stdout + done.stderr
        memory[name] = int(done.stdout.split()[-1]) // 1024
    assert (folder / "large.tif").stat().st_size > 47 << 20
    assert memory["large"] < memory["small"] + 20, memory
    ids = read_ids(tmp_path / "large" / "large.png")
    np.testing.assert_array_equal(ids[:256, :256], ids[-256:, -256:])


@pytest.mark.slow
@pytest.mark.parametrize("output_type", ["argmax", "logits"])
def test_python_and_the_runner_agree(tmp_path, output_type):
    """``predict --manifest --tile`` and the runner give the same mask of an image of 2000 x 1500 pixels."""
    net = PlaceModel(tmp_path / "model", output_type)
    make_images(tmp_path / "images", 1, seed=20, height=1500, width=2000)
    assert run(net.model, tmp_path / "images", tmp_path / "out", "--tile").returncode == 0
    done = subprocess.run([sys.executable, ROOT / "predict.py", "--manifest", net.model.yaml_path, "--input",
                           tmp_path / "images", "--output", tmp_path / "python", "--tile", "32x48", "--save", "mask"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (mask,) = (tmp_path / "python").glob("*_mask.png")
    python = np.array(Image.open(mask))
    assert python.shape == (1500, 2000)
    assert (read_ids(tmp_path / "out" / "img_000.png") == python).mean() > 0.99999
