"""Normalisation on the device, the first cell of every graph."""

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindseg.compat import cast, transpose


class Normalize(nn.Cell):
    """Turns uint8 pixels into the network's input, on the device, so that the host sends a quarter of the bytes.

    Args:
        mean: Mean of each channel, for pixels in 0..value_range.
        std: Standard deviation of each channel.
        value_range: Pixels are scaled to 0..value_range before mean and std.

    Attributes:
        fused: Operator that does it in one pass, see :func:`mindseg.cpu_kernels.fusion.fuse_network`; None: several.
    """

    def __init__(self, mean: list[float], std: list[float], value_range: float = 255.0) -> None:
        super().__init__()
        self.scale = Tensor([[[[value_range / 255.0 / s]] for s in std]], mstype.float32)
        self.shift = Tensor([[[[-m / s]] for m, s in zip(mean, std, strict=True)]], mstype.float32)
        self.one = Tensor([1.0], mstype.float32)
        self.fused = None

    def construct(self, image: Tensor) -> Tensor:
        """Returns (N, 3, H, W) float32 for uint8 (N, H, W, 3)."""
        image = cast(transpose(image, (0, 3, 1, 2)), mstype.float32)
        if self.fused is not None:
            return self.fused(image, ops.reshape(self.scale, (-1,)), ops.reshape(self.shift, (-1,)), self.one)
        return image * self.scale + self.shift
