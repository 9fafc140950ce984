"""``deploy.yaml``: everything that pre-processing, runner and post-processing know about an exported model."""
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from mindseg.data.datasets import DatasetInfo, dataset_info
from mindseg.data.decode import decode_image
from mindseg.data.transforms import normalize
from mindseg.errors import UserError
from mindseg.files import file_sha256, finish_set, read_bytes, write_bytes, write_text
from mindseg.outputs import output_path
from mindseg.resize import RULES as RESIZE_RULES
from mindseg.resize import EvalResize, check_resize
from mindseg.yaml_text import PlainDumper, PlainLoader, YamlError, parse, read_text

FORMAT_VERSION = 1
MANIFEST_NAME = "deploy.yaml"
FORMATS = ("onnx", "openvino", "mindir", "om", "air")
_AGAIN = "correct it or run export.py again"
# Limits of the C++ reader too (ascend310_infer/src/manifest.cc): beyond them a number is a typing error.
_LARGEST_SIDE = 32768
_LARGEST_BATCH = 2048
_LARGEST_TENSOR = 1 << 34
# YAML readers disagree on tabs, on rare line breaks, on byte order marks and on directives (%YAML 1.1).
_REFUSED = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]|\r(?!\n)|^%", re.MULTILINE)


class ManifestError(UserError):
    """The manifest, or a model file it names, cannot be used."""


@dataclass(frozen=True)
class InputSpec:
    """The input tensor and how an image becomes one.

    Attributes:
        name: Tensor name.
        shape: Four numbers in ``layout`` order; the batch is -1 if it is dynamic.
        layout: ``NCHW`` (float32, normalised by the host) or ``NHWC`` (uint8, normalised in the graph).
        dtype: ``float32`` or ``uint8``.
        color_order: ``RGB`` or ``BGR``.
        normalize: ``host`` or ``graph``: who computes ``(x * value_range / 255 - mean) / std``.
        value_range: 1 or 255, the scale that ``mean`` and ``std`` refer to.
        mean: Per channel, in ``color_order``.
        std: Per channel, in ``color_order``, none of them 0.
        resize: ``{rule, size, pad}``: rule ``none | exact | short_side | long_side``; size ``[H, W]`` for ``exact``,
            one number of pixels for the two side rules; ``long_side`` also takes ``[H, W]``, a box to fit into.
        pad_value: Three values 0..255 in ``color_order`` that fill the bottom and the right.
    """
    name: str
    shape: tuple[int, int, int, int]
    layout: str
    dtype: str
    color_order: str
    normalize: str
    value_range: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: dict[str, Any]
    pad_value: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.shape[1:3] if self.layout == "NHWC" else self.shape[2:4])

    @property
    def batch(self) -> int:
        """Batch size, -1 if dynamic."""
        return self.shape[0]

    @property
    def eval_resize(self) -> EvalResize:
        """The rule that brings images to the model's size, and its answers back."""
        return eval_resize(self.resize, pad_value=tuple(self.pad_value), input_size=self.size)

    def read_image(self, path: Path) -> np.ndarray:
        """Reads an image file as uint8 (H, W, 3) in the model's colour order."""
        image = decode_image(read_bytes(path), str(path))
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if self.color_order == "RGB" else image

    def prepare(self, image: np.ndarray, name: str = "image") -> np.ndarray:
        """One image as the model takes it.

        Args:
            image: uint8 (H, W, 3) in the model's colour order.
            name: Name of the image for messages.

        Returns:
            float32 (3, height, width), normalised, or uint8 (height, width, 3) if the graph normalises.

        Raises:
            DataError: The image does not fit the model's size.
        """
        image = self.eval_resize.apply(image, name=name)
        return image if self.normalize == "graph" else normalize(image, self.mean, self.std, self.value_range)


