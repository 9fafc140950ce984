"""Trained models in three lines: ``segment = mindseg.load("best.ckpt"); segment("photo.jpg").save("overlay.png")``."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mindseg.config import Config, load_config, parse_config
from mindseg.data.datasets import DatasetInfo, check_classes, dataset_info
from mindseg.data.decode import decode_image, limit_pixels
from mindseg.drawing import overlay, save_png
from mindseg.errors import DataError, UserError
from mindseg.files import read_bytes
from mindseg.inference.exported import open_exported
from mindseg.inference.predictor import Predictor, segment_image, segment_with_confidence
from mindseg.manifest import MANIFEST_NAME, load_manifest

if TYPE_CHECKING:       # exported ONNX models need no MindSpore
    from mindseg.inference.network import NetworkPredictor

HUB_WEIGHTS = "model.safetensors"       # the weights in a folder for a model hub


@dataclass(frozen=True)
class Segmentation:
    """The segmentation of one image.

    Attributes:
        image: The image, uint8 (H, W, 3) RGB.
        ids: Class of each pixel, uint8 (H, W): an index into ``classes``.
        info: Class names and colours.
        confidence: Probability of that class, ``round(255 * p)``, uint8 (H, W); None: not asked for.
    """
    image: np.ndarray
    ids: np.ndarray
    info: DatasetInfo
    confidence: np.ndarray | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the ids."""
        return self.info.classes

    def overlay(self, alpha: float = 0.55) -> np.ndarray:
        """The image with the classes' colours over it.

        Args:
            alpha: Opacity of the colours, 0..1.

        Returns:
            uint8 (H, W, 3) RGB.
        """
        return overlay(self.image, self.ids, self.info.palette, alpha)

    def save(self, path: str | Path) -> None:
        """Writes the overlay as PNG.

        Raises:
            UserError: The name does not end in ``.png``, or the file cannot be written.
        """
        if Path(path).suffix.lower() != ".png":
            raise UserError(f"{path}: an overlay is saved as PNG; choose a name that ends in .png")
        save_png(Path(path), self.overlay())


class Segmenter:
    """A trained model that segments photographs: ``segmenter("photo.jpg")``.

    Args:
        predictor: The model.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the ids."""
        return self.predictor.info.classes

    def __call__(self, images: str | Path | np.ndarray | Sequence,
                 confidence: bool = False) -> Segmentation | list[Segmentation]:
        """Segments one image or several.

        Args:
            images: Image file, uint8 (H, W, 3) RGB array, or a sequence of either.
            confidence: Give the probability of each pixel's class, too.

        Returns:
            One result, or a list of them for a sequence.

        Raises:
            DataError: A file is missing or no image, an array has another shape or type, or the model cannot take it.
            UserError: An exported model that gives no confidence.
        """
        if isinstance(images, (list, tuple)):
            return [self(image, confidence) for image in images]
        if isinstance(images, np.ndarray):
            if images.ndim != 3 or images.shape[2] != 3 or images.dtype != np.uint8:
                raise DataError(f"image of shape {images.shape} and type {images.dtype}: it must be uint8 (H, W, 3), "
                                "RGB")
            rgb = images
        else:
            rgb = cv2.cvtColor(decode_image(read_bytes(images), str(images)), cv2.COLOR_BGR2RGB)
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        if confidence:
            ids, levels = segment_with_confidence(self.predictor, bgr)
            return Segmentation(rgb, ids, self.predictor.info, levels)
        return Segmentation(rgb, segment_image(self.predictor, bgr), self.predictor.info)


