"""Fast-SCNN: Fast Semantic Segmentation Network (arXiv 1902.04502).

Four public variants differ in detail, and their weights fit only their own:

- ``paper``: Tramac's implementation. ReLU, element dropout, depthwise fusion, one auxiliary head on the 1/8 features.
- ``segmentron``: SegmenTron's. ReLU6 in the bottlenecks, channel dropout, a full 1x1 convolution in the fusion, a
  second auxiliary head on the global features.
- ``modelzoo``: the MindSpore model zoo's. As ``paper`` with two auxiliary heads, and a first convolution that pads
  at the bottom and right instead of not at all.
- ``zh320``: zh320/realtime-semantic-segmentation-pytorch's. As ``paper`` with a padded first convolution, one
  bottleneck less, a pyramid of 1, 2, 4 and 6 without BatchNorm and ReLU, one BatchNorm behind the fusion, BatchNorm and
  ReLU behind the classifier, and without auxiliary heads and dropout.
"""
from collections import OrderedDict

from mindspore import Tensor, nn, ops

from mindseg.compat import BatchNorm2d
from mindseg.errors import UserError
from mindseg.models.layers import (
    ConvBNReLU,
    Dropout,
    PooledBatchNorm,
    Resample,
    SegmentationNetwork,
    conv2d,
)

VARIANTS = ("paper", "segmentron", "modelzoo", "zh320")


class DSConv(nn.SequentialCell):
    """Depthwise separable convolution: 3x3 depthwise and 1x1 pointwise, each with BatchNorm and ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(OrderedDict(
            depthwise=ConvBNReLU(in_channels, in_channels, 3, stride, groups=in_channels),
            pointwise=ConvBNReLU(in_channels, out_channels)))


class LearningToDownsample(nn.SequentialCell):
    """First module: three convolutions of stride 2, from an image (N, 3, H, W) to (N, 64, H/8, W/8).

    Args:
        stem_padding: Padding of the first convolution: 0, ``same`` (bottom and right only) in the variant modelzoo, or
            1 in zh320.
    """

    def __init__(self, stem_padding: int | str = 0) -> None:
        super().__init__(OrderedDict(
            conv=ConvBNReLU(3, 32, 3, 2, padding=stem_padding),
            dsconv1=DSConv(32, 48, 2),
            dsconv2=DSConv(48, 64, 2)))


class LinearBottleneck(nn.Cell):
    """Inverted residual of MobileNet V2 (arXiv 1801.04381): 1x1 expansion, 3x3 depthwise, linear 1x1 projection.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution; with 1 and equal channels the input is added to the result.
        act: ``relu`` or ``relu6``.
        expansion: Factor of the channels inside the block.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, act: str, expansion: int = 6) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.expand = ConvBNReLU(in_channels, hidden, act=act)
        self.depthwise = ConvBNReLU(hidden, hidden, 3, stride, groups=hidden, act=act)
        self.project = ConvBNReLU(hidden, out_channels, act=None)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to (N, out, H / stride, W / stride)."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.shortcut else out


class PyramidPooling(nn.Cell):
    """Pyramid pooling (PSPNet, arXiv 1612.01105) to 1x1, 2x2, 3x3 and 6x6, in the variant zh320 4x4 instead of 3x3.

    Args:
        in_channels: Channels of the input, a multiple of 4.
        out_channels: Channels of the output.
        kernel: Side length of the convolution that fuses the up-sampled branches with the input, 1 or 3.
        zh320: The branches have neither BatchNorm nor ReLU, as in the variant zh320.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, zh320: bool) -> None:
        super().__init__()
        self.sizes = (1, 2, 4, 6) if zh320 else (1, 2, 3, 6)
        convs = [(conv2d if zh320 else ConvBNReLU)(in_channels, in_channels // 4) for _ in self.sizes]
        if not zh320:
            convs[0].bn = PooledBatchNorm(in_channels // 4, 1e-5, "Fast-SCNN's pyramid pooling")
        self.pool, self.convs, self.resize = Resample("adaptive"), nn.CellList(convs), Resample(True)
        self.out = ConvBNReLU(2 * in_channels, out_channels, kernel)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (N, in, H, W) to (N, out, H, W)."""
        size = (x.shape[2], x.shape[3])
        features = (x,)
        for i in range(4):
            pooled = self.convs[i](self.pool(x, (self.sizes[i], self.sizes[i])))
            features += (self.resize(pooled, size),)
        return self.out(ops.concat(features, 1))


class GlobalFeatureExtractor(nn.SequentialCell):
    """Nine bottlenecks (zh320: eight), then pyramid pooling: (N, 64, H, W) to (N, 128, H/4, W/4).

    Args:
        act: Activation of the bottlenecks, ``relu`` or ``relu6``.
        ppm_kernel: Kernel of the convolution in the pyramid pooling, 1 or 3.
        zh320: The variant zh320.
    """

    def __init__(self, act: str, ppm_kernel: int, zh320: bool) -> None:
        super().__init__(OrderedDict(
            bottleneck1=self._stage(64, 64, 2, act, 3),
            bottleneck2=self._stage(64, 96, 2, act, 2 if zh320 else 3),
            bottleneck3=self._stage(96, 128, 1, act, 3),
            ppm=PyramidPooling(128, 128, ppm_kernel, zh320)))

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int, act: str, count: int) -> nn.SequentialCell:
        return nn.SequentialCell([LinearBottleneck(in_channels, out_channels, stride, act),
                                  *(LinearBottleneck(out_channels, out_channels, 1, act) for _ in range(count - 1))])


