"""Crops that grow while a run goes on, and class weights from its labels, through ``train.py``."""
import shutil

import numpy as np
import pytest

from mindseg.checkpoint import read_checkpoint
from mindseg.config import load_config
from tests.support.distributed import run_script, script_command
from tests.support.train import assert_same_state, make_splits, metrics, only_run, run_to_end, train_command
from tests.system.test_train_resume import FAST, NETWORKS

pytestmark = pytest.mark.slow
# 10 images in batches of 4 are 3 steps an epoch, in two micro-batches; the crops grow after half of the epochs.
GROWING = {"data__crop_size": "[64,128]", "data__crop_schedule": "[{until: 0.5, crop_size: [64, 64]}]",
           "loss__class_weights": "auto", "loss__class_weight_power": 0.5}


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return make_splits(tmp_path_factory.mktemp("streets"))


def class_weights(run_dir):
    return load_config(run_dir / "config.yaml").loss.class_weights


@pytest.mark.parametrize(("name", "steps"), [("fast_scnn", [2, 5]), ("enet", [2]), ("bisenetv2", [2]), ("fcn8s", [2])])
def test_a_run_with_growing_crops_goes_on_to_the_bit(name, steps, streets, tmp_path):
    """From a step of the first crops, over the change, and from one of the second."""
    config, changes = NETWORKS[name]
    command = train_command(config, streets, tmp_path / "whole", **GROWING, **changes, train__global_batch=4,
                            train__device_batch=2, train__steps=6, train__save_interval_steps=1,
                            train__keep_checkpoint_max=0)
    done = run_to_end(command)
    assert done.stdout.count("with the compilation of the graph") == 2
    whole = only_run(tmp_path / "whole")
    weights = class_weights(whole)
    assert len(weights) == 19
    assert np.ptp(weights) > 0.1
    for step in steps:
        again = tmp_path / f"from{step}" / "run"
        shutil.copytree(whole, again, ignore=shutil.ignore_patterns("*.ckpt"))
        shutil.copy(whole / "ckpt" / f"step{step}.ckpt", again / "ckpt")
        run_to_end([*command, "--resume", str(again)])
        assert_same_state(whole / "ckpt" / "last.ckpt", again / "ckpt" / "last.ckpt")
        assert class_weights(again) == weights
        assert read_checkpoint(again / "ckpt" / "last.ckpt")[1]["step"] == 6


def test_growing_crops_on_two_ranks_follow_one_process(streets, tmp_path):
    same = {**GROWING, "optim__lr": 0.0005, "model__dropout": 0}      # a rate that does not amplify rounding
    run_to_end(train_command(FAST, streets, tmp_path / "one", train__global_batch=4, **same))
    done = run_script(script_command(streets, tmp_path / "two", 2, train__sync_bn="always", **same), tmp_path / "logs")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [only_run(tmp_path / name) for name in ("one", "two")]
    losses = np.array([[float(row["loss"]) for row in metrics(run)] for run in runs])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert class_weights(runs[0]) == class_weights(runs[1])
