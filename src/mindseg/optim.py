"""Optimizers, with weight decay and learning rate per group of parameters."""
import re
from dataclasses import dataclass

import numpy as np

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindseg.buffers import SMALL, Join, Split
from mindseg.compat import assign, assign_add, assign_sub, take
from mindseg.config import Config
from mindseg.errors import ConfigError
from mindseg.schedules import create_schedule

BETA1, BETA2 = 0.9, 0.999     # decay of Adam's moments


@dataclass(frozen=True)
class ParameterSettings:
    """Settings of one parameter.

    Attributes:
        param: Parameter.
        weight_decay: Weight decay, at least 0.
        lr_factor: Factor of the learning rate, at least 0.
    """
    param: Parameter
    weight_decay: float
    lr_factor: float


class Optimizer(nn.Cell):
    """Base class: parameters, and the learning rate of the current step. Sub-classes define ``construct``.

    Attributes:
        parameters: Parameters to update.
        small: Number of the first of them that have at most ``buffers.SMALL`` values.

    Args:
        settings: Parameters to update and their settings.
        rates: (steps,) float32, learning rate of every step.
        decoupled: Weight decay is no part of the gradient.
    """

    def __init__(self, settings: list[ParameterSettings], rates: np.ndarray, decoupled: bool = False) -> None:
        super().__init__(auto_prefix=False)
        # First the small ones with weight decay, which are decayed in one buffer: operators for each would cost an
        # Ascend many launches. Then the other small ones, then the large ones.
        decay = 0.0 if decoupled else max((s.weight_decay for s in settings), default=0.0)
        settings = sorted(settings, key=lambda s: (s.param.size > SMALL, s.weight_decay != decay))
        self.small = sum(s.param.size <= SMALL for s in settings)
        self.decayed = sum(s.weight_decay == decay for s in settings[:self.small]) if decay > 0 else 0
        self.decay = decay
        self.parameters = ParameterTuple([s.param for s in settings])
        self.decays = (0.0,) * self.decayed + tuple(s.weight_decay for s in settings[self.decayed:])
        self.join, self.split = Join(), Split(self.parameters[:self.small])
        self.rest = sum(p.size for p in self.parameters[self.decayed:self.small])
        self.factors = tuple(s.lr_factor for s in settings)
        self.rates = Tensor(rates)
        self.global_step = Parameter(Tensor([0], ms.int32), name="global_step", requires_grad=False)
        # Maps instead of loops: graph mode unrolls a loop, and ENet has more parameters than it can nest calls.
        self.map = ops.HyperMap()

    def construct(self, gradients: tuple[Tensor, ...]) -> None:
        """Makes one step.

        Args:
            gradients: (P,) float32, those of the small parameters one behind the other, then each large one.
        """
        raise NotImplementedError

    def unpack(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One gradient for each parameter, with that of the L2 penalty of those that are decayed in the buffer."""
        buffer = gradients[0]
        if self.decayed > 0:
            penalty = self.decay * self.join(self.parameters[:self.decayed])
            if self.decayed < self.small:
                penalty = ops.concat((penalty, ops.zeros((self.rest,), ms.float32)))
            buffer = buffer + penalty
        return self.split(buffer, self.parameters[:self.small]) + gradients[1:]

    def next_rate(self) -> Tensor:
        """Looks up the learning rate of this step, a scalar, and counts the step."""
        rate = ops.reshape(take(self.rates, self.global_step), ())
        assign_add(self.global_step, Tensor([1], ms.int32))
        return rate


def _add_decay(gradient: Tensor, weight: Parameter, decay: float) -> Tensor:
    """Adds the gradient of an L2 penalty."""
    return gradient + decay * weight if decay > 0 else gradient


def _scale(rate: Tensor, factor: float) -> Tensor:
    """Multiplies by a factor, which is mostly 1."""
    return rate if factor == 1.0 else rate * factor


class Momentum(Optimizer):
    """Stochastic gradient descent with momentum: v = momentum * v + grad, w -= lr * v, as in PyTorch without dampening.

    Args:
        settings: As in :class:`Optimizer`.
        rates: As there.
        momentum: Factor of the old moment, 0..1.
        nesterov: w -= lr * (grad + momentum * v) instead.
    """

    def __init__(self, settings: list[ParameterSettings], rates: np.ndarray, momentum: float, nesterov: bool) -> None:
        super().__init__(settings, rates)
        self.momentum = Tensor(momentum, ms.float32)
        self.nesterov = nesterov
        self.moments = self.parameters.clone(prefix="accum" if nesterov else "moments", init="zeros")
        self.apply, self.subtract = ops.ApplyMomentum(), ops.ApplyGradientDescent()
        # v = momentum * (v + decay / momentum * w) + grad: in place, without memory for the sum of a large gradient and
        # its penalty.
        in_place = momentum > 0 and not nesterov
        self.shares = tuple(-decay / momentum if in_place else 0.0 for decay in self.decays)

    def construct(self, gradients: tuple[Tensor, ...]) -> None:
        """Makes one step, see :class:`Optimizer`."""
        step = ops.partial(self._step, self.next_rate())
        self.map(step, self.unpack(gradients), self.parameters, self.moments, self.decays, self.shares, self.factors)

    def _step(self, rate: Tensor, gradient: Tensor, weight: Parameter, moment: Parameter, decay: float, share: float,
              factor: float) -> bool:
        rate = _scale(rate, factor)
        if share < 0:
            self.subtract(moment, share, weight)
        else:
            gradient = _add_decay(gradient, weight, decay)
        if self.nesterov:
            # w -= lr * (grad + momentum * v). The primitive's own Nesterov steps are wrong on the CPU.
            self.apply(weight, moment, rate * self.momentum, gradient, self.momentum)
            assign_sub(weight, rate * gradient)
        else:
            self.apply(weight, moment, rate, gradient, self.momentum)
        return True


class Adam(Optimizer):
    """Adam with bias correction (arXiv 1412.6980), and with L2 or decoupled weight decay (AdamW, arXiv 1711.05101).

    Args:
        settings: As in :class:`Optimizer`.
        rates: As there.
        eps: Small number added to the root of the second moment.
        decoupled: First w -= lr * decay * w, then Adam; otherwise decay * w is added to the gradient.
    """

    def __init__(self, settings: list[ParameterSettings], rates: np.ndarray, eps: float, decoupled: bool) -> None:
        super().__init__(settings, rates, decoupled)
        self.eps = Tensor(eps, ms.float32)
        self.decoupled = decoupled
        self.beta1_power = Parameter(Tensor(1.0, ms.float32), name="beta1_power", requires_grad=False)
        self.beta2_power = Parameter(Tensor(1.0, ms.float32), name="beta2_power", requires_grad=False)
        self.moment1 = self.parameters.clone(prefix="moment1", init="zeros")
        self.moment2 = self.parameters.clone(prefix="moment2", init="zeros")
        self.apply = ops.Adam()

    def construct(self, gradients: tuple[Tensor, ...]) -> None:
        """Makes one step, see :class:`Optimizer`."""
        powers = self.beta1_power * BETA1, self.beta2_power * BETA2
        assign(self.beta1_power, powers[0])
        assign(self.beta2_power, powers[1])
        step = ops.partial(self._step, powers, self.next_rate())
        gradients = self.unpack(gradients)
        self.map(step, gradients, self.parameters, self.moment1, self.moment2, self.decays, self.factors)

    def _step(self, powers: tuple[Tensor, Tensor], rate: Tensor, gradient: Tensor, weight: Parameter,
              moment1: Parameter, moment2: Parameter, decay: float, factor: float) -> bool:
        rate = _scale(rate, factor)
        if not self.decoupled:
            gradient = _add_decay(gradient, weight, decay)
        elif decay > 0:
            assign(weight, weight * (1.0 - rate * decay))
        self.apply(weight, moment1, moment2, powers[0], powers[1], rate, BETA1, BETA2, self.eps, gradient)
        return True


def parameter_settings(cfg_optim: Config, net: nn.Cell) -> list[ParameterSettings]:
    """Looks up weight decay and learning rate of the trainable parameters.

    Args:
        cfg_optim: Section ``optim``: ``weight_decay``, ``decay_norm_bias`` (False: no decay of one-dimensional
            parameters, which are scales and shifts of BatchNorm, biases and PReLU slopes) and ``lr_factors`` (the first
            pattern found in a parameter's name counts).
        net: Network.

    Returns:
        One entry for each trainable parameter, in the network's order.

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
    settings = []
    for param in params:
        decay = o.weight_decay if o.decay_norm_bias or param.ndim > 1 else 0.0
        factor = next((f for pattern, f in factors.items() if re.search(pattern, param.name)), 1.0)
        settings.append(ParameterSettings(param, float(decay), float(factor)))
    return settings


def create_optimizer(cfg_optim: Config, net: nn.Cell, steps: int, steps_per_epoch: int) -> Optimizer:
    """Builds the optimizer, whose learning rate follows the schedule of section ``optim``.

    ``sgd`` and ``momentum`` are the same.

    Args:
        cfg_optim: Section ``optim``.
        net: Network to train.
        steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one epoch.

    Returns:
        A cell that is called with the gradients of its attribute ``parameters``, see :class:`Optimizer`.
    """
    o = cfg_optim
    settings = parameter_settings(o, net)
    rates = create_schedule(o, steps, steps_per_epoch)
    if o.name in ("sgd", "momentum"):
        return Momentum(settings, rates, o.momentum, o.nesterov)
    return Adam(settings, rates, o.eps, decoupled=o.name == "adamw")
