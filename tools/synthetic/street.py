"""Composes procedural street scenes: layout, weather, drawing order, shadows, texture and camera noise."""
from dataclasses import dataclass

import cv2
import numpy as np

from . import objects as so
from .objects import Box, Camera, City, Frame, Item, Pen, Weather, hsv, pick, rect

FAR = 150.0  # metres; the ground is drawn up to here
NEAR_GROUND = 1.2  # metres; and from here
T16 = np.linspace(0, 2 * np.pi, 16, endpoint=False)

# How strongly fine grain, coarse blotches and the ground's own texture modulate each label id.
_GRAIN = np.full(256, 0.03, np.float32)
_BLOTCH = np.full(256, 0.04, np.float32)
_SOIL = np.zeros(256, np.float32)
_GRAIN[[so.VEGETATION, so.TERRAIN, so.WALL, so.BUILDING]] = (0.13, 0.10, 0.07, 0.04)
_BLOTCH[[so.VEGETATION, so.TERRAIN, so.WALL, so.BUILDING, so.SKY]] = (0.24, 0.10, 0.10, 0.07, 0.0)
_SOIL[[so.ROAD, so.SIDEWALK, so.TERRAIN, so.PARKING, so.GROUND, so.RAIL_TRACK]] = (0.10, 0.08, 0.28, 0.12, 0.22, 0.25)
_GRAIN[so.SKY] = 0.006


def make_city(rng: np.random.Generator) -> City:
    """Draws what the streets of one city have in common."""
    palette = rng.uniform(0.07, 0.15, 3)
    if rng.random() < 0.35:
        palette[0] = rng.uniform(0.5, 0.62)
    warm = rng.uniform(0.06, 0.2)
    return City(
        facade_hues=palette, facade_saturation=rng.uniform(0.08, 0.28),
        road_grey=rng.uniform(0.25, 0.36), road_warmth=rng.uniform(-0.06, 0.05),
        paving=hsv(rng.uniform(0.0, 0.09), warm, rng.uniform(0.64, 0.8)), paving_size=rng.uniform(0.7, 1.3),
        leaf_hue=rng.uniform(0.28, 0.38), grass_hue=rng.uniform(0.18, 0.23),
        bus=hsv(pick(rng, (0.0, 0.12, 0.14)) + rng.uniform(-0.02, 0.02), rng.uniform(0.75, 0.95),
                rng.uniform(0.65, 0.9)),
        tram=hsv(pick(rng, (0.36, 0.47, 0.76)) + rng.uniform(-0.03, 0.03), rng.uniform(0.6, 0.9),
                 rng.uniform(0.45, 0.75)),
        tram_top=hsv(0.12, rng.uniform(0.02, 0.2), rng.uniform(0.8, 0.95)),
        pole=hsv(rng.uniform(0.3, 0.6), rng.uniform(0.02, 0.18), rng.uniform(0.2, 0.36)),
        signal=hsv(0.13, rng.uniform(0.7, 0.95), rng.uniform(0.7, 0.95)),
        wall_hue=rng.uniform(0.0, 0.035), fence_hue=rng.uniform(0.08, 0.13))


def make_weather(rng: np.random.Generator) -> Weather:
    """Draws light, sky and air: clear, overcast, hazy, low sun or after rain."""
    kind = pick(rng, ("clear", "clear", "overcast", "haze", "low sun", "wet"))
    azimuth = rng.uniform(0, 2 * np.pi)
    sun = np.array([np.sin(azimuth), np.cos(azimuth)])
    tint = 1.0 + rng.uniform(-0.04, 0.04, 3)
    ambient, diffuse, shadow, cloud, wet = 0.7, 0.36, 0.34, 0.35, 0.0
    top, low = hsv(rng.uniform(0.54, 0.62), rng.uniform(0.4, 0.7), rng.uniform(0.65, 0.95)), hsv(0.56, 0.14, 0.93)
    depth = rng.uniform(180, 360)
    if kind in ("overcast", "wet"):
        ambient, diffuse, shadow, cloud = 0.8, 0.1, 0.16, 0.8
        top, low = hsv(0.6, 0.07, rng.uniform(0.6, 0.8)), hsv(0.58, 0.05, rng.uniform(0.8, 0.95))
        wet = rng.uniform(0.5, 1.0) if kind == "wet" else 0.0
    elif kind == "haze":
        ambient, diffuse, shadow, depth = 0.78, 0.18, 0.18, rng.uniform(90, 160)
        top, low = hsv(0.58, 0.18, 0.82), hsv(0.1, 0.06, 0.92)
    elif kind == "low sun":
        ambient, diffuse, shadow = 0.6, 0.45, 0.42
        tint = tint * np.array([1.07, 0.99, 0.9])
        top, low = hsv(0.6, rng.uniform(0.3, 0.5), 0.7), hsv(0.09, rng.uniform(0.2, 0.45), 0.97)
    return Weather(ambient, diffuse, sun, tint, top, low, low * 0.92, depth, cloud, wet, shadow)


