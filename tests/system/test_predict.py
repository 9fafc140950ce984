"""predict.py: every kind of input, every kind of picture, and what happens to broken ones."""
import json
import sys
import zipfile

import cv2
import numpy as np
import pytest

import mindspore as ms

from mindseg.commands import import_labels
from mindseg.commands import predict as predict_verb
from mindseg.commands.predict import predict
from mindseg.data.datasets import CITYSCAPES
from mindseg.deploy.exporter import export_network
from mindseg.errors import DataError, UserError
from mindseg.inference.inputs import find_files
from mindseg.inference.jobs import Output
from mindseg.inference.loading import open_checkpoint
from mindseg.inference.video import frames
from mindseg.outputs import RECORD_NAME
from tests.support.annotations import read_labels
from tests.support.data import random_label
from tests.support.evaluation import CONFIG, make_checkpoint, street_config
from tests.support.hostile import check_refused
from tests.support.networks import make_tiny_network
from tests.support.predictors import FunctionPredictor
from tests.support.runner import MEAN, STD

SIZE = (48, 64)


def dark_is_road(images, size):
    """A model that can be checked by eye: bright pixels are sky, dark ones road."""
    assert images.shape[1:3] == tuple(size)
    return np.where(images[..., 0] > 127, 10, 0).astype(np.uint8)


MODEL = FunctionPredictor(dark_is_road, CITYSCAPES)


def street(bright_columns: int) -> np.ndarray:
    image = np.full((*SIZE, 3), 30, np.uint8)
    image[:, :bright_columns] = 220
    return image


def write_video(path, count, rate=10.0, codec="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, SIZE[::-1])
    assert writer.isOpened()
    for number in range(count):
        writer.write(street(number % SIZE[1]))
    writer.release()
    return path


def break_frame(path, number):
    """Overwrites the data of one JPEG frame of an AVI, its place in the file stays."""
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data) - 1) if data[i:i + 2] == b"\xff\xd8"]
    for i in range(starts[number - 1], starts[number] - 16):
        data[i] = 0
    path.write_bytes(data)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def read_video(path):
    found = list(frames(path))
    assert all(frame is not None for frame in found)
    return found


