"""The stages of a sample, recorded while the loader runs and measured one by one afterwards."""
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from types import BuiltinFunctionType
from unittest import mock

import cv2
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


def cost(calls: list[Callable], samples: int) -> tuple[float, float, float]:
    """Measures a stage.

    Returns:
        Milliseconds of a sample: processor time of these calls, alone; Python's lock held, at least; and at most, which
        is the processor time outside OpenCV's functions: these release the lock. So do NumPy's on large arrays.
    """
    def repeat() -> None:
        for call in calls:
            call()

    repeat()
    began = time.thread_time()
    repeat()
    used = time.thread_time() - began
    return tuple(1000 * seconds / samples for seconds in (used, lock.measure(repeat).held, outside_opencv(repeat)))


def outside_opencv(work: Callable[[], None]) -> float:
    """Processor seconds that this thread spends outside OpenCV's functions, with those of counting them."""
    functions = {value for value in vars(cv2).values() if isinstance(value, BuiltinFunctionType)}
    inside = began = 0.0

    def note(frame: object, event: str, function: object) -> None:
        nonlocal inside, began
        if event == "c_call":
            began = time.thread_time()
        elif event in ("c_return", "c_exception") and function in functions:
            inside += time.thread_time() - began

    started = time.thread_time()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return time.thread_time() - started - inside
