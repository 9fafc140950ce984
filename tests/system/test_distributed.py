"""Several processes on the CPU: equal to one process, started, stopped and failing as the scripts promise."""
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from src.engine.checkpoint import read_checkpoint
from tests.system.distributed_support import environment, free_port, launch
from tests.system.train_support import (
    assert_same_state,
    make_streets,
    metrics,
    only_run,
    run_to_end,
    steps_logged,
    train_command,
)

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "system" / "distributed_worker.py"
SCRIPT = ROOT / "scripts" / "run_distribute_train.sh"
FAST = "configs/fast_scnn/fast_scnn_cityscapes.yaml"
STEPS = 10
UNDISTURBED = {"train__steps": 30, "train__sync_bn": "never"}


def run_worker(folder: Path, ranks: int, sync_bn: str, accumulation: int) -> list[dict]:
    """The arrays that each rank wrote."""
    output = folder / f"{ranks}_{sync_bn}_{accumulation}"
    launch(folder, ranks, str(WORKER), str(output), str(STEPS), sync_bn, str(accumulation))
    return [dict(np.load(f"{output}.rank{rank}.npz")) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_with_synchronised_norm_equal_one_process(ranks, tmp_path):
    """Though their crops have different numbers of valid pixels."""
    (one,) = run_worker(tmp_path, 1, "never", 1)
    for rank in run_worker(tmp_path, ranks, "always", 1):
        assert rank["stops"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]     # rank 1 asked in the third step
        for name in one:
            if name != "stops":
                np.testing.assert_allclose(rank[name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_ranks_and_micro_batches_equal_micro_batches_alone(tmp_path):
    (one,) = run_worker(tmp_path, 1, "never", 4)
    ranks = run_worker(tmp_path, 2, "never", 2)
    for name in one:
        if name != "stops" and "moving" not in name:
            np.testing.assert_allclose(ranks[0][name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)
    for name in one:
        np.testing.assert_array_equal(ranks[0][name], ranks[1][name], err_msg=name)     # moving statistics too


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return make_streets(tmp_path_factory.mktemp("two words") / "streets")


def script_command(streets: Path, output: Path, ranks: int, *words: str, **changes) -> list[str]:
    """The distributed form of ``train_command``."""
    options = train_command(FAST, streets, output, *words, train__global_batch=4, model__dropout=0, **changes)[4:]
    return ["bash", str(SCRIPT), str(ROOT / FAST), str(ranks), str(streets), *options]


def run_script(command: list[str], logs: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment(LOG_DIR=str(logs)), cwd=ROOT, capture_output=True, text=True,
                          timeout=900, check=False)


@pytest.mark.slow
def test_a_network_on_two_ranks_follows_one_process(streets, tmp_path):
    rate = {"optim__lr": 0.0005}      # a rate that does not amplify rounding, see network_worker.py
    run_to_end(train_command(FAST, streets, tmp_path / "one", train__global_batch=4, model__dropout=0, **rate))
    done = run_script(script_command(streets, tmp_path / "two words", 2, train__sync_bn="always", **rate),
                      tmp_path / "l o g")
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (metrics(only_run(tmp_path / name)) for name in ("one", "two words"))
    losses = np.array([[float(row["loss"]) for row in rows] for rows in (one, two)])
    assert losses[1, 0] == pytest.approx(losses[0, 0], rel=1e-6)
    np.testing.assert_allclose(losses[1, :11], losses[0, :11], rtol=1e-3)
    run_dir = only_run(tmp_path / "two words")
    assert {path.name for path in run_dir.iterdir()} == {"ckpt", "config.yaml", "env.json", "metrics.csv", "rank0.log",
                                                         "rank1.log", "train.log"}
    assert (tmp_path / "l o g" / "worker_1.log").exists()


@pytest.fixture(scope="module")
def whole(streets, tmp_path_factory) -> Path:
    """The last checkpoint of two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_script(script_command(streets, folder / "out", 2, **UNDISTURBED), folder / "logs")
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(folder / "out") / "ckpt" / "last.ckpt"


def start_script(command: list[str], logs: Path) -> subprocess.Popen:
    return subprocess.Popen(command, env=environment(LOG_DIR=str(logs)), cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_to_the_bit(streets, whole, tmp_path):
    command = script_command(streets, tmp_path / "stopped", 2, **UNDISTURBED)
    process = start_script(command, tmp_path / "l2")
    wait_for(process, tmp_path / "stopped", 3)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    run_dir = only_run(tmp_path / "stopped")
    assert re.search(r"to continue: bash .*run_distribute_train\.sh .* --resume ", (run_dir / "train.log").read_text())
    assert read_checkpoint(run_dir / "ckpt" / "last.ckpt")[1]["step"] < 30
    done = run_script([*command, "--resume", str(run_dir)], tmp_path / "l3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_state(whole, run_dir / "ckpt" / "last.ckpt")


def wait_for(process: subprocess.Popen, output: Path, step: int) -> None:
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        folders = list(output.glob("*/*/config.yaml"))
        if folders and steps_logged(folders[0].parent) >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not get that far: " + process.communicate()[0])


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_it_goes_on_to_the_bit(streets, whole, tmp_path):
    """Three times, at random steps: the other rank is told, the log is named, and a resume loses nothing."""
    command, resume = script_command(streets, tmp_path / "out", 2, **UNDISTURBED), []
    points = [random.randint(*limits) for limits in ((1, 6), (10, 15), (19, 24))]
    print("kill points", points)
    for number, point in enumerate(points):
        logs = tmp_path / f"logs{number}"
        process = start_script([*command, *resume], logs)
        wait_for(process, tmp_path / "out", point)
        victim = next(pid for pid in worker_ids(process.pid) if f"MS_NODE_ID={number % 2}\0".encode() in environ(pid))
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        text, _ = process.communicate(timeout=300)
        assert time.monotonic() - killed < 90
        assert process.returncode != 0
        assert f"error: the job failed; logs are in {logs}" in text
        resume = ["--resume", "auto"]
    done = run_script([*command, *resume], tmp_path / "last logs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_state(whole, only_run(tmp_path / "out") / "ckpt" / "last.ckpt")


def environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def worker_ids(script: int) -> list[int]:
    """The train.py processes below msrun, which is below the script."""
    def children(pid: int) -> list[int]:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    return [pid for msrun in children(script) for pid in children(msrun)
            if b"MS_ROLE=MS_WORKER\0" in environ(pid) and b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_variables_of_mpirun_start_the_same_job(tmp_path):
    processes = [subprocess.Popen(
        [sys.executable, str(WORKER), str(tmp_path / "mpi"), str(STEPS), "always", "1"], cwd=tmp_path,
        env=environment(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK=str(rank), MS_SCHED_PORT=port),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for port in [str(free_port())] for rank in range(2)]
    for process in processes:
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text
    (one,) = run_worker(tmp_path, 1, "never", 1)
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"mpi.rank{rank}.npz")["losses"], one["losses"], rtol=1e-6)


@pytest.mark.parametrize(("words", "message"), [
    ([], "Usage: bash scripts/run_distribute_train.sh"), (["missing.yaml", "2"], "missing.yaml: no such file"),
    ([FAST, "two"], "DEVICE_NUM = two is not a number"), ([FAST, "0"], "cannot be divided"),
    ([FAST, "2", "data", "more"], "Usage:")])
def test_wrong_arguments(words, message):
    done = subprocess.run(["bash", str(SCRIPT), *words], cwd=ROOT, env=environment(), capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(("changes", "message"), [
    ({"DEVICE_IDS": "0,1,2"}, "DEVICE_IDS = 0,1,2 names 3 devices, 2 are needed"),
    ({"NODE_NUM": "3"}, "DEVICE_NUM = 2 cannot be divided over NODE_NUM = 3 hosts")])
def test_contradicting_environment(changes, message):
    done = subprocess.run(["bash", str(SCRIPT), FAST, "2"], cwd=ROOT, env=environment(**changes), capture_output=True,
                          text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize("script", ["run_standalone_train.sh", "run_eval.sh"])
def test_other_scripts_check_their_arguments(script):
    for words in ([], ["a", "b", "c", "d", "e"]):
        done = subprocess.run(["bash", str(ROOT / "scripts" / script), *words], cwd=ROOT, env=environment(),
                              capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"Usage: bash scripts/{script}" in done.stderr
