"""The stages of a sample, recorded while the loader runs and measured one by one afterwards."""
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from unittest import mock

from support import lock

from mindseg.data import loader, sources, transforms

SAMPLE = "sample"
# Name, object, attribute; the sample contains those between it and "batch".
STAGES = (("read", sources, "_read_bytes"), (SAMPLE, loader._Decoder, "__call__"),
          ("decode label", loader, "decode_checked_label"), ("decode image", loader, "decode_image_rows"),
          ("choose window", transforms.ScaleCrop, "draw"), ("geometry", transforms, "resize"),
          ("colour", transforms.ColorJitter, "__call__"), ("batch", loader, "_stack"))


def record(run: Callable[[], object]) -> dict[str, list[Callable]]:
    """Runs the loader; returns the calls of each stage, ready to be repeated."""
    calls: dict[str, list[Callable]] = {name: [] for name, _, _ in STAGES}

    def recorded(name: str, function: Callable) -> Callable:
        @wraps(function)
        def call(*args, **kwargs):
            calls[name].append(partial(function, *args, **kwargs))
            return function(*args, **kwargs)
        return call

    with ExitStack() as patches:
        for name, owner, attribute in STAGES:
            patches.enter_context(mock.patch.object(owner, attribute, recorded(name, getattr(owner, attribute))))
        run()
    return calls


def cost(calls: list[Callable], samples: int, seconds: float = 1.0) -> tuple[float, lock.Use]:
    """Measures a stage.

    Args:
        calls: Of the stage, for ``samples`` samples.
        samples: Number of samples.
        seconds: Least processor time of the measurement of the lock.

    Returns:
        Processor time of a sample in ms, alone; and how much of it holds Python's lock.
    """
    def repeat() -> None:
        for call in calls:
            call()

    repeat()
    began = time.thread_time()
    repeat()
    used = time.thread_time() - began
    rounds = max(1, round(seconds / used))
    return 1000 * used / samples, lock.measure(lambda: [repeat() for _ in range(rounds)])
