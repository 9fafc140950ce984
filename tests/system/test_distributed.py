"""Several processes on the CPU: equal to one process, started and failing as the scripts promise."""
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindseg.checkpoint import read_checkpoint
from tests.support import ROOT
from tests.support.distributed import (
    FAST,
    SCRIPT,
    environment,
    free_port,
    launch,
    run_script,
    script_command,
)
from tests.support.train import make_splits, metrics, only_run, run_to_end, train_command

WORKER = ROOT / "tests" / "support" / "distributed_worker.py"
STEPS = 10
STAGED = "configs/enet/enet_cityscapes_staged.yaml"


def run_worker(folder: Path, ranks: int, sync_bn: str, accumulation: int, mode: str = "graph") -> list[dict]:
    """The arrays that each rank wrote."""
    output = folder / f"{ranks}_{sync_bn}_{accumulation}_{mode}"
    launch(folder, ranks, str(WORKER), str(output), str(STEPS), sync_bn, str(accumulation), mode)
    return [dict(np.load(f"{output}.rank{rank}.npz")) for rank in range(ranks)]


@pytest.mark.parametrize(("ranks", "mode"), [(2, "graph"), pytest.param(2, "pynative", marks=pytest.mark.slow),
                                             pytest.param(4, "graph", marks=pytest.mark.slow)])
def test_ranks_with_synchronised_norm_equal_one_process(ranks, mode, tmp_path):
    """Though their crops have different numbers of valid pixels."""
    (one,) = run_worker(tmp_path, 1, "never", 1)
    for rank in run_worker(tmp_path, ranks, "always", 1, mode):
        assert rank["stops"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]     # rank 1 asked in the third step
        for name in one:
            if name != "stops":
                np.testing.assert_allclose(rank[name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_ranks_and_micro_batches_equal_micro_batches_alone(mode, tmp_path):
    (one,) = run_worker(tmp_path, 1, "never", 4)
    ranks = run_worker(tmp_path, 2, "never", 2, mode)
    for name in one:
        if name != "stops" and "moving" not in name:
            np.testing.assert_allclose(ranks[0][name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)
    for name in one:
        np.testing.assert_array_equal(ranks[0][name], ranks[1][name], err_msg=name)     # moving statistics too


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return make_splits(tmp_path_factory.mktemp("two words") / "streets")


@pytest.mark.slow
def test_a_network_on_two_ranks_follows_one_process(streets, tmp_path):
    same = {"optim__lr": 0.0005, "model__dropout": 0}      # a rate that does not amplify rounding: network_worker.py
    run_to_end(train_command(FAST, streets, tmp_path / "one", train__global_batch=4, **same))
    done = run_script(script_command(streets, tmp_path / "two words", 2, train__sync_bn="always", **same),
                      tmp_path / "l o g")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" step 12/12 ") == 1       # the console shows rank 0
    assert " step 12/12 " not in (tmp_path / "l o g" / "worker_1.log").read_text()
    one, two = (metrics(only_run(tmp_path / name)) for name in ("one", "two words"))
    losses = np.array([[float(row["loss"]) for row in rows] for rows in (one, two)])
    assert losses[1, 0] == pytest.approx(losses[0, 0], rel=1e-6)
    np.testing.assert_allclose(losses[1, :11], losses[0, :11], rtol=1e-3)
    run_dir = only_run(tmp_path / "two words")
    assert {path.name for path in run_dir.iterdir()} == {"ckpt", "config.yaml", "env.json", "metrics.csv", "rank0.log",
                                                         "rank1.log", "train.log"}
    assert (tmp_path / "l o g" / "worker_1.log").exists()


@pytest.mark.slow
def test_an_evaluation_while_training_is_shared_out(streets, tmp_path):
    command = script_command(streets, tmp_path / "out", 2, train__run_eval="true", train__steps=30,
                             train__eval_interval=5, train__eval_start=5)
    done = run_script(command, tmp_path / "logs")
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = only_run(tmp_path / "out")
    row = max((row for row in metrics(run_dir) if row["phase"] == "eval"), key=lambda row: float(row["miou"]))
    alone = run_to_end([sys.executable, "eval.py", "--config", str(run_dir / "config.yaml"), "--ckpt_path",
                        str(run_dir / "ckpt" / "best.ckpt"), "--output", str(tmp_path / "alone")])
    scores = json.loads((tmp_path / "alone" / "eval.json").read_text())
    assert scores["miou"] > 0
    assert float(row["miou"]) == pytest.approx(scores["miou"], rel=1e-5), alone.stdout
    assert float(row["pixel_accuracy"]) == pytest.approx(scores["pixel_accuracy"], rel=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_ranks_and_keeps_the_state(streets, tmp_path):
    # Each step multiplies the weights by minus a billion.
    done = run_script(script_command(streets, tmp_path / "out", 2, optim__lr=1000, optim__weight_decay=1,
                                     optim__clip_norm=0, optim__lr_factors="{'.*': 1.0e+6}"), tmp_path / "logs")
    assert done.returncode != 0
    found = re.search(r"error: loss is (?:nan|inf) at step (\d+); .*check these samples: [ab]\w+_", done.stderr)
    assert found, done.stdout + done.stderr
    arrays, extras = read_checkpoint(only_run(tmp_path / "out") / "ckpt" / "not_finite.ckpt")
    assert extras["step"] == int(found[1])
    assert "classifier.conv.weight" in arrays or len(arrays) > 100


@pytest.mark.slow
@pytest.mark.nightly
def test_stages_on_two_ranks(streets, tmp_path):
    command = script_command(streets, tmp_path / "out", 2, config=STAGED, data__resize="[64,64]", train__steps=2)
    done = run_script(command, tmp_path / "logs")
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = (path.parent for path in (tmp_path / "out").glob("*/*/config.yaml"))
    for i in (1, 2, 3):
        assert (run_dir / f"stage{i}" / "ckpt" / "last.ckpt").is_file()
        assert "finished after" in (run_dir / f"stage{i}" / "rank1.log").read_text()


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


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "words"), [
    (("--set", "optim.lr=0.02"), "optim.lr is 0.01 on rank 0 and 0.02 on rank 1"),
    (("--resume", "auto"), "--resume is False on rank 0 and True on rank 1")])
def test_ranks_with_other_settings_end_before_the_first_step(settings, words, streets, tmp_path):
    command = train_command(FAST, streets, tmp_path / "out", train__global_batch=4)
    port = str(free_port())
    processes = [subprocess.Popen(
        [*command, *(settings if rank else ())], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK=str(rank), MS_SCHED_PORT=port))
        for rank in range(2)]
    for process in processes:
        text, _ = process.communicate(timeout=300)
        assert process.returncode != 0, text        # MindSpore may crash while it leaves the job
        assert len([line for line in text.splitlines() if line.startswith("error: ") and words in line]) == 1, text
    assert not (tmp_path / "out").exists()


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
