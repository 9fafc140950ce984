"""Commands and configuration for Ascend's converters, ATC and MindSpore Lite's converter_lite, from the manifest."""
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from mindseg.chips import check_atc_precision, check_lite_precision
from mindseg.errors import UserError, shorten
from mindseg.files import file_sha256, write_bytes
from mindseg.inference.exported import open_exported
from mindseg.manifest import MANIFEST_NAME, InputSpec, Manifest, ModelFile, save_manifest
from mindseg.outputs import OutputFolder

AIPP_NAME = "aipp.cfg"
LITE_CONFIG_NAME = "lite.ini"
PRECISIONS = ("enforce_fp16", "preferred_fp32", "enforce_origin", "enforce_fp32", "preferred_optimal")
_ATC_PRECISIONS = ("--precision_mode", "--precision_mode_v2")
_BATCH_SUFFIX = re.compile(r"(_bs\d+|_dynamic)$")
# Newer ATCs add the host's system to the name: fast_scnn_bs1_linux_x86_64.om.
_HOST_SUFFIX = re.compile(r"_linux_\w+(?=\.om$)")


@dataclass(frozen=True)
class Conversion:
    """One command of a converter.

    Attributes:
        command: Program and arguments.
        folder: Folder it runs in, the export's.
        source: Model that it converts; without a hash if that has still to be derived.
        result: File that it makes, in the end.
        entry: Entry of the manifest for the result, still without its hash.
    """
    command: tuple[str, ...]
    folder: Path
    source: ModelFile
    result: Path
    entry: ModelFile

    def text(self) -> str:
        """The command as one would type it."""
        return " ".join(_quote(word) for word in self.command)


def _quote(word: str) -> str:
    """A word for the shell; values with commas stand in double quotes, as ATC's documents write them."""
    flag, equals, value = word.partition("=")
    if equals and re.fullmatch(r"[\w:,.;\-]*,[\w:,.;\-]*", value):
        return f'{flag}="{value}"'
    return shlex.quote(word)


def aipp_config(spec: InputSpec) -> str:
    """Static AIPP file: the chip computes ``(pixel - mean_chn - min_chn) * var_reci_chn`` from uint8 NHWC pixels.

    ``mean_chn`` is a uint8 and the other two are fp16, so the mean's whole part goes into ``mean_chn`` and its fraction
    into ``min_chn``: 123.675 alone would become 123.6875 in fp16.

    Args:
        spec: Input of a model that the host normalises. Channels stay in the manifest's colour order, so neither swap
            nor colour conversion is asked for.
    """
    factor = 255 / spec.value_range
    height, width = spec.size
    lines = ["aipp_op {", "  aipp_mode: static", "  related_input_rank: 0", "  input_format: RGB888_U8",
             "  csc_switch: false", "  rbuv_swap_switch: false", f"  src_image_size_w: {width}",
             f"  src_image_size_h: {height}"]
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        mean, std = mean * factor, std * factor
        whole = min(max(int(mean), 0), 255)
        lines += [f"  mean_chn_{channel}: {whole}", f"  min_chn_{channel}: {round(mean - whole, 6)}",
                  f"  var_reci_chn_{channel}: {1 / std:.10f}"]
    return "\n".join([*lines, "}"]) + "\n"


