"""The machine: device, execution mode, seeds, processes. The only place that sets MindSpore's context."""
import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import communication

from mindseg import chips
from mindseg.comm import check_port, cores_of_rank
from mindseg.compat import device_target, set_jit_level, set_mode
from mindseg.errors import UserError, first_line, shorten
from mindseg.files import check_regular
from mindseg.version import __version__

SIMULATION = "MS_SIMULATION_LEVEL"      # set by msrun --sim_level: compile without cards
_POOL = "4GB"           # of addresses; an FCN-8s needs 2.5 GB for a step of two small crops
NEWEST_TESTED = (2, 10)     # requirements.txt allows no newer one


@dataclass(frozen=True)
class Runtime:
    """Device and rank of this process.

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


def setup_runtime(cfg_runtime: dict, training: bool = False) -> Runtime:
    """Sets device, mode, threads and seeds, and joins the other processes if a launcher started several.

    Args:
        cfg_runtime: Section ``runtime``.
        training: The process is to train, which chips for inference cannot.

    Raises:
        UserError: The device is not there, or joining failed.
    """
    r = cfg_runtime
    device_id = _device_id(r.device_id)
    target = configured_device(r, training)
    launched = _adopt_launcher(target)
    if launched and ("MS_ROLE" in os.environ or SIMULATION in os.environ):
        device_id = None        # every process finds its own card: msrun sets the visible devices' order
    elif launched:
        device_id = _rank_table_device(device_id)
    use_device(target, device_id, r.mode)
    if target == "Ascend":
        _tune_ascend(r)
    rank, size = _join() if launched else (0, 1)
    if target == "CPU":
        tune_cpu(r.threads or cores_of_rank(size))
    set_seed(r.seed + rank)  # the step takes rank 0's initial weights; dropout masks differ by rank
    return Runtime(target, device_id or 0, rank, size)


@cache
def tune_cpu(threads: int) -> None:
    """Sets threads and memory of the CPU, once a process; MindSpore refuses other numbers later.

    Left alone, MindSpore times its kernels and chooses their threads, so the order of sums depends on the load of the
    machine. One thread hands out the kernels, and PyNative waits for each operator: a second thread, or a wait for
    several operators, would keep a core busy. Memory is taken in one large piece, in which what is free is found again;
    it costs nothing until it is used.

    Args:
        threads: Threads of each kernel.
    """
    ms.runtime.dispatch_threads_num(1)
    ms.runtime.launch_blocking()
    ms.device_context.cpu.op_tuning.threads_num(threads)
    ms.runtime.set_memory(init_size=_POOL, increase_size="1GB")


def _tune_ascend(cfg_runtime: dict) -> None:
    """Sets what only Ascend knows: optimisation of graphs, HF32, and kernels whose results repeat."""
    level = cfg_runtime.jit_level
    if level == "auto":
        chip = chips.installed_chip()
        level = chip.jit_level.value if chip else None
    if level:
        set_jit_level(level)
    if cfg_runtime.hf32 is not None:
        precision = ms.device_context.ascend.op_precision
        precision.conv_allow_hf32(cfg_runtime.hf32)
        precision.matmul_allow_hf32(cfg_runtime.hf32)
    if cfg_runtime.deterministic:
        ms.set_deterministic(True)


@cache
def warn_untested_version(version: str) -> None:
    """Prints one line if MindSpore is newer than all versions that were tested.

    Args:
        version: MindSpore's version.
    """
    if tuple(map(int, version.split(".")[:2])) > NEWEST_TESTED:
        newest = ".".join(map(str, NEWEST_TESTED))
        print(f"warning: MindSpore {version} is newer than {newest}, the newest version that was tested; if something "
              f"fails, install mindspore<{NEWEST_TESTED[0]}.{NEWEST_TESTED[1] + 1}", file=sys.stderr)


def use_device(target: str = "auto", device_id: int | None = 0, mode: str = "graph") -> None:
    """Sets MindSpore's device and execution mode.

    Args:
        target: ``auto``, ``CPU``, ``Ascend`` or ``GPU``.
        device_id: Number of the device; None: the launcher has chosen it.
        mode: ``graph`` or ``pynative``.

    Raises:
        UserError: The device is not there.
    """
    target = choose_device(target)
    if target == "Ascend" and device_id is not None:
        chips.check_device(device_id)
    warn_untested_version(ms.__version__)
    set_mode(mode)
    try:
        if device_id is None or target == "CPU":
            ms.set_device(target)
        else:
            ms.set_device(target, device_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"runtime.device_target = {target}: device {device_id} cannot be used "
                        f"({first_line(error)}); set runtime.device_target=CPU or another runtime.device_id") from None


def ensure_device(target: str = "auto") -> None:
    """Sets graph mode and the device, also where that device is in use already.

    MindSpore refuses to set a device once a kernel has run, unless it was set before. So it is set here where possible,
    for a later :func:`setup_runtime`.

    Args:
        target: ``auto``, ``CPU``, ``Ascend`` or ``GPU``.

    Raises:
        UserError: The device is not there, or another one is in use.
    """
    try:
        use_device(target)
    except UserError:
        if device_target() != choose_device(target):
            raise


def configured_device(cfg_runtime: dict, training: bool = False) -> str:
    """The device that section ``runtime``, or the variable ``DEVICE_TARGET``, asks for; see :func:`choose_device`."""
    return choose_device(os.environ.get("DEVICE_TARGET", cfg_runtime.device_target), training)


def choose_device(target: str, training: bool = False) -> str:
    """The device itself where ``auto`` is asked for: Ascend if its driver is there, else the CPU.

    Args:
        target: ``auto``, ``CPU``, ``Ascend`` or ``GPU``.
        training: The process is to train. Otherwise the CPU takes the place of a chip that runs converted models only.

    Raises:
        UserError: No such device type, or the chip cannot train.
    """
    if target not in ("auto", "CPU", "Ascend", "GPU"):
        raise UserError(f"DEVICE_TARGET = {target} must be one of auto, CPU, Ascend, GPU")
    if target != "auto":
        return target
    if not chips.has_driver():
        return "CPU"
    chip = chips.installed_chip()
    if chip is None or chip.trains.value:
        return "Ascend"
    if training:
        raise UserError(f"runtime.device_target = auto: the Ascend {chip.name} of this machine cannot train; train on "
                        "an Ascend 910, or set runtime.device_target=CPU")
    return "CPU"


def _device_id(configured: int) -> int:
    value = os.environ.get("DEVICE_ID") or str(configured)
    if not value.isdigit():
        raise UserError(f"DEVICE_ID = {value} is not the number of one device; several are for "
                        "scripts/run_distribute_train.sh with DEVICE_IDS")
    return int(value)


def _rank_table_device(configured: int) -> int:
    """Device of this rank: ``DEVICE_ID``, or what the rank table says."""
    if os.environ.get("DEVICE_ID"):
        return configured
    path, rank = Path(os.environ["RANK_TABLE_FILE"]), os.environ.get("RANK_ID", "0")
    try:
        check_regular(path)
        servers = json.loads(path.read_text(encoding="utf-8"))["server_list"]
        return next(int(device["device_id"]) for server in servers for device in server["device"]
                    if str(device["rank_id"]) == rank)
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
        raise UserError(f"RANK_TABLE_FILE = {path}: names no device for RANK_ID {shorten(rank)} "
                        f"({type(error).__name__}); set DEVICE_ID, or start with scripts/run_distribute_train.sh"
                        ) from None


def _adopt_launcher(target: str) -> bool:
    """Recognises the launcher of a job; returns True if this process is one of several.

    msrun sets ``MS_*``, but no role where it only simulates a job. mpirun sets ``OMPI_COMM_WORLD_*``, which MindSpore's
    CPU back end does not understand, so they are translated, and rank 0 starts the scheduler process that msrun would
    have started. A rank table is left to MindSpore on Ascend up to 2.7, the last versions that read it.
    """
    env = os.environ
    if "MS_ROLE" in env or (SIMULATION in env and int(env.get("RANK_SIZE", "1")) > 1):
        return True
    size = int(env.get("OMPI_COMM_WORLD_SIZE", "1"))
    if size > 1:
        rank, local = int(env["OMPI_COMM_WORLD_RANK"]), env.get("OMPI_COMM_WORLD_LOCAL_SIZE", str(size))
        for name in [name for name in env if name.startswith(("OMPI_", "PMIX_"))]:
            del env[name]
        env.update({"MS_WORKER_NUM": str(size), "MS_NODE_ID": str(rank), "MS_ROLE": "MS_WORKER",
                    "MS_SCHED_HOST": env.get("MS_SCHED_HOST", "127.0.0.1"),
                    "MS_SCHED_PORT": env.get("MS_SCHED_PORT", "8118"), "MINDSEG_LOCAL_RANKS": local})
        if rank == 0:
            check_port("MS_SCHED_PORT", env["MS_SCHED_PORT"], env["MS_SCHED_HOST"])
            _start_scheduler(target)
        return True
    if "RANK_TABLE_FILE" in env:
        if target == "Ascend" and tuple(map(int, ms.__version__.split(".")[:2])) <= (2, 7):
            return int(env.get("RANK_SIZE", "1")) > 1
        print(f"warning: RANK_TABLE_FILE is set, but MindSpore {ms.__version__} on {target} does not read rank tables; "
              "start with scripts/run_distribute_train.sh", file=sys.stderr)
    return False


def _start_scheduler(target: str) -> None:
    code = f"import mindseg, mindspore as ms; ms.set_device({target!r}); ms.communication.init()"
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "MS_ROLE": "MS_SCHED", "PYTHONPATH": path},
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _join() -> tuple[int, int]:
    """Joins the job that a launcher started."""
    try:
        communication.init()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes ({first_line(error)}); see the scheduler's log") from None
    rank, size = communication.get_rank(), communication.get_group_size()
    # Into the process's own log: the launcher knows a process that dies by its number only.
    print(f"rank {rank} of {size} is process {os.getpid()}", file=sys.stderr, flush=True)
    return rank, size


def set_seed(seed: int) -> None:
    """Seeds initial weights. Samples, augmentation and dropout take their own generators from the same number."""
    ms.set_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def environment(runtime: Runtime) -> dict:
    """Versions, machine and commit, for the run folder's ``env.json``."""
    import cv2

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except OSError:
        commit = ""
    return {"project": __version__, "commit": commit, "python": platform.python_version(),
            "mindspore": ms.__version__, "numpy": np.__version__, "opencv": cv2.__version__,
            "platform": platform.platform(), "cpu_count": os.cpu_count(),
            "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""), **asdict(runtime)}


@contextmanager
def profiled(enabled: bool, folder: Path, device_target: str) -> Iterator[None]:
    """Records operators and their times with MindSpore's profiler.

    Args:
        enabled: False records nothing.
        folder: Gets one folder a process, with a trace that chrome://tracing and MindStudio Insight show.
        device_target: CPU, Ascend or GPU.
    """
    if not enabled:
        yield
        return
    activity = ms.profiler.ProfilerActivity
    devices = {"Ascend": [activity.NPU], "GPU": [activity.GPU]}.get(device_target, [])
    with ms.profiler.profile(activities=[activity.CPU, *devices],
                             on_trace_ready=ms.profiler.tensorboard_trace_handler(str(folder))):
        yield
