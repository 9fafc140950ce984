"""The things of the procedural streets (vehicles, people, houses, …) and the camera and canvas they are drawn with.

World coordinates are metres: ``d`` to the right of the camera's lane, ``y`` up from the ground, ``z`` ahead.
The road's bend is part of the projection, so every object can be placed as if the road were straight.
One canvas holds the colours (RGB) and one the annotation (uint16: ``id``, or ``id * 1000 + k`` for the k-th instance).
"""
import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

# Official Cityscapes label ids, in words.
(UNLABELED, EGO, BORDER, OUT_OF_ROI, STATIC, DYNAMIC, GROUND, ROAD, SIDEWALK, PARKING, RAIL_TRACK, BUILDING, WALL,
 FENCE, GUARD_RAIL, BRIDGE, TUNNEL, POLE, POLEGROUP, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK,
 BUS, CARAVAN, TRAILER, TRAIN, MOTORCYCLE, BICYCLE) = range(34)
FIRST_INSTANCE_ID = PERSON
NEAR = 0.8  # metres; nothing is projected from closer than this

Colour = np.ndarray


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Colour from hue, saturation and value (each 0..1; the hue wraps) as three floats 0..255, RGB."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, np.clip(saturation, 0, 1), np.clip(value, 0, 1))) * 255.0


def pick(rng: np.random.Generator, items):
    """One item of a sequence, each equally likely."""
    return items[int(rng.integers(len(items)))]


# --------------------------------------------------------------------------------------------- camera, light, canvas
@dataclass
class Camera:
    """Pinhole camera. ``bend`` is the road's curvature term: an object at depth z is moved right by bend * z^2."""
    height: int
    width: int
    focal: float
    horizon: float
    eye: float
    bend: float
    roll: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) as (d, y, z) in metres -> pixel coordinates (..., 2) int32."""
        z = np.maximum(points[..., 2], NEAR)
        scale = self.focal / z
        u = (points[..., 0] + self.bend * z * z) * scale
        v = (self.eye - points[..., 1]) * scale
        out = np.empty((*u.shape, 2))
        out[..., 0] = self.width / 2 + u - self.roll * v
        out[..., 1] = self.horizon + v + self.roll * u
        return np.rint(out).astype(np.int32)


@dataclass
class Weather:
    """Light and air of one picture. Colours are RGB factors or 0..255 values, ``haze_depth`` is in metres."""
    ambient: float
    diffuse: float
    sun: np.ndarray
    tint: np.ndarray
    sky_top: Colour
    sky_low: Colour
    haze: Colour
    haze_depth: float
    cloud: float
    wet: float
    shadow: float


@dataclass
class City:
    """What the streets of one city have in common."""
    facade_hues: np.ndarray
    facade_saturation: float
    road_grey: float
    road_warmth: float
    paving: Colour
    paving_size: float
    leaf_hue: float
    grass_hue: float
    bus: Colour
    tram: Colour
    tram_top: Colour
    pole: Colour
    signal: Colour
    wall_hue: float
    fence_hue: float


@dataclass
class Pen:
    """Draws world polygons on the two canvases. ``code`` is the annotation that marked polygons receive."""
    camera: Camera
    weather: Weather
    image: np.ndarray
    codes: np.ndarray
    code: int = 0
    counters: dict[int, int] = field(default_factory=dict)

    def begin(self, label: int, group: bool = False) -> None:
        """Starts an object: instance classes get the next ``id * 1000 + k``, others (and groups) the plain id."""
        self.code = label
        if label >= FIRST_INSTANCE_ID and not group:
            k = self.counters.get(label, 0)
            self.counters[label] = k + 1
            self.code = label * 1000 + k

    def tone(self, colour: Colour, shade: float, depth: float) -> tuple[float, float, float]:
        """The colour under this light and behind this much air, 0..255."""
        clear = math.exp(-depth / self.weather.haze_depth)
        mixed = colour * self.weather.tint * (shade * clear) + self.weather.haze * (1.0 - clear)
        return tuple(min(max(c, 0.0), 255.0) for c in mixed.tolist())

    def shade(self, normal: tuple[float, float]) -> float:
        """Brightness of a vertical face whose normal points to (d, z)."""
        return self.weather.ambient + self.weather.diffuse * max(0.0, float(np.dot(normal, self.weather.sun)))

    def fill(self, points: np.ndarray, colour: Colour, shade: float = 1.0, mark: bool = True) -> None:
        """Fills one polygon (N, 3) or several of equal size (M, N, 3); ``mark`` also writes the annotation."""
        pixels = self.camera.project(points)
        pixels = [pixels] if pixels.ndim == 2 else list(pixels)
        cv2.fillPoly(self.image, pixels, self.tone(colour, shade, float(points[..., 2].mean())))
        if mark:
            cv2.fillPoly(self.codes, pixels, self.code)

    def stroke(self, points: np.ndarray, colour: Colour, width: float, mark: bool = True, closed: bool = False) -> None:
        """Draws a polyline (N, 3) of ``width`` metres, at least one pixel."""
        depth = max(float(points[..., 2].mean()), NEAR)
        thickness = max(1, round(width * self.camera.focal / depth))
        pixels = [self.camera.project(points)]
        cv2.polylines(self.image, pixels, closed, self.tone(colour, 1.0, depth), thickness)
        if mark:
            cv2.polylines(self.codes, pixels, closed, self.code, thickness)


@dataclass
class Frame:
    """A local frame on the ground: u along the object's heading, v to its right, y up; yaw 0 heads away from us."""
    d: float
    z: float
    yaw: float = 0.0

    def world(self, u, v, y) -> np.ndarray:
        """Local coordinates (scalars or arrays of one shape) -> world points (..., 3)."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        u, v, y = np.asarray(u, float), np.asarray(v, float), np.asarray(y, float)
        d = u * sin + v * cos
        out = np.empty((*max(d.shape, y.shape, key=len), 3))
        out[..., 0] = d + self.d
        out[..., 1] = y
        out[..., 2] = u * cos - v * sin + self.z
        return out

    def viewer(self) -> tuple[float, float]:
        """(u, v) of the camera."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        return -self.d * sin - self.z * cos, -self.d * cos + self.z * sin

    def normal(self, u: float, v: float) -> tuple[float, float]:
        """The local ground direction (u, v) in world (d, z)."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        return u * sin + v * cos, u * cos - v * sin


def rect(a0, a1, y0, y1) -> tuple[np.ndarray, np.ndarray]:
    """Corners of axis-parallel rectangles; scalars give (4,), arrays of shape (M,) give (M, 4)."""
    sizes = [len(x) for x in (a0, a1, y0, y1) if isinstance(x, (np.ndarray, list))]
    a, y = (np.empty((*sizes[:1], 4)) for _ in range(2))
    a[..., 0], a[..., 1], a[..., 2], a[..., 3] = a0, a1, a1, a0
    y[..., 0], y[..., 1], y[..., 2], y[..., 3] = y0, y0, y1, y1
    return a, y


def disc(a: float, y: float, ra: float, ry: float, n: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Corners of an n-gon inscribed in an ellipse."""
    t = np.arange(n) * (2 * math.pi / n)
    return a + ra * np.cos(t), y + ry * np.sin(t)


