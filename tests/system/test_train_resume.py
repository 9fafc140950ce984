"""Runs that are killed or stopped go on as if nothing had happened: equal to the bit with runs that were left alone."""
import signal

import numpy as np
import pytest

from tests.support.train import (
    assert_same_state,
    kill_at,
    make_splits,
    metrics,
    only_run,
    reached,
    run_and_signal,
    run_to_end,
    train_command,
)

FAST = "configs/fast_scnn/fast_scnn_cityscapes.yaml"


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return make_splits(tmp_path_factory.mktemp("streets"))


@pytest.fixture(scope="module")
def whole(streets, tmp_path_factory):
    """A run that nobody disturbed, with evaluation."""
    output = tmp_path_factory.mktemp("whole")
    run_to_end(train_command(FAST, streets, output, train__run_eval="true", train__eval_interval=1))
    return only_run(output)


def test_sigterm_saves_and_the_printed_command_continues(streets, whole, tmp_path):
    command = train_command(FAST, streets, tmp_path, train__run_eval="true", train__eval_interval=1)
    stopped = run_and_signal(command, tmp_path, signal.SIGTERM, reached(7))
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped by SIGTERM after step" in stopped.stdout
    run_dir = only_run(tmp_path)
    assert f"--resume {run_dir}" in stopped.stdout
    done = run_to_end([*command, "--resume", "auto"])
    assert "resumed" in done.stdout
    assert_same_state(whole / "ckpt" / "last.ckpt", run_dir / "ckpt" / "last.ckpt")
    rows, expected = metrics(run_dir), metrics(whole)
    assert [(r["phase"], r["step"]) for r in rows] == [(r["phase"], r["step"]) for r in expected]
    for column in ("loss", "lr", "miou"):
        assert [r[column] for r in rows] == [r[column] for r in expected]


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(streets, whole, tmp_path):
    command = train_command(FAST, streets, tmp_path, train__run_eval="true", train__eval_interval=1,
                            train__save_interval_steps=1)

    def writing(run_dir):       # MindSpore writes .part.tmp, which becomes .part.ckpt when it is whole
        return (run_dir / "ckpt" / "last.ckpt").exists() and any((run_dir / "ckpt").glob(".part.*"))

    kill_at(command, tmp_path, writing)
    print("left behind:", [path.name for path in (only_run(tmp_path) / "ckpt").glob(".*")])
    run_to_end([*command, "--resume", str(only_run(tmp_path))])
    assert_same_state(whole / "ckpt" / "last.ckpt", only_run(tmp_path) / "ckpt" / "last.ckpt")
    assert not list((only_run(tmp_path) / "ckpt").glob(".*"))


NETWORKS = {
    "fast_scnn": (FAST, {}),
    "enet": ("configs/enet/enet_cityscapes.yaml", {}),
    "bisenetv2": ("configs/bisenetv2/bisenetv2_cityscapes.yaml", {"model__head_channels": 32}),
    "fcn8s": ("configs/fcn8s/fcn8s_cityscapes.yaml", {"model__fc_channels": 16}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_killed_at_three_random_steps(name, streets, tmp_path, rng):
    """Every network, with the dropout of its configuration."""
    config, changes = NETWORKS[name]
    run_to_end(train_command(config, streets, tmp_path / "whole", **changes))
    command = train_command(config, streets, tmp_path / "killed", **changes)
    points = sorted(rng.choice(np.arange(1, 12), 3, replace=False).tolist())
    print("kill points", points)
    resume = []
    for point in points:
        kill_at([*command, *resume], tmp_path / "killed", reached(point))
        resume = ["--resume", "auto"]
    run_to_end([*command, *resume])
    assert_same_state(only_run(tmp_path / "whole") / "ckpt" / "last.ckpt",
                      only_run(tmp_path / "killed") / "ckpt" / "last.ckpt")