@dataclass(frozen=True)
class OutputSpec:
    """The output tensor: ``argmax`` (class ids (N,H,W)) or ``logits`` (float32 (N,C,H,W)).

    Attributes:
        name: Tensor name.
        type: ``argmax`` or ``logits``.
        dtype: ``uint8`` or ``int32``; ``float32`` or ``float16`` for logits.
        shape: The batch is -1 if it is dynamic.
        confidence: Name of a second tensor, uint8 of the shape of the ids: the probability of the class,
            ``round(255 * p)``. None: the model has no such output.
        temperature: Divisor of the logits before that probability's softmax; None without it.
    """
    name: str
    type: str
    dtype: str
    shape: tuple[int, ...]
    confidence: str | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """Meaning of the class ids.

    Attributes:
        name: As ``data.name``, such as ``cityscapes``; ``list`` for any other data set.
        classes: Names, in the order of the ids.
        palette: One ``(r, g, b)`` a class.
        ignore_id: Train id that is left out of the score.
        label_ids: The official id of each class, ``None`` if they are the same.
        label_map: Label value to train id, for a ``list`` data set, whose label files nobody else knows.
    """
    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_id: int
    label_ids: tuple[int, ...] | None = None
    label_map: dict[int, int] | None = None


@dataclass(frozen=True)
class ModelFile:
    """One exported or converted file.

    Attributes:
        format: ``onnx``, ``openvino``, ``mindir``, ``om`` or ``air``.
        file: Path relative to the manifest's folder.
        batch: Batch size, -1 if dynamic.
        sha256: Hex digest of the file.
        extra: Further facts of this file, such as ``batches``, ``soc_version``, ``aipp`` and ``precision``.
    """
    format: str
    file: str
    batch: int
    sha256: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The content of one ``deploy.yaml``; ``path`` is where it stands.

    ``ascend`` is written by hand: its ``fusion_switch`` names a file, relative to the manifest's folder, that switches
    fusion passes off when MindSpore Lite loads a model.
    """
    model: dict[str, Any]
    input: InputSpec
    output: OutputSpec
    dataset: DatasetSpec
    source: dict[str, Any]
    versions: dict[str, str]
    models: tuple[ModelFile, ...]
    path: Path
    ascend: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes that the model can answer."""
        return len(self.dataset.classes)

    def data_section(self) -> dict[str, Any]:
        """The part of a configuration's section ``data`` that describes this data set."""
        d = self.dataset
        section = {"name": d.name, "class_names": list(d.classes), "palette": [list(c) for c in d.palette]}
        return section | ({"label_map": d.label_map} if d.label_map else {})

    def dataset_info(self) -> DatasetInfo:
        """The data set's classes and label values, with the names and colours of the manifest."""
        d = self.dataset
        return replace(dataset_info(self.data_section()), classes=d.classes, palette=d.palette, ignore_id=d.ignore_id,
                       train_to_id=d.label_ids)

    def find(self, fmt: str, batch: int | None = None) -> ModelFile:
        """Finds the entry of a format.

        Args:
            fmt: ``onnx``, ``openvino``, ``mindir``, ``om`` or ``air``.
            batch: Batch size; ``None`` takes the first entry.

        Raises:
            ManifestError: The manifest lists no such model.
        """
        for entry in self.models:
            if entry.format == fmt and (batch is None or entry.batch in (batch, -1)):
                return entry
        listed = ", ".join(f"{entry.format} (batch {entry.batch})" for entry in self.models) or "none"
        asked = fmt if batch is None else f"{fmt} with batch {batch}"
        raise ManifestError(f"{self.path}: lists no {asked} model (listed: {listed}); export or convert one first")

    def model_path(self, entry: ModelFile, check_hash: bool = True) -> Path:
        """Returns the model file's path after checking that it is there and is the one the manifest describes.

        Raises:
            ManifestError: The file is missing, empty, or not the one that was exported.
        """
        path = self.path.parent / entry.file
        if not path.is_file():
            raise ManifestError(f"{path}: model file named by {self.path} is missing; copy it beside the manifest "
                                "or run export.py again")
        if check_hash and file_sha256(path) != entry.sha256:
            raise ManifestError(f"{path}: SHA-256 differs from the one in {self.path}: the file is damaged or belongs "
                                "to another export; copy both files again or run export.py again")
        return path

    def check_confidence(self) -> None:
        """Checks that the model gives the confidence of its classes.

        Raises:
            ManifestError: It was exported without.
        """
        if self.output.confidence is None:
            raise ManifestError(f"{self.path}: this model gives no confidence; export it again with --set "
                                "export.confidence=true")

    def copy_fusion_switch(self, folder: Path) -> None:
        """Copies the file that ``ascend.fusion_switch`` names beside a manifest in another folder.

        Args:
            folder: Folder of the other manifest.
        """
        name = self.ascend.get("fusion_switch")
        if name and (self.path.parent / name).is_file():
            write_bytes(folder / name, (self.path.parent / name).read_bytes())

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain, ordered content of the YAML file."""
        content: dict[str, Any] = {"format_version": FORMAT_VERSION, "model": dict(self.model)}
        for name in ("input", "output", "dataset"):
            content[name] = _plain(asdict(getattr(self, name)))
        if self.output.confidence is None:
            del content["output"]["confidence"], content["output"]["temperature"]
        content.update(source=_plain(self.source), versions=_plain(self.versions), models=[])
        if self.ascend:
            content["ascend"] = _plain(self.ascend)
        for entry in self.models:
            fields = _plain(asdict(entry))
            extra = fields.pop("extra")
            content["models"].append({**fields, **extra})
        return content


def save_manifest(manifest: Manifest) -> Path:
    """Writes ``manifest.path`` (to a temporary name first) and returns it."""
    text = yaml.dump(manifest.to_dict(), Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
    write_text(manifest.path, text)
    return manifest.path


def load_manifest(path: str | Path) -> Manifest:
    """Reads and checks a manifest.

    Args:
        path: ``deploy.yaml``, or the folder that holds it.

    Raises:
        ManifestError: The file is missing, is no YAML, or a value is missing or wrong.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MANIFEST_NAME
    finish_set(path)
    text = read_text(path, "the manifest", "give the deploy.yaml that export.py writes beside the model", ManifestError)
    if _REFUSED.search(text):
        raise ManifestError(f"{path}: no valid YAML for a manifest (a tab, control character or directive); {_AGAIN}")
    try:
        content = parse(text, _Loader)
    except YamlError as error:
        raise ManifestError(f"{path}: no valid YAML at line {error.line} ({error.problem}); {_AGAIN}") from None
    root = _Section(path, "", content)
    version = root.get("format_version", int)
    if version != FORMAT_VERSION:
        raise root.error("format_version", version, f"this release reads version {FORMAT_VERSION}")
    manifest = Manifest(model=_read_model_section(root.section("model")), input=_read_input(root.section("input")),
                        output=_read_output(root.section("output")), dataset=_read_dataset(root.section("dataset")),
                        source=root.section("source").mapping(), versions=root.section("versions").mapping(),
                        models=tuple(_read_model_file(section) for section in root.sections("models")), path=path,
                        ascend=_read_ascend(root))
    if not manifest.models:
        raise root.error("models", [], "it must list a model file")
    _check_classes(root, manifest)
    _check_shapes(root, manifest)
    return manifest


