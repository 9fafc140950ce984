"""Photographs of every kind: Python, MindRecord and the runner make the same pixels of them, those that a viewer shows.

The truth is made from the pixels that were written, by NumPy. Lossless files must give it exactly.
"""
import hashlib
import logging
import subprocess

import cv2
import numpy as np
import pytest

from mindspore.mindrecord import FileWriter

from mindseg.commands.predict import Output, predict
from mindseg.commands.preprocess import preprocess
from mindseg.data import decode
from mindseg.data.dataset_stats import DatasetStats
from mindseg.data.datasets import CITYSCAPES, dataset_info, list_samples
from mindseg.data.decode import decode_image, decode_image_rows
from mindseg.data.loader import create_loader
from mindseg.data.mindrecord import Packing, build_records
from mindseg.data.record_files import DESCRIPTION
from mindseg.data.sources import FolderSource
from mindseg.errors import DataError
from mindseg.files import read_bytes
from mindseg.manifest import load_manifest
from tests.support.data import config, write_image
from tests.support.images import encode, exif, tiff, turned, with_exif
from tests.support.photographs import photographs
from tests.support.predictors import FunctionPredictor
from tests.support.runner import TinyModel, build_folder, read_ids, segment

FILES = photographs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name, (content, _, _) in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def test_python_makes_the_pixels_that_a_viewer_shows(folder):
    for name, (_, truth, tolerance) in FILES.items():
        pixels = decode_image(read_bytes(folder / name), name)
        assert pixels.dtype == np.uint8
        assert pixels.shape == truth.shape, name
        assert np.abs(pixels.astype(int) - truth).max() <= tolerance, name
        rows, size = decode_image_rows(read_bytes(folder / name), name, 3, 17)
        assert size == truth.shape[:2]
        assert np.array_equal(rows, pixels[3:17]), name


@pytest.mark.parametrize("kind", ["P", "R"])
def test_the_runner_makes_the_same_pixels(folder, kind):
    """Of a whole image, and of rows of it that overlap, as for tiles."""
    done = subprocess.run([build_folder() / "test" / "check_inputs", kind, *FILES], cwd=folder, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    for name, line in zip(FILES, done.stdout.splitlines(), strict=True):
        pixels = decode_image(read_bytes(folder / name), name)
        digest = hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()
        assert line == f"{pixels.shape[0]}x{pixels.shape[1]} {digest}", name


@pytest.mark.parametrize("codec", ["png", "webp"])
def test_mindrecord_holds_the_same_pixels(folder, tmp_path, codec):
    """The evaluation loader of a packed set gives the pixels that files give, whether or not they were re-encoded."""
    lines = []
    for number, (name, (_, truth, _)) in enumerate(FILES.items()):
        label = tmp_path / f"{number}.png"
        assert cv2.imwrite(str(label), np.zeros(truth.shape[:2], np.uint8))
        (tmp_path / f"sample{number}.tif").symlink_to(folder / name)
        lines.append(f"{tmp_path}/sample{number}.tif,{label}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    cfg = config("camvid", tmp_path, f"data.eval_list={tmp_path}/list.txt", "data.color_order=BGR")
    info = dataset_info(cfg.data)
    build_records(list_samples(cfg.data, "eval"), tmp_path / "x", info, info.label_lut(), Packing(codec), {})
    record = config("camvid", tmp_path, f"data.eval_mindrecord={tmp_path}/x", "data.color_order=BGR")
    batches = list(create_loader(record, "eval", batch_size=1).samples())
    assert len(batches) == len(FILES)
    names = list(FILES)
    for batch in batches:
        name = names[int(batch["names"][0].removeprefix("sample"))]
        assert np.array_equal(batch["image"][0], decode_image(read_bytes(folder / name), name)), name


def test_sets_of_earlier_versions_are_not_turned(tmp_path):
    """They are known by their description; their labels have the size of the unturned image."""
    image = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (40, 24, 3), np.uint8), (0, 0), 3)
    label = encode(".png", np.zeros((40, 24), np.uint8))
    stored = {suffix: encode(suffix, image) for suffix in (".jpg", ".png", ".webp")}
    for description, orientations in (("encoded images and label maps", (1, 3, 6)), (DESCRIPTION, (1, 3))):
        path = tmp_path / f"set{len(orientations)}"
        writer = FileWriter(str(path), 1)
        writer.add_schema({"file_name": {"type": "string"}, "data": {"type": "bytes"}, "label": {"type": "bytes"}},
                          description)
        writer.write_raw_data([{"file_name": f"{number}{suffix}", "label": label,
                                "data": with_exif(content, exif(number), 24, 40)}
                               for suffix, content in stored.items() for number in orientations])
        writer.commit()
        cfg = config("camvid", tmp_path, f"data.eval_mindrecord={path}", "data.color_order=BGR")
        for batch in create_loader(cfg, "eval", batch_size=1).samples():
            number, suffix = batch["names"][0].split(".")
            pixels = cv2.imdecode(np.frombuffer(stored[f".{suffix}"], np.uint8), cv2.IMREAD_COLOR)
            truth = turned(pixels, int(number)) if description == DESCRIPTION else pixels
            assert np.array_equal(batch["image"][0], truth), (description, number, suffix)


