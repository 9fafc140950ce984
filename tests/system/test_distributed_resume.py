"""Several processes that are stopped or killed go on as if nothing had happened: equal to the bit."""
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from mindseg.checkpoint import read_checkpoint
from tests.support.distributed import (
    environ,
    free_port,
    run_script,
    script_command,
    start_script,
    wait_for,
    worker_ids,
)
from tests.support.train import assert_same_state, make_splits, only_run

UNDISTURBED = {"train__steps": 30, "train__sync_bn": "never"}      # with dropout, as the configuration has it


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return make_splits(tmp_path_factory.mktemp("two words") / "streets")


@pytest.fixture(scope="module")
def whole(streets, tmp_path_factory) -> Path:
    """The last checkpoint of two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_script(script_command(streets, folder / "out", 2, **UNDISTURBED), folder / "logs")
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(folder / "out") / "ckpt" / "last.ckpt"


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_to_the_bit(streets, whole, tmp_path):
    command = script_command(streets, tmp_path / "stopped", 2, **UNDISTURBED)
    process = start_script([*command, "--set", "train.save_all_ranks=true"], tmp_path / "l2")
    wait_for(process, tmp_path / "stopped", 3)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    run_dir = only_run(tmp_path / "stopped")
    assert re.search(r"to continue: DEVICE_TARGET=CPU MASTER_PORT=\d+ bash .*run_distribute_train\.sh .* --resume ",
                     (run_dir / "train.log").read_text())
    assert read_checkpoint(run_dir / "ckpt" / "last.ckpt")[1]["step"] < 30
    assert_same_state(run_dir / "ckpt" / "last.ckpt", run_dir / "rank1" / "ckpt" / "last.ckpt")
    # What rank 1 saved is a copy to keep: an old one must not lead it astray.
    shutil.copyfile(min((run_dir / "rank1" / "ckpt").glob("step*.ckpt")), run_dir / "rank1" / "ckpt" / "last.ckpt")
    done = run_script([*command, "--resume", str(run_dir)], tmp_path / "l3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_state(whole, run_dir / "ckpt" / "last.ckpt")


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_it_goes_on_to_the_bit(streets, whole, tmp_path, rng):
    """Once each rank, at random steps: the other rank is told, the log is named, and a resume loses nothing."""
    command, resume = script_command(streets, tmp_path / "out", 2, **UNDISTURBED), []
    points = [int(rng.integers(*limits)) for limits in ((1, 10), (13, 25))]
    print("kill points", points)
    for number, point in enumerate(points):
        logs = tmp_path / f"logs{number}"
        process = start_script([*command, *resume], logs)
        wait_for(process, tmp_path / "out", point)
        victim = next(pid for pid in worker_ids(process.pid) if f"MS_NODE_ID={number}\0".encode() in environ(pid))
        os.kill(victim, signal.SIGKILL)
        text, _ = process.communicate(timeout=300)
        assert process.returncode != 0
        assert f"error: the job failed; logs are in {logs}" in text
        assert f"{logs}/worker_{number}.log: Worker process {victim} exit with exception" in text
        resume = ["--resume", "auto"]
    done = run_script([*command, *resume], tmp_path / "last logs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_state(whole, only_run(tmp_path / "out") / "ckpt" / "last.ckpt")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("config", ["fcn8s/fcn8s_cityscapes", "enet/enet_cityscapes", "bisenetv2/bisenetv2_cityscapes"])
def test_other_networks_on_two_ranks_go_on_to_the_bit(config, streets, tmp_path, rng):
    changes = {"enet": {}, "bisenetv2": {"model__head_channels": 32}, "fcn8s": {"model__fc_channels": 16}}
    options = {"config": f"configs/{config}.yaml", "train__save_interval_steps": 1, **changes[config.split("/")[0]]}
    done = run_script(script_command(streets, tmp_path / "whole", 2, **options), tmp_path / "logs0")
    assert done.returncode == 0, done.stdout + done.stderr
    command = script_command(streets, tmp_path / "out", 2, **options)
    process = start_script(command, tmp_path / "logs1")
    wait_for(process, tmp_path / "out", int(rng.integers(2, 9)))
    os.kill(int(rng.choice(worker_ids(process.pid))), signal.SIGKILL)
    process.communicate(timeout=300)
    done = run_script([*command, "--resume", "auto"], tmp_path / "logs2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed" in done.stdout
    assert_same_state(*(only_run(tmp_path / name) / "ckpt" / "last.ckpt" for name in ("whole", "out")))


# msrun takes a host that owns MASTER_ADDR for the first one; here both do.
OTHER_HOST = """import os, sys
if os.path.basename(sys.orig_argv[1]) == "msrun":
    from mindspore.parallel.cluster.process_entity import _api
    _api._is_local_ip = lambda address: False
"""


@pytest.mark.slow
def test_two_hosts_without_a_common_disk(streets, whole, tmp_path):
    """Each in a folder of its own; the second is asked to stop, both go on, and rank 0's disk is all that counts."""
    command = script_command(streets, Path("out"), 2, **UNDISTURBED)

    def start(*words: str) -> list[subprocess.Popen]:
        port = str(free_port())
        return [start_script([*command, *words], Path("logs"), tmp_path / f"host{rank}", NODE_NUM="2", MASTER_PORT=port,
                             NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1", PYTHONPATH=str(tmp_path / f"host{rank}"))
                for rank in (0, 1)]

    for rank in (0, 1):
        (tmp_path / f"host{rank}").mkdir()
    (tmp_path / "host1" / "sitecustomize.py").write_text(OTHER_HOST)
    hosts = start()
    wait_for(hosts[0], tmp_path / "host0" / "out", 3)
    hosts[1].send_signal(signal.SIGTERM)
    for host in hosts:
        text, _ = host.communicate(timeout=300)
        assert host.returncode == 0, text
    run_dir = only_run(tmp_path / "host0" / "out")
    other = tmp_path / "host1" / run_dir.relative_to(tmp_path / "host0")
    assert sorted(path.name for path in other.iterdir()) == ["ckpt", "rank1.log"]
    assert not any((other / "ckpt").iterdir())
    assert (tmp_path / "host1" / "logs").is_dir()
    for host in start("--resume", "auto"):
        text, _ = host.communicate(timeout=600)
        assert host.returncode == 0, text
    assert "resumed rank 0's checkpoint" in (other / "rank1.log").read_text()
    assert_same_state(whole, run_dir / "ckpt" / "last.ckpt")