class _Loader(PlainLoader):
    """Reads plain values as JSON does: ``yes`` and ``1_000`` are texts, ``1e-3`` is a number. The C++ reader agrees."""

    yaml_implicit_resolvers: dict = {}

    # PyYAML takes a ? or : in braces for the end or the beginning of a key whatever stands behind it.
    def check_key(self) -> bool:
        """Takes ``?`` for the beginning of a key before a space."""
        return self.peek(1) in "\0 \r\n"

    def check_value(self) -> bool:
        """Takes ``:`` for the end of a key before a space, a comma or a closing bracket, or behind a quoted key."""
        behind_quote = self.flow_level > 0 and self.buffer[self.pointer - 1] in "\"'}]"
        return behind_quote or self.peek(1) in ("\0 \r\n,]}" if self.flow_level else "\0 \r\n")

    def check_plain(self) -> bool:
        """Lets a text in brackets begin with ``:``."""
        return super().check_plain() or (self.peek() == ":" and self.peek(1) not in "\0 \r\n,[]{}")


_INTEGER = "-?(0|[1-9][0-9]*)"
for _kind, _form in (("null", "|~|null|Null|NULL"), ("bool", "true|false"), ("int", _INTEGER),
                     ("float", rf"{_INTEGER}(\.[0-9]+)?([eE][-+]?[0-9]+)?")):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_form})\Z"), None)


