"""From a checkpoint to a deployable folder: model files, ``deploy.yaml`` and the proof that they agree."""
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# MindSpore before onnx: the protobuf files of 2.7 cannot be loaded behind onnx's.
import mindspore as ms
from mindspore import Tensor, nn

# isort: split
import cv2
import numpy as np
import onnx
import onnxruntime as ort

from mindseg.checkpoint import load_network, read_checkpoint
from mindseg.compat import device_target
from mindseg.data.datasets import dataset_info
from mindseg.data.transforms import normalize
from mindseg.deploy import onnx_graph
from mindseg.deploy.export_folder import open_folder, staging
from mindseg.deploy.onnx_simplify import simplify
from mindseg.errors import ConfigError, UserError, first_line, shorten
from mindseg.files import file_sha256, write_json
from mindseg.inference.network import Forward, ForwardWithConfidence
from mindseg.manifest import (
    MANIFEST_NAME,
    DatasetSpec,
    InputSpec,
    Manifest,
    ManifestError,
    ModelFile,
    OutputSpec,
    load_manifest,
    save_manifest,
)
from mindseg.models.normalize import Normalize
from mindseg.outputs import output_path
from mindseg.resize import check_resize
from mindseg.version import __version__

FORMATS = ("MINDIR", "ONNX", "AIR")
REPORT_NAME = "export.json"
INPUT_NAME, OUTPUT_NAME, CONFIDENCE_NAME = "image", "segmentation", "confidence"
# Largest difference accepted, as a share of the largest logit: float32 sums in another order.
TOLERANCE = 1e-4


def export(cfg: dict, ckpt_path: str | Path, formats: Sequence[str], output_dir: str | Path,
           output_type: str | None = None, overwrite: bool = False) -> Manifest:
    """Exports a checkpoint, compares every file with it, and writes ``deploy.yaml`` and ``export.json``.

    Files are written aside and moved when all is well, the manifest last. An earlier export of the same checkpoint with
    another batch size stays listed. AIR is refused off Ascend, after the other formats have been written.

    Args:
        cfg: Resolved configuration.
        ckpt_path: Checkpoint file; a temperature in it is built into the output of ``export.confidence``.
        formats: Of ``MINDIR``, ``ONNX``, ``AIR``.
        output_dir: Folder, made if need be.
        output_type: ``argmax`` or ``logits``; ``None`` takes ``export.output_type``.
        overwrite: Replace files that this program did not write.

    Raises:
        UserError: AIR off Ascend, a file that cannot be written, or a model that does not agree with the checkpoint.
    """
    model_name(cfg)     # a wrong name is refused before the work
    network = load_network(cfg, ckpt_path)
    source = {"checkpoint": Path(ckpt_path).name, "checkpoint_sha256": file_sha256(Path(ckpt_path))}
    temperature = read_checkpoint(ckpt_path)[1].get("temperature", 1.0) if cfg.export.confidence else 1.0
    return export_network(network, cfg, source, formats, output_dir, output_type, overwrite, temperature)


def export_network(network: nn.Cell, cfg: dict, source: dict[str, str], formats: Sequence[str],
                   output_dir: str | Path, output_type: str | None = None, overwrite: bool = False,
                   temperature: float = 1.0) -> Manifest:
    """Exports a network in memory, see :func:`export`.

    Args:
        network: (N, 3, H, W) float32 -> logits (N, C, H, W), in evaluation mode.
        cfg: Resolved configuration.
        source: Section ``source`` of the manifest.
        formats: Of ``MINDIR``, ``ONNX``, ``AIR``.
        output_dir: Folder, made if need be.
        output_type: ``argmax`` or ``logits``; ``None`` takes ``export.output_type``.
        overwrite: Replace files that this program did not write.
        temperature: Divisor of the logits for ``export.confidence``.
    """
    writable, refused = _split_formats(formats)
    if not writable:
        raise UserError(refused)
    output = Path(output_dir)
    manifest = describe(cfg, source, output / MANIFEST_NAME, output_type, temperature)
    stem = model_name(cfg)
    files = [f"{stem}.{fmt.lower()}" for fmt in writable]
    with open_folder(output, overwrite) as folder, staging(folder, [*files, REPORT_NAME, MANIFEST_NAME]) as place:
        manifest = _write_files(network, cfg, manifest, [place / name for name in files])
    print(f"{manifest.path}: input {list(manifest.input.shape)} {manifest.input.dtype}, "
          f"output {list(manifest.output.shape)} {manifest.output.dtype}", flush=True)
    if refused:
        raise UserError(f"{refused}; the other formats are in {output}")
    return manifest


