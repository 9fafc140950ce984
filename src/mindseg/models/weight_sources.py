"""Public implementations whose weights can be read, and the rules that turn their layer names into ours.

The names are facts of those projects' files. A rule is a pattern and a replacement for the name of a layer; the names
of a layer's tensors (``weight`` or ``gamma``) are mapped in weights.py.
"""
import re
from collections.abc import Callable
from dataclasses import dataclass, field

Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


@dataclass(frozen=True)
class Source:
    """A public implementation whose files can be read.

    Attributes:
        title: For messages.
        marker: A key that only this source has.
        rules: Patterns and replacements that turn its layer names into ours.
        options: Options that our network must have to compute the same.
        zeros: Pattern of our parameters that the source leaves out because they are zero.
        part: Prefix of our parameters that the source covers; empty for all.
        spare: Prefix of its own keys that have no place here.
    """
    title: str
    marker: str
    rules: Rules
    options: dict[str, object] = field(default_factory=dict)
    zeros: str = ""
    part: str = ""
    spare: str = ""


def _pick(*names: str) -> Callable[[re.Match], str]:
    """Replacement: group 1, then the name whose index is group 2, and a dot."""
    return lambda match: f"{match[1]}{names[int(match[2])]}."


_CONV_BN = _pick("conv", "bn", "act")
# Each table serves all sources of its network: their names do not overlap.
_FAST_SCNN: Rules = (
    (r"^(.*dsconv\d\.)conv\.(\d)\.", _pick("depthwise.conv", "depthwise.bn", "", "pointwise.conv", "pointwise.bn")),
    (r"(dsconv\d\.)block\.(depthwise|pointwise)\.", r"\1\2.conv."),
    (r"(dsconv\d\.)block\.bn_(depth|point)\.", r"\1\2wise.bn."),
    (r"(bottleneck\d\.\d\.)(?:block|conv)\.(\d)\.", _pick("expand", "depthwise", "project.conv", "project.bn")),
    (r"(ppm\.)conv(\d)\.", _pick("", "convs.0", "convs.1", "convs.2", "convs.3")),
    (r"extractor\.out\.", "extractor.ppm.out."),
    (r"(\.(?:conv|expand|depthwise|out|dwconv|convs\.\d)\.)conv\.(\d)\.", _CONV_BN),
    (r"(conv_\w+_res\.)(\d)\.", _CONV_BN),
    (r"^classifier\.conv\.1\.", "classifier.conv."),
    (r"^auxlayer\.", "auxlayer1."),
    (r"^auxlayer(\d\.)(\d)\.", lambda m: f"aux_head{m[1]}{ {'0': 'conv1.conv', '1': 'conv1.bn', '4': 'conv2'}[m[2]]}."),
)


def _enet_block(match: re.Match) -> str:
    """Our block of ``regular1_1`` …: numbers start at 1, in stage 3 at 0; stage 5 has one block."""
    stage, index = int(match[1]), int(match[2])
    return "stage5." if stage == 5 else f"stage{stage}.{index - (stage != 3)}."


