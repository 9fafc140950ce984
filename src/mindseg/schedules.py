"""Learning-rate schedules: one float32 value for every optimizer step.

A curve is a function of the position t, 0 <= t < 1 from its start to its end, or of the epoch.
"""
import numpy as np

from mindseg.config import Config
from mindseg.errors import ConfigError

_MOST_STEPS = 10_000_000    # the limit of train.steps


def poly(t: np.ndarray, lr: float, power: float, min_lr: float) -> np.ndarray:
    """Computes (lr - min_lr) * (1 - t)**power + min_lr, as in DeepLab (arXiv 1606.00915) and mmsegmentation's PolyLR.

    Args:
        t: (steps,) positions, 0..1.
        lr: Learning rate at t = 0.
        power: Exponent.
        min_lr: Learning rate at t = 1.
    """
    return (lr - min_lr) * (1.0 - t) ** power + min_lr


def cosine(t: np.ndarray, lr: float, min_lr: float) -> np.ndarray:
    """Computes half a cosine from lr to min_lr, as in SGDR (arXiv 1608.03983) without restarts.

    Args:
        t: (steps,) positions, 0..1.
        lr: Learning rate at t = 0.
        min_lr: Learning rate at t = 1.
    """
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + np.cos(np.pi * t))


def step(epoch: np.ndarray, lr: float, milestones: list[int], gamma: float) -> np.ndarray:
    """Multiplies the learning rate by gamma at every milestone.

    Args:
        epoch: (steps,) epochs, with fractions.
        lr: Learning rate at the start.
        milestones: Epochs in rising order.
        gamma: Factor.
    """
    return lr * gamma ** np.searchsorted(np.asarray(milestones), epoch, side="right")


def exponential(epoch: np.ndarray, lr: float, gamma: float) -> np.ndarray:
    """Computes lr * gamma**epoch.

    Args:
        epoch: (steps,) epochs, with fractions.
        lr: Learning rate at the start.
        gamma: Factor of one epoch.
    """
    return lr * gamma ** epoch


def warm_up(rates: np.ndarray, steps: int, factor: float, rule: str = "linear") -> np.ndarray:
    """Multiplies the learning rates of the first steps by a factor that rises to 1.

    Args:
        rates: (total steps,) learning rate of every step.
        steps: Steps of warm-up.
        factor: Factor of the first step, 0 < factor <= 1 (``linear``: also 0).
        rule: ``linear``, or ``exponential``: factor**(1 - i/steps) for step i, as in CoinCheung/BiSeNet.
    """
    count = min(steps, len(rates))
    done = np.arange(count) / max(steps, 1)
    rates = rates.copy()
    rates[:count] *= factor + (1.0 - factor) * done if rule == "linear" else factor ** (1.0 - done)
    return rates


def create_schedule(cfg_optim: Config, steps: int, steps_per_epoch: int) -> np.ndarray:
    """Computes the learning rate of every step from the configuration.

    Args:
        cfg_optim: Section ``optim``.
        steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one epoch.

    Returns:
        (steps,) float32.

    Raises:
        ConfigError: The run is longer than its curve (``schedule_start``, ``schedule_epochs``), or too long at all.
    """
    o = cfg_optim
    if steps > _MOST_STEPS:
        raise ConfigError(f"train.epochs: {steps} steps are over {_MOST_STEPS}; lower it, or set train.steps")
    first = o.schedule_start * steps_per_epoch
    position = first + np.arange(steps)
    length = o.schedule_epochs * steps_per_epoch if o.schedule_epochs else first + steps
    if first + steps > length:
        raise ConfigError(f"optim.schedule_start = {o.schedule_start} and {steps} steps end beyond "
                          f"optim.schedule_epochs = {o.schedule_epochs} ({length} steps); raise schedule_epochs")
    if o.schedule_unit == "epoch":
        position = position // steps_per_epoch * steps_per_epoch
    t, epoch = position / length, position / steps_per_epoch
    if o.schedule == "poly":
        rates = poly(t, o.lr, o.power, o.min_lr)
    elif o.schedule == "cosine":
        rates = cosine(t, o.lr, o.min_lr)
    elif o.schedule == "step":
        rates = step(epoch, o.lr, o.step_epochs, o.step_gamma)
    elif o.schedule == "exponential":
        rates = exponential(epoch, o.lr, o.step_gamma)
    else:
        rates = np.full(steps, o.lr)
    return warm_up(rates, o.warmup_steps, o.warmup_factor, o.warmup).astype(np.float32)
