"""Composition of the synthetic streets: layout, order of drawing, texture and camera noise."""
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from . import objects
from .canvas import SPLITS, Camera, City, Label, Pen, Rng, check_size, hsv, pick

LANE = 3.6    # metres between the middles of two lanes
TRACK = -7.2  # metres; the middle of the tram's track
Thing = tuple  # (draw, d, z, ...): to be drawn by draw(pen, d, z, ...)

CITIES = {
    "train": ("aldenau", "bergheim", "corvale", "dunmere", "elmstadt", "farnsee", "grauwerk", "hollenbach"),
    "val": ("ibenstein", "jorvik", "kestrel"),
    "test": ("lindmoor", "mistelfeld"),
}
# Strength of fine grain and of coarse blotches on each label; others have 0.04 and 0.05.
TEXTURE = {Label.VEGETATION: (0.13, 0.24), Label.TERRAIN: (0.16, 0.2), Label.WALL: (0.07, 0.1), Label.SKY: (0.006, 0.0)}


def make_city(rng: Rng) -> City:
    """Chooses the colours of a city."""
    return City(
        facade_hue=pick(rng, (0.08, 0.12, 0.56)), leaf_hue=rng.uniform(0.28, 0.38),
        road=hsv(pick(rng, (0.1, 0.62)), rng.uniform(0.0, 0.06), rng.uniform(0.25, 0.36)),
        paving=hsv(rng.uniform(0.0, 0.09), rng.uniform(0.06, 0.2), rng.uniform(0.64, 0.8)),
        bus=hsv(pick(rng, (0.0, 0.12, 0.14)), rng.uniform(0.75, 0.95), rng.uniform(0.65, 0.9)),
        tram=hsv(pick(rng, (0.36, 0.47, 0.76)), rng.uniform(0.6, 0.9), rng.uniform(0.45, 0.75)))


@dataclass
class Side:
    """One side of the street; distances are metres from the middle of our lane."""
    sign: int     # -1 left, 1 right
    kerb: float   # edge of the road
    walk: float   # outer edge of the sidewalk
    verge: float  # outer edge of the grass behind it


def make_sides(rng: Rng, tram: bool) -> list[Side]:
    """Chooses the cross-section of the street."""
    sides = []
    for sign, kerb in ((-1, 9.0 if tram else 5.4), (1, pick(rng, (5.4, 2.1, 2.1)))):
        walk = kerb + rng.uniform(2.0, 3.0)
        sides.append(Side(sign, kerb, walk, walk + pick(rng, (0.0, 1.8, 2.6, 3.4))))
    return sides