def test_the_program_turns_photographs_and_says_so_once(tmp_path):
    model = TinyModel(tmp_path / "model", seed=23)
    image = cv2.GaussianBlur(np.random.default_rng(24).integers(0, 256, (40, 24, 3), np.uint8), (0, 0), 3)
    (tmp_path / "images").mkdir()
    for name, orientation in (("a", 6), ("b", 6), ("c", 8)):
        (tmp_path / "images" / f"{name}.png").write_bytes(with_exif(encode(".png", image), exif(orientation), 24, 40))
    (tmp_path / "images" / "d.tiff").write_bytes(tiff(image.transpose(1, 0, 2)[..., 0]))
    done = segment("run", "--manifest", model.yaml_path, "--input", tmp_path / "images", "--output", tmp_path / "out",
                   "--threads", 1)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {tmp_path}/images/a.png: turned by its EXIF orientation (6); further ones are not named",
                     f"note: {tmp_path}/images/d.tiff: grey, repeated in three channels; further ones are not named"]
    for name, turns in (("a", -1), ("b", -1), ("c", 1)):        # NumPy turns to the left
        assert np.array_equal(read_ids(tmp_path / "out" / f"{name}.png"),
                              model.logits(np.ascontiguousarray(np.rot90(image, turns))).argmax(axis=0))


def test_python_says_once_what_it_converts(folder, monkeypatch, caplog):
    monkeypatch.setattr(decode, "_named", set())
    logger = logging.getLogger("mindseg.data")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)     # other tests may have set up logging
    for name in ("turned6.jpg", "turned3.png", "alpha16.png", "cmyk.jpg", "grey.jpg", "alpha.webp", "cmyk.tif"):
        decode_image(read_bytes(folder / name), name)
    assert caplog.messages == [
        "turned6.jpg: turned by its EXIF orientation (6); further ones are not named",
        "alpha16.png: its transparency is left out; further ones are not named",
        "alpha16.png: 16-bit, rounded to 8 bits; further ones are not named",
        "cmyk.jpg: CMYK, converted to RGB without a colour profile; further ones are not named",
        "grey.jpg: grey, repeated in three channels; further ones are not named"]


def test_a_label_of_the_unturned_picture_is_refused_with_the_reason(tmp_path):
    image = np.zeros((40, 24, 3), np.uint8)
    for kind in ("val", "valannot"):
        (tmp_path / kind).mkdir()
    (tmp_path / "val" / "a.jpg").write_bytes(with_exif(encode(".jpg", image), exif(6), 24, 40))
    assert cv2.imwrite(str(tmp_path / "valannot" / "a.png"), image[..., 0])
    loader = create_loader(config("camvid", tmp_path), "eval")
    with pytest.raises(DataError, match=r"a\.jpg: image is 40x24 but its label is 24x40; the image is turned by its "
                                        r"EXIF orientation \(6\): make the label from the turned picture, or remove"):
        list(loader.samples())


def test_programs_see_the_turned_picture(tmp_path):
    """predict, preprocess and check-dataset: one photograph of 24x40 pixels that is shown as 40x24."""
    image = np.random.default_rng(9).integers(0, 256, (40, 24, 3), np.uint8)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.png").write_bytes(with_exif(encode(".png", image), exif(8), 24, 40))
    write_image(tmp_path / "valannot" / "a.png", np.zeros((24, 40), np.uint8))
    model = FunctionPredictor(lambda images, size: images[..., 0] // 128, CITYSCAPES)
    assert predict(model, str(tmp_path / "val" / "a.png"), Output(tmp_path / "out", ("ids",))) == 0
    shown = np.rot90(image)         # to the left
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / "a_ids.png"), cv2.IMREAD_UNCHANGED), shown[..., 2] // 128)
    runner_model = TinyModel(tmp_path / "model", seed=3)
    manifest = load_manifest(runner_model.yaml_path)
    data = config("camvid", tmp_path).data
    preprocess(manifest, list_samples(data, "eval"), tmp_path / "bins")
    np.testing.assert_allclose(np.fromfile(tmp_path / "bins" / "a.bin", np.float32).reshape(3, 24, 40),
                               runner_model.tensor(shown), atol=1e-6)
    stats = DatasetStats(FolderSource(list_samples(data, "eval")), dataset_info(data).label_lut())
    assert stats.errors == []
    assert stats.sizes == {(40, 24): 1}
    np.testing.assert_allclose(stats.mean_std[0], image.mean((0, 1))[::-1])
