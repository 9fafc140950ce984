"""Constants of cards and hosts that a prediction needs, each with its source, its confidence and its error bar.

Nothing here was measured on an Ascend device by us. The two shares follow from two published trainings; see
docs/ascend.md.
"""
from dataclasses import dataclass

from mindseg.chips import Fact
from mindseg.planner.span import Span


@dataclass(frozen=True)
class Constant(Fact[float]):
    """A number of a machine.

    Attributes:
        factor: The true number lies within this factor of ``value``, as far as we know.
    """
    factor: float

    def span(self) -> Span:
        """The number with its error bar."""
        return Span.within(self.value, self.factor)


@dataclass(frozen=True)
class Card:
    """A card for training.

    Attributes:
        products: Floating-point operations per second of its matrix units in float16, peak.
        product_share: Part of ``products`` that kernels reach.
        memory: Bytes per second of its memory, peak.
        memory_share: Part of ``memory`` that kernels on maps and long rows reach.
        short_share: Part of ``memory`` that kernels on short rows reach.
        loss_share: Part of ``memory`` that kernels on scores (N, classes, pixels) reach.
        launch: Seconds to start one kernel.
        latency: Seconds of an all-reduce of a few bytes.
        link: Bytes per second that a card sends to others of its host.
        network: Bytes per second that a card sends to other hosts.
    """
    products: Constant
    product_share: Constant
    memory: Constant
    memory_share: Constant
    short_share: Constant
    loss_share: Constant
    launch: Constant
    latency: Constant
    link: Constant
    network: Constant


_BRIEF = "Huawei's product data, as quoted by many"
_GUESS = "no source; order of magnitude"
_CALIBRATED = "docs/ascend.md, calibration: FCN-8s and BiSeNet V2 of the older projects"
_RESNET = "ResNet-101 of MindSpore's model zoo, 28 ms for 32 images on an Ascend 910: about 0.5 GB an image moved"
# The geometric mean of the two shares; the factor reaches both.
_BETWEEN = "between rows of classes and maps, for want of a published training with such losses"
_LIKE_910A = "that of the 910A, for want of a published training"
CARDS = {
    "910A": Card(
        products=Constant(256e12, "certain", _BRIEF, 1.0),
        product_share=Constant(0.716, "likely", _CALIBRATED, 2.0),
        memory=Constant(1.2e12, "likely", _BRIEF, 1.0),
        memory_share=Constant(0.60, "likely", _RESNET, 2.0),
        short_share=Constant(0.0222, "likely", _CALIBRATED, 2.0),
        loss_share=Constant(0.115, "guess", _BETWEEN, 5.2),
        launch=Constant(10e-6, "guess", f"{_GUESS}; the graph engine starts kernels from the card itself", 3.0),
        latency=Constant(50e-6, "guess", _GUESS, 3.0),
        link=Constant(15e9, "guess", "30 GB/s between four cards of a host, PCIe between the fours; half reached", 2.5),
        network=Constant(10e9, "likely", "100 Gbit/s RoCE a card (Atlas 800, model 9000); 80 % reached", 2.0)),
    "A2": Card(
        products=Constant(313e12, "likely", "910B3; 280 to 400 for other A2 chips", 1.3),
        product_share=Constant(0.716, "guess", _LIKE_910A, 3.0),
        memory=Constant(1.6e12, "likely", _BRIEF, 1.0),
        memory_share=Constant(0.60, "guess", _LIKE_910A, 2.0),
        short_share=Constant(0.0222, "guess", _LIKE_910A, 4.0),
        loss_share=Constant(0.115, "guess", _BETWEEN, 5.2),
        launch=Constant(15e-6, "guess", f"{_GUESS}; the host starts each kernel", 3.0),
        latency=Constant(30e-6, "guess", _GUESS, 3.0),
        link=Constant(100e9, "guess", "seven links of 56 GB/s a card (notes of an HCCL contest), a quarter reached",
                      2.5),
        network=Constant(20e9, "likely", "200 Gbit/s RoCE a card (Atlas 800T A2); 80 % reached", 2.0)),
}


@dataclass(frozen=True)
class Decoding:
    """Time of the loader's work on one core.

    Attributes:
        decode: Seconds to read and decode 10^6 pixels of an image.
        augment: Seconds to crop, resize and distort, for 10^6 pixels of the crop.
    """
    decode: Constant
    augment: Constant

    @classmethod
    def measured(cls, images_per_second: float, pixels: int) -> "Decoding":
        """Rate of one thread that the user measured, with the crops of the recipe.

        Args:
            images_per_second: Images that one thread makes.
            pixels: Pixels of an image.
        """
        source = "--images_per_second"
        return cls(Constant(1e6 / images_per_second / pixels, "certain", source, 1.2),
                   Constant(0.0, "certain", source, 1.0))


def _decoding(images_per_second: float) -> Decoding:
    """Splits a rate of docs/performance.md, which is for two cores, images of 1024x2048 and crops of 512x1024."""
    source = "docs/performance.md, two cores of an AMD EPYC with AVX-512; a server's Arm core may be slower"
    augment = 5e-3      # seconds of the 20 that an image took, the rest decodes
    return Decoding(Constant((2 / images_per_second - augment) / 2.097, "likely", source, 2.0),
                    Constant(augment / 0.524, "likely", source, 2.0))


DECODING = {"png": _decoding(31.2), "webp": _decoding(44.5), "jpeg": _decoding(103.2)}
# Decoding, confusion matrix and waiting; 29.4 s for 50 images, 2 % of it outside the network: docs/performance.md.
EVALUATION = Constant(0.03, "guess", "seconds of the host for 10^6 pixels: decoding in the loader's threads, ids in C",
                      3.0)
