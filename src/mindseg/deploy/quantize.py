"""int8 post-training quantisation of an exported ONNX model with onnxruntime's quantiser.

Weights are symmetric int8 per channel, activations uint8 per tensor, stored as QuantizeLinear / DequantizeLinear pairs
around convolutions, which onnxruntime and OpenVINO both fuse. The last convolution stays in float: its output are the
logits, and everything behind it (resize, arg-max) is float too.
"""
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from tqdm import tqdm

from mindseg.data.samples import Sample
from mindseg.deploy import onnx_graph
from mindseg.deploy.export_folder import open_folder, staging
from mindseg.errors import UserError, first_line
from mindseg.files import file_sha256, write_bytes
from mindseg.manifest import MANIFEST_NAME, Manifest, ModelFile, save_manifest
from mindseg.version import __version__

MIN_OPSET = 13      # the first with one scale per channel
_QUANTIZED = ("Conv", "ConvTranspose")
REPORT_NAME = "quantize.json"    # scores of both models


class _Images(CalibrationDataReader):
    """Calibration images in the model's input form, each repeated to fill its batch."""

    def __init__(self, manifest: Manifest, samples: Sequence[Sample], batch: int) -> None:
        self._spec, self._batch = manifest.input, max(batch, 1)
        self._samples = iter(tqdm(samples, desc="calibrate", unit="image", disable=None))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed, ``None`` at the end."""
        for sample in self._samples:
            tensor = self._spec.prepare(self._spec.read_image(sample.image), str(sample.image))
            return {self._spec.name: np.repeat(tensor[None], self._batch, 0)}
        return None


def quantize(manifest: Manifest, samples: Sequence[Sample], output: Path,
             overwrite: bool = False) -> Manifest:
    """Quantises the ONNX model of a manifest and writes it with a manifest of its own.

    Args:
        manifest: Of the float model.
        samples: Calibration images; a few dozen that look like the data to come.
        output: Folder of the int8 model, not that of the float model.
        overwrite: Replace files that this program did not write.

    Raises:
        UserError: Nothing to calibrate with, ``output`` is the float model's folder, or the quantiser fails.
    """
    if not samples:
        raise UserError("no calibration images; check --dataset, --split and --num")
    if output.resolve() == manifest.path.parent.resolve():
        raise UserError(f"--output {output}: holds the float model, whose manifest would be replaced; choose another")
    entry = manifest.find("onnx")
    name = f"{Path(entry.file).stem}_int8.onnx"
    with open_folder(output, overwrite) as folder, staging(folder, [name, MANIFEST_NAME]) as place:
        folder.check(output / REPORT_NAME)
        write_bytes(place / name, _int8_model(manifest, entry, samples))
        quantized = ModelFile("onnx", name, entry.batch, file_sha256(place / name),
                              {"precision": "int8", "calibration_images": len(samples)})
        manifest.copy_fusion_switch(place)
        save_manifest(replace(manifest, path=place / MANIFEST_NAME, models=(quantized,)))
    return replace(manifest, path=output / MANIFEST_NAME, models=(quantized,))


def _int8_model(manifest: Manifest, entry: ModelFile, samples: Sequence[Sample]) -> bytes:
    """Quantises a model in all convolutions but the last.

    Args:
        manifest: Of the float model.
        entry: The model.
        samples: Calibration images.

    Raises:
        UserError: The quantiser fails.
    """
    model = onnx.load(manifest.model_path(entry))
    model = onnx_graph.convert_opset(model, max(MIN_OPSET, onnx_graph.opset_of(model)))
    convolutions = [node for node in model.graph.node if node.op_type in _QUANTIZED]
    for index, node in enumerate(convolutions):
        node.name = node.name or f"conv{index}"     # the quantiser excludes by name
    excluded = [convolutions[-1].name] if len(convolutions) > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        logging.disable(logging.WARNING)    # it recommends a pre-processing that export has done already
        try:
            quantize_static(source, target, _Images(manifest, samples, entry.batch), quant_format=QuantFormat.QDQ,
                            op_types_to_quantize=list(_QUANTIZED), nodes_to_exclude=excluded, per_channel=True,
                            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                            calibrate_method=CalibrationMethod.MinMax)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{entry.file}: cannot be quantised ({first_line(error)}); export again with "
                            "export.opset=17") from error
        finally:
            logging.disable(logging.NOTSET)
        result = onnx_graph.check_graph(onnx.load(target))
    onnx_graph.set_origin(result, model.producer_version, {"project": __version__, **manifest.source})
    return result.SerializeToString()
