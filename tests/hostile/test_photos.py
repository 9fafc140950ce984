"""predict over hostile folders: what a user owns stays, one bad file never ends a batch, no result replaces another."""
import json
import os
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from mindseg.commands import predict as predict_command
from mindseg.commands.predict import Output, predict
from mindseg.data.datasets import CITYSCAPES, VOC
from mindseg.errors import UserError
from mindseg.outputs import RECORD_NAME
from tests.support.hostile import check_refused, files_below
from tests.support.predictors import FunctionPredictor

SIZE = (24, 32)
MODEL = FunctionPredictor(lambda images, size: (images[..., 0] > 127).astype(np.uint8), CITYSCAPES)


def photo(path: Path, value: int = 200) -> Path:
    """Write a grey photograph; its ids are 1 above 127 and else 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(".png" if path.suffix not in (".jpg", ".webp") else path.suffix,
                        np.full((*SIZE, 3), value, np.uint8))[1]
    path.write_bytes(data.tobytes())
    return path


def video(path: Path, value: int = 200, count: int = 4) -> Path:
    """Write a short video of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name("made.avi")
    writer = cv2.VideoWriter(str(made), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE[::-1])
    for _ in range(count):
        writer.write(np.full((*SIZE, 3), value, np.uint8))
    writer.release()
    return made.rename(path)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(("source", "output"), [
    ("photos", "photos"), ("photos", "."), ("photos/a.png", "photos"), ("photos/*.png", "photos"), ("photos", "link")])
def test_input_and_output_may_not_meet(tmp_path, monkeypatch, source, output):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "photos" / "a.png")
    (tmp_path / "link").symlink_to("photos")
    before = files_below(tmp_path)
    check_refused(lambda: predict(MODEL, source, Output(Path(output))), f"--output {output}", "choose another --output")
    assert files_below(tmp_path) == before


def test_a_users_file_is_kept_and_the_rest_goes_on(tmp_path):
    for name in ("a", "b"):
        photo(tmp_path / "in" / f"{name}.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_overlay.png").write_bytes(b"precious")
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "a_overlay.png").read_bytes() == b"precious"
    assert (tmp_path / "out" / "b_overlay.png").is_file()
    assert "not written by mindseg" in summary(tmp_path / "out")["failed"][0]["error"]
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out", overwrite=True)) == 0
    assert (tmp_path / "out" / "a_overlay.png").read_bytes() != b"precious"
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out")) == 0       # now it is ours


def test_a_users_summary_stops_the_call_before_any_work(tmp_path):
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text("mine")
    check_refused(lambda: predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out")), "summary.json")
    assert files_below(tmp_path / "out") == {"summary.json": b"mine"}


def test_equal_stems_never_replace_each_other(tmp_path):
    values = {"x.png": 0, "x.jpg": 200, "a/x.png": 200, "b/x.png": 0, "y.png": 0, "y.png.png": 200}
    for name, value in values.items():
        photo(tmp_path / "in" / name, value)
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out", ("ids",))) == 0
    found = {path.relative_to(tmp_path / "out").as_posix(): int(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[0, 0])
             for path in (tmp_path / "out").rglob("*_ids.png")}
    assert found == {"x.png_ids.png": 0, "x.jpg_ids.png": 1, "a/x_ids.png": 1, "b/x_ids.png": 0, "y_ids.png": 0,
                     "y.png_ids.png": 1}


def test_videos_with_equal_stems_never_replace_each_other(tmp_path):
    video(tmp_path / "in" / "const.avi", 0)
    video(tmp_path / "in" / "const.mkv", 255)
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out", ("ids", "overlay"))) == 0
    ids = {name: cv2.imread(str(tmp_path / "out" / name / "000001.png"), cv2.IMREAD_UNCHANGED)[0, 0]
           for name in ("const.avi_ids", "const.mkv_ids")}
    assert ids == {"const.avi_ids": 0, "const.mkv_ids": 1}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["const.avi_overlay.mp4",
                                                                              "const.mkv_overlay.mp4"]


def test_frames_of_a_longer_video_do_not_stay(tmp_path):
    path = video(tmp_path / "in" / "drive.avi", count=6)
    output = Output(tmp_path / "out", ("ids",))
    assert predict(MODEL, str(path), output) == 0
    (tmp_path / "out" / "drive_ids" / "mine.txt").write_text("keep")
    video(path, count=3)
    assert predict(MODEL, str(path), output) == 0
    assert sorted(frame.name for frame in (tmp_path / "out" / "drive_ids").iterdir()) == [
        "000001.png", "000002.png", "000003.png", "mine.txt"]


@pytest.mark.parametrize("info", [CITYSCAPES, VOC], ids=lambda info: info.name)
def test_no_name_twice_in_a_submission(tmp_path, info):
    model = FunctionPredictor(lambda images, size: np.zeros(images.shape[:3], np.uint8), info)
    for name in ("a/x.png", "b/x_leftImg8bit.png", "b/y.png"):
        photo(tmp_path / "in" / name)
    check_refused(lambda: predict(model, str(tmp_path / "in"), Output(tmp_path / "out", (), submission=True)),
                  "a/x.png", "b/x_leftImg8bit.png", "would both be 'x'")
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "a" / "x.png").unlink()
    assert predict(model, str(tmp_path / "in"), Output(tmp_path / "out", (), submission=True)) == 0
    if info is CITYSCAPES:
        with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
            assert sorted(archive.namelist()) == ["x_labelIds.png", "y_labelIds.png"]


