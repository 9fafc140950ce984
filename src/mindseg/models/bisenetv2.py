"""BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation (arXiv 2004.02147).

Three public variants differ in detail, and their weights fit only their own:

- ``paper``: CoinCheung's implementation.
- ``modelzoo``: Rogersiy/bisenetv2_mindspore's. Some BatchNorms with epsilon 1e-3, the mean instead of the sum in
  gather-and-expansion layers of stride 1, bilinear instead of nearest up-sampling, one-sided average pooling, and no
  dropout.
- ``zh320``: zh320/realtime-semantic-segmentation-pytorch's. 128 channels already before the last halving of the detail
  branch; no ReLU behind the depthwise convolutions of gather-and-expansion layers, but behind those of the aggregation,
  whose detail branch is halved by a depthwise one; the context embedding ends in a plain convolution; bilinear
  up-sampling; auxiliary heads like the main one, and no dropout.
"""
from collections import OrderedDict
from functools import partial

from mindspore import Tensor, nn, ops

from mindseg.compat import BatchNorm2d, MaxPool2d
from mindseg.errors import UserError
from mindseg.models.layers import (
    ConvBNReLU,
    Dropout,
    PooledBatchNorm,
    Resample,
    ResizeNearest,
    SegmentationNetwork,
    conv2d,
    pad_low,
)

VARIANTS = ("paper", "modelzoo", "zh320")
he_conv2d = partial(conv2d, he_init=True)
conv_bn_relu = partial(ConvBNReLU, he_init=True)


class DetailBranch(nn.SequentialCell):
    """Wide and shallow branch of eight 3x3 convolutions, from an image (N, 3, H, W) to (N, 128, H/8, W/8).

    Args:
        eps: Small number that BatchNorm adds to the variance.
        middle: Channels at the end of the second stage.
    """

    def __init__(self, eps: float, middle: int) -> None:
        stages = OrderedDict()
        for name, channels in (("S1", (3, 64, 64)), ("S2", (64, 64, 64, middle)), ("S3", (middle, 128, 128, 128))):
            stages[name] = nn.SequentialCell([
                conv_bn_relu(channels[i], channels[i + 1], 3, 2 if i == 0 else 1, eps=eps)
                for i in range(len(channels) - 1)])
        super().__init__(stages)


class StemBlock(nn.Cell):
    """First block of the semantic branch: convolutions beside a max-pooling.

    Args:
        eps: Small number that BatchNorm adds to the variance.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.conv = conv_bn_relu(3, 16, 3, 2, eps=eps)
        self.left = nn.SequentialCell([conv_bn_relu(16, 8, eps=eps), conv_bn_relu(8, 16, 3, 2, eps=eps)])
        self.pool = MaxPool2d(3, 2)
        self.fuse = conv_bn_relu(32, 16, 3, eps=eps)

    def construct(self, x: Tensor) -> Tensor:
        """Maps an image (N, 3, H, W) to (N, 16, H/4, W/4)."""
        x = self.conv(x)
        # The features are >= 0, so a border of zeros never wins a maximum.
        return self.fuse(ops.concat((self.left(x), self.pool(pad_low(x, 0.0))), 1))


class GELayerS1(nn.Cell):
    """Gather-and-expansion layer of stride 1.

    Args:
        channels: Channels of input and output.
        eps: Small number that the first BatchNorm adds to the variance.
        halve: Mean of branch and shortcut instead of their sum.
        act: Activation behind the depthwise convolution, or None.
    """

    def __init__(self, channels: int, eps: float, halve: bool, act: str | None) -> None:
        super().__init__()
        hidden = 6 * channels
        self.conv1 = conv_bn_relu(channels, channels, 3, eps=eps)
        self.dwconv = conv_bn_relu(channels, hidden, 3, groups=channels, act=act)
        self.conv2 = conv_bn_relu(hidden, channels, act=None)
        self.conv2.bn = BatchNorm2d(channels, gamma_init="zeros")
        self.halve = halve

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, channels, H, W) to the same shape."""
        out = self.conv2(self.dwconv(self.conv1(x))) + x
        return ops.relu(out / 2 if self.halve else out)


