"""Predicted times: amounts of a graph over the rates of a machine, and what they add up to."""
from dataclasses import dataclass

from mindseg.planner.costs import Costs
from mindseg.planner.machines import Card, Decoding
from mindseg.planner.span import Span

NOTHING = Span(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Cluster:
    """The devices of a job.

    Attributes:
        card: Constants of each card.
        devices: Number of cards, a multiple of ``hosts``.
        hosts: Number of hosts.
        cores: Processor cores of each host.
    """
    card: Card
    devices: int = 1
    hosts: int = 1
    cores: int = 192


def kernel_times(costs: Costs, card: Card) -> dict[str, Span]:
    """Time of kernels that run one after the other on one card.

    Products and bytes are added although they overlap in part: the shares were found under the same assumption.

    Args:
        costs: Amounts of the graph.
        card: The card.

    Returns:
        Seconds of ``products``, ``memory``, ``losses``, ``short rows`` and ``launches``.
    """
    return {"products": (costs.flops / card.products.value) / card.product_share.span(),
            "memory": (costs.bytes / card.memory.value) / card.memory_share.span(),
            "losses": (costs.loss_bytes / card.memory.value) / card.loss_share.span(),
            "short rows": (costs.short_bytes / card.memory.value) / card.short_share.span(),
            "launches": card.launch.span() * costs.launches}


def ring(ranks: int, size: float, rate: float) -> float:
    """Seconds that a ring of processes needs to sum a buffer, without the latency.

    Each process sends 2 (n - 1) / n times the buffer: n - 1 parts of 1/n while the sums are made, and as many while
    they are handed round (Patarasuk and Yuan, 2009, doi 10.1016/j.jpdc.2008.09.002).

    Args:
        ranks: Processes n, at least 1.
        size: Bytes of the buffer.
        rate: Bytes per second that a process sends.
    """
    return 2 * (ranks - 1) / ranks * size / rate


def all_reduce(cluster: Cluster, size: float) -> Span:
    """Time to sum a buffer over all cards: a ring inside each host, and one of hosts for every card's share of it.

    Args:
        cluster: Devices.
        size: Bytes of the buffer.
    """
    if cluster.devices == 1:
        return NOTHING
    card, local = cluster.card, cluster.devices // cluster.hosts
    inside, outside = ring(local, size, 1.0), ring(cluster.hosts, size / local, 1.0)
    return (card.latency.span() * (1 if cluster.hosts == 1 else 2)
            + (inside / card.link.span() if inside else NOTHING)
            + (outside / card.network.span() if outside else NOTHING))


def loading_time(decoding: Decoding, image: int, crop: int, samples: float) -> Span:
    """Seconds of one thread of the loader.

    Args:
        decoding: Rates of a thread.
        image: Pixels of an image.
        crop: Pixels of a crop.
        samples: Samples that the thread makes.
    """
    return decoding.decode.span() * (image / 1e6 * samples) + decoding.augment.span() * (crop / 1e6 * samples)


@dataclass(frozen=True)
class Step:
    """A predicted training step.

    Attributes:
        parts: Seconds of each part of the device's time; they add up.
        loader: Seconds in which the loader makes the samples of a step, beside the device.
    """
    parts: dict[str, Span]
    loader: Span

    @property
    def device(self) -> Span:
        """Time of the device."""
        return sum(self.parts.values(), NOTHING)

    @property
    def seconds(self) -> Span:
        """Time of the step: the device waits for the loader, or the loader for the device."""
        return self.device.at_least(self.loader)

    @property
    def limit(self) -> str:
        """The part that a step waits for: ``loader``, or the longest part of the device's time."""
        if self.loader.value > self.device.value:
            return "loader"
        return max(self.parts, key=lambda name: self.parts[name].value)


def predict_step(cluster: Cluster, costs: Costs, gradients: float, loader: Span) -> Step:
    """Predicts a step.

    Args:
        cluster: Devices.
        costs: Amounts of all micro-batches and the update on one card.
        gradients: Bytes of the gradients.
        loader: Seconds in which the loader makes the samples.
    """
    parts = kernel_times(costs, cluster.card)
    if cluster.devices > 1:
        parts["all-reduce"] = all_reduce(cluster, gradients)
        parts["synchronised BatchNorm"] = all_reduce(cluster, 0.0) * costs.reductions
    return Step(parts, loader)


def predict_evaluation(cluster: Cluster, costs: Costs, images: int, area: float, host: Span) -> Span:
    """Seconds of an evaluation, whose images are shared by the cards.

    Args:
        cluster: Devices.
        costs: Amounts of one pass over an image at its own size.
        images: Images of the data set.
        area: Pixels of all passes over an image (scales, flips, windows) over those of the image.
        host: Seconds of the host for each image and 10^6 pixels of a pass; loader and network wait for it.
    """
    times = kernel_times(costs, cluster.card)
    launches = times.pop("launches") * max(1.0, area)
    one = sum(times.values(), NOTHING) * area + launches + host
    return one * -(-images // cluster.devices)