# ----------------------------------------------------------------------------------------------------- sky and ground
def smooth_noise(rng: Rng, height: int, width: int, cells: int) -> np.ndarray:
    """Blotches: a random grid with ``cells`` rows, enlarged; float32 (height, width), about -1..1."""
    grid = rng.uniform(-1, 1, (cells + 1, max(2, cells * width // height) + 1)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def paint_sky(pen: Pen) -> None:
    """Fills the picture down to the horizon with a gradient and clouds, and the whole annotation with sky."""
    rng, camera = pen.rng, pen.camera
    rows = int(np.clip(camera.horizon * 1.1 + 2, 2, camera.height))
    top = hsv(rng.uniform(0.54, 0.62), rng.uniform(0.05, 0.65), 0.8)
    low = hsv(pick(rng, (0.09, 0.57)), 0.12, 0.9)
    sky = np.linspace(top, low, rows, dtype=np.float32)[:, None]
    clouds = smooth_noise(rng, rows, camera.width, 4) + 0.5 * smooth_noise(rng, rows, camera.width, 11)
    pen.image[:rows] = np.clip(sky + np.clip(clouds - 0.2, 0, 0.85)[..., None] * (225 - sky), 0, 255)
    pen.codes[:] = Label.SKY


def paint_ground(pen: Pen, sides: list[Side], tram: bool) -> None:
    """Draws grass and bare ground, sidewalks with slabs and kerbs, road, rails and lane markings."""
    rng, city, everywhere = pen.rng, pen.city, (1.2, 150.0)
    grass = hsv(rng.uniform(0.18, 0.23), rng.uniform(0.55, 0.75), 0.68)
    white = hsv(0.15, 0.03, rng.uniform(0.66, 0.88))
    left, right = -sides[0].kerb, sides[1].kerb
    pen.ribbon((-90.0, 0.0), everywhere, grass, Label.TERRAIN)
    pen.ribbon((0.0, 90.0), everywhere, city.paving * 0.7, Label.GROUND)
    pen.ribbon((left, right), everywhere, city.road, Label.ROAD)
    for side in sides:
        kerb, walk, verge = (side.sign * edge for edge in (side.kerb, side.walk, side.verge))
        pen.ribbon((walk, verge), everywhere, grass, Label.TERRAIN)
        pen.ribbon((kerb, walk), everywhere, city.paving, Label.SIDEWALK)
        for z in np.arange(1.2, 25.0, 1.1):
            pen.ribbon((kerb, walk), (z, z + 0.06), city.paving * 0.82)
        pen.ribbon((kerb, kerb + 0.16 * side.sign), everywhere, city.paving * 1.18)
    for rail in (TRACK - 0.75, TRACK + 0.75) if tram else ():
        pen.ribbon((rail - 0.07, rail + 0.07), everywhere, objects.STEEL)
    for line in (-LANE / 2, LANE / 2) if right > LANE else (-LANE / 2,):
        for z in np.arange(rng.uniform(1.5, 6.0), 70.0, 7.5):
            pen.ribbon((line - 0.08, line + 0.08), (z, z + 3.6), white)


# --------------------------------------------------------------------------------------------------------- population
def traffic(rng: Rng, sides: list[Side], first: str) -> Iterator[Thing]:
    """Vehicles in the lanes; one lane is led by a vehicle of the kind ``first``."""
    kinds = {"car": (objects.draw_car, 4.3), "truck": (objects.draw_truck, 7.6), "bus": (objects.draw_bus, 10.4)}
    leaders = [first, *rng.permutation([kind for kind in ("bus", "truck", "car", "car") if kind != first])]
    lanes = [(-LANE, False), (0.0, True), (LANE, True)][:3 if sides[1].kerb > LANE else 2]
    for kind, k in zip(leaders, rng.permutation(len(lanes)), strict=False):
        (d, away), z = lanes[k], rng.uniform(11.0, 15.0)
        while z < 42.0:
            draw, length = kinds[kind]
            yield draw, d + rng.normal(0.0, 0.12), z, away
            z += length + rng.uniform(3.0, 14.0)
            kind = pick(rng, ("car", "car", "car", "car", "truck", "bus"))


def road_users(rng: Rng, sides: list[Side]) -> Iterator[Thing]:
    """Riders and people in front of the vehicles: one to a slot, so that each is large and visible."""
    motors = [True, False, None, pick(rng, (True, False)), None]  # None is a pedestrian
    for motor, slot in zip(motors, rng.permutation(np.arange(-4.4, sides[1].kerb, 2.2)), strict=False):
        d, z = slot + rng.uniform(-0.4, 0.4), max(5.5, 1.3 * abs(slot)) + rng.uniform(0.0, 4.5)
        yield (objects.draw_person, d, z) if motor is None else (objects.draw_two_wheeler, d, z, motor, True)


def sidewalk(rng: Rng, side: Side) -> Iterator[Thing]:
    """Pedestrians, parked two-wheelers, traffic lights, signs, poles, and trees on the verge."""

    def place(near: float, far: float, reach: float) -> tuple[float, float]:
        """A position between two distances from the kerb, and not so near that it is out of the picture."""
        d = side.sign * (side.kerb + rng.uniform(near, far))
        return d, max(6.0, 1.25 * abs(d)) + rng.uniform(0.0, reach)

    wide = side.walk - side.kerb
    for _ in range(int(rng.integers(1, 4))):
        yield objects.draw_person, *place(0.4, wide, 7.0)
    for motor in (False, True):
        if rng.random() < 0.4:
            yield objects.draw_two_wheeler, *place(0.5, wide, 4.0), motor, False
    for draw in (objects.draw_traffic_light, objects.draw_sign, objects.draw_pole):
        if rng.random() < 0.8:
            yield draw, *place(0.35, 0.7, 5.0)
    for _ in range(int(rng.integers(0, 4))):
        yield objects.draw_tree, *place(wide, side.verge - side.kerb, 25.0)


def barrier(rng: Rng, side: Side) -> Iterator[Thing]:
    """The wall or fence behind the sidewalk."""
    d = side.sign * (side.verge + 0.2)
    near = max(2.0, 0.8 * abs(d) + rng.uniform(-3.0, 3.0))
    yield objects.draw_barrier, d, near, rng.uniform(30.0, 60.0), pick(rng, (True, False))


def houses(rng: Rng, side: Side) -> Iterator[Thing]:
    """A row of houses with gaps full of trees, or a park."""
    line, z, park = side.verge + rng.uniform(2.0, 6.0), rng.uniform(1.5, 4.0), pick(rng, (0.14, 0.14, 0.14, 1.0))
    while z < 105.0:
        length, wide = rng.uniform(8.0, 17.0), rng.uniform(9.0, 13.0)
        if rng.random() < park:
            for near in z + rng.uniform(2.0, length, 3):
                yield objects.draw_tree, side.sign * (line + rng.uniform(0.0, 8.0)), near
        else:
            yield objects.draw_house, side.sign * (line + wide / 2), z, wide, length
        z += length


# ---------------------------------------------------------------------------------------------------------- finishing
def paint_car_and_border(pen: Pen) -> None:
    """Draws the camera car's bonnet, and marks the border that undistortion leaves."""
    height, width = pen.codes.shape
    rise = max(2, round(pen.rng.uniform(0.03, 0.075) * height))
    bonnet = (width // 2, height), (round(0.46 * width), rise), 0, 180, 360
    cv2.ellipse(pen.image, *bonnet, hsv(pen.rng.random(), 0.15, pen.rng.uniform(0.1, 0.35)).tolist(), -1)
    cv2.ellipse(pen.codes, *bonnet, int(Label.EGO), -1)
    edge = max(1, round(width * 0.004))
    pen.codes[:, :edge] = pen.codes[:, -edge:] = pen.codes[:edge] = Label.OUT_OF_ROI
    pen.codes[-edge:] = Label.BORDER


def to_ids(codes: np.ndarray) -> np.ndarray:
    """Label ids uint8 of annotation codes uint16."""
    return np.where(codes >= 1000, codes // 1000, codes).astype(np.uint8)


def finish(pen: Pen) -> np.ndarray:
    """Adds texture, exposure, blur and sensor noise; returns the picture, uint8 RGB."""
    rng, ids, (height, width) = pen.rng, to_ids(pen.codes), pen.codes.shape
    strength = np.tile(np.float32([0.04, 0.05]), (256, 1))
    for label, value in TEXTURE.items():
        strength[label] = value
    tiles = (-(-height // 256), -(-width // 256), 1)  # noise is drawn for 256x256 and repeated, which is faster
    grain = np.tile(rng.standard_normal((256, 256, 1), dtype=np.float32), tiles)[:height, :width, 0]
    blotch = 0.6 * smooth_noise(rng, height, width, 14) + smooth_noise(rng, height, width, max(14, height // 5))
    gain = 1.0 + cv2.LUT(ids, strength[:, 0]) * grain + cv2.LUT(ids, strength[:, 1]) * blotch
    image = pen.image * (gain * np.float32(rng.uniform(0.88, 1.14)))[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.75) * max(0.8, width / 1024))
    noise = np.tile(rng.standard_normal((256, 256, 3), dtype=np.float32), tiles)[:height, :width]
    return np.clip(image + np.float32(rng.uniform(1.0, 4.5)) * noise, 0, 255).astype(np.uint8)


@dataclass
class Street:
    """One synthetic street: ``image`` uint8 RGB (H, W, 3), ``label_ids`` uint8 and ``instance_ids`` uint16 (H, W)."""
    image: np.ndarray
    label_ids: np.ndarray
    instance_ids: np.ndarray


def make_street(seed: int, split: str, index: int, height: int = 512, width: int = 1024) -> Street:
    """Makes one street.

    Args:
        seed: Seed of the data set, >= 0.
        split: "train", "val" or "test".
        index: Number of the picture in its split, >= 0.
        height: Rows.
        width: Columns.

    Returns:
        Picture and annotation with the 34 official label ids; instance classes (ids 24..33) have instance ids
        ``id * 1000 + k``, all others and groups the plain id.

    Raises:
        DataError: The size cannot be drawn.
    """
    check_size(height, width)
    part = SPLITS.index(split)
    city = make_city(np.random.default_rng([seed, part, 1, index % len(CITIES[split])]))
    rng = np.random.default_rng([seed, part, 0, index])
    camera = Camera(height, width, focal=max(width, 1.6 * height) * rng.uniform(0.56, 0.68),
                    horizon=height * rng.uniform(0.4, 0.5), eye=rng.uniform(1.9, 2.6), shift=rng.uniform(-0.5, 0.5),
                    bend=rng.normal(0.0, 0.0013))
    light = dict(zip(("front", "left", "right", "top"), rng.uniform(0.65, 1.1, 4), strict=True))
    pen = Pen(rng, city, camera, np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint16), light)
    tram = index % 2 == 0 or rng.random() < 0.4
    sides = make_sides(rng, tram)
    paint_sky(pen)
    paint_ground(pen, sides, tram)
    track = [(objects.draw_tram, TRACK, rng.uniform(8.5, 19.0))] if tram else []
    road = [*traffic(rng, sides, ("bus", "truck", "car")[index % 3]), *road_users(rng, sides)]
    # From the outside inwards, because what stands nearer to the road hides what stands farther out.
    layers = [[thing for side in sides for thing in add(rng, side)] for add in (houses, barrier, sidewalk)]
    for layer in (*layers, track, road):
        for draw, d, z, *args in sorted(layer, key=lambda thing: -thing[2]):
            draw(pen, d, z, *args)
    paint_car_and_border(pen)
    image, codes = finish(pen), pen.codes
    if rng.random() < 0.5:
        image, codes = image[:, ::-1], codes[:, ::-1]
    return Street(np.ascontiguousarray(image), np.ascontiguousarray(to_ids(codes)), np.ascontiguousarray(codes))
