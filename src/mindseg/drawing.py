"""Segmentations as pictures: colours, overlays, error maps, legends and label files.

Class ids are uint8 arrays (H, W); images are uint8 RGB (H, W, 3). A palette is one (r, g, b) a class, as in
``DatasetInfo.palette``; ids without a colour (255 = ignored) are black.
"""
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mindseg.errors import DataError
from mindseg.files import write_bytes

Palette = Sequence[tuple[int, int, int]]
IGNORED = 255
# Colours of the error map. Blue and orange differ for colour-blind readers, too.
CORRECT, WRONG, UNSCORED = (66, 92, 122), (255, 138, 36), (38, 38, 42)


def palette_table(palette: Palette) -> np.ndarray:
    """Lookup table of a palette, uint8 (256, 3)."""
    if not 1 <= len(palette) <= 256:
        raise DataError(f"a palette of {len(palette)} colours cannot be used: 1 to 256 are possible")
    table = np.zeros((256, 3), np.uint8)
    table[:len(palette)] = palette
    return table


def colorize(ids: np.ndarray, palette: Palette) -> np.ndarray:
    """Class ids (H, W) as colours, uint8 RGB (H, W, 3)."""
    return palette_table(palette)[ids]


def overlay(image: np.ndarray, ids: np.ndarray, palette: Palette, alpha: float = 0.55) -> np.ndarray:
    """Blends class colours over an image; pixels without a class show the image alone.

    Args:
        image: uint8 RGB (H, W, 3).
        ids: Class ids (H, W), uint8.
        palette: Colours of the classes.
        alpha: Opacity of the colours, 0..1.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        DataError: Image and ids differ in size.
    """
    _check_size(image, ids)
    mixed = cv2.addWeighted(image, 1.0 - alpha, colorize(ids, palette), alpha, 0.0)
    unknown = ids >= len(palette)
    mixed[unknown] = image[unknown]
    return mixed


def error_map(pred: np.ndarray, label: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Draws correct (blue), wrong (orange) and unscored (dark) pixels.

    Args:
        pred: Predicted class ids (H, W).
        label: True class ids (H, W), 255 = not scored.
        image: uint8 RGB (H, W, 3) whose brightness shows through the colours; None for plain colours.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        DataError: The arrays differ in size.
    """
    if pred.shape != label.shape:
        raise DataError(f"prediction {pred.shape} and label {label.shape} differ in size")
    colours = np.array([CORRECT, WRONG, UNSCORED], np.uint8)
    kind = np.where(label == IGNORED, 2, pred != label)
    out = colours[kind]
    if image is not None:
        _check_size(image, label)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32) / 255.0
        strength = np.where(kind == 1, 0.35, 0.85)[..., None]
        out = (out * (1.0 - strength + strength * (0.25 + 0.9 * grey))).clip(0, 255).astype(np.uint8)
    return out


def side_by_side(image: np.ndarray, label: np.ndarray, pred: np.ndarray, palette: Palette, width: int) -> np.ndarray:
    """Draws an image, its true and its predicted classes in a row.

    Args:
        image: uint8 RGB (H, W, 3).
        label: True class ids (H, W), uint8.
        pred: Predicted class ids (H, W), uint8.
        palette: Colours of the classes.
        width: Width of each of the three in pixels at most; larger ones are made smaller.

    Returns:
        uint8 RGB (h, 3 w, 3).
    """
    scale = min(1.0, width / image.shape[1])
    size = round(image.shape[1] * scale), max(1, round(image.shape[0] * scale))
    ids = [colorize(cv2.resize(part, size, interpolation=cv2.INTER_NEAREST), palette) for part in (label, pred)]
    return np.hstack([cv2.resize(image, size, interpolation=cv2.INTER_AREA), *ids])


def legend(classes: Sequence[str], palette: Palette, columns: int = 4, row_height: int = 26) -> np.ndarray:
    """Draws colour patches with class names, ``columns`` in a row of ``row_height`` pixels; uint8 RGB on white."""
    scale = row_height / 48.0
    text_width = max(cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] for name in classes)
    width, rows = text_width + 2 * row_height, -(-len(classes) // columns)
    out = np.full((rows * row_height + 8, columns * width + 8, 3), 255, np.uint8)
    for k, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        x, y = 8 + (k % columns) * width, 8 + (k // columns) * row_height
        patch = (x, y), (x + row_height - 8, y + row_height - 8)
        cv2.rectangle(out, *patch, tuple(int(c) for c in colour), cv2.FILLED)
        cv2.rectangle(out, *patch, (90, 90, 90), 1)
        cv2.putText(out, name, (x + row_height, y + row_height - 12), cv2.FONT_HERSHEY_SIMPLEX, scale, (20, 20, 20), 1,
                    cv2.LINE_AA)
    return out


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG file.

    Args:
        path: File to write.
        pixels: RGB image, uint8 (H, W, 3), or label ids, uint8 or uint16 (H, W).

    Raises:
        DataError: The array cannot be encoded.
        UserError: The file cannot be written.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise DataError(f"{path}: cannot be encoded as PNG: array of shape {pixels.shape}, type {pixels.dtype}")
    write_bytes(path, data.tobytes())


def save_palette_png(path: Path, ids: np.ndarray, palette: Palette) -> None:
    """Writes class ids as a palette PNG (mode P): programs read ids from it, viewers show colours.

    Args:
        path: File to write.
        ids: Class ids (H, W), uint8.
        palette: Colours of the classes.

    Raises:
        UserError: The file cannot be written.
    """
    picture = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8))
    picture.putpalette(palette_table(palette).ravel().tolist())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    write_bytes(path, buffer.getvalue())


def to_label_ids(ids: np.ndarray, train_to_id: Sequence[int] | None) -> np.ndarray:
    """Converts train ids to the label ids that benchmark servers expect; ignored pixels become 0.

    Args:
        ids: Train ids, uint8 (H, W).
        train_to_id: Label id of each class, as in ``DatasetInfo``; None if train ids are the label ids.

    Returns:
        Label ids, uint8 (H, W).
    """
    if train_to_id is None:
        return ids
    table = np.zeros(256, np.uint8)
    table[:len(train_to_id)] = train_to_id
    return table[ids]


def _check_size(image: np.ndarray, ids: np.ndarray) -> None:
    if image.shape[:2] != ids.shape:
        raise DataError(f"image {image.shape[:2]} and class ids {ids.shape} differ in size")
