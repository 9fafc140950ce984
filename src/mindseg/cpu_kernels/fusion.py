"""The C++ operators in the place of MindSpore's, where a network and its loss can take them."""
import numpy as np

from mindspore import Tensor, nn

from mindseg.compat import BatchNorm2d, device_target, kernels
from mindseg.cpu_kernels.library import installed_library, set_threads
from mindseg.cpu_kernels.operators import CORNERS, NO_CAP, Activation, BatchNormActivation, ResizedCrossEntropy
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss, OhemLoss, PixelLoss, SumLoss
from mindseg.models.layers import ConvBNAct, PReLU, SegmentationNetwork

# Slope below 0 and largest value of the activations; a PReLU brings its own slopes.
_ACTIVATIONS = {type(None): (1.0, NO_CAP), nn.ReLU: (0.0, NO_CAP), nn.ReLU6: (0.0, 6.0), PReLU: (0.0, NO_CAP)}


def fuse_network(net: nn.Cell, threads: int = 0) -> bool:
    """Lets the layers of a network use the operators, if they were built, on a CPU and in float32.

    Args:
        net: Network, changed in place; its parameters stay.
        threads: Threads of an operator; 0: as many as there are cores.

    Returns:
        True if it uses them.
    """
    mixed = any(net.get_flags().get(name) for name in ("fp16", "bf16", "fp32"))
    if mixed or device_target() != "CPU" or kernels() != "cpu" or installed_library() is None:
        return False
    set_threads(threads)
    for _, cell in net.cells_and_names():
        if isinstance(cell, PReLU):
            cell.fused = Activation()
        elif isinstance(cell, ConvBNAct) and type(cell.bn) is BatchNorm2d:      # a synchronised one is another class
            slope, cap = _ACTIVATIONS[type(cell.act)]
            cell.bn.fuse(BatchNormActivation(cell.bn.eps, cap), Activation(cap), Tensor(np.array([slope], np.float32)))
            cell.fused = True
    return True


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
