"""Videos out: by the program ffmpeg as H.264, which every browser plays, or by OpenCV as MPEG-4 part 2."""
import os
import shutil
import subprocess
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from mindseg.errors import DataError, UserError, shorten

_SECONDS = 60               # that ffmpeg may take to finish a file, or to list its encoders
_SECONDS_AFTER_ERROR = 5


class VideoFile(Protocol):
    """A video that is being written."""

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, uint8 RGB (H, W, 3).

        Raises:
            UserError: The encoder broke off.
            DataError: The frame has another size than those before.
        """

    def close(self, finished: bool) -> bool:
        """Ends the file.

        Args:
            finished: All frames were added; otherwise nobody needs the file.

        Returns:
            The file is whole and needed.

        Raises:
            UserError: The encoder broke off.
        """


@lru_cache
def find_ffmpeg() -> str | None:
    """Path of an ffmpeg that encodes H.264; None: there is none on PATH."""
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    try:
        encoders = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, text=True,
                                  errors="replace", stdin=subprocess.DEVNULL, timeout=_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return program if "libx264" in encoders else None


def describe_encoder() -> str:
    """The program that writes videos, for the log."""
    program = find_ffmpeg()
    return f"{program} (H.264)" if program else "OpenCV (mp4v); an ffmpeg with libx264 on PATH would give H.264"


def create_video(path: Path, partial: Path, size: tuple[int, int], rate: float) -> VideoFile:
    """Starts a video.

    Args:
        path: File, for messages.
        partial: Name while it is written, with the same suffix.
        size: Height and width of the frames; odd ones are made even by repeating the last row or column, as both
            encodings need it.
        rate: Frames a second.

    Raises:
        UserError: Such a video cannot be written there.
    """
    program = find_ffmpeg()
    return _Ffmpeg(program, path, partial, size, rate) if program else _OpenCV(path, partial, size, rate)


def _even(frame: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    """The frame with even sides, in BGR order, contiguous."""
    if frame.shape[:2] != size:
        height, width = frame.shape[:2]
        raise DataError(f"{path}: the size of the frames changes from {size[1]}x{size[0]} to {width}x{height}; cut the "
                        "video there")
    return cv2.copyMakeBorder(np.ascontiguousarray(frame[..., ::-1]), 0, size[0] % 2, 0, size[1] % 2,
                              cv2.BORDER_REPLICATE)


def _even_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height."""
    return size[1] + size[1] % 2, size[0] + size[0] % 2


class _OpenCV:
    def __init__(self, path: Path, partial: Path, size: tuple[int, int], rate: float) -> None:
        self.path, self.size = path, size
        width, height = _even_size(size)
        self.writer = cv2.VideoWriter(str(partial), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
        if not self.writer.isOpened():
            raise UserError(f"{path}: OpenCV cannot write a video of {width}x{height} there; choose another --output, "
                            "or --save ids")

    def write(self, frame: np.ndarray) -> None:
        self.writer.write(_even(frame, self.size, self.path))

    def close(self, finished: bool) -> bool:
        self.writer.release()
        return finished


class _Ffmpeg:
    """ffmpeg, which reads the frames from a pipe; in a session of its own Ctrl-C does not reach it."""

    def __init__(self, program: str, path: Path, partial: Path, size: tuple[int, int], rate: float) -> None:
        self.path, self.size, self.failed = path, size, False
        width, height = _even_size(size)
        words = ["-hide_banner", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "bgr24",
                 "-s", f"{width}x{height}", "-framerate", f"{rate:.6g}", "-i", "pipe:0", "-an", "-c:v", "libx264",
                 "-pix_fmt", "yuv420p", "-movflags", "+faststart", f"file:{partial}"]
        self.messages = os.fdopen(os.memfd_create("ffmpeg"), "w+b")     # a pipe could fill up
        try:
            self.process = subprocess.Popen([program, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                            stderr=self.messages, start_new_session=True)
        except OSError as error:
            self.messages.close()
            raise UserError(f"{path}: {program} cannot be started ({error.strerror}); mend it or take it off PATH"
                            ) from None

    def write(self, frame: np.ndarray) -> None:
        pixels = _even(frame, self.size, self.path)
        try:
            self.process.stdin.write(pixels)
        except OSError:     # ffmpeg no longer reads
            self._finish(_SECONDS_AFTER_ERROR)
            raise self._error() from None

    def close(self, finished: bool) -> bool:
        if self.failed:
            return False
        if finished:
            self._finish(_SECONDS)
        else:
            self.process.kill()
            self._finish(_SECONDS_AFTER_ERROR)
        if finished and self.process.returncode != 0:
            raise self._error()
        self.messages.close()
        return finished

    def _finish(self, seconds: float) -> None:
        """Waits until ffmpeg has ended; ends it if that takes too long."""
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _error(self) -> UserError:
        self.failed = True
        self.messages.seek(0)
        lines = self.messages.read(4096).decode(errors="replace").strip().splitlines()
        self.messages.close()
        return UserError(f"{self.path}: ffmpeg broke off with status {self.process.returncode} "
                         f"({shorten(lines[0], 160) if lines else 'no message'}); free space or mend ffmpeg, or take "
                         "it off PATH: OpenCV then writes the video")
