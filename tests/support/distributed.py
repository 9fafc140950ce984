"""Start programs as several ranks on the CPU."""
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support import ROOT
from tests.support.train import steps_logged, train_command

SCRIPT = ROOT / "scripts" / "run_distribute_train.sh"
FAST = "configs/fast_scnn/fast_scnn_cityscapes.yaml"


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**changes) -> dict:
    """Return the environment without variables of an outer launcher, with this interpreter's msrun on the PATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MS_", "RANK_", "OMPI_", "DEVICE_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DEVICE_TARGET": "CPU",
                   "MASTER_PORT": str(free_port()), **changes}


def launch(folder: Path, ranks: int, *words: str, timeout: float = 900) -> None:
    """Run a Python program alone or as several ranks; it must succeed."""
    command = [sys.executable, *words]
    if ranks > 1:
        command = ["msrun", f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={free_port()}",
                   f"--log_dir={folder / 'logs'}", "--join=True", "--cluster_time_out=300", *words]
    done = subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True, timeout=timeout,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def script_command(streets: Path, output: Path, ranks: int, *words: str, config: str = FAST, **changes) -> list[str]:
    """Return the distributed form of ``train_command``."""
    options = train_command(config, streets, output, *words, train__global_batch=4, **changes)[4:]
    return ["bash", str(SCRIPT), str(ROOT / config), str(ranks), str(streets), *options]


def run_script(command: list[str], logs: Path) -> subprocess.CompletedProcess:
    """Run a command of ``script_command`` to its end; ``logs`` is the folder of the ranks' logs."""
    return subprocess.run(command, env=environment(LOG_DIR=str(logs)), cwd=ROOT, capture_output=True, text=True,
                          timeout=900, check=False)


def start_script(command: list[str], logs: Path, folder: Path = ROOT, **variables: str) -> subprocess.Popen:
    """Start a command of ``script_command`` in ``folder``, with further environment variables."""
    return subprocess.Popen(command, env=environment(LOG_DIR=str(logs), **variables), cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(process: subprocess.Popen, output: Path, step: int) -> None:
    """Wait until the run below an output folder has logged a step."""
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        folders = list(output.glob("*/*/config.yaml"))
        if folders and steps_logged(folders[0].parent) >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not get that far: " + process.communicate()[0])


def environ(pid: int) -> bytes:
    """Return the environment of a process, entries separated by zero bytes."""
    return Path(f"/proc/{pid}/environ").read_bytes()


def worker_ids(script: int) -> list[int]:
    """Return the train.py processes below msrun, which is below the script."""
    def children(pid: int) -> list[int]:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    return [pid for msrun in children(script) for pid in children(msrun)
            if b"MS_ROLE=MS_WORKER\0" in environ(pid) and b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