class GELayerS2(nn.Cell):
    """Gather-and-expansion layer of stride 2, with a separable convolution as shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        eps: Small number that the first BatchNorm adds to the variance.
        act: Activation behind the second depthwise convolution, or None.
    """

    def __init__(self, in_channels: int, out_channels: int, eps: float, act: str | None) -> None:
        super().__init__()
        hidden = 6 * in_channels
        self.conv1 = conv_bn_relu(in_channels, in_channels, 3, eps=eps)
        self.dwconv1 = conv_bn_relu(in_channels, hidden, 3, 2, groups=in_channels, act=None)
        self.dwconv2 = conv_bn_relu(hidden, hidden, 3, groups=hidden, act=act)
        self.conv2 = conv_bn_relu(hidden, out_channels, act=None)
        self.conv2.bn = BatchNorm2d(out_channels, gamma_init="zeros")
        self.shortcut = nn.SequentialCell([conv_bn_relu(in_channels, in_channels, 3, 2, groups=in_channels, act=None),
                                           conv_bn_relu(in_channels, out_channels, act=None)])

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to (N, out, H/2, W/2)."""
        return ops.relu(self.conv2(self.dwconv2(self.dwconv1(self.conv1(x)))) + self.shortcut(x))


class CEBlock(nn.Cell):
    """Context embedding block, which adds the normalised global mean to every pixel.

    Args:
        eps: Small number that BatchNorm adds to the variance.
        plain: The last convolution has neither BatchNorm nor ReLU.
    """

    def __init__(self, eps: float, plain: bool) -> None:
        super().__init__()
        self.bn = PooledBatchNorm(128, eps, "BiSeNet V2's context embedding")
        self.conv_gap = conv_bn_relu(128, 128, eps=eps)
        self.conv_last = he_conv2d(128, 128, 3, 1, 1) if plain else conv_bn_relu(128, 128, 3, eps=eps)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, 128, H, W) to the same shape."""
        return self.conv_last(self.conv_gap(self.bn(ops.mean(x, (2, 3), True))) + x)


class SegmentBranch(nn.Cell):
    """Narrow and deep semantic branch.

    Args:
        eps: Small number that BatchNorm adds to the variance.
        halve: As in :class:`GELayerS1`.
        zh320: The variant zh320.
    """

    def __init__(self, eps: float, halve: bool, zh320: bool) -> None:
        super().__init__()
        act = None if zh320 else "relu"
        self.S1S2 = StemBlock(eps)
        self.S3 = nn.SequentialCell([GELayerS2(16, 32, eps, act), GELayerS1(32, eps, halve, act)])
        self.S4 = nn.SequentialCell([GELayerS2(32, 64, eps, act), GELayerS1(64, eps, halve, act)])
        self.S5_4 = nn.SequentialCell([GELayerS2(64, 128, eps, act),
                                       *(GELayerS1(128, eps, halve, act) for _ in range(3))])
        self.S5_5 = CEBlock(eps, zh320)

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Maps an image (N, 3, H, W) to five features.

        Returns:
            16, 32, 64 and 128 channels at strides 4, 8, 16 and 32, and the last of them with its context embedded.
        """
        feat2 = self.S1S2(x)
        feat3 = self.S3(feat2)
        feat4 = self.S4(feat3)
        feat5 = self.S5_4(feat4)
        return feat2, feat3, feat4, feat5, self.S5_5(feat5)


class BGALayer(nn.Cell):
    """Bilateral guided aggregation: each branch is gated by the other, at both scales.

    Args:
        variant: As in :class:`BiSeNetV2`. Up-sampling is nearest for ``paper``, else bilinear; average pooling is
            one-sided for ``modelzoo``.
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.pool = Resample("same" if variant == "modelzoo" else "padded")
        self.resize = None if variant == "paper" else Resample(True)
        act, groups = ("relu", 128) if variant == "zh320" else (None, 1)
        self.left1 = nn.SequentialCell([conv_bn_relu(128, 128, 3, groups=128, act=act), he_conv2d(128, 128)])
        self.left2 = conv_bn_relu(128, 128, 3, 2, groups=groups, act=act)
        self.right1 = conv_bn_relu(128, 128, 3, act=act)
        self.right2 = nn.SequentialCell([conv_bn_relu(128, 128, 3, groups=128, act=act), he_conv2d(128, 128)])
        self.conv = conv_bn_relu(128, 128, 3)
        self.enlarge = ResizeNearest(4)

    def construct(self, detail: Tensor, semantic: Tensor) -> Tensor:
        """Maps ``detail`` (N, 128, H, W) and ``semantic`` (N, 128, H/4, W/4) to (N, 128, H, W)."""
        left = self.left1(detail)
        gate = self.right1(semantic)
        small, size = (semantic.shape[2], semantic.shape[3]), (detail.shape[2], detail.shape[3])
        right = self.pool(self.left2(detail), small) * ops.sigmoid(self.right2(semantic))
        if self.resize is not None:
            left = left * ops.sigmoid(self.resize(gate, size))
            right = self.resize(right, size)
        else:
            left = left * self.enlarge(ops.sigmoid(gate))
            right = self.enlarge(right)
        return self.conv(left + right)