def model_name(cfg: dict) -> str:
    """File name of the model without suffix: ``export.file_name``, or the network's with the batch size.

    Raises:
        UserError: ``export.file_name`` is no name for a file in the output folder.
    """
    name, batch = cfg.export.file_name, cfg.export.batch_size
    if not name:
        return cfg.model.name + {1: "", 0: "_dynamic"}.get(batch, f"_bs{batch}")
    output_path(".", name, "export.file_name")
    if "/" in name or len(os.fsencode(name)) > 200:
        raise UserError(f"export.file_name = {shorten(name)} must be a name of at most 200 bytes, without a folder; "
                        "choose the folder with --output")
    return name


def _write_files(network: nn.Cell, cfg: dict, manifest: Manifest, paths: Sequence[Path]) -> Manifest:
    """Writes model files, report and manifest into the folder of the paths; returns the manifest."""
    feed, reference = _reference(network, manifest)
    figures, entries = {}, []
    for path in paths:
        fmt = path.suffix[1:]
        if fmt == "onnx":
            figures[fmt] = _write_onnx(network, manifest, cfg.export, path, feed, reference)
        else:
            figures[fmt] = _write_mindspore(network, manifest, path, feed, reference)
        entries.append(ModelFile(fmt, path.name, manifest.input.batch, file_sha256(path)))
        print(f"{manifest.path.parent / path.name}: " + ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in figures[fmt].items()), flush=True)
    manifest = _with_earlier(replace(manifest, models=tuple(entries)))
    write_json(path.with_name(REPORT_NAME), _report(manifest, figures))
    save_manifest(replace(manifest, path=path.with_name(MANIFEST_NAME)))
    return manifest


def describe(cfg: dict, source: dict[str, str], path: Path, output_type: str | None = None,
             temperature: float = 1.0) -> Manifest:
    """Builds the manifest of an export, still without model files.

    Args:
        cfg: Resolved configuration.
        source: Section ``source`` of the manifest.
        path: Place of the manifest.
        output_type: ``argmax`` or ``logits``; ``None`` takes ``export.output_type``.
        temperature: Divisor of the logits for ``export.confidence``.

    Raises:
        ConfigError: Only one of height and width is given, the size is too small for the resize rule, or logits are to
            have a confidence.
    """
    d, e, info = cfg.data, cfg.export, dataset_info(cfg.data)
    height, width = _input_size(cfg)
    n = e.batch_size if e.batch_size > 0 else -1
    in_graph, kind, classes = e.normalize_in_graph, output_type or e.output_type, len(info.classes)
    spec = InputSpec(
        name=INPUT_NAME, shape=(n, height, width, 3) if in_graph else (n, 3, height, width),
        layout="NHWC" if in_graph else "NCHW", dtype="uint8" if in_graph else "float32", color_order=d.color_order,
        normalize="graph" if in_graph else "host", value_range=d.value_range, mean=tuple(d.mean), std=tuple(d.std),
        resize=_resize_rule(cfg, (height, width)), pad_value=tuple(round(m * 255 / d.value_range) for m in d.mean))
    if check_resize(spec.eval_resize):
        raise ConfigError(f"export.height, export.width = {[height, width]} cannot hold an image resized by eval.resize"
                          f" = {{rule: {spec.resize['rule']}, size: {spec.resize['size']}}}; change one of them")
    if kind == "argmax":
        output = OutputSpec(name=OUTPUT_NAME, type=kind, dtype="uint8", shape=(n, height, width))
        if e.confidence:
            output = replace(output, confidence=CONFIDENCE_NAME, temperature=temperature)
    elif e.confidence:
        raise ConfigError("export.confidence = true needs class ids, not logits: choose --output_type argmax or leave "
                          "export.confidence out")
    else:
        output = OutputSpec(name=OUTPUT_NAME, type=kind, dtype="float32", shape=(n, classes, height, width))
    dataset = DatasetSpec(name=info.name, classes=tuple(info.classes), palette=tuple(tuple(c) for c in info.palette),
                          ignore_id=info.ignore_id, label_ids=info.train_to_id, label_map=info.label_map)
    model = {key: value for key, value in cfg.model.items() if value is not None and key != "pretrained_part"}
    versions = {"project": __version__, "mindspore": ms.__version__, "onnx": onnx.__version__}
    return Manifest(model=model, input=spec, output=output, dataset=dataset, source=source, versions=versions,
                    models=(), path=path)


