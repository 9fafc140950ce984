"""Learning-rate schedules: one float32 value for every optimizer step."""
import numpy as np


def poly(steps: int, lr: float, power: float, min_lr: float) -> np.ndarray:
    """lr * (1 - t/T)**power + min_lr's share, as DeepLab (arXiv:1606.00915) and mmsegmentation use it."""
    t = np.arange(steps) / steps
    return (lr - min_lr) * (1.0 - t) ** power + min_lr


def cosine(steps: int, lr: float, min_lr: float) -> np.ndarray:
    """Half a cosine from lr to min_lr (SGDR, arXiv:1608.03983, without restarts)."""
    t = np.arange(steps) / steps
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + np.cos(np.pi * t))


def step(steps: int, lr: float, milestones: list[int], gamma: float) -> np.ndarray:
    """lr times gamma for every milestone (in steps) that has been passed."""
    passed = np.searchsorted(np.asarray(milestones), np.arange(steps), side="right")
    return lr * gamma ** passed


def warm_up(rates: np.ndarray, steps: int, factor: float) -> np.ndarray:
    """Scales the first ``steps`` rates by a line from ``factor`` to 1."""
    count = min(steps, len(rates))
    rates = rates.copy()
    rates[:count] *= factor + (1.0 - factor) * np.arange(count) / max(steps, 1)
    return rates


def create_schedule(cfg_optim: dict, steps: int, steps_per_epoch: int) -> np.ndarray:
    """The learning rate of every step by the configuration.

    Args:
        cfg_optim: Section ``optim``.
        steps: Optimizer steps of the whole run.
        steps_per_epoch: Turns ``optim.step_epochs`` into steps.

    Returns:
        (steps,) float32.
    """
    o = cfg_optim
    if o.schedule == "poly":
        rates = poly(steps, o.lr, o.power, o.min_lr)
    elif o.schedule == "cosine":
        rates = cosine(steps, o.lr, o.min_lr)
    elif o.schedule == "step":
        rates = step(steps, o.lr, [epoch * steps_per_epoch for epoch in o.step_epochs], o.step_gamma)
    else:
        rates = np.full(steps, o.lr)
    return warm_up(rates, o.warmup_steps, o.warmup_factor).astype(np.float32)
