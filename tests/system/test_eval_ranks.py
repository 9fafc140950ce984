"""Evaluation shared by several processes, and of exported models: the same numbers as one process and the network."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindseg.checkpoint import load_network
from mindseg.commands.evaluate import Request, score
from mindseg.deploy.exporter import export_network
from mindseg.errors import UserError
from mindseg.runtime import Runtime
from tests.support import ROOT
from tests.support.distributed import free_port
from tests.support.evaluation import CONFIG, SIZE, make_checkpoint, make_streets, street_config


def scored(cfg, output, **request):
    score(cfg, Runtime("CPU", 0), Request(str(CONFIG), output, **request))
    return json.loads((output / "eval.json").read_text())


@pytest.mark.slow
def test_three_processes_give_the_same_matrix(tmp_path):
    """One of the images is broken, which each of them must count."""
    streets = make_streets(tmp_path / "streets", 6)
    broken = sorted((streets / "leftImg8bit").rglob("*.png"))[-1]
    broken.write_bytes(broken.read_bytes()[:-500])
    cfg = street_config(streets, "data.on_error=skip")
    path = make_checkpoint(tmp_path / "x.ckpt", cfg)
    alone = scored(cfg, tmp_path / "one", ckpt_path=str(path))
    msrun = Path(sys.executable).with_name("msrun")
    command = [msrun, "--worker_num=3", "--local_worker_num=3", f"--master_port={free_port()}", "--join=True",
               "--cluster_time_out=120", f"--log_dir={tmp_path / 'log'}", ROOT / "eval.py", "--config", CONFIG,
               "--ckpt_path", path, "--output", tmp_path / "three", "--csv", "--save_masks", "labelIds",
               "--set", f"data.root={streets}", "--set", "runtime.device_target=CPU", "--set", "data.on_error=skip"]
    # msrun starts whatever `python` is first on the path.
    env = {**os.environ, "PATH": f"{msrun.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([str(word) for word in command], cwd=tmp_path, env=env, capture_output=True, text=True,
                          timeout=500, check=False)
    logs = "".join(path.read_text()[-2000:] for path in (tmp_path / "log").glob("worker_*.log"))
    assert done.returncode == 0, logs
    shared = json.loads((tmp_path / "three" / "eval.json").read_text())
    assert shared["confusion"] == alone["confusion"]
    assert [(scores["images"], scores["skipped"]) for scores in (alone, shared)] == [(5, 1)] * 2
    for key in ("miou", "miiou", "mean_category_iou", "mean_category_iiou", "pixel_accuracy"):
        assert shared[key] == pytest.approx(alone[key], abs=1e-12), key
    rows = [len(path.read_text().splitlines()) - 1 for path in sorted((tmp_path / "three").glob("images.rank*.csv"))]
    assert rows == [2, 2, 1]
    assert len(list((tmp_path / "three" / "masks_labelIds").glob("*.png"))) == 5


@pytest.mark.slow
def test_exported_models_score_like_their_checkpoint(tmp_path):
    streets = make_streets(tmp_path / "streets", 3)
    cfg = street_config(streets, f"export.height={SIZE[0]}", f"export.width={SIZE[1]}")
    path = make_checkpoint(tmp_path / "x.ckpt", cfg)
    expected = scored(cfg, tmp_path / "net", ckpt_path=str(path))
    source = {"checkpoint": "x.ckpt", "checkpoint_sha256": "0" * 64}
    export_network(load_network(cfg, path), cfg, source, ("ONNX", "MINDIR"), tmp_path / "export", None)
    for kind in ("ONNX", "MINDIR"):
        found = scored(cfg, tmp_path / kind, manifest=str(tmp_path / "export" / "deploy.yaml"), file_format=kind)
        # Where two classes are as good as equal, another program may round differently.
        assert np.abs(np.subtract(found["confusion"], expected["confusion"])).sum() <= 1e-3 * np.sum(found["confusion"])
        assert found["miou"] == pytest.approx(expected["miou"], abs=1e-3)
    with pytest.raises(UserError, match="--mode whole"):
        scored(street_config(streets, "eval.mode=flip"), tmp_path / "flip", manifest=str(tmp_path / "export"))