def _input_size(cfg: dict) -> tuple[int, int]:
    """Height and width of section ``export``, else those of evaluation."""
    e, resize = cfg.export, cfg.eval.get("resize") or {}
    rule, size = resize.get("rule"), resize.get("size")
    if (e.height is None) != (e.width is None):
        raise ConfigError(f"export.height = {e.height} and export.width = {e.width}: set both or neither")
    if e.height is not None:
        size = (e.height, e.width)
    elif rule == "long_side" and size:
        size = (size, size) if isinstance(size, int) else (size[0], size[-1])
    elif rule != "exact" or not size:
        size = cfg.data.resize or cfg.data.crop_size
    if min(size) < 32:
        raise ConfigError(f"export.height, export.width = {list(size)} must be at least 32")
    return tuple(size)


def _resize_rule(cfg: dict, model_size: tuple[int, int]) -> dict[str, Any]:
    """The manifest's resize rule: a model has one input size, so other images are resized to it, or padded."""
    resize = cfg.eval.get("resize") or {}
    rule, size = resize.get("rule", "none"), resize.get("size")
    # What a centre crop leaves out would have no class; the whole image is shown to the model instead.
    if rule in ("short_side", "long_side") and not resize.get("center_crop"):
        size = size[0] if isinstance(size, list) and len(size) == 1 else size
        return {"rule": rule, "size": size, "pad": True}
    return {"rule": "exact", "size": list(model_size), "pad": False}


def _split_formats(formats: Sequence[str]) -> tuple[list[str], str]:
    """Returns the formats that can be written here, and why AIR cannot (empty if it can, or was not asked for)."""
    names = list(dict.fromkeys(fmt.upper() for fmt in formats))
    unknown = [fmt for fmt in names if fmt not in FORMATS]
    if unknown or not names:
        raise UserError(f"--file_format {' '.join(unknown) or '(empty)'}: must be of {', '.join(FORMATS)}")
    if "AIR" in names and device_target() != "Ascend":
        names.remove("AIR")
        return names, ("--file_format AIR: MindSpore writes AIR only on an Ascend device; export ONNX and convert it "
                        "with scripts/convert_om.sh, or export MINDIR for MindSpore Lite")
    return names, ""


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
    """A batch of random images in the model's input form, and the checkpoint's own logits (N, C, H, W) for it."""
    spec = manifest.input
    height, width = spec.size
    count = spec.batch if spec.batch > 0 else 2
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, max(height // 16, 2), max(width // 16, 2), 3), np.uint8)
    noise = rng.integers(-24, 25, (count, height, width, 3))
    blobs = np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in coarse])
    pixels = np.clip(blobs.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    normalized = np.stack([normalize(image, spec.mean, spec.std, spec.value_range) for image in pixels])
    plain = Forward(network, None, manifest.num_classes, ids=False).set_train(False)
    return pixels if spec.normalize == "graph" else normalized, plain(Tensor(normalized)).asnumpy()


def _forward(network: nn.Cell, manifest: Manifest, ids: bool) -> nn.Cell:
    """The network with what the manifest puts around it."""
    spec = manifest.input
    norm = Normalize(spec.mean, spec.std, spec.value_range) if spec.normalize == "graph" else None
    if ids and manifest.output.confidence:
        to_logits = Forward(network, norm, manifest.num_classes, ids=False)
        return ForwardWithConfidence(to_logits, manifest.output.temperature).set_train(False)
    return Forward(network, norm, manifest.num_classes, ids).set_train(False)


def _write_mindspore(network: nn.Cell, manifest: Manifest, path: Path, feed: np.ndarray,
                     reference: np.ndarray) -> dict[str, Any]:
    """Writes MINDIR or AIR; MINDIR is loaded back and compared."""
    cell = _forward(network, manifest, ids=manifest.output.type == "argmax")
    example = Tensor(feed)
    if manifest.input.batch < 0:
        example = Tensor(shape=(None, *feed.shape[1:]), dtype=example.dtype)
    _export_aside(cell, [example], path)
    if path.suffix == ".air":
        return {"compared": False}
    answer = nn.GraphCell(ms.load(str(path)))(Tensor(feed))
    outputs = [part.asnumpy() for part in (answer if isinstance(answer, tuple) else (answer,))]
    return _compare_outputs(path.name, outputs, reference, manifest.output)


def _export_aside(cell: nn.Cell, examples: Sequence[Tensor], path: Path) -> None:
    """``mindspore.export`` to the system's temporary folder, then moved: it refuses paths with spaces or accents."""
    fmt = path.suffix[1:].upper()
    with tempfile.TemporaryDirectory() as folder:
        try:
            ms.export(cell, *examples, file_name=str(Path(folder) / "model"), file_format=fmt)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"MindSpore {ms.__version__} cannot export this network as {fmt} ({first_line(error)}); "
                            "export another format, and report the network") from error
        written = Path(folder) / f"model{path.suffix}"
        written.chmod(0o644)  # MindSpore writes 0400
        shutil.move(written, path)


