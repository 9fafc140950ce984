"""Write one result in a process of its own: ``python -m tests.support.kill_worker KIND WORD… OUTPUT``."""
import sys
from pathlib import Path

from mindseg.config import load_config
from mindseg.deploy.exporter import export_network
from mindseg.errors import run_main
from mindseg.runtime import setup_runtime
from tests.support import ROOT
from tests.support.networks import make_tiny_network


def export(seed: str, output: str) -> None:
    """Export a tiny network with random weights as ONNX and MINDIR."""
    cfg = load_config(ROOT / "configs" / "_base_" / "cityscapes.yaml",
                      ["export.height=64", "export.width=96", "runtime.device_target=CPU"])
    setup_runtime(cfg.runtime)
    source = {"checkpoint": "best.ckpt", "checkpoint_sha256": seed * 64}
    export_network(make_tiny_network(seed=int(seed)), cfg, source, ["ONNX", "MINDIR"], Path(output))


if __name__ == "__main__":
    run_main(lambda: {"export": export}[sys.argv[1]](*sys.argv[2:]))
