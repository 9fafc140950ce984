"""The four networks behind one function."""
import importlib
import inspect

from mindspore import nn

from mindseg.config import Config
from mindseg.errors import UserError

MODELS = {
    "fast_scnn": "FastSCNN",
    "fcn8s": "FCN8s",
    "enet": "ENet",
    "bisenetv2": "BiSeNetV2",
}


def model_class(name: str) -> type[nn.Cell]:
    """Finds the class of a network.

    Args:
        name: ``fast_scnn``, ``fcn8s``, ``enet`` or ``bisenetv2``.

    Raises:
        UserError: There is no such network.
    """
    try:
        cls = MODELS[name]
    except KeyError:
        raise UserError(f"model {name!r} is unknown; choose one of {', '.join(MODELS)}") from None
    return getattr(importlib.import_module(f"mindseg.models.{name}"), cls)


def model_options(name: str) -> dict[str, object]:
    """Lists the options of a network, the arguments of its class beside ``num_classes``, with their defaults.

    Args:
        name: As in :func:`model_class`.
    """
    parameters = inspect.signature(model_class(name).__init__).parameters
    return {key: value.default for key, value in parameters.items() if key not in ("self", "num_classes")}


def create_model(name: str, num_classes: int, **kwargs: object) -> nn.Cell:
    """Creates a network with random weights (``mindspore.set_seed`` makes them reproducible).

    Args:
        name: ``fast_scnn``, ``fcn8s``, ``enet`` or ``bisenetv2``.
        num_classes: Channels of the logits, at least 1.
        **kwargs: Options of the network, see its class.

    Returns:
        A cell that takes normalised images (N, 3, H, W) float32, H and W at least 32. In evaluation mode it returns
        logits (N, num_classes, H, W), in training mode (``set_train(True)``) a tuple of such logits: those of the main
        head, then those of the auxiliary heads.

    Raises:
        UserError: The name, an option or a value is unknown.
    """
    cls = model_class(name)
    options = model_options(name)
    unknown = sorted(set(kwargs) - set(options))
    if unknown:
        raise UserError(f"model {name!r} has no option {', '.join(map(repr, unknown))}; use {', '.join(options)}")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes {num_classes!r} must be a whole number >= 1")
    return cls(num_classes, **kwargs)


def build_network(cfg: Config, **replace: object) -> nn.Cell:
    """The network of section ``model``; keys that are null keep the network's own defaults.

    Args:
        cfg: Configuration.
        **replace: Constructor arguments that win over the configuration.
    """
    arguments = {k: v for k, v in cfg.model.items() if k not in ("name", "num_classes", "pretrained_part")}
    arguments = {k: v for k, v in {**arguments, **replace}.items() if v is not None}
    return create_model(cfg.model.name, cfg.model.num_classes, **arguments)
