"""Exported models in Python: ONNX files by onnxruntime, MINDIR files by MindSpore."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindseg.errors import UserError, first_line, shorten
from mindseg.manifest import Manifest, load_manifest


class ExportedPredictor:
    """An exported model that segments images; a :class:`.predictor.Predictor`.

    Args:
        manifest: Manifest of the model.
        run: Function from one input tensor of the model's batch to the output tensor.
        batch: Batch size of the model file, -1 if dynamic.
    """

    def __init__(self, manifest: Manifest, run: Callable[[np.ndarray], np.ndarray], batch: int) -> None:
        self.manifest, self.batch = manifest, batch
        self.info = manifest.dataset_info()
        self.resize = manifest.input.eval_resize
        self.color_order = manifest.input.color_order
        self._run = run

    def infer(self, images: np.ndarray) -> np.ndarray:
        """The model's own answer.

        Args:
            images: uint8 (N, H, W, 3) in the manifest's colour order, of any size that its resize rule can fit.

        Returns:
            Ids (N, height, width) or logits (N, C, height, width) at the model's size.
        """
        tensors = np.stack([self.manifest.input.prepare(image) for image in images])
        step = len(tensors) if self.batch < 0 else self.batch
        answers = []
        for start in range(0, len(tensors), step):
            part = tensors[start:start + step]
            filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)]) if len(part) < step else part
            answers.append(self._run(filled)[:len(part)])
        return np.concatenate(answers)

    def __call__(self, images: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Segments images of one size.

        Args:
            images: uint8 (N, H, W, 3) in the manifest's colour order.
            size: Height and width of the result; ``None``: the images' own.

        Returns:
            uint8 class ids (N, height, width).
        """
        image_size = images.shape[1:3]
        return np.stack([self.resize.restore(answer, image_size, size or image_size) for answer in self.infer(images)])


def open_exported(manifest: Manifest | str | Path, fmt: str = "onnx") -> ExportedPredictor:
    """Opens the model file of a manifest.

    Args:
        manifest: Manifest, its path, or its folder.
        fmt: ``onnx`` or ``mindir``.

    Raises:
        UserError: No such model in the manifest, the file is missing or damaged, or its program is not installed.
    """
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest)
    openers = {"onnx": _open_onnx, "mindir": _open_mindir}
    if fmt not in openers:
        raise UserError(f"format {fmt!r} cannot be opened from Python; use one of {', '.join(openers)}, or the runner")
    entry = manifest.find(fmt)
    return ExportedPredictor(manifest, openers[fmt](manifest.model_path(entry), manifest), entry.batch)


def _open_onnx(path: Path, manifest: Manifest) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UserError(f"{path}: needs onnxruntime; pip install -r requirements-deploy.txt") from error
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise UserError(f"{path}: onnxruntime cannot load it ({first_line(error)}); run export.py again") from error
    spec, result = manifest.input, manifest.output
    ids = result.type == "argmax"
    batch = manifest.find("onnx").batch
    _check_tensor(path, manifest, "input", session.get_inputs(), spec.name, (batch, *spec.shape[1:]),
                  {"float32": ("float", "float16"), "uint8": ("uint8",)}[spec.dtype])
    _check_tensor(path, manifest, "output", session.get_outputs(), result.name, (batch, *result.shape[1:]),
                  ("uint8", "int32", "int64") if ids else ("float", "float16"))
    return lambda tensor: session.run([result.name], {spec.name: tensor})[0]


def _check_tensor(path: Path, manifest: Manifest, part: str, found: Sequence[Any], name: str, shape: tuple[int, ...],
                  types: tuple[str, ...]) -> None:
    """Compares a model's only input or output with the manifest; a size that the model leaves open fits any."""
    value = found[0]
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    fits = len(sizes) == len(shape) and all(size in (-1, other) for size, other in zip(sizes, shape, strict=True))
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    if len(found) != 1 or value.name != name or not fits or kind not in types:
        raise UserError(f"{manifest.path}: {part} is {shorten(name)} {list(shape)} of {types[0]}, but {path} has "
                        f"{shorten(value.name)} {sizes} of {kind}; is this the manifest of another model? Run "
                        "export.py again")


def _open_mindir(path: Path, manifest: Manifest) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import mindspore as ms
        from mindspore import nn
    except ImportError as error:
        raise UserError(f"{path}: needs mindspore; pip install -r requirements.txt") from error
    try:
        cell = nn.GraphCell(ms.load(str(path)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path}: MindSpore cannot load it ({first_line(error)}); run export.py again") from error

    def run(tensor: np.ndarray) -> np.ndarray:
        expected = (len(tensor), *manifest.output.shape[1:])
        try:
            answer = cell(ms.Tensor(tensor)).asnumpy()
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{path}: cannot take the input of {manifest.path}, {list(tensor.shape)} "
                            f"({first_line(error)}); is this the manifest of another model?") from error
        if answer.shape != expected:
            raise UserError(f"{manifest.path}: output.shape is {list(expected)}, but {path} answers with "
                            f"{list(answer.shape)}; is this the manifest of another model?")
        return answer

    return run