_ENET: Rules = (
    (r"^transposed_conv\.", "decoder.fullconv."),
    (r"^(initial_block|\w+[123]_\d)\.", r"encoder.\1."),
    (r"^(\w+[45]_\d)\.", r"decoder.\1."),
    (r"(?:regular|dilated|asymmetric)(\d)_(\d)\.", _enet_block),
    (r"\.main_branch\.", ".conv."),
    (r"\.main_conv1\.", ".main."),
    (r"\.ext_tconv1\.(?=weight)", ".deconv.conv."),
    (r"\.ext_tconv1_bnorm\.", ".deconv.bn."),
    (r"\.ext_tconv1\.", ".deconv."),
    (r"\.ext_conv", ".conv"),
    (r"batch_norm\.", "bn."),
    (r"out_activation\.", "act."),
    (r"(stage\d\.(?:\d\.)?conv2\.)(\d)\.", _pick("0.conv", "0.bn", "0.act", "1.conv", "1.bn", "1.act")),
    (r"(\.(?:conv\d|main|deconv)\.)(\d)\.(?!conv|bn|act)", _CONV_BN),
)
_BISENETV2: Rules = (
    (r"(S\d(?:_\d)?\.\d\.(?:dwconv\d?|conv2)\.)(\d)\.", _CONV_BN),
    (r"(shortcut\.)(\d)\.", _pick("0.conv", "0.bn", "1.conv", "1.bn")),
    (r"^(bga\.(?:left1|right2)\.)(\d)\.", _pick("0.conv", "0.bn", "1")),
    (r"^(bga\.(?:left2|right1|conv)\.)(\d)\.", _CONV_BN),
    (r"conv_out\.(?:0\.)?1\.(?=conv|bn)", "up."),
    (r"conv_out\.\d\.", "conv_out."),
)
# zh320's names, in which the layers of a sequence are numbers.
_ZH320_FAST_SCNN: Rules = (
    (r"^learning_to_downsample\.0\.(\d)\.", lambda m: "learning_to_downsample.conv." + ("conv.", "bn.")[int(m[1])]),
    (r"^(learning_to_downsample)\.(\d)\.", r"\1.dsconv\2."),
    (r"^classifier\.([01])\.", lambda m: f"classifier.dsconv{int(m[1]) + 1}."),
    (r"^(classifier)\.2\.", r"\1.conv."),
    (r"(dsconv\d\.)(\d)\.", _pick("depthwise", "pointwise")),
    (r"bottlenecks\.(\d)\.conv\.", lambda m: _ZH320_BOTTLENECKS[int(m[1])]),
    (r"(bottleneck\d\.\d\.)(\d)\.", _pick("expand", "depthwise", "project")),
    (r"(ppm\.)stage(\d)\.1\.", lambda m: f"{m[1]}convs.{int(m[2]) - 1}."),
    (r"ppm\.conv\.", "ppm.out."),
    (r"(feature_fusion\.)higher_res_conv\.", r"\1conv_higher_res."),
    (r"(feature_fusion\.)lower_res_conv\.0\.", r"\1dwconv."),
    (r"(feature_fusion\.)lower_res_conv\.1\.", r"\1conv_lower_res."),
    (r"non_linear\.0\.", "bn."),
    (r"(\.(?:depthwise|pointwise|expand|project|out|dwconv|conv)\.)(\d)\.", _CONV_BN),
)
_ZH320_BOTTLENECKS = [f"bottleneck{i}.{j}." for i, count in ((1, 3), (2, 2), (3, 3)) for j in range(count)]
_ZH320_ENET: Rules = (
    (r"activation\.", ""),
    (r"^initial\.", "encoder.initial_block."),
    (r"^bottleneck([12])\.conv_pool\.", r"encoder.downsample\1_0."),
    (r"^bottleneck([123])\.conv_regular\.", r"encoder.stage\1."),
    (r"^bottleneck([45])\.conv_unpool\.", r"decoder.upsample\1_0."),
    (r"^bottleneck4\.conv_(regular|extra)\.", lambda m: f"decoder.stage4.{int(m[1] == 'extra')}."),
    (r"^bottleneck5\.conv_regular\.", "decoder.stage5."),
    (r"^fullconv\.up_conv\.0\.", "decoder.fullconv."),
    (r"left_conv\.", "main."),
    (r"(upsample\d_0\.)right_init_conv\.1\.up_conv\.", r"\1deconv."),
    (r"(upsample\d_0\.)right_last_conv\.0\.", r"\1conv2."),
    (r"right_last_conv\.0\.", "conv3."),
    (r"right_init_conv\.0\.", "conv1."),
    (r"(downsample\d_0\.)right_init_conv\.1\.", r"\1conv2."),
    (r"right_init_conv\.([12])\.", lambda m: f"conv2.{int(m[1]) - 1}."),
    (r"(\.(?:conv|main|fullconv|conv1|conv2|conv2\.[01])\.)(\d)\.(?=\w+$)", _CONV_BN),
)
_ZH320_BISENETV2: Rules = (
    (r"^detail_branch\.(\d)\.", lambda m: f"detail.{_ZH320_DETAIL[int(m[1])]}."),
    (r"^semantic_branch\.seg_head([2345])\.", lambda m: f"aux{'5_4' if m[1] == '5' else m[1]}."),
    (r"^seg_head\.", "head."),
    (r"^((?:aux\w+|head)\.)(\d)\.", _pick("conv", "conv_out")),
    (r"^semantic_branch\.stage1to2\.", "segment.S1S2."),
    (r"^semantic_branch\.stage([34])\.", r"segment.S\1."),
    (r"^semantic_branch\.stage5_1to4\.", "segment.S5_4."),
    (r"^semantic_branch\.stage5_5\.", "segment.S5_5."),
    (r"conv_init\.", "conv."),
    (r"S1S2\.left_branch\.", "S1S2.left."),
    (r"S1S2\.conv_last\.", "S1S2.fuse."),
    (r"(S[345]\w*\.0\.)left_branch\.(\d)\.", _pick("conv1", "dwconv1", "dwconv2", "conv2")),
    (r"(S[345]\w*\.[123]\.)left_branch\.(\d)\.", _pick("conv1", "dwconv", "conv2")),
    (r"right_branch\.", "shortcut."),
    (r"S5_5\.pool\.1\.", "S5_5.bn."),
    (r"conv_mid\.", "conv_gap."),
    (r"^bga_layer\.(detail|semantic)_(high|low)\.", lambda m: f"bga.{_ZH320_BGA[m[1], m[2]]}."),
    (r"^(bga\.(?:left2|right1)\.)0\.", r"\1"),
    (r"^bga_layer\.conv_last\.", "bga.conv."),
    (r"(\.(?:conv|fuse|conv1|dwconv\d?|conv2|conv_gap|left\.\d|shortcut\.\d|left1\.0|left2|right1|right2\.0|S[123]\.\d)\.)"
     r"(\d)\.(?=\w+$)", _CONV_BN),
)
_ZH320_DETAIL = ["S1.0", "S1.1", "S2.0", "S2.1", "S2.2", "S3.0", "S3.1", "S3.2"]
_ZH320_BGA = {("detail", "high"): "left1", ("detail", "low"): "left2", ("semantic", "high"): "right1",
              ("semantic", "low"): "right2"}
