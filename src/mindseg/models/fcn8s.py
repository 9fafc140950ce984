"""FCN-8s on VGG16 with BatchNorm: Fully Convolutional Networks (arXiv 1411.4038, VGG: arXiv 1409.1556).

The fully connected layers fc6 and fc7 become convolutions; scores of strides 32, 16 and 8 are added during up-sampling.
Unlike in the original, images are not padded by 100 pixels, so the score maps fit together without cropping.
"""
from collections import OrderedDict

import numpy as np

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import XavierUniform

from mindseg.compat import Conv2d, MaxPool2d, cast
from mindseg.errors import UserError
from mindseg.models.layers import ConvBNAct, ConvBNReLU, SegmentationNetwork, TransposedConv, conv2d

DECONV_INITS = ("bilinear", "xavier")


def bilinear_kernel(channels: int, size: int) -> Tensor:
    """Builds the kernel with which a transposed convolution resizes each channel bilinearly (arXiv 1411.4038).

    Args:
        channels: Input and output channels.
        size: Side length of the kernel.

    Returns:
        (channels, channels, size, size) float32.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - np.abs(np.arange(size) - centre) / factor
    kernel = np.zeros((channels, channels, size, size), np.float32)
    kernel[np.arange(channels), np.arange(channels)] = np.outer(line, line)
    return Tensor(kernel)


class WideConv(Conv2d):
    """Convolution with many output channels, trained in pieces of at most ``WIDEST`` channels.

    For the gradient of fc6's 103 million weights oneDNN only has its reference kernel, which is a hundred times slower
    than the kernel for half as many (docs/performance.md). Parameter and result are those of :class:`Conv2d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side length, odd; the output is as large as the input.
    """
    WIDEST = 2048

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.pieces = -(-out_channels // self.WIDEST)
        if out_channels % self.pieces:
            self.pieces = 1
        self.piece = ops.Conv2D(out_channels // self.pieces, kernel, pad_mode="pad", pad=kernel // 2)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to (N, out, H, W)."""
        if not self.training or self.pieces == 1 or self.fused is not None:
            return super().construct(x)
        parts = ()
        for weight in ops.split(self.weight, self.out_channels // self.pieces, 0):
            parts += (self.piece(x, cast(weight, x.dtype)),)
        return ops.concat(parts, 1)


class VGGStage(nn.SequentialCell):
    """3x3 convolutions with BatchNorm and ReLU, then 2x2 max-pooling: (N, in, H, W) to (N, out, H/2, W/2).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        count: Number of convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, count: int) -> None:
        convs = [ConvBNReLU(in_channels if i == 0 else out_channels, out_channels, 3) for i in range(count)]
        super().__init__(OrderedDict(convs=nn.SequentialCell(convs), pool=MaxPool2d(2, 2)))


class VGG16(nn.Cell):
    """The 13 convolutions of VGG16 with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = VGGStage(3, 64, 2)
        self.stage2 = VGGStage(64, 128, 2)
        self.stage3 = VGGStage(128, 256, 3)
        self.stage4 = VGGStage(256, 512, 3)
        self.stage5 = VGGStage(512, 512, 3)

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (N, 3, H, W) to the features of stages 3, 4 and 5: 256 channels at stride 8, 512 at 16, 512 at 32."""
        pool3 = self.stage3(self.stage2(self.stage1(x)))
        pool4 = self.stage4(pool3)
        return pool3, pool4, self.stage5(pool4)


class FCN8s(SegmentationNetwork):
    """FCN-8s.

    Args:
        num_classes: Channels of the logits.
        fc_channels: Channels of fc6 and fc7; 4096 in the paper, fewer in tests.
        deconv_init: Initial weights of the transposed convolutions, ``bilinear`` (as in the paper) or ``xavier``.
    """

    def __init__(self, num_classes: int, fc_channels: int = 4096, deconv_init: str = "bilinear") -> None:
        super().__init__()
        if deconv_init not in DECONV_INITS:
            raise UserError(f"fcn8s: deconv_init {deconv_init!r} is unknown; choose one of {', '.join(DECONV_INITS)}")
        if fc_channels < 1:
            raise UserError(f"fcn8s: fc_channels {fc_channels!r} must be >= 1")
        self.backbone = VGG16()
        self.fc6 = ConvBNAct(WideConv(512, fc_channels, 7), fc_channels, nn.ReLU())
        self.fc7 = ConvBNReLU(fc_channels, fc_channels)
        self.score_fr = conv2d(fc_channels, num_classes)
        self.score_pool4 = conv2d(512, num_classes)
        self.score_pool3 = conv2d(256, num_classes)
        self.upscore2 = self._deconv(num_classes, 4, 2, deconv_init)
        self.upscore_pool4 = self._deconv(num_classes, 4, 2, deconv_init)
        self.upscore8 = self._deconv(num_classes, 16, 8, deconv_init)

    @staticmethod
    def _deconv(channels: int, kernel: int, stride: int, init: str) -> TransposedConv:
        weight = bilinear_kernel(channels, kernel) if init == "bilinear" else XavierUniform()
        return TransposedConv(channels, channels, kernel, stride, (kernel - stride) // 2, weight)

    def predict(self, x: Tensor) -> tuple[Tensor]:
        """Computes the logits of padded images; there are no auxiliary heads."""
        pool3, pool4, pool5 = self.backbone(x)
        score = self.upscore2(self.score_fr(self.fc7(self.fc6(pool5))))
        score = self.upscore_pool4(score + self.score_pool4(pool4))
        return (self.upscore8(score + self.score_pool3(pool3)),)
