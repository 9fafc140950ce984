"""The shell scripts: environments that users have, and ports that others have."""
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

CONFIG = "configs/enet/enet_camvid.yaml"
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("ascend310_infer/*.sh")])


def run(command: str, **variables: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, "PATH": path, **variables})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_that_changes_folders_forgets_cdpath_first(script):
    text = script.read_text(encoding="utf-8")
    moves = [match.start() for match in re.finditer(r"(^|\$\(|[;&] *)cd ", text, re.M)]
    if moves:
        assert 0 <= text.find("\nunset CDPATH") < min(moves)


@pytest.mark.parametrize("cdpath", [str(ROOT), ".", f"/nowhere:{ROOT}"])
def test_cdpath_does_no_harm(cdpath):
    done = run("export CDPATH; source scripts/common.sh; echo $ROOT", CDPATH=cdpath)
    assert (done.stdout, done.stderr) == (f"{ROOT}\n", "")
    done = run("bash scripts/convert_lite.sh nothing", CDPATH=cdpath, PYTHON="/usr/bin/env", PYTHONPATH="")
    assert f"{ROOT}\n{ROOT}" not in done.stdout + done.stderr
    done = run("bash scripts/run_distribute_train.sh configs/none.yaml 2", CDPATH=cdpath)
    assert (done.returncode, done.stderr) == (1, "error: configs/none.yaml: no such file\n")


def launch(port: str, **variables: str) -> str:
    """Starts a job, which must fail before any process of it runs; gives its one line."""
    done = run(f"bash scripts/run_distribute_train.sh {CONFIG} 2", MASTER_PORT=port, DEVICE_TARGET="CPU",
               LOG_DIR="/nonexistent/logs", **variables)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: MASTER_PORT = ")
    return line


@pytest.mark.parametrize("port", ["text", "0", "70000", "-1", "80 80", "1;2"])
def test_an_odd_port_is_named(port):
    launch(port)


def test_a_port_in_use_is_named_at_once():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"MASTER_PORT = {port} cannot be used on 127.0.0.1 (Address already in use)" in launch(port)
        # Another host does not listen, so its own ports do not matter; this one has an error of another kind.
        done = run(f"bash scripts/run_distribute_train.sh {CONFIG} 2", MASTER_PORT=port, NODE_NUM="2", NODE_RANK="1",
                   LOG_DIR="/proc/nonexistent")
        assert "MASTER_PORT" not in done.stderr
