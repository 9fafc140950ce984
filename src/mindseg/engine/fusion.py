"""The C++ operators of a CPU in the place of MindSpore's, where a network and its loss can take them."""
import numpy as np

from mindspore import Tensor, nn

from mindseg.compat import BatchNorm2d, device_target
from mindseg.cpu_kernels.library import installed_library
from mindseg.cpu_kernels.operators import CORNERS, NO_CAP, Activation, BatchNormActivation, ResizedCrossEntropy
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss, OhemLoss, PixelLoss, SumLoss
from mindseg.models.layers import ConvBNAct, PReLU, SegmentationNetwork

# Slope below 0 and largest value of the activations without parameters.
_ACTIVATIONS = {type(None): (1.0, NO_CAP), nn.ReLU: (0.0, NO_CAP), nn.ReLU6: (0.0, 6.0), PReLU: (0.0, NO_CAP)}


def available() -> bool:
    """Tests whether the operators were built and the device is a CPU."""
    return device_target() == "CPU" and installed_library() is not None


def fuse_network(net: nn.Cell) -> None:
    """Lets the layers of a network of float32 use the operators.

    Args:
        net: Network, changed in place; its parameters stay.
    """
    for _, cell in net.cells_and_names():
        if isinstance(cell, PReLU):
            cell.fused = Activation()
        elif isinstance(cell, ConvBNAct) and type(cell.bn) is BatchNorm2d:
            slope, cap = _ACTIVATIONS[type(cell.act)]
            cell.bn.fuse(BatchNormActivation(cell.bn.eps, cap), Activation(cap), Tensor(np.array([slope], np.float32)))
            cell.fused = True


def fuse_loss(net: nn.Cell, loss: MultiHeadLoss, soft: bool = False) -> None:
    """Lets a loss use the operators; where all its parts can, they also do the resize that ends the network.

    Args:
        net: Network.
        loss: Its loss.
        soft: The network's logits are compared with those of a teacher, too.
    """
    parts = [cell for _, cell in loss.cells_and_names() if isinstance(cell, PixelLoss) and not isinstance(cell, SumLoss)]
    able = [part for part in parts if isinstance(part, (CrossEntropyLoss, OhemLoss))]
    for part in able:
        part.fused = ResizedCrossEntropy()
    if len(able) == len(parts) and not soft and isinstance(net, SegmentationNetwork) and net.upsampling is not None:
        net.resizes = False
        for part in able:
            part.corners = CORNERS[net.upsampling]
