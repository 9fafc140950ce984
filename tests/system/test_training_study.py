"""tools/training_study.py: a study that is stopped, continued and repeated."""
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.data import make_camvid
from tests.support.train import metrics, only_run, reached, run_and_signal, run_to_end

pytestmark = pytest.mark.slow


def test_a_stopped_study_continues_its_run_and_keeps_results(tmp_path):
    rng = np.random.default_rng(1)
    make_camvid(tmp_path / "data", rng, 16, "train", (64, 96))
    make_camvid(tmp_path / "data", rng, 3, "val", (64, 96))
    output = tmp_path / "study"
    command = [sys.executable, str(ROOT / "tools" / "training_study.py"), "--root", str(tmp_path / "data"), "--output",
               str(output), "--options", "baseline", "--minutes", "0.4", "--set", "data.crop_size=[64,96]",
               "--set", "train.global_batch=2"]
    run_folder = output / "baseline-seed1"
    stopped = run_and_signal(command, run_folder, signal.SIGTERM, reached(3))
    assert stopped.returncode == 130, stopped.stderr
    state = json.loads((run_folder / "state.json").read_text())
    assert not state["trained"]
    assert len(state["cpu"]) == 1
    done = run_to_end(command)
    (line,) = (output / "results.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert (result["epochs"], result["sittings"]) == (state["epochs"], 2)
    assert result["cpu_minutes"] > state["cpu"][0] / 60
    rows = metrics(only_run(run_folder))
    # 8 steps an epoch; the last row is the last step, and its learning rate nearly 0.
    assert int(rows[-1]["step"]) == int(rows[-1]["total_steps"]) == 8 * result["epochs"] == result["steps"]
    assert float(rows[-1]["lr"]) < 0.1 * 0.03       # of the warm-up or the end of the curve, not of the middle
    assert 0 <= result["miou"] <= result["best_miou"] < 1
    assert len(result["iou"]) == 11
    again = run_to_end(command)
    assert again.stdout == done.stdout[done.stdout.index("| options"):]
    assert subprocess.run([*command, "--table"], capture_output=True, text=True, check=True).stdout == again.stdout
