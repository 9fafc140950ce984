"""The interface of everything that segments images: networks and exported models."""
from typing import Protocol

import numpy as np

from mindseg.data.datasets import DatasetInfo
from mindseg.resize import EvalResize

Answer = tuple[np.ndarray, np.ndarray | None]       # class ids and their confidence, uint8 (H, W)


class Predictor(Protocol):
    """A model that is ready to segment images.

    Attributes:
        info: Class names and colours.
        resize: The way of an image to the model's input, and the size at which labels are scored.
        color_order: ``RGB`` or ``BGR``, the order of the channels that ``__call__`` takes.
        trained_size: Height and width of a training sample; None: unknown, or images are brought to one size.
        blends: The model gives scores, so that overlapping tiles can be blended; otherwise ``scores`` and ``decide``
            are not called.
        gives_confidence: The model can say how sure it is; an exported one may lack that output.
        backend: Program that runs the model: ``mindspore``, ``openvino`` or ``onnxruntime``.
    """
    info: DatasetInfo
    resize: EvalResize
    color_order: str
    trained_size: tuple[int, int] | None
    blends: bool
    gives_confidence: bool
    backend: str

    def __call__(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Segments images of one size.

        Args:
            images: uint8 (N, H, W, 3) in ``color_order``.
            size: Height and width of the result.

        Returns:
            uint8 class ids (N, height, width).
        """

    def with_confidence(self, images: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Segments images of one size and says how sure the model is.

        Args:
            images: As for a call.
            size: As for a call.

        Returns:
            uint8 class ids, and the uint8 probability of each, ``round(255 * p)``; both (N, height, width).

        Raises:
            UserError: An exported model without this output.
        """

    def scores(self, images: np.ndarray, size: tuple[int, int], confidence: bool = False) -> np.ndarray:
        """Scores of images of one size, of which means over several images can be taken.

        Args:
            images: As for a call.
            size: As for a call.
            confidence: They shall do for the confidence, too.

        Returns:
            float32 (N, K, height, width).
        """

    def decide(self, scores: np.ndarray, confidence: bool = False) -> Answer:
        """Classes by the scores (K, H, W) of one image, and their confidence if asked for."""


def segment(predictor: Predictor, image: np.ndarray, confidence: bool = False) -> Answer:
    """Segments one image uint8 (H, W, 3) in BGR order, as OpenCV reads it; the confidence is None unless asked for."""
    return segment_with_confidence(predictor, image) if confidence else (segment_image(predictor, image), None)


def segment_scores(predictor: Predictor, image: np.ndarray, confidence: bool = False) -> np.ndarray:
    """Scores float32 (K, H, W) of one image in BGR order; of a model without, its ids and their confidence, uint8."""
    if predictor.blends:
        return predictor.scores(_one(predictor, image), image.shape[:2], confidence)[0]
    return np.stack([part for part in segment(predictor, image, confidence) if part is not None])


def segment_image(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Class ids uint8 (H, W) of one image uint8 (H, W, 3) in BGR order, as OpenCV reads it."""
    return predictor(_one(predictor, image), image.shape[:2])[0]


def segment_with_confidence(predictor: Predictor, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class ids and their probabilities, ``round(255 * p)``, both uint8 (H, W), of one image as OpenCV reads it."""
    ids, confidence = predictor.with_confidence(_one(predictor, image), image.shape[:2])
    return ids[0], confidence[0]


def _one(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """One BGR image as a batch in the predictor's colour order."""
    return (np.ascontiguousarray(image[..., ::-1]) if predictor.color_order == "RGB" else image)[None]