@dataclass
class Layout:
    """Lateral positions in metres (left edges negative) and what stands on each side."""
    shift: float
    left: float
    right: float
    tram: bool
    track_is_road: bool
    kerb_lane: str
    walk: tuple[float, float]
    strip: tuple[float, float]
    strip_first: tuple[bool, bool]
    verge: tuple[str, str]

    def edge(self, side: int) -> float:
        """The kerb of a side (-1 left, +1 right), relative to the lane's centre."""
        return self.left if side < 0 else self.right

    def walk_start(self, side: int) -> float:
        """Where the sidewalk of a side begins, as a distance; a grass strip may lie between it and the kerb."""
        k = (side + 1) // 2
        return abs(self.edge(side)) + (self.strip[k] if self.strip_first[k] else 0.0)

    def strip_start(self, side: int) -> float:
        """Where the grass strip of a side begins, as a distance."""
        k = (side + 1) // 2
        return abs(self.edge(side)) + (0.0 if self.strip_first[k] else self.walk[k])

    def outer(self, side: int) -> float:
        """Where sidewalk and grass strip of a side end, as a distance."""
        k = (side + 1) // 2
        return abs(self.edge(side)) + self.walk[k] + self.strip[k]


def make_layout(rng: np.random.Generator, tram: bool) -> Layout:
    """Draws the cross-section of the street."""
    kerb_lane = pick(rng, ("traffic", "parking", "none", "none"))
    strip = tuple(rng.uniform(1.8, 3.4) if rng.random() < 0.65 else 0.0 for _ in range(2))
    verge = ("wall", "fence") if rng.random() < 0.5 else ("fence", "wall")
    verge = tuple(v if rng.random() < 0.92 else pick(rng, ("hedge", "guard rail", "none")) for v in verge)
    return Layout(shift=rng.uniform(-0.5, 0.5), left=-9.0 if tram else -5.4, tram=tram,
                  right={"traffic": 5.4, "parking": 4.3, "none": 2.1}[kerb_lane], track_is_road=rng.random() < 0.5,
                  kerb_lane=kerb_lane, walk=tuple(rng.uniform(2.0, 3.0, 2)), strip=strip,
                  strip_first=tuple(rng.random(2) < 0.5), verge=verge)


# ----------------------------------------------------------------------------------------------------- sky and ground
def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Blotches: a random grid with ``cells`` rows, enlarged; float32 (height, width), about -1..1."""
    grid = rng.uniform(-1, 1, (cells + 1, max(2, cells * width // height) + 1)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def paint_sky(pen: Pen, rng: np.random.Generator) -> None:
    """A vertical gradient with clouds over the whole picture, and the sun's glow in clear weather."""
    height, width = pen.codes.shape
    w = pen.weather
    rows = int(np.clip(pen.camera.horizon * 1.1 + 2, 2, height))
    t = np.clip(np.arange(rows, dtype=np.float32) / np.float32(max(pen.camera.horizon, 1.0)), 0, 1)[:, None, None]
    sky = w.sky_top.astype(np.float32) * (1 - t) + w.sky_low.astype(np.float32) * t
    clouds = cv2.addWeighted(smooth_noise(rng, rows, width, 4), 0.9, smooth_noise(rng, rows, width, 11), 0.45,
                             0.9 * (w.cloud - 0.5))
    cover = np.clip(clouds, 0, 0.85, out=clouds)[..., None]
    sky = sky + cover * (np.float32(235 if w.diffuse > 0.3 else 205) - sky)
    pen.image[:rows] = np.clip(sky, 0, 255, out=sky)
    pen.codes[:] = so.SKY


