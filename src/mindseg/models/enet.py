"""ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation (arXiv 1606.02147).

Two public variants differ in detail, and their weights fit only their own:

- ``paper``: davidtvs' implementation. One slope a PReLU, max-unpooling in the decoder, whole channels dropped.
- ``modelzoo``: the MindSpore model zoo's. One slope a channel, bilinear up-sampling in place of max-unpooling, single
  values dropped, the two halves of an asymmetric convolution swapped, and one-sided padding in the first pooling and
  the last transposed convolution.
"""
from mindspore import Tensor, nn, ops

from mindseg.errors import UserError
from mindseg.models.layers import (
    Dropout,
    PReLU,
    TransposedConv,
    batch_norm,
    conv2d,
    crop,
    max_pool_mask,
    pad_low,
    pad_to_multiple,
    resize_bilinear,
    unpool,
)

VARIANTS = ("paper", "modelzoo")
UNPOOLS = ("max", "bilinear")


class Style:
    """What the blocks of one variant have in common."""

    def __init__(self, variant: str, unpool_mode: str, dropout: float) -> None:
        self.modelzoo = variant == "modelzoo"
        self.max_unpool = unpool_mode == "max"
        self.dropout = dropout

    def act(self, channels: int, prelu: bool) -> nn.Cell:
        """PReLU in the encoder, ReLU in the decoder."""
        return PReLU(channels if self.modelzoo else 1) if prelu else nn.ReLU()

    def drop(self, rate: float, name: str) -> Dropout:
        """The paper's rate of a block, scaled by the model's ``dropout`` option over its default of 0.1."""
        return Dropout(rate * self.dropout / 0.1, name, spatial=not self.modelzoo)


