"""Camera, light and drawing primitives of the synthetic streets.

World coordinates are metres: ``d`` to the right of the middle of our lane, ``y`` up from the ground, ``z`` ahead. The
bend of the road is part of the projection, so everything is placed as if the road were straight.
"""
import colorsys
import math
from dataclasses import dataclass, field
from enum import IntEnum

import cv2
import numpy as np

from mindseg.errors import DataError

SPLITS = ("train", "val", "test")
NEAR = 0.8  # metres; nothing is projected from closer than this
COS, SIN = (f(np.linspace(0.0, 2 * np.pi, 16, endpoint=False)) for f in (np.cos, np.sin))  # corners of round things

Colour = np.ndarray  # three floats 0..255, RGB
Rng = np.random.Generator


class Label(IntEnum):
    """The official Cityscapes label ids that are drawn; those from PERSON on have instances."""
    EGO, BORDER, OUT_OF_ROI, GROUND, ROAD, SIDEWALK, BUILDING, WALL, FENCE = 1, 2, 3, 6, 7, 8, 11, 12, 13
    POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY = 17, 19, 20, 21, 22, 23
    PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 24, 25, 26, 27, 28, 31, 32, 33


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Colour of a hue, saturation and value (each 0..1; the hue wraps)."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value)) * 255.0


def check_size(height: int, width: int) -> None:
    """Raises ``DataError`` if a picture of this size would be too small to show anything, or too large to draw."""
    if not (64 <= height <= 4096 and 128 <= width <= 4096):
        raise DataError(f"a picture of {height}x{width} cannot be drawn: use 64x128 to 4096x4096")


def pick(rng: Rng, items):
    """One item of a sequence, each equally likely."""
    return items[int(rng.integers(len(items)))]


