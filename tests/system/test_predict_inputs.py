"""predict.py: several inputs, cameras and streams, signals, videos by ffmpeg, and sizes far from training."""
import json
import os
import shutil
import signal
import stat
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from mindseg.commands import predict as predict_verb
from mindseg.commands.predict import predict
from mindseg.data.datasets import CITYSCAPES
from mindseg.errors import UserError
from mindseg.inference import encoder
from mindseg.inference.inputs import Stream, find_inputs
from mindseg.inference.jobs import Output
from mindseg.resize import EvalResize
from tests.support.predictors import FunctionPredictor

SIZE = (48, 64)
MODEL = FunctionPredictor(lambda images, size: np.where(images[..., 0] > 127, 10, 0).astype(np.uint8), CITYSCAPES)


def street(bright_columns, size=SIZE):
    image = np.full((*size, 3), 30, np.uint8)
    image[:, :bright_columns] = 220
    return image


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), street(20))
    return str(path)


def video(path, count, codec="MJPG", size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10.0, size[::-1])
    assert writer.isOpened()
    for number in range(count):
        writer.write(street(number % size[1], size))
    writer.release()
    return path


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def results(folder, ending):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{ending}"))


def count_frames(path):
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


@pytest.fixture
def without_ffmpeg(monkeypatch):
    monkeypatch.setattr(encoder, "find_ffmpeg", lambda: None)