def ribbon(pen: Pen, d0: float, d1: float, colour: so.Colour, label: int | None, z0: float = NEAR_GROUND,
           z1: float = FAR) -> None:
    """A strip of ground between two lateral positions; ``label`` None leaves the annotation alone (markings)."""
    z = np.geomspace(z0, z1, 14)
    d = np.concatenate([np.full(14, d0), np.full(14, d1)])
    points = np.stack([d, np.zeros(28), np.concatenate([z, z[::-1]])], axis=-1)
    if label is not None:
        pen.begin(label, group=True)
    # Depth decides the air in front of it, so the strip is painted in bands.
    for k in (0, 4, 7, 10):
        stop = {0: 5, 4: 8, 7: 11, 10: 14}[k]
        band = np.concatenate([points[k:stop], points[28 - stop:28 - k]])
        pen.fill(band, colour, 1.0, label is not None)


def paint_ground(pen: Pen, rng: np.random.Generator, city: City, layout: Layout) -> None:
    """Grass or paved ground, sidewalks with slabs and kerbs, road, tram bed, parking strip, lane markings."""
    s, light = layout.shift, pen.weather.ambient + 0.5 * pen.weather.diffuse
    grass = hsv(city.grass_hue, rng.uniform(0.55, 0.75), rng.uniform(0.6, 0.76)) * light
    paving = city.paving * rng.uniform(0.92, 1.08) * light
    dark = 0.8 if pen.weather.wet else 1.0
    road = hsv(0.1 if city.road_warmth > 0 else 0.62, abs(city.road_warmth), city.road_grey * dark) * light
    base = rng.random()
    ribbon(pen, -90, 90, grass if base < 0.7 else paving * 0.8, so.TERRAIN if base < 0.7 else so.GROUND)
    for side in (-1, 1):
        k = (side + 1) // 2
        kerb, green = layout.edge(side) + s, side * layout.strip_start(side) + s
        if layout.strip[k] > 0:
            ribbon(pen, green, green + side * layout.strip[k], grass * rng.uniform(0.92, 1.05), so.TERRAIN)
        walk = side * layout.walk_start(side) + s
        out = walk + side * layout.walk[k]
        ribbon(pen, walk, out, paving, so.SIDEWALK)
        paint_slabs(pen, min(walk, out), max(walk, out), city.paving_size, paving * 0.82)
        ribbon(pen, kerb - side * 0.08, kerb + side * 0.16, paving * 1.18, None)
    ribbon(pen, layout.left + s, layout.right + s, road, so.ROAD)
    if layout.kerb_lane == "parking":
        ribbon(pen, 2.0 + s, layout.right + s, road * 1.18 * np.array([1.08, 0.98, 0.9]), so.PARKING)
    if layout.tram:
        bed = road if layout.track_is_road else hsv(0.08, 0.18, 0.42) * light
        ribbon(pen, -8.9 + s, -5.5 + s, bed, so.ROAD if layout.track_is_road else so.RAIL_TRACK)
        for rail in (-7.95, -6.45):
            ribbon(pen, rail + s - 0.07, rail + s + 0.07, so.STEEL * 0.9 * light, None)
    paint_markings(pen, rng, layout, light)


def paint_slabs(pen: Pen, d0: float, d1: float, size: float, colour: so.Colour) -> None:
    """Joints of the paving."""
    for d in np.arange(d0 + size, d1 - 0.1, size):
        ribbon(pen, d - 0.025, d + 0.025, colour, None, z1=30.0)
    z = np.arange(NEAR_GROUND, 22.0, size)
    quads = np.stack([np.stack([np.full(len(z), d), np.zeros(len(z)), z + dz], -1)
                      for d, dz in ((d0, 0.0), (d1, 0.0), (d1, 0.06), (d0, 0.06))], axis=1)
    pen.fill(quads, colour, 1.0, mark=False)


def paint_markings(pen: Pen, rng: np.random.Generator, layout: Layout, light: float) -> None:
    """Dashed lane lines, a centre line, sometimes a zebra crossing and a worn patch or manhole."""
    s = layout.shift
    white = np.array([225.0, 225.0, 220.0]) * rng.uniform(0.75, 1.0) * light
    ink = white if rng.random() < 0.75 else np.array([235.0, 190.0, 60.0]) * light
    lines = [-1.8] + ([1.8] if layout.kerb_lane == "traffic" else [])
    for d in lines:
        for z in np.arange(rng.uniform(1.5, 6.0), 70.0, 7.5):
            ribbon(pen, d + s - 0.08, d + s + 0.08, ink, None, max(z, NEAR_GROUND), z + 3.6)
    if rng.random() < 0.6:
        ribbon(pen, layout.left + s + 0.25, layout.left + s + 0.37, white, None)
    if rng.random() < 0.35:
        z = rng.uniform(7.0, 16.0)
        for d in np.arange(layout.left + 0.5, layout.right - 0.5, 1.1):
            ribbon(pen, d + s, d + s + 0.55, white, None, z, z + 3.0)
    for _ in range(int(rng.integers(0, 4))):
        z, d = rng.uniform(5.0, 18.0), rng.uniform(layout.left + 1, layout.right - 1) + s
        dark = hsv(0.6, 0.05, rng.uniform(0.16, 0.3)) * light
        if rng.random() < 0.5:
            pen.fill(np.stack([d + 0.35 * np.cos(T16), np.zeros(16), z + 0.35 * np.sin(T16)], -1), dark, 1.0, False)
        else:
            ribbon(pen, d, d + rng.uniform(0.5, 1.8), dark * 1.3, None, z, z + rng.uniform(1.0, 5.0))


