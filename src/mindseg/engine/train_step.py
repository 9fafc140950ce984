"""One training step as one compiled graph: normalise, forward, loss, gradients, update."""
from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.communication import GlobalComm

from mindseg.comm import broadcast_parameters
from mindseg.losses import EPSILON, MultiHeadLoss
from mindseg.models.normalize import Normalize

SCALE_WINDOW = 1000     # good steps after which a dynamic loss scale doubles


@dataclass(frozen=True)
class StepOptions:
    """Options of a training step.

    Attributes:
        size: Number of devices.
        accumulation: Micro-batches per step on each device.
        clip_norm: Limit of the global gradient norm; 0: off.
        loss_scale: Factor of the loss in the backward pass, which keeps small float16 gradients from becoming 0.
        dynamic_scale: Halve the loss scale after an overflow, and double it after 1000 steps without one.
        drop_overflow: Skip the update if the gradients are not finite; always on with ``dynamic_scale``.
        ema_decay: Decay of a moving average of the weights; 0: no average.
        average_statistics: Average BatchNorm's moving statistics over the devices; not needed if it is synchronised.
    """
    size: int = 1
    accumulation: int = 1
    clip_norm: float = 0.0
    loss_scale: float = 1.0
    dynamic_scale: bool = False
    drop_overflow: bool = False
    ema_decay: float = 0.0
    average_statistics: bool = False


