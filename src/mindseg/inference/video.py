"""Videos in, through OpenCV, and the results of their frames."""
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from mindseg.drawing import Palette, colorize, save_png
from mindseg.errors import DataError
from mindseg.files import temporary_name
from mindseg.inference.encoder import VideoFile, create_video
from mindseg.outputs import OutputFolder

_GIVE_UP = 25       # frames that fail in a row before the rest of a video counts as lost
_FASTEST = 1000     # frames a second; a larger number is a damaged header
# What is broken is reported by us, by frame.
_QUIET = {"OPENCV_FFMPEG_LOGLEVEL": "-8"}


def video_facts(path: Path) -> tuple[float, int]:
    """Frames a second (25 if the file does not say) and the announced number of frames (0: unknown).

    Raises:
        DataError: OpenCV cannot take the file's name.
    """
    capture = _open(path)
    rate, total = frame_rate(capture), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return rate, max(total, 0)


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Frames a second of a video or stream, 25 if it does not say."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate <= _FASTEST else 25.0


def quiet_decoder() -> None:
    """Keeps OpenCV's decoder from writing to stderr; works before the first video or stream is opened."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def _open(path: Path) -> cv2.VideoCapture:
    quiet_decoder()
    try:
        str(path).encode()
    except UnicodeEncodeError:      # OpenCV would crash
        raise DataError(f"{path}: the name is not UTF-8, which OpenCV needs for a video; rename the file") from None
    return cv2.VideoCapture(str(path))


def frames(path: Path) -> Iterator[np.ndarray | None]:
    """The frames of a video as BGR uint8 (H, W, 3); None in the place of one that cannot be decoded.

    Raises:
        DataError: The file cannot be opened, or ends before the last frame it announces.
    """
    capture = _open(path)
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: cannot be opened as a video; it is damaged or of an unknown format")
        announced, seen, lost = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0, 0
        while seen + lost < announced or (announced <= 0 and not lost):
            frame = capture.retrieve()[1] if capture.grab() else None
            if frame is None:
                lost += 1       # reported only once another frame follows: at the end of a file nothing is broken
                if lost > _GIVE_UP:
                    break
                continue
            yield from [None] * lost
            seen, lost = seen + lost + 1, 0
            yield frame
        if announced > seen:
            raise DataError(f"{path}: ends after frame {seen} of {announced}; the file is cut off")
    finally:
        capture.release()


def is_lossless(kind: str) -> bool:
    """Tells whether a kind of result is exact numbers, which no lossy video can hold."""
    return kind in ("ids", "labelIds", "confidence")


class FrameSink:
    """Writer of one kind of result of a video: an mp4, or a folder of PNGs for numbers, which no lossy video holds.

    Args:
        target: Path of the result without kind and suffix.
        kind: ``overlay``, ``side`` (RGB), ``mask`` (ids that get colours), ``ids``, ``labelIds`` or ``confidence``
            (kept as they are).
        rate: Frames a second.
        palette: Colours of a mask.
        output: Output folder, which the target lies in.

    Raises:
        UserError: A file of that name exists and was not written by this program.
    """

    def __init__(self, target: Path, kind: str, rate: float, palette: Palette, output: OutputFolder) -> None:
        self.kind, self.rate, self.palette, self.output = kind, rate, palette, output
        self.lossless = is_lossless(kind)
        self.path = Path(f"{target}_{kind}" if self.lossless else f"{target}_{kind}.mp4")
        self.partial = temporary_name(self.path)
        if not self.lossless:
            output.claim(self.path)
        self.writer: VideoFile | None = None
        self.last: np.ndarray | None = None
        self.owed: list[int] = []

    def write(self, number: int, picture: np.ndarray) -> None:
        """Adds a frame: RGB (H, W, 3), ids or confidence (H, W); numbers start at 1.

        Raises:
            UserError: Such a video cannot be written there.
            DataError: The frame has another size than those before.
        """
        self.last = picture
        for index in (*self.owed, number):
            self._write(index, picture)
        self.owed = []

    def again(self, number: int) -> None:
        """Repeats the previous frame in the place of a broken one, or the first good one if there is none."""
        if self.last is None:
            self.owed.append(number)
        else:
            self._write(number, self.last)

    def close(self, finished: bool) -> None:
        """Gives the video its name, or removes what was written if the work was broken off.

        Args:
            finished: All frames were added.
        """
        if self.lossless and finished:      # an earlier result may have had more frames
            self.output.remove_old(self.path.relative_to(self.output.folder).as_posix())
        if self.writer is not None:
            try:
                if self.writer.close(finished):
                    os.replace(self.partial, self.path)
            finally:
                self.partial.unlink(missing_ok=True)

    def _write(self, number: int, picture: np.ndarray) -> None:
        if self.lossless:
            frame = self.path / f"{number:06d}.png"
            self.output.claim(frame)
            save_png(frame, picture)
            return
        pixels = colorize(picture, self.palette) if self.kind == "mask" else picture
        if self.writer is None:
            self.writer = create_video(self.path, self.partial, pixels.shape[:2], self.rate)
        self.writer.write(pixels)
