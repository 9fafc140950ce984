"""ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation (arXiv 1606.02147).

Three public variants differ in detail, and their weights fit only their own:

- ``paper``: davidtvs' implementation. One slope per PReLU, max-unpooling in the decoder, dropout of whole channels.
- ``modelzoo``: the MindSpore model zoo's. One slope per channel, bilinear up-sampling in place of max-unpooling,
  dropout of single values, the two halves of an asymmetric convolution swapped, and one-sided padding in the first
  pooling and the last transposed convolution.
- ``zh320``: zh320/realtime-semantic-segmentation-pytorch's. ReLU inside the blocks and PReLU behind them, also in the
  decoder; no BatchNorm behind their last convolution, nor behind the transposed ones, which are 3x3; a convolution
  instead of zero channels in the shortcuts that halve the resolution; a 1x1 convolution with BatchNorm and PReLU and a
  bilinear resize at the end; dropout of single values.
"""
from mindspore import Tensor, nn, ops

from mindseg.compat import BatchNorm2d, MaxPool2d
from mindseg.errors import UserError
from mindseg.models.layers import (
    ConvBNAct,
    Dropout,
    PReLU,
    Resample,
    SegmentationNetwork,
    TransposedConv,
    Unpooling,
    conv2d,
    pad_low,
)

VARIANTS = ("paper", "modelzoo", "zh320")
UNPOOLS = ("max", "bilinear")


class Style:
    """Settings that all blocks of a network share.

    Args:
        variant: ``paper``, ``modelzoo`` or ``zh320``.
        unpool_mode: ``max`` or ``bilinear``.
        dropout: The model's option ``dropout``.
    """

    def __init__(self, variant: str, unpool_mode: str, dropout: float) -> None:
        self.modelzoo, self.zh320 = variant == "modelzoo", variant == "zh320"
        self.max_unpool = unpool_mode == "max"
        self.dropout = dropout

    def act(self, channels: int, prelu: bool) -> nn.Cell:
        """Makes an activation inside a block.

        Args:
            channels: Channels of its input.
            prelu: PReLU (encoder) instead of ReLU (decoder); the variant zh320 has none.
        """
        return PReLU(channels if self.modelzoo else 1) if prelu and not self.zh320 else nn.ReLU()

    def last_act(self, channels: int, prelu: bool) -> nn.Cell:
        """Makes the activation behind the sum of a block, as :meth:`act` does, but always a PReLU for zh320."""
        return PReLU() if self.zh320 else self.act(channels, prelu)

    def expand(self, inner: int, channels: int, act: nn.Cell | None) -> nn.Cell:
        """Makes the 1x1 convolution that ends a branch: alone for zh320, else with BatchNorm and activation.

        Args:
            inner: Channels of its input.
            channels: Channels of its output.
            act: Activation.
        """
        conv = conv2d(inner, channels)
        return conv if self.zh320 else ConvBNAct(conv, channels, act)

    def drop(self, rate: float, name: str) -> Dropout:
        """Makes a dropout layer.

        Args:
            rate: Rate in the paper; it is scaled by the option ``dropout`` over its default of 0.1.
            name: Name of the layer.
        """
        return Dropout(rate * self.dropout / 0.1, name, spatial=not (self.modelzoo or self.zh320))


class InitialBlock(nn.Cell):
    """Stride-2 convolution to 13 channels, concatenated with the max-pooled image.

    Args:
        style: Settings of the network.
    """

    def __init__(self, style: Style) -> None:
        super().__init__()
        conv = conv2d(3, 13, 3, 2, 1)
        self.conv = ConvBNAct(conv, 13, PReLU()) if style.zh320 else conv
        self.pool = MaxPool2d(3, 2, same=style.modelzoo)
        self.pad = not style.modelzoo
        self.bn = None if style.zh320 else BatchNorm2d(16)
        self.act = None if style.zh320 else style.act(16, True)

    def construct(self, x: Tensor) -> Tensor:
        """Maps an image (N, 3, H, W) to (N, 16, H/2, W/2)."""
        pooled = self.pool(pad_low(x, -1e30)) if self.pad else self.pool(x)
        features = ops.concat((self.conv(x), pooled), 1)
        return features if self.bn is None else self.act(self.bn(features))


