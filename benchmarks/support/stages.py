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


def cost(calls: list[Callable], samples: int) -> tuple[float, float, float]:
    """Milliseconds of a sample: processor time of these calls, alone, and Python's lock held, at least and at most."""
    def repeat() -> None:
        for call in calls:
            call()

    repeat()
    began = time.process_time()
    repeat()
    used = time.process_time() - began
    use = lock.measure(repeat)
    return tuple(1000 * seconds / samples for seconds in (used, use.held, use.most))
