"""The machine: device, execution mode, seeds, processes. The only place that sets MindSpore's context."""
import os
import platform
import random
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import communication

import src
from src.errors import UserError, first_line


@dataclass(frozen=True)
class Runtime:
    """Where this process runs.

    Attributes:
        device_target: CPU, Ascend or GPU.
        device_id: Device of this process.
        rank: Rank among the processes of the job.
        size: Processes of the job.
    """
    device_target: str
    device_id: int
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the one process that writes files."""
        return self.rank == 0


def setup_runtime(cfg_runtime: dict) -> Runtime:
    """Sets device, mode, threads and seeds, and joins the other processes if a launcher started several.

    Args:
        cfg_runtime: Section ``runtime``.

    Raises:
        UserError: The device is not there, or joining failed.
    """
    r = cfg_runtime
    device_id = int(os.environ.get("DEVICE_ID", r.device_id))
    target = _choose_device(os.environ.get("DEVICE_TARGET", r.device_target))
    ms.set_context(mode=ms.GRAPH_MODE if r.mode == "graph" else ms.PYNATIVE_MODE)
    launched = "MS_ROLE" in os.environ
    try:
        # With a launcher every process finds its own card: msrun sets the visible devices' order.
        if launched or target == "CPU":
            ms.set_device(target)
        else:
            ms.set_device(target, device_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"runtime.device_target = {target}: device {device_id} cannot be used "
                        f"({first_line(error)}); set runtime.device_target=CPU or another runtime.device_id") from None
    if target == "CPU" and r.threads:
        ms.runtime.dispatch_threads_num(r.threads)
        ms.device_context.cpu.op_tuning.threads_num(r.threads)
    rank, size = _join() if launched else (0, 1)
    set_seed(r.seed + rank)  # initial weights are broadcast from rank 0; dropout masks differ by rank
    return Runtime(target, device_id, rank, size)


def _choose_device(wanted: str) -> str:
    if wanted not in ("auto", "CPU", "Ascend", "GPU"):
        raise UserError(f"DEVICE_TARGET = {wanted} is not one of auto, CPU, Ascend, GPU")
    if wanted != "auto":
        return wanted
    return "Ascend" if Path("/dev/davinci_manager").exists() else "CPU"


def _join() -> tuple[int, int]:
    """Joins the job that msrun started and switches data parallelism on."""
    try:
        communication.init()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes ({first_line(error)}); see the scheduler's log") from None
    rank, size = communication.get_rank(), communication.get_group_size()
    if size > 1:
        # Both switches are off by default; without the broadcast different initial weights diverge silently.
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True,
                                     parameter_broadcast=True, device_num=size)
    return rank, size


def set_seed(seed: int) -> None:
    """Seeds initial weights. Samples, augmentation and dropout take their own generators from the same number."""
    ms.set_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def environment(runtime: Runtime) -> dict:
    """What the run folder's ``env.json`` holds: versions, machine, commit."""
    import cv2

    def git(*words: str) -> str:
        folder = Path(src.__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except OSError:
        commit = ""
    return {"project": src.__version__, "commit": commit, "python": platform.python_version(),
            "mindspore": ms.__version__, "numpy": np.__version__, "opencv": cv2.__version__,
            "platform": platform.platform(), "cpu_count": os.cpu_count(),
            "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""), **asdict(runtime)}
