"""Kinds of results of an image: pictures to look at, and files with one number a pixel."""
from pathlib import Path

import cv2
import numpy as np

from mindseg.data.datasets import DatasetInfo
from mindseg.drawing import legend, overlay, save_palette_png, save_png, to_label_ids
from mindseg.inference.predictor import Answer

VALUES = ("mask", "ids", "labelIds", "confidence")      # uint8 (H, W)
PICTURES = ("overlay", "side")                          # uint8 RGB (H, W, 3)
KINDS = ("overlay", "mask", "ids", "labelIds", "side", "confidence", "json")


def pixel_values(kind: str, answer: Answer, info: DatasetInfo) -> np.ndarray:
    """One number a pixel, uint8 (H, W).

    Args:
        kind: ``mask`` and ``ids`` are the class ids, ``labelIds`` the official ones, ``confidence`` their probability.
        answer: Classes of the pixels.
        info: Official ids.
    """
    ids, confidence = answer
    if kind == "confidence":
        return confidence
    return to_label_ids(ids, info.train_to_id) if kind == "labelIds" else ids


def render(kind: str, image: np.ndarray, answer: Answer, info: DatasetInfo, alpha: float) -> np.ndarray:
    """One kind of result, see :func:`pixel_values`; or a picture, uint8 RGB.

    Args:
        kind: Of ``KINDS``. ``side`` shows photograph and overlay, and the legend below.
        image: uint8 BGR (H, W, 3).
        answer: Classes of the pixels.
        info: Names and colours.
        alpha: Opacity of the colours, 0..1.
    """
    if kind in VALUES:
        return pixel_values(kind, answer, info)
    rgb = np.ascontiguousarray(image[..., ::-1])
    blended = overlay(rgb, answer[0], info.palette, alpha)
    return blended if kind == "overlay" else _with_legend(np.hstack([rgb, blended]), info)


def _with_legend(picture: np.ndarray, info: DatasetInfo) -> np.ndarray:
    names = legend(info.classes, info.palette, columns=1)
    names = legend(info.classes, info.palette, columns=max(1, picture.shape[1] // names.shape[1]))
    if names.shape[1] > picture.shape[1]:
        height = max(1, names.shape[0] * picture.shape[1] // names.shape[1])
        names = cv2.resize(names, (picture.shape[1], height), interpolation=cv2.INTER_AREA)
    margin = picture.shape[1] - names.shape[1]
    return np.vstack([picture, np.pad(names, ((0, 0), (0, margin), (0, 0)), constant_values=255)])


def save_picture(path: Path, kind: str, picture: np.ndarray, info: DatasetInfo) -> None:
    """Writes what :func:`render` made as PNG.

    Args:
        path: File.
        kind: Of ``KINDS``.
        picture: Result of ``render``.
        info: Colours of a ``mask``, which is a palette PNG.
    """
    if kind == "mask":
        save_palette_png(path, picture, info.palette)
    else:
        save_png(path, picture)
