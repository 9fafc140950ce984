"""``mindseg doctor`` with its real processes: on this CPU, on replaced operators, and as two ranks."""
import getpass
import json
import socket
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.support.distributed import environment, free_port

pytestmark = pytest.mark.slow
WORKER = str(ROOT / "tests" / "support" / "doctor_worker.py")


def examine(folder, *program, ranks=1, device=""):
    """Runs the verb; returns its exit status, its report by check, and what it printed."""
    command = list(program)
    if ranks > 1:
        command = ["msrun", f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={free_port()}",
                   f"--log_dir={folder / 'logs'}", "--join=True", "--cluster_time_out=300", *command]
    done = subprocess.run([*command, "doctor", "--output", str(folder / "doctor.json")], cwd=folder, timeout=900,
                          env=environment(MINDSEG_TEST_DEVICE=device), capture_output=True, text=True, check=False)
    text = (folder / "doctor.json").read_text(encoding="utf-8")
    for name in (str(ROOT), str(folder), socket.gethostname(), f"/{getpass.getuser()}"):
        assert name not in text
    return done.returncode, {check["name"]: check for check in json.loads(text)["checks"]}, done.stdout + done.stderr


def statuses(found):
    return {name: check["status"] for name, check in found.items()}


def test_the_cpu_passes(tmp_path):
    status, found, printed = examine(tmp_path, sys.executable, "-m", "mindseg")
    assert status == 0, printed
    assert statuses(found) == dict.fromkeys(found, "pass") | {
        "launches": "measured", "copies": "not possible here", "all-reduce": "not possible here"}
    assert found["training"]["value"]["largest difference"] < 2e-5
    assert found["loader"]["value"]["images a second"] > 0


def test_a_wrong_device_that_crashes_too(tmp_path):
    status, found, printed = examine(tmp_path, sys.executable, WORKER, device="wrong")
    assert status == 1, printed
    notes = {name: check["note"] for name, check in found.items() if check["status"] == "fail"}
    assert set(notes) == {"overflow", "precision", "transposed convolution", "training"}, notes
    assert notes["overflow"].startswith("MindSpore's all_finite does not see an overflow")
    assert notes["precision"].startswith("convolution keeps 10 bits of the mantissa, 23 expected; ")
    assert notes["transposed convolution"].startswith("ended by SIGABRT")
    assert " has a loss of " in notes["training"]


@pytest.mark.parametrize(("device", "status"), [("ranks", "pass"), ("wrong ranks", "fail")])
def test_two_ranks(device, status, tmp_path):
    code, found, printed = examine(tmp_path, WORKER, ranks=2, device=device)
    assert (code == 0) == (status == "pass"), printed
    assert found["moving variance"]["status"] == status, found
    assert found["all-reduce"]["status"] == "pass"
    assert {check["status"] for check in found.values()} == {"pass", status, "not possible here"}
    if status == "fail":        # n = 1, 2 of one device instead of 2, 4 of both
        assert found["moving variance"]["note"].startswith("wrong on 2 of 2 devices: 1 x 1x1 values a channel: the "
                                                           "stored variance is 1 beside NumPy's; 2 x 1x1")


def test_msrun_starts_it_as_the_page_says(tmp_path):
    status, found, printed = examine(tmp_path, "python", "-m", "mindseg", ranks=2)
    assert status == 0, printed
    assert found["moving variance"]["status"] == found["all-reduce"]["status"] == "pass"
