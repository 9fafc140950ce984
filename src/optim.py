"""Optimizers with weight decay by parameter group."""
import numpy as np

import mindspore as ms
from mindspore import nn

from src.schedules import create_schedule


def group_parameters(net: nn.Cell, weight_decay: float, decay_norm_bias: bool) -> list[dict]:
    """Splits the trainable parameters into those that decay and those that do not.

    Args:
        net: Network.
        weight_decay: Decay of the first group.
        decay_norm_bias: Decay one-dimensional parameters (norm scale and shift, bias, PReLU slopes) too.

    Returns:
        Parameter groups for a MindSpore optimizer; every trainable parameter is in exactly one.
    """
    params = net.trainable_params()
    if decay_norm_bias:
        return [{"params": params, "weight_decay": weight_decay}]
    matrices = [p for p in params if p.ndim > 1]
    vectors = [p for p in params if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [*groups, {"order_params": params}]


def create_optimizer(cfg_optim: dict, net: nn.Cell, steps: int, steps_per_epoch: int) -> nn.Optimizer:
    """Builds the optimizer whose learning rate follows the schedule, one value a step.

    SGD is MindSpore's ``nn.SGD`` without dampening: v = momentum * v + grad, w -= lr * v, as in PyTorch.

    Args:
        cfg_optim: Section ``optim``.
        net: Network to train.
        steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one epoch.
    """
    o = cfg_optim
    # One more value than steps: MindSpore gathers the rate of the step after the last one before it stops.
    rates = create_schedule(o, steps, steps_per_epoch)
    rate = ms.Tensor(np.append(rates, rates[-1]))
    groups = group_parameters(net, o.weight_decay, o.decay_norm_bias)
    if o.name == "sgd":
        return nn.SGD(groups, rate, momentum=o.momentum, nesterov=o.nesterov)
    return nn.Adam(groups, rate, eps=o.eps)