# --------------------------------------------------------------------------------------------------------- population
class Scene:
    """Fills a layout with items. Every ``add_*`` method places one kind of thing."""

    def __init__(self, pen: Pen, rng: np.random.Generator, city: City, layout: Layout) -> None:
        self.pen, self.rng, self.city, self.layout = pen, rng, city, layout
        self.items: list[Item] = []

    def add(self, d: float, z: float, extent: tuple[float, float, float], draw, yaw: float = 0.0) -> None:
        """Places one object with half width, length ahead of ``z`` and height; ``draw`` gets (pen, rng, frame)."""
        half, length, tall = extent
        d = d + self.layout.shift
        frame = Frame(d, z + length / 2, yaw)
        seed = self.rng.spawn(1)[0]
        self.items.append(Item((d - half, d + half), (z, z + length), tall, lambda: draw(self.pen, seed, frame)))

    def add_row(self, d: float, z0: float, z1: float, tall: float, draw, depth: float = 0.3) -> None:
        """Places something long beside the road: ``draw`` gets (pen, rng, box)."""
        d = d + self.layout.shift
        box = Box(Frame(d, z0), (0.0, z1 - z0), (-depth / 2, depth / 2), (0.0, tall))
        seed = self.rng.spawn(1)[0]
        self.items.append(Item((d - depth / 2, d + depth / 2), (z0, z1), tall, lambda: draw(self.pen, seed, box)))

    def is_free(self, d: float, z: float, half: float) -> bool:
        """Whether nothing stands within ``half`` metres sideways and 0.6 m in depth."""
        d = d + self.layout.shift
        return not any(item.d[0] < d + half and d - half < item.d[1] and item.z[0] < z + 0.6 and z - 0.6 < item.z[1]
                       for item in self.items)

    # -- traffic
    def add_vehicle(self, kind: str, d: float, z: float, away: bool) -> float:
        """Places a vehicle with its near end at z; returns where it ends."""
        yaw = (0.0 if away else np.pi) + self.rng.normal(0.0, 0.025)
        city = self.city
        if kind == "motorcycle":
            self.add(d, z, (0.9, 0.6, 1.8), lambda p, r, f: so.draw_two_wheeler(p, r, f, motor=True, ridden=True))
            return z + 2.0
        extent, draw = {
            "car": ((0.95, 4.3, 1.5), so.draw_car),
            "truck": ((1.25, 8.0, 3.6), so.draw_truck),
            "bus": ((1.27, 10.6, 3.1), lambda p, r, f: so.draw_bus(p, r, f, city)),
            "caravan": ((1.1, 4.4, 2.5), so.draw_caravan),
            "trailer": ((0.85, 3.0, 1.5), so.draw_trailer),
        }[kind]
        self.add(d, z, extent, draw, yaw)
        return z + extent[1]

    def add_traffic(self, must: str) -> None:
        """Fills the lanes. The three leading vehicles are dealt from a shuffled deck, so large ones are common."""
        rng, layout = self.rng, self.layout
        deck = ["bus", "truck", "car", "car"]
        rng.shuffle(deck)
        deck = [must] + [kind for kind in deck if kind != must]
        lanes = [(-3.6, False, rng.uniform(9.0, 14.0)), (0.0, True, rng.uniform(12.0, 17.0))]
        if layout.kerb_lane != "none":
            lanes.append((3.6 if layout.kerb_lane == "traffic" else 3.2, True, rng.uniform(9.0, 13.0)))
        order = rng.permutation(len(lanes))
        for kind, k in zip(deck, order, strict=False):
            d, away, z = lanes[k]
            while z < 42.0:
                if rng.random() < 0.9 or kind == must:
                    z = self.add_vehicle(kind, d + rng.normal(0.0, 0.12), z, away)
                z += rng.uniform(3.0, 12.0)
                kind = pick(rng, ("car", "car", "car", "car", "truck", "bus", "motorcycle", "caravan", "trailer"))
                if kind in ("caravan", "trailer") and rng.random() < 0.6:
                    kind = "car"
        if rng.random() < 0.4:
            yaw = np.pi * (rng.integers(2) - 0.5)
            self.add(rng.uniform(-8, 8), rng.uniform(26.0, 45.0), (2.2, 1.9, 1.5), so.draw_car, yaw)

    def add_tram(self) -> None:
        """A tram on its bed on the left."""
        self.add(-7.2, self.rng.uniform(8.5, 19.0), (1.3, 24.0, 3.5),
                 lambda p, r, f: so.draw_train(p, r, f, self.city))

    # -- people
    def add_people(self) -> None:
        """Pedestrians on the sidewalks and sometimes on the road, cyclists, parked two-wheelers."""
        rng, layout = self.rng, self.layout
        for side in (-1, 1):
            k = (side + 1) // 2
            kerb, walk = layout.walk_start(side), layout.walk[k]
            for _ in range(int(rng.integers(1, 4))):
                d = side * (kerb + rng.uniform(0.4, walk))
                self.add(d, max(5.0, 1.2 * abs(d)) + rng.uniform(0.0, 7.0), (0.4, 0.3, 1.75), so.draw_person)
            for motor in (False, True):
                if rng.random() < 0.4:
                    d = side * (kerb + rng.uniform(0.5, 0.5 * walk + 0.4))
                    self.add(d, max(5.0, 1.2 * abs(d)) + rng.uniform(0.0, 4.0), (0.9, 0.3, 1.1),
                             lambda p, r, f, m=motor: so.draw_two_wheeler(p, r, f, motor=m, ridden=False))
            if rng.random() < 0.25:
                d = side * (kerb + rng.uniform(0.4, walk))
                self.add(d, 1.3 * abs(d) + rng.uniform(1.0, 10.0), (0.5, 0.5, 1.0),
                         so.draw_stroller if rng.random() < 0.4 else so.draw_bin)
        # In front of the vehicles, one road user to a slot: each is large, and none hides another.
        slots = np.arange(-4.4, layout.right, 2.2)
        users = ["motorcycle", "bicycle", "person", "motorcycle" if rng.random() < 0.5 else "bicycle", "person"]
        for kind, slot in zip(users, rng.permutation(slots), strict=False):
            d, z = slot + rng.uniform(-0.4, 0.4), max(5.5, 1.3 * abs(slot)) + rng.uniform(0.0, 4.5)
            if not self.is_free(d, z, 0.6):
                continue
            if kind == "person":
                self.add(d, z, (0.4, 0.3, 1.75), so.draw_person)
            else:
                self.add(d, z, (0.9, 0.3, 1.8), lambda p, r, f, m=kind == "motorcycle": so.draw_two_wheeler(
                    p, r, f, motor=m, ridden=True))

    # -- furniture, greenery, houses
    def add_furniture(self) -> None:
        """Traffic lights, signs and street lamps near the kerbs."""
        rng, layout, city = self.rng, self.layout, self.city
        kinds = (("light", 1, 0.9, 3.0), ("light", -1, 0.6, 6.0), ("sign", 1, 0.9, 5.0), ("sign", -1, 0.75, 6.0),
                 ("lamp", 1, 0.8, 7.0), ("lamp", -1, 0.8, 7.0))
        draws = {"light": so.draw_traffic_light, "sign": so.draw_sign, "lamp": so.draw_street_lamp}
        for kind, side, chance, reach in kinds:
            if rng.random() < chance:
                d = side * (abs(layout.edge(side)) + rng.uniform(0.35, 0.7))
                z = max(6.5, 1.25 * abs(d)) + rng.uniform(0.0, reach)
                self.add(d, z, (0.4, 0.3, 4.5 if kind != "lamp" else 6.5),
                         lambda p, r, f, draw=draws[kind]: draw(p, r, f, city))

    def add_verge(self, side: int) -> None:
        """Wall, fence, hedge or rail behind the sidewalk, and trees on the grass strip."""
        rng, layout, city = self.rng, self.layout, self.city
        k = (side + 1) // 2
        d = side * (layout.outer(side) + 0.2)
        z0 = max(2.0, 0.8 * abs(d) + rng.uniform(-3.0, 3.0))
        z1 = z0 + rng.uniform(30.0, 60.0)
        kind = layout.verge[k]
        if kind == "wall":
            self.add_row(d, z0, z1, rng.uniform(2.6, 4.2), lambda p, r, b: so.draw_wall(p, r, b, city))
        elif kind == "fence":
            self.add_row(d, z0, z1, rng.uniform(2.0, 3.0), lambda p, r, b: so.draw_fence(p, r, b, city))
        elif kind == "guard rail":
            self.add_row(d, z0, z1, 0.8, lambda p, r, b: so.draw_guard_rail(p, b))
        elif kind == "hedge":
            tall = rng.uniform(0.9, 1.8)
            self.add_row(d, z0, z1, tall, lambda p, r, b: so.draw_hedge(
                p, r, Frame(b.frame.d, b.frame.z), city, b.u[1], tall))
        if rng.random() < 0.75:
            line = side * (layout.strip_start(side) + 0.5 * layout.strip[k])
            z = 1.3 * abs(line) + rng.uniform(0.0, 12.0)
            for _ in range(int(rng.integers(1, 4))):
                self.add(line, z, (0.5, 0.5, 6.0), lambda p, r, f: so.draw_tree(p, r, f, city))
                z += rng.uniform(6.0, 14.0)

    def add_houses(self, side: int) -> None:
        """A row of houses with gaps, or a park with trees."""
        rng, layout, city = self.rng, self.layout, self.city
        line = layout.outer(side) + rng.uniform(2.0, 6.0)
        park = rng.random() < 0.2
        z = rng.uniform(-2.0, 6.0)
        while z < 105.0:
            length = rng.uniform(8.0, 17.0)
            if park or rng.random() < 0.14:
                for _ in range(3):
                    self.add(side * (line + rng.uniform(0.0, 8.0)), max(4.0, z + rng.uniform(0, length)),
                             (0.5, 0.5, 6.0), lambda p, r, f: so.draw_tree(p, r, f, city))
            else:
                depth, tall, z0 = rng.uniform(9.0, 13.0), rng.uniform(6.5, 19.0), max(z, 1.5)
                if z + length > z0 + 1.0:
                    self.add_row(side * (line + depth / 2), z0, z + length, tall,
                                 lambda p, r, b: so.draw_building(p, r, b, city), depth)
            z += length + (rng.uniform(3.0, 9.0) if rng.random() < 0.2 else 0.0)

    def add_distance(self) -> None:
        """What closes the street: far houses and trees, sometimes a bridge or a tunnel."""
        rng, city, pen = self.rng, self.city, self.pen
        for _ in range(int(rng.integers(4, 10))):
            d, z, wide = rng.uniform(-110, 110), rng.uniform(112, 146), rng.uniform(10, 24)
            self.add_row(d, z, z + 10, rng.uniform(7.0, 24.0), lambda p, r, b: so.draw_building(p, r, b, city), wide)
        for _ in range(int(rng.integers(5, 14))):
            radius = rng.uniform(3.0, 6.0)
            self.add(rng.uniform(-80, 80), rng.uniform(100, 135), (radius, 1.0, 6.0),
                     lambda p, r, f, q=radius: so.draw_crown(p, r, f, city, q * 0.8, q))
        if rng.random() < 0.12:
            z, tall, colour = rng.uniform(45, 80), rng.uniform(5.0, 7.0), hsv(0.08, 0.1, rng.uniform(0.4, 0.65))
            self.items.append(Item((-60, 60), (z, z + 1), 0.0, lambda: so.draw_bridge(pen, z, tall, colour)))
        elif rng.random() < 0.06:
            z = rng.uniform(70, 95)
            self.items.append(Item((-14, 14), (z, z + 1), 0.0, lambda: so.draw_tunnel(pen, z)))


