"""Every training switch with every network, in graph mode and PyNative, on one rank and on two: three steps each."""
import json

import numpy as np
import pytest

from mindseg.models import MODELS
from tests.support import ROOT
from tests.support.distributed import launch
from tests.support.switch_worker import SWITCHES

pytestmark = pytest.mark.slow
# On two ranks; those of test_distributed_networks.py train with synchronised BatchNorm, in both modes.
SHARED = ["own BatchNorm, accumulation"]
# Switches of some networks: the first stage of ENet's training, and those that resize their logits at the end.
OWN = {"encoder only": ["enet"], "enlarged images": ["fast_scnn", "bisenetv2"]}
# These change the losses.
CHANGING = ["ohem", "bce", "dice", "class weights, lovasz beside", "frozen BatchNorm, adamw", *OWN]
PYNATIVE = ["ema, accumulation", "dynamic scale, clipping, nesterov", "O2", "ohem"]


def run(folder, name, mode, switches, ranks=1):
    """Loss of every step, seconds and weights of each rank by switch."""
    launch(folder, ranks, str(ROOT / "tests" / "support" / "switch_worker.py"), name, mode,
           str(folder / f"{mode}{ranks}"), *switches, timeout=1800)
    found = [json.loads((folder / f"{mode}{ranks}.rank{rank}.json").read_text()) for rank in range(ranks)]
    for switch in switches:
        print(f"| {name} | {switch} | {mode} | {ranks} | {found[0][switch]['first_step_s']} |")
    return found


@pytest.fixture(scope="module", params=list(MODELS))
def graph(request, tmp_path_factory):
    """A network and its runs in graph mode on one rank."""
    switches = [name for name in SWITCHES if name not in SHARED and request.param in OWN.get(name, MODELS)]
    return request.param, run(tmp_path_factory.mktemp("graph"), request.param, "graph", switches)[0]


def test_every_switch_in_graph_mode(graph):
    _, found = graph
    plain = found["plain"]["losses"]
    for switch, result in found.items():
        assert np.isfinite(result["losses"]).all(), switch
        assert np.isfinite(result["weights"]), switch
        if switch == "dynamic scale, clipping, nesterov":       # the first step starts from the same weights
            assert result["losses"][0] == pytest.approx(plain[0], rel=1e-6), switch
        if switch == "ema, dropped overflow":       # leave the mathematics alone
            assert result["losses"] == pytest.approx(plain, rel=1e-5), switch
            assert result["weights"] == pytest.approx(found["plain"]["weights"], rel=1e-6), switch
        if switch in ("O1", "O2", "O3"):
            assert result["losses"] == pytest.approx(plain, rel=5e-2), switch
        if switch in CHANGING:
            assert result["losses"] != plain, switch


def test_pynative_equals_graph_mode(graph, tmp_path):
    name, expected = graph
    (found,) = run(tmp_path, name, "pynative", PYNATIVE)
    for switch in PYNATIVE:
        assert found[switch]["losses"][0] == pytest.approx(expected[switch]["losses"][0], rel=1e-6), switch
        assert found[switch]["losses"] == pytest.approx(expected[switch]["losses"], rel=1e-3), switch


@pytest.mark.parametrize("mode", ["graph", pytest.param("pynative", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_agree(name, mode, tmp_path):
    first, second = run(tmp_path, name, mode, SHARED, ranks=2)
    for switch in SHARED:
        assert first[switch]["losses"] == second[switch]["losses"], switch
        assert first[switch]["weights"] == second[switch]["weights"], switch
        assert np.isfinite(first[switch]["losses"]).all(), switch
