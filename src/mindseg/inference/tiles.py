"""Segmentation in tiles that overlap and are blended, from top to bottom, for images of any size.

docs/deployment.md has the rule, which the C++ runner follows, too. What is kept between two rows of tiles are scores
of as many rows as a seam is wide, and no whole image.
"""
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindseg.data.bands import Bands, WholeImage
from mindseg.errors import UserError, shorten
from mindseg.inference.predictor import Answer, Predictor, segment, segment_scores
from mindseg.inference.sampling import window_starts

_SEAM = 64          # pixels of a ramp at most
_SIDES = (32, 16384)
Call = Callable[..., Any]


@dataclass(frozen=True)
class Tiling:
    """Tiles of an image, in pixels.

    Attributes:
        size: Height and width of a tile.
        overlap: Rows or columns that neighbours share at least.
    """
    size: tuple[int, int]
    overlap: int


@dataclass(frozen=True)
class Span:
    """Rows or columns of a tile.

    Attributes:
        start: First pixel of the tile in the image.
        length: Pixels of the tile.
        first: First pixel that it gives to the result.
        end: The one behind the last.
        weights: float32 (end - first,), 0 to 1.
    """
    start: int
    length: int
    first: int
    end: int
    weights: np.ndarray


@dataclass(frozen=True)
class Band:
    """Some rows of an image with their classes.

    Attributes:
        top: Number of the first row.
        image: uint8 (rows, W, 3) in BGR order.
        answer: Classes of these rows.
    """
    top: int
    image: np.ndarray
    answer: Answer