_STAGE_LAYERS = [f"convs.{i}.{kind}" for i in range(3) for kind in ("conv", "bn", "act")]
# The layers of VGG16 in the order of torchvision's ``features``.
_VGG_LAYERS = [f"backbone.stage{stage}.{layer}." for stage, count in enumerate((2, 2, 3, 3, 3), 1)
               for layer in (*_STAGE_LAYERS[:3 * count], "pool")]
_FCN8S: Rules = (
    (r"^conv([1-5])\.(\d)\.", lambda m: f"backbone.stage{m[1]}.{_STAGE_LAYERS[int(m[2])]}."),
    (r"^conv([67]\.)(\d)\.", lambda m: "fc" + _CONV_BN(m)),
    (r"^(?:features|layers)\.(\d|[1-3]\d|4[0-3])\.", lambda m: _VGG_LAYERS[int(m[1])]),
    (r"^vgg16_feature_extractor\.conv(\d)_(\d)\.(\d)\.",
     lambda m: f"backbone.stage{m[1]}.convs.{int(m[2]) - 1}.{('conv', 'bn')[int(m[3])]}."),
)
SOURCES = {
    "fast_scnn": (
        Source("Tramac/Fast-SCNN-pytorch", "learning_to_downsample.conv.conv.1.running_mean", _FAST_SCNN,
               {"variant": "paper"}),
        Source("LikeLy-Journey/SegmenTron", "learning_to_downsample.conv.bn.running_mean", _FAST_SCNN,
               {"variant": "segmentron"}),
        Source("the MindSpore model zoo's Fast-SCNN", "learning_to_downsample.conv.conv.1.moving_mean", _FAST_SCNN,
               {"variant": "modelzoo"}, zeros=r"^(feature_fusion\.conv_\w+_res\.conv|classifier\.conv)\.bias$"),
        Source("zh320/realtime-semantic-segmentation-pytorch", "feature_fusion.non_linear.0.running_mean",
               _ZH320_FAST_SCNN, {"variant": "zh320"}),
    ),
    "enet": (
        Source("davidtvs/PyTorch-ENet", "initial_block.main_branch.weight", _ENET, {"variant": "paper"}),
        Source("the MindSpore model zoo's ENet", "encoder.initial_block.batch_norm.moving_mean", _ENET,
               {"variant": "modelzoo"}),
        Source("zh320/realtime-semantic-segmentation-pytorch", "bottleneck1.conv_pool.left_conv.1.running_mean",
               _ZH320_ENET, {"variant": "zh320"}),
    ),
    "bisenetv2": (
        Source("CoinCheung/BiSeNet", "detail.S1.0.bn.running_mean", _BISENETV2, {"variant": "paper"}),
        Source("Rogersiy/bisenetv2_mindspore", "bga.left2.1.moving_mean", _BISENETV2, {"variant": "modelzoo"}),
        Source("zh320/realtime-semantic-segmentation-pytorch", "bga_layer.conv_last.1.running_mean", _ZH320_BISENETV2,
               {"variant": "zh320", "head_channels": 128}, zeros=r"\.conv_out\.bias$"),
    ),
    "fcn8s": (
        Source("the MindSpore model zoo's FCN-8s", "conv1.1.moving_mean", _FCN8S),
        Source("a PyTorch FCN-8s with the MindSpore model zoo's layout", "conv1.1.running_mean", _FCN8S),
        Source("torchvision's vgg16_bn", "features.1.running_mean", _FCN8S, part="backbone.",
               spare="classifier."),
        Source("the MindSpore model zoo's VGG16", "layers.1.gamma", _FCN8S, part="backbone.",
               spare="classifier."),
        Source("the MindSpore model zoo's VGG16", "vgg16_feature_extractor.conv1_1.1.gamma", _FCN8S,
               part="backbone.", spare="classifier."),
    ),
}
