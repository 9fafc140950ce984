"""Starting weights: those of a file, or a part of them."""
from pathlib import Path

import numpy as np

from mindspore import Tensor, nn

from mindseg.config import Config
from mindseg.errors import UserError
from mindseg.logs import log
from mindseg.models.weights import convert, read_weights


def load_pretrained(net: nn.Cell, cfg: Config, path: str | Path) -> None:
    """Starts a network from the weights of a file and logs what was loaded; step counter and optimizer stay new.

    Args:
        net: Network of ``cfg.model``.
        cfg: ``model.pretrained_part`` says which part is loaded: ``all``, ``backbone`` (everything whose shape does not
            depend on the classes; for FCN-8s an ImageNet VGG16 with BatchNorm will do) or ``encoder``.
        path: Checkpoint of this project, or any file that ``mindseg.models.weights`` reads.

    Raises:
        UserError: The file is damaged, or does not hold what is asked for.
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
        if not name.endswith(".step"):      # dropout counters start anew
            own[name].set_data(Tensor(value, own[name].dtype))
    log.info("%d of %d parameters loaded from %s (%s)", len(found.params), len(own), path, found.source)
    new = dict.fromkeys(name.split(".")[0] for name in found.missing)
    if new:
        log.info("new, with random weights: %s", ", ".join(new))


def without_training_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves out what only our training knows; a moving average of the weights takes their place."""
    averages = {name.removeprefix("ema."): value for name, value in state.items() if name.startswith("ema.")}
    kept = {name: value for name, value in state.items()
            if not name.startswith("ema.") and name not in ("good_steps", "eval_step")}
    return kept | averages
