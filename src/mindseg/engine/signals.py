"""SIGTERM and SIGINT: the first signal asks a run to stop after its current step, a second one interrupts it."""
import signal
import threading
from types import FrameType


class StopRequested(Exception):
    """Request to leave an evaluation; the run then saves its state and exits."""


class StopSignals:
    """Context manager that notes signals; outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        received: Name of the first signal, such as ``SIGTERM``, or "".
    """

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises an exception if a signal came.

        Raises:
            StopRequested: A signal came.
        """
        if self.received:
            raise StopRequested(self.received)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