def load(path: str | Path, device: str = "auto", config: str | Path | None = None) -> Segmenter:
    """Loads a trained model.

    Args:
        path: Checkpoint, run folder, export folder or its ``deploy.yaml``, or a folder for a model hub: of its two
            models, with MindSpore the weights, which take images of any size, otherwise the exported one.
        device: ``auto``, ``CPU``, ``Ascend`` or ``GPU``, for checkpoints and MINDIR files; MindSpore's graph mode is
            set for them. ONNX files run on the CPU.
        config: Configuration of a checkpoint that carries none: a file, or a name such as ``fast_scnn_camvid``.

    Raises:
        UserError: Nothing of that kind is there, it is damaged, or a package is missing; says what to do.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a checkpoint, a run folder or an export folder")
    weights = path / HUB_WEIGHTS
    exported = (path / MANIFEST_NAME).is_file() and not (weights.is_file() and find_spec("mindspore"))
    if path.suffix in (".yaml", ".yml") or exported:
        return Segmenter(_load_exported(path, device))
    if path.is_dir():
        path = best_checkpoint(path)
    _use_device(device, path)
    return Segmenter(open_checkpoint(path, load_config(config) if config else None, whole_image=True))


def best_checkpoint(run_dir: Path) -> Path:
    """The checkpoint of a run folder: the best one, or the last one if the run was never evaluated.

    Of a folder for a model hub it is the file of weights.

    Raises:
        UserError: The folder is neither.
    """
    for folder in (run_dir / "ckpt", run_dir):
        for name in ("best.ckpt", "last.ckpt", HUB_WEIGHTS):
            if (folder / name).is_file():
                return folder / name
    raise UserError(f"{run_dir}: holds neither {MANIFEST_NAME} nor ckpt/best.ckpt, ckpt/last.ckpt or {HUB_WEIGHTS}; "
                    "give a checkpoint, a run folder, an export folder or a folder of a model hub")


def checkpoint_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a checkpoint carries.

    Args:
        path: Checkpoint.
        overrides: ``section.key=value`` texts that change it.

    Raises:
        UserError: The checkpoint is missing, damaged, or carries no configuration.
    """
    from mindseg.checkpoint import read_checkpoint

    text = read_checkpoint(path)[1].get("config")
    if not text:
        raise UserError(f"{path}: carries no configuration; name the one it was trained with (--config, or "
                        "mindseg.load(path, config=...))")
    return parse_config(text, f"{path}: its configuration", overrides)


def open_checkpoint(path: str | Path, cfg: Config | None = None, whole_image: bool = False) -> "NetworkPredictor":
    """The network of a checkpoint, ready to segment.

    Args:
        path: Checkpoint.
        cfg: Configuration; None: the one that the checkpoint carries.
        whole_image: Leave a centre crop of the evaluation out, so that every pixel gets a class.

    Raises:
        UserError: The file is missing, damaged, or does not hold every weight of the network.
    """
    from mindseg.checkpoint import load_weights, read_checkpoint
    from mindseg.inference.network import NetworkPredictor
    from mindseg.models import build_network

    cfg = cfg or checkpoint_config(path)
    check_classes(cfg)
    limit_pixels(cfg.runtime.max_pixels)
    arrays, extras = read_checkpoint(path)
    net = build_network(cfg)
    load_weights(net, arrays, str(path))
    predictor = NetworkPredictor(cfg, net, dataset_info(cfg.data), extras.get("temperature", 1.0))
    if whole_image:
        predictor.resize = replace(predictor.resize, center_crop=None)
    return predictor


def _load_exported(path: Path, device: str) -> Predictor:
    manifest = load_manifest(path)
    formats = {entry.format for entry in manifest.models}
    if "onnx" in formats and (find_spec("onnxruntime") or "mindir" not in formats):
        return open_exported(manifest, "onnx")
    if "mindir" in formats:
        _use_device(device, manifest.path)
        return open_exported(manifest, "mindir")
    raise UserError(f"{manifest.path}: lists {', '.join(sorted(formats)) or 'no'} models only, which Python "
                    f"cannot run; use: segment run --manifest {manifest.path} --input IMAGES --output RESULTS")


def _use_device(device: str, path: Path) -> None:
    """Sets MindSpore's device, or says that MindSpore is missing."""
    if find_spec("mindspore") is None:
        raise UserError(f"{path}: needs MindSpore; pip install 'mindseg[train]', or load an ONNX export")
    from mindseg.runtime import ensure_device

    ensure_device(device)
