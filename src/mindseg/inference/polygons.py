"""Polygons of a class-id mask: the outlines of its connected regions, with their holes.

Coordinates are those of COCO: a pixel covers [x, x + 1] x [y, y + 1], and a polygon owns the pixels whose centre is
inside. A boundary is first walked side by side along the pixels, then crossed by few straight lines that keep every
pixel on its side.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Point = tuple[float, float]
Ring = list[Point]      # (x, y) of the corners; the last one is joined to the first

# The sides of a pixel, walked clockwise: top, right, bottom, left. Way along the side, and way to the pixel's inside.
_ALONG = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
_INSIDE = np.array([(0, 1), (-1, 0), (0, -1), (1, 0)])
_MIDDLE = np.array([(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)])
# COCO rounds corners to fifths of a pixel and moves slanted lines by up to 0.1. So corners lie on that grid, and lines
# stay 0.1 away from the centres of pixels.
_REACH = 0.4
_OFFSETS = (0, -0.2, 0.2, -0.4, 0.4)
_SHIFT = 0.1            # from the middle of a side to the grid


@dataclass(frozen=True)
class Region:
    """Pixels of one class that are connected by their sides.

    Attributes:
        class_id: The class.
        area: Number of pixels.
        box: Left, top, width and height in pixels.
        rings: The outline, then the holes.
        border: Pixels (x, y) along the outline, int (N, 2).
    """
    class_id: int
    area: int
    box: tuple[int, int, int, int]
    rings: list[Ring]
    border: np.ndarray

    def single_ring(self) -> Ring:
        """The outline with its holes cut open: a slit of no width leads to each, which formats without holes allow."""
        outline, *holes = self.rings
        for hole in holes:
            start = min(range(len(hole)), key=hole.__getitem__)
            distances = ((np.array(outline) - hole[start]) ** 2).sum(1)
            end = int(distances.argmin())
            outline = [*outline[:end + 1], *hole[start:], *hole[:start + 1], *outline[end:]]
        return outline


def find_regions(ids: np.ndarray) -> list[Region]:
    """Regions of a mask; each pixel belongs to one of them.

    Args:
        ids: uint8 class ids (H, W).

    Returns:
        The regions, those with the larger box first: a region inside a hole comes behind the one around it.
    """
    numbers, found = _connect(ids)
    sides, pixels, following = _walk(numbers)
    rows, columns = np.divmod(pixels, numbers.shape[1])
    corners = np.stack([columns, rows], 1) - 1      # numbers has a border of one pixel
    owner = numbers.ravel()[pixels]
    rings: list[list[Ring]] = [[] for _ in found]
    borders: list[np.ndarray] = []
    for loop in _loops(following):      # the outline of a region comes before its holes: it has the topmost side
        number = owner[loop[0]]
        if not rings[number]:
            borders.append(corners[loop])
            found[number] += (len(borders) - 1,)
        rings[number].append(_straighten(corners[loop], sides[loop], ids.shape[::-1]))
    regions = [Region(class_id, area, box, ring, borders[place])
               for (class_id, area, box, place), ring in zip(found, rings, strict=True)]
    return sorted(regions, key=lambda region: -region.box[2] * region.box[3])


def _connect(ids: np.ndarray) -> tuple[np.ndarray, list[tuple]]:
    """Number of each pixel's region, int32 (H + 2, W + 2) with -1 around, and class, area and box of each region."""
    numbers = np.full((ids.shape[0] + 2, ids.shape[1] + 2), -1, np.int32)
    inner, found = numbers[1:-1, 1:-1], []
    for class_id in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)):
        mask = (ids == class_id).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        np.copyto(inner, labels + (len(found) - 1), where=mask.astype(bool))
        found += [(int(class_id), int(row[4]), tuple(row[:4].tolist())) for row in stats[1:]]
    return numbers, found


