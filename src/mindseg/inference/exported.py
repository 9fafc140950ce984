"""Exported models in Python: ONNX files by onnxruntime, MINDIR files by MindSpore."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindseg.errors import UserError, first_line, shorten
from mindseg.manifest import Manifest, load_manifest
from mindseg.resize import argmax_resized, resized_slices


class ExportedPredictor:
    """An exported model that segments images; a :class:`.predictor.Predictor`.

    Args:
        manifest: Manifest of the model.
        run: Function from one input tensor of the model's batch to the output tensors: ids or logits, and the
            confidence if the manifest has it.
        batch: Batch size of the model file, -1 if dynamic.
        backend: Program behind ``run``.
    """

    def __init__(self, manifest: Manifest, run: Callable[[np.ndarray], Sequence[np.ndarray]], batch: int,
                 backend: str = "onnxruntime") -> None:
        self.manifest, self.batch, self.backend = manifest, batch, backend
        self.info = manifest.dataset_info()
        self.resize = manifest.input.eval_resize
        self.color_order = manifest.input.color_order
        self.gives_confidence = manifest.output.confidence is not None
        self.trained_size = None
        self.blends = manifest.output.type == "logits"
        self._run = run

    def infer(self, images: np.ndarray) -> np.ndarray:
        """The model's own answer.

        Args:
            images: uint8 (N, H, W, 3) in the manifest's colour order, of any size that its resize rule can fit.

        Returns:
            Ids (N, height, width) or logits (N, C, height, width) at the model's size.
        """
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> list[np.ndarray]:
        """The answer of :meth:`infer`, and the uint8 confidence (N, height, width) if the model has that output."""
        tensors = np.stack([self.manifest.input.prepare(image) for image in images])
        step = len(tensors) if self.batch < 0 else self.batch
        answers = []
        for start in range(0, len(tensors), step):
            part = tensors[start:start + step]
            filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)]) if len(part) < step else part
            answers.append([output[:len(part)] for output in self._run(filled)])
        return [np.concatenate(output) for output in zip(*answers, strict=True)]

    def __call__(self, images: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Segments images of one size.

        Args:
            images: uint8 (N, H, W, 3) in the manifest's colour order.
            size: Height and width of the result; ``None``: the images' own.

        Returns:
            uint8 class ids (N, height, width).
        """
        return self._restore(self.infer(images), images, size)

    def with_confidence(self, images: np.ndarray,
                        size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Segments images of one size and says how sure the model is.

        At another size than the model's both are sampled at the nearest pixel.

        Args:
            images: As for a call.
            size: As for a call.

        Returns:
            uint8 class ids, and the uint8 probability of each, ``round(255 * p)``; both (N, height, width).

        Raises:
            ManifestError: The model was exported without confidence.
        """
        self.manifest.check_confidence()
        ids, confidence = (self._restore(output, images, size) for output in self.outputs(images))
        return ids, confidence

    def _restore(self, answers: np.ndarray, images: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        image_size = images.shape[1:3]
        return np.stack([self.resize.restore(answer, image_size, size or image_size) for answer in answers])

    def scores(self, images: np.ndarray, size: tuple[int, int], confidence: bool = False) -> np.ndarray:
        """Logits of a model that gives them, float32 (N, C, height, width).

        Args:
            images: As for a call.
            size: As for a call.
            confidence: Refused, as such a model gives none.
        """
        if confidence:
            self.manifest.check_confidence()
        rows, columns = self.resize.content_size(*images.shape[1:3])
        logits = self.infer(images)[..., :rows, :columns].astype(np.float32, copy=False)
        return np.stack([np.concatenate([part for _, part in resized_slices(one, tuple(size))], 1) for one in logits])

    def decide(self, scores: np.ndarray, confidence: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Classes by logits (C, H, W) of one image, uint8 (H, W); such a model gives no confidence."""
        return argmax_resized(scores, scores.shape[1:]), None


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
    openers = {"onnx": (_open_onnx, "onnxruntime"), "mindir": (_open_mindir, "mindspore")}
    if fmt not in openers:
        raise UserError(f"format {fmt!r} cannot be opened from Python; use one of {', '.join(openers)}, or the runner")
    entry, (opener, backend) = manifest.find(fmt), openers[fmt]
    return ExportedPredictor(manifest, opener(manifest.model_path(entry), manifest), entry.batch, backend)


def _open_onnx(path: Path, manifest: Manifest) -> Callable[[np.ndarray], list[np.ndarray]]:
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
    _check_tensors(path, manifest, "input", session.get_inputs(), (batch, *spec.shape[1:]),
                   {spec.name: {"float32": ("float", "float16"), "uint8": ("uint8",)}[spec.dtype]})
    types = {result.name: ("uint8", "int32", "int64") if ids else ("float", "float16")}
    if result.confidence:
        types[result.confidence] = ("uint8",)
    _check_tensors(path, manifest, "output", session.get_outputs(), (batch, *result.shape[1:]), types)
    return lambda tensor: session.run(list(types), {spec.name: tensor})


def _check_tensors(path: Path, manifest: Manifest, part: str, found: Sequence[Any], shape: tuple[int, ...],
                   types: dict[str, tuple[str, ...]]) -> None:
    """Compares a model's inputs or outputs with the manifest; a size that the model leaves open fits any.

    Args:
        path: Model file.
        manifest: Its manifest.
        part: ``input`` or ``output``.
        found: The model's tensors.
        shape: Shape of each of them.
        types: Types that are accepted, by name, in the order of the tensors.
    """
    names = [value.name for value in found]
    if names != list(types):
        raise UserError(f"{manifest.path}: {part} is {shorten(', '.join(types))}, but {path} has "
                        f"{shorten(', '.join(names))}; is this the manifest of another model? Run export.py again")
    for value in found:
        sizes = [size if isinstance(size, int) else -1 for size in value.shape]
        fits = len(sizes) == len(shape) and all(size in (-1, other) for size, other in zip(sizes, shape, strict=True))
        kind, accepted = value.type.removeprefix("tensor(").removesuffix(")"), types[value.name]
        if not fits or kind not in accepted:
            raise UserError(f"{manifest.path}: {part} {shorten(value.name)} is {list(shape)} of {accepted[0]}, but "
                            f"{path} has {sizes} of {kind}; is this the manifest of another model? Run export.py "
                            "again")


def _open_mindir(path: Path, manifest: Manifest) -> Callable[[np.ndarray], list[np.ndarray]]:
    try:
        import mindspore as ms
        from mindspore import nn
    except ImportError as error:
        raise UserError(f"{path}: needs mindspore; pip install -r requirements.txt") from error
    try:
        cell = nn.GraphCell(ms.load(str(path)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path}: MindSpore cannot load it ({first_line(error)}); run export.py again") from error

    def run(tensor: np.ndarray) -> list[np.ndarray]:
        expected = [(len(tensor), *manifest.output.shape[1:])] * (2 if manifest.output.confidence else 1)
        try:
            answer = cell(ms.Tensor(tensor))
            arrays = [part.asnumpy() for part in (answer if isinstance(answer, tuple) else (answer,))]
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{path}: cannot take the input of {manifest.path}, {list(tensor.shape)} "
                            f"({first_line(error)}); is this the manifest of another model?") from error
        shapes = [array.shape for array in arrays]
        if shapes != expected:
            raise UserError(f"{manifest.path}: the outputs are {expected}, but {path} answers with {shapes}; is this "
                            "the manifest of another model?")
        return arrays

    return run
