"""Starts programs as several ranks on the CPU."""
import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**changes) -> dict:
    """Without what an outer launcher may have left, and with this interpreter's msrun on the PATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MS_", "RANK_", "OMPI_", "DEVICE_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DEVICE_TARGET": "CPU",
                   "MASTER_PORT": str(free_port()), **changes}


def launch(folder: Path, ranks: int, *words: str) -> None:
    """Runs a Python program alone or as several ranks."""
    command = [sys.executable, *words]
    if ranks > 1:
        command = ["msrun", f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={free_port()}",
                   f"--log_dir={folder / 'logs'}", "--join=True", "--cluster_time_out=300", *words]
    done = subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True, timeout=900,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
