"""From an 8-bit image to a map of class ids."""
import numpy as np

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.config import Config
from src.engine.train_step import Normalize
from src.models.layers import resize_bilinear


class WholeImage(nn.Cell):
    """Runs the network on whole images and resizes the logits, never the labels.

    Args:
        net: Network in evaluation mode.
        normalize: From uint8 images to the network's input.
        num_classes: Logits that may be predicted; a void channel behind them never is.
    """

    def __init__(self, net: nn.Cell, normalize: Normalize, num_classes: int) -> None:
        super().__init__(auto_prefix=False)
        self.net = net
        self.normalize = normalize
        self.num_classes = num_classes

    def construct(self, image: Tensor, height: int, width: int) -> Tensor:
        """Returns uint8 class ids (N, height, width) for uint8 images (N, H, W, 3)."""
        logits = self.net(self.normalize(image))[:, :self.num_classes]
        logits = resize_bilinear(logits, (height, width), False)
        return ops.cast(ops.argmax(logits, 1), mstype.uint8)


class Segmenter:
    """Segments images with a checkpoint's network, as the evaluation sees it.

    Args:
        cfg: Configuration (normalisation).
        net: Network.
        num_classes: Classes of the data set.
    """

    def __init__(self, cfg: Config, net: nn.Cell, num_classes: int) -> None:
        d = cfg.data
        self.cell = WholeImage(net, Normalize(d.mean, d.std, d.value_range), num_classes)

    def __call__(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Segments images of one size.

        Args:
            images: uint8 (N, H, W, 3) in the configuration's colour order.
            size: Height and width of the result.

        Returns:
            uint8 class ids (N, height, width).
        """
        self.cell.set_train(False)
        return self.cell(Tensor(images), int(size[0]), int(size[1])).asnumpy()