@pytest.fixture
def serve(monkeypatch):
    """Starts a file server; ``serve(answer)`` returns its address, ``answer(handler)`` sends what is asked for."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def sends(content, kind="video/mp4", length=None):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(length or len(content)))
        handler.end_headers()
        handler.wfile.write(content)
    return answer


def sends_frames(handler):
    """A network camera: JPEG pictures without end, until nobody listens."""
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    handler.end_headers()
    number = 0
    try:
        while True:
            picture = cv2.imencode(".jpg", street(number % 60))[1].tobytes()
            handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
                                % (len(picture), picture))
            number += 1
    except OSError:
        pass


def test_several_inputs_are_named_below_their_common_folder(tmp_path, without_ffmpeg, monkeypatch):
    photo(tmp_path / "in" / "a" / "x.png")
    photo(tmp_path / "in" / "b" / "x.png")
    photo(tmp_path / "in" / "b" / "deep" / "y.jpg")
    single = photo(tmp_path / "in" / "c" / "x.png")
    clip = video(tmp_path / "in" / "c" / "clip.avi", 3)
    monkeypatch.chdir(tmp_path / "in" / "a")
    texts = [str(tmp_path / "in" / "a"), "../b", single, str(tmp_path / "in" / "c" / "*.avi"), str(clip), single]
    assert predict(MODEL, texts, Output(tmp_path / "out", ("overlay", "ids"))) == 0
    assert results(tmp_path / "out", "_overlay.*") == ["a/x_overlay.png", "b/deep/y_overlay.png", "b/x_overlay.png",
                                                       "c/clip_overlay.mp4", "c/x_overlay.png"]
    assert summary(tmp_path / "out")["images"] == 4 + 3     # what is named twice counts once


def test_good_and_failing_inputs_together(tmp_path, serve, without_ffmpeg):
    good = photo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "in" / "broken.mp4").write_bytes(b"no video")
    address = serve(lambda handler: handler.send_error(404))
    texts = [good, str(tmp_path / "in" / "broken.png"), str(tmp_path / "in" / "broken.mp4"), f"{address}/none.mp4"]
    assert predict(MODEL, texts, Output(tmp_path / "out")) == 3
    found = summary(tmp_path / "out")
    assert (found["status"], found["images"], found["failures"]) == ("finished", 1, 3)
    for text, item in zip(texts[1:], found["failed"], strict=True):
        assert item["file"] == text
        assert item["error"].startswith(text)
        assert "\n" not in item["error"]
    with pytest.raises(UserError, match=r"nothing\.png: no such file"):
        predict(MODEL, [good, str(tmp_path / "nothing.png")], Output(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_names_of_streams(tmp_path):
    texts = ["0", "rtsp://user:secret@10.0.0.7:554/cam/main?token=secret", "http://host/a/clip.mp4", "7",
             "http://host/a/clip.avi", "0"]
    found = find_inputs(texts, tmp_path / "out").streams
    assert list(found.values()) == ["camera0", "10.0.0.7_554_cam_main", "host_a_clip", "camera7", "host_a_clip_2"]
    first, second = list(found)[:2]
    assert first == Stream(0, "camera 0")
    assert second.label == "rtsp://10.0.0.7:554/cam/main"


@pytest.mark.parametrize(("text", "words"), [
    ("file:///etc/passwd", "without file://"), ("concat://a|b", "streams come by"), ("http://[::1", "no address"),
    ("rtsp://host:99999999/x", "no address"), ("12345", "no such file")])
def test_addresses_that_are_none(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        find_inputs([text], tmp_path / "out")


def test_a_file_named_like_a_camera_is_a_file(tmp_path, monkeypatch):
    photo(tmp_path / "0" / "a.png")
    monkeypatch.chdir(tmp_path)
    found = find_inputs(["0"], tmp_path / "out")
    assert list(found.images.values()) == ["a"]
    assert not found.streams


def test_a_stream_from_a_file_server_is_read_to_its_end(tmp_path, serve, without_ffmpeg):
    content = video(tmp_path / "drive.mp4", 12, "mp4v").read_bytes()
    address = serve(sends(content))
    assert predict(MODEL, f"{address}/street/drive.mp4?key=secret", Output(tmp_path / "out", ("overlay", "ids"))) == 0
    name = f"{address.removeprefix('http://').replace(':', '_')}_street_drive"
    assert count_frames(tmp_path / "out" / f"{name}_overlay.mp4") == 12
    frames = sorted((tmp_path / "out" / f"{name}_ids").iterdir())
    assert len(frames) == 12
    assert np.count_nonzero(cv2.imread(str(frames[10]), cv2.IMREAD_UNCHANGED)[24]) == pytest.approx(10, abs=3)
    assert summary(tmp_path / "out")["status"] == "finished"


def test_max_frames_ends_an_endless_stream_and_a_video(tmp_path, serve, without_ffmpeg):
    texts = [f"{serve(sends_frames)}/camera", str(video(tmp_path / "drive.avi", 9))]
    assert predict(MODEL, texts, Output(tmp_path / "out", ("ids",), max_frames=5)) == 0
    assert summary(tmp_path / "out")["images"] == 10
    assert len(results(tmp_path / "out", "drive_ids/*.png")) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stream_with_whole_results(tmp_path, serve, without_ffmpeg, number):
    calls = []

    def stops(images, size):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), number)
        return MODEL(images, size)

    source = f"{serve(sends_frames)}/camera"
    assert predict(FunctionPredictor(stops, CITYSCAPES), source, Output(tmp_path / "out", ("overlay", "ids"))) == 0
    found = summary(tmp_path / "out")
    assert (found["status"], found["images"], found["failures"]) == ("interrupted", 6, 0)
    overlay, = (tmp_path / "out").glob("*_overlay.mp4")
    assert count_frames(overlay) == 6
    assert len(results(tmp_path / "out", "_ids/*.png")) == 6
    assert signal.getsignal(number) is not None


def test_a_signal_among_images_leaves_the_others_out(tmp_path):
    for name in "abc":
        photo(tmp_path / "in" / f"{name}.png")

    def stops(images, size):
        os.kill(os.getpid(), signal.SIGTERM)
        return MODEL(images, size)

    output = Output(tmp_path / "out", ("ids",), submission=True)
    assert predict(FunctionPredictor(stops, CITYSCAPES), str(tmp_path / "in"), output) == 130
    assert summary(tmp_path / "out")["status"] == "interrupted"
    assert results(tmp_path / "out", "_ids.png") == ["a_ids.png"]
    assert not (tmp_path / "out" / "submission.zip").exists()


def test_streams_that_cannot_be_opened_or_die(tmp_path, serve, without_ffmpeg, caplog, capfd):
    content = video(tmp_path / "drive.avi", 40).read_bytes()
    dying = serve(sends(content[:len(content) // 2], "video/avi", len(content)))
    refused = "rtsp://127.0.0.1:1/none"
    caplog.set_level("INFO", "mindseg")
    assert predict(MODEL, [refused, f"{dying}/drive.avi", "99"], Output(tmp_path / "out")) == 3
    errors = {item["file"]: item["error"] for item in summary(tmp_path / "out")["failed"]}
    assert "cannot be opened" in errors[refused]
    assert "cannot be opened" in errors["camera 99"]
    assert "breaks off after" in errors[f"{dying}/drive.avi"]
    assert "of 40 frames" in errors[f"{dying}/drive.avi"]
    kept, = (tmp_path / "out").glob("*_overlay.mp4")
    assert 5 < count_frames(kept) < 40
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == list(errors.values())
    assert "WARN" not in capfd.readouterr().err     # OpenCV's own words


def test_a_camera_that_stops_is_an_error(tmp_path, without_ffmpeg, monkeypatch):
    class Camera:
        left = 3

        def __init__(self, number):
            assert number == 0

        def isOpened(self):
            return True

        def get(self, _):
            return 0.0

        def grab(self):
            Camera.left -= 1
            return Camera.left >= 0

        def retrieve(self):
            return True, street(5)

        def release(self):
            Camera.left = None

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    assert predict(MODEL, "0", Output(tmp_path / "out", ("ids",))) == 3
    assert "camera 0: breaks off after 3 frames" in summary(tmp_path / "out")["failed"][0]["error"]
    assert len(results(tmp_path / "out", "camera0_ids/*.png")) == 3
    assert Camera.left is None


def test_frames_that_change_their_size_end_the_video(tmp_path, without_ffmpeg, monkeypatch):
    sizes = [SIZE, SIZE, (60, 64)]
    monkeypatch.setattr("mindseg.inference.jobs.frames", lambda _: iter([street(5, size) for size in sizes]))
    path = video(tmp_path / "drive.avi", 3)
    assert predict(MODEL, str(path), Output(tmp_path / "out")) == 3
    assert "64x48 to 64x60" in summary(tmp_path / "out")["failed"][0]["error"]
    assert count_frames(tmp_path / "out" / "drive_overlay.mp4") == 2


FAKE_FFMPEG = """#!{python}
import json, os, sys
if "-encoders" in sys.argv:
    print(" V....D libx264  H.264" if "{encoder}" else "nothing")
    sys.exit(0)