class FeatureFusionModule(nn.Cell):
    """Sum of the features at stride 8 and the up-sampled global ones.

    Args:
        depthwise: Depthwise 3x3 convolution after the up-sampling, instead of a full 1x1 convolution.
        zh320: BatchNorm of the sum instead of the summands.
    """

    def __init__(self, depthwise: bool, zh320: bool) -> None:
        super().__init__()
        self.resize = Resample(True)
        self.dwconv = ConvBNReLU(128, 128, 3, groups=128) if depthwise else ConvBNReLU(128, 128)
        if zh320:
            self.conv_lower_res, self.conv_higher_res, self.bn = conv2d(128, 128), conv2d(64, 128), BatchNorm2d(128)
        else:
            self.conv_lower_res = ConvBNReLU(128, 128, act=None, bias=True)
            self.conv_higher_res = ConvBNReLU(64, 128, act=None, bias=True)
            self.bn = None

    def construct(self, higher: Tensor, lower: Tensor) -> Tensor:
        """Maps ``higher`` (N, 64, H, W) and ``lower`` (N, 128, H/4, W/4) to (N, 128, H, W)."""
        lower = self.resize(lower, (higher.shape[2], higher.shape[3]))
        x = self.conv_higher_res(higher) + self.conv_lower_res(self.dwconv(lower))
        return ops.relu(x if self.bn is None else self.bn(x))


class Classifier(nn.SequentialCell):
    """Two separable convolutions, dropout and a 1x1 convolution from (N, 128, H, W) to logits of that size.

    Args:
        num_classes: Channels of the logits.
        dropout: Dropout rate.
        spatial: Drop whole channels.
        zh320: BatchNorm and ReLU behind the last convolution.
    """

    def __init__(self, num_classes: int, dropout: float, spatial: bool, zh320: bool) -> None:
        super().__init__(OrderedDict(
            dsconv1=DSConv(128, 128),
            dsconv2=DSConv(128, 128),
            dropout=Dropout(dropout, "classifier", spatial),
            conv=ConvBNReLU(128, num_classes, bias=True) if zh320 else conv2d(128, num_classes, bias=True)))


class AuxiliaryHead(nn.SequentialCell):
    """3x3 convolution, dropout and a 1x1 convolution to logits; used in training only.

    Args:
        in_channels: Channels of the input.
        num_classes: Channels of the logits.
        dropout: Dropout rate.
        spatial: Drop whole channels.
        name: Name of the dropout layer.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float, spatial: bool, name: str) -> None:
        super().__init__(OrderedDict(
            conv1=ConvBNReLU(in_channels, 32, 3),
            dropout=Dropout(dropout, name, spatial),
            conv2=conv2d(32, num_classes, bias=True)))


class FastSCNN(SegmentationNetwork):
    """Fast-SCNN.

    Args:
        num_classes: Channels of the logits.
        variant: ``paper``, ``segmentron``, ``modelzoo`` or ``zh320``, described at the top of this file.
        ppm_kernel: Kernel of the convolution in the pyramid pooling, 1 (paper) or 3 (recipes above 70 % mIoU).
        aux: Auxiliary heads in training.
        aux_heads: 1 (on the features at stride 8) or 2 (on the global features too); None: 1 for ``paper``, none for
            ``zh320``, else 2.
        dropout: Dropout rate before the classifiers; None: 0 for ``zh320``, else 0.1.
        enlarge: Factor by which images are enlarged first, see :class:`SegmentationNetwork`.
    """

    def __init__(self, num_classes: int, variant: str = "paper", ppm_kernel: int = 1, aux: bool = True,
                 aux_heads: int | None = None, dropout: float | None = None, enlarge: int = 1) -> None:
        super().__init__(upsampling=True, enlarge=enlarge)
        if variant not in VARIANTS:
            raise UserError(f"fast_scnn: variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
        if ppm_kernel not in (1, 3):
            raise UserError(f"fast_scnn: ppm_kernel {ppm_kernel!r} must be 1 or 3")
        if aux_heads not in (None, 1, 2):
            raise UserError(f"fast_scnn: aux_heads {aux_heads!r} must be 1 or 2; aux=false leaves them out")
        segmentron, zh320 = variant == "segmentron", variant == "zh320"
        if aux_heads is None:
            aux_heads = {"paper": 1, "zh320": 0}.get(variant, 2)
        if dropout is None:
            dropout = 0.0 if zh320 else 0.1
        self.aux_heads = aux_heads if aux else 0
        self.learning_to_downsample = LearningToDownsample({"modelzoo": "same", "zh320": 1}.get(variant, 0))
        self.global_feature_extractor = GlobalFeatureExtractor("relu6" if segmentron else "relu", ppm_kernel, zh320)
        self.feature_fusion = FeatureFusionModule(not segmentron, zh320)
        self.classifier = Classifier(num_classes, dropout, segmentron, zh320)
        if self.aux_heads >= 1:
            self.aux_head1 = AuxiliaryHead(64, num_classes, dropout, segmentron, "aux_head1")
        if self.aux_heads == 2:
            self.aux_head2 = AuxiliaryHead(128, num_classes, dropout, segmentron, "aux_head2")

    def predict(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the logits of padded images, at 1/8 of their size (the second auxiliary head: 1/32)."""
        higher = self.learning_to_downsample(x)
        lower = self.global_feature_extractor(higher)
        outputs = (self.classifier(self.feature_fusion(higher, lower)),)
        if self.training and self.aux_heads >= 1:
            outputs += (self.aux_head1(higher),)
        if self.training and self.aux_heads == 2:
            outputs += (self.aux_head2(lower),)
        return outputs
