"""The four networks in both modes and on several ranks of a CPU: the losses of one process in graph mode."""

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.distributed import launch

WORKER = ROOT / "tests" / "support" / "network_worker.py"
RUNS = [("graph", 2), ("graph", 4), ("pynative", 1), ("pynative", 2)]


def losses_of(folder, name, mode, ranks):
    launch(folder, ranks, str(WORKER), str(folder / f"{mode}{ranks}"), name, mode)
    return np.load(folder / f"{mode}{ranks}.rank0.npy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast_scnn", "enet", "bisenetv2", "fcn8s"])
def test_networks_in_both_modes_and_on_ranks_follow_one_process(name, tmp_path):
    one = losses_of(tmp_path, name, "graph", 1)
    assert one[10] < one[0]
    for mode, ranks in RUNS:
        losses = losses_of(tmp_path, name, mode, ranks)
        print(name, mode, ranks, "ranks:", losses / one - 1)
        np.testing.assert_allclose(losses[0], one[0], rtol=1e-6)
        np.testing.assert_allclose(losses[1], one[1], rtol=2e-5)
        np.testing.assert_allclose(losses[10], one[10], rtol=1e-3)
