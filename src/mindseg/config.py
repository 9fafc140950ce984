"""Configuration: YAML files with `_base_`, checked key by key against `configs/_base_/defaults.yaml`.

That file is the schema: its values are the defaults, and the comment behind each key reads ``type | meaning``. A type
is ``int``, ``float``, ``bool``, ``str``, ``dict``, ``list``, ``list[int]``, ``list[int, 2]`` (two numbers) or a choice
``a/b/c``, where ``int`` and ``float`` stand for any number; ``list[float]/auto`` is a list or that word. A question
mark behind it allows null, and ``> 0`` or ``>= 0, <= 1`` limits every number in the value.
"""
import copy
import difflib
import functools
import logging
import math
import operator
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mindseg.errors import ConfigError, shorten
from mindseg.files import write_text
from mindseg.yaml_text import PlainDumper, YamlError, parse, read_text

_INSTALLED = Path(__file__).resolve().parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[2] / "configs"
SCHEMA_FILE = CONFIGS / "_base_" / "defaults.yaml"
_KEY_LINE = re.compile(r"^  (?P<key>\w+):.*?#\s*(?P<type>\S.*?)\s*\|\s*(?P<text>.*)$")
_TYPE = re.compile(r"(?P<kind>list\[(?P<item>\w+)(?:, (?P<length>\d+))?\](?:/(?P<word>\w+))?|[\w/]+)(?P<null>\??)"
                   r"(?P<limits>.*)")
_PYTHON_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str, "dict": dict, "list": list}
_NUMBERS = {"int", "float"}
# Names that other toolkits have for keys.
_OTHER_NAMES = {
    "batch_size": "train.global_batch", "samples_per_gpu": "train.global_batch", "learning_rate": "optim.lr",
    "base_lr": "optim.lr", "iterations": "train.steps", "max_iters": "train.steps", "total_iters": "train.steps",
    "max_epochs": "train.epochs", "num_epochs": "train.epochs", "data_root": "data.root", "data_dir": "data.root",
    "dataset": "data.name", "workers": "data.num_workers", "output": "runtime.output_dir",
    "save_dir": "runtime.output_dir", "device": "runtime.device_target"}
_LIMITS = {">": (operator.gt, "greater than"), ">=": (operator.ge, "at least"),
           "<": (operator.lt, "less than"), "<=": (operator.le, "at most")}
# Type of each key of data.color_jitter; the first three also take [low, high].
_JITTER = {"brightness": "float >= 0, <= 255", "contrast": "float >= 0, <= 1", "saturation": "float >= 0, <= 1",
           "hue": "int >= 0, <= 180", "prob": "float >= 0, <= 1"}
TRACKERS = ("mlflow", "wandb", "swanlab")      # train.trackers
_DEEPEST_BASE = 10      # files behind each other in `_base_`
_LOG = logging.getLogger("mindseg.config")
# Types of the values of other mappings, whose keys are texts.
_MAPPINGS = {("loss", "also"): "float >= 0, <= 1000000", ("optim", "lr_factors"): "float >= 0, <= 1000000",
             ("runtime", "modelarts"): "str?"}
# Values that had another name before: section, key, old value, present one.
_RENAMED_VALUES = (("model", "variant", "seed", "modelzoo"),)


