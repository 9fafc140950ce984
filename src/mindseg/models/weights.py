"""Weights of public implementations under the parameter names of this project.

Readable are ``.pth``/``.pt`` (needs torch), ``.npz``, ``.safetensors`` and MindSpore's ``.ckpt``. The source is
recognised by its parameter names. Whatever is left over on either side of a conversion is an error, unless it is a
whole part that the file or the network does not have.
"""
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import Tensor

from mindseg.compat import no_init_parameters
from mindseg.errors import UserError, first_line
from mindseg.files import replacing
from mindseg.models import create_model, model_options
from mindseg.models.weight_files import check_archive, check_finite, read_ckpt, read_npz, read_safetensors
from mindseg.models.weight_sources import SOURCES, Source

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "network.", "model.", "net.", "_backbone.")
# Training state in a checkpoint: optimizer, counters, loss scale.
STATE = re.compile(r"(^|\.)(moments|moment1|moment2|accum|stat|num_batches_tracked)(\.|$)|"
                   r"^(learning_rate|momentum|weight_decay|beta[12]_power|epoch(_num)?|(global_)?step(_num)?|best_miou|"
                   r"samples|config|eval_step|good_steps|scale_sense|loss_scale|\w*_iterator_step)$")
# PyTorch's and older names of a layer's tensors, and our names of them.
TENSORS = {"weight": ("weight", "gamma", "slope"), "bias": ("bias", "beta"), "running_mean": ("moving_mean",),
           "running_var": ("moving_variance",), "w": ("slope",)}
# Layers whose shape depends on the number of classes.
CLASSIFIERS = {"fast_scnn": r"^(classifier\.conv|aux_head\d\.conv2)\.", "enet": r"^(decoder\.fullconv|pred)\.",
               "bisenetv2": r"^(head|aux\w+)\.conv_out\.", "fcn8s": r"^(up)?score"}
# Tensors with one entry per class, and the axis of the classes.
CLASS_AXIS = {"classifier.conv.weight": 0, "classifier.conv.conv.weight": 0, "head.conv_out.weight": 0,
              "score_fr.weight": 0, "pred.weight": 0, "decoder.fullconv.weight": 1, "decoder.fullconv.conv.weight": 0}
# Parts of a network that can be loaded alone (``model.pretrained_part``), by prefix.
PARTS = {"fast_scnn": {"backbone": ("learning_to_downsample.", "global_feature_extractor.")},
         "fcn8s": {"backbone": ("backbone.",)},
         "enet": {"backbone": ("encoder.",), "encoder": ("encoder.",)},
         "bisenetv2": {"backbone": ("detail.", "segment.", "bga.")}}
