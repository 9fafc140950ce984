"""Initial weights from a file, or a part of them."""
from pathlib import Path

import numpy as np

from mindspore import Tensor, nn

from mindseg.config import Config
from mindseg.errors import UserError
from mindseg.logs import log
from mindseg.models.weights import convert, read_weights


def load_pretrained(net: nn.Cell, cfg: Config, path: str | Path) -> None:
    """Loads the weights of a file into a network and logs what was loaded.

    Args:
        net: Network of ``cfg.model``.
        cfg: Resolved configuration; ``model.pretrained_part`` is ``all``, ``backbone`` (everything whose shape does not
            depend on the number of classes; FCN-8s also takes an ImageNet VGG16 with BatchNorm) or ``encoder``.
        path: Checkpoint of this project, or any file that ``mindseg.models.weights`` reads.

    Raises:
        UserError: The file is damaged, or does not hold that part of the network.
    """
    m = cfg.model
    options = {k: v for k, v in m.items() if v is not None and k not in ("name", "pretrained_part")}
    state = without_training_state(read_weights(path))
    try:
        found = convert(m.name, state, part=m.pretrained_part, **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    own = {p.name: p for p in net.get_parameters()}
    for name, value in found.params.items():
        if not name.endswith(".step"):      # dropout counters start at 0
            own[name].set_data(Tensor(value, own[name].dtype))
    log.info("%d of %d parameters loaded from %s (%s)", len(found.params), len(own), path, found.source)
    new = dict.fromkeys(name.split(".")[0] for name in found.missing)
    if new:
        log.info("new, with random weights: %s", ", ".join(new))


def without_training_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes counters of a training run, and replaces weights by their moving averages where there are any.

    Args:
        state: Arrays of a checkpoint, by parameter name.
    """
    averages = {name.removeprefix("ema."): value for name, value in state.items() if name.startswith("ema.")}
    kept = {name: value for name, value in state.items()
            if not name.startswith("ema.") and name not in ("good_steps", "eval_step")}
    return kept | averages