@dataclass
class Box:
    """An upright box in a frame, and the faces that the camera sees: ``side`` in v, ``end`` in u, None if hidden."""
    frame: Frame
    u: tuple[float, float]
    v: tuple[float, float]
    y: tuple[float, float]

    def __post_init__(self) -> None:
        cu, cv = self.frame.viewer()
        self.side = self.v[1] if cv > self.v[1] else self.v[0] if cv < self.v[0] else None
        self.end = self.u[1] if cu > self.u[1] else self.u[0] if cu < self.u[0] else None
        self.side_normal = self.frame.normal(0.0, 1.0 if self.side == self.v[1] else -1.0)
        self.end_normal = self.frame.normal(1.0 if self.end == self.u[1] else -1.0, 0.0)

    def paint(self, pen: Pen, colour: Colour, mark: bool = True) -> None:
        """Fills the visible faces in one colour under the light."""
        if pen.camera.eye > self.y[1]:
            u, v = rect(self.u[0], self.u[1], self.v[0], self.v[1])
            pen.fill(self.frame.world(u, v, self.y[1]), colour, pen.weather.ambient + 0.7 * pen.weather.diffuse, mark)
        self.on_side(pen, *rect(*self.u, *self.y), colour, mark)
        self.on_end(pen, *rect(*self.v, *self.y), colour, mark)

    def on_side(self, pen: Pen, u, y, colour: Colour, mark: bool = False) -> None:
        """Fills polygons given in (u, y) on the visible long side."""
        if self.side is not None:
            pen.fill(self.frame.world(u, self.side, y), colour, pen.shade(self.side_normal), mark)

    def on_end(self, pen: Pen, v, y, colour: Colour, mark: bool = False) -> None:
        """Fills polygons given in (v, y) on the visible end."""
        if self.end is not None:
            pen.fill(self.frame.world(self.end, v, y), colour, pen.shade(self.end_normal), mark)


@dataclass
class Item:
    """Something to draw: its extent for the drawing order, and the call that draws it."""
    d: tuple[float, float]
    z: tuple[float, float]
    tall: float
    draw: Callable[[], None]


# --------------------------------------------------------------------------------------------------------- vehicles
DARK = np.array([28.0, 28.0, 32.0])
GLASS = np.array([52.0, 66.0, 78.0])
RUBBER = np.array([22.0, 22.0, 24.0])
STEEL = np.array([150.0, 152.0, 155.0])
HEAD_LAMP = np.array([255.0, 246.0, 214.0])
TAIL_LAMP = np.array([208.0, 26.0, 20.0])


def paint_wheels(pen: Pen, box: Box, centres: list[float], radius: float) -> None:
    """Wheels on the visible side of a vehicle."""
    for u in centres:
        box.on_side(pen, *disc(u, radius, radius, radius), RUBBER, mark=True)
        box.on_side(pen, *disc(u, radius, radius * 0.55, radius * 0.55, 8), STEEL)


def draw_car(pen: Pen, rng: np.random.Generator, frame: Frame) -> None:
    """A hatchback, saloon or van: body, tapered cabin, wheels, lights and plate."""
    pen.begin(CAR)
    tall = rng.uniform(1.4, 1.75)
    half, wide = rng.uniform(1.95, 2.4), 0.9
    grey = rng.random() < 0.6
    body = hsv(pick(rng, (0.0, 0.58, 0.64)) + rng.uniform(-0.02, 0.02), 0.05 if grey else rng.uniform(0.35, 0.7),
               rng.uniform(0.2, 0.95) if grey else rng.uniform(0.25, 0.6))
    Box(frame, (-half * 0.94, half * 0.94), (-wide, wide), (0.02, 0.4)).paint(pen, DARK)
    lower = Box(frame, (-half, half), (-wide, wide), (0.3, 0.9))
    lower.paint(pen, body)
    back, front = rng.uniform(0.55, 0.95) * half, 0.42 * half
    base_u, base_v = np.array([-back, front]), 0.93 * wide
    top_u, top_v = np.array([-back + 0.25, front - 0.65]), 0.74 * wide
    cu, cv = frame.viewer()
    roof_u, roof_v = rect(top_u[0], top_u[1], -top_v, top_v)
    for sign in (-1.0, 1.0):
        if cu * sign > 0:
            k = 1 if sign > 0 else 0
            v = np.array([-base_v, base_v, top_v, -top_v])
            y = np.array([0.88, 0.88, tall, tall])
            u = np.array([base_u[k], base_u[k], top_u[k], top_u[k]])
            shade = pen.shade(frame.normal(sign, 0.0))
            pen.fill(frame.world(u, v, y), body * 0.9, shade)
            pen.fill(frame.world(u, v * 0.88, y * 0.9 + 0.12), GLASS, shade, mark=False)
        if cv * sign > base_v * 0.7:
            u = np.array([base_u[0], base_u[1], top_u[1], top_u[0]])
            v = sign * np.array([base_v, base_v, top_v, top_v])
            y = np.array([0.88, 0.88, tall, tall])
            shade = pen.shade(frame.normal(0.0, sign))
            pen.fill(frame.world(u, v, y), body, shade)
            for a, b in ((0.06, 0.48), (0.54, 0.94)):
                glass_u = np.array([u[0] + a * (u[1] - u[0]), u[0] + b * (u[1] - u[0]),
                                    u[3] + b * (u[2] - u[3]), u[3] + a * (u[2] - u[3])])
                pen.fill(frame.world(glass_u, v, np.array([0.95, 0.95, tall - 0.1, tall - 0.1])), GLASS, shade, False)
    pen.fill(frame.world(roof_u, roof_v, tall), body, pen.weather.ambient + pen.weather.diffuse * 0.7)
    paint_wheels(pen, lower, [-0.6 * half, 0.62 * half], 0.36)
    lamp = HEAD_LAMP if lower.end == half else TAIL_LAMP
    lower.on_end(pen, *rect([-0.82, 0.5], [-0.5, 0.82], 0.62, 0.8), lamp)
    lower.on_end(pen, *rect(-0.28, 0.28, 0.45, 0.57), np.array([228.0, 228.0, 220.0]))
    lower.on_end(pen, *rect(-0.85, 0.85, 0.3, 0.38), DARK)