class ConvBNAct(nn.Cell):
    """Convolution, BatchNorm and an optional activation."""

    def __init__(self, conv: nn.Cell, channels: int, act: nn.Cell | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.bn = batch_norm(channels)
        self.act = act

    def construct(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.act is None else self.act(x)


class InitialBlock(nn.Cell):
    """13 channels of a stride-2 convolution beside the max-pooled image."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.conv = conv2d(3, 13, 3, 2, 1)
        self.pool = nn.MaxPool2d(3, 2, pad_mode="same" if style.modelzoo else "valid")
        self.pad = not style.modelzoo
        self.bn = batch_norm(16)
        self.act = style.act(16, True)

    def construct(self, x: Tensor) -> Tensor:
        pooled = self.pool(pad_low(x, -1e30)) if self.pad else self.pool(x)
        return self.act(self.bn(ops.concat((self.conv(x), pooled), 1)))


class RegularBottleneck(nn.Cell):
    """1x1 reduction by 4, a 3x3 (dilated) or asymmetric 5x1 and 1x5 convolution, 1x1 expansion, dropout, shortcut."""

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
        self.conv3 = ConvBNAct(conv2d(inner, channels), channels, style.act(channels, prelu))
        self.dropout = style.drop(rate, name)
        self.act = style.act(channels, prelu)

    def construct(self, x: Tensor) -> Tensor:
        return self.act(x + self.dropout(self.conv3(self.conv2(self.conv1(x)))))


class DownsamplingBottleneck(nn.Cell):
    """Halves the resolution; also returns where the 2x2 maxima were (with max-unpooling only)."""

    def __init__(self, in_channels: int, out_channels: int, style: Style, name: str, rate: float) -> None:
        super().__init__()
        inner = in_channels // 4
        self.extra = out_channels - in_channels
        self.mask = style.max_unpool
        self.pool = nn.MaxPool2d(2, 2)
        self.conv1 = ConvBNAct(conv2d(in_channels, inner, 2, 2), inner, style.act(inner, True))
        self.conv2 = ConvBNAct(conv2d(inner, inner, 3, 1, 1), inner, style.act(inner, True))
        self.conv3 = ConvBNAct(conv2d(inner, out_channels), out_channels, style.act(out_channels, True))
        self.dropout = style.drop(rate, name)
        self.act = style.act(out_channels, True)

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        main = self.pool(x)
        mask = max_pool_mask(x, main) if self.mask else main
        ext = self.dropout(self.conv3(self.conv2(self.conv1(x))))
        zeros = ops.zeros_like(ext[:, :self.extra])
        return self.act(ops.concat((main, zeros), 1) + ext), mask


class UpsamplingBottleneck(nn.Cell):
    """Doubles the resolution: max-unpooling or bilinear in the main branch, a 2x2 transposed convolution beside it."""

    def __init__(self, in_channels: int, out_channels: int, style: Style, name: str) -> None:
        super().__init__()
        inner = in_channels // 4
        self.max_unpool = style.max_unpool
        self.main = ConvBNAct(conv2d(in_channels, out_channels), out_channels)
        self.conv1 = ConvBNAct(conv2d(in_channels, inner), inner, nn.ReLU())
        self.deconv = ConvBNAct(TransposedConv(inner, inner, 2, 2), inner, nn.ReLU())
        self.conv2 = ConvBNAct(conv2d(inner, out_channels), out_channels)
        self.dropout = style.drop(0.1, name)
        self.corners = "low" if style.modelzoo else False
        self.relu = nn.ReLU()

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        main = self.main(x)
        if self.max_unpool:
            main = unpool(main, mask)
        else:
            main = resize_bilinear(main, (2 * x.shape[2], 2 * x.shape[3]), self.corners)
        return self.relu(main + self.dropout(self.conv2(self.deconv(self.conv1(x)))))


class Encoder(nn.Cell):
    """Stages 1 to 3: image to 128 channels at stride 8, and the two maps of maxima."""

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

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, mask1 = self.downsample1_0(self.initial_block(x))
        x, mask2 = self.downsample2_0(self.stage1(x))
        return self.stage3(self.stage2(x)), mask1, mask2


class Decoder(nn.Cell):
    """Stages 4 and 5 and the last transposed convolution, with ReLU."""

    def __init__(self, num_classes: int, style: Style) -> None:
        super().__init__()
        self.upsample4_0 = UpsamplingBottleneck(128, 64, style, "upsample4_0")
        self.stage4 = nn.SequentialCell([RegularBottleneck(64, style, f"stage4.{i}", prelu=False) for i in range(2)])
        self.upsample5_0 = UpsamplingBottleneck(64, 16, style, "upsample5_0")
        self.stage5 = RegularBottleneck(16, style, "stage5", prelu=False)
        # The full result is one row and column too large: PyTorch's padding drops the first ones, "same" the last.
        self.fullconv = TransposedConv(16, num_classes, 3, 2, offset=0 if style.modelzoo else 1)

    def construct(self, x: Tensor, mask1: Tensor, mask2: Tensor) -> Tensor:
        x = self.stage4(self.upsample4_0(x, mask2))
        return self.fullconv(self.stage5(self.upsample5_0(x, mask1)))


class ENet(nn.Cell):
    """ENet.

    Args:
        num_classes: Channels of the logits.
        variant: ``paper`` or ``modelzoo``; see the module's text.
        unpool: Main branch of the decoder's up-sampling, ``max`` or ``bilinear``; None takes the variant's own.
        encoder_only: The encoder with a 1x1 classifier at stride 8, for staged training. Training then returns logits
            at 1/8 of the input size (rounded up), evaluation resizes them to the input.
        dropout: Rate from the second stage on; the first stage drops a tenth of it.

    Input (N, 3, H, W) float32, normalised, H and W >= 32. Returns logits (N, num_classes, H, W) in evaluation, and the
    tuple (logits,) in training: ENet has no auxiliary head.
    """

    def __init__(self, num_classes: int, variant: str = "paper", unpool: str | None = None, encoder_only: bool = False,
                 dropout: float = 0.1) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise UserError(f"enet: variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
        unpool = unpool or ("max" if variant == "paper" else "bilinear")
        if unpool not in UNPOOLS:
            raise UserError(f"enet: unpool {unpool!r} is unknown; choose one of {', '.join(UNPOOLS)}")
        self.encoder_only = encoder_only
        style = Style(variant, "bilinear" if encoder_only else unpool, dropout)
        self.encoder = Encoder(style)
        if encoder_only:
            self.pred = conv2d(128, num_classes, bias=True)
        else:
            self.decoder = Decoder(num_classes, style)

    def construct(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        height, width = x.shape[2], x.shape[3]
        x = pad_to_multiple(x)
        features, mask1, mask2 = self.encoder(x)
        if self.encoder_only:
            logits = self.pred(features)
            if self.training:
                return (crop(logits, (height + 7) // 8, (width + 7) // 8),)
            logits = resize_bilinear(logits, (x.shape[2], x.shape[3]), False)
        else:
            logits = self.decoder(features, mask1, mask2)
        logits = crop(logits, height, width)
        if not self.training:
            return logits
        return (logits,)
