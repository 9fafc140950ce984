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


def _pick(*names: str, offset: int = 0) -> Callable[[re.Match], str]:
    """Replacement: group 1, then the name whose index is group 2 (less ``offset``), and a dot."""
    return lambda match: f"{match[1]}{names[int(match[2]) - offset]}."


_CONV_BN = ("conv", "bn")
_TRAMAC: Rules = (
    (r"^(.*dsconv\d\.)conv\.(\d)\.", _pick("depthwise.conv", "depthwise.bn", "", "pointwise.conv", "pointwise.bn")),
    (r"^(.*bottleneck\d\.\d\.)block\.0\.conv\.(\d)\.", _pick("expand.conv", "expand.bn")),
    (r"^(.*bottleneck\d\.\d\.)block\.1\.conv\.(\d)\.", _pick("depthwise.conv", "depthwise.bn")),
    (r"^(.*bottleneck\d\.\d\.)block\.(\d)\.", _pick("project.conv", "project.bn", offset=2)),
    (r"(ppm\.)conv(\d)\.conv\.", _pick("convs.0", "convs.1", "convs.2", "convs.3", offset=1)),
    (r"(ppm\.convs\.\d\.)(\d)\.", _pick(*_CONV_BN)),
    (r"^(learning_to_downsample\.conv\.|.*ppm\.out\.|.*dwconv\.)conv\.(\d)\.", _pick(*_CONV_BN)),
    (r"(conv_\w+_res\.)(\d)\.", _pick(*_CONV_BN)),
    (r"^classifier\.conv\.1\.", "classifier.conv."),
    (r"^auxlayer\.", "auxlayer1."),
    (r"^auxlayer(\d\.)(\d)\.", lambda m: f"aux_head{m[1]}{ {'0': 'conv1.conv', '1': 'conv1.bn', '4': 'conv2'}[m[2]]}."),
)
_SEGMENTRON: Rules = (
    (r"(dsconv\d\.)block\.depthwise\.", r"\1depthwise.conv."),
    (r"(dsconv\d\.)block\.bn_depth\.", r"\1depthwise.bn."),
    (r"(dsconv\d\.)block\.pointwise\.", r"\1pointwise.conv."),
    (r"(dsconv\d\.)block\.bn_point\.", r"\1pointwise.bn."),
    (r"(bottleneck\d\.\d\.)conv\.0\.", r"\1expand."),
    (r"(bottleneck\d\.\d\.)conv\.1\.", r"\1depthwise."),
    (r"(bottleneck\d\.\d\.)conv\.2\.", r"\1project.conv."),
    (r"(bottleneck\d\.\d\.)conv\.3\.", r"\1project.bn."),
    (r"extractor\.out\.", "extractor.ppm.out."),
    *_TRAMAC[-4:],
)


def _enet_block(match: re.Match) -> str:
    """Our block of ``regular1_1`` …: numbers start at 1, in stage 3 at 0; stage 5 has one block."""
    stage, index = int(match[1]), int(match[2])
    if stage == 5:
        return "stage5."
    return f"stage{stage}.{index - (stage != 3)}."


def _second_conv(match: re.Match) -> str:
    """Layers 0 to 2 of ``conv2``: convolution, BatchNorm and PReLU; an asymmetric one has 3 to 5 too."""
    layer = int(match[2])
    return f"{match[1]}conv2.{layer // 3}.{('conv', 'bn', 'act')[layer % 3]}."