class RegularBottleneck(nn.Cell):
    """Residual block: 1x1 reduction by 4, 3x3 or 5x1 and 1x5 convolution, 1x1 expansion, dropout.

    Args:
        channels: Channels of input and output.
        style: Settings of the network.
        name: Name of the dropout layer.
        rate: Dropout rate in the paper.
        dilation: Dilation of the 3x3 convolution.
        asymmetric: 5x1 and 1x5 convolutions instead of 3x3.
        prelu: PReLU instead of ReLU.
    """

    def __init__(self, channels: int, style: Style, name: str, rate: float = 0.1, dilation: int = 1,
                 asymmetric: bool = False, prelu: bool = True) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1 = ConvBNAct(conv2d(channels, inner), inner, style.act(inner, prelu))
        if asymmetric:
            tall, wide = (conv2d(inner, inner, kernel, padding="same") for kernel in ((5, 1), (1, 5)))
            first, second = (wide, tall) if style.modelzoo else (tall, wide)
            self.conv2 = nn.SequentialCell([ConvBNAct(first, inner, style.act(inner, prelu)),
                                            ConvBNAct(second, inner, style.act(inner, prelu))])
        else:
            conv = conv2d(inner, inner, 3, 1, dilation, dilation)
            self.conv2 = nn.SequentialCell([ConvBNAct(conv, inner, style.act(inner, prelu))])
        self.conv3 = style.expand(inner, channels, style.act(channels, prelu))
        self.dropout = style.drop(rate, name)
        self.act = style.last_act(channels, prelu)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, channels, H, W) to the same shape."""
        return self.act(x + self.dropout(self.conv3(self.conv2(self.conv1(x)))))


class DownsamplingBottleneck(nn.Cell):
    """Residual block that halves the resolution.

    Its shortcut is a max-pooling, filled up with zero channels, or convolved in the variant zh320.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, more than ``in_channels``.
        style: Settings of the network.
        name: Name of the dropout layer.
        rate: Dropout rate in the paper.
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style, name: str, rate: float) -> None:
        super().__init__()
        inner = in_channels // 4
        self.extra = out_channels - in_channels
        self.pool = MaxPool2d(2, 2)
        self.main = ConvBNAct(conv2d(in_channels, out_channels), out_channels, nn.ReLU()) if style.zh320 else None
        conv = conv2d(in_channels, inner, 3, 2, 1) if style.zh320 else conv2d(in_channels, inner, 2, 2)
        self.conv1 = ConvBNAct(conv, inner, style.act(inner, True))
        self.conv2 = ConvBNAct(conv2d(inner, inner, 3, 1, 1), inner, style.act(inner, True))
        self.conv3 = style.expand(inner, out_channels, style.act(out_channels, True))
        self.dropout = style.drop(rate, name)
        self.act = style.last_act(out_channels, True)

    def construct(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Maps (N, in, H, W) to (N, out, H/2, W/2) and, for max-unpooling, the input and the result of the pooling."""
        main = self.pool(x)
        ext = self.dropout(self.conv3(self.conv2(self.conv1(x))))
        if self.main is not None:
            return self.act(self.main(main) + ext), (x, main)
        zeros = ops.zeros_like(ext[:, :self.extra])
        return self.act(ops.concat((main, zeros), 1) + ext), (x, main)


class UpsamplingBottleneck(nn.Cell):
    """Residual block that doubles the resolution, by a 2x2 transposed convolution (zh320: 3x3).

    Its shortcut is a 1x1 convolution with max-unpooling or bilinear up-sampling.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        style: Settings of the network.
        name: Name of the dropout layer.
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style, name: str) -> None:
        super().__init__()
        inner = in_channels // 4
        self.unpool = Unpooling() if style.max_unpool else None
        self.main = ConvBNAct(conv2d(in_channels, out_channels), out_channels, nn.ReLU() if style.zh320 else None)
        self.conv1 = ConvBNAct(conv2d(in_channels, inner), inner, nn.ReLU())
        self.deconv = (TransposedConv(inner, inner, 3, 2, offset=1) if style.zh320 else
                       ConvBNAct(TransposedConv(inner, inner, 2, 2), inner, nn.ReLU()))
        self.conv2 = style.expand(inner, out_channels, None)
        self.dropout = style.drop(0.1, name)
        self.act = style.last_act(out_channels, False)
        self.resize = Resample("low" if style.modelzoo else False)

    def construct(self, x: Tensor, pooling: tuple[Tensor, Tensor]) -> Tensor:
        """Maps (N, in, H, W) and the pooling of a downsampling block to (N, out, 2H, 2W)."""
        main = self.main(x)
        if self.unpool is not None:
            main = self.unpool(main, pooling[0], pooling[1])
        else:
            main = self.resize(main, (2 * x.shape[2], 2 * x.shape[3]))
        return self.act(main + self.dropout(self.conv2(self.deconv(self.conv1(x)))))


