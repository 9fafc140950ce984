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
    ),
    "enet": (
        Source("davidtvs/PyTorch-ENet", "initial_block.main_branch.weight", _ENET, {"variant": "paper"}),
        Source("the MindSpore model zoo's ENet", "encoder.initial_block.batch_norm.moving_mean", _ENET,
               {"variant": "modelzoo"}),
    ),
    "bisenetv2": (
        Source("CoinCheung/BiSeNet", "detail.S1.0.bn.running_mean", _BISENETV2, {"variant": "paper"}),
        Source("Rogersiy/bisenetv2_mindspore", "bga.left2.1.moving_mean", _BISENETV2, {"variant": "modelzoo"}),
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