class SegmentHead(nn.Cell):
    """3x3 convolution, dropout and a 1x1 classifier; auxiliary heads up-sample by 2 and convolve again in between.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the first convolution.
        num_classes: Channels of the logits.
        auxiliary_channels: Channels after the up-sampling of an auxiliary head; 0: main head, and all heads of zh320.
        dropout: Dropout rate.
        name: Name of the dropout layer.
        eps: Small number that BatchNorm adds to the variance.
        bilinear: Bilinear instead of nearest up-sampling.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, auxiliary_channels: int, dropout: float,
                 name: str, eps: float, bilinear: bool) -> None:
        super().__init__()
        self.resize = Resample(True) if bilinear else None
        self.conv = conv_bn_relu(in_channels, channels, 3, eps=eps)
        self.dropout = Dropout(dropout, name)
        self.up = conv_bn_relu(channels, auxiliary_channels, 3, eps=eps) if auxiliary_channels else None
        self.conv_out = he_conv2d(auxiliary_channels or channels, num_classes, bias=True)
        self.enlarge = ResizeNearest(2)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to logits (N, num_classes, H, W), of an auxiliary head (N, num_classes, 2H, 2W)."""
        x = self.dropout(self.conv(x))
        if self.up is not None:
            if self.resize is not None:
                x = self.up(self.resize(x, (2 * x.shape[2], 2 * x.shape[3])))
            else:
                x = self.up(self.enlarge(x))
        return self.conv_out(x)


class BiSeNetV2(SegmentationNetwork):
    """BiSeNet V2.

    Args:
        num_classes: Channels of the logits.
        variant: ``paper``, ``modelzoo`` or ``zh320``, described at the top of this file.
        head_channels: Channels of the main head, 1024 (paper) or 128 (zh320).
        aux: Four auxiliary heads in training, at strides 4, 8, 16 and 32.
        dropout: Dropout rate in all heads; None: 0.1 for ``paper``, else 0.
        enlarge: Factor by which images are enlarged first, see :class:`SegmentationNetwork`.
    """

    def __init__(self, num_classes: int, variant: str = "paper", head_channels: int = 1024, aux: bool = True,
                 dropout: float | None = None, enlarge: int = 1) -> None:
        super().__init__(upsampling=variant == "zh320", enlarge=enlarge)
        if variant not in VARIANTS:
            raise UserError(f"bisenetv2: variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
        if head_channels < 1:
            raise UserError(f"bisenetv2: head_channels {head_channels!r} must be >= 1")
        modelzoo, zh320 = variant == "modelzoo", variant == "zh320"
        eps = 1e-3 if modelzoo else 1e-5
        if dropout is None:
            dropout = 0.1 if variant == "paper" else 0.0
        self.aux = aux
        self.detail = DetailBranch(eps, 128 if zh320 else 64)
        self.segment = SegmentBranch(eps, modelzoo, zh320)
        self.bga = BGALayer(variant)
        self.head = SegmentHead(128, head_channels, num_classes, 0, dropout, "head", eps, modelzoo)
        if aux:
            heads = (("aux2", 16, 4), ("aux3", 32, 8), ("aux4", 64, 16), ("aux5_4", 128, 32))
            for name, channels, stride in heads:
                more = 0 if zh320 else stride**2
                setattr(self, name, SegmentHead(channels, 128, num_classes, more, dropout, name, eps, modelzoo))

    def predict(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the logits of padded images, smaller than these."""
        feat2, feat3, feat4, feat5, semantic = self.segment(x)
        main = self.head(self.bga(self.detail(x), semantic))
        if not (self.training and self.aux):
            return (main,)
        return main, self.aux2(feat2), self.aux3(feat3), self.aux4(feat4), self.aux5_4(feat5)