def test_all_pictures_of_one_image(tmp_path):
    path = tmp_path / "in put.png"
    cv2.imwrite(str(path), street(20))
    out = tmp_path / "out"
    kinds = ("overlay", "mask", "ids", "labelIds", "side", "confidence")
    assert predict(MODEL, str(path), Output(out, kinds, 1.0)) == 0
    expected = np.zeros(SIZE, np.uint8)
    expected[:, :20] = 10
    ids = cv2.imread(str(out / "in put_ids.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(ids, expected)
    official = cv2.imread(str(out / "in put_labelIds.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(official, np.where(expected == 10, 23, 7))
    confidence = cv2.imread(str(out / "in put_confidence.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(confidence, street(20)[..., 0])
    from PIL import Image
    with Image.open(out / "in put_mask.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.array(mask), expected)
    overlay = cv2.imread(str(out / "in put_overlay.png"))[..., ::-1]
    assert overlay[0, 0].tolist() == [70, 130, 180]                # at full opacity, the colour of sky
    assert overlay[0, 40].tolist() == [128, 64, 128]
    side = cv2.imread(str(out / "in put_side.png"))
    assert side.shape[1] == 2 * SIZE[1]
    assert side.shape[0] > SIZE[0]                                  # the legend is below
    assert np.array_equal(side[:SIZE[0], :SIZE[1]], street(20))
    assert (out / "legend.png").is_file()
    assert summary(out)["images"] == 1


def test_folder_goes_on_after_a_broken_image(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "sub/a.png", "a.jpg"):
        cv2.imwrite(str(folder / name), street(10))
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:len(whole) // 2])
    (folder / "notes.txt").write_text("no image")
    assert predict(MODEL, str(folder), Output(tmp_path / "out", ("ids",))) == 3
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*_ids.png"))
    assert written == ["a.jpg_ids.png", "a.png_ids.png", "b_ids.png", "sub/a_ids.png"]
    found = summary(tmp_path / "out")
    assert (found["images"], found["failures"]) == (4, 1)
    assert "cut.png" in found["failed"][0]["file"]
    assert "cut off" in found["failed"][0]["error"]


def test_results_inside_the_input_folder_are_not_read_again(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), street(10))
    for _ in range(2):
        assert predict(MODEL, str(tmp_path), Output(tmp_path / "out", ("overlay",))) == 0
        assert summary(tmp_path / "out")["images"] == 1


def test_glob_and_submission(tmp_path):
    for name in ("town_000000_000019_leftImg8bit.png", "town_000001_000019_leftImg8bit.png", "other.jpg"):
        cv2.imwrite(str(tmp_path / name), street(30))
    out = tmp_path / "out"
    assert predict(MODEL, str(tmp_path / "town*.png"), Output(out, (), submission=True)) == 0
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.namelist() == ["town_000000_000019_labelIds.png", "town_000001_000019_labelIds.png"]


@pytest.mark.parametrize(("text", "error"), [
    ("nothing.png", "no such file"), ("*.png", "matches"), ("", "no images"), ("notes.txt", "neither an image")])
def test_inputs_that_are_none(tmp_path, text, error):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=error):
        find_files(str(tmp_path / text))


def test_ten_seconds_of_video(tmp_path):
    path = write_video(tmp_path / "drive.avi", 100)
    assert predict(MODEL, str(path), Output(tmp_path / "out", ("overlay", "mask", "side", "ids"))) == 0
    assert summary(tmp_path / "out")["images"] == 100
    for kind, width in (("overlay", SIZE[1]), ("mask", SIZE[1]), ("side", 2 * SIZE[1])):
        target = tmp_path / "out" / f"drive_{kind}.mp4"
        found = read_video(target)
        assert len(found) == 100
        assert found[0].shape[1] == width
        capture = cv2.VideoCapture(str(target))
        assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10.0)
        capture.release()
    masks = read_video(tmp_path / "out" / "drive_mask.mp4")
    assert np.abs(masks[60][24, 20].astype(int) - (180, 130, 70)).max() < 25       # sky, in BGR, after a lossy codec
    ids = sorted((tmp_path / "out" / "drive_ids").iterdir())
    assert len(ids) == 100
    assert np.count_nonzero(cv2.imread(str(ids[40]), cv2.IMREAD_UNCHANGED)[24]) == pytest.approx(40, abs=3)


def test_broken_frames_are_named_and_the_time_stays_right(tmp_path):
    path = write_video(tmp_path / "drive.avi", 20)
    break_frame(path, 8)
    break_frame(path, 1)
    assert predict(MODEL, str(path), Output(tmp_path / "out", ("overlay", "ids", "confidence"))) == 3
    found = summary(tmp_path / "out")
    assert found["images"] == 18
    assert [item["file"].rsplit("#")[1] for item in found["failed"]] == ["1", "8"]
    assert len(read_video(tmp_path / "out" / "drive_overlay.mp4")) == 20
    for kind in ("ids", "confidence"):
        assert len(list((tmp_path / "out" / f"drive_{kind}").iterdir())) == 20
    assert cv2.imread(str(tmp_path / "out" / "drive_confidence" / "000011.png"), cv2.IMREAD_UNCHANGED)[9, 9] > 200


def test_video_that_ends_early_keeps_what_there_is(tmp_path):
    path = write_video(tmp_path / "drive.avi", 40)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert predict(MODEL, str(tmp_path), Output(tmp_path / "out", ("overlay",))) == 3
    found = summary(tmp_path / "out")
    assert found["failures"] == 2
    assert 1 <= found["images"] < 40
    assert len(read_video(tmp_path / "out" / "drive_overlay.mp4")) == found["images"]
    with pytest.raises(DataError, match="cannot be opened"):
        list(frames(tmp_path / "empty.mp4"))


def test_an_interrupted_video_leaves_nothing(tmp_path):
    path = write_video(tmp_path / "drive.avi", 10)
    calls = []

    def stops(images, size):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return dark_is_road(images, size)

    with pytest.raises(KeyboardInterrupt):
        predict(FunctionPredictor(stops, CITYSCAPES), str(path), Output(tmp_path / "out", ("overlay",)))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"legend.png", "summary.json", RECORD_NAME}
    assert summary(tmp_path / "out") == {"status": "running"}


def test_colour_order_reaches_the_model(tmp_path):
    image = np.zeros((*SIZE, 3), np.uint8)
    image[..., 2] = 200                                             # red, in OpenCV's order
    cv2.imwrite(str(tmp_path / "red.png"), image)
    for order, expected in (("RGB", 10), ("BGR", 0)):
        predictor = FunctionPredictor(dark_is_road, CITYSCAPES, color_order=order)
        predict(predictor, str(tmp_path / "red.png"), Output(tmp_path / order, ("ids",)))
        ids = cv2.imread(str(tmp_path / order / "red_ids.png"), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(ids)) == {expected}


def test_checkpoint_on_an_image_of_odd_size(tmp_path):
    cfg = street_config(tmp_path, "eval.resize={rule: short_side, size: 64, center_crop: [64, 64]}",
                        "eval.label_size=input")
    path = make_checkpoint(tmp_path / "x.ckpt", cfg)
    cv2.imwrite(str(tmp_path / "odd.png"), np.random.default_rng(0).integers(0, 256, (51, 77, 3), np.uint8))
    predictor = open_checkpoint(path, cfg, whole_image=True)
    assert predict(predictor, str(tmp_path / "odd.png"), Output(tmp_path / "out", ("ids",))) == 0
    assert cv2.imread(str(tmp_path / "out" / "odd_ids.png"), cv2.IMREAD_UNCHANGED).shape == (51, 77)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny network and the folder that holds it as ONNX and MINDIR."""
    folder, network = tmp_path_factory.mktemp("exported"), make_tiny_network()
    cfg = street_config(folder, f"export.height={SIZE[0]}", f"export.width={SIZE[1]}")
    export_network(network, cfg, {"checkpoint": "x.ckpt", "checkpoint_sha256": "0" * 64}, ["ONNX", "MINDIR"], folder)
    return network, folder


@pytest.mark.parametrize("file_format", ["ONNX", "MINDIR"])
def test_exported_model(exported, tmp_path, rng, run_cli, file_format):
    network, folder = exported
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "same.png"), image)
    cv2.imwrite(str(tmp_path / "in" / "larger.png"), cv2.resize(image, (100, 70)))
    done = run_cli("predict.py", "--manifest", folder / "deploy.yaml", "--file_format", file_format, "--input",
                   tmp_path / "in", "--output", tmp_path / "out", "--save", "ids", "overlay")
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "out")["images"] == 2
    x = ((image[..., ::-1] - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)[None]
    logits = network(ms.Tensor(np.ascontiguousarray(x))).asnumpy()[0]
    ids = cv2.imread(str(tmp_path / "out" / "same_ids.png"), cv2.IMREAD_UNCHANGED)
    best, second = np.sort(logits, 0)[:-3:-1]
    clear = best - second > 1e-4 * np.abs(logits).max()     # elsewhere another program may round differently
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(ids[clear], logits.argmax(0)[clear])
    assert cv2.imread(str(tmp_path / "out" / "larger_ids.png"), cv2.IMREAD_UNCHANGED).shape == (70, 100)
    assert cv2.imread(str(tmp_path / "out" / "same_overlay.png")).shape == (*SIZE, 3)


def test_a_mindir_model_gets_the_device_that_eval_would_take(exported, tmp_path, monkeypatch):
    """onnxruntime needs none; MindSpore must be set up before the model is opened."""
    cv2.imwrite(str(tmp_path / "a.png"), street(10))
    asked, opened = [], predict_verb.open_exported
    monkeypatch.setattr(predict_verb, "setup_logging", lambda: None)
    monkeypatch.setattr(predict_verb, "setup_runtime", lambda r: asked.append((r.device_target, r.mode)))
    monkeypatch.setattr(predict_verb, "open_exported", lambda *words: asked.append(words[1]) or opened(*words))
    for file_format in ("ONNX", "MINDIR"):
        monkeypatch.setattr(sys, "argv", ["predict.py", "--manifest", str(exported[1]), "--input", str(tmp_path),
                                          "--output", str(tmp_path / "out"), "--file_format", file_format])
        assert predict_verb.main() == 0
    assert asked == ["onnx", ("auto", "graph"), "mindir"]


def test_a_model_without_confidence_is_refused_before_the_work(exported, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), street(10))
    monkeypatch.setattr(sys, "argv", ["predict.py", "--manifest", str(exported[1]), "--input", str(tmp_path / "a.png"),
                                      "--output", str(tmp_path / "out"), "--save", "ids", "confidence"])
    monkeypatch.setattr(predict_verb, "setup_logging", lambda: None)
    check_refused(predict_verb.main, exported[1] / "deploy.yaml", "no confidence", "export.confidence=true")
    assert not (tmp_path / "out").exists()


def test_random_weights_are_refused(run_cli, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), street(10))
    words = ("predict.py", "--config", CONFIG, "--input", tmp_path / "a.png", "--output", tmp_path / "out")
    done = run_cli(*words)
    assert done.returncode == 2
    assert "--ckpt_path --manifest is required" in done.stderr
    cfg = street_config(tmp_path, "model.variant=segmentron")
    done = run_cli(*words, "--ckpt_path", make_checkpoint(tmp_path / "other.ckpt", cfg))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "model.variant" in done.stderr
    assert not (tmp_path / "out").exists()


def test_polygons_of_labelme_and_coco_become_the_mask_again(tmp_path, monkeypatch, rng):
    for name in ("a", "sub/b"):
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.where(random_label(rng, *SIZE, [0, 1])[..., None] > 0, 220, 30) * np.ones(3))
    out = tmp_path / "out"
    assert predict(MODEL, str(tmp_path / "in"), Output(out, ("ids", "json"))) == 0
    (tmp_path / "polygons").mkdir()
    for name in ("a", "sub/b"):
        ids = cv2.imread(str(out / f"{name}_ids.png"), cv2.IMREAD_UNCHANGED)
        tree = json.loads((out / f"{name}.json").read_text())
        assert (out / name).parent.joinpath(tree["imagePath"]).resolve() == tmp_path / "in" / f"{name}.png"
        assert tree["shares"] == {CITYSCAPES.classes[k]: round((ids == k).mean(), 6) for k in (0, 10)}
        image = cv2.imread(str(tmp_path / "in" / f"{name}.png"))
        assert tree["mean_confidence"] == pytest.approx(image[..., 0].mean() / 255, abs=1e-4)
        (out / f"{name}.json").rename(tmp_path / "polygons" / f"{name[-1]}.json")
    for kind, source in (("labelme", tmp_path / "polygons"), ("coco", out / "coco.json")):
        target = tmp_path / kind
        monkeypatch.setattr("sys.argv", ["mindseg import-labels", "--format", kind, "--input", str(source), "--images",
                                         str(tmp_path / "in"), "--output", str(target), "--classes",
                                         *CITYSCAPES.classes, "--val_share", "0.5"])
        import_labels.main()
        labels = read_labels(target)
        assert len(labels) == 2
        for name, label in labels.items():
            ids = cv2.imread(str(out / f"{'sub/' if name.endswith('b') else ''}{name[-1]}_ids.png"), 0)
            assert np.array_equal(label, ids + 1)       # before the classes comes "background"


def test_frames_have_polygons_too(tmp_path):
    video = write_video(tmp_path / "v.avi", 3)
    out = tmp_path / "out"
    assert predict(MODEL, str(video), Output(out, ("json",))) == 0
    assert sorted(path.name for path in (out / "v_json").iterdir()) == [f"00000{k}.json" for k in (1, 2, 3)]
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [f"v_json/00000{k}.png" for k in (1, 2, 3)]
    shape = json.loads((out / "v_json" / "000003.json").read_text())["shapes"]
    assert {CITYSCAPES.classes[item["category_id"] - 1] for item in coco["annotations"]} == {"road", "sky"}
    assert [item["label"] for item in shape] == ["road", "sky"]
