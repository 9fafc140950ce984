"""From a checkpoint to a deployable folder: model files, ``deploy.yaml`` and the proof that they agree."""
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindseg.checkpoint import load_network
from mindseg.data.datasets import UNMAPPED, DatasetInfo, dataset_info
from mindseg.data.transforms import normalize
from mindseg.deploy import onnx_graph
from mindseg.errors import ConfigError, UserError, first_line
from mindseg.files import file_sha256, write_text
from mindseg.manifest import (
    MANIFEST_NAME,
    DatasetSpec,
    InputSpec,
    Manifest,
    ManifestError,
    ModelFile,
    OutputSpec,
    eval_resize,
    load_manifest,
    save_manifest,
)
from mindseg.resize import check_resize
from mindseg.version import __version__

FORMATS = ("MINDIR", "ONNX", "AIR")
REPORT_NAME = "export.json"
INPUT_NAME, OUTPUT_NAME = "image", "segmentation"
# float32 sums in another order: the largest difference accepted, as a share of the largest logit.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportOptions:
    """What is exported.

    Attributes:
        size: Height and width of the input in pixels.
        batch: Batch size, -1 for a dynamic one.
        stem: File name without suffix.
        opset: ONNX opset, 11 to 17.
        normalize_in_graph: The model takes uint8 NHWC pixels and normalises them.
        output_type: ``argmax`` or ``logits``.
        resize_op: The ONNX form of a resize: ``matmul`` or ``resize``.
    """
    size: tuple[int, int]
    batch: int
    stem: str
    opset: int
    normalize_in_graph: bool
    output_type: str
    resize_op: str = "matmul"


class DeployCell(nn.Cell):
    """The network with what a deployed model has around it: normalisation before, class choice behind.

    Args:
        network: (N,3,H,W) float32 -> logits (N,C,H,W).
        num_classes: Channels that are kept; a void channel behind them is never predicted.
        argmax: Give uint8 class ids (N,H,W) instead of logits.
        pixel_mean: (3,) in 0..255 if the input is uint8 (N,H,W,3) pixels, else ``None``.
        pixel_std: (3,) in 0..255, with ``pixel_mean``.
    """

    def __init__(self, network: nn.Cell, num_classes: int, argmax: bool, pixel_mean: np.ndarray | None = None,
                 pixel_std: np.ndarray | None = None) -> None:
        super().__init__(auto_prefix=False)  # the network's parameters keep their names
        self.network = network
        self.num_classes = num_classes
        self.argmax = argmax
        self.normalize = pixel_mean is not None
        if self.normalize:
            self.pixel_mean = Tensor(np.asarray(pixel_mean, np.float32).reshape(1, 3, 1, 1))
            self.pixel_scale = Tensor((1 / np.asarray(pixel_std, np.float64)).astype(np.float32).reshape(1, 3, 1, 1))

    def construct(self, image: Tensor) -> Tensor:
        x = image
        if self.normalize:
            x = (ops.cast(ops.transpose(image, (0, 3, 1, 2)), ms.float32) - self.pixel_mean) * self.pixel_scale
        logits = self.network(x)
        if logits.shape[1] != self.num_classes:
            logits = logits[:, :self.num_classes]
        if self.argmax:
            return ops.cast(ops.argmax(logits, 1), ms.uint8)
        return logits


def export(cfg: dict, ckpt_path: str | Path, formats: Sequence[str], output_dir: str | Path,
           output_type: str | None = None) -> Manifest:
    """Exports a checkpoint, compares every file with it, and writes ``deploy.yaml`` and ``export.json``.

    Files are written aside and moved when all is well, the manifest last. An earlier export of the same checkpoint with
    another batch size stays listed. AIR is refused off Ascend, after the other formats have been written.

    Args:
        cfg: Resolved configuration.
        ckpt_path: Checkpoint file.
        formats: Of ``MINDIR``, ``ONNX``, ``AIR``.
        output_dir: Folder, made if need be.
        output_type: ``argmax`` or ``logits``; ``None`` takes ``export.output_type``.

    Raises:
        UserError: AIR off Ascend, a file that cannot be written, or a model that does not agree with the checkpoint.
    """
    network = load_network(cfg, ckpt_path)
    source = {"checkpoint": Path(ckpt_path).name, "checkpoint_sha256": file_sha256(Path(ckpt_path))}
    return export_network(network, cfg, source, formats, output_dir, output_type)


