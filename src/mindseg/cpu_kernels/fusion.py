"""The C++ operators in the place of MindSpore's, where a network and its loss can take them."""
import numpy as np

from mindspore import Tensor, nn

from mindseg.compat import BatchNorm2d, Conv2d, Conv2dTranspose, MaxPool2d, device_target, kernels
from mindseg.cpu_kernels.library import installed_library, set_threads
from mindseg.cpu_kernels.operators import (
    CORNERS,
    NO_CAP,
    Activation,
    BatchNormActivation,
    Convolution,
    Dropped,
    MaxPool,
    NearestResize,
    ResizedCrossEntropy,
    TransposedConvolution,
    Unpool,
)
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss, OhemLoss, PixelLoss, SumLoss
from mindseg.models.layers import ConvBNAct, Dropout, PReLU, ResizeNearest, SegmentationNetwork, Unpooling
from mindseg.models.normalize import Normalize

# Slope below 0 and largest value of the activations; a PReLU brings its own slopes.
_ACTIVATIONS = {type(None): (1.0, NO_CAP), nn.ReLU: (0.0, NO_CAP), nn.ReLU6: (0.0, 6.0), PReLU: (0.0, NO_CAP)}


def fuse_network(net: nn.Cell, threads: int = 0, normalize: Normalize | None = None) -> bool:
    """Lets the layers of a network use the operators, if they were built, on a CPU and in float32.

    Args:
        net: Network, changed in place; its parameters stay.
        threads: Threads of each operator in this process; 0: unchanged, at first as many as there are cores.
        normalize: What is computed before the network; it uses them, too.

    Returns:
        True if it uses them.
    """
    mixed = any(net.get_flags().get(name) for name in ("fp16", "bf16", "fp32"))
    if mixed or device_target() != "CPU" or kernels() != "cpu" or installed_library() is None:
        return False
    if threads:
        set_threads(threads)
    for cell in (normalize, *(cell for _, cell in net.cells_and_names())):
        operator = _operator_of(cell)
        if operator is not None:
            cell.fused = operator
        elif isinstance(cell, ConvBNAct) and type(cell.bn) is BatchNorm2d:      # a synchronised one is another class
            slope, cap = _ACTIVATIONS[type(cell.act)]
            cell.bn.fuse(BatchNormActivation(cell.bn.eps, cap), Activation(cap), Tensor(np.array([slope], np.float32)))
            cell.fused = True
    return True


def _operator_of(cell: nn.Cell | None) -> nn.Cell | None:
    """The operator that does the work of a layer; None if there is none."""
    if isinstance(cell, PReLU | Normalize):
        return Activation()
    if isinstance(cell, Conv2d) and cell.groups in (1, cell.in_channels):
        return Convolution(cell.stride, cell.padding, cell.dilation, cell.groups > 1)
    if isinstance(cell, Conv2dTranspose):
        return TransposedConvolution(cell.stride, cell.before, cell.rest)
    if isinstance(cell, MaxPool2d) and cell.halves:
        return MaxPool()
    if isinstance(cell, Dropout) and cell.rate > 0:
        return Dropped(cell.threshold_number, cell.factor)
    if isinstance(cell, ResizeNearest):
        return NearestResize(cell.factor)
    return Unpool() if isinstance(cell, Unpooling) else None


def fuse_loss(net: nn.Cell, loss: MultiHeadLoss, teacher: bool = False) -> None:
    """Lets a loss use the operators. Where all its parts can, they also do the resize that ends the network.

    Args:
        net: Network that uses the operators.
        loss: Its loss.
        teacher: The network's logits are compared with those of a teacher, too.
    """
    parts = [cell for _, cell in loss.cells_and_names() if isinstance(cell, PixelLoss)]
    parts = [part for part in parts if not isinstance(part, SumLoss)]
    able = [part for part in parts if isinstance(part, (CrossEntropyLoss, OhemLoss))]
    for part in able:
        part.fused = ResizedCrossEntropy()
    if able == parts and not teacher and isinstance(net, SegmentationNetwork) and net.upsampling is not None:
        net.resizes = False
        for part in able:
            part.corners = CORNERS[net.upsampling]
