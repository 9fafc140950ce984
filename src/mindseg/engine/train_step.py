"""One training step as compiled pieces: normalise, forward, loss, gradients; sums over devices; update."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.communication import GlobalComm

from mindseg.comm import broadcast_parameters
from mindseg.compat import assign, assign_add, cast, compiled, cut
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
    def drops(self) -> bool:
        """True if steps are skipped whose gradients overflow."""
        return self.dynamic_scale or self.drop_overflow


class Gradients(nn.Cell):
    """First piece of a step: normalise, forward, loss, backward. It communicates only if BatchNorm is synchronised.

    Args:
        net: Network; in training it returns a tuple of logits.
        loss: Loss of that tuple.
        normalize: Cell from uint8 images to the network's input.
        weights: Parameters that get gradients.
        split: The step has several micro-batches or devices, each of which counts by its valid pixels.
        loss_scale: Factor of the loss in the backward pass; None: 1.
        check: Look for overflows.
    """

    def __init__(self, net: nn.Cell, loss: MultiHeadLoss, normalize: Normalize, weights: ParameterTuple, split: bool,
                 loss_scale: Parameter | None, check: bool) -> None:
        super().__init__(auto_prefix=False)
        self.net = net
        self.loss = loss
        self.normalize = normalize
        self.split = split
        self.check = check
        self.scaled = loss_scale is not None
        self.loss_scale = loss_scale
        self.loss_and_gradients = ms.value_and_grad(self._forward, None, weights)

    def construct(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Computes the gradients of a micro-batch.

        Args:
            image: uint8 (N, H, W, 3).
            label: uint8 (N, H, W) train ids.

        Returns:
            Loss and weight of the micro-batch and 1 for an overflow, else 0, scalar float32; and the gradients of
            loss * weight * loss scale.
        """
        label = cast(label, mstype.int32)
        # Weight of this micro-batch among all, per pixel so that float16 does not overflow. It multiplies the loss
        # before the backward pass, where synchronised BatchNorm mixes the gradients of all devices.
        weight = self.loss.weight_sum(label) / label.size if self.split else Tensor(1.0, mstype.float32)
        loss, grads = self.loss_and_gradients(self.normalize(image), label, weight)
        overflow = Tensor(0.0, mstype.float32)
        if self.check:
            # Here and nowhere later: the first Ascend 910 computes no infinity, but sets flags, which this reads and
            # clears. Its own operators set them, and other devices have theirs.
            overflow = 1.0 - cast(ms.amp.all_finite(grads), mstype.float32)
        return (loss / self.loss_scale if self.scaled else loss), weight, overflow, grads

    def _forward(self, image: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        loss = self.loss(self.net(image), label)
        if self.split:
            loss = loss * weight
        return loss * self.loss_scale if self.scaled else loss


class FlatGradients(nn.Cell):
    """The first piece, with everything that is summed over micro-batches and devices in one buffer.

    Args:
        gradients: Computes the gradients.
    """

    def __init__(self, gradients: Gradients) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = gradients
        self.map = ops.HyperMap()

    def construct(self, image: Tensor, label: Tensor, stop: Tensor, sums: Tensor) -> Tensor:
        """Adds a micro-batch.

        Args:
            image: uint8 (N, H, W, 3).
            label: uint8 (N, H, W) train ids.
            stop: Scalar float32, 1 if this device was asked to stop, else 0.
            sums: (P + 4,) float32, result of the micro-batch before, or zeros.

        Returns:
            (P + 4,) float32: the sums of the P gradients, of loss, weight, stop and overflow.
        """
        loss, weight, overflow, grads = self.gradients(image, label)
        return sums + ops.concat((*self.map(_flat, grads), ops.stack((loss, weight, stop, overflow))))


class Update(nn.Cell):
    """Second piece of a step: scale and clip the gradients, update the weights and their moving averages.

    Args:
        net: Network.
        optimizer: Cell that updates its attribute ``parameters``, see :func:`mindseg.optim.create_optimizer`.
        options: Options of the step.
        loss_scale: Factor of the loss in the backward pass; None: 1.
    """

    def __init__(self, net: nn.Cell, optimizer: nn.Cell, options: StepOptions, loss_scale: Parameter | None) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.options = options
        self.scaled = loss_scale is not None
        self.loss_scale = loss_scale
        self.map = ops.HyperMap()
        if self.scaled:
            self.good_steps = Parameter(Tensor(0, mstype.int32), "good_steps", requires_grad=False)
        if options.ema_decay > 0:
            self.averaged = ParameterTuple([p for p in net.get_parameters() if p.dtype == mstype.float32])
            self.averages = self.averaged.clone(prefix="ema", init="same")

    def construct(self, grads: tuple[Tensor, ...], factor: Tensor, overflow: Tensor) -> None:
        """Updates the weights.

        Args:
            grads: Gradients of the optimizer's parameters.
            factor: Scalar float32 that multiplies them.
            overflow: Scalar float32, above 0 if the gradients overflowed.
        """
        if self.scaled:
            factor = factor / self.loss_scale
        grads = self.map(ops.partial(_scale, factor), grads)
        if self.options.drops:
            finite = ops.equal(overflow, 0.0)
            if finite:
                self._apply(grads)
            if self.options.dynamic_scale:
                self._adapt_scale(finite)
        else:
            self._apply(grads)

    def _apply(self, grads: tuple[Tensor, ...]) -> None:
        if self.options.clip_norm > 0:
            norm = ops.sqrt(ops.stack(self.map(_square_sum, grads)).sum())
            factor = self.options.clip_norm / ops.maximum(norm, self.options.clip_norm)
            grads = self.map(ops.partial(_scale, factor), grads)
        self.optimizer(grads)
        if self.options.ema_decay > 0:
            self.map(ops.partial(_move, 1.0 - self.options.ema_decay), self.averages, self.averaged)

    def _adapt_scale(self, finite: Tensor) -> None:
        good = ops.where(finite, self.good_steps + 1, ops.zeros_like(self.good_steps))
        double = good >= SCALE_WINDOW
        scale = ops.where(finite, self.loss_scale, ops.maximum(self.loss_scale / 2.0, 1.0))
        assign(self.loss_scale, ops.where(double, scale * 2.0, scale))
        assign(self.good_steps, ops.where(double, ops.zeros_like(good), good))


class WholeStep(nn.Cell):
    """Both pieces as one, for a single device and micro-batch.

    Args:
        gradients: First piece.
        update: Second piece.
    """

    def __init__(self, gradients: Gradients, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(self, image: Tensor, label: Tensor, stop: Tensor) -> Tensor:
        """Makes a step; arguments and result are those of :class:`TrainStep`."""
        loss, _, overflow, grads = self.gradients(image, label)
        self.update(grads, Tensor(1.0, mstype.float32), overflow)
        return ops.stack((loss, stop, overflow))


class FlatUpdate(nn.Cell):
    """The second piece for sums over micro-batches and devices.

    Args:
        update: Updates the weights.
        statistics: BatchNorm's moving statistics that are averaged over the devices; may be empty.
        size: Number of devices.
    """

    def __init__(self, update: Update, statistics: tuple[Parameter, ...], size: int) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.size = update, size
        self.weights, self.statistics = update.optimizer.parameters, ParameterTuple(statistics)
        self.has_statistics = bool(statistics)
        self.weight_places = _places(self.weights)
        self.statistic_places = _places(self.statistics)
        self.tail = sum(p.size for p in self.weights)
        self.map = ops.HyperMap()

    def construct(self, sums: Tensor, statistics: Tensor) -> Tensor:
        """Makes the step.

        Args:
            sums: (P + 4,) float32, see :class:`FlatGradients`, over all micro-batches and devices.
            statistics: (S,) float32, sums of the moving statistics over all devices; unused if there are none.

        Returns:
            (3,) float32 as :class:`TrainStep`.
        """
        factor, overflow = 1.0 / ops.maximum(sums[self.tail + 1], EPSILON), sums[self.tail + 3]
        self.update(self.map(ops.partial(_unflat, sums), self.weights, self.weight_places), factor, overflow)
        if self.has_statistics:
            self.map(ops.partial(_assign_mean, statistics, self.size), self.statistics, self.statistic_places)
        return ops.stack((sums[self.tail] * factor, sums[self.tail + 2], overflow))


class Statistics(nn.Cell):
    """Moving statistics of a network in one buffer.

    Args:
        statistics: Parameters.
    """

    def __init__(self, statistics: tuple[Parameter, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.statistics, self.map = ParameterTuple(statistics), ops.HyperMap()

    def construct(self) -> Tensor:
        """Joins them, (S,) float32."""
        return ops.concat(self.map(_flat, self.statistics))


class TrainStep:
    """Network, loss and optimizer; all devices start with the weights of rank 0.

    A step is made of compiled pieces: gradients, then an update. Sums over devices are computed between them, so no
    compiled graph communicates, except for the layers of a synchronised BatchNorm. With one device and one micro-batch
    the pieces are compiled as one.

    Args:
        net: Network; in training it returns a tuple of logits.
        loss: Loss of that tuple.
        optimizer: Cell that updates its attribute ``parameters``, see :func:`mindseg.optim.create_optimizer`.
        normalize: Cell from uint8 images to the network's input.
        options: Options of the step.
    """

    def __init__(self, net: nn.Cell, loss: MultiHeadLoss, optimizer: nn.Cell, normalize: Normalize,
                 options: StepOptions = StepOptions()) -> None:
        broadcast_parameters(net.get_parameters(), options.size)
        self.net, self.optimizer, self.options = net, optimizer, options
        self.weights = optimizer.parameters
        split = options.size > 1 or options.accumulation > 1
        scaled = options.dynamic_scale or options.loss_scale != 1.0
        self.loss_scale = Parameter(Tensor(options.loss_scale, mstype.float32), "loss_scale",
                                    requires_grad=False) if scaled else None
        self.gradients = Gradients(net, loss, normalize, self.weights, split, self.loss_scale,
                                   options.drops or options.saturates)
        self.update = Update(net, optimizer, options, self.loss_scale)
        for piece in (self.gradients, self.update):
            piece.set_train()
        self.whole = None if split else compiled(WholeStep(self.gradients, self.update).set_train())
        if split:
            self._split(options)

    def _split(self, options: StepOptions) -> None:
        statistics = ()
        if options.size > 1:
            self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP)
            if options.average_statistics:
                statistics = tuple(p for p in self.net.get_parameters() if ".moving_" in p.name)
        self.add = compiled(FlatGradients(self.gradients).set_train())
        self.finish = compiled(FlatUpdate(self.update, statistics, options.size).set_train())
        self.read_statistics = compiled(Statistics(statistics)) if statistics else None
        self.zeros = Tensor(np.zeros(sum(p.size for p in self.weights) + 4, np.float32))
        self.sums = self.zeros

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
        if self.whole is not None:
            return self.whole(image, label, stop)
        self.sums = self.add(image, label, stop, self.sums)
        if not last:
            return None
        sums, self.sums = self.sums, self.zeros
        statistics = self.zeros
        if self.options.size > 1:
            sums = self.all_reduce(sums)
            if self.read_statistics is not None:
                # The checkpoint of any rank then fits all ranks.
                statistics = self.all_reduce(self.read_statistics())
        return self.finish(sums, statistics)

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

def _flat(x: Tensor) -> Tensor:
    return cast(ops.reshape(x, (-1,)), mstype.float32)


def _unflat(sums: Tensor, weight: Parameter, place: int) -> Tensor:
    return cast(ops.reshape(cut(sums, (place,), (weight.size,)), weight.shape), weight.dtype)


def _assign_mean(sums: Tensor, size: int, param: Parameter, place: int) -> bool:
    assign(param, _unflat(sums, param, place) / size)
    return True


def _places(parameters: Sequence[Parameter]) -> tuple[int, ...]:
    """Start of each parameter in a buffer of all."""
    return tuple(np.cumsum([0, *(p.size for p in parameters)])[:-1].tolist())


def _scale(factor: Tensor, grad: Tensor) -> Tensor:
    return grad * cast(factor, grad.dtype)


def _square_sum(grad: Tensor) -> Tensor:
    return ops.square(cast(grad, mstype.float32)).sum()


def _move(rate: float, average: Parameter, weight: Parameter) -> bool:
    assign_add(average, rate * (weight - average))
    return True