def read_tiling(tile: str, overlap: int | None = None) -> Tiling:
    """Reads the size of tiles.

    Args:
        tile: ``HxW``, or one number for both.
        overlap: Pixels, below both sides; None: an eighth of the shorter side.

    Raises:
        UserError: These are no such numbers.
    """
    low, high = _SIDES
    try:
        sides = tuple(int(word) for word in tile.lower().split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or not all(low <= side <= high for side in sides):
        raise UserError(f"--tile {shorten(tile)}: must be HxW or one number, each side {low} to {high} pixels")
    overlap = min(sides) // 8 if overlap is None else overlap
    if not 0 <= overlap < min(sides):
        raise UserError(f"--overlap {overlap}: must be 0 to {min(sides) - 1}, below the shorter side of --tile {tile}")
    return Tiling((sides[0], sides[-1]), overlap)


def spans(length: int, tile: int, overlap: int, blend: bool = True) -> list[Span]:
    """Places and weights of the tiles along an axis; the weights of a pixel sum to one.

    Args:
        length: Rows or columns of the image.
        tile: Those of a tile.
        overlap: Those that two tiles share at least, below ``tile``.
        blend: Let tiles fade into each other; otherwise a pixel belongs to the tile whose centre is nearest.
    """
    tile = min(tile, length)
    step = max(tile - overlap, 1)
    starts = window_starts(length, tile, step)
    ramp = min(_SEAM, overlap, step // 2) if blend else 0
    seams = [(start + tile + following) / 2 for start, following in itertools.pairwise(starts)]
    found = []
    for start, left, right in zip(starts, [-math.inf, *seams], [*seams, math.inf], strict=True):
        pixels = np.arange(start, start + tile) + 0.5
        weights = _rise(pixels - left, ramp) - _rise(pixels - right, ramp)
        used = np.flatnonzero(weights)
        first, end = int(used[0]), int(used[-1]) + 1
        found.append(Span(start, tile, start + first, start + end, weights[first:end].astype(np.float32)))
    return found


def _rise(distance: np.ndarray, ramp: int) -> np.ndarray:
    """0 to 1 over ``ramp`` pixels around a seam, by the signed distance from it."""
    return np.clip(distance / ramp + 0.5, 0, 1) if ramp else (distance > 0).astype(np.float64)


def _call(function: Callable, *arguments: Any) -> Any:
    return function(*arguments)


def count_tiles(size: tuple[int, int], tiling: Tiling) -> int:
    """Number of tiles of an image.

    Args:
        size: Height and width of the image.
        tiling: Tiles.
    """
    return math.prod(len(spans(length, tile, tiling.overlap))
                     for length, tile in zip(size, tiling.size, strict=True))


def segment_tiled(predictor: Predictor, image: np.ndarray, tiling: Tiling, confidence: bool = False,
                  call: Call = _call) -> Answer:
    """Segments an image in memory in tiles; arguments and result as for :func:`segment_bands`.

    Args:
        predictor: Model.
        image: uint8 (H, W, 3) in BGR order.
        tiling: Tiles.
        confidence: Give it, too.
        call: Calls the model.
    """
    return _join([band.answer for band in segment_bands(predictor, WholeImage(image), tiling, confidence, call)], 0)


def segment_bands(predictor: Predictor, image: Bands, tiling: Tiling, confidence: bool = False,
                  call: Call = _call) -> Iterator[Band]:
    """Segments an image in tiles.

    Args:
        predictor: Model.
        image: Image of any size.
        tiling: Tiles; an image that fits into one is segmented as a whole.
        confidence: Give it, too.
        call: Called once for each tile, with a function and its arguments; returns the function's result.

    Yields:
        All rows of the image, from top to bottom.
    """
    height = image.size[0]
    rows, columns = (spans(length, tile, tiling.overlap, predictor.blends)
                     for length, tile in zip(image.size, tiling.size, strict=True))
    if len(rows) == len(columns) == 1:
        pixels = image.rows(0, height)
        yield Band(0, pixels, call(segment, predictor, pixels, confidence))
        return
    above = None
    for row, end in zip(rows, [*(row.first for row in rows[1:]), height], strict=True):
        band = image.rows(row.start, row.start + row.length)
        tiles = (band[:, column.start:column.start + column.length] for column in columns)
        scores = (call(segment_scores, predictor, tile, confidence) for tile in tiles)
        answer, above = _segment_row(predictor, scores, row, columns, end, above, confidence)
        yield Band(row.first, band[row.first - row.start:end - row.start], answer)


def _segment_row(predictor: Predictor, scores: Iterable[np.ndarray], row: Span, columns: list[Span], end: int,
                 above: np.ndarray | None, confidence: bool) -> tuple[Answer, np.ndarray]:
    """Segments a row of tiles.

    Args:
        predictor: Model.
        scores: Those of each tile, (K, height, width).
        row: Rows of the tiles.
        columns: Columns of each tile.
        end: Row behind those to which the tiles below give nothing.
        above: Weighted scores (K, n, W) that the tiles above give to the first n rows; None: there are none.
        confidence: Give it, too.

    Returns:
        Classes of the rows up to ``end``, and the weighted scores of the rows from ``end`` on.
    """
    answers, below, left, width = [], None, None, columns[-1].end
    ends = [*(column.first for column in columns[1:]), width]
    for part, column, right in zip(scores, columns, ends, strict=True):
        part = _weighted(part, row, column)
        if below is None:
            below = np.empty((len(part), row.end - end, width), part.dtype)
        if left is not None:
            part[:, :, :left.shape[2]] += left
        left = part[:, :, right - column.first:].copy()
        part = part[:, :, :right - column.first]
        if above is not None:
            part[:, :above.shape[1]] += above[:, :, column.first:right]
        below[:, :, column.first:right] = part[:, end - row.first:]
        finished = part[:, :end - row.first]
        answers.append(predictor.decide(finished, confidence) if predictor.blends else
                       (finished[0], finished[1] if confidence else None))
    return _join(answers, 1), below


def _weighted(scores: np.ndarray, row: Span, column: Span) -> np.ndarray:
    """Copy of what a tile gives to the result: its scores (K, height, width) times the weights of rows and columns."""
    part = np.array(scores[:, row.first - row.start:row.end - row.start,
                           column.first - column.start:column.end - column.start])
    for weights, values in ((row.weights[:, None], part), (column.weights[:, None], part.transpose(0, 2, 1))):
        faded = np.flatnonzero(weights != 1)
        if faded.size:
            values[:, faded] *= weights[faded]
    return part


def _join(answers: list[Answer], axis: int) -> Answer:
    ids, confidence = zip(*answers, strict=True)
    return np.concatenate(ids, axis), None if confidence[0] is None else np.concatenate(confidence, axis)