class Config(dict):
    """Nested dict whose keys are attributes too: ``cfg.data.root``."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"no configuration key '{key}'") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    @classmethod
    def from_dict(cls, tree: dict) -> "Config":
        """Converts a dict and every dict in it.

        Args:
            tree: Nested dicts with string keys.
        """
        return cls({k: cls.from_dict(v) if isinstance(v, dict) else v for k, v in tree.items()})

    def to_dict(self) -> dict:
        """Converts to plain nested dicts, for YAML and JSON."""
        return {k: v.to_dict() if isinstance(v, Config) else v for k, v in self.items()}


@dataclass(frozen=True)
class Key:
    """Legal key of a configuration.

    Attributes:
        type: Type as written in the schema, such as ``list[int, 2]? > 0``.
        default: Value of the key where no configuration sets it.
        text: Meaning, in plain English.
    """
    type: str
    default: Any
    text: str


def read_tree(path: Path) -> dict:
    """Reads a YAML file of sections, as it stands.

    Args:
        path: Regular file of at most 1 MiB.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or holds no mapping.
    """
    return _parse_tree(read_text(path, "the configuration", "give a YAML file", ConfigError), str(path))


def _parse_tree(text: str, origin: str) -> dict:
    try:
        tree = parse(text)
    except YamlError as error:
        raise ConfigError(f"{origin}: line {error.line}: not valid YAML ({error.problem})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: a configuration must be a mapping of sections, not of type {type(tree).__name__}")
    return tree


@functools.cache
def load_schema() -> dict[str, dict[str, Key]]:
    """Reads the schema.

    Returns:
        ``{section: {key: Key}}`` in the order of the file.

    Raises:
        ConfigError: A key has no comment with its type.
    """
    tree = read_tree(SCHEMA_FILE)
    schema: dict[str, dict[str, Key]] = {section: {} for section in tree}
    section = ""
    for line in SCHEMA_FILE.read_text(encoding="utf-8").splitlines():
        if re.match(r"^\w+:", line):
            section = line.split(":")[0]
        elif match := _KEY_LINE.match(line):
            schema[section][match["key"]] = Key(match["type"], tree[section][match["key"]], match["text"])
    for section, keys in tree.items():
        for key in set(keys) - set(schema[section]):
            raise ConfigError(f"{SCHEMA_FILE}: {section}.{key} has no comment of the form '# type | meaning'")
    return schema


def _nearest(word: str, words: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean '{found[0]}'?" if found else ""


def _has_type(value: Any, kind: str) -> bool:
    return isinstance(value, _PYTHON_TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def _broken_rule(value: Any, type_text: str) -> str:
    """Rule of a type that a value breaks, as the end of an error message; "" if the value is legal."""
    spec = _TYPE.fullmatch(type_text)
    if (value is None and spec["null"]) or (spec["word"] and value == spec["word"]):
        return ""
    choices = spec["kind"].split("/")
    if spec["item"]:
        legal = isinstance(value, list) and all(_has_type(item, spec["item"]) for item in value)
    elif len(choices) > 1:
        legal = value in choices or any(_has_type(value, kind) for kind in _NUMBERS.intersection(choices))
    else:
        legal = _has_type(value, spec["kind"])
    if not legal:
        names = f"one of {', '.join(choices)}" if len(choices) > 1 else f"of type {spec['kind']}"
        return f"must be {names}{' or null' if spec['null'] else ''}"
    if spec["length"] and len(value) != int(spec["length"]):
        return f"must have {spec['length']} numbers"
    numbers = value if spec["item"] else [value]
    for sign, bound in re.findall(r"([<>]=?) (-?\d+)", spec["limits"]):
        holds, words = _LIMITS[sign]
        if not all(isinstance(number, str) or holds(number, int(bound)) for number in numbers):
            return f"must be {words} {bound}"
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return "must be finite"
    return ""


def _check_key(origin: str, section: str, key: str, value: Any, schema: dict) -> None:
    if section not in schema:
        raise ConfigError(f"{origin}: unknown section {shorten(section)}{_nearest(section, schema)}")
    if key not in schema[section]:
        raise ConfigError(f"{origin}: unknown key {shorten(f'{section}.{key}')}{_nearest_key(section, key, schema)}")
    if rule := _broken_rule(value, schema[section][key].type):
        raise ConfigError(f"{origin}: {section}.{key} = {shorten(value)} {rule}")


def _nearest_key(section: str, key: str, schema: dict) -> str:
    """Finds the key that other toolkits call so, or a similar one, first in the same section, then in the others."""
    if key.lower() in _OTHER_NAMES:
        return f"; did you mean '{_OTHER_NAMES[key.lower()]}'?"
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
            raise ConfigError(f"{path}: unknown section {shorten(section)}{_nearest(str(section), schema)}")
        if not isinstance(keys, dict):
            raise ConfigError(f"{path}: section '{section}' must be a mapping of keys, not {shorten(keys)}")
        for key, value in keys.items():
            _check_key(str(path), section, str(key), value, schema)


def _load_tree(path: Path, schema: dict, known: dict[Path, dict], chain: tuple[Path, ...] = ()) -> dict:
    """Reads a file and the files of its `_base_`; later files win, sections merge key by key.

    Args:
        path: File to read.
        schema: Legal keys.
        known: Results of this load by file; each file is read once, however many others list it.
        chain: Files that led to this one.
    """
    path = Path(os.path.abspath(path))
    if path in chain:
        raise ConfigError(f"{path}: `_base_` forms a circle: {' -> '.join(p.name for p in (*chain, path))}")
    if path in known:
        return known[path]
    if len(chain) == _DEEPEST_BASE:
        raise ConfigError(f"{path}: `_base_` leads over {_DEEPEST_BASE} files deep; list fewer files behind each other")
    tree = read_tree(path)
    bases = tree.pop("_base_", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(b, str) and b.isprintable() and len(b) < 256 for b in bases):
        raise ConfigError(f"{path}: `_base_` must be a file name or a list of them, not {shorten(bases)}")
    _check_tree(path, tree, schema)
    merged: dict = {}
    for base in bases:
        _merge(merged, _load_tree(path.parent / base, schema, known, (*chain, path)))
    _merge(merged, tree)
    known[path] = merged
    return merged


def _merge(into: dict, tree: dict) -> None:
    for section, keys in tree.items():
        into.setdefault(section, {}).update(keys)


def parse_override(text: str, schema: dict) -> tuple[str, str, Any]:
    """Splits and checks one override.

    Args:
        text: ``section.key=value``. For a key of type ``str`` or a choice of words the value is the text itself, with
            one exception: where the type allows null, ``null`` and an empty text mean null. For other keys the value is
            read as YAML (``null``, ``true``, ``[1, 2]``).
        schema: Legal keys, from :func:`load_schema`.

    Returns:
        Section, key and value.

    Raises:
        ConfigError: The text has another form, the key is unknown, or the value is not legal.
    """
    origin = f"--set {_shown(text)}"
    name, equals, value_text = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise ConfigError(f"{origin}: write it as section.key=value")
    kind = schema.get(section, {}).get(key, Key("", None, "")).type
    value: Any = value_text
    if not _is_text(kind):
        with suppress(YamlError):       # a text of another kind fails the check of types
            value = parse(value_text)
    elif kind.endswith("?") and value_text in ("", "null"):
        value = None
    _check_key(origin, section, key, value, schema)
    return section, key, value


def _is_text(type_text: str) -> bool:
    """All values of a type are texts: ``str``, or a choice without a number or a list."""
    choices = type_text.rstrip("?").split("/")
    words = _NUMBERS.isdisjoint(choices) and not type_text.startswith("list")
    return choices == ["str"] or (len(choices) > 1 and words)


def _shown(text: str) -> str:
    """A text of a user in a message: as it is if it is short and printable."""
    return text if text.isprintable() and len(text) <= 80 else shorten(text)


def find_config(name: str | Path) -> Path:
    """The file of a configuration.

    Args:
        name: Path, or the name of one of the project's configurations, such as ``fast_scnn_camvid``.

    Raises:
        ConfigError: The project has no configuration of that name.
    """
    path = Path(name)
    if path.suffix or len(path.parts) > 1 or os.path.isfile(path):     # a folder of that name may hold its data
        return path
    known = {file.stem: file for file in sorted(CONFIGS.glob("*/*.yaml")) if file.parent.name != "protocols"}
    if path.name not in known:
        raise ConfigError(f"{_shown(str(name))}: no configuration has this name or path{_nearest(path.name, known)}")
    return known[path.name]


def parse_config(text: str, origin: str, overrides: Iterable[str] = ()) -> Config:
    """Reads a configuration from a text that :func:`dump_config` wrote; missing keys get their defaults.

    Args:
        text: YAML without ``_base_``.
        origin: File that holds the text, for messages.
        overrides: ``section.key=value`` texts; later wins.

    Returns:
        The resolved configuration; every key of the schema is present.

    Raises:
        ConfigError: A key is unknown, a value is not legal, or keys contradict each other.
    """
    schema, tree = load_schema(), _parse_tree(text, origin)
    _check_tree(origin, tree, schema)
    return _resolve(tree, overrides, schema, origin)


def parse_saved(text: str, origin: str) -> dict[str, dict]:
    """Reads the configuration that an earlier version may have stored, without a check of its keys and values.

    Args:
        text: YAML text.
        origin: File that holds it, for messages.

    Returns:
        Values by section and key.

    Raises:
        ConfigError: The text is no YAML mapping.
    """
    tree = {section: values for section, values in _parse_tree(text, origin).items() if isinstance(values, dict)}
    rename_old_values(tree, origin)
    return tree


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Loads a configuration: schema defaults, then the `_base_` files, then the file, then overrides; later wins.

    Args:
        path: YAML file, or the name of one of the project's configurations.
        overrides: ``section.key=value`` texts, as given to ``--set``.

    Returns:
        The resolved configuration; every key of the schema is present.

    Raises:
        ConfigError: A key is unknown, a value is not legal, or keys contradict each other.
    """
    schema = load_schema()
    return _resolve(_load_tree(find_config(path), schema, {}), overrides, schema, str(path))


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
    """Merges defaults, a loaded configuration and overrides, and checks the result."""
    tree = {section: {k: copy.deepcopy(key.default) for k, key in keys.items()} for section, keys in schema.items()}
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
    """Checks the rules that tie keys together.

    Args:
        cfg: Resolved configuration, whose values have the types and limits of the schema.
        origin: File name for messages.

    Raises:
        ConfigError: A rule is broken; the message names the keys and the remedy.
    """
    d = cfg.data
    if 0 <= d.ignore_id < cfg.model.num_classes:
        raise ConfigError(f"{origin}: data.ignore_id = {d.ignore_id} is a class id; use 255")
    weights = cfg.loss.class_weights
    if isinstance(weights, list) and len(weights) != cfg.model.num_classes:
        raise ConfigError(f"{origin}: loss.class_weights has {len(weights)} numbers, but "
                          f"model.num_classes = {cfg.model.num_classes}; give one weight per class")
    for (section, name), kind in _MAPPINGS.items():
        for key, value in (cfg[section][name] or {}).items():
            if rule := _broken_rule(key, "str") or _broken_rule(value, kind):
                raise ConfigError(f"{origin}: {section}.{name} = {shorten({key: value})}: {rule}")
    _check_training(cfg, origin)
    _check_eval(cfg, origin)
    _check_augmentation(cfg, origin)


