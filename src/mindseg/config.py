"""Configuration: YAML files with `_base_`, checked key by key against `configs/_base_/defaults.yaml`.

The schema is that YAML page itself: its values are the defaults, and the comment behind each key is `type | meaning`.
"""
import difflib
import logging
import os
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mindseg.errors import ConfigError
from mindseg.files import write_text

_INSTALLED = Path(__file__).resolve().parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[2] / "configs"
SCHEMA_FILE = CONFIGS / "_base_" / "defaults.yaml"
_KEY_LINE = re.compile(r"^  (?P<key>\w+):.*?#\s*(?P<type>\S.*?)\s*\|\s*(?P<text>.*)$")
# Key of data.color_jitter: type and greatest value of a single number, and in words.
_JITTER = {"brightness": ("float", 255, "a number from 0 to 255, or [low, high]"),
           "contrast": ("float", 1, "a number from 0 to 1, or [low, high]"),
           "saturation": ("float", 1, "a number from 0 to 1, or [low, high]"),
           "hue": ("int", 180, "a whole number from 0 to 180"), "prob": ("float", 1, "a number from 0 to 1")}
_LOG = logging.getLogger("mindseg.config")
# Values that had another name before: section, key, old value, present one.
_RENAMED_VALUES = (("model", "variant", "seed", "modelzoo"),)
_SCALARS = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list}


class Config(dict):
    """A nested dict whose keys can be read as attributes: ``cfg.data.root``."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"no configuration key '{key}'") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    @classmethod
    def from_dict(cls, tree: dict) -> "Config":
        """Wraps every nested dict."""
        return cls({k: cls.from_dict(v) if isinstance(v, dict) else v for k, v in tree.items()})

    def to_dict(self) -> dict:
        """Plain nested dicts, for YAML and JSON."""
        return {k: v.to_dict() if isinstance(v, Config) else v for k, v in self.items()}


@dataclass(frozen=True)
class Key:
    """One legal key: its type as written on the schema page, its default and its meaning."""
    type: str
    default: Any
    text: str


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""


def _construct_unique(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    seen: set = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "found unhashable key", key_node.start_mark)
        if key in seen:
            raise ConfigError(f"{loader.name}: line {key_node.start_mark.line + 1}: key '{key}' stands twice")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)
# YAML 1.1 reads 1e-4 as a string; 1.2 and everybody who writes a learning rate mean a number.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def _read_yaml(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it ({error})") from None
    return _parse_yaml(text, str(path))


def _parse_yaml(text: str, origin: str) -> dict:
    try:
        loader = _UniqueKeyLoader(text)
        loader.name = origin
        try:
            tree = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{origin}: {where}not valid YAML ({getattr(error, 'problem', error)})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: a configuration is a mapping of sections, this is a {type(tree).__name__}")
    return tree


def load_schema() -> dict[str, dict[str, Key]]:
    """Reads the schema page.

    Returns:
        ``{section: {key: Key}}`` in the page's order.

    Raises:
        ConfigError: A key of the page has no type comment.
    """
    tree = _read_yaml(SCHEMA_FILE)
    comments: dict[tuple[str, str], re.Match] = {}
    section = ""
    for line in SCHEMA_FILE.read_text(encoding="utf-8").splitlines():
        if re.match(r"^\w+:", line):
            section = line.split(":")[0]
        elif match := _KEY_LINE.match(line):
            comments[section, match["key"]] = match
    schema: dict[str, dict[str, Key]] = {}
    for section, keys in tree.items():
        schema[section] = {}
        for key, default in keys.items():
            match = comments.get((section, key))
            if match is None:
                raise ConfigError(f"{SCHEMA_FILE}: {section}.{key} has no comment of the form '# type | meaning'")
            schema[section][key] = Key(match["type"], default, match["text"])
    return schema


def _nearest(word: str, words: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean '{found[0]}'?" if found else ""


def _fits(value: Any, kind: str) -> bool:
    if kind.endswith("?"):
        return value is None or _fits(value, kind[:-1])
    if kind.startswith("list["):
        return isinstance(value, list) and all(_fits(v, kind[5:-1]) for v in value)
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in _SCALARS:
        return isinstance(value, _SCALARS[kind])
    return any(value == part or (part in _SCALARS and _fits(value, part)) for part in kind.split("/"))


def _check_key(origin: str, section: str, key: str, value: Any, schema: dict) -> None:
    if section not in schema:
        raise ConfigError(f"{origin}: unknown section '{section}'{_nearest(section, schema)}")
    if key not in schema[section]:
        raise ConfigError(f"{origin}: unknown key '{section}.{key}'{_nearest_key(section, key, schema)}")
    kind = schema[section][key].type
    if not _fits(value, kind):
        raise ConfigError(f"{origin}: {section}.{key} = {value!r} is not of type {kind}")


def _nearest_key(section: str, key: str, schema: dict) -> str:
    """Looks in the key's own section first, then for a key that was put into the wrong one."""
    homes = {name: f"{home}.{name}" for home, keys in schema.items() for name in keys}
    found = (difflib.get_close_matches(key, list(schema[section]), n=1, cutoff=0.5)
             or difflib.get_close_matches(key, list(homes), n=1, cutoff=0.7))
    if not found:
        return ""
    name = f"{section}.{found[0]}" if found[0] in schema[section] else homes[found[0]]
    return f"; did you mean '{name}'?"