def export_network(network: nn.Cell, cfg: dict, source: dict[str, str], formats: Sequence[str],
                   output_dir: str | Path, output_type: str | None = None) -> Manifest:
    """:func:`export` for a network in memory; ``source`` goes into the manifest as it is."""
    wanted, refused = _split_formats(formats)
    if not wanted:
        raise UserError(refused)
    options = resolve_options(cfg, output_type)
    info = dataset_info(cfg.data)
    output = Path(output_dir)
    manifest = describe(cfg, info, options, source, output / MANIFEST_NAME)
    pixels, reference = _reference(network, manifest)
    report = {}
    staging = _make_staging(output)
    try:
        entries = []
        for fmt in wanted:
            path = staging / f"{options.stem}.{fmt.lower()}"
            write = _write_onnx if fmt == "ONNX" else _write_mindspore
            figures = write(network, manifest, options, path, pixels, reference)
            report[fmt.lower()] = figures
            entries.append(ModelFile(fmt.lower(), path.name, options.batch, file_sha256(path)))
            print(f"{output / path.name}: {_format_figures(figures)}", flush=True)
        manifest = _with_earlier(replace(manifest, models=tuple(entries)))
        _publish(staging, output, [entry.file for entry in entries])
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); free space or choose another folder"
                        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    write_text(output / REPORT_NAME, json.dumps(_report(manifest, options, report), indent=2) + "\n")
    print(f"{save_manifest(manifest)}: input {list(manifest.input.shape)} {manifest.input.dtype}, "
          f"output {list(manifest.output.shape)} {manifest.output.dtype}", flush=True)
    if refused:
        raise UserError(f"{refused}; the other formats are in {output}")
    return manifest


def resolve_options(cfg: dict, output_type: str | None = None) -> ExportOptions:
    """Reads section ``export`` and fills what it leaves open.

    Raises:
        ConfigError: Only one of height and width is given, or a value is out of range.
    """
    e = cfg.export
    if (e.height is None) != (e.width is None):
        raise ConfigError(f"export.height = {e.height} and export.width = {e.width}: set both or neither")
    size = (e.height, e.width) if e.height is not None else _evaluation_size(cfg)
    if min(size) < 32:
        raise ConfigError(f"export.height, export.width = {list(size)} must be at least 32")
    batch = e.batch_size if e.batch_size > 0 else -1
    suffix = {1: "", -1: "_dynamic"}.get(batch, f"_bs{batch}")
    options = ExportOptions(size=tuple(size), batch=batch, stem=e.file_name or f"{cfg.model.name}{suffix}",
                            opset=e.opset, normalize_in_graph=e.normalize_in_graph,
                            output_type=output_type or e.output_type, resize_op=e.resize_op)
    resize = _resize_rule(cfg, options)
    if check_resize(eval_resize(resize, input_size=options.size)):
        raise ConfigError(f"export.height, export.width = {list(size)} cannot hold an image resized by eval.resize = "
                          f"{{rule: {resize['rule']}, size: {resize['size']}}}; change one of them")
    return options


def _evaluation_size(cfg: dict) -> Sequence[int]:
    resize = cfg.eval.get("resize") or {}
    size = resize.get("size")
    if resize.get("rule", "none") == "exact" and size:
        return size
    if resize.get("rule") == "long_side" and size:
        return [size, size] if isinstance(size, int) else [size[0], size[-1]]
    return cfg.data.resize or cfg.data.crop_size