def _write_onnx(network: nn.Cell, manifest: Manifest, settings: dict, path: Path, feed: np.ndarray,
                reference: np.ndarray) -> dict[str, Any]:
    """Writes a checked ONNX file; its logits and its answer are compared in onnxruntime."""
    batch = max(manifest.input.batch, 1)
    model = to_onnx(_forward(network, manifest, ids=False), [Tensor(feed[:batch])], settings)
    if manifest.input.batch < 0:
        onnx_graph.set_dynamic_batch(model)
    model = onnx_graph.check_graph(model)
    figures = _compare(f"{path.name} (logits)", _run_onnx(model, feed)[0], reference)
    if manifest.output.type == "argmax":
        if manifest.output.confidence:
            onnx_graph.append_confidence(model, manifest.output.confidence, manifest.output.temperature)
        model = onnx_graph.check_graph(onnx_graph.append_argmax(model))
        figures |= _compare_outputs(path.name, _run_onnx(model, feed), reference, manifest.output)
    onnx_graph.set_origin(model, ms.__version__, {"project": __version__, **manifest.source})
    onnx.save(model, path)
    return {**figures, "opset": settings.opset, "nodes": len(model.graph.node)}


def to_onnx(cell: nn.Cell, examples: Sequence[Tensor], settings: dict) -> onnx.ModelProto:
    """Exports a cell that gives logits as an ONNX graph, which is not compared with anything yet.

    Args:
        cell: Cell, in evaluation mode.
        examples: Its arguments, images first; their shapes become those of the graph.
        settings: Section ``export``: ``opset`` and ``resize_op``.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export_aside(cell, examples, path)
        model = onnx.load(path)
    model = simplify(model, INPUT_NAME, OUTPUT_NAME, use_resize=settings.resize_op == "resize")
    return onnx_graph.convert_opset(model, settings.opset)


def _run_onnx(model: onnx.ModelProto, feed: np.ndarray) -> list[np.ndarray]:
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {INPUT_NAME: feed})
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise UserError(f"onnxruntime cannot run the exported graph on a batch of {len(feed)} ({first_line(error)}); "
                        "try a fixed export.batch_size or another export.opset") from error


def _compare_outputs(what: str, outputs: Sequence[np.ndarray], reference: np.ndarray,
                     spec: OutputSpec) -> dict[str, Any]:
    """Compares all outputs of a model with the checkpoint's logits (N,C,H,W), see :func:`_compare`.

    Raises:
        UserError: A difference is larger than float32 rounding explains.
    """
    figures = _compare(what, outputs[0], reference)
    if spec.confidence is None:
        return figures
    distance = (reference.max(1, keepdims=True) - reference.astype(np.float64)) / spec.temperature
    expected = np.rint(255 / np.exp(-distance).sum(1))
    difference = float(np.abs(outputs[1] - expected).max())
    if not difference <= 1:
        raise UserError(f"{what}: its confidence differs from the checkpoint's by {difference:.0f}/255 (at most 1 is "
                        "accepted); nothing was written: try another export.opset, and report the network")
    return {**figures, "confidence_max_abs_diff": difference / 255}


def _compare(what: str, answer: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
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


def _report(manifest: Manifest, figures: dict[str, Any]) -> dict[str, Any]:
    """Content of ``export.json``: comparison figures and what travels between host and device for one image."""
    sizes = {part: int(np.prod(spec.shape[1:])) * np.dtype(spec.dtype).itemsize
             for part, spec in (("input", manifest.input), ("output", manifest.output))}
    if manifest.output.confidence:
        sizes["confidence"] = int(np.prod(manifest.output.shape[1:]))
    return {"checkpoint": manifest.source, "versions": manifest.versions, "size": list(manifest.input.size),
            "batch": manifest.input.batch, "output_type": manifest.output.type, "comparison": figures,
            "bytes_per_image": sizes}
