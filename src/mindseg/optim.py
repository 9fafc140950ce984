"""Optimizers, with weight decay and learning rate by parameter group."""
import re

import numpy as np

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindseg.config import Config
from mindseg.errors import ConfigError
from mindseg.schedules import create_schedule


class AdamW(nn.Cell):
    """Adam with bias correction and decoupled weight decay (arXiv 1711.05101): first w -= lr * decay * w, then Adam.

    ``nn.AdamWeightDecay`` leaves the bias correction out, so it takes far too long steps at the start.

    Args:
        groups: Parameter groups as for ``nn.Adam``.
        rate: Learning rate of every step.
        eps: Added to the root of the second moment.
    """

    def __init__(self, groups: list[dict], rate: Tensor, eps: float) -> None:
        super().__init__(auto_prefix=False)
        decays = {p.name: group.get("weight_decay", 0.0) for group in groups for p in group.get("params", ())}
        self.adam = nn.Adam([{**group, "weight_decay": 0.0} if "params" in group else group for group in groups],
                            rate, eps=eps)
        self.parameters = self.adam.parameters
        self.decays = tuple(decays[p.name] for p in self.parameters)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        rates = self.adam.get_lr()
        for i in range(len(self.parameters)):
            if self.decays[i] > 0:
                rate = rates[i] if self.adam.is_group_lr else rates
                ops.assign(self.parameters[i], self.parameters[i] * (1.0 - rate * self.decays[i]))
        return self.adam(gradients)


def group_parameters(cfg_optim: Config, net: nn.Cell, rates: np.ndarray) -> list[dict]:
    """Splits the trainable parameters by weight decay and by learning rate.

    Args:
        cfg_optim: Section ``optim``: ``weight_decay``, ``decay_norm_bias`` (whether one-dimensional parameters decay:
            norm scale and shift, bias, PReLU slopes) and ``lr_factors`` (the first pattern found in the name wins).
        net: Network.
        rates: Learning rate of every step.

    Returns:
        Parameter groups for a MindSpore optimizer, in the network's order; every trainable parameter is in exactly one.

    Raises:
        ConfigError: A pattern fits no parameter, or a factor is negative.
    """
    o, params = cfg_optim, net.trainable_params()
    factors = o.lr_factors or {}
    for pattern, factor in factors.items():
        if not any(re.search(pattern, p.name) for p in params):
            raise ConfigError(f"optim.lr_factors: '{pattern}' fits no parameter of the network; names look like "
                              f"{params[0].name} and {params[-1].name}")
        if not isinstance(factor, (int, float)) or factor < 0:
            raise ConfigError(f"optim.lr_factors: {pattern} = {factor!r} must be a number, 0 or more")
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
    """Builds the optimizer whose learning rate follows the schedule, one value a step.

    SGD and momentum are two names of one rule, v = momentum * v + grad, w -= lr * v, as in PyTorch without dampening.
    ``nn.Momentum`` keeps one array a parameter where ``nn.SGD`` keeps two, but its Nesterov steps are wrong on the CPU.

    Args:
        cfg_optim: Section ``optim``.
        net: Network to train.
        steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one epoch.

    Returns:
        A cell that takes the gradients of its attribute ``parameters``, in that order.
    """
    o = cfg_optim
    # One more value than steps: MindSpore gathers the rate of the step after the last one before it stops.
    rates = create_schedule(o, steps, steps_per_epoch)
    rates = np.append(rates, rates[-1])
    groups = group_parameters(o, net, rates)
    rate = ms.Tensor(rates)
    if o.name in ("sgd", "momentum"):
        if o.nesterov:
            return nn.SGD(groups, rate, momentum=o.momentum, nesterov=True)
        return nn.Momentum(groups, rate, momentum=o.momentum)
    if o.name == "adamw":
        return AdamW(groups, rate, o.eps)
    return nn.Adam(groups, rate, eps=o.eps)
