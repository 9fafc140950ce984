"""The four networks on several ranks of a CPU: the losses of one process with the whole batch."""

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.distributed import launch

WORKER = ROOT / "tests" / "support" / "network_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast_scnn", "enet", "bisenetv2", "fcn8s"])
def test_networks_on_ranks_follow_one_process(name, tmp_path):
    for ranks in (1, 2, 4):
        launch(tmp_path, ranks, str(WORKER), str(tmp_path / str(ranks)), name)
    one = np.load(tmp_path / "1.rank0.npy")
    assert one[10] < one[0]
    for ranks in (2, 4):
        losses = np.load(tmp_path / f"{ranks}.rank0.npy")
        print(name, ranks, "ranks:", losses / one - 1)
        np.testing.assert_allclose(losses[0], one[0], rtol=1e-6)
        np.testing.assert_allclose(losses[1], one[1], rtol=2e-5)
        np.testing.assert_allclose(losses[10], one[10], rtol=1e-3)
