"""``mindseg doctor`` on a machine whose operators were replaced: doctor_worker.py doctor …

``MINDSEG_TEST_DEVICE`` names the machine:

- ``float16``: the first Ascend 910, emulated; ``wrong``: the same with an overflow check of the values alone;
- ``ranks``: synchronised BatchNorm with Ascend's kernel; ``wrong ranks``: with that kernel for every size of batch;
- ``crash``: a process that ends in a transposed convolution.
"""
import os
import sys
from contextlib import ExitStack
from unittest.mock import patch

import mindspore as ms
from mindspore import ops

from benchmarks.support.chip_numbers import emulated, split_sync_batch_norm
from mindseg.__main__ import main
from mindseg.chips import find_chip
from mindseg.commands import doctor as verb
from mindseg.engine import batch_norm, doctor
from mindseg.engine.batch_norm import SyncBatchNorm
from mindseg.errors import run_main
from tests.support.steps import isfinite


def sync_batch_norm(channels: int, eps: float, momentum: float, size: int, kernel: bool) -> SyncBatchNorm:
    """The layer as on a platform that has a kernel."""
    return SyncBatchNorm(channels, eps, momentum, size, kernel=True)


def install(kind: str, stack: ExitStack) -> None:
    """Replaces operators."""
    if kind in ("float16", "wrong"):
        stack.enter_context(patch.object(verb.chips, "installed_chip", lambda: find_chip("910A")))
        stack.enter_context(emulated("float16"))
    if kind == "wrong":
        stack.enter_context(patch.object(ms.amp, "all_finite", isfinite))
    if kind.endswith("ranks"):
        stack.enter_context(split_sync_batch_norm())
        stack.enter_context(patch.object(doctor, "SyncBatchNorm", sync_batch_norm))
    if kind == "wrong ranks":
        stack.enter_context(patch.object(batch_norm, "KERNEL_COUNT", 1))
    if kind == "crash":
        stack.enter_context(patch.object(ops, "Conv2DTranspose", lambda *words, **options: os.abort()))


if __name__ == "__main__":
    with ExitStack() as stack:
        verb.PROGRAM = [sys.executable, __file__]
        install(os.environ["MINDSEG_TEST_DEVICE"], stack)
        run_main(main)