def om_conversions(manifest: Manifest, soc_version: str, batches: Sequence[int], aipp: bool = False,
                   gears: bool = False, log: str = "debug", fusion_switch: str = "",
                   options: Sequence[str] = ()) -> list[Conversion]:
    """ATC commands, one for each batch size, or one for all of them.

    Args:
        manifest: With an ONNX model.
        soc_version: Chip, with or without ``Ascend`` in front.
        batches: Batch sizes; empty: that of the manifest's ONNX model.
        aipp: The chip normalises uint8 pixels; the result gets a manifest of its own in the folder ``aipp``.
        gears: One model with all batch sizes as gears (at least two) instead of one model each.
        log: ATC's log level.
        fusion_switch: File that switches fusion passes of ATC off, such as ``ConvBatchnormFusionPass:off``.
        options: Further options of ATC, such as ``--precision_mode_v2=mixed_float16``; the
            manifest notes them.

    Raises:
        UserError: No ONNX model, AIPP on a model that normalises by itself, too few gears, an option that is set here.
    """
    soc = soc_version if soc_version.startswith("Ascend") else f"Ascend{soc_version}"
    sizes = list(dict.fromkeys(batches)) or [max(manifest.find("onnx").batch, 1)]
    if gears and len(sizes) < 2:
        raise UserError(f"--dynamic_batch with batch sizes {sizes}: give at least two, such as 1 4 8")
    _check_aipp(manifest, aipp)
    folder = "aipp/" if aipp else ""
    # ATC knows no NHWC for ONNX; ND leaves a uint8 NHWC input as it is.
    layout = "ND" if manifest.input.layout == "NHWC" else "NCHW"
    last = [f"--insert_op_conf={folder}{AIPP_NAME}"] if aipp else []
    if fusion_switch:
        last.append(f"--fusion_switch_file={Path(fusion_switch).resolve()}")     # ATC runs in another folder
    conversions = []
    for batch in [-1] if gears else sizes:
        source = _onnx_for(manifest, batch)
        name = _result_name(source, batch)
        command = ["atc", "--framework=5", f"--model={source.file}", f"--output={folder}{name}",
                   f"--input_format={layout}", f"--input_shape={manifest.input.name}:{_shape(manifest, batch)}",
                   f"--log={log}", f"--soc_version={soc}"]
        extra = {"soc_version": soc}
        if gears:
            command.append(f"--dynamic_batch_size={','.join(map(str, sorted(sizes)))}")
            extra["batches"] = sorted(sizes)
        command += last
        if options:
            _check_atc_options(options, command, soc)
            extra["atc_options"] = list(options)
        root = manifest.path.parent
        conversions.append(Conversion((*command, *options), root, source, root / folder / f"{name}.om",
                                      ModelFile("om", f"{name}.om", batch, "", extra)))
    return conversions


def _shape(manifest: Manifest, batch: int) -> str:
    return ",".join(map(str, (batch, *manifest.input.shape[1:])))


def _result_name(source: ModelFile, batch: int) -> str:
    """File name without suffix: ``fast_scnn.onnx`` becomes ``fast_scnn_bs4`` or ``fast_scnn_dynamic``."""
    return _BATCH_SUFFIX.sub("", Path(source.file).stem) + ("_dynamic" if batch < 0 else f"_bs{batch}")


def _check_atc_options(options: Sequence[str], command: Sequence[str], soc: str) -> None:
    """Refuses words that are no option, options that would contradict the manifest, and precisions of other chips."""
    ours = {word.partition("=")[0] for word in command}
    for word in options:
        flag, equals, value = word.partition("=")
        if not re.fullmatch(r"--\w+", flag) or not equals:
            raise UserError(f"ATC option {word}: write it as --NAME=VALUE, such as "
                            "--precision_mode_v2=cube_fp16in_fp32out")
        if flag in ours:
            raise UserError(f"ATC option {word}: {flag} follows from the manifest and the options before --; leave it "
                            "out behind --")
        if flag in _ATC_PRECISIONS:
            check_atc_precision(soc, value, older=flag == "--precision_mode")
    given = [word for word in options if word.partition("=")[0] in _ATC_PRECISIONS]
    if len(given) > 1:
        raise UserError(f"ATC options {' '.join(given)}: ATC takes one precision; leave the others out")


def _onnx_for(manifest: Manifest, batch: int) -> ModelFile:
    """The ONNX model to convert: of that batch, or a dynamic one, or the dynamic one that can be derived (no hash)."""
    for entry in manifest.models:
        if entry.format == "onnx" and entry.batch in (batch, -1):
            return entry
    return ModelFile("onnx", f"{_result_name(manifest.find('onnx'), -1)}.onnx", -1, "")


