"""Trainings and scores with the numbers of Ascend chips, emulated on the CPU, beside float32."""
import re
import subprocess
import sys

import pytest

from benchmarks.support import chip_runs
from benchmarks.support.chip_runs import quickstart_streets, score_checkpoint, train_network
from mindseg.config import load_config
from mindseg.runtime import Runtime
from tests.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("graph_mode")]
CONFIGS = ROOT / "configs"
# Steps that are enough for most pixels to be right; the recipes take 150 to 480.
STEPS = {"fast_scnn": 80, "enet": 240, "bisenetv2": 50, "fcn8s": 50}


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return quickstart_streets(tmp_path_factory.mktemp("chips") / "streets", 80, 16)


@pytest.fixture(autouse=True)
def runtime(monkeypatch):
    """A process may have run kernels before; MindSpore then takes no device any more."""
    monkeypatch.setattr(chip_runs, "setup_runtime", lambda _: Runtime("CPU", 0))


@pytest.mark.parametrize("name", STEPS)
def test_a_network_is_scored_alike_in_float16(name, streets, tmp_path):
    """The evaluation graph that is exported; docs/ascend.md allows a deployed model 0.002."""
    config = CONFIGS / name / f"{name}_synthetic.yaml"
    words = [f"data.root={streets}", f"train.steps={STEPS[name]}", "train.eval_interval=1000000"]
    trained = train_network("float32", config, words, tmp_path)
    cfg = load_config(config, words)
    scores = {kind: score_checkpoint(kind, cfg, tmp_path / "ckpt" / "last.ckpt") for kind in ("float16", "hf32")}
    print(name, trained, scores)
    assert trained > 0.15
    assert scores["float16"] == pytest.approx(trained, abs=0.002)
    assert scores["hf32"] == pytest.approx(trained, abs=0.002)
    assert scores["float16"] != trained     # rounding changes some pixel


@pytest.mark.nightly
def test_the_quick_start_learns_as_much_with_the_chips_numbers(tmp_path):
    """By the benchmark, in about 25 minutes of one core."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "chip_numbers.py"), "--output", str(tmp_path)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    miou = {kind: float(value) for kind, value in re.findall(r", (\w+): mIoU ([\d.]+) %", done.stdout)}
    print(miou)
    assert miou["float32"] > 70
    assert miou["float16"] == pytest.approx(miou["float32"], abs=1.5)
    assert miou["hf32"] == pytest.approx(miou["float32"], abs=0.5)