def _check_training(cfg: Config, origin: str) -> None:
    """Checks the rules of the sections loss, optim and train."""
    d, o = cfg.data, cfg.optim
    unknown = [name for name in cfg.train.trackers if name not in TRACKERS]
    if unknown:
        raise ConfigError(f"{origin}: train.trackers: {shorten(unknown[0])} is not known; use {', '.join(TRACKERS)}")
    for pattern in o.lr_factors or {}:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{origin}: optim.lr_factors: {shorten(pattern)} is no regular expression ({error})"
                              ) from None
    if o.warmup == "exponential" and o.warmup_factor <= 0:
        raise ConfigError(f"{origin}: optim.warmup_factor = {o.warmup_factor} must be greater than 0 with "
                          "optim.warmup = exponential")
    _check_crop_schedule(cfg, origin)
    for size in [d.resize or d.crop_size, *(phase["crop_size"] for phase in d.crop_schedule or ())]:
        if any(side % cfg.loss.label_stride for side in size):
            raise ConfigError(f"{origin}: loss.label_stride = {cfg.loss.label_stride} must divide the training size "
                              f"{size}")


def _check_crop_schedule(cfg: Config, origin: str) -> None:
    """Checks data.crop_schedule."""
    before = 0.0
    for phase in cfg.data.crop_schedule or ():
        legal = (isinstance(phase, dict) and phase.keys() == {"until", "crop_size"}
                 and not _broken_rule(phase["crop_size"], "list[int, 2] >= 32, <= 8192")
                 and not _broken_rule(phase["until"], "float < 1") and phase["until"] > before)
        if not legal:
            raise ConfigError(f"{origin}: data.crop_schedule: {shorten(phase)} must be {{until: share, crop_size: "
                              "[height, width]}, with shares of the run that rise between 0 and 1")
        before = phase["until"]
    if cfg.data.crop_schedule and (cfg.data.resize or cfg.train.dataset_sink_mode):
        other = "data.resize" if cfg.data.resize else "train.dataset_sink_mode"
        raise ConfigError(f"{origin}: data.crop_schedule does not go with {other}, whose batches have one size; turn "
                          "one of them off")