def draw_truck(pen: Pen, rng: np.random.Generator, frame: Frame) -> None:
    """A box lorry: coloured cab in front, a blind cargo box behind, several wheels."""
    pen.begin(TRUCK)
    half, wide, tall = rng.uniform(3.2, 4.2), 1.25, rng.uniform(3.3, 3.9)
    cab_colour = hsv(pick(rng, (0.07, 0.6)) + rng.uniform(-0.02, 0.02), rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.85))
    plain = rng.random() < 0.6
    cargo_colour = hsv(rng.random(), rng.uniform(0.0, 0.1), rng.uniform(0.78, 0.95))
    chassis = Box(frame, (-half, half), (-wide * 0.9, wide * 0.9), (0.35, 1.0))
    cargo = Box(frame, (-half, half - 2.0), (-wide, wide), (0.95, tall))
    cab = Box(frame, (half - 1.85, half), (-wide * 0.96, wide * 0.96), (0.5, 2.8))
    cab_first = frame.viewer()[0] < 0  # seen from behind: the cab is the farther part
    for part, colour in ([(chassis, DARK), (cab, cab_colour), (cargo, cargo_colour)] if cab_first else
                         [(chassis, DARK), (cargo, cargo_colour), (cab, cab_colour)]):
        part.paint(pen, colour)
        if part is cab:
            cab.on_side(pen, *rect(half - 1.3, half - 0.2, 1.7, 2.5), GLASS)
            if cab.end == half:
                cab.on_end(pen, *rect(-1.1, 1.1, 1.6, 2.55), GLASS)
                cab.on_end(pen, *rect([-1.05, 0.7], [-0.7, 1.05], 0.75, 1.0), HEAD_LAMP)
                cab.on_end(pen, *rect(-0.6, 0.6, 0.7, 1.35), DARK * 1.6)
        if part is cargo:
            ribs = np.arange(-half + 0.4, half - 2.2, 0.8)
            cargo.on_side(pen, *rect(ribs, ribs + 0.07, 1.0, tall - 0.05), cargo_colour * 0.82)
            band = hsv(rng.random(), 0.8, 0.7)
            if not plain:
                cargo.on_side(pen, *rect(-half + 0.5, half - 2.5, 1.9, 2.5), band)
            if cargo.end == -half:
                seams = rect([-0.04, -wide, wide - 0.1], [0.04, -wide + 0.1, wide], 1.0, tall)
                cargo.on_end(pen, *seams, cargo_colour * 0.6)
                cargo.on_end(pen, *rect([-wide, wide - 0.35], [-wide + 0.35, wide], 0.98, 1.16), TAIL_LAMP)
    paint_wheels(pen, chassis, [-half + 0.9, -half + 2.0, half - 1.1], 0.5)
    if chassis.end is not None:
        chassis.on_end(pen, *rect([-1.1, 0.75], [-0.75, 1.1], 0.0, 0.6), RUBBER, mark=True)


