"""The Ascend 310 guide of SegmenTron's Fast-SCNN in two commands: foreign weights -> checkpoint -> ONNX.

The truth is what the PyTorch implementation itself computed (tests/goldens).
"""
import subprocess
import sys

import numpy as np
import onnxruntime as ort

from mindseg.manifest import load_manifest
from tests.goldens import rule
from tests.support import ROOT

FIXTURE = ROOT / "tests" / "goldens" / "fast_scnn_segmentron"


def run(*words):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_segmentron_weights_to_onnx(tmp_path):
    np.savez(tmp_path / "fast_scnn_segmentron.npz", **rule.state_dict(FIXTURE))
    run("-m", "mindseg", "convert-weights", "--model", "fast_scnn", "--set", "model.variant=segmentron", "--source",
        tmp_path / "fast_scnn_segmentron.npz", "--output", tmp_path / "x.ckpt")
    overrides = ("model.variant=segmentron", "model.ppm_kernel=1", "export.file_name=fast_scnn", "export.opset=11",
                 "export.height=192", "export.width=384", "runtime.device_target=CPU")
    run("export.py", "--config", "configs/fast_scnn/fast_scnn_cityscapes.yaml", "--ckpt_path", tmp_path / "x.ckpt",
        "--file_format", "ONNX", "--output", tmp_path / "m", "--output_type", "logits",
        *(word for text in overrides for word in ("--set", text)))
    manifest = load_manifest(tmp_path / "m")
    golden = np.load(FIXTURE.with_suffix(".npz"))
    image = rule.image(7, (1, 3, 192, 384))
    session = ort.InferenceSession(str(tmp_path / "m" / "fast_scnn.onnx"))
    logits = session.run(None, {manifest.input.name: image})[0]
    expected = golden["eval_logits_s4"]
    np.testing.assert_allclose(logits[:, :, ::4, ::4], expected, atol=1e-4 * np.abs(expected).max())
    assert (logits.argmax(1) == golden["eval_argmax"]).mean() > 0.9999