def describe(cfg: dict, info: DatasetInfo, options: ExportOptions, source: dict[str, str], path: Path) -> Manifest:
    """Builds the manifest of an export, still without model files."""
    d, (height, width), n = cfg.data, options.size, options.batch
    in_graph, argmax = options.normalize_in_graph, options.output_type == "argmax"
    spec = InputSpec(
        name=INPUT_NAME, shape=(n, height, width, 3) if in_graph else (n, 3, height, width),
        layout="NHWC" if in_graph else "NCHW", dtype="uint8" if in_graph else "float32", color_order=d.color_order,
        normalize="graph" if in_graph else "host", value_range=d.value_range, mean=tuple(d.mean), std=tuple(d.std),
        resize=_resize_rule(cfg, options), pad_value=tuple(round(m * 255 / d.value_range) for m in d.mean))
    classes = len(info.classes)
    output = OutputSpec(name=OUTPUT_NAME, type=options.output_type, dtype="uint8" if argmax else "float32",
                        shape=(n, height, width) if argmax else (n, classes, height, width))
    dataset = DatasetSpec(name=info.name, classes=tuple(info.classes), palette=tuple(tuple(c) for c in info.palette),
                          ignore_id=info.ignore_id, label_ids=info.train_to_id,
                          label_map=_label_map(info))
    model = {key: value for key, value in cfg.model.items() if value is not None and key != "pretrained_part"}
    versions = {"project": __version__, "mindspore": ms.__version__, "onnx": onnx.__version__}
    return Manifest(model=model, input=spec, output=output, dataset=dataset, source=source, versions=versions,
                    models=(), path=path)


def _label_map(info: DatasetInfo) -> dict[int, int] | None:
    """A list data set's own label values; the other data sets are known by name."""
    if info.name != "list":
        return None
    return {value: int(train_id) for value, train_id in enumerate(info.label_lut()) if train_id != UNMAPPED}


def _resize_rule(cfg: dict, options: ExportOptions) -> dict[str, Any]:
    """A model has one input size, so an image of any other is resized to it, or by its side and padded."""
    resize = cfg.eval.get("resize") or {}
    rule, size = resize.get("rule", "none"), resize.get("size")
    # What a centre crop leaves out would have no class; the whole image is shown to the model instead.
    if rule in ("short_side", "long_side") and not resize.get("center_crop"):
        size = size[0] if isinstance(size, list) and len(size) == 1 else size
        return {"rule": rule, "size": size, "pad": True}
    return {"rule": "exact", "size": list(options.size), "pad": False}


def _split_formats(formats: Sequence[str]) -> tuple[list[str], str]:
    """Returns the formats that can be written here, and why AIR cannot (empty if it can, or was not asked for)."""
    wanted = list(dict.fromkeys(fmt.upper() for fmt in formats))
    unknown = [fmt for fmt in wanted if fmt not in FORMATS]
    if unknown or not wanted:
        raise UserError(f"--file_format {' '.join(unknown) or '(empty)'}: must be of {', '.join(FORMATS)}")
    if "AIR" in wanted and ms.get_context("device_target") != "Ascend":
        wanted.remove("AIR")
        return wanted, ("--file_format AIR: MindSpore writes AIR only on an Ascend device; export ONNX and convert it "
                        "with scripts/convert_om.sh, or export MINDIR for MindSpore Lite")
    return wanted, ""


def _make_staging(output: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".export-", dir=output))
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from error


def _publish(staging: Path, output: Path, files: Sequence[str]) -> None:
    # The old manifest describes files that are about to be replaced: no manifest is better than a wrong one.
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for name in files:
        os.replace(staging / name, output / name)


