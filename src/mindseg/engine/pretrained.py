"""Initial weights from a file, or a part of them."""
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindspore import Tensor, nn

from mindseg.checkpoint import read_checkpoint
from mindseg.config import Config, parse_config
from mindseg.data.datasets import dataset_info
from mindseg.errors import UserError
from mindseg.files import file_sha256
from mindseg.logs import log
from mindseg.models.weights import convert, read_weights


def load_pretrained(net: nn.Cell, cfg: Config, path: str | Path) -> None:
    """Loads the weights of a file into a network, logs what was loaded, and notes the file in the configuration.

    Args:
        net: Network of ``cfg.model``.
        cfg: Resolved configuration; ``model.pretrained_part`` is ``all`` (but for classifiers if the file has other
            classes, or none), ``backbone`` (FCN-8s also takes an ImageNet VGG16 with BatchNorm) or
            ``encoder``.
        path: Checkpoint of this project, or any file that ``mindseg.models.weights`` reads.

    Raises:
        UserError: The file is damaged, does not hold that part of the network, or is not the one that
            ``train.pretrained_sha256`` was recorded of.
    """
    m, t = cfg.model, cfg.train
    options = {k: v for k, v in m.items() if v is not None and k not in ("name", "pretrained_part")}
    state = without_training_state(read_weights(path))
    digest = file_sha256(path)
    if t.pretrained == str(path) and t.pretrained_sha256 not in (None, digest):
        raise UserError(f"{path}: its SHA-256 begins with {digest[:8]}, not with {t.pretrained_sha256[:8]}: it has "
                        "changed since it was recorded; give the old file, or set train.pretrained_sha256=null")
    t.pretrained, t.pretrained_sha256 = str(path), digest
    try:
        drop = True if _has_other_classes(path, cfg) else None
        found = convert(m.name, state, part=m.pretrained_part, drop_classifier=drop, **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    own = {p.name: p for p in net.get_parameters()}
    for name, value in found.params.items():
        if not name.endswith(".step"):      # dropout counters start at 0
            own[name].set_data(Tensor(value, own[name].dtype))
    log.info("%d of %d parameters loaded from %s (%s)", len(found.params), len(own), path, found.source)
    if found.missing:
        log.info("new, with random weights: %s", ", ".join(_layers(found.missing, found.params)))


def _has_other_classes(path: str | Path, cfg: Config) -> bool:
    """Tests whether a checkpoint of this project names other classes, or has them in another order.

    Args:
        path: Any file of weights.
        cfg: Resolved configuration of the network that shall get them.
    """
    text = read_checkpoint(path)[1].get("config") if Path(path).suffix == ".ckpt" else None
    if not text:
        return False
    try:
        theirs = dataset_info(parse_config(text, f"{path}: its configuration").data).classes
    except UserError:       # of another version of this project; the shapes of the weights still tell the number
        return False
    return tuple(theirs) != tuple(dataset_info(cfg.data).classes)


def _layers(missing: Iterable[str], loaded: Iterable[str]) -> list[str]:
    """Names of the layers of ``missing`` parameters; one name for a part of the network of which nothing is loaded."""
    parts = {name.split(".")[0] for name in loaded}
    return list(dict.fromkeys(name.rpartition(".")[0] if name.split(".")[0] in parts else name.split(".")[0]
                              for name in missing))


def without_training_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes counters of a training run, and replaces weights by their moving averages where there are any.

    Args:
        state: Arrays of a checkpoint, by parameter name.
    """
    averages = {name.removeprefix("ema."): value for name, value in state.items() if name.startswith("ema.")}
    kept = {name: value for name, value in state.items()
            if not name.startswith("ema.") and name not in ("good_steps", "eval_step")}
    return kept | averages
