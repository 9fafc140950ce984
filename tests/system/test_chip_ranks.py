"""Two processes that emulate Ascends together."""
import numpy as np
import pytest

from tests.support import ROOT
from tests.support.chip_worker import batch
from tests.support.distributed import launch
from tests.support.steps import Net

pytestmark = pytest.mark.slow
RANKS = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """Findings of each of two ranks."""
    folder = tmp_path_factory.mktemp("chips")
    launch(folder, RANKS, str(ROOT / "tests" / "support" / "chip_worker.py"), str(folder / "found"))
    return [dict(np.load(folder / f"found.rank{rank}.npz")) for rank in range(RANKS)]


@pytest.mark.parametrize("images", [1, 2, 4])
def test_statistics_of_all_ranks_are_numpys(images, ranks):
    whole = batch(images, RANKS).astype(np.float64)
    for rank, found in enumerate(ranks):
        np.testing.assert_allclose(found[f"layer{images}"], whole.var((0, 2, 3), ddof=1), rtol=1e-4)
        normal = (whole - whole.mean(0)) / np.sqrt(whole.var((0, 2, 3)) + 1e-5).reshape(-1, 1, 1)
        np.testing.assert_allclose(found[f"output{images}"], normal[rank * images:(rank + 1) * images], atol=1e-4)
        # The kernel alone would count the values of one rank.
        factor = images / (images - 1) if images > 1 else 0
        np.testing.assert_allclose(found[f"kernel{images}"], factor * whole.var((0, 2, 3)), rtol=1e-3, atol=1e-6)


def test_an_overflow_on_one_rank_drops_the_step_of_both(ranks):
    for found in ranks:
        assert found["results"][0, 2] == 1      # rank 1 alone overflowed
        assert found["results"][1, 2] == RANKS
        assert found["scale"] == 2.0**29
        np.testing.assert_array_equal(found["weights"], Net().conv1.weight.asnumpy())