def _with_earlier(manifest: Manifest) -> Manifest:
    """Adds what the manifest that stood here before says of the same model: other formats or batches, ``ascend``."""
    try:
        old = load_manifest(manifest.path)
    except ManifestError:
        return manifest

    def identity(item: Manifest) -> dict:
        content = item.to_dict()
        for part in ("input", "output"):
            content[part]["shape"] = content[part]["shape"][1:]
        return {key: content[key] for key in ("model", "input", "output", "dataset", "source")}

    if identity(old) != identity(manifest):
        return manifest
    entries = manifest.models
    replaced = {entry.file for entry in entries} | {(entry.format, entry.batch) for entry in entries}
    kept = [entry for entry in old.models if entry.file not in replaced and (entry.format, entry.batch) not in replaced
            and (old.path.parent / entry.file).is_file()]
    return replace(manifest, models=(*entries, *kept), ascend=old.ascend)


def _reference(network: nn.Cell, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """A batch of pixels (N,H,W,3) uint8, and the checkpoint's own logits (N,C,H,W) for it."""
    height, width = manifest.input.size
    count = manifest.input.batch if manifest.input.batch > 0 else 2
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, max(height // 16, 2), max(width // 16, 2), 3), np.uint8)
    noise = rng.integers(-24, 25, (count, height, width, 3))
    blobs = np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in coarse])
    pixels = np.clip(blobs.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    plain = DeployCell(network, manifest.num_classes, argmax=False)
    plain.set_train(False)
    return pixels, plain(Tensor(host_input(pixels, manifest))).asnumpy()


def host_input(pixels: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Normalises a batch (N,H,W,3) uint8 on the host: (N,3,H,W) float32."""
    spec = manifest.input
    return np.stack([normalize(image, spec.mean, spec.std, spec.value_range) for image in pixels])


def pixel_statistics(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std in pixel units 0..255, whatever scale the configuration uses."""
    factor = 255 / manifest.input.value_range
    return np.asarray(manifest.input.mean) * factor, np.asarray(manifest.input.std) * factor


def _write_mindspore(network: nn.Cell, manifest: Manifest, options: ExportOptions, path: Path, pixels: np.ndarray,
                     reference: np.ndarray) -> dict[str, Any]:
    """Writes MINDIR or AIR; MINDIR is loaded back and compared."""
    statistics = pixel_statistics(manifest) if options.normalize_in_graph else ()
    cell = DeployCell(network, manifest.num_classes, options.output_type == "argmax", *statistics)
    cell.set_train(False)
    feed = pixels if options.normalize_in_graph else host_input(pixels, manifest)
    shape = (None, *feed.shape[1:]) if options.batch < 0 else feed.shape
    example = Tensor(shape=shape, dtype=ms.uint8 if options.normalize_in_graph else ms.float32) \
        if options.batch < 0 else Tensor(feed)
    fmt = "AIR" if path.suffix == ".air" else "MINDIR"
    _export_aside(cell, example, path, fmt)
    if fmt == "AIR":
        return {"compared": False}
    loaded = nn.GraphCell(ms.load(str(path)))
    return _compare(f"{path.name}", loaded(Tensor(feed)).asnumpy(), reference, manifest)


def _export_aside(cell: nn.Cell, example: Tensor, path: Path, fmt: str) -> None:
    """``mindspore.export`` to the system's temporary folder, then moved: it refuses paths with spaces or accents."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            ms.export(cell, example, file_name=str(Path(folder) / "model"), file_format=fmt)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"MindSpore {ms.__version__} cannot export this network as {fmt} ({first_line(error)}); "
                            "export another format, and report the network") from error
        written = Path(folder) / f"model.{fmt.lower()}"
        written.chmod(0o644)  # MindSpore writes 0400
        shutil.move(written, path)


def _write_onnx(network: nn.Cell, manifest: Manifest, options: ExportOptions, path: Path, pixels: np.ndarray,
                reference: np.ndarray) -> dict[str, Any]:
    """Writes a checked ONNX file; its logits and its answer are compared in onnxruntime."""
    plain = DeployCell(network, manifest.num_classes, argmax=False)
    plain.set_train(False)
    batch = 1 if options.batch < 0 else options.batch
    example = Tensor(np.zeros((batch, 3, *options.size), np.float32))
    _export_aside(plain, example, path, "ONNX")
    model = onnx.load(path)
    onnx_graph.rename_tensors(model, {model.graph.input[0].name: INPUT_NAME, model.graph.output[0].name: OUTPUT_NAME})
    onnx_graph.repair_transposed_convs(model)
    folds = {"constants": onnx_graph.fold_constants(model), "batch_norms": onnx_graph.fold_batch_norm(model),
             "paddings": onnx_graph.rewrite_constant_concat(model),
             "pool_paddings": onnx_graph.fold_pool_padding(model), "prelus": onnx_graph.rewrite_prelu(model)}
    if options.resize_op == "resize":
        folds["resizes"] = onnx_graph.rewrite_resize(model)
    model = onnx_graph.convert_opset(model, options.opset)
    if options.batch < 0:
        onnx_graph.set_dynamic_batch(model)
    model = onnx_graph.check_graph(model)
    floats = host_input(pixels, manifest)
    figures = _compare(f"{path.name} (logits)", _run_onnx(model, floats), reference, manifest)
    if options.output_type == "argmax":
        onnx_graph.append_argmax(model)
    if options.normalize_in_graph:
        onnx_graph.prepend_normalisation(model, *pixel_statistics(manifest))
    onnx_graph.set_origin(model, ms.__version__, {"project": __version__, **manifest.source})
    model = onnx_graph.check_graph(model)
    answer = _run_onnx(model, pixels if options.normalize_in_graph else floats)
    figures.update(_compare(path.name, answer, reference, manifest), opset=options.opset, nodes=len(model.graph.node),
                   folded=folds)
    onnx.save(model, path)
    return figures


def _run_onnx(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {INPUT_NAME: feed})[0]
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise UserError(f"onnxruntime cannot run the exported graph on a batch of {len(feed)} ({first_line(error)}); "
                        "try a fixed export.batch_size or another export.opset") from error


def _compare(what: str, answer: np.ndarray, reference: np.ndarray, manifest: Manifest) -> dict[str, Any]:
    """Compares logits or ids with the checkpoint's logits (N,C,H,W).

    For ids the figure is the largest loss of logit where another class was chosen: 0 if all agree, tiny at near-ties.

    Raises:
        UserError: The difference is larger than float32 rounding explains.
    """
    if len(answer) != len(reference) or answer.shape[-2:] != reference.shape[-2:]:
        raise UserError(f"{what}: answers {len(reference)} images of {reference.shape[-2:]} with an array of "
                        f"{answer.shape}; nothing was written: report the network")
    limit = TOLERANCE * max(1.0, float(np.abs(reference).max()))
    if answer.ndim == 4:
        difference = float(np.abs(answer - reference).max())
        figures = {"logits_max_abs_diff": difference, "logits_max_abs": float(np.abs(reference).max())}
    else:
        chosen = np.take_along_axis(reference, answer[:, None].astype(np.int64), 1)[:, 0]
        difference = float((reference.max(1) - chosen).max())
        figures = {"ids_agreement": float((answer == reference.argmax(1)).mean()), "ids_max_logit_loss": difference}
    if not difference <= limit:
        raise UserError(f"{what}: differs from the checkpoint by {difference:.3g} (at most {limit:.3g} is accepted); "
                        "nothing was written: try another export.opset or export.resize_op, and report the network")
    return figures


def _format_figures(figures: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(f"{key}={number}" for key, number in value.items())
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{key} {text(value)}" for key, value in figures.items())


def _report(manifest: Manifest, options: ExportOptions, figures: dict[str, Any]) -> dict[str, Any]:
    """Content of ``export.json``: comparison figures and what travels between host and device for one image."""
    item = {"uint8": 1, "float32": 4}
    sizes = {part: int(np.prod(getattr(manifest, part).shape[1:])) * item[getattr(manifest, part).dtype]
             for part in ("input", "output")}
    return {"checkpoint": manifest.source, "versions": manifest.versions, "size": list(options.size),
            "batch": options.batch, "output_type": options.output_type, "comparison": figures,
            "bytes_per_image": sizes}
