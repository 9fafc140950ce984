"""One training step as compiled pieces: normalise, forward, loss, gradients; sums over devices; update."""
from dataclasses import dataclass

import numpy as np

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.communication import GlobalComm

from mindseg.buffers import Join, Split
from mindseg.comm import broadcast_parameters
from mindseg.compat import assign, assign_add, cast, compiled, cut, release, total
from mindseg.losses import EPSILON, MultiHeadLoss, SoftTargetLoss
from mindseg.models.normalize import Normalize
from mindseg.optim import Optimizer

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
        drop_overflow: Skip the update if the gradients overflow; always on with ``dynamic_scale``.
        saturates: The device computes the largest number instead of infinity. The loss stays finite then, so overflows
            are looked for in every step.
        ema_decay: Decay of a moving average of the weights; 0: no average.
        average_statistics: Average BatchNorm's moving statistics over the devices; not needed if it is synchronised.
    """
    size: int = 1
    accumulation: int = 1
    clip_norm: float = 0.0
    loss_scale: float = 1.0
    dynamic_scale: bool = False
    drop_overflow: bool = False
    saturates: bool = False
    ema_decay: float = 0.0
    average_statistics: bool = False

    @property
    def split(self) -> bool:
        """True if a step has several micro-batches or devices, each of which counts by its valid pixels."""
        return self.size > 1 or self.accumulation > 1

    @property
    def drops(self) -> bool:
        """True if steps are skipped whose gradients overflow."""
        return self.dynamic_scale or self.drop_overflow


class Gradients(nn.Cell):
    """First piece of a step: normalise, forward, loss, backward. It communicates only if BatchNorm is synchronised.

    Small gradients are joined in one buffer: to add, to scale and to sum them over the devices takes one operator each.

    Args:
        net: Network; in training it returns a tuple of logits.
        loss: Loss of that tuple.
        normalize: Cell from uint8 images to the network's input.
        optimizer: Cell with the parameters that get gradients.
        options: Options of the step.
        loss_scale: Factor of the loss in the backward pass; None: 1.
        soft: Loss against the logits of a teacher, which are one more input then; None: no teacher.
    """

    def __init__(self, net: nn.Cell, loss: MultiHeadLoss, normalize: Normalize, optimizer: Optimizer,
                 options: StepOptions, loss_scale: Parameter | None, soft: SoftTargetLoss | None = None) -> None:
        super().__init__(auto_prefix=False)
        self.net = net
        self.soft = soft
        self.loss = loss
        self.normalize = normalize
        self.small = optimizer.small
        self.split = options.split
        self.checks = options.drops or options.saturates
        self.adds = options.accumulation > 1
        self.scaled = loss_scale is not None
        self.loss_scale = loss_scale
        self.join, self.map = Join(), ops.HyperMap()
        self.loss_and_gradients = ms.value_and_grad(self._forward, None, optimizer.parameters)

    def construct(self, image: Tensor, label: Tensor, stop: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Computes the gradients of a micro-batch, and adds them to those before.

        Args:
            image: uint8 (N, H, W, 3).
            label: uint8 (N, H, W) train ids.
            stop: Scalar float32, 1 if this device was asked to stop, else 0.
            others: The teacher's logits (N, C, H, W), if there is a teacher; then the result of the micro-batch before,
                or zeros, unless there is no accumulation.

        Returns:
            (P + 4,) float32: the P small gradients, of loss * weight * loss scale, then loss * weight, stop, 1 for an
            overflow, and the weight of the micro-batch; behind it each large gradient.
        """
        label = cast(label, mstype.int32)
        # Weight of this micro-batch among all, per pixel so that float16 does not overflow. It multiplies the loss
        # before the backward pass, where synchronised BatchNorm mixes the gradients of all devices.
        weight = self.loss.weight_sum(label) / label.size if self.split else Tensor(1.0, mstype.float32)
        targets, sums = (others[0], others[1:]) if self.soft is not None else (weight, others)
        loss, grads = self.loss_and_gradients(self.normalize(image), label, weight, targets)
        loss = loss / self.loss_scale if self.scaled else loss
        overflow = Tensor(0.0, mstype.float32)
        if self.checks:
            # Here and nowhere later: the first Ascend 910 computes no infinity, but sets flags, which this reads and
            # clears. Its own operators set them, and other devices have theirs.
            overflow = 1.0 - cast(ms.amp.all_finite(grads), mstype.float32)
        buffer = self.join((*grads[:self.small], ops.stack((loss, stop, overflow, weight))))
        result = (buffer, *grads[self.small:])
        return self.map(ops.add, sums, result) if self.adds else result

    def _forward(self, image: Tensor, label: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        outputs = self.net(image)
        loss = self.loss(outputs, label)
        if self.soft is not None:
            loss = self.soft(loss, outputs[0], targets)
        if self.split:
            loss = loss * weight
        return loss * self.loss_scale if self.scaled else loss


class Update(nn.Cell):
    """Second piece of a step: scale and clip the gradients, update the weights and their moving averages.

    Args:
        net: Network.
        optimizer: Cell that updates its attribute ``parameters``, see :func:`mindseg.optim.create_optimizer`.
        options: Options of the step.
        loss_scale: Factor of the loss in the backward pass; None: 1.
        statistics: BatchNorm's moving statistics that are averaged over the devices; may be empty.
    """

    def __init__(self, net: nn.Cell, optimizer: Optimizer, options: StepOptions, loss_scale: Parameter | None,
                 statistics: tuple[Parameter, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.options = options
        self.scaled = loss_scale is not None
        self.loss_scale = loss_scale
        self.tail = sum(p.size for p in optimizer.parameters[:optimizer.small])
        self.statistics, self.split_statistics = ParameterTuple(statistics), Split(statistics)
        self.map = ops.HyperMap()
        if self.scaled:
            self.good_steps = Parameter(Tensor(0, mstype.int32), "good_steps", requires_grad=False)
        if options.ema_decay > 0:
            self.averaged = ParameterTuple([p for p in net.get_parameters() if p.dtype == mstype.float32])
            self.averages = self.averaged.clone(prefix="ema", init="same")

    def construct(self, statistics: Tensor, buffer: Tensor, *large: Tensor) -> Tensor:
        """Makes the step.

        Args:
            statistics: (S,) float32, sums of the moving statistics over all devices; unused if there are none.
            buffer: (P + 4,) float32, see :class:`Gradients`, summed over all micro-batches and devices.
            large: The large gradients, summed likewise.

        Returns:
            (3,) float32 as :class:`TrainStep`.
        """
        result, grads = cut(buffer, (self.tail,), (3,)), (cut(buffer, (0,), (self.tail,)), *large)
        factor = Tensor(1.0, mstype.float32)
        if self.options.split:
            factor = 1.0 / ops.maximum(cut(buffer, (self.tail + 3,), (1,)), EPSILON)
            result = ops.concat((cut(result, (0,), (1,)) * factor, cut(result, (1,), (2,))))
        if self.scaled:
            factor = factor / self.loss_scale
        if self.options.split or self.scaled:
            grads = self.map(ops.partial(_scale, factor), grads)
        self._update(grads, ops.reshape(cut(result, (2,), (1,)), ()))
        if len(self.statistics) > 0:
            self.map(assign, self.statistics,
                     self.split_statistics(statistics / self.options.size, self.statistics))
        return result

    def _update(self, grads: tuple[Tensor, ...], overflow: Tensor) -> bool:
        """Updates the weights, unless the gradients overflowed and such steps are dropped."""
        if not self.options.drops:
            return self._apply(grads)
        finite = ops.equal(overflow, 0.0)
        # MindSpore cannot store a graph in which a branch has no value.
        applied = self._apply(grads) if finite else False
        if self.options.dynamic_scale:
            self._adapt_scale(finite)
        return applied

    def _apply(self, grads: tuple[Tensor, ...]) -> bool:
        if self.options.clip_norm > 0:
            norm = ops.sqrt(ops.stack(self.map(_square_sum, grads)).sum())
            factor = self.options.clip_norm / ops.maximum(norm, self.options.clip_norm)
            grads = self.map(ops.partial(_scale, factor), grads)
        self.optimizer(grads)
        if self.options.ema_decay > 0:
            self.map(ops.partial(_move, 1.0 - self.options.ema_decay), self.averages, self.averaged)
        return True

    def _adapt_scale(self, finite: Tensor) -> None:
        good = ops.where(finite, self.good_steps + 1, ops.zeros_like(self.good_steps))
        double = good >= SCALE_WINDOW
        scale = ops.where(finite, self.loss_scale, ops.maximum(self.loss_scale / 2.0, 1.0))
        assign(self.loss_scale, ops.where(double, scale * 2.0, scale))
        assign(self.good_steps, ops.where(double, ops.zeros_like(good), good))


class Statistics(nn.Cell):
    """Moving statistics of a network in one buffer.

    Args:
        statistics: Parameters.
    """

    def __init__(self, statistics: tuple[Parameter, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.statistics, self.join = ParameterTuple(statistics), Join()

    def construct(self) -> Tensor:
        """Joins them, (S,) float32."""
        return self.join(self.statistics)


class TrainStep:
    """Network, loss and optimizer; all devices start with the weights of rank 0.

    A step is made of two compiled pieces: gradients, then an update. Sums over devices are computed between them, so no
    compiled graph communicates, except for the layers of a synchronised BatchNorm. (As one graph, a single device would
    copy most weights before it updates them.)

    Args:
        net: Network; in training it returns a tuple of logits.
        loss: Loss of that tuple.
        optimizer: Cell that updates its attribute ``parameters``, see :func:`mindseg.optim.create_optimizer`.
        normalize: Cell from uint8 images to the network's input.
        options: Options of the step.
        teacher: Cell from uint8 images to logits, with its loss, for soft targets; None: no teacher.
    """

    def __init__(self, net: nn.Cell, loss: MultiHeadLoss, optimizer: Optimizer, normalize: Normalize,
                 options: StepOptions = StepOptions(), teacher: tuple[nn.Cell, SoftTargetLoss] | None = None) -> None:
        broadcast_parameters(net.get_parameters(), options.size)
        self.net, self.optimizer, self.options = net, optimizer, options
        self.weights = optimizer.parameters
        scaled = options.dynamic_scale or options.loss_scale != 1.0
        self.loss_scale = Parameter(Tensor(options.loss_scale, mstype.float32), "loss_scale",
                                    requires_grad=False) if scaled else None
        statistics = ()
        if options.size > 1:
            self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP)
            if options.average_statistics:
                statistics = tuple(p for p in net.get_parameters() if ".moving_" in p.name)
        self.teach, soft = (compiled(teacher[0].set_train(False)), teacher[1]) if teacher else (None, None)
        self.gradients = Gradients(net, loss, normalize, optimizer, options, self.loss_scale, soft).set_train()
        self.update = Update(net, optimizer, options, self.loss_scale, statistics).set_train()
        self.compute, self.finish = compiled(self.gradients), compiled(self.update)
        self.read_statistics = compiled(Statistics(statistics)) if statistics else None
        self.none = Tensor(np.zeros(1, np.float32))
        self.zeros = self.sums = self.empty_sums() if options.accumulation > 1 else ()

    def empty_sums(self) -> tuple[Tensor, ...]:
        """Zeros of the shapes that :class:`Gradients` returns."""
        small, large = self.update.tail, self.weights[self.optimizer.small:]
        return tuple(Tensor(np.zeros(shape, np.float32)) for shape in ((small + 4,), *(p.shape for p in large)))

    def __call__(self, image: Tensor, label: Tensor, stop: Tensor, last: bool = True) -> Tensor | None:
        """Makes one step, or adds one micro-batch to it.

        Args:
            image: uint8 (N, H, W, 3).
            label: uint8 (N, H, W) train ids.
            stop: Scalar float32, 1 if this device was asked to stop, else 0.
            last: This is the last micro-batch of the step.

        Returns:
            (3,) float32: the loss before the update, over all devices and micro-batches; a number above 0 if any device
            was asked to stop; one above 0 if any had an overflow, as far as the options look for it. None if ``last``
            is False.
        """
        targets = () if self.teach is None else (self.teach(image),)
        sums = self.compute(image, label, stop, *targets, *self.sums)
        if not last:
            self.sums = sums
            return None
        self.sums, statistics = self.zeros, self.none
        if self.options.size > 1:
            sums = tuple(self.all_reduce(part) for part in sums)
            if self.read_statistics is not None:
                # The checkpoint of any rank then fits all ranks.
                statistics = self.all_reduce(self.read_statistics())
        result = self.finish(statistics, *sums)
        release(sums, result)
        return result

    def set_train(self, mode: bool = True) -> None:
        """Switches the network between training and evaluation."""
        self.net.set_train(mode)

    def state_parameters(self) -> list[Parameter]:
        """Lists what a checkpoint needs to resume: weights, statistics, counters, optimizer state.

        Learning rates follow from the configuration.
        """
        found = {p.name: p for piece in (self.gradients, self.update) for p in piece.get_parameters()}
        return list(found.values())

    def swap_averages(self) -> None:
        """Exchanges the weights and their moving averages, if there are any; a second call restores them."""
        if self.options.ema_decay > 0:
            for param, average in zip(self.update.averaged, self.update.averages, strict=True):
                values = param.asnumpy().copy(), average.asnumpy().copy()
                param.set_data(Tensor(values[1]))
                average.set_data(Tensor(values[0]))


# Functions that HyperMap applies to every parameter. A loop would nest calls, and MindSpore limits their depth.

def _scale(factor: Tensor, grad: Tensor) -> Tensor:
    return grad * cast(factor, grad.dtype)


def _square_sum(grad: Tensor) -> Tensor:
    return total(ops.square(cast(grad, mstype.float32)))


def _move(rate: float, average: Parameter, weight: Parameter) -> bool:
    assign_add(average, rate * (weight - average))
    return True
