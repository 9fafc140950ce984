"""Optimizers, with weight decay and learning rate per group of parameters."""
import re

import numpy as np

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindseg.config import Config
from mindseg.errors import ConfigError
from mindseg.schedules import create_schedule


class AdamW(nn.Cell):
    """Adam with bias correction and decoupled weight decay (arXiv 1711.05101): first w -= lr * decay * w, then Adam.

    ``nn.AdamWeightDecay`` has no bias correction, so its first steps are far too long.

    Args:
        groups: Parameter groups as for ``nn.Adam``.
        learning_rate: (steps,) float32, learning rate of every step.
        eps: Small number added to the root of the second moment.
    """

    def __init__(self, groups: list[dict], learning_rate: Tensor, eps: float) -> None:
        super().__init__(auto_prefix=False)
        decays = {p.name: group.get("weight_decay", 0.0) for group in groups for p in group.get("params", ())}
        self.adam = nn.Adam([{**group, "weight_decay": 0.0} if "params" in group else group for group in groups],
                            learning_rate, eps=eps)
        self.parameters = self.adam.parameters
        self.decays = tuple(decays[p.name] for p in self.parameters)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Makes one step with the gradients of ``parameters``, in that order."""
        rates = self.adam.get_lr()
        for i in range(len(self.parameters)):
            if self.decays[i] > 0:
                rate = rates[i] if self.adam.is_group_lr else rates
                ops.assign(self.parameters[i], self.parameters[i] * (1.0 - rate * self.decays[i]))
        return self.adam(gradients)


def group_parameters(cfg_optim: Config, net: nn.Cell, rates: np.ndarray) -> list[dict]:
    """Splits the trainable parameters by weight decay and by learning rate.

    Args:
        cfg_optim: Section ``optim``: ``weight_decay``, ``decay_norm_bias`` (False: no decay of one-dimensional
            parameters, which are scales and shifts of BatchNorm, biases and PReLU slopes) and ``lr_factors`` (the first
            pattern found in a parameter's name counts).
        net: Network.
        rates: (steps,) learning rate of every step.

    Returns:
        Parameter groups for a MindSpore optimizer, in the network's order; every trainable parameter is in exactly one.

    Raises:
        ConfigError: A pattern matches no parameter, or a factor is negative.
    """
    o, params = cfg_optim, net.trainable_params()
    factors = o.lr_factors or {}
    for pattern, factor in factors.items():
        if not any(re.search(pattern, p.name) for p in params):
            raise ConfigError(f"optim.lr_factors: '{pattern}' matches no parameter of the network; names are like "
                              f"{params[0].name} and {params[-1].name}")
        if not isinstance(factor, (int, float)) or factor < 0:
            raise ConfigError(f"optim.lr_factors: {pattern} = {factor!r} must be a number of at least 0")
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for param in params:
        decay = o.weight_decay if o.decay_norm_bias or param.ndim > 1 else 0.0
        factor = next((float(f) for pattern, f in factors.items() if re.search(pattern, param.name)), 1.0)
        groups.setdefault((decay, factor), []).append(param)
    result: list[dict] = [{"params": members, "weight_decay": decay} for (decay, _), members in groups.items()]
    if factors:
        for group, (_, factor) in zip(result, groups, strict=True):
            group["lr"] = Tensor((rates * factor).astype(np.float32))
    return [*result, {"order_params": params}] if len(result) > 1 else result


def create_optimizer(cfg_optim: Config, net: nn.Cell, steps: int, steps_per_epoch: int) -> nn.Cell:
    """Builds the optimizer, whose learning rate follows the schedule of section ``optim``.

    ``sgd`` and ``momentum`` are the same: v = momentum * v + grad, w -= lr * v, as in PyTorch without dampening.
    ``nn.Momentum`` needs one array per parameter and ``nn.SGD`` two, but Nesterov steps of ``nn.Momentum`` are wrong on
    the CPU.

    Args:
        cfg_optim: Section ``optim``.
        net: Network to train.
        steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one epoch.

    Returns:
        A cell that is called with the gradients of its attribute ``parameters``, in that order.
    """
    o = cfg_optim
    # One more value than steps, because MindSpore looks up the learning rate of the step after the last one.
    rates = create_schedule(o, steps, steps_per_epoch)
    rates = np.append(rates, rates[-1])
    groups = group_parameters(o, net, rates)
    learning_rate = ms.Tensor(rates)
    if o.name in ("sgd", "momentum"):
        if o.nesterov:
            return nn.SGD(groups, learning_rate, momentum=o.momentum, nesterov=True)
        return nn.Momentum(groups, learning_rate, momentum=o.momentum)
    if o.name == "adamw":
        return AdamW(groups, learning_rate, o.eps)
    return nn.Adam(groups, learning_rate, eps=o.eps)