def _check_augmentation(cfg: Config, origin: str) -> None:
    """Checks scale_range, crop_ratio and colour distortions of section data."""
    d = cfg.data
    if not 0 < d.scale_range[0] <= d.scale_range[1]:
        raise ConfigError(f"{origin}: data.scale_range = {d.scale_range} must be [low, high] with 0 < low <= high")
    if d.crop_ratio and not 1 <= d.crop_ratio[0] <= d.crop_ratio[1]:
        raise ConfigError(f"{origin}: data.crop_ratio = {d.crop_ratio} must be [low, high] with 1 <= low <= high: the "
                          "crop is 1/low to 1/high of the image")
    _check_jitter(d.color_jitter or {}, "data.color_jitter", origin)
    for entry in d.augment or ():
        if isinstance(entry, dict) and isinstance(entry.get("color_jitter"), dict):
            _check_jitter(entry["color_jitter"], "data.augment: color_jitter", origin)


def _check_jitter(values: dict, section: str, origin: str) -> None:
    """Checks a colour distortion; ``section`` is its name in messages."""
    for key, value in values.items():
        name = f"{section}.{_shown(str(key))}"
        if key not in _JITTER:
            hint = _nearest(str(key), _JITTER) or f"; use {', '.join(_JITTER)}"
            raise ConfigError(f"{origin}: unknown key '{name}'{hint}")
        if isinstance(value, list) and key not in ("hue", "prob"):
            if _broken_rule(value, "list[float, 2] >= 0, <= 255") or value[0] > value[1]:
                raise ConfigError(f"{origin}: {name} = {shorten(value)} must be [low, high] with 0 <= low <= high")
        elif rule := _broken_rule(value, _JITTER[key]):
            pair = "" if key in ("hue", "prob") else ", or [low, high]"
            raise ConfigError(f"{origin}: {name} = {shorten(value)} {rule}{pair}")


