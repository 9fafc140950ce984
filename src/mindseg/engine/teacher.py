"""A trained network that gives soft targets to another one (``loss.distill``)."""
from mindspore import nn

from mindseg.checkpoint import load_network
from mindseg.config import Config, load_config
from mindseg.errors import ConfigError, shorten
from mindseg.inference.loading import checkpoint_config
from mindseg.inference.network import Forward
from mindseg.logs import log
from mindseg.losses import SoftTargetLoss
from mindseg.models.normalize import Normalize

_OPTIONS = {"ckpt": None, "config": None, "weight": 0.5, "temperature": 1.0}


def create_teacher(cfg: Config) -> tuple[nn.Cell, SoftTargetLoss] | None:
    """Makes the teacher of a training.

    Args:
        cfg: Resolved configuration. ``loss.distill`` has ``ckpt``, and if need be ``config`` (the one that the
            checkpoint carries), ``weight`` (0.5) and ``temperature`` (1).

    Returns:
        A cell from uint8 images (N, H, W, 3) to float32 logits (N, C, H, W), and the loss against them; None if there
        is no teacher.

    Raises:
        ConfigError: An option is unknown or out of range, or the teacher has other classes or another order of colours.
        UserError: The checkpoint cannot be read, or does not fit its configuration.
    """
    given = cfg.loss.distill
    if given is None:
        return None
    if unknown := [key for key in given if key not in _OPTIONS]:
        raise ConfigError(f"loss.distill has no option {shorten(unknown[0])}; use {', '.join(_OPTIONS)}")
    values = _OPTIONS | dict(given)
    if not isinstance(values["ckpt"], str):
        raise ConfigError("loss.distill needs ckpt, the checkpoint of the teacher: {ckpt: best.ckpt}")
    for key, low, high in (("weight", 0, 1), ("temperature", 0.01, 100)):
        number = values[key]
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not low <= number <= high:
            raise ConfigError(f"loss.distill: {key} = {shorten(number)} must be a number from {low} to {high}")
    path = values["ckpt"]
    teacher = load_config(values["config"]) if values["config"] else checkpoint_config(path)
    if teacher.model.num_classes != cfg.model.num_classes or teacher.data.color_order != cfg.data.color_order:
        raise ConfigError(f"loss.distill: {path} has {teacher.model.num_classes} classes and takes "
                          f"{teacher.data.color_order} images, this network {cfg.model.num_classes} and "
                          f"{cfg.data.color_order}; take a teacher of the same classes and order of colours")
    d = teacher.data
    cell = Forward(load_network(teacher, path), Normalize(d.mean, d.std, d.value_range), teacher.model.num_classes,
                   ids=False)
    log.info("soft targets of %s from %s, weight %g, temperature %g", teacher.model.name, path, values["weight"],
             values["temperature"])
    return cell, SoftTargetLoss(float(values["weight"]), float(values["temperature"]))
