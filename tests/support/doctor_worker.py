"""``mindseg doctor`` on a machine whose operators were replaced: doctor_worker.py doctor …

``MINDSEG_TEST_DEVICE`` names the machine:

- ``wrong``: computes in float16, sees no overflow, and ends in a transposed convolution; its CPU is right;
- ``ranks``: synchronised BatchNorm with Ascend's kernel; ``wrong ranks``: with that kernel for every size of batch.
"""
import os
import sys
from contextlib import ExitStack
from unittest.mock import patch

import mindspore as ms

from benchmarks.support.chip_numbers import emulated, split_sync_batch_norm
from mindseg.__main__ import main
from mindseg.commands import doctor as verb
from mindseg.engine import batch_norm, device_checks, doctor
from mindseg.engine.batch_norm import SyncBatchNorm
from mindseg.errors import run_main
from tests.support.steps import isfinite


def sync_batch_norm(channels: int, eps: float, momentum: float, size: int, kernel: bool) -> SyncBatchNorm:
    """The layer as on a platform that has a kernel."""
    return SyncBatchNorm(channels, eps, momentum, size, kernel=True)


def install(kind: str, stack: ExitStack) -> None:
    """Replaces operators."""
    if kind == "wrong" and verb.REFERENCE not in sys.argv:
        stack.enter_context(emulated("float16"))
        stack.enter_context(patch.object(ms.amp, "all_finite", isfinite))
        stack.enter_context(patch.object(device_checks, "TransposedConv", lambda *words, **options: os.abort()))
    if kind.endswith("ranks"):
        stack.enter_context(split_sync_batch_norm())
        stack.enter_context(patch.object(doctor, "SyncBatchNorm", sync_batch_norm))
    if kind == "wrong ranks":
        stack.enter_context(patch.object(batch_norm, "KERNEL_COUNT", 1))


if __name__ == "__main__":
    with ExitStack() as stack:
        verb.PROGRAM = [sys.executable, __file__]
        install(os.environ["MINDSEG_TEST_DEVICE"], stack)
        run_main(main)