with open("{log}", "a") as stream:
    stream.write(json.dumps(sys.argv[1:]) + "\\n")
if "{mode}" == "dies":
    sys.stdin.buffer.read(1000)
    sys.stderr.write("drive.mp4: no room\\nmore\\n")
    sys.exit(9)
data = sys.stdin.buffer.read()
if "{mode}" == "fails":
    sys.stderr.write("at the end\\n")
    sys.exit(4)
open(sys.argv[-1].removeprefix("file:"), "wb").write(data)
"""


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    def make(mode="", encoder_name="libx264"):
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir(exist_ok=True)
        program.write_text(FAKE_FFMPEG.format(python=sys.executable, log=tmp_path / "words", mode=mode,
                                              encoder=encoder_name))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        encoder.find_ffmpeg.cache_clear()
        return program

    yield make
    encoder.find_ffmpeg.cache_clear()


def test_videos_go_through_ffmpeg(tmp_path, fake_ffmpeg, caplog, monkeypatch):
    program = fake_ffmpeg()
    caplog.set_level("INFO", "mindseg")
    frames = [street(number, (49, 63)) for number in range(4)]      # odd sides
    monkeypatch.setattr("mindseg.inference.jobs.frames", lambda _: iter(frames))
    path = video(tmp_path / "drive.avi", 4)
    model = FunctionPredictor(lambda images, size: np.zeros((1, *size), np.uint8), CITYSCAPES)
    assert predict(model, str(path), Output(tmp_path / "out", ("overlay", "ids"), alpha=0.0)) == 0
    words, = map(json.loads, (tmp_path / "words").read_text().splitlines())
    assert words[words.index("-s") + 1] == "64x50"
    assert words[words.index("-framerate") + 1] == "10"
    assert words[words.index("-c:v") + 1] == "libx264"
    assert words[words.index("-i") + 2:].count("yuv420p") == 1
    sent = np.fromfile(tmp_path / "out" / "drive_overlay.mp4", np.uint8).reshape(4, 50, 64, 3)
    assert np.array_equal(sent[:, :49, :63], frames)
    assert np.array_equal(sent[:, 49], sent[:, 48])
    assert np.array_equal(sent[:, :, 63], sent[:, :, 62])
    assert any(f"written by {program} (H.264)" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("mode", "words"), [("dies", "ffmpeg broke off with status 9 ('drive.mp4: no room')"),
                                             ("fails", "ffmpeg broke off with status 4 ('at the end')")])
def test_an_ffmpeg_that_breaks_off_is_named(tmp_path, fake_ffmpeg, mode, words):
    fake_ffmpeg(mode)
    path = video(tmp_path / "drive.avi", 200)
    assert predict(MODEL, str(path), Output(tmp_path / "out", ("overlay", "ids"))) == 3
    failure, = summary(tmp_path / "out")["failed"]
    assert words in failure["error"]
    assert "take it off PATH" in failure["error"]
    assert not list((tmp_path / "out").rglob("*.mp4"))
    assert results(tmp_path / "out", "_ids/*.png")


def test_an_ffmpeg_without_h264_is_not_used(tmp_path, fake_ffmpeg, caplog):
    fake_ffmpeg(encoder_name="")
    caplog.set_level("INFO", "mindseg")
    assert predict(MODEL, str(video(tmp_path / "drive.avi", 3)), Output(tmp_path / "out")) == 0
    assert count_frames(tmp_path / "out" / "drive_overlay.mp4") == 3
    assert any("written by OpenCV (mp4v)" in record.getMessage() for record in caplog.records)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_the_real_ffmpeg(tmp_path, monkeypatch):
    encoder.find_ffmpeg.cache_clear()
    monkeypatch.setattr("mindseg.inference.jobs.frames", lambda _: (street(n, (49, 63)) for n in range(6)))
    path = video(tmp_path / "drive.avi", 6)
    assert predict(MODEL, str(path), Output(tmp_path / "out", ("overlay", "mask"))) == 0
    for kind in ("overlay", "mask"):
        capture = cv2.VideoCapture(str(tmp_path / "out" / f"drive_{kind}.mp4"))
        code = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
        assert code in (b"avc1", b"h264")
        assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
        capture.release()
        assert count_frames(tmp_path / "out" / f"drive_{kind}.mp4") == 6


@pytest.mark.parametrize(("size", "resize", "told"), [
    ((960, 1280), EvalResize(), False), ((1220, 1620), EvalResize(), True), ((230, 310), EvalResize(), True),
    ((245, 325), EvalResize(), False),
    ((1440, 1920), EvalResize("short_side", (480,)), False)])
def test_a_size_far_from_training_is_told_once(tmp_path, caplog, size, resize, told):
    model = FunctionPredictor(lambda images, size: np.zeros((1, *size), np.uint8), CITYSCAPES, resize)
    model.trained_size = (480, 640)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((*size, 3), np.uint8))
    caplog.set_level("INFO", "mindseg")
    assert predict(model, str(tmp_path), Output(tmp_path / "out", ("ids",))) == 0
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == told
    for line in lines:
        assert line.startswith(str(tmp_path / "a.png"))
        assert "short_side, size: 480" in line
        assert ("--tile 480x640" in line) == (size[0] > 480)


@pytest.mark.parametrize(("words", "error"), [
    (["--overlap", "8"], "belongs to --tile"), (["--max_frames", "0"], "at least 1"), (["--tile", "16"], "32 to 16384"),
    (["--tile", "64", "--overlap", "64"], "must be 0 to 63"), (["--tile"], "give HxW or one number")])
def test_options_that_cannot_be(tmp_path, monkeypatch, words, error):
    model = "--ckpt_path" if words == ["--tile"] else "--manifest"
    usual = ["predict.py", model, "m", "--input", "x", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", usual + words)
    with pytest.raises(UserError, match=error):
        predict_verb.main()