def _construct_number(loader: _Loader, node: yaml.ScalarNode) -> int | float | str:
    """A number, or the text itself if it is too large for a float, as the C++ reader's JSON has no larger ones."""
    if math.isinf(float(node.value)):
        return node.value
    return int(node.value) if node.tag.endswith("int") else float(node.value)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct_number)


class _Section:
    """One mapping of the manifest with checked access; errors name file, key, value and remedy."""

    def __init__(self, path: Path, prefix: str, content: Any):
        self.path, self.prefix, self.content = path, prefix, content
        if not isinstance(content, dict):
            where = prefix.rstrip(".") or "the file"
            raise ManifestError(f"{path}: {where} must be a mapping of keys to values; {_AGAIN}")

    def error(self, key: str, value: Any, rule: str) -> ManifestError:
        return ManifestError(f"{self.path}: {self.prefix}{key} is {value!r:.200}, but {rule}; {_AGAIN}")

    def get(self, key: str, kind: type | tuple[type, ...], allowed: tuple = ()) -> Any:
        if key not in self.content:
            raise ManifestError(f"{self.path}: {self.prefix}{key} is missing; {_AGAIN}")
        value = self.content[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = "/".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise self.error(key, value, f"it must be of type {names}")
        if kind is str and not _is_text(value):
            raise self.error(key, value, "it must be a text without control characters")
        if allowed and value not in allowed:
            raise self.error(key, value, f"it must be one of {', '.join(map(str, allowed))}")
        return value

    def file(self, key: str) -> str:
        name = self.get(key, str)
        try:
            output_path(self.path.parent, name, key)
        except UserError:
            raise self.error(key, name, "it must be a relative path without '..', drive, backslash or control character"
                             ) from None
        return name

    def numbers(self, key: str, count: int | None, kind: type | tuple[type, ...] = (int, float)) -> tuple:
        values = self.get(key, list)
        wrong = [v for v in values if not isinstance(v, kind) or isinstance(v, bool)
                 or not abs(v) <= sys.float_info.max]
        if wrong or (count is not None and len(values) != count):
            raise self.error(key, values, f"it must be a list of {count or 'whole'} numbers")
        return tuple(values)

    def section(self, key: str) -> "_Section":
        return _Section(self.path, f"{self.prefix}{key}.", self.get(key, dict))

    def sections(self, key: str) -> list["_Section"]:
        return [_Section(self.path, f"{self.prefix}{key}[{i}].", item) for i, item in enumerate(self.get(key, list))]

    def mapping(self) -> dict[str, Any]:
        return dict(self.content)


def _read_model_section(section: _Section) -> dict[str, Any]:
    section.get("name", str)
    section.get("num_classes", int)
    return section.mapping()


def _read_input(section: _Section) -> InputSpec:
    layout = section.get("layout", str, ("NCHW", "NHWC"))
    shape = section.numbers("shape", 4, int)
    channels = shape[3] if layout == "NHWC" else shape[1]
    if channels != 3 or not _is_batch(shape[0]) or min(shape[1:]) < 1 or max(shape[1:]) > _LARGEST_SIDE:
        raise section.error("shape", list(shape), f"{layout} needs three channels, sizes of 1 to {_LARGEST_SIDE} and "
                            f"a batch of 1 to {_LARGEST_BATCH} (-1: dynamic)")
    in_graph = layout == "NHWC"
    normalize = section.get("normalize", str, ("graph",) if in_graph else ("host",))
    dtype = section.get("dtype", str, ("uint8",) if in_graph else ("float32",))
    std = section.numbers("std", 3)
    if 0 in std:
        raise section.error("std", list(std), "no value may be 0")
    pad_value = section.numbers("pad_value", 3, int)
    if min(pad_value) < 0 or max(pad_value) > 255:
        raise section.error("pad_value", list(pad_value), "the values must be 0..255")
    return InputSpec(name=section.get("name", str), shape=shape, layout=layout, dtype=dtype,
                     color_order=section.get("color_order", str, ("RGB", "BGR")), normalize=normalize,
                     value_range=section.get("value_range", (int, float), (1, 255)),
                     mean=section.numbers("mean", 3), std=std,
                     resize=_read_resize(section.section("resize"), shape[1:3] if in_graph else shape[2:]),
                     pad_value=pad_value)


def _read_resize(section: _Section, takes: Sequence[int]) -> dict[str, Any]:
    """Reads ``input.resize``; ``takes`` is the model's height and width, which the resized images have to fit into."""
    rule = section.get("rule", str, RESIZE_RULES)
    resize: dict[str, Any] = {"rule": rule}
    if rule == "exact" or (rule == "long_side" and isinstance(section.content.get("size"), list)):
        resize["size"] = list(section.numbers("size", 2, int))
    elif rule != "none":
        resize["size"] = section.get("size", int)
    if np.min(resize.get("size", 1)) < 1:
        raise section.error("size", resize["size"], "it must be positive")
    resize["pad"] = section.get("pad", bool)
    reason = check_resize(eval_resize(resize, input_size=tuple(takes)))
    if reason:
        raise section.error("size", resize["size"], reason)
    return resize


def eval_resize(resize: dict[str, Any], **more: Any) -> EvalResize:
    """The manifest's ``{rule, size, pad}`` as a resize rule."""
    size = resize.get("size") or ()
    return EvalResize(resize["rule"], (size,) if isinstance(size, int) else tuple(size), pad=resize["pad"], **more)


def _read_output(section: _Section) -> OutputSpec:
    kind = section.get("type", str, ("argmax", "logits"))
    dtype = section.get("dtype", str, ("uint8", "int32") if kind == "argmax" else ("float32", "float16"))
    shape = section.numbers("shape", 3 if kind == "argmax" else 4, int)
    output = OutputSpec(name=section.get("name", str), type=kind, dtype=dtype, shape=shape)
    if section.content.get("confidence") is None:
        return output
    confidence, temperature = section.get("confidence", str), section.get("temperature", (int, float))
    if kind != "argmax" or confidence == output.name:
        raise section.error("confidence", confidence, "it must be a second output beside class ids (argmax)")
    if temperature <= 0:
        raise section.error("temperature", temperature, "it must be above 0")
    return replace(output, confidence=confidence, temperature=temperature)


def _read_dataset(section: _Section) -> DatasetSpec:
    classes = section.get("classes", list)
    if not classes or len(classes) > 255 or not all(_is_text(name) for name in classes):
        raise section.error("classes", classes, "it must be a list of 1 to 255 names")
    palette = section.get("palette", list)
    if len(palette) != len(classes) or not all(_is_colour(entry) for entry in palette):
        rule = f"it must hold {len(classes)} colours [r, g, b] of 0..255"
        raise section.error("palette", f"{len(palette)} entries", rule)
    label_ids = None
    if section.content.get("label_ids") is not None:
        label_ids = section.numbers("label_ids", len(classes), int)
        if min(label_ids) < 0 or max(label_ids) > 255:
            raise section.error("label_ids", list(label_ids), "the values must be 0..255")
    ignore_id = section.get("ignore_id", int)
    if not 0 <= ignore_id <= 255:
        raise section.error("ignore_id", ignore_id, "it must be 0..255")
    return DatasetSpec(name=section.get("name", str), classes=tuple(classes), palette=tuple(tuple(c) for c in palette),
                       ignore_id=ignore_id, label_ids=label_ids, label_map=_read_label_map(section))


def _read_label_map(section: _Section) -> dict[int, int] | None:
    if section.content.get("label_map") is None:
        return None
    mapping = section.get("label_map", dict)
    if not all(_is_byte(value) for pair in mapping.items() for value in pair):
        raise section.error("label_map", mapping, "it must map label values 0..255 to train ids 0..255")
    return mapping


def _is_colour(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and all(_is_byte(value) for value in entry)


def _is_text(value: Any) -> bool:
    # "\ud800" would be a character that UTF-8 has not.
    return isinstance(value, str) and bool(re.fullmatch("[^\x00-\x1f\ud800-\udfff]+", value))


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_batch(value: int) -> bool:
    return value == -1 or 1 <= value <= _LARGEST_BATCH


def _read_model_file(section: _Section) -> ModelFile:
    content = section.mapping()
    known = {"format": section.get("format", str, FORMATS), "file": section.file("file"),
             "batch": section.get("batch", int), "sha256": section.get("sha256", str)}
    if not _is_batch(known["batch"]):
        raise section.error("batch", known["batch"], f"it must be positive (at most {_LARGEST_BATCH}) or -1")
    if not re.fullmatch("[0-9a-f]{64}", known["sha256"]):
        raise section.error("sha256", known["sha256"], "it must be 64 lower-case hexadecimal digits")
    if "batches" in content:
        sizes = section.numbers("batches", None, int)
        if not sizes or not all(1 <= size <= _LARGEST_BATCH for size in sizes):
            raise section.error("batches", list(sizes), f"it must list batch sizes of 1 to {_LARGEST_BATCH}")
    extra = {key: value for key, value in content.items() if key not in known}
    return ModelFile(**known, extra=extra)


def _read_ascend(root: _Section) -> dict[str, Any]:
    if "ascend" not in root.content:
        return {}
    section = root.section("ascend")
    if "fusion_switch" in section.content:
        section.file("fusion_switch")
    return section.mapping()


def _check_classes(root: _Section, manifest: Manifest) -> None:
    """The network may have one channel more than there are classes: void, which is never predicted."""
    channels, classes = manifest.model["num_classes"], manifest.num_classes
    if channels not in (classes, classes + 1):
        raise root.error("model.num_classes", channels, f"dataset.classes has {classes} names (one more is void)")


def _check_shapes(root: _Section, manifest: Manifest) -> None:
    """The output has the input's batch and size, and as many channels as there are classes."""
    spec, shape = manifest.input, manifest.output.shape
    if shape[0] != spec.batch:
        raise root.error("output.shape", list(shape), f"its batch must be the input's, {spec.batch}")
    if tuple(shape[-2:]) != spec.size:
        raise root.error("output.shape", list(shape), f"its size must be the input's, {list(spec.size)}")
    if manifest.output.type == "logits" and shape[1] != manifest.num_classes:
        raise root.error("output.shape", list(shape), f"it must have {manifest.num_classes} channels, one a class")
    for key, sides, item_bytes in (("input", spec.shape, 1 if spec.dtype == "uint8" else 4), ("output", shape, 4)):
        if abs(math.prod(sides)) * item_bytes > _LARGEST_TENSOR:
            raise root.error(f"{key}.shape", list(sides), "a tensor must not be over 16 GiB")


def _plain(value: Any) -> Any:
    """Turns tuples into lists and paths into text, all the way down, for ``yaml.safe_dump``."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
