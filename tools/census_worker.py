"""Compiles the graphs of one case of tools/census.py, and stores their operators."""
import pickle
import sys
from pathlib import Path

from mindseg import chips
from mindseg.commands.plan import build_planned_step, compile_evaluation, compile_step
from mindseg.commands.train import Batches
from mindseg.compat import as_if_on
from mindseg.config import load_config
from mindseg.models import build_network
from mindseg.runtime import use_device


def main() -> None:
    model, loss, chip_name, devices, output = sys.argv[1:]
    overrides = [] if loss in ("recipe", "evaluation") else [f"loss.name={loss}"]
    cfg = load_config(f"configs/{model}/{model}_cityscapes.yaml", [*overrides, "runtime.device_target=CPU"])
    own = cfg.train.global_batch // 8       # as on eight devices, whatever their number
    use_device("CPU", 0, "graph")
    with as_if_on(next(chip for chip in chips.CHIPS if chip.name == chip_name)):
        network = build_network(cfg)
        if loss == "evaluation":
            graphs = compile_evaluation(cfg, network)
        else:
            step = build_planned_step(cfg, network, Batches(own, 1), int(devices))
            gradients, update = compile_step(step, own, cfg.data.crop_size)
            graphs = gradients + update
    Path(output).write_bytes(pickle.dumps([node for graph in graphs for node in graph.values()]))


if __name__ == "__main__":
    main()