def derive_dynamic_onnx(manifest: Manifest, folder: OutputFolder) -> Manifest:
    """Writes the dynamic-batch twin of a static ONNX model, checks it in onnxruntime and lists it.

    Args:
        manifest: With a static ONNX model.
        folder: Folder of the manifest.

    Raises:
        UserError: The packages are missing, or the twin answers differently.
    """
    try:
        import onnx
        import onnxruntime as ort

        from mindseg.deploy import onnx_graph
    except ImportError as error:
        raise UserError(f"{manifest.path}: a dynamic-batch ONNX model is needed, and making one needs {error.name}; "
                        "pip install -r requirements-deploy.txt or export with export.batch_size=0") from error
    source, target = manifest.find("onnx"), _onnx_for(manifest, -1)
    model = onnx.load(manifest.model_path(source))
    images = np.random.default_rng(0).integers(0, 256, (2, *manifest.input.size, 3), np.uint8)
    expected = open_exported(manifest).outputs(images)
    twin = onnx_graph.check_graph(onnx_graph.set_dynamic_batch(model))
    session = ort.InferenceSession(twin.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = session.run(None, {manifest.input.name: np.stack([manifest.input.prepare(image) for image in images])})
    if manifest.output.type == "argmax":
        equal = (answers[0] == expected[0]).mean() >= 0.9999
    else:
        equal = np.abs(answers[0] - expected[0]).max() <= 1e-4 * max(1.0, np.abs(expected[0]).max())
    if manifest.output.confidence:
        equal = equal and np.abs(answers[1].astype(int) - expected[1]).max() <= 1
    if not equal:
        raise UserError(f"{source.file}: its dynamic-batch twin answers differently; export again with "
                        "export.batch_size=0")
    path = manifest.path.parent / target.file
    folder.claim(path)
    write_bytes(path, twin.SerializeToString())
    updated = replace(manifest, models=(*manifest.models, replace(target, sha256=file_sha256(path))))
    save_manifest(updated)
    return updated


def _check_aipp(manifest: Manifest, aipp: bool) -> None:
    if aipp and manifest.input.normalize == "graph":
        raise UserError(f"--aipp: the model of {manifest.path} normalises uint8 pixels by itself; leave --aipp out")


def lite_conversion(manifest: Manifest, batches: Sequence[int], optimize: str = "ascend_oriented",
                    precision: str = "enforce_fp16", aipp: bool = False) -> tuple[Conversion, str]:
    """The ``converter_lite`` command and the text of its configuration file.

    The result gets a manifest of its own in the folder ``lite``: MindSpore and MindSpore Lite both call their files
    ``.mindir`` but cannot read each other's.

    Args:
        manifest: With a MINDIR model.
        batches: Batch sizes; empty: that of the MINDIR model; several become gears.
        optimize: ``ascend_oriented`` for the chip of this machine, or ``ascend_oriented:CHIP``.
        precision: One of ``PRECISIONS``.
        aipp: The chip normalises uint8 pixels.

    Raises:
        UserError: No MINDIR of these batch sizes, AIPP on a model that normalises by itself, or a precision that the
            chip does not have.
    """
    _check_aipp(manifest, aipp)
    if precision not in PRECISIONS:
        raise UserError(f"--precision {shorten(precision)}: must be one of {', '.join(PRECISIONS)}")
    check_lite_precision(optimize.partition(":")[2], precision)
    sizes = sorted(set(batches)) or [max(manifest.find("mindir").batch, 1)]
    batch = sizes[0] if len(sizes) == 1 else -1
    source = manifest.find("mindir", batch)
    lines = ["[ascend_context]", f"input_shape={manifest.input.name}:[{_shape(manifest, batch)}]"]
    if batch < 0:
        lines.append(f"dynamic_dims={','.join(f'[{size}]' for size in sizes)}")
    lines.append(f"precision_mode={precision}")
    if aipp:
        lines.append(f"insert_op_config_file_path=lite/{AIPP_NAME}")
    name = _result_name(source, batch)
    command = ("converter_lite", "--fmk=MINDIR", f"--modelFile={source.file}", f"--outputFile=lite/{name}",
               f"--optimize={optimize}", "--saveType=MINDIR", f"--configFile=lite/{LITE_CONFIG_NAME}")
    extra = {"converter": "lite", "precision": precision} | ({"batches": sizes} if batch < 0 else {})
    root = manifest.path.parent
    entry = ModelFile("mindir", f"{name}.mindir", batch, "", extra)
    return Conversion(command, root, source, root / "lite" / entry.file, entry), "\n".join(lines) + "\n"


def convert(conversion: Conversion, place: Path) -> ModelFile:
    """Runs a conversion and returns the entry of its result.

    Args:
        conversion: What to convert.
        place: Folder for the result, inside the conversion's: a converter that is killed leaves half a file.

    Raises:
        UserError: The converter is missing, fails, or leaves no result; says where its own log is.
    """
    program, result = conversion.command[0], conversion.result
    if shutil.which(program) is None:
        remedy = {"atc": "install the CANN toolkit and source its set_env.sh",
                  "converter_lite": "set MS_LITE_HOME to an unpacked MindSpore Lite package"}[program]
        raise UserError(f"{program}: not found; {remedy}, or use --dry_run to print the command")
    command = [f"{word.partition('=')[0]}={place.name}/{result.stem}"
               if word.startswith(("--output=", "--outputFile=")) else word for word in conversion.command]
    try:
        status = subprocess.run(command, cwd=conversion.folder, env=_environment(), check=False).returncode
    except OSError as error:
        raise UserError(f"{program}: cannot be run for {result} ({error.strerror}); check its installation") from error
    made = sorted(path for path in place.glob(f"{result.stem}*") if _HOST_SUFFIX.sub("", path.name) == result.name)
    if status or not made:
        hint = "; an old ATC may want export.opset=11" if program == "atc" else ""
        raise UserError(f"{program} failed with status {status} and left no {result.name}; read its messages "
                        f"above{hint}")
    return replace(conversion.entry, file=made[0].name, sha256=file_sha256(made[0]))


def _environment() -> dict[str, str]:
    """The environment without the folder of libraries that OpenCV puts first: converters bring their own."""
    opencv = str(Path(cv2.__file__).resolve().parent)
    paths = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(path for path in paths if not path.startswith(opencv))}


def record(manifest: Manifest, entries: Sequence[ModelFile], place: Path, own: bool, aipp: bool = False) -> None:
    """Lists converted models: in the export's manifest, or in one of their own.

    Args:
        manifest: Of the export.
        entries: Converted models.
        place: Folder for the new manifest.
        own: Write a manifest with these models only.
        aipp: The models take raw uint8 NHWC pixels.
    """
    path = place / MANIFEST_NAME
    if not own:
        names = {_HOST_SUFFIX.sub("", entry.file) for entry in entries}
        kept = [entry for entry in manifest.models if _HOST_SUFFIX.sub("", entry.file) not in names]
        save_manifest(replace(manifest, path=path, models=(*kept, *entries)))
        return
    spec, batch = manifest.input, entries[0].batch
    if aipp:
        spec = replace(spec, layout="NHWC", dtype="uint8", normalize="graph", shape=(batch, *spec.size, 3))
    spec = replace(spec, shape=(batch, *spec.shape[1:]))
    output = replace(manifest.output, shape=(batch, *manifest.output.shape[1:]))
    manifest.copy_fusion_switch(place)
    save_manifest(replace(manifest, path=path, input=spec, output=output, models=tuple(entries)))
