"""eval.py and predict.py with OpenVINO: the scores and masks are those of MindSpore, for all networks."""
import json

import cv2
import numpy as np
import pytest

from mindseg.checkpoint import Progress, save_checkpoint
from mindseg.config import load_config
from mindseg.models import build_network
from tests.support import ROOT
from tests.support.evaluation import make_streets
from tests.support.networks import randomize

NETWORKS = {"fast_scnn": [], "enet": [], "bisenetv2": [], "fcn8s": ["model.fc_channels=64"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_and_masks_of_all_networks(name, tmp_path, run_cli, rng):
    streets = make_streets(tmp_path / "streets", 3)
    config = ROOT / "configs" / name / f"{name}_cityscapes.yaml"
    settings = [f"data.root={streets}", "runtime.device_target=CPU", *NETWORKS[name]]
    cfg = load_config(config, settings)
    net = build_network(cfg)
    randomize(net, rng)
    ckpt = tmp_path / "best.ckpt"
    save_checkpoint(ckpt, list(net.get_parameters()), Progress(), cfg)
    words = ["--ckpt_path", ckpt, "--config", config, *(part for text in settings for part in ("--set", text))]
    records, texts = {}, {}
    for backend in ("mindspore", "openvino", "auto"):
        done = run_cli("eval.py", *words, "--backend", backend, "--output", tmp_path / backend, "--report")
        assert done.returncode == 0, done.stderr
        records[backend], texts[backend] = json.loads((tmp_path / backend / "eval.json").read_text()), done.stdout
    assert records["mindspore"]["backend"] == "mindspore"
    assert records["openvino"]["backend"] == "openvino"
    assert "backend openvino: a run of the network takes" in texts["openvino"]
    assert f"backend {records['auto']['backend']}: a run of the network takes" in texts["auto"]
    assert records["auto"]["backend"] in (tmp_path / "auto" / "report.html").read_text()
    for backend in ("openvino", "auto"):
        assert records[backend]["miou"] == pytest.approx(records["mindspore"]["miou"], abs=2e-4)
        assert records[backend]["ece"] == pytest.approx(records["mindspore"]["ece"], abs=1e-3)
    pictures = sorted((streets / "leftImg8bit" / "val").rglob("*.png"))
    masks = {}
    for backend in ("mindspore", "openvino"):
        output = tmp_path / f"masks_{backend}"
        done = run_cli("predict.py", *words, "--backend", backend, "--input", pictures[0], "--output", output, "--save",
                       "ids")
        assert done.returncode == 0, done.stderr
        assert json.loads((output / "summary.json").read_text())["backend"] == backend
        masks[backend] = cv2.imread(str(next(output.glob("*_ids.png"))), cv2.IMREAD_UNCHANGED)
    assert len(np.unique(masks["mindspore"])) > 2
    assert (masks["openvino"] == masks["mindspore"]).mean() > 0.999
