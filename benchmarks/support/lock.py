"""The time in which a piece of work holds Python's lock (GIL), so that no other thread can run Python."""
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Use:
    """Time that a piece of work used, in seconds.

    Attributes:
        held: Lock held, but for parts of less than the 50 us or so that a thread needs to wake up; on a busy machine,
            for parts of less than its wait for a processor.
        cpu: Processor time of all threads of the process, without the one that measures.
    """
    held: float
    cpu: float


class _Waiter(threading.Thread):
    """A thread that wants the lock all the time; what it sleeps is the time in which others hold the lock."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.running, self.stop = threading.Event(), False
        self.slept = self.cpu = 0.0

    def run(self) -> None:
        before = _clocks()
        self.running.set()
        while not self.stop:
            pass
        wall, self.cpu, queued = (end - begin for begin, end in zip(before, _clocks(), strict=True))
        self.slept = max(0.0, wall - self.cpu - queued)


def _clocks() -> tuple[float, float, float]:
    """Seconds of this thread: passed, on a processor, and ready to run while no processor was free."""
    queued = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text(encoding="ascii").split()[1]
    return time.perf_counter(), time.thread_time(), int(queued) / 1e9


def measure(work: Callable[[], object], interval: float = 0.005) -> Use:
    """Runs ``work`` beside a thread that wants the lock all the time. Linux only.

    That thread never sleeps but for the lock. Its sleep is its time less its processor time and the time in which it
    could have run but had no processor.

    Args:
        work: Function without arguments.
        interval: Seconds after which a thread gives the lock to one that wants it, which wakes up then
            and on a busy machine waits for a processor first: longer is more exact, and slower.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    waiter = _Waiter()
    try:
        waiter.start()
        waiter.running.wait()
        cpu = time.process_time()
        work()
        waiter.stop = True
        waiter.join()
        cpu = time.process_time() - cpu
    finally:
        waiter.stop = True
        sys.setswitchinterval(before)
    return Use(waiter.slept, cpu - waiter.cpu)