def _walk(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sides of pixels between regions, from the topmost top side on.

    Returns:
        For each its kind (index into ``_ALONG``), its pixel (index into ``numbers``), and the next one clockwise.
    """
    inner, size = numbers[1:-1, 1:-1], numbers.size
    exists = np.zeros((4, *numbers.shape), bool)
    for kind, other in enumerate((numbers[:-2, 1:-1], numbers[1:-1, 2:], numbers[2:, 1:-1], numbers[1:-1, :-2])):
        exists[kind, 1:-1, 1:-1] = inner != other
    exists = exists.ravel()
    places = np.flatnonzero(exists)
    sides, pixels = np.divmod(places, size)
    steps = _ALONG @ (1, numbers.shape[1])
    # A walk keeps to its pixel, or goes straight on, or turns out to a pixel that shares a side: never over a corner.
    turned = (sides + 1) % 4 * size + pixels
    straight = places + steps[sides]
    back = (sides - 1) % 4
    outwards = back * size + pixels + steps[sides] + steps[back]
    following = np.where(exists[turned], turned, np.where(exists[straight], straight, outwards))
    return sides, pixels, np.searchsorted(places, following)


def _loops(following: np.ndarray) -> list[list[int]]:
    """The closed walks, by the numbers of their sides."""
    successors, seen, loops = following.tolist(), bytearray(len(following)), []
    for start in range(len(successors)):
        loop, side = [], start
        while not seen[side]:
            seen[side] = 1
            loop.append(side)
            side = successors[side]
        if loop:
            loops.append(loop)
    return loops


def _straighten(corners: np.ndarray, sides: np.ndarray, size: tuple[int, int]) -> Ring:
    """Few straight lines that cross every side of a closed walk between its pixels' centres.

    Args:
        corners: Upper left corner (x, y) of the pixel of each side, (N, 2).
        sides: Kinds of the sides.
        size: Width and height of the image, outside which COCO's rule has no grid.
    """
    middle, reach = corners + _MIDDLE[sides], _REACH * _INSIDE[sides]
    gates = np.concatenate([middle - reach, middle + reach], 1).tolist()
    spots = middle + _SHIFT * abs(_ALONG[sides])
    across = abs(_INSIDE[sides])
    choices = np.clip(spots[:, None] + np.array(_OFFSETS)[:, None] * across[:, None], 0, size).round(1).tolist()
    choices = [[tuple(point) for point in points] for points in choices]
    behind = (sides < 2).tolist()       # a side that is walked to the right or down has its spots behind its middle
    choices = [choices[0][:1], *choices[1:], choices[0][:1]]
    return _fewest_lines(choices, gates + gates[:1], behind + behind[:1])


def _fewest_lines(choices: list[list[Point]], gates: list[list[float]], behind: list[bool]) -> Ring:
    """Points of a ring from its first side on, found side by side in the manner of a breadth-first search.

    Args:
        choices: Points that may be corners, for each side; those of the last side are those of the first.
        gates: Outer and inner end (x, y, x, y) of what a line crosses at each side.
        behind: The points of the side lie behind its gate.
    """
    last = len(choices) - 1
    states = [(0, choices[0][0], None)]     # side, point, and the state that led there
    while True:
        found = {}
        for state in states:
            for side, points in _visible(state[0], state[1], choices, gates, behind):
                for point in points:
                    found.setdefault((side, point), (side, point, state))
        if not found:       # no line leads on from here
            state = states[0]
            found = {(): (state[0] + 1, choices[state[0] + 1][0], state)}
        farthest = max(state[0] for state in found.values())
        states = [state for state in found.values() if state[0] > farthest - 2]
        if farthest == last:
            state, ring = next(state for state in states if state[0] == last)[2], []
            while state is not None:
                ring.append(state[1])
                state = state[2]
            return ring[::-1]


def _visible(side: int, start: Point, choices: list[list[Point]], gates: list[list[float]],
             behind: Sequence[bool]) -> list[tuple[int, list[Point]]]:
    """The two farthest sides with points that a line from ``start`` reaches through all gates between."""
    x, y = start
    # The directions that pass all gates so far lie between these two.
    outer_x, outer_y, inner_x, inner_y = 0.0, 0.0, 0.0, 0.0
    gate, found = side + behind[side], []
    for target in range(side + 1, len(choices)):
        while gate < target + behind[target]:
            a, b, c, d = gates[gate]
            a, b, c, d = a - x, b - y, c - x, d - y
            if outer_x == outer_y == 0.0:
                outer_x, outer_y, inner_x, inner_y = a, b, c, d
            if outer_x * b > outer_y * a:
                outer_x, outer_y = a, b
            if inner_x * d < inner_y * c:
                inner_x, inner_y = c, d
            if outer_x * inner_y < outer_y * inner_x:
                return found
            gate += 1
        points = [point for point in choices[target]
                  if outer_x * (point[1] - y) >= outer_y * (point[0] - x)
                  and inner_x * (point[1] - y) <= inner_y * (point[0] - x)]
        if points:
            found = [*found[-1:], (target, points)]
    return found