@dataclass
class Camera:
    """Pinhole camera."""
    height: int     # rows of the picture
    width: int      # columns of the picture
    focal: float    # focal length in pixels
    horizon: float  # row of the horizon
    eye: float      # height above the ground
    shift: float    # distance from the middle of the lane, to the left
    bend: float     # curvature of the road: what is at depth z appears bend * z * z farther right

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixel coordinates int32 (..., 2) of world points (..., 3), given as (d, y, z)."""
        z = np.maximum(points[..., 2], NEAR)
        x = self.width / 2 + ((points[..., 0] + self.shift) / z + self.bend * z) * self.focal
        y = self.horizon + (self.eye - points[..., 1]) / z * self.focal
        return np.rint(np.stack([x, y], -1)).astype(np.int32)


@dataclass
class City:
    """Colours that the streets of one city have in common."""
    facade_hue: float  # 0..1
    leaf_hue: float    # 0..1
    road: Colour
    paving: Colour
    bus: Colour
    tram: Colour


@dataclass
class Pen:
    """Draws world polygons on a picture and its annotation; every choice of colour or shape comes from ``rng``.

    The annotation holds label ids, or ``id * 1000 + k`` for the k-th instance of a label.
    """
    rng: Rng
    city: City
    camera: Camera
    image: np.ndarray  # uint8 RGB (H, W, 3)
    codes: np.ndarray  # uint16 (H, W)
    light: dict[str, float]  # brightness of a "front", "left", "right" or "top" face
    code: int = 0      # what the next polygons are marked with
    counters: dict[int, int] = field(default_factory=dict)

    def begin(self, label: Label, group: bool = False) -> None:
        """Starts an object: labels with instances get the next ``id * 1000 + k``, others and groups the plain id."""
        self.code = int(label)
        if label >= Label.PERSON and not group:
            k = self.counters.get(label, 0)
            self.counters[label] = k + 1
            self.code = label * 1000 + k

    def fill(self, points: np.ndarray, colour: Colour, face: str = "front", mark: bool = True) -> None:
        """Fills polygons.

        Args:
            points: One polygon (N, 3) or several of equal size (M, N, 3), as (d, y, z).
            colour: Colour under white light.
            face: Direction that the polygon faces, a key of ``light``.
            mark: Whether the annotation is filled too.
        """
        pixels = self.camera.project(points)
        pixels = [pixels] if pixels.ndim == 2 else list(pixels)
        cv2.fillPoly(self.image, pixels, np.minimum(colour * self.light[face], 255).tolist())
        if mark:
            cv2.fillPoly(self.codes, pixels, self.code)

    def ribbon(self, d: tuple[float, float], z: tuple[float, float], colour: Colour,
               label: Label | None = None) -> None:
        """Fills a strip of ground between two positions and two depths; without ``label`` the annotation stays."""
        if label is not None:
            self.begin(label)
        depth = np.geomspace(*z, 12)  # more than the ends, because the road bends
        points = np.stack([np.repeat(d, 12), np.zeros(24), np.concatenate([depth, depth[::-1]])], -1)
        self.fill(points, colour, "top", mark=label is not None)

    def shadow(self, d: float, z: float, half: float, length: float) -> None:
        """Darkens the ground below a thing, from its near end at z."""
        self.ribbon((d - half, d + half), (z, z + length), self.city.road * 0.6)


@dataclass
class Figure:
    """A flat figure that faces the camera; ``a`` is to the right, ``y`` up, both in units of ``size`` metres."""
    pen: Pen
    d: float
    z: float
    size: float = 1.0
    stretch: float = 1.0  # widens; a negative one mirrors

    def fill(self, a, y, colour: Colour) -> None:
        """Fills a polygon given by its corners."""
        a, y = np.asarray(a, float) * self.stretch, np.asarray(y, float)
        self.pen.fill(np.stack([self.d + a * self.size, y * self.size, np.full(a.shape, self.z)], -1), colour)

    def oval(self, a: float, y: float, ra: float, ry: float, colour: Colour) -> None:
        """Fills an ellipse given by its centre and radii."""
        self.fill(a + ra * COS, y + ry * SIN, colour)

    def bar(self, a0: float, y0: float, a1: float, y1: float, width: float, colour: Colour) -> None:
        """Fills a bar between two points."""
        half = width / 2 / max(math.hypot(a1 - a0, y1 - y0), 1e-6)
        a, y = (y0 - y1) * half, (a1 - a0) * half
        self.fill([a0 + a, a1 + a, a1 - a, a0 - a], [y0 + y, y1 + y, y1 - y, y0 - y], colour)


class Box:
    """An upright box along the road; the camera sees its front and perhaps one side and the top.

    Args:
        pen: Pen to draw with.
        d: Left and right end.
        y: Lower and upper end.
        z: Near and far end.
        taper: Metres by which the top is set in on all four sides.
    """

    def __init__(self, pen: Pen, d: tuple[float, float], y: tuple[float, float], z: tuple[float, float],
                 taper: float = 0.0) -> None:
        self.pen = pen
        low, top = ([(d[0] + t, h, z[0] + t), (d[1] - t, h, z[0] + t), (d[1] - t, h, z[1] - t), (d[0] + t, h, z[1] - t)]
                    for h, t in zip(y, (0.0, taper), strict=True))
        # Corners of a face: lower near or left, lower far or right, then the two above them in the opposite order.
        self.faces = {"front": np.array([low[0], low[1], top[1], top[0]])}
        x = pen.camera.project(np.array(low))[:, 0]
        self.side = "left" if x[3] < x[0] else "right" if x[2] > x[1] else None
        if self.side:
            near, far = (0, 3) if self.side == "left" else (1, 2)
            self.faces[self.side] = np.array([low[near], low[far], top[far], top[near]])
        if pen.camera.eye > y[1]:
            self.faces["top"] = np.array(top)

    def paint(self, colour: Colour) -> None:
        """Fills the visible faces in one colour."""
        for face, corners in self.faces.items():
            self.pen.fill(corners, colour, face)

    def detail(self, face: str | None, a0, a1, y0, y1, colour: Colour) -> None:
        """Fills rectangles on the face "front" or ``side``; without a side (``None``) it does nothing.

        They reach from a0 to a1 of the face's width (0 is a side's near end) and from y0 to y1 of its height. All four
        are shares, 0..1; they are numbers or arrays (N,).
        """
        if face:
            corners = self.faces[face]
            a0, a1, y0, y1 = np.broadcast_arrays(*np.atleast_1d(a0, a1, y0, y1))
            a, y = np.stack([a0, a1, a1, a0], -1)[..., None], np.stack([y0, y0, y1, y1], -1)[..., None]
            low, high = corners[0] + a * (corners[1] - corners[0]), corners[3] + a * (corners[2] - corners[3])
            self.pen.fill(low + y * (high - low), colour, face, mark=False)

    def wheels(self, radius: float) -> None:
        """Draws two wheels that stand on the ground below the side."""
        if self.side:
            near, far, *_ = self.faces[self.side]
            for share in (0.2, 0.8):
                z = near[2] + share * (far[2] - near[2]) + radius * COS
                self.pen.fill(np.stack([np.full(16, near[0]), radius + radius * SIN, z], -1), hsv(0.6, 0.1, 0.1))