def _check_tree(path: str | Path, tree: dict, schema: dict) -> None:
    for section, keys in tree.items():
        if section not in schema:
            raise ConfigError(f"{path}: unknown section '{section}'{_nearest(str(section), schema)}")
        if not isinstance(keys, dict):
            raise ConfigError(f"{path}: section '{section}' must hold `key: value` lines, not {keys!r}")
        for key, value in keys.items():
            _check_key(str(path), section, str(key), value, schema)


def _load_tree(path: Path, schema: dict, chain: tuple[Path, ...] = ()) -> dict:
    """One file with everything below it in `_base_`; later files win, sections merge key by key."""
    path = Path(os.path.abspath(path))
    if path in chain:
        raise ConfigError(f"{path}: `_base_` goes in a circle: {' -> '.join(p.name for p in (*chain, path))}")
    tree = _read_yaml(path)
    bases = tree.pop("_base_", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise ConfigError(f"{path}: `_base_` must be a file name or a list of them, not {bases!r}")
    _check_tree(path, tree, schema)
    merged: dict = {}
    for base in bases:
        _merge(merged, _load_tree(path.parent / base, schema, (*chain, path)))
    _merge(merged, tree)
    return merged


def _merge(into: dict, tree: dict) -> None:
    for section, keys in tree.items():
        into.setdefault(section, {}).update(keys)


def parse_override(text: str, schema: dict) -> tuple[str, str, Any]:
    """Splits one ``section.key=value`` and checks it.

    The value is read as YAML (``null``, ``true``, ``[1, 2]``); a string key also takes the text as it stands.

    Raises:
        ConfigError: Not of that form, unknown key, or wrong type.
    """
    origin = f"--set {text}"
    name, equals, value_text = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise ConfigError(f"{origin}: write it as section.key=value")
    try:
        value = yaml.load(value_text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError:
        value = value_text
    kind = schema.get(section, {}).get(key, Key("", None, "")).type.rstrip("?")
    if kind == "str" and value is not None and not isinstance(value, str):
        value = value_text
    _check_key(origin, section, key, value, schema)
    return section, key, value


def find_config(name: str | Path) -> Path:
    """The file of a configuration.

    Args:
        name: Path, or the name of one of the project's configurations, such as ``fast_scnn_camvid``.

    Raises:
        ConfigError: The project has no configuration of that name.
    """
    path = Path(name)
    if path.suffix or len(path.parts) > 1 or path.exists():
        return path
    known = {file.stem: file for file in sorted(CONFIGS.glob("*/*.yaml")) if file.parent.name != "protocols"}
    if path.name not in known:
        raise ConfigError(f"{name}: no configuration has this name or path{_nearest(path.name, known)}")
    return known[path.name]


def parse_config(text: str, origin: str, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a text that :func:`dump_config` wrote; keys that it lacks get their defaults.

    Args:
        text: YAML without ``_base_``.
        origin: File that holds the text, for messages.
        overrides: ``section.key=value`` texts; later wins.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    schema, tree = load_schema(), _parse_yaml(text, origin)
    _check_tree(origin, tree, schema)
    return _resolve(tree, overrides, schema, origin)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Loads a configuration: schema defaults, then `_base_` files, then the file, then overrides.

    Args:
        path: YAML file, or the name of one of the project's configurations.
        overrides: ``section.key=value`` texts, as given to ``--set``; later wins.

    Returns:
        The resolved configuration; every key of the schema is present.

    Raises:
        ConfigError: Unknown key, wrong type, or keys that contradict each other; names file, key, nearest legal key.
    """
    schema = load_schema()
    return _resolve(_load_tree(find_config(path), schema), overrides, schema, str(path))


def rename_old_values(tree: dict, origin: str) -> None:
    """Replaces values that had another name before, in place, with one warning line each.

    Args:
        tree: Configuration as nested dicts; sections and keys may be missing.
        origin: File that holds it, for the warning.
    """
    for section, key, old, new in _RENAMED_VALUES:
        if tree.get(section, {}).get(key) == old:
            _LOG.warning("%s: %s.%s = %s is an old name; write %s", origin, section, key, old, new)
            tree[section][key] = new


def _resolve(loaded: dict, overrides: Iterable[str], schema: dict, origin: str) -> Config:
    """The defaults, then what was loaded, then overrides; checked."""
    tree = {section: {k: key.default for k, key in keys.items()} for section, keys in schema.items()}
    _merge(tree, loaded)
    for text in overrides:
        section, key, value = parse_override(text, schema)
        tree[section][key] = value
    rename_old_values(tree, origin)
    for section, keys in schema.items():
        for key, spec in keys.items():
            if spec.type.startswith("float") and isinstance(tree[section][key], int):
                tree[section][key] = float(tree[section][key])
    cfg = Config.from_dict(tree)
    check_rules(cfg, origin)
    return cfg


def check_rules(cfg: Config, origin: str) -> None:
    """Rules that tie keys together; each names the keys and what to change.

    Raises:
        ConfigError: A rule is broken.
    """
    d, o, t = cfg.data, cfg.optim, cfg.train
    positive = {"model.num_classes": cfg.model.num_classes, "train.global_batch": t.global_batch,
                "train.epochs": t.epochs, "optim.lr": o.lr, "data.num_workers": d.num_workers,
                "data.prefetch": d.prefetch, "data.repeat": d.repeat, "data.value_range": d.value_range,
                "train.eval_interval": t.eval_interval, "train.log_interval": t.log_interval,
                "eval.batch_size": cfg.eval.batch_size, "train.save_interval_epochs": t.save_interval_epochs}
    for name, value in positive.items():
        if value <= 0:
            raise ConfigError(f"{origin}: {name} = {value} must be greater than 0")
    lengths = {"data.mean": (d.mean, 3), "data.std": (d.std, 3), "data.crop_size": (d.crop_size, 2),
               "data.scale_range": (d.scale_range, 2), "data.resize": (d.resize, 2),
               "data.crop_ratio": (d.crop_ratio, 2), "data.class_names": (d.class_names, None)}
    for name, (value, length) in lengths.items():
        if value is not None and length is not None and len(value) != length:
            raise ConfigError(f"{origin}: {name} = {value} must have {length} numbers")
    if min(d.std) <= 0:
        raise ConfigError(f"{origin}: data.std = {d.std} must be greater than 0")
    if not 0 < d.scale_range[0] <= d.scale_range[1]:
        raise ConfigError(f"{origin}: data.scale_range = {d.scale_range} must be [low, high] with 0 < low <= high")
    if min(d.crop_size) < 32:
        raise ConfigError(f"{origin}: data.crop_size = {d.crop_size} must be at least 32 x 32")
    expected = {"cityscapes": 19, "voc": 21}.get(d.name) or (d.class_names and len(d.class_names))
    if d.name == "list" and not d.class_names:
        raise ConfigError(f"{origin}: data.name = list needs data.class_names, in the order of the label values")
    expected += d.void_class
    if cfg.model.num_classes != expected:
        void = " (void included)" if d.void_class else ""
        raise ConfigError(f"{origin}: model.num_classes = {cfg.model.num_classes}, but data.name = {d.name} has "
                          f"{expected} classes{void}; set model.num_classes={expected}")
    if 0 <= d.ignore_id < cfg.model.num_classes:
        raise ConfigError(f"{origin}: data.ignore_id = {d.ignore_id} is a class id; use 255")
    weights = cfg.loss.class_weights
    if weights is not None and len(weights) != cfg.model.num_classes:
        raise ConfigError(f"{origin}: loss.class_weights has {len(weights)} numbers for "
                          f"model.num_classes = {cfg.model.num_classes}")
    _check_training(cfg, origin)
    _check_eval(cfg, origin)
    _check_augmentation(cfg, origin)
    if not 0 <= cfg.runtime.seed < 2**31:
        raise ConfigError(f"{origin}: runtime.seed = {cfg.runtime.seed} must be 0 to {2**31 - 1}")
    if not 11 <= cfg.export.opset <= 17:
        raise ConfigError(f"{origin}: export.opset = {cfg.export.opset} must be 11 to 17")


def _check_training(cfg: Config, origin: str) -> None:
    """Rules of the sections loss, optim and train."""
    d, o, t = cfg.data, cfg.optim, cfg.train
    at_least = {"train.steps": (t.steps, 1), "train.device_batch": (t.device_batch, 1),
                "train.eval_interval_steps": (t.eval_interval_steps, 1), "train.ema_decay": (t.ema_decay, 0),
                "train.save_interval_steps": (t.save_interval_steps, 1), "optim.clip_norm": (o.clip_norm, 0),
                "train.keep_checkpoint_max": (t.keep_checkpoint_max, 0), "optim.warmup_steps": (o.warmup_steps, 0),
                "optim.schedule_start": (o.schedule_start, 0), "loss.label_stride": (cfg.loss.label_stride, 1)}
    for name, (value, low) in at_least.items():
        if value is not None and value < low:
            raise ConfigError(f"{origin}: {name} = {value} must be at least {low}")
    if t.ema_decay >= 1:
        raise ConfigError(f"{origin}: train.ema_decay = {t.ema_decay} must be below 1, such as 0.999")
    if o.loss_scale != "dynamic" and o.loss_scale <= 0:
        raise ConfigError(f"{origin}: optim.loss_scale = {o.loss_scale} must be greater than 0, or dynamic")
    if o.warmup == "exponential" and o.warmup_factor <= 0:
        raise ConfigError(f"{origin}: optim.warmup_factor = {o.warmup_factor} must be greater than 0 if the "
                          "warm-up is exponential")
    size = d.resize or d.crop_size
    if any(side % cfg.loss.label_stride for side in size):
        raise ConfigError(f"{origin}: loss.label_stride = {cfg.loss.label_stride} must divide the training size {size}")


def _check_augmentation(cfg: Config, origin: str) -> None:
    """Rules of resize, crop_ratio and color_jitter of section data."""
    d = cfg.data
    if d.resize and min(d.resize) < 32:
        raise ConfigError(f"{origin}: data.resize = {d.resize} must be at least 32 x 32")
    if d.crop_ratio and not 1 <= d.crop_ratio[0] <= d.crop_ratio[1]:
        raise ConfigError(f"{origin}: data.crop_ratio = {d.crop_ratio} must be [low, high] with 1 <= low <= high: the "
                          "crop is 1/low to 1/high of the image")
    for key, value in (d.color_jitter or {}).items():
        name = f"data.color_jitter.{key}"
        if key not in _JITTER:
            hint = _nearest(str(key), _JITTER) or f"; it knows {', '.join(_JITTER)}"
            raise ConfigError(f"{origin}: unknown key '{name}'{hint}")
        if isinstance(value, list) and key not in ("hue", "prob"):
            if not _fits(value, "list[float]") or len(value) != 2 or not 0 <= value[0] <= value[1]:
                raise ConfigError(f"{origin}: {name} = {value} must be [low, high] with 0 <= low <= high")
        elif not _fits(value, _JITTER[key][0]) or not 0 <= value <= _JITTER[key][1]:
            raise ConfigError(f"{origin}: {name} = {value!r} must be {_JITTER[key][2]}")


def _check_eval(cfg: Config, origin: str) -> None:
    """Rules of section eval."""
    e, resize = cfg.eval, cfg.eval.resize or {}
    if not e.scales or min(e.scales) <= 0:
        raise ConfigError(f"{origin}: eval.scales = {e.scales} must be factors greater than 0")
    pairs = {"window": e.window, "stride": e.stride, "resize.center_crop": resize.get("center_crop")}
    for name, value in pairs.items():
        if value is not None and (not _fits(value, "list[int]") or len(value) != 2 or min(value) < 1):
            raise ConfigError(f"{origin}: eval.{name} = {value} must be [height, width] in pixels")
    window = e.window or cfg.data.crop_size
    if e.stride and (e.stride[0] > window[0] or e.stride[1] > window[1]):
        raise ConfigError(f"{origin}: eval.stride = {e.stride} is larger than the window {window}: pixels between the "
                          "windows would be left out; lower it or raise eval.window")
    unknown = sorted(set(resize) - {"rule", "size", "center_crop", "pad"})
    if unknown:
        raise ConfigError(f"{origin}: eval.resize has no key '{unknown[0]}'; it knows rule, size, center_crop and pad")
    rule, size = resize.get("rule", "none"), resize.get("size")
    rules = {"none": (0, 2), "exact": (2,), "short_side": (1,), "long_side": (1, 2)}
    if rule not in rules:
        raise ConfigError(f"{origin}: eval.resize.rule = {rule!r} must be one of {', '.join(rules)}")
    sides = [] if size is None else [size] if _fits(size, "int") else size
    if not _fits(sides, "list[int]") or len(sides) not in rules[rule] or min(sides, default=1) < 1:
        expected = {"none": "left out, or [height, width] with pad", "exact": "[height, width]",
                  "short_side": "one number", "long_side": "one number or [height, width]"}[rule]
        raise ConfigError(f"{origin}: eval.resize.size = {size} does not fit rule {rule}: it must be {expected}")
    pad = resize.get("pad", False)
    if not _fits(pad, "bool") or (pad and not sides):
        raise ConfigError(f"{origin}: eval.resize.pad = {pad} must be true (then size must be set) or false")
    if resize.get("center_crop") and e.label_size == "original":
        raise ConfigError(f"{origin}: eval.resize.center_crop leaves the border out, so labels must be cropped too: "
                          "set eval.label_size=input")


def dump_config(cfg: Config, path: str | Path | None = None) -> str:
    """The resolved configuration as YAML text; written to ``path`` if given (it loads back to the same values)."""
    text = yaml.safe_dump(cfg.to_dict(), sort_keys=False, default_flow_style=None, width=120)
    if path is not None:
        write_text(path, text)
    return text
