"""Frames of cameras and of streams from the network, through OpenCV."""
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from mindseg.errors import DataError
from mindseg.inference.inputs import Stream
from mindseg.inference.video import frame_rate, quiet_decoder

_PATIENCE = 10.0        # seconds without an answer or a frame after which a stream counts as dead


class OpenStream:
    """A stream that was opened.

    Args:
        stream: Camera or address.

    Attributes:
        rate: Frames a second, 25 if the stream does not say.

    Raises:
        DataError: It cannot be opened.
    """

    def __init__(self, stream: Stream) -> None:
        self.label, self.is_camera = stream.label, isinstance(stream.source, int)
        quiet_decoder()
        level = cv2.getLogLevel()
        cv2.setLogLevel(0)      # what cannot be opened is reported here, in one line
        if self.is_camera:
            self.capture = cv2.VideoCapture(stream.source)
        else:
            wait = int(1000 * _PATIENCE)
            self.capture = cv2.VideoCapture(stream.source, cv2.CAP_FFMPEG, [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait])
        cv2.setLogLevel(level)
        if not self.capture.isOpened():
            what = "is it connected, and does this user have the right to read it?" if self.is_camera else (
                "is the address right, and does its server run?")
            raise DataError(f"{self.label}: cannot be opened as a stream; {what}")
        self.rate = frame_rate(self.capture)
        self._announced = 0 if self.is_camera else int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def frames(self) -> Iterator[np.ndarray | None]:
        """Frames as BGR uint8 (H, W, 3), until the stream ends; None in the place of one that cannot be decoded.

        Raises:
            DataError: The camera or the connection died.
        """
        seen, asked = 0, time.monotonic()
        while self.capture.grab():
            seen += 1
            yield self.capture.retrieve()[1]
            asked = time.monotonic()
        if time.monotonic() - asked > 0.9 * _PATIENCE:
            raise DataError(f"{self.label}: no frame for {_PATIENCE:.0f} s after {seen} frames; is the network down?")
        if self.is_camera or seen < self._announced:
            count = f" of {self._announced}" if self._announced > 0 else ""
            raise DataError(f"{self.label}: breaks off after {seen}{count} frames; check the "
                            f"{'camera' if self.is_camera else 'connection'}")


@contextmanager
def open_stream(stream: Stream) -> Iterator[OpenStream]:
    """Opens a camera or an address for the time of a block.

    Raises:
        DataError: It cannot be opened.
    """
    opened = OpenStream(stream)
    try:
        yield opened
    finally:
        opened.capture.release()
