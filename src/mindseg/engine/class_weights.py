"""Class weights from the training labels (``loss.class_weights: auto``)."""
from pathlib import Path

from mindseg.checkpoint import read_checkpoint
from mindseg.comm import broadcast_object
from mindseg.config import Config, parse_saved
from mindseg.data.dataset_stats import class_weights, training_labels
from mindseg.data.datasets import dataset_info
from mindseg.logs import log


def settle_class_weights(cfg: Config, checkpoint: Path | None, size: int, is_main: bool) -> None:
    """Replaces ``loss.class_weights: auto`` by numbers; the run records them, for its resumption and repetition.

    Args:
        cfg: Resolved configuration.
        checkpoint: Checkpoint that rank 0 resumes, whose weights are taken; None: count the labels.
        size: Number of ranks, all of which call this; rank 0 reads.
        is_main: This is rank 0.

    Raises:
        DataError: A label is broken, or none has a labelled pixel.
    """
    if cfg.loss.class_weights == "auto":
        weights = (_saved(checkpoint) or _counted(cfg)) if is_main else None
        cfg.loss.class_weights = broadcast_object(weights, size)
        log.info("class weights: %s", ", ".join(f"{weight:g}" for weight in cfg.loss.class_weights))


def _saved(checkpoint: Path | None) -> list[float] | None:
    """Class weights of a checkpoint's configuration, if there are any."""
    if checkpoint is None:
        return None
    text = read_checkpoint(checkpoint)[1].get("config", "")
    weights = parse_saved(text, f"{checkpoint}: its configuration").get("loss", {}).get("class_weights")
    return weights if isinstance(weights, list) else None


def _counted(cfg: Config) -> list[float]:
    """Class weights of the training labels; 0 for ``data.void_class``."""
    stats, count = training_labels(cfg.data), len(dataset_info(cfg.data).classes)
    weights = class_weights(stats.class_pixels[:count], stats.image_pixels[:count], cfg.loss.class_weight_rule,
                            power=cfg.loss.class_weight_power)
    return [round(float(weight), 4) for weight in weights] + [0.0] * cfg.data.void_class