_ENET_NAMES = r"(?:regular|dilated|asymmetric)(\d)_(\d)\."
_DAVIDTVS: Rules = (
    (r"^transposed_conv\.", "decoder.fullconv."),
    (r"^(initial_block|\w+[123]_\d)\.", r"encoder.\1."),
    (r"^(\w+[45]_\d)\.", r"decoder.\1."),
    (_ENET_NAMES, _enet_block),
    (r"main_branch\.", "conv."),
    (r"batch_norm\.", "bn."),
    (r"(stage\d\.(?:\d\.)?)ext_conv2\.(\d)\.", _second_conv),
    (r"(\.)ext_conv(\d)\.0\.", r"\1conv\2.conv."),
    (r"(\.)ext_conv(\d)\.1\.", r"\1conv\2.bn."),
    (r"(\.)ext_conv(\d)\.2\.", r"\1conv\2.act."),
    (r"(main)_conv1\.(\d)\.", lambda m: f"main.{_CONV_BN[int(m[2])]}."),
    (r"ext_tconv1\.(?=weight)", "deconv.conv."),
    (r"ext_tconv1_bnorm\.", "deconv.bn."),
    (r"out_activation\.", "act."),
)
_ENET_MODELZOO: Rules = (
    (_ENET_NAMES, _enet_block),
    (r"batch_norm\.", "bn."),
    (r"(stage\d\.(?:\d\.)?)conv2\.(\d)\.", _second_conv),
    (r"(\.)(?:ext_)?conv(\d)\.0\.(?=weight)", r"\1conv\2.conv."),
    (r"(\.)(?:ext_)?conv(\d)\.1\.(?!conv|bn|act)", r"\1conv\2.bn."),
    (r"(\.)(?:ext_)?conv(\d)\.2\.", r"\1conv\2.act."),
    (r"(main)_conv1\.(\d)\.", lambda m: f"main.{_CONV_BN[int(m[2])]}."),
    (r"(ext_tconv1)\.(\d)\.", lambda m: f"deconv.{_CONV_BN[int(m[2])]}."),
    (r"out_activation\.", "act."),
)
_COINCHEUNG: Rules = (
    (r"(S\d(?:_\d)?\.\d\.(?:dwconv\d?|conv2)\.)(\d)\.", _pick(*_CONV_BN)),
    (r"(shortcut\.)(\d)\.", _pick("0.conv", "0.bn", "1.conv", "1.bn")),
    (r"^(bga\.(?:left1|right2)\.)(\d)\.", _pick("0.conv", "0.bn", "1")),
    (r"^(bga\.(?:left2|right1|conv)\.)(\d)\.", _pick(*_CONV_BN)),
    (r"conv_out\.0\.1\.", "up."),
    (r"conv_out\.1\.", "conv_out."),
)
_BISENET_MODELZOO: Rules = (
    *_COINCHEUNG[:-2],
    (r"^(head\.conv_out)\.0\.", r"\1."),
    (r"^(aux\w+\.)conv_out\.1\.(?=conv|bn)", r"\1up."),
    (r"^(aux\w+\.conv_out)\.2\.", r"\1."),
)


def _vgg_stages(pattern: str) -> Rules:
    """Rules for a flat list of VGG16's layers: convolution, BatchNorm and ReLU, and a pooling after each stage."""
    rules, index = [], 0
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        for conv in range(count):
            for kind in _CONV_BN:
                rules.append((pattern.format(index), f"backbone.stage{stage}.convs.{conv}.{kind}."))
                index += 1
            index += 1
        index += 1
    return tuple(rules)


_FCN_MODELZOO: Rules = (
    (r"^conv([1-5])\.(\d)\.", lambda m: f"backbone.stage{m[1]}.convs.{int(m[2]) // 3}.{_CONV_BN[int(m[2]) % 3]}."),
    (r"^conv([67])\.(\d)\.", lambda m: f"fc{m[1]}.{_CONV_BN[int(m[2])]}."),
)
_VGG_EXTRACTOR: Rules = (
    (r"^vgg16_feature_extractor\.conv(\d)_(\d)\.(\d)\.",
     lambda m: f"backbone.stage{m[1]}.convs.{int(m[2]) - 1}.{_CONV_BN[int(m[3])]}."),
)
SOURCES = {
    "fast_scnn": (
        Source("Tramac/Fast-SCNN-pytorch", "learning_to_downsample.conv.conv.1.running_mean", _TRAMAC,
               {"variant": "paper"}),
        Source("LikeLy-Journey/SegmenTron", "learning_to_downsample.conv.bn.running_mean", _SEGMENTRON,
               {"variant": "segmentron"}),
        Source("the MindSpore model zoo's Fast-SCNN", "learning_to_downsample.conv.conv.1.moving_mean", _TRAMAC,
               {"variant": "modelzoo"}, zeros=r"^(feature_fusion\.conv_\w+_res\.conv|classifier\.conv)\.bias$"),
    ),
    "enet": (
        Source("davidtvs/PyTorch-ENet", "initial_block.main_branch.weight", _DAVIDTVS, {"variant": "paper"}),
        Source("the MindSpore model zoo's ENet", "encoder.initial_block.batch_norm.moving_mean", _ENET_MODELZOO,
               {"variant": "modelzoo"}),
    ),
    "bisenetv2": (
        Source("CoinCheung/BiSeNet", "detail.S1.0.bn.running_mean", _COINCHEUNG, {"variant": "paper"}),
        Source("Rogersiy/bisenetv2_mindspore", "bga.left2.1.moving_mean", _BISENET_MODELZOO, {"variant": "modelzoo"}),
    ),
    "fcn8s": (
        Source("the MindSpore model zoo's FCN-8s", "conv1.1.moving_mean", _FCN_MODELZOO),
        Source("a PyTorch FCN-8s with the MindSpore model zoo's layout", "conv1.1.running_mean", _FCN_MODELZOO),
        Source("torchvision's vgg16_bn", "features.1.running_mean", _vgg_stages(r"^features\.{}\."), part="backbone.",
               spare="classifier."),
        Source("the MindSpore model zoo's VGG16", "layers.1.gamma", _vgg_stages(r"^layers\.{}\."), part="backbone.",
               spare="classifier."),
        Source("the MindSpore model zoo's VGG16", "vgg16_feature_extractor.conv1_1.1.gamma", _VGG_EXTRACTOR,
               part="backbone.", spare="classifier."),
    ),
}
