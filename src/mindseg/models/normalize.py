"""Normalisation on the device, the first cell of every graph."""

from mindspore import Tensor, nn
from mindspore import dtype as mstype

from mindseg.compat import cast, transpose


class Normalize(nn.Cell):
    """Turns uint8 pixels into the network's input, on the device, so that the host sends a quarter of the bytes.

    Args:
        mean: Mean of each channel, for pixels in 0..value_range.
        std: Standard deviation of each channel.
        value_range: Pixels are scaled to 0..value_range before mean and std.
    """

    def __init__(self, mean: list[float], std: list[float], value_range: float = 255.0) -> None:
        super().__init__()
        self.scale = Tensor([[[[value_range / 255.0 / s]] for s in std]], mstype.float32)
        self.shift = Tensor([[[[-m / s]] for m, s in zip(mean, std, strict=True)]], mstype.float32)

    def construct(self, image: Tensor) -> Tensor:
        """Returns (N, 3, H, W) float32 for uint8 (N, H, W, 3)."""
        return cast(transpose(image, (0, 3, 1, 2)), mstype.float32) * self.scale + self.shift