def draw_bus(pen: Pen, rng: np.random.Generator, frame: Frame, city: City) -> None:
    """A city bus: one saturated colour, a long row of windows, destination display."""
    pen.begin(BUS)
    half, wide, tall = rng.uniform(4.6, 5.8), 1.27, rng.uniform(2.95, 3.25)
    colour = city.bus * rng.uniform(0.85, 1.1)
    body = Box(frame, (-half, half), (-wide, wide), (0.3, tall))
    Box(frame, (-half * 0.97, half * 0.97), (-wide * 0.95, wide * 0.95), (0.02, 0.35)).paint(pen, DARK)
    body.paint(pen, colour)
    count = int(rng.integers(6, 9))
    edges = np.linspace(-half + 0.25, half - 0.25, count + 1)
    body.on_side(pen, *rect(-half + 0.12, half - 0.12, 1.3, 2.55), DARK)
    body.on_side(pen, *rect(edges[:-1] + 0.08, edges[1:] - 0.08, 1.38, 2.48), GLASS * 1.35)
    body.on_side(pen, *rect(-half, half, 0.62, 0.8), np.clip(colour * 0.5, 0, 255))
    doors = edges[[count // 2, count - 1]]
    body.on_side(pen, *rect(doors, doors + 1.0, 0.42, 2.45), GLASS * 0.8)
    paint_wheels(pen, body, [-half * 0.6, half * 0.62], 0.48)
    if body.end == half:
        body.on_end(pen, *rect(-1.15, 1.15, 1.15, 2.45), GLASS)
        lamps = HEAD_LAMP
    else:
        body.on_end(pen, *rect(-1.0, 1.0, 1.75, 2.5), GLASS)
        body.on_end(pen, *rect(-0.8, 0.8, 0.7, 1.4), colour * 0.55)
        lamps = TAIL_LAMP
    body.on_end(pen, *rect(-0.75, 0.75, 2.58, 2.85), np.array([250.0, 160.0, 30.0]))
    body.on_end(pen, *rect([-1.15, 0.85], [-0.85, 1.15], 0.55, 0.85), lamps)
    body.on_end(pen, *rect(-wide, wide, 0.3, 0.45), DARK)


def draw_train(pen: Pen, rng: np.random.Generator, frame: Frame, city: City) -> None:
    """A tram of two or three cars: light upper half, coloured lower half, bellows, roof boxes and a pantograph."""
    pen.begin(TRAIN)
    wide, tall = 1.3, rng.uniform(3.3, 3.6)
    cars, length = int(rng.integers(2, 4)), rng.uniform(6.5, 8.5)
    first = -12.0  # the near end; the frame is the middle of a 24 m long berth
    starts = first + np.arange(cars) * (length + 0.5)
    total = starts[-1] + length
    Box(frame, (first + 0.1, total - 0.1), (-1.15, 1.15), (0.05, 0.5)).paint(pen, DARK)
    Box(frame, (first + 0.2, total - 0.2), (-1.1, 1.1), (0.5, tall - 0.2)).paint(pen, DARK * 1.5)
    for start in starts[::-1]:
        car = Box(frame, (start, start + length), (-wide, wide), (0.3, tall))
        car.paint(pen, city.tram_top)
        car.on_side(pen, *rect(start, start + length, 0.3, 1.3), city.tram)
        car.on_side(pen, *rect(start, start + length, tall - 0.3, tall), city.tram)
        edges = np.linspace(start + 0.3, start + length - 0.3, 5)
        car.on_side(pen, *rect(edges[:-1] + 0.12, edges[1:] - 0.12, 1.5, 2.7), GLASS)
        car.on_side(pen, *rect(start + length * 0.45, start + length * 0.45 + 1.2, 0.4, 2.75), GLASS * 0.75)
        Box(frame, (start + 1.0, start + length - 1.5), (-0.8, 0.8), (tall, tall + 0.35)).paint(pen, STEEL * 0.7)
        if start == first and car.end == start:
            car.on_end(pen, *rect(-wide, wide, 0.3, 1.3), city.tram)
            car.on_end(pen, np.array([-1.1, 1.1, 0.95, -0.95]), np.array([1.45, 1.45, 2.75, 2.75]), GLASS)
            car.on_end(pen, *disc(0.0, 0.95, 0.2, 0.2, 10), np.array([255.0, 250.0, 225.0]))
            car.on_end(pen, *rect(-0.7, 0.7, tall - 0.42, tall - 0.12), np.array([250.0, 200.0, 60.0]))
    middle = first + 0.4 * (total - first)
    arm = frame.world([middle, middle + 0.9, middle], 0.0, [tall + 0.3, tall + 0.85, tall + 1.4])
    pen.stroke(arm, DARK, 0.08)


def draw_caravan(pen: Pen, rng: np.random.Generator, frame: Frame) -> None:
    """A parked caravan (void for training)."""
    pen.begin(CARAVAN)
    body = Box(frame, (-2.2, 2.2), (-1.1, 1.1), (0.4, 2.5))
    body.paint(pen, np.array([225.0, 222.0, 210.0]))
    body.on_side(pen, *rect([-1.6, 0.4], [-0.4, 1.6], 1.3, 2.0), GLASS)
    body.on_end(pen, *rect(-0.8, 0.8, 1.3, 2.0), GLASS)
    body.on_side(pen, *rect(-2.2, 2.2, 0.8, 0.95), hsv(rng.random(), 0.6, 0.6))
    paint_wheels(pen, body, [0.0], 0.36)


def draw_trailer(pen: Pen, rng: np.random.Generator, frame: Frame) -> None:
    """A flat trailer with a tarpaulin (void for training)."""
    pen.begin(TRAILER)
    body = Box(frame, (-1.5, 1.5), (-0.85, 0.85), (0.5, 1.5))
    body.paint(pen, hsv(rng.random(), 0.25, 0.45))
    body.on_side(pen, *rect(-1.5, 1.5, 0.5, 0.62), STEEL)
    paint_wheels(pen, body, [0.0], 0.34)


# ------------------------------------------------------------------------------------------- people and two-wheelers
def skin(rng: np.random.Generator) -> Colour:
    """A skin tone."""
    return np.array([224.0, 178.0, 148.0]) * rng.uniform(0.38, 1.1)


def cloth(rng: np.random.Generator) -> Colour:
    """A colour of everyday clothing: mostly blue, violet or crimson, seldom anything else."""
    hue = rng.uniform(0.55, 1.0) if rng.random() < 0.85 else rng.random()
    return hsv(hue, rng.uniform(0.2, 0.85), rng.uniform(0.2, 0.75))


def safety_cloth(rng: np.random.Generator) -> Colour:
    """A colour of clothing that is worn to be seen: orange, yellow or lime; sometimes everyday clothing."""
    if rng.random() < 0.15:
        return cloth(rng)
    return hsv(rng.uniform(0.05, 0.24), rng.uniform(0.75, 1.0), rng.uniform(0.8, 1.0))


def limb(a0: float, y0: float, a1: float, y1: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """A limb as a quadrilateral around the segment (a0, y0) - (a1, y1)."""
    dx, dy = a1 - a0, y1 - y0
    norm = max(np.hypot(dx, dy), 1e-6)
    px, py = -dy / norm * width / 2, dx / norm * width / 2
    return np.array([a0 + px, a1 + px, a1 - px, a0 - px]), np.array([y0 + py, y1 + py, y1 - py, y0 - py])


def draw_person(pen: Pen, rng: np.random.Generator, frame: Frame) -> None:
    """A walking or standing pedestrian facing any way, drawn as a flat figure."""
    pen.begin(PERSON)
    size = rng.uniform(0.92, 1.1) * (0.75 if rng.random() < 0.12 else 1.0)
    step = rng.uniform(0.05, 0.3) * pick(rng, (-1, 1))
    top, legs, tone = cloth(rng), cloth(rng) * 0.75, skin(rng)

    def part(a, y, colour, shade=1.0, mark=True):
        pen.fill(frame.world(0.0, np.asarray(a) * size, np.asarray(y) * size), colour, shade, mark)

    light = pen.shade((0.0, -1.0)) * 0.5 + 0.5
    part(*limb(-0.06, 0.9, -0.08 - step, 0.06, 0.2), legs, light * 0.85)
    part(*limb(0.06, 0.9, 0.08 + step, 0.06, 0.2), legs, light)
    part(*rect(-0.2 - step, 0.02 - step, 0.0, 0.09), DARK)
    part(*rect(0.0 + step, 0.22 + step, 0.0, 0.09), DARK)
    part(np.array([-0.19, 0.19, 0.27, 0.18, -0.18, -0.27]), np.array([0.8, 0.8, 1.38, 1.48, 1.48, 1.38]), top, light)
    part(*limb(-0.24, 1.38, -0.3 + step * 0.7, 0.85, 0.13), top, light * 0.8)
    part(*limb(0.24, 1.38, 0.3 - step * 0.7, 0.85, 0.13), top, light * 0.9)
    if rng.random() < 0.3:
        bag = rng.uniform(0.25, 0.4)
        part(*rect(bag - 0.12, bag + 0.16, 0.7, 1.05), cloth(rng), light)
    part(*rect(-0.06, 0.06, 1.44, 1.56), tone, light)
    part(*disc(0.0, 1.64, 0.125, 0.15), tone, light)
    hair_a, hair_y = disc(0.0, 1.69, 0.13, 0.12)
    part(hair_a, np.maximum(hair_y, 1.66), cloth(rng) * 0.4, light, False)


@dataclass
class Sheet:
    """A flat figure in the (u, y) plane of a frame, foreshortened by ``stretch`` (negative = facing left)."""
    pen: Pen
    frame: Frame
    stretch: float
    light: float

    def fill(self, a, y, colour: Colour, mark: bool = True) -> None:
        """Fills a polygon given in (a, y)."""
        self.pen.fill(self.frame.world(0.0, np.asarray(a) * self.stretch, y), colour, self.light, mark)

    def line(self, a, y, colour: Colour, width: float, mark: bool = True, closed: bool = False) -> None:
        """Strokes a polyline given in (a, y)."""
        points = self.frame.world(0.0, np.asarray(a, float) * self.stretch, np.asarray(y, float))
        self.pen.stroke(points, colour, width, mark, closed)

    def veil(self, a, y, colour: Colour, alpha: float) -> None:
        """Covers a polygon lightly: the open parts of a wheel belong to the bicycle, but one sees through them."""
        points = self.frame.world(0.0, np.asarray(a) * self.stretch, y)
        pixels = self.pen.camera.project(points)
        cv2.fillPoly(self.pen.codes, [pixels], self.pen.code)
        x, y, width, height = cv2.boundingRect(pixels)
        left, top = max(x, 0), max(y, 0)
        patch = self.pen.image[top:max(y + height, 0), left:max(x + width, 0)]
        if patch.size:
            covered = patch.copy()
            tone = self.pen.tone(colour, self.light, float(points[..., 2].mean()))
            cv2.fillPoly(covered, [pixels - (left, top)], tone)
            patch[:] = cv2.addWeighted(patch, 1.0 - alpha, covered, alpha, 0.0)


def draw_bicycle(sheet: Sheet, rng: np.random.Generator, group: bool = False) -> None:
    """A bicycle from the side: two spoked wheels, diamond frame, saddle, handlebar."""
    sheet.pen.begin(BICYCLE, group)
    colour = hsv(rng.uniform(0.32, 0.58), rng.uniform(0.65, 1.0), rng.uniform(0.6, 0.95))
    for a in (-0.55, 0.55):
        sheet.veil(*disc(a, 0.36, 0.36, 0.36), STEEL, 0.45)  # the spokes, blurred
        sheet.line(*disc(a, 0.36, 0.33, 0.34), RUBBER, 0.075, closed=True)
        for t in (0.3, 1.35, 2.4):
            sheet.line([a - 0.3 * np.cos(t), a + 0.3 * np.cos(t)], [0.36 - 0.3 * np.sin(t), 0.36 + 0.3 * np.sin(t)],
                       STEEL, 0.015, False)
    sheet.veil([-0.5, 0.1, 0.5, 0.38, -0.2], [0.36, 0.3, 0.4, 0.85, 0.88], STEEL, 0.25)
    sheet.line([-0.55, -0.05, 0.38, -0.2, -0.55], [0.36, 0.3, 0.8, 0.82, 0.36], colour, 0.075)
    sheet.line([-0.05, -0.24], [0.3, 0.95], colour, 0.075)
    sheet.line([0.55, 0.36, 0.34, 0.5], [0.36, 0.82, 1.02, 1.05], colour * 0.8, 0.07)
    sheet.line([-0.38, -0.1], [0.97, 0.97], RUBBER, 0.09)


def draw_motorcycle(sheet: Sheet, rng: np.random.Generator) -> None:
    """A motorcycle from the side: fat wheels, tank, engine block, seat."""
    sheet.pen.begin(MOTORCYCLE)
    colour = hsv(rng.uniform(0.94, 1.03), rng.uniform(0.75, 1.0), rng.uniform(0.45, 0.9))
    for a in (-0.72, 0.74):
        sheet.fill(*disc(a, 0.34, 0.35, 0.35), RUBBER)
        sheet.fill(*disc(a, 0.34, 0.16, 0.16, 8), STEEL, False)
    sheet.fill([-0.55, 0.4, 0.5, 0.1, -0.35], [0.3, 0.25, 0.55, 0.75, 0.6], DARK * 1.6)
    sheet.fill([-0.25, 0.25, 0.3, -0.2], [0.28, 0.28, 0.52, 0.52], STEEL * 0.8, False)
    sheet.fill([-1.0, -0.85, -0.1, 0.0, -0.6], [0.72, 0.92, 0.86, 0.66, 0.6], DARK)
    sheet.fill([-0.12, 0.1, 0.52, 0.58, 0.3, -0.05], [0.66, 1.0, 1.0, 0.72, 0.55, 0.55], colour)
    sheet.fill([-1.05, -0.9, -0.45, -0.55], [0.7, 0.84, 0.68, 0.52], colour)
    sheet.line([0.74, 0.5, 0.42], [0.34, 0.95, 1.12], STEEL * 0.7, 0.1)
    sheet.line([0.42, 0.28], [1.12, 1.16], RUBBER, 0.09)
    sheet.fill(*disc(0.62, 0.92, 0.13, 0.13, 10), np.array([250.0, 246.0, 225.0]))


def draw_rider(sheet: Sheet, rng: np.random.Generator, motor: bool) -> None:
    """A cyclist's or motorcyclist's body, sitting on what was drawn before."""
    sheet.pen.begin(RIDER)
    top, legs, tone = safety_cloth(rng), cloth(rng) * 0.6, skin(rng)
    seat, pedal = (-0.4, 0.28) if motor else (-0.24, 0.22)
    helmet = safety_cloth(rng) if rng.random() < 0.5 else hsv(0.6, 0.05, rng.uniform(0.75, 0.95))
    knee = rng.uniform(0.55, 0.72)
    lean = rng.uniform(0.12, 0.34)
    sheet.fill(*limb(seat, 0.95, 0.22, knee + 0.08, 0.21), legs)
    sheet.fill(*limb(0.2, knee + 0.12, 0.02, pedal, 0.17), legs * 0.9)
    sheet.fill([seat - 0.18, seat + 0.16, seat + lean + 0.26, seat + lean + 0.02, seat + lean - 0.2],
               [0.9, 0.86, 1.42, 1.56, 1.45], top)
    sheet.fill(*limb(seat + lean + 0.06, 1.42, 0.38, 1.1, 0.13), top * 0.85)
    head = seat + lean + 0.14
    wide = 1.0 / max(abs(sheet.stretch), 0.45) * 0.75  # heads do not get narrower when the bicycle turns away
    sheet.fill(*disc(head, 1.68, 0.15 * wide, 0.16), tone)
    a, y = disc(head, 1.73, 0.17 * wide, 0.15)
    sheet.fill(a, np.maximum(y, 1.7 if not motor else 1.62), helmet)


def draw_two_wheeler(pen: Pen, rng: np.random.Generator, frame: Frame, motor: bool, ridden: bool) -> None:
    """A bicycle or motorcycle, parked or with its rider."""
    stretch = rng.uniform(0.6, 1.0) * pick(rng, (-1, 1))
    size = rng.uniform(1.0, 1.15)
    sheet = Sheet(pen, frame, stretch * size, pen.shade((0.0, -1.0)) * 0.4 + 0.6)
    if motor:
        draw_motorcycle(sheet, rng)
    else:
        draw_bicycle(sheet, rng, group=not ridden and rng.random() < 0.1)
    if ridden:
        draw_rider(sheet, rng, motor)


# -------------------------------------------------------------------------------------------------- street furniture
def draw_pole(pen: Pen, frame: Frame, colour: Colour, radius: float, tall: float, label: int = POLE) -> None:
    """A vertical mast with a lit and a dark edge."""
    pen.begin(label)
    pen.fill(frame.world(0.0, *rect(-radius, radius, 0.0, tall)), colour, pen.weather.ambient)
    edge = radius * 0.35 * (1 if pen.weather.sun[0] > 0 else -1)
    pen.fill(frame.world(0.0, *rect(edge, edge * 2.6, 0.0, tall)), colour, pen.weather.ambient * 1.3, mark=False)


def draw_street_lamp(pen: Pen, rng: np.random.Generator, frame: Frame, city: City) -> None:
    """A lamp post with an arm over the road."""
    radius, tall = rng.uniform(0.16, 0.22), rng.uniform(5.0, 7.5)
    double = rng.random() < 0.12
    draw_pole(pen, frame, city.pole, radius * (2.2 if double else 1.0), tall, POLEGROUP if double else POLE)
    reach = -1.6 if frame.d > 0 else 1.6
    pen.stroke(frame.world(0.0, [0.0, reach], [tall, tall + 0.3]), city.pole, radius * 1.5)
    a, y = rect(min(reach, reach * 1.35), max(reach, reach * 1.35), tall + 0.15, tall + 0.4)
    pen.fill(frame.world(0.0, a, y), city.pole * 0.7, 1.0)


def draw_traffic_light(pen: Pen, rng: np.random.Generator, frame: Frame, city: City) -> None:
    """Signal heads on a mast, beside it or on an arm over the lane."""
    tall = rng.uniform(3.0, 3.8)
    draw_pole(pen, frame, city.pole * 0.9, rng.uniform(0.16, 0.21), tall + 0.2)
    inward = -1.0 if frame.d > 0 else 1.0
    heads = [(0.0, tall - 1.2)]
    if rng.random() < 0.55:
        reach = inward * rng.uniform(2.2, 3.2)
        pen.stroke(frame.world(0.0, [0.0, reach], [tall + 1.3, tall + 1.5]), city.pole, 0.2)
        pen.fill(frame.world(0.0, *rect(-0.13, 0.13, tall, tall + 1.4)), city.pole, pen.weather.ambient)
        heads.append((reach, tall + 0.25))
    lamps = [np.array([255.0, 40.0, 30.0]), np.array([255.0, 190.0, 30.0]), np.array([40.0, 255.0, 130.0])]
    lit = int(rng.integers(3))
    for a, y in heads:
        pen.begin(LIGHT)
        scale = rng.uniform(0.95, 1.2)
        outer, inner = 0.32 * scale, 0.26 * scale
        pen.fill(frame.world(0.0, *rect(a - outer, a + outer, y, y + 1.45 * scale)), city.signal)
        pen.fill(frame.world(0.0, *rect(a - inner, a + inner, y + 0.06, y + 1.39 * scale)), DARK, mark=False)
        for k, lamp in enumerate(lamps):
            spot = disc(a, y + (1.18 - 0.45 * k) * scale, 0.18 * scale, 0.18 * scale)
            pen.fill(frame.world(0.0, *spot), lamp * (1.0 if k == lit else 0.22), mark=False)


RED, BLUE, YELLOW, WHITE = np.array([(205.0, 24.0, 30.0), (20.0, 70.0, 185.0), (250.0, 200.0, 20.0),
                                     (240.0, 240.0, 240.0)])


def draw_sign(pen: Pen, rng: np.random.Generator, frame: Frame, city: City) -> None:
    """One or two traffic signs on a post: round, triangular, diamond, octagonal or rectangular."""
    tall = rng.uniform(2.6, 3.4)
    draw_pole(pen, frame, city.pole, rng.uniform(0.11, 0.15), tall)
    pen.begin(SIGN)
    y = tall
    for _ in range(int(rng.integers(1, 3))):
        size = rng.uniform(0.48, 0.62)
        kind = int(rng.integers(6))
        n, start = ((16, 0.0), (3, np.pi / 2), (4, 0.0), (8, np.pi / 8), (16, 0.0), (4, np.pi / 4))[kind]
        outer, inner = ((RED, WHITE), (RED, WHITE), (WHITE, YELLOW), (WHITE, RED), (WHITE, BLUE), (WHITE, BLUE))[kind]
        t = start + np.linspace(0, 2 * np.pi, n, endpoint=False)
        if kind == 1:
            size *= 1.15
        pen.fill(frame.world(0.0, size * np.cos(t), y + size * np.sin(t)), outer, 0.95)
        pen.fill(frame.world(0.0, 0.74 * size * np.cos(t), y + 0.74 * size * np.sin(t)), inner, 0.95, False)
        ink = DARK if inner is WHITE or inner is YELLOW else WHITE
        bars = [(0.3, 0.12)] + [(0.12, 0.4)] * (kind == 5)
        for half, rise in bars:
            bar = rect(-half * size, half * size, y - rise * size, y + rise * size)
            pen.fill(frame.world(0.0, *bar), ink, mark=False)
        y -= 2.05 * size


def draw_bin(pen: Pen, rng: np.random.Generator, frame: Frame) -> None:
    """A litter bin, bollard or advertising pillar (static, void for training)."""
    pen.begin(STATIC)
    wide, tall = pick(rng, ((0.3, 1.0), (0.14, 0.9), (0.4, 2.3)))
    box = Box(frame, (-wide, wide), (-wide, wide), (0.0, tall))
    box.paint(pen, hsv(rng.random(), 0.4, 0.4))
    box.on_end(pen, *rect(-wide * 0.8, wide * 0.8, tall * 0.5, tall * 0.85), cloth(rng))


def draw_stroller(pen: Pen, rng: np.random.Generator, frame: Frame) -> None:
    """A pram or a cart (dynamic, void for training)."""
    sheet = Sheet(pen, frame, 1.0, 1.0)
    pen.begin(DYNAMIC)
    colour = cloth(rng)
    sheet.fill([-0.4, 0.4, 0.5, 0.0, -0.45], [0.35, 0.35, 0.8, 1.0, 0.7], colour)
    for a in (-0.3, 0.3):
        sheet.fill(*disc(a, 0.16, 0.16, 0.16, 10), RUBBER)


# ------------------------------------------------------------------------------------------- vegetation and buildings
_COS16, _SIN16 = np.cos(np.arange(16) * math.pi / 8), np.sin(np.arange(16) * math.pi / 8)


def blob(rng: np.random.Generator, frame: Frame, a: float, y: float, radius: float) -> np.ndarray:
    """An irregular round outline facing the camera."""
    r = radius * rng.uniform(0.78, 1.12, 16)
    return frame.world(0.0, a + r * _COS16, np.maximum(y + r * _SIN16 * 0.9, 0.0))


def draw_crown(pen: Pen, rng: np.random.Generator, frame: Frame, city: City, y: float, radius: float) -> None:
    """Foliage: dark lumps below, lighter ones towards the sun."""
    pen.begin(VEGETATION)
    hue = city.leaf_hue + rng.uniform(-0.035, 0.035)
    autumn = rng.random() < 0.08
    side = 0.25 * radius * np.sign(pen.weather.sun[0])
    for level, value in enumerate((0.2, 0.3, 0.4)):
        colour = hsv(hue - (0.12 if autumn else 0.0), rng.uniform(0.5, 0.72), value * rng.uniform(0.9, 1.15))
        for _ in range(5):
            lump = blob(rng, frame, rng.uniform(-0.62, 0.62) * radius + side * level,
                        y + rng.uniform(-0.5, 0.5) * radius + 0.18 * level * radius, radius * (0.62 - 0.13 * level))
            pen.fill(lump, colour, pen.weather.ambient + 0.6 * pen.weather.diffuse)


def draw_tree(pen: Pen, rng: np.random.Generator, frame: Frame, city: City) -> None:
    """A street tree."""
    pen.begin(VEGETATION)
    tall, radius = rng.uniform(3.2, 5.5), rng.uniform(1.3, 2.4)
    trunk = rng.uniform(0.13, 0.24)
    pen.fill(frame.world(0.0, *rect(-trunk, trunk, 0.0, tall)), hsv(0.07, 0.5, 0.4), pen.weather.ambient)
    draw_crown(pen, rng, frame, city, tall + radius * 0.4, radius)


def draw_hedge(pen: Pen, rng: np.random.Generator, frame: Frame, city: City, length: float, tall: float) -> None:
    """A row of bushes along the road."""
    pen.begin(VEGETATION)
    box = Box(frame, (0.0, length), (-0.4, 0.4), (0.0, tall * 0.8))
    box.paint(pen, hsv(city.leaf_hue, 0.6, 0.26))
    for u in np.arange(length, -0.01, -1.1):
        draw_crown(pen, rng, Frame(frame.d, frame.z + u), city, tall * 0.65, tall * 0.55)


def facade_colour(rng: np.random.Generator, city: City) -> Colour:
    """A facade colour of this city."""
    hue = pick(rng, city.facade_hues) + rng.uniform(-0.02, 0.02)
    return hsv(hue, city.facade_saturation * rng.uniform(0.4, 1.2), rng.uniform(0.5, 0.82))


def draw_building(pen: Pen, rng: np.random.Generator, box: Box, city: City) -> None:
    """A house: facade, plinth, roof edge, a grid of windows on both visible faces, shop windows at street level."""
    pen.begin(BUILDING)
    colour = facade_colour(rng, city)
    trim = np.clip(colour * rng.uniform(1.12, 1.3), 0, 255)
    tall = box.y[1]
    box.paint(pen, colour)
    floor, bay = rng.uniform(2.8, 3.6), rng.uniform(1.8, 3.0)
    glass = GLASS * rng.uniform(0.7, 1.5)
    shop = rng.random() < 0.4
    for on_face, (a0, a1) in ((box.on_side, box.u), (box.on_end, box.v)):
        on_face(pen, *rect(a0, a1, 0.0, 0.6), colour * 0.72)
        on_face(pen, *rect(a0, a1, tall - 0.5, tall), trim)
        on_face(pen, *rect([a0, a1 - 0.12], [a0 + 0.12, a1], 0.0, tall), colour * 0.7)
        columns = np.arange(a0 + 0.6, a1 - bay * 0.6, bay)
        rows = np.arange(floor + 0.3 if shop else 1.0, tall - 2.0, floor)
        if len(columns) and len(rows):
            a, y = (m.ravel() for m in np.meshgrid(columns, rows))
            on_face(pen, *rect(a - 0.12, a + bay * 0.5 + 0.12, y - 0.15, y + 1.75), trim)
            on_face(pen, *rect(a, a + bay * 0.5, y, y + 1.6), glass)
            on_face(pen, *rect(a + bay * 0.23, a + bay * 0.27, y, y + 1.6), trim)
            some = rng.random(len(a)) < 0.25
            if some.any():
                on_face(pen, *rect(a[some], a[some] + bay * 0.5, y[some] + 0.8, y[some] + 1.6), glass * 1.7)
        if shop:
            on_face(pen, *rect(a0 + 0.5, a1 - 0.5, 0.6, 2.5), glass * 0.8)
            on_face(pen, *rect(a0 + 0.3, a1 - 0.3, 2.5, 3.0), cloth(rng))
    if rng.random() < 0.5 and box.side is not None:
        roof = hsv(rng.uniform(0.0, 0.06), rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.5))
        inner = box.side - 0.3 * np.sign(box.side) * (box.v[1] - box.v[0])
        ridge, slope = rect(*box.u, tall, tall + rng.uniform(1.0, 2.4)), np.array([box.side, box.side, inner, inner])
        box.on_end(pen, np.array([*box.v, inner]), np.array([tall, tall, ridge[1][2]]), colour, mark=True)
        pen.fill(box.frame.world(ridge[0], slope, ridge[1]), roof, pen.weather.ambient + 0.3 * pen.weather.diffuse)


def draw_wall(pen: Pen, rng: np.random.Generator, box: Box, city: City) -> None:
    """A garden or retaining wall: courses of stones with mortar lines and a coping."""
    pen.begin(WALL)
    tall = box.y[1]
    colour = hsv(city.wall_hue + rng.uniform(-0.01, 0.01), rng.uniform(0.42, 0.65), rng.uniform(0.42, 0.62))
    box.paint(pen, colour)
    course, stone = 0.34, 0.9
    mortar = colour * (0.62 if rng.random() < 0.6 else 1.35)
    for on_face, (a0, a1) in ((box.on_side, box.u), (box.on_end, box.v)):
        rows = np.arange(0.0, tall, course)
        a = np.arange(a0, a1, stone)
        aa, yy = np.meshgrid(a, rows)
        aa = aa + (np.arange(len(rows)) % 2)[:, None] * stone / 2
        aa, yy = aa.ravel(), yy.ravel()
        top, tint = np.minimum(yy + course, tall), rng.random(aa.shape) < 0.3
        if tint.any():
            on_face(pen, *rect(aa[tint], np.minimum(aa[tint] + stone, a1), yy[tint], top[tint]), colour * 0.84)
        on_face(pen, *rect(aa, np.minimum(aa + 0.06, a1), yy, top), mortar)
        on_face(pen, *rect(a0, a1, rows, rows + 0.05), mortar)
        on_face(pen, *rect(a0, a1, tall - 0.14, tall), colour * 0.75)


def draw_fence(pen: Pen, rng: np.random.Generator, box: Box, city: City) -> None:
    """A wooden or white picket fence; its annotation covers the gaps too, as in the original data set."""
    pen.begin(FENCE)
    if box.side is None:
        return
    tall = box.y[1]
    wood = rng.random() < 0.5
    colour = hsv(city.fence_hue, rng.uniform(0.3, 0.5) if wood else 0.06, rng.uniform(0.75, 0.97))
    a0, a1 = box.u
    gap, bar = (0.46, 0.34) if wood else (0.4, 0.22)
    posts = np.arange(a0, a1, gap)
    u, y = rect(a0, a1, 0.0, tall)
    cv2.fillPoly(pen.codes, [pen.camera.project(box.frame.world(u, box.side, y))], pen.code)
    box.on_side(pen, *rect(posts, posts + bar, 0.05, tall), colour)
    box.on_side(pen, *rect(a0, a1, [0.2, tall * 0.75], [0.34, tall * 0.75 + 0.14]), colour * 0.85)
    heavy = np.arange(a0, a1, 2.4)
    box.on_side(pen, *rect(heavy, heavy + bar * 1.6, 0.0, tall + 0.06), colour * 0.7)


def draw_guard_rail(pen: Pen, box: Box) -> None:
    """A crash barrier (void for training)."""
    pen.begin(GUARD_RAIL)
    posts = np.arange(box.u[0], box.u[1], 2.0)
    box.on_side(pen, *rect(posts, posts + 0.15, 0.0, 0.5), STEEL * 0.6, mark=True)
    box.on_side(pen, *rect(*box.u, 0.42, 0.8), STEEL, mark=True)
    box.on_side(pen, *rect(*box.u, 0.58, 0.64), STEEL * 0.65)


def draw_bridge(pen: Pen, z: float, tall: float, colour: Colour) -> None:
    """An overpass across the street (void for training)."""
    pen.begin(BRIDGE)
    frame = Frame(0.0, z)
    pen.fill(frame.world(0.0, *rect(-60.0, 60.0, tall, tall + 1.6)), colour, pen.weather.ambient)
    pen.fill(frame.world(0.0, *rect(-60.0, 60.0, tall - 0.3, tall)), colour * 0.5, 1.0)
    pen.fill(frame.world(0.0, *rect([-13.0, 12.0], [-12.0, 13.0], 0.0, tall)), colour * 0.85, pen.weather.ambient)


def draw_tunnel(pen: Pen, z: float) -> None:
    """A tunnel mouth that ends the street (void for training)."""
    pen.begin(TUNNEL)
    frame = Frame(0.0, z)
    pen.fill(frame.world(0.0, *rect(-14.0, 14.0, 0.0, 8.5)), np.array([130.0, 124.0, 116.0]), pen.weather.ambient)
    pen.fill(frame.world(0.0, *disc(0.0, 0.0, 8.0, 6.5, 24)), DARK, 1.0)