def _check_eval(cfg: Config, origin: str) -> None:
    """Checks the rules of section eval."""
    e, resize = cfg.eval, cfg.eval.resize or {}
    if not e.scales:
        raise ConfigError(f"{origin}: eval.scales = [] must hold at least one factor")
    window = e.window or cfg.data.crop_size
    if e.stride and (e.stride[0] > window[0] or e.stride[1] > window[1]):
        raise ConfigError(f"{origin}: eval.stride = {e.stride} is larger than the window {window}: pixels between the "
                          "windows would be left out; lower it or raise eval.window")
    unknown = [key for key in resize if key not in ("rule", "size", "center_crop", "pad")]
    if unknown:
        raise ConfigError(f"{origin}: eval.resize has no key {shorten(unknown[0])}; use rule, size, center_crop or pad")
    rule, size = resize.get("rule", "none"), resize.get("size")
    rules = {"none": (0, 2), "exact": (2,), "short_side": (1,), "long_side": (1, 2)}
    if not isinstance(rule, str) or rule not in rules:
        raise ConfigError(f"{origin}: eval.resize.rule = {shorten(rule)} must be one of {', '.join(rules)}")
    sides = [] if size is None else size if isinstance(size, list) else [size]
    if _broken_rule(sides, "list[int] > 0, <= 16384") or len(sides) not in rules[rule]:
        expected = {"none": "left out, or [height, width] with pad", "exact": "[height, width]",
                    "short_side": "one number", "long_side": "one number or [height, width]"}[rule]
        raise ConfigError(f"{origin}: eval.resize.size = {shorten(size)} does not fit rule {rule}; it must be "
                          f"{expected}")
    crop = resize.get("center_crop")
    if _broken_rule(crop, "list[int, 2]? > 0, <= 16384"):
        raise ConfigError(f"{origin}: eval.resize.center_crop = {shorten(crop)} must be [height, width] in pixels")
    pad = resize.get("pad", False)
    if not isinstance(pad, bool) or (pad and not sides):
        raise ConfigError(f"{origin}: eval.resize.pad = {shorten(pad)} must be true (then size must be set) or false")
    if crop and e.label_size == "original":
        raise ConfigError(f"{origin}: eval.resize.center_crop leaves the border out, so labels must be cropped too: "
                          "set eval.label_size=input")


def dump_config(cfg: Config, path: str | Path | None = None) -> str:
    """Converts a resolved configuration to YAML, which loads back to the same values.

    Args:
        cfg: Resolved configuration.
        path: File to write the text to; None: none.

    Returns:
        The YAML text.
    """
    text = yaml.dump(cfg.to_dict(), Dumper=PlainDumper, sort_keys=False, default_flow_style=None, width=120)
    if path is not None:
        write_text(path, text)
    return text