def drawing_order(items: list[Item]) -> list[int]:
    """Indices from back to front.

    Of two items one is behind if it lies wholly farther away; when their depths overlap, if it lies farther out on the
    same side of the camera; otherwise the one that starts farther away. Cycles are broken at the farthest item.
    """
    d0, d1 = (np.array([item.d[k] for item in items]) for k in (0, 1))
    z0, z1 = (np.array([item.z[k] for item in items]) for k in (0, 1))
    beyond = z0[:, None] >= z1[None, :] - 1e-6
    outside = ((d0[:, None] >= d1[None, :] - 0.05) & (d0[None, :] + d1[None, :] > 0)) | (
        (d1[:, None] <= d0[None, :] + 0.05) & (d0[None, :] + d1[None, :] <= 0))
    starts = z0[:, None] > z0[None, :]
    behind = np.where(beyond, True, np.where(beyond.T, False, np.where(
        outside & ~outside.T, True, np.where(outside.T & ~outside, False, starts))))
    np.fill_diagonal(behind, False)
    blockers = behind.sum(axis=0)  # how many items must be drawn before this one
    left, order = np.ones(len(items), bool), []
    for _ in items:
        free = np.flatnonzero(left & (blockers == 0))
        candidates = free if len(free) else np.flatnonzero(left)
        k = int(candidates[np.argmax(z1[candidates])])
        left[k] = False
        blockers = blockers - behind[k]
        order.append(k)
    return order