class TrainStep(nn.Cell):
    """Network, loss and optimizer in one cell; all devices start with the weights of rank 0.

    Args:
        net: Network; in training it returns a tuple of logits.
        loss: Loss of that tuple.
        optimizer: Cell that updates its attribute ``parameters``, see :func:`mindseg.optim.create_optimizer`.
        normalize: Cell from uint8 images to the network's input.
        options: Options of the step.
    """

    def __init__(self, net: nn.Cell, loss: MultiHeadLoss, optimizer: nn.Cell, normalize: Normalize,
                 options: StepOptions = StepOptions()) -> None:
        super().__init__(auto_prefix=False)
        broadcast_parameters(net.get_parameters(), options.size)
        self.net = net
        self.loss = loss
        self.optimizer = optimizer
        self.normalize = normalize
        self.options = options
        self.weights = optimizer.parameters
        self.loss_and_gradients = ms.value_and_grad(self._forward, None, self.weights)
        self.split = options.size > 1 or options.accumulation > 1
        self.scaled = options.dynamic_scale or options.loss_scale != 1.0
        if options.size > 1:
            self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP)
            self.reduce = nn.DistributedGradReducer(self.weights, mean=False, degree=options.size)
            self.statistics = tuple(p for p in net.get_parameters() if ".moving_" in p.name)
        if options.accumulation > 1:
            self.gradient_sums = self.weights.clone(prefix="accumulated", init="zeros")
            self.loss_sums = Parameter(Tensor([0.0, 0.0, 0.0], mstype.float32), "accumulated.loss", requires_grad=False)
        if self.scaled:
            self.loss_scale = Parameter(Tensor(options.loss_scale, mstype.float32), "loss_scale", requires_grad=False)
            self.good_steps = Parameter(Tensor(0, mstype.int32), "good_steps", requires_grad=False)
        if options.ema_decay > 0:
            self.averaged = ParameterTuple([p for p in net.get_parameters() if p.dtype == mstype.float32])
            self.averages = self.averaged.clone(prefix="ema", init="same")
        self.set_train()

    def construct(self, image: Tensor, label: Tensor, stop: float = 0.0, last: bool = True) -> Tensor:
        """Makes one step, or adds one micro-batch to it.

        Args:
            image: uint8 (N, H, W, 3).
            label: uint8 (N, H, W) train ids.
            stop: 1 if this device was asked to stop, else 0.
            last: This is the last micro-batch of the step.

        Returns:
            (2,) float32: the loss before the update, over all devices and micro-batches, and a number above 0 if any
            device was asked to stop. Meaningless if ``last`` is False.
        """
        label = ops.cast(label, mstype.int32)
        # Weight of this micro-batch among all, per pixel so that float16 does not overflow. It multiplies the loss
        # before the backward pass, where synchronised BatchNorm mixes the gradients of all devices.
        weight = self.loss.weight_sum(label) / label.size if self.split else Tensor(1.0, mstype.float32)
        loss, grads = self.loss_and_gradients(self.normalize(image), label, weight)
        if self.scaled:
            loss = loss / self.loss_scale
        stop = ops.cast(stop, mstype.float32)
        if self.split:
            sums = ops.stack((loss, weight, stop))
            if self.options.accumulation > 1:
                grads, sums = self._accumulate(grads, sums, last)
                if not last:
                    return sums
            if self.options.size > 1:
                sums = self.all_reduce(sums)
            factor = 1.0 / ops.maximum(sums[1], EPSILON)
            loss, stop = sums[0] * factor, sums[2]
            grads = _scale_all(grads, factor / self.loss_scale if self.scaled else factor)
            if self.options.size > 1:
                # After the scaling, because MindSpore rewrites all_reduce(g) * f + decay * w as if f were 1 / size,
                # and would scale the weight decay too.
                grads = self.reduce(grads)
        elif self.scaled:
            grads = _scale_all(grads, 1.0 / self.loss_scale)
        self._update(grads)
        return ops.stack((loss, stop))

    def swap_averages(self) -> None:
        """Exchanges the weights and their moving averages, if there are any; a second call restores them."""
        if self.options.ema_decay > 0:
            for param, average in zip(self.averaged, self.averages, strict=True):
                values = param.asnumpy().copy(), average.asnumpy().copy()
                param.set_data(Tensor(values[1]))
                average.set_data(Tensor(values[0]))

    def _forward(self, image: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        loss = self.loss(self.net(image), label)
        if self.split:
            loss = loss * weight
        return loss * self.loss_scale if self.scaled else loss

    def _accumulate(self, grads: tuple[Tensor, ...], sums: Tensor, last: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """Adds a micro-batch to the sums of the step and returns them; the last one resets them to 0."""
        total = ()
        for i in range(len(grads)):
            total += (self.gradient_sums[i] + grads[i],)
            ops.assign(self.gradient_sums[i], ops.zeros_like(grads[i]) if last else total[i])
        sums = self.loss_sums + sums
        ops.assign(self.loss_sums, ops.zeros_like(sums) if last else sums)
        return total, sums

    def _update(self, grads: tuple[Tensor, ...]) -> None:
        if self.options.dynamic_scale or self.options.drop_overflow:
            finite = _all_finite(grads)
            if finite:
                self._apply(grads)
            if self.options.dynamic_scale:
                self._adapt_scale(finite)
        else:
            self._apply(grads)
        if self.options.size > 1 and self.options.average_statistics:
            self._average_statistics()

    def _apply(self, grads: tuple[Tensor, ...]) -> None:
        if self.options.clip_norm > 0:
            grads = ops.clip_by_global_norm(grads, self.options.clip_norm)
        self.optimizer(grads)
        if self.options.ema_decay > 0:
            for i in range(len(self.averages)):
                moved = (1.0 - self.options.ema_decay) * (self.averaged[i] - self.averages[i])
                ops.assign_add(self.averages[i], moved)

    def _adapt_scale(self, finite: Tensor) -> None:
        good = ops.where(finite, self.good_steps + 1, ops.zeros_like(self.good_steps))
        double = good >= SCALE_WINDOW
        scale = ops.where(finite, self.loss_scale, ops.maximum(self.loss_scale / 2.0, 1.0))
        ops.assign(self.loss_scale, ops.where(double, scale * 2.0, scale))
        ops.assign(self.good_steps, ops.where(double, ops.zeros_like(good), good))

    def _average_statistics(self) -> None:
        """Averages all moving statistics in one all-reduce, so the checkpoint of any rank fits all ranks."""
        flat = ops.concat([p.reshape(-1) for p in self.statistics])
        flat = self.all_reduce(flat) / self.options.size
        start = 0
        for param in self.statistics:
            ops.assign(param, flat[start:start + param.size].reshape(param.shape))
            start += param.size


def _scale_all(grads: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
    scaled = ()
    for grad in grads:
        scaled += (grad * factor,)
    return scaled


def _all_finite(grads: tuple[Tensor, ...]) -> Tensor:
    finite = ops.isfinite(grads[0]).all()
    for grad in grads[1:]:
        finite = ops.logical_and(finite, ops.isfinite(grad).all())
    return finite


def state_parameters(step: TrainStep) -> list[Parameter]:
    """Lists the parameters that a checkpoint needs to resume: weights, statistics, counters, optimizer state.

    Learning rates and momentum follow from the configuration, and sums over micro-batches are 0 between steps.

    Args:
        step: Training step.
    """
    derived = ("learning_rate", "accumulated.")
    return [p for _, p in step.parameters_and_names() if p.name != "momentum" and not p.name.startswith(derived)]
