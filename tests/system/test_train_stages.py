"""Staged training, starting weights and half precision through ``train.py``, on tiny crops."""
import itertools

import numpy as np
import pytest

from mindseg.checkpoint import read_checkpoint
from tests.support.train import (
    assert_same_state,
    kill_at,
    make_splits,
    only_run,
    run_to_end,
    steps_logged,
    train_command,
)

STAGED = "configs/enet/enet_cityscapes_staged.yaml"
SMALL = {"data__resize": "[64,64]", "train__steps": 2, "train__save_interval_steps": 2}


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return make_splits(tmp_path_factory.mktemp("streets"))


@pytest.fixture(scope="module")
def staged(streets, tmp_path_factory):
    """A staged training that nobody disturbed: its command, what it printed, its run folder."""
    output = tmp_path_factory.mktemp("staged")
    command = train_command(STAGED, streets, output, optim__lr=0.001, **SMALL)
    return command, run_to_end(command).stdout, only_stages(output)


@pytest.mark.slow
def test_three_stages_hand_their_weights_on(staged):
    command, text, run_dir = staged
    states = [read_checkpoint(run_dir / f"stage{i}" / "ckpt" / "last.ckpt")[0] for i in (1, 2, 3)]
    assert "pred.weight" in states[1]
    assert "pred.weight" not in states[2]
    assert any(name.startswith("decoder.") for name in states[2])
    assert text.count("parameters loaded from") == 2
    assert "new, with random weights: decoder" in text
    # Adam moves a weight by about the learning rate a step: two steps leave the stages' encoders close to each other.
    for before, after in itertools.pairwise(states):
        weights = [name for name in before if name.startswith("encoder.") and name.endswith("conv.weight")]
        assert len(weights) > 20
        assert max(np.abs(before[name] - after[name]).max() for name in weights) < 0.01
    again = run_to_end([*command, "--resume", str(run_dir)])
    assert again.stdout.count("finished after") == 3
    for i, state in enumerate(states, 1):
        after = read_checkpoint(run_dir / f"stage{i}" / "ckpt" / "last.ckpt")[0]
        assert all((after[name] == state[name]).all() for name in state)


def only_stages(output):
    """The run folder above the stages' folders."""
    (config,) = output.glob("*/*/config.yaml")
    assert sorted(path.name for path in config.parent.iterdir()) == ["config.yaml", "stage1", "stage2", "stage3"]
    return config.parent


@pytest.mark.slow
def test_a_stage_that_was_cut_off_is_found(staged, streets, tmp_path):
    command = train_command(STAGED, streets, tmp_path, optim__lr=0.001, **SMALL)
    kill_at(command, tmp_path, lambda run_dir: steps_logged(run_dir / "stage2") >= 1)
    assert not any(tmp_path.glob("*/*/stage3"))
    done = run_to_end([*command, "--resume", "auto"])
    assert done.stdout.count("resumed ") >= 1       # stage 1, and stage 2 if its first checkpoint was written
    for i in (1, 2, 3):
        assert_same_state(staged[2] / f"stage{i}" / "ckpt" / "last.ckpt",
                          only_stages(tmp_path) / f"stage{i}" / "ckpt" / "last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_half_precision_trains_on_the_cpu(level, streets, tmp_path):
    run_to_end(train_command("configs/fcn8s/fcn8s_cityscapes.yaml", streets, tmp_path, model__fc_channels=16,
                             train__steps=2, train__amp_level=level, optim__loss_scale="dynamic"))
    arrays, _ = read_checkpoint(only_run(tmp_path) / "ckpt" / "last.ckpt")
    assert all(np.isfinite(value).all() for value in arrays.values())
    assert arrays["fc6.conv.weight"].dtype == np.float32