def paint_shadows(pen: Pen, items: list[Item]) -> None:
    """Darkens the ground below and beside things, away from the sun."""
    mask = np.zeros(pen.codes.shape, np.uint8)
    away = -pen.weather.sun
    for item in items:
        if item.tall <= 0 or item.z[0] > 60:
            continue
        reach = min(item.tall, 9.0) * 0.8
        d, z = rect(*item.d, max(item.z[0], 1.0), max(item.z[1], 1.2))
        corners = np.stack([d, np.zeros(4), z], -1)
        moved = corners + np.array([away[0] * reach, 0.0, away[1] * reach])
        moved[:, 2] = np.maximum(moved[:, 2], 1.0)
        hull = cv2.convexHull(pen.camera.project(np.concatenate([corners, moved])))
        cv2.fillPoly(mask, [hull], int(255 * pen.weather.shadow))
        cv2.fillPoly(mask, [cv2.convexHull(pen.camera.project(corners))], 150)
    size = max(3, pen.codes.shape[1] // 120) | 1
    mask = cv2.blur(mask, (size, size))
    top = int(np.clip(pen.camera.horizon, 0, len(mask) - 1))
    keep = cv2.merge([255 - mask[top:]] * 3)
    pen.image[top:] = cv2.multiply(pen.image[top:], keep, scale=1 / 255)


# ---------------------------------------------------------------------------------------------------------- finishing
def grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """White noise with unit variance, float32 (height, width); one tile repeated, because drawing it all is slow."""
    tile = rng.standard_normal((min(height, 256), min(width, 256)), dtype=np.float32)
    rows, columns = -(-height // tile.shape[0]), -(-width // tile.shape[1])
    return np.tile(tile, (rows, columns))[:height, :width]


def ground_noise(rng: np.random.Generator, camera: Camera) -> np.ndarray:
    """A noise texture lying on the ground plane, float32 (height, width), zero above the horizon."""
    side, scale = 256, 14.0  # texels, texels per metre
    tile = smooth_noise(rng, side, side, 128) * 0.6 + smooth_noise(rng, side, side, 24) * 0.7
    out = np.zeros((camera.height, camera.width), np.float32)
    top = int(np.clip(camera.horizon + 0.02 * camera.height, 0, camera.height - 1))
    # Pixel (u, v) sees the ground at d = eye (u - w/2) / (v - horizon), z = eye f / (v - horizon).
    matrix = np.array([[camera.eye * scale, 0, -camera.eye * scale * camera.width / 2],
                       [0, 0, camera.eye * scale * camera.focal], [0, 1, top - camera.horizon]])
    out[top:] = cv2.warpPerspective(tile, matrix, (camera.width, camera.height - top),
                                    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP)
    return out


def finish(pen: Pen, rng: np.random.Generator) -> np.ndarray:
    """Surface texture, exposure, vignette, blur and sensor noise; returns the picture, uint8 RGB."""
    height, width = pen.codes.shape
    ids = to_ids(pen.codes)
    fine = grain(rng, height, width)
    leaf = cv2.resize(grain(rng, -(-height // 3), -(-width // 3)), (width, height), interpolation=cv2.INTER_LINEAR)
    blotch = cv2.addWeighted(smooth_noise(rng, height, width, 14), 0.6, leaf, 0.7, 0.0)
    gain = 1.0 + cv2.LUT(ids, _GRAIN) * fine
    gain += cv2.LUT(ids, _BLOTCH) * blotch
    gain += cv2.LUT(ids, _SOIL) * ground_noise(rng, pen.camera)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    contrast, pivot = rng.uniform(0.94, 1.08), 118.0
    exposure, vignette = rng.uniform(0.92, 1.12), np.float32(rng.uniform(0.0, 0.1))
    gain *= np.float32(exposure * contrast) * (1.0 - vignette * y * y - vignette * x * x)
    image = cv2.multiply(pen.image, cv2.merge([gain, gain, gain]), dtype=cv2.CV_32F)
    if pen.weather.wet > 0:
        reflect(image, ids, pen)
    sigma = rng.uniform(0.35, 0.75) * max(0.8, width / 1024)
    cv2.GaussianBlur(image, (0, 0), sigma, dst=image)
    noise, cast = rng.uniform(1.0, 4.5), pivot * (1.0 - contrast) + rng.uniform(-4, 4, 3)
    tile = rng.standard_normal((min(height, 192), min(width, 192), 3), dtype=np.float32) * np.float32(noise)
    tile += cast.astype(np.float32)
    image += np.tile(tile, (-(-height // len(tile)), -(-width // tile.shape[1]), 1))[:height, :width]
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def reflect(image: np.ndarray, ids: np.ndarray, pen: Pen) -> None:
    """Adds a blurred mirror image to wet road and sidewalk, in place."""
    top = int(np.clip(pen.camera.horizon, 1, image.shape[0] - 2))
    rows = min(top, image.shape[0] - top)
    mirrored = cv2.blur(image[top - rows:top][::-1], (3, max(3, image.shape[0] // 20)))
    wet = np.isin(ids[top:top + rows], (so.ROAD, so.SIDEWALK, so.PARKING))[..., None]
    amount = np.float32(0.22 * pen.weather.wet) * wet
    image[top:top + rows] = image[top:top + rows] * (1 - amount) + mirrored * amount


def to_ids(codes: np.ndarray) -> np.ndarray:
    """Annotation codes (uint16) -> label ids, uint8."""
    ids = codes.astype(np.uint8)
    things = codes >= 1000
    ids[things] = codes[things] // 1000
    return ids


def paint_car_and_border(pen: Pen, rng: np.random.Generator) -> None:
    """The camera car's bonnet, and the border that undistortion leaves."""
    height, width = pen.codes.shape
    rise = rng.uniform(0.03, 0.075) * height
    x = np.linspace(0.06, 0.94, 17)
    top = height - rise * np.clip(1.15 - 4.2 * (x - 0.5) ** 2, 0.0, 1.0)
    outline = np.stack([np.append(x * width, [width * 0.98, width * 0.02]), np.append(top, [height, height])], -1)
    outline = [np.rint(outline).astype(np.int32)]
    cv2.fillPoly(pen.image, outline, hsv(rng.random(), 0.15, rng.uniform(0.1, 0.35)).tolist())
    cv2.fillPoly(pen.codes, outline, so.EGO)
    edge = max(1, round(width * 0.004))
    pen.codes[:, :edge] = pen.codes[:, width - edge:] = so.OUT_OF_ROI
    pen.codes[:edge] = so.OUT_OF_ROI
    pen.codes[height - edge:] = so.BORDER


def paint_street(rng: np.random.Generator, city: City, height: int, width: int,
                 tram: bool, must: str) -> tuple[np.ndarray, np.ndarray]:
    """Paints one street.

    Args:
        rng: Source of every random choice.
        city: Common traits of the city's streets.
        height: Rows.
        width: Columns.
        tram: Whether the street has a tram.
        must: A vehicle that leads one of the lanes: "bus", "truck" or "car".

    Returns:
        The picture, uint8 RGB (height, width, 3), and the annotation, uint16 (height, width): label id, or
        ``id * 1000 + k`` for the k-th instance of an instance class.
    """
    span = max(width, 1.6 * height)
    camera = Camera(height, width, focal=span * rng.uniform(0.56, 0.68), horizon=height * rng.uniform(0.4, 0.5),
                    eye=rng.uniform(1.9, 2.6), bend=rng.normal(0.0, 0.0013), roll=rng.normal(0.0, 0.008))
    pen = Pen(camera, make_weather(rng), np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint16))
    layout = make_layout(rng, tram)
    scene = Scene(pen, rng, city, layout)
    scene.add_traffic(must)
    if tram:
        scene.add_tram()
    scene.add_people()
    scene.add_furniture()
    for side in (-1, 1):
        scene.add_verge(side)
        scene.add_houses(side)
    scene.add_distance()
    paint_sky(pen, rng)
    paint_ground(pen, rng, city, layout)
    paint_shadows(pen, scene.items)
    for k in drawing_order(scene.items):
        scene.items[k].draw()
    paint_car_and_border(pen, rng)
    image, codes = finish(pen, rng), pen.codes
    if rng.random() < 0.5:
        image, codes = image[:, ::-1].copy(), codes[:, ::-1].copy()
    return image, codes