class Encoder(nn.Cell):
    """Stages 1 to 3.

    Args:
        style: Settings of the network.
    """

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.initial_block = InitialBlock(style)
        self.downsample1_0 = DownsamplingBottleneck(16, 64, style, "downsample1_0", 0.01)
        self.stage1 = nn.SequentialCell([RegularBottleneck(64, style, f"stage1.{i}", 0.01) for i in range(4)])
        self.downsample2_0 = DownsamplingBottleneck(64, 128, style, "downsample2_0", 0.1)
        self.stage2 = self._stage(style, "stage2")
        self.stage3 = self._stage(style, "stage3")

    @staticmethod
    def _stage(style: Style, name: str) -> nn.SequentialCell:
        kinds = ({}, {"dilation": 2}, {"asymmetric": True}, {"dilation": 4},
                 {}, {"dilation": 8}, {"asymmetric": True}, {"dilation": 16})
        return nn.SequentialCell([RegularBottleneck(128, style, f"{name}.{i}", **kind) for i, kind in enumerate(kinds)])

    def construct(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Maps an image (N, 3, H, W) to (N, 128, H/8, W/8) and the poolings of the two downsampling blocks."""
        x, pooling1 = self.downsample1_0(self.initial_block(x))
        x, pooling2 = self.downsample2_0(self.stage1(x))
        return self.stage3(self.stage2(x)), pooling1, pooling2


class Decoder(nn.Cell):
    """Stages 4 and 5 and the last transposed convolution, in the variant zh320 a 1x1 convolution and a bilinear resize.

    Args:
        num_classes: Channels of the logits.
        style: Settings of the network.
    """

    def __init__(self, num_classes: int, style: Style) -> None:
        super().__init__()
        self.upsample4_0 = UpsamplingBottleneck(128, 64, style, "upsample4_0")
        self.stage4 = nn.SequentialCell([RegularBottleneck(64, style, f"stage4.{i}", prelu=False) for i in range(2)])
        self.upsample5_0 = UpsamplingBottleneck(64, 16, style, "upsample5_0")
        self.stage5 = RegularBottleneck(16, style, "stage5", prelu=False)
        # The full result is one row and column too large: PyTorch's padding drops the first ones, "same" the last.
        self.fullconv = TransposedConv(16, num_classes, 3, 2, offset=0 if style.modelzoo else 1)
        self.resize = Resample(False) if style.zh320 else None
        if style.zh320:
            self.fullconv = ConvBNAct(conv2d(16, num_classes), num_classes, PReLU())

    def construct(self, x: Tensor, pooling1: tuple[Tensor, Tensor], pooling2: tuple[Tensor, Tensor]) -> Tensor:
        """Maps the results of the encoder to logits (N, num_classes, H, W)."""
        x = self.stage4(self.upsample4_0(x, pooling2))
        x = self.fullconv(self.stage5(self.upsample5_0(x, pooling1)))
        return x if self.resize is None else self.resize(x, (2 * x.shape[2], 2 * x.shape[3]))


class ENet(SegmentationNetwork):
    """ENet.

    Args:
        num_classes: Channels of the logits.
        variant: ``paper``, ``modelzoo`` or ``zh320``, described at the top of this file.
        unpool: Up-sampling in the decoder, ``max`` or ``bilinear``; None: ``bilinear`` for ``modelzoo``, else ``max``.
        encoder_only: Encoder with a 1x1 classifier at stride 8, for staged training.
        dropout: Dropout rate from the second stage on; the first stage has a tenth of it.
    """

    def __init__(self, num_classes: int, variant: str = "paper", unpool: str | None = None, encoder_only: bool = False,
                 dropout: float = 0.1) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise UserError(f"enet: variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
        unpool = unpool or ("bilinear" if variant == "modelzoo" else "max")
        if unpool not in UNPOOLS:
            raise UserError(f"enet: unpool {unpool!r} is unknown; choose one of {', '.join(UNPOOLS)}")
        self.encoder_only = encoder_only
        style = Style(variant, "bilinear" if encoder_only else unpool, dropout)
        self.encoder = Encoder(style)
        if encoder_only:
            self.pred, self.enlarge = conv2d(128, num_classes, bias=True), Resample(False)
        else:
            self.decoder = Decoder(num_classes, style)

    def predict(self, x: Tensor) -> tuple[Tensor]:
        """Computes the logits of padded images; there are no auxiliary heads."""
        features, pooling1, pooling2 = self.encoder(x)
        if not self.encoder_only:
            return (self.decoder(features, pooling1, pooling2),)
        logits = self.pred(features)
        return (logits if self.training else self.enlarge(logits, (x.shape[2], x.shape[3])),)