OWN = Source("this project", "", ())


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        source: Title of the source.
        params: Our parameter names and float32 arrays.
        unused: Keys of the file without a place in the network: heads it does not have, an ImageNet classifier.
        missing: Our parameters that the file does not hold: whole heads, dropped classifiers, all but the backbone.
    """
    source: str
    params: dict[str, np.ndarray]
    unused: tuple[str, ...]
    missing: tuple[str, ...]


def convert_state_dict(name: str, state: Mapping[str, np.ndarray], **model_kwargs: object) -> dict[str, np.ndarray]:
    """Gives the weights of a public implementation our parameter names.

    Args:
        name: Network, see ``create_model``.
        state: Parameter names and arrays of a PyTorch state dict or an older MindSpore checkpoint.
        **model_kwargs: Options of our network; ``num_classes`` is read from the weights unless it is given.

    Returns:
        Our names and float32 arrays; dropout counters are 0. Auxiliary heads that the weights do not hold are left out.

    Raises:
        UserError: If the source is unknown, does not fit the options, or any key is left over on either side.
    """
    return convert(name, state, **model_kwargs).params


def convert(name: str, state: Mapping[str, np.ndarray], part: str = "all", drop_classifier: bool | None = False,
            **model_kwargs: object) -> Conversion:
    """Converts weights as ``convert_state_dict`` and reports what was not used and what is missing.

    Args:
        name: Network, see ``create_model``.
        state: Parameter names and arrays of a PyTorch state dict or an older MindSpore checkpoint.
        part: ``all``, or the only part of the network that is filled: ``backbone``, ``encoder`` (``PARTS``).
        drop_classifier: Leaves out the layers whose shape depends on the classes, for another number of them; None: if
            the file has another number of classes than ``num_classes``, or none of these layers.
        **model_kwargs: Options of our network; ``num_classes`` is read from the weights unless it is given.

    Raises:
        UserError: See ``convert_state_dict``.
    """
    state = clean_state(state)
    source = detect_source(name, state)
    defaults = model_options(name)
    for key, value in source.options.items():
        given = model_kwargs.get(key, defaults[key])
        if given != value:
            raise UserError(f"these are weights of {source.title}: they need {name} with {key}={value}, not "
                            f"{key}={given} (--set model.{key}={value})")
    renamed = _rename(source, state)
    found = [renamed[key][1].shape[axis] for key, axis in CLASS_AXIS.items() if key in renamed]
    classes = model_kwargs.pop("num_classes", found[0] if found else 2)
    classifier = re.compile(CLASSIFIERS.get(name, "(?!)"))
    if drop_classifier is None:
        drop_classifier = not any(map(classifier.search, renamed)) or found[:1] not in ([], [classes])
    with no_init_parameters():
        network = create_model(name, int(classes), **model_kwargs)
    shapes = {p.name: tuple(p.shape) for p in network.get_parameters()}
    parts = {"all": ("",), **PARTS.get(name, {})}
    if part not in parts:
        raise UserError(f"model.pretrained_part {part!r} of {name} is unknown; choose one of {', '.join(parts)}")
    prefixes = parts[part]
    targets = {key for key in shapes if key.startswith(prefixes) and key.startswith(source.part)
               and not (drop_classifier and classifier.search(key))}
    params, unplaced = _place(renamed, shapes, targets)
    _check_shapes(name, source, params, shapes)
    filled = {key.split(".")[0] for key in params}
    for key in targets - set(params):
        counter = key.endswith(".step") and key.split(".")[0] in filled
        if counter or (source.zeros and re.search(source.zeros, key)):
            params[key] = np.zeros(shapes[key], np.int32 if counter else np.float32)
    missing = tuple(key for key in shapes if key not in params)
    _check_leftovers(name, source, [key for key in missing if key in targets],
                     {new: renamed[new][0] for new in unplaced if new.startswith(prefixes)}, filled,
                     {key.split(".")[0] for key in shapes})
    return Conversion(source.title, {key: params[key] for key in shapes if key in params},
                      tuple(renamed[new][0] for new in unplaced), missing)


def detect_source(name: str, state: Mapping[str, np.ndarray]) -> Source:
    """Recognises the public implementation that weights come from.

    Args:
        name: Network that gets the weights.
        state: Names and arrays, see ``clean_state``.

    Raises:
        UserError: If the keys belong to no known implementation of this network.
    """
    found = [(network, source) for network, sources in SOURCES.items() for source in sources if source.marker in state]
    for network, source in found:
        if network == name:
            return source
    with no_init_parameters():
        known = {p.name for p in create_model(name, 2).get_parameters()}
    if len(known & set(state)) > len(state) // 2:
        return OWN
    if found:
        network, source = found[0]
        raise UserError(f"these are weights of {source.title}: the model is {network}, not {name}")
    if name == "fcn8s" and "features.0.weight" in state:
        raise UserError("these are weights of a VGG16 without BatchNorm, which this FCN-8s cannot use: take vgg16_bn")
    titles = dict.fromkeys(source.title for source in (*SOURCES.get(name, ()), OWN))
    raise UserError(f"no known {name} has keys like {', '.join(list(state)[:3]) or '(none)'}; known are "
                    f"{', '.join(titles)}")


def clean_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops optimizer state and counters, and prefixes that all keys share (``module.`` of DataParallel)."""
    state = {key: value for key, value in state.items() if not STATE.search(key)}
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _rename(source: Source, state: Mapping[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """Maps our layer name and the source's tensor name to the source's key and array."""
    renamed: dict[str, tuple[str, np.ndarray]] = {}
    for key, value in state.items():
        new = key
        if not (source.spare and key.startswith(source.spare)):
            for pattern, replacement in source.rules:
                new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise UserError(f"keys {renamed[new][0]} and {key} of {source.title} mean the same parameter")
        renamed[new] = (key, value)
    return renamed


def _place(renamed: Mapping[str, tuple[str, np.ndarray]], shapes: Mapping[str, tuple[int, ...]],
           targets: set[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Our parameters among ``targets`` that the file holds, and the new names that have no place."""
    params, unplaced = {}, []
    for new, (_, value) in renamed.items():
        layer, _, tensor = new.rpartition(".")
        target = next((f"{layer}.{t}" for t in (tensor, *TENSORS.get(tensor, ())) if f"{layer}.{t}" in shapes), None)
        if target is None:
            unplaced.append(new)
        elif target in targets and tensor != "step":
            params[target] = np.asarray(value, np.float32)
    # A convolution's bias before BatchNorm only shifts the mean: VGG16 has them, our encoder does not.
    for new in list(unplaced):
        mean = new.removesuffix(".conv.bias") + ".bn.moving_mean"
        if new.endswith(".conv.bias") and mean in params:
            params[mean] = params[mean] - np.asarray(renamed[new][1], np.float32)
            unplaced.remove(new)
    return params, unplaced


def _check_shapes(name: str, source: Source, params: Mapping[str, np.ndarray],
                  shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [key for key, value in params.items() if tuple(value.shape) != shapes[key]]
    if not wrong:
        return
    if all(re.search(CLASSIFIERS.get(name, "(?!)"), key) for key in wrong):
        remedy = "give their number of classes, or leave the classifier out (--drop_classifier)"
    else:
        remedy = f"set the options they were trained with ({', '.join(model_options(name))})"
    key = wrong[0]
    raise UserError(f"{key} has shape {tuple(params[key].shape)} in the weights of {source.title} and {shapes[key]} in "
                    f"the network ({len(wrong)} such): {remedy}")


def _check_leftovers(name: str, source: Source, lost: list[str], odd: dict[str, str], filled: set[str],
                     heads: set[str]) -> None:
    """Refuses parameters ``lost`` and keys of the file ``odd`` (by new name) that no missing head explains.

    ``filled`` and ``heads`` are the first words of the parameters that were found and of all parameters.
    """
    # CoinCheung's backbone_v2 file holds the two branches and nothing else; a file with more has lost what it lacks.
    optional = ("aux", "head", "bga") if name == "bisenetv2" and filled <= {"detail", "segment"} else ("aux",)

    def whole_head(key: str, others: set[str]) -> bool:
        return key.split(".")[0] not in others and key.startswith(optional)

    lost = [key for key in lost if not whole_head(key, filled)]
    keys = [key for new, key in odd.items()
            if not whole_head(new, heads) and not (source.spare and new.startswith(source.spare))]
    problems = []
    if lost:
        problems.append(f"{len(lost)} parameters of the network are not in the file: {', '.join(lost)}")
    if keys:
        problems.append(f"{len(keys)} keys of the file have no place in the network: {', '.join(keys)}")
    if problems:
        raise UserError(f"weights of {source.title} do not fit {name}: {'; '.join(problems)}")


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of weights, whatever its format.

    Args:
        path: ``.pth``, ``.pt``, ``.tar`` (PyTorch; no code in them is run), ``.npz``, ``.safetensors`` or ``.ckpt``.

    Returns:
        Arrays by key. Wrappers such as ``{"state_dict": …}`` are opened, other nested dictionaries are joined by dots.

    Raises:
        UserError: If the file is missing, damaged, of another format, or needs a package that is not installed.
    """
    path = Path(path)
    readers = {".pth": _read_torch, ".pt": _read_torch, ".tar": _read_torch, ".npz": read_npz,
               ".safetensors": read_safetensors, ".ckpt": _read_mindspore}
    if path.suffix not in readers:
        raise UserError(f"{path}: unknown format {path.suffix or '(none)'}; known are {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; fetch it again")
    try:
        state = readers[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # every reader has its own exceptions for damaged files, down to bare Exception
        raise UserError(f"{path}: damaged or not a {path.suffix} file ({first_line(error)}); fetch it again") from None
    if not state:
        raise UserError(f"{path}: holds no arrays")
    check_finite(state, path)
    return state


def _read_mindspore(path: Path) -> dict[str, np.ndarray]:
    return {key: value for key, value in read_ckpt(path).items() if isinstance(value, np.ndarray)}


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # optional: requirements-convert.txt
    except ImportError:
        raise UserError(f"{path}: reading PyTorch files needs torch; pip install -r requirements-convert.txt, or save "
                        "the weights as .npz or .safetensors") from None

    def arrays(content: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
        found = {}
        for key, value in content.items():
            if isinstance(value, torch.Tensor):
                found[f"{prefix}{key}"] = value.detach().float().numpy() if value.is_floating_point() else value.numpy()
            elif isinstance(value, Mapping):
                found.update(arrays(value, f"{prefix}{key}."))
        return found

    check_archive(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights; save "
                        "model.state_dict()")
    while inner := next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    return arrays(content)


def save_weights(path: str | Path, params: Mapping[str, np.ndarray]) -> Path:
    """Writes parameters to a MindSpore checkpoint.

    Args:
        path: File to write, ends in ``.ckpt``.
        params: Parameter names and arrays.

    Raises:
        UserError: If the name does not end in ``.ckpt`` or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != ".ckpt":
        raise UserError(f"{path}: the output is a MindSpore checkpoint, its name must end in .ckpt")
    content = [{"name": key, "data": Tensor(value)} for key, value in params.items()]
    with replacing(path, sync=True) as temporary:
        try:
            ms.save_checkpoint(content, str(temporary), crc_check=True)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: cannot be written ({first_line(error)}); free space or choose another folder"
                            ) from None
        temporary.chmod(0o644)
    return path