BAD_NAMES = {"line\nbreak.png": "cannot be used", "back\\slash.png": "cannot be used",
             f"{'n' * 250}.png": "cannot be written"}


@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_one_bad_name_never_ends_a_batch(tmp_path, name):
    photo(tmp_path / "in" / name)
    photo(tmp_path / "in" / "zebra.png")
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out")) == 3
    found = summary(tmp_path / "out")
    assert (found["images"], found["failures"], found["status"]) == (1, 1, "finished")
    assert BAD_NAMES[name] in found["failed"][0]["error"]
    assert (tmp_path / "out" / "zebra_overlay.png").is_file()


def test_names_that_are_not_utf8_work(tmp_path):
    name = os.fsdecode(b"stra\xdfe.png")
    photo(tmp_path / "in" / name)
    photo(tmp_path / "in" / "b.png").write_bytes(b"broken")
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out")) == 3
    assert (tmp_path / "out" / os.fsdecode(b"stra\xdfe_overlay.png")).is_file()
    assert summary(tmp_path / "out")["images"] == 1


def test_a_video_whose_name_is_not_utf8_is_one_line(tmp_path):
    video(tmp_path / "in" / os.fsdecode(b"stra\xdfe.avi"))
    video(tmp_path / "in" / "z.avi")
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out")) == 3
    found = summary(tmp_path / "out")
    assert found["failures"] == 1
    assert "not UTF-8" in found["failed"][0]["error"]
    assert (tmp_path / "out" / "z_overlay.mp4").is_file()


HOSTILE_VIDEOS = {
    "empty.mp4": b"", "text.mp4": b"no video at all\n" * 9, "riff.avi": b"RIFF\xff\xff\xff\xffAVI LIST",
    "matroska.mkv": b"\x1aE\xdf\xa3" + b"\xff" * 64, "box.mov": b"\xff\xff\xff\xffmoov" + b"\0" * 64,
    "webm.webm": b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1f"}


def test_hostile_videos_are_counted_and_the_rest_goes_on(tmp_path, rng):
    for name, content in HOSTILE_VIDEOS.items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    whole = video(tmp_path / "in" / "whole.avi").read_bytes()
    for number in range(20):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(256)
        (tmp_path / "in" / f"mutated{number:02d}.avi").write_bytes(data[:rng.integers(1, len(data))])
    assert predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out")) == 3
    found = summary(tmp_path / "out")
    assert {Path(item["file"].split("#")[0]).name for item in found["failed"]} >= set(HOSTILE_VIDEOS)
    assert (tmp_path / "out" / "whole_overlay.mp4").is_file()
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.name != RECORD_NAME]


def test_a_pattern_that_climbs_out_stays_inside(tmp_path, monkeypatch):
    photo(tmp_path / "other" / "secret.png")
    photo(tmp_path / "in" / "a" / "x.png")
    monkeypatch.chdir(tmp_path)
    assert predict(MODEL, "in/*/../../other/*.png", Output(tmp_path / "deep" / "out")) == 3
    assert "cannot be used" in summary(tmp_path / "deep" / "out")["failed"][0]["error"]
    assert not list(tmp_path.rglob("secret_overlay.png"))


def test_leftovers_of_a_killed_call_are_removed_and_nothing_else(tmp_path):
    photo(tmp_path / "in" / "a.png")
    predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out"))
    number = next(number for number in range(4_000_000, 5_000_000) if not Path(f"/proc/{number}").exists())
    left = tmp_path / "out" / f".a_overlay.mindseg-{number}.tmp.png"
    running = tmp_path / "out" / f".b_overlay.mindseg-{os.getpid()}.tmp.png"
    mine = tmp_path / "out" / ".b.12345.tmp"
    for path in (left, running, mine):
        path.touch()
    predict(MODEL, str(tmp_path / "in"), Output(tmp_path / "out"))
    assert [path.exists() for path in (left, running, mine)] == [False, True, True]


def test_a_full_disk_ends_the_batch_in_one_line(tmp_path, small_disk):
    disk = small_disk(1)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        path = photo(tmp_path / "in" / f"{name}.png")
        cv2.imwrite(str(path), rng.integers(0, 256, (1024, 1024, 3), np.uint8))
    check_refused(lambda: predict(MODEL, str(tmp_path / "in"), Output(disk / "out")), "a_overlay.png", "No space")
    assert summary(disk / "out") == {"status": "running"}
    assert not list((disk / "out").glob("*_overlay.png"))


def test_through_the_program(tmp_path, monkeypatch, capsys):
    """The command line takes --overwrite, and reports a refused folder as one line."""
    photo(tmp_path / "in" / "a.png")
    monkeypatch.setattr(predict_command, "setup_logging", lambda: None)
    monkeypatch.setattr(predict_command, "open_exported", lambda *_: MODEL)
    words = ["predict.py", "--manifest", "m", "--input", str(tmp_path / "in"), "--output"]
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path)])
    with pytest.raises(UserError, match="lies above the input"):
        predict_command.main()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_overlay.png").touch()
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "out"), "--overwrite"])
    assert predict_command.main() == 0
