"""Small manifests for the deployment tests."""
import hashlib
from pathlib import Path

from mindseg.manifest import DatasetSpec, InputSpec, Manifest, ModelFile, OutputSpec

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def make_manifest(folder: Path, **changes) -> Manifest:
    """Return a manifest of a two-class model of 48x64, batch 2, in memory."""
    spec = InputSpec(name="image", shape=(2, 3, 48, 64), layout="NCHW", dtype="float32", color_order="RGB",
                     normalize="host", value_range=255.0, mean=MEAN, std=STD,
                     resize={"rule": "exact", "size": [48, 64], "pad": False}, pad_value=(124, 116, 104))
    dataset = DatasetSpec(name="list", classes=("sky", "über road"), palette=((1, 2, 3), (4, 5, 6)), ignore_id=255,
                          label_map={0: 0, 1: 1, 11: 255})
    fields = {"model": {"name": "fast_scnn", "num_classes": 2}, "input": spec,
              "output": OutputSpec("segmentation", "argmax", "uint8", (2, 48, 64)), "dataset": dataset,
              "source": {"checkpoint": "best.ckpt", "checkpoint_sha256": "0" * 64}, "versions": {"project": "0.1.0"},
              "models": (ModelFile("onnx", "net.onnx", 2, hashlib.sha256(b"abc").hexdigest(), {"precision": "int8"}),),
              "path": folder / "deploy.yaml"}
    return Manifest(**{**fields, **changes})
