"""Starting weights: a checkpoint's, or a part of them."""
from pathlib import Path

import numpy as np

from mindspore import Tensor, nn

from src.config import Config
from src.engine.checkpoint import load_weights, read_checkpoint
from src.engine.runlog import log
from src.errors import UserError

# What is left of each network without its head, whose shape depends on the classes.
BACKBONES = {
    "fast_scnn": ("learning_to_downsample.", "global_feature_extractor.", "feature_fusion."),
    "fcn8s": ("backbone.",),
    "enet": ("encoder.",),
    "bisenetv2": ("detail.", "segment.", "bga."),
}
_VECTORS = {"gamma": "gamma", "weight": "gamma", "beta": "beta", "bias": "beta", "moving_mean": "moving_mean",
            "running_mean": "moving_mean", "moving_variance": "moving_variance", "running_var": "moving_variance"}


def load_pretrained(net: nn.Cell, cfg: Config, path: str | Path) -> None:
    """Starts a network from a checkpoint's weights; step counter and optimizer stay new.

    ``model.pretrained_part`` chooses: ``all`` (every parameter must be there), ``backbone`` (all but the head, so that
    the number of classes may differ; for FCN-8s also an ImageNet VGG16 with BatchNorm, whatever its names), or
    ``encoder`` (parameters below ``encoder.``).

    Raises:
        UserError: The file is damaged, or does not hold what is asked for.
    """
    arrays, _ = read_checkpoint(path)
    part = cfg.model.pretrained_part
    if part == "all":
        load_weights(net, arrays, str(path))
        log.info("weights of %s loaded", path)
        return
    prefixes = ("encoder.",) if part == "encoder" else BACKBONES[cfg.model.name]
    wanted = {p.name: p for p in net.get_parameters() if p.name.startswith(prefixes) and not p.name.endswith(".step")}
    if not wanted:
        raise UserError(f"model.pretrained_part = {part}: {cfg.model.name} has no such part; use all or backbone")
    if cfg.model.name == "fcn8s" and not any(name in arrays for name in wanted):
        arrays = match_vgg(list(wanted), arrays)
    wrong = [name for name, p in wanted.items() if name not in arrays or tuple(arrays[name].shape) != tuple(p.shape)]
    if wrong:
        what = "is not in the file" if wrong[0] not in arrays else "has another shape"
        raise UserError(f"{path}: does not hold the {part} of {cfg.model.name}: {len(wrong)} of {len(wanted)} "
                        f"parameters do not fit ({wrong[0]} {what}); check model.name and model.variant")
    for name, param in wanted.items():
        param.set_data(Tensor(arrays[name], param.dtype))
    new = [p.name for p in net.get_parameters() if p.name not in wanted]
    log.info("%d parameters loaded from %s; %d are new: %s", len(wanted), path, len(new), _summary(new))


def match_vgg(names: list[str], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives the layers of a VGG16 with BatchNorm our names, by their order.

    The i-th convolution and the i-th BatchNorm of the file become ours; a convolution's bias, which ours lack because
    BatchNorm follows, is subtracted from the moving mean. Fully connected layers are left over.

    Args:
        names: Our parameter names, in order.
        arrays: MindSpore or PyTorch names (``layers.0.weight``, ``features.1.running_mean`` …).

    Returns:
        Arrays by our names, as many as the file has layers for.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, {})[leaf] = value
    convs = [leaves for leaves in layers.values() if getattr(leaves.get("weight"), "ndim", 0) == 4]
    norms = [{_VECTORS[leaf]: value for leaf, value in leaves.items() if leaf in _VECTORS} for leaves in layers.values()
             if any(leaf in leaves for leaf in ("moving_mean", "running_mean"))]
    found = {}
    own_convs = [name for name in names if name.endswith("conv.weight")]
    for name, conv, norm in zip(own_convs, convs, norms, strict=False):
        found[name] = conv["weight"]
        prefix = name.removesuffix("conv.weight") + "bn."
        if "bias" in conv:
            norm["moving_mean"] = norm["moving_mean"] - conv["bias"]
        found |= {prefix + leaf: value for leaf, value in norm.items()}
    return found


def _summary(names: list[str]) -> str:
    """The layers of parameter names, without repeating them for each parameter."""
    layers = list(dict.fromkeys(name.split(".")[0] for name in names))
    return ", ".join(layers) or "none"
