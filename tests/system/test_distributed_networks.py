"""The four networks in both modes and on several ranks of a CPU: the losses of one process in graph mode."""
from functools import cache

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.distributed import launch

pytestmark = pytest.mark.slow
WORKER = ROOT / "tests" / "support" / "network_worker.py"
NETWORKS = ["fast_scnn", "enet", "bisenetv2", "fcn8s"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Function of a network's name: the losses of one process in graph mode."""
    folder = tmp_path_factory.mktemp("one")
    return cache(lambda name: losses_of(folder, name, "graph", 1))


def losses_of(folder, name, mode, ranks):
    launch(folder, ranks, str(WORKER), str(folder / f"{mode}{ranks}"), name, mode)
    return np.load(folder / f"{mode}{ranks}.rank0.npy")


def check(one, folder, name, mode, ranks):
    losses = losses_of(folder, name, mode, ranks)
    print(name, mode, ranks, "ranks:", losses / one - 1)
    np.testing.assert_allclose(losses[0], one[0], rtol=1e-6)
    np.testing.assert_allclose(losses[1], one[1], rtol=2e-5)
    np.testing.assert_allclose(losses[10], one[10], rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_both_modes_and_on_two_ranks_follow_one_process(name, one_process, tmp_path):
    assert one_process(name)[10] < one_process(name)[0]
    for mode, ranks in [("graph", 2), ("pynative", 1), ("pynative", 2)]:
        check(one_process(name), tmp_path, name, mode, ranks)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NETWORKS)
def test_four_ranks_follow_one_process(name, one_process, tmp_path):
    """All four compile on one core; a small network on four ranks is in test_distributed.py."""
    check(one_process(name), tmp_path, name, "graph", 4)
