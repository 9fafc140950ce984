"""Composes procedural pictures of the 20 Pascal VOC objects, with the annotation of the segmentation task.

Vehicles and people are those of the streets; the other objects are flat figures that face the camera.
"""
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from mindseg.data.datasets import VOC

from . import objects as so
from .objects import DARK, GLASS, STEEL, Camera, Colour, Frame, Pen, hsv, limb, pick
from .street import finish, make_city, make_weather, paint_sky, ribbon

BORDER = 255  # the annotation's ring around every object
_OWN = 40     # code of a figure drawn here: 40 + VOC class id; below 65 so that id * 1000 + k fits 16 bits
# Objects that may share a picture. Together the groups hold all classes, so seven pictures do too.
GROUPS = (("aeroplane", "bird", "boat"), ("car", "bus", "bicycle"), ("train", "motorbike", "person"),
          ("cow", "sheep", "horse"), ("dog", "cat", "sofa"), ("chair", "diningtable", "bottle"),
          ("tvmonitor", "pottedplant", "person"))
_LARGE = ("train", "bus", "aeroplane", "sofa", "diningtable", "tvmonitor")  # drawn first, so that they hide nothing
_STREET_CODES = {so.CAR: "car", so.BUS: "bus", so.TRAIN: "train", so.BICYCLE: "bicycle", so.MOTORCYCLE: "motorbike",
                 so.PERSON: "person", so.RIDER: "person"}


@dataclass
class Figure:
    """A flat figure in its own units (about 1.5 high, standing at y = 0, facing right), scaled into the world."""
    pen: Pen
    d: float
    z: float
    scale: float
    stretch: float
    lift: float = 0.0

    def fill(self, a, y, colour: Colour, mark: bool = True) -> None:
        """Fills a polygon."""
        a, y = np.asarray(a, float), np.asarray(y, float)
        points = np.stack([self.d + a * self.scale * self.stretch, self.lift + y * self.scale, 0.0 * a + self.z], -1)
        self.pen.fill(points, colour, 1.0, mark)

    def oval(self, a: float, y: float, ra: float, ry: float, colour: Colour, mark: bool = True) -> None:
        """Fills an ellipse."""
        self.fill(*so.disc(a, y, ra, ry, 24), colour, mark)

    def limb(self, a0: float, y0: float, a1: float, y1: float, width: float, colour: Colour) -> None:
        """Fills a bar between two points."""
        self.fill(*limb(a0, y0, a1, y1, width), colour)

    def box(self, a0: float, a1: float, y0: float, y1: float, colour: Colour, mark: bool = True) -> None:
        """Fills a rectangle."""
        self.fill([a0, a1, a1, a0], [y0, y0, y1, y1], colour, mark)


def vivid(rng: np.random.Generator, low: float = 0.35) -> Colour:
    """A colour of a manufactured thing."""
    return hsv(rng.random(), rng.uniform(0.35, 0.9), rng.uniform(low, 0.95))


def draw_aeroplane(f: Figure, rng: np.random.Generator) -> None:
    """Fuselage, tail fin, swept wing, engine, windows."""
    body, trim = hsv(0.6, 0.05, rng.uniform(0.75, 0.98)), vivid(rng)
    f.fill([-1.5, -1.25, -0.85, -1.0], [0.75, 1.45, 0.8, 0.62], trim)
    f.fill([-1.6, -1.1, 1.1, 1.45, 1.6, 1.4, 1.0, -1.0], [0.78, 0.85, 0.85, 0.75, 0.6, 0.5, 0.45, 0.5], body)
    f.box(-1.1, 1.35, 0.6, 0.64, trim, False)
    for a in np.arange(-0.9, 1.1, 0.18):
        f.oval(a, 0.72, 0.045, 0.045, GLASS, False)
    f.fill([-0.15, 0.4, -0.45, -0.85], [0.55, 0.55, 0.0, 0.02], body * 0.8)
    f.oval(-0.05, 0.3, 0.24, 0.1, STEEL * 0.7)


def draw_bird(f: Figure, rng: np.random.Generator) -> None:
    """Plump body, tail, wing, beak, thin legs."""
    body = hsv(rng.random(), rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.9))
    for a in (-0.08, 0.12):
        f.limb(a, 0.45, a + 0.04, 0.0, 0.05, np.array([200.0, 130.0, 40.0]))
    f.fill([-0.35, -1.0, -0.95, -0.3], [0.75, 0.95, 0.75, 0.5], body * 0.7)
    f.oval(0.0, 0.68, 0.5, 0.33, body)
    f.oval(0.42, 1.05, 0.22, 0.21, body)
    f.fill([0.6, 0.88, 0.6], [1.13, 1.02, 0.97], np.array([240.0, 170.0, 40.0]))
    f.oval(0.48, 1.1, 0.035, 0.04, DARK, False)
    f.fill([-0.55, 0.15, 0.2, -0.2], [0.72, 0.85, 0.6, 0.48], body * 0.6)


def draw_boat(f: Figure, rng: np.random.Generator) -> None:
    """A sailing boat or a motor boat with a cabin."""
    hull = vivid(rng)
    f.fill([-1.2, 1.35, 0.95, -0.95], [0.45, 0.5, 0.0, 0.0], hull)
    f.box(-1.15, 1.2, 0.4, 0.47, np.array([240.0, 240.0, 240.0]), False)
    if rng.random() < 0.5:
        f.limb(0.0, 0.4, 0.0, 2.2, 0.06, hsv(0.08, 0.4, 0.4))
        f.fill([0.06, 0.06, 1.0], [0.62, 2.1, 0.62], np.array([245.0, 242.0, 232.0]))
        f.fill([-0.06, -0.06, -0.75], [0.62, 1.8, 0.62], vivid(rng, 0.6))
    else:
        f.fill([-0.7, 0.5, 0.2, -0.6], [0.45, 0.45, 1.05, 1.05], np.array([235.0, 235.0, 230.0]))
        f.fill([-0.5, 0.32, 0.15, -0.45], [0.65, 0.65, 0.95, 0.95], GLASS, False)


def draw_bottle(f: Figure, rng: np.random.Generator) -> None:
    """Body, shoulder, neck, cap, label."""
    glass = hsv(pick(rng, (0.33, 0.08, 0.55, 0.0)), rng.uniform(0.4, 0.85), rng.uniform(0.25, 0.65))
    f.fill([-0.25, 0.25, 0.25, 0.1, 0.1, -0.1, -0.1, -0.25], [0.0, 0.0, 0.9, 1.15, 1.5, 1.5, 1.15, 0.9], glass)
    f.box(-0.12, 0.12, 1.42, 1.58, vivid(rng))
    f.box(-0.25, 0.25, 0.3, 0.72, hsv(rng.random(), 0.2, 0.92), False)
    f.box(-0.18, -0.12, 0.05, 1.05, np.clip(glass * 1.7 + 30, 0, 255), False)


def draw_chair(f: Figure, rng: np.random.Generator) -> None:
    """Four legs, seat, back with slats."""
    wood = hsv(rng.uniform(0.04, 0.1), rng.uniform(0.4, 0.75), rng.uniform(0.3, 0.75))
    for a, b in ((-0.42, -0.5), (0.42, 0.5), (-0.3, -0.32), (0.3, 0.33)):
        f.limb(a, 0.7, b, 0.0, 0.09, wood * (0.7 if abs(a) < 0.4 else 1.0))
    for a in (-0.4, 0.3):
        f.box(a, a + 0.1, 0.7, 1.6, wood)
    for y in (0.95, 1.2, 1.45):
        f.box(-0.4, 0.4, y, y + 0.15, wood * 0.9)
    f.fill([-0.5, 0.5, 0.42, -0.42], [0.68, 0.68, 0.82, 0.82], vivid(rng))


def draw_table(f: Figure, rng: np.random.Generator) -> None:
    """A table with cloth or bare top and four legs."""
    wood = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.4, 0.7), rng.uniform(0.35, 0.7))
    for a in (-1.15, 1.05, -0.8, 0.7):
        f.box(a, a + 0.1, 0.0 if abs(a) > 1 else 0.15, 0.9, wood * (1.0 if abs(a) > 1 else 0.7))
    f.fill([-1.3, 1.3, 1.0, -1.0], [0.88, 0.88, 1.15, 1.15], wood if rng.random() < 0.5 else vivid(rng, 0.6))
    f.box(-1.3, 1.3, 0.78, 0.89, wood * 0.8)


def draw_plant(f: Figure, rng: np.random.Generator) -> None:
    """A tapered pot with leaves."""
    for k in range(14):
        t = rng.uniform(0.15, 0.85) * np.pi
        tip = rng.uniform(0.6, 1.1)
        a, y = tip * np.cos(t) * 0.75, 0.6 + tip * np.sin(t)
        side = 0.16
        f.fill([0.0, a * 0.55 - side, a, a * 0.55 + side], [0.55, 0.55 + (y - 0.55) * 0.6, y, 0.55 + (y - 0.55) * 0.5],
               hsv(rng.uniform(0.26, 0.36), 0.7, 0.28 + 0.03 * k))
    f.fill([-0.35, 0.35, 0.27, -0.27], [0.6, 0.6, 0.0, 0.0], hsv(rng.uniform(0.01, 0.07), 0.6, rng.uniform(0.45, 0.75)))
    f.box(-0.4, 0.4, 0.5, 0.64, hsv(0.04, 0.55, 0.7))


def draw_sofa(f: Figure, rng: np.random.Generator) -> None:
    """Back, seat cushions, arm rests, feet."""
    cloth = hsv(rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.3, 0.75))
    f.box(-1.3, 1.3, 0.35, 1.2, cloth * 0.85)
    for a in (-1.15, 0.02):
        f.box(a, a + 1.13, 0.4, 0.68, cloth * 1.1)
        f.box(a + 0.08, a + 1.05, 0.68, 1.1, cloth)
    f.box(-1.3, 1.3, 0.15, 0.42, cloth * 0.7)
    for a in (-1.5, 1.2):
        f.box(a, a + 0.3, 0.12, 0.85, cloth * 0.95)
        f.box(a + 0.1, a + 0.2, 0.0, 0.14, DARK)


def draw_monitor(f: Figure, rng: np.random.Generator) -> None:
    """A screen with a picture on it, a frame and a stand."""
    f.box(-0.4, 0.4, 0.0, 0.08, DARK * 1.5)
    f.box(-0.08, 0.08, 0.05, 0.4, DARK * 1.3)
    f.box(-0.95, 0.95, 0.35, 1.5, DARK)
    f.box(-0.87, 0.87, 0.43, 1.42, vivid(rng), False)
    f.fill([-0.87, -0.2, 0.3, 0.87, 0.87, -0.87], [0.8, 1.1, 0.7, 1.0, 0.43, 0.43], vivid(rng), False)


def draw_quadruped(f: Figure, rng: np.random.Generator, coat: Colour, leg: float, trunk: tuple[float, float],
                   neck: float, head: float, ear: str) -> None:
    """A four-legged animal in profile.

    Args:
        f: Where to draw.
        rng: Source of the pose.
        coat: Colour.
        leg: Length of the legs.
        trunk: Half length and half height of the trunk.
        neck: Height of the head's centre above the trunk's centre.
        head: Half length of the head.
        ear: "point", "hang", "horn" or "mane".
    """
    half, thick = trunk
    middle = leg + thick * 0.8
    for k, a in enumerate((-0.75, 0.72, -0.55, 0.5)):
        step = rng.uniform(-0.12, 0.12)
        f.limb(a * half, middle, a * half + step, 0.0, 0.17 * (1.2 - 0.2 * (k > 1)), coat * (0.72 if k < 2 else 0.95))
    f.limb(-half * 0.95, middle + thick * 0.4, -half - 0.25, middle - rng.uniform(-0.4, 0.5), 0.09, coat * 0.7)
    f.oval(0.0, middle, half, thick, coat)
    top_a, top_y = half + head * 0.7, middle + neck
    f.fill([half * 0.45, half * 0.95, top_a + 0.05, top_a - head * 0.8], [middle + thick * 0.7, middle - thick * 0.3,
           top_y - 0.08, top_y + 0.12], coat)
    f.oval(top_a, top_y, head, head * 0.62, coat)
    f.oval(top_a + head * 0.85, top_y - head * 0.18, head * 0.42, head * 0.36, coat * 1.1)
    f.oval(top_a + head * 0.2, top_y + head * 0.18, 0.04, 0.04, DARK, False)
    back = top_a - head * 0.45
    if ear in ("point", "mane"):
        tips = [top_y + head * 0.3, top_y + head * 0.45, top_y + head * 1.15]
        f.fill([back - 0.1, back + 0.14, back], tips, coat * 0.8)
    if ear == "mane":
        f.fill([half * 0.4, back - 0.05, back + 0.1, half * 0.75],
               [middle + thick * 0.8, top_y + head * 0.6, top_y + head * 0.3, middle + thick * 0.6], coat * 0.4)
    if ear == "hang":
        f.oval(back, top_y - head * 0.15, head * 0.24, head * 0.6, coat * 0.65)
    if ear == "horn":
        f.fill([back - 0.02, back + 0.14, back + 0.25], [top_y + head * 0.4, top_y + head * 0.5, top_y + head * 1.1],
               np.array([230.0, 222.0, 200.0]))


def draw_cat(f: Figure, rng: np.random.Generator) -> None:
    """A cat: short legs, round head, pointed ears, stripes."""
    coat = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.1, 0.75), rng.uniform(0.35, 0.85))
    draw_quadruped(f, rng, coat, 0.42, (0.62, 0.3), 0.32, 0.28, "point")
    for a in np.arange(-0.45, 0.4, 0.18):
        f.fill([a, a + 0.06, a + 0.03], [0.92, 0.92, 0.62], coat * 0.6, False)


def draw_dog(f: Figure, rng: np.random.Generator) -> None:
    """A dog: hanging ears and a collar."""
    coat = hsv(rng.uniform(0.05, 0.11), rng.uniform(0.2, 0.7), rng.uniform(0.25, 0.8))
    draw_quadruped(f, rng, coat, 0.62, (0.68, 0.28), 0.46, 0.32, "hang")
    f.limb(0.72, 0.98, 0.92, 1.12, 0.09, vivid(rng))


def draw_cow(f: Figure, rng: np.random.Generator) -> None:
    """A cow: deep trunk, horns, patches."""
    coat = hsv(0.08, rng.uniform(0.0, 0.15), rng.uniform(0.75, 0.95))
    draw_quadruped(f, rng, coat, 0.6, (0.98, 0.46), 0.3, 0.34, "horn")
    patch = hsv(rng.uniform(0.02, 0.08), rng.uniform(0.1, 0.7), rng.uniform(0.12, 0.4))
    for a, y in ((-0.55, 1.05), (0.1, 0.85), (0.5, 1.15)):
        f.oval(a, y, rng.uniform(0.15, 0.32), rng.uniform(0.12, 0.2), patch, False)


def draw_horse(f: Figure, rng: np.random.Generator) -> None:
    """A horse: long legs, high neck, dark mane."""
    draw_quadruped(f, rng, hsv(rng.uniform(0.03, 0.08), rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.6)), 0.88,
                   (0.88, 0.34), 0.72, 0.34, "mane")


def draw_sheep(f: Figure, rng: np.random.Generator) -> None:
    """A sheep: woolly trunk, dark face and legs."""
    draw_quadruped(f, rng, hsv(0.08, 0.2, rng.uniform(0.2, 0.35)), 0.45, (0.6, 0.3), 0.2, 0.24, "hang")
    wool = hsv(0.11, rng.uniform(0.05, 0.15), rng.uniform(0.8, 0.95))
    for _ in range(14):
        f.oval(rng.uniform(-0.6, 0.5), 0.7 + rng.uniform(-0.22, 0.26), 0.24, 0.2, wool * rng.uniform(0.9, 1.02))


# draw(figure, rng), height of the figure in its own units
FIGURES: dict[str, tuple[Callable[[Figure, np.random.Generator], None], float]] = {
    "aeroplane": (draw_aeroplane, 1.7), "bird": (draw_bird, 1.3), "boat": (draw_boat, 1.9),
    "bottle": (draw_bottle, 1.6), "cat": (draw_cat, 1.2), "chair": (draw_chair, 1.6), "cow": (draw_cow, 1.6),
    "diningtable": (draw_table, 1.3), "dog": (draw_dog, 1.5),
    "horse": (draw_horse, 2.1), "pottedplant": (draw_plant, 1.7), "sheep": (draw_sheep, 1.2),
    "sofa": (draw_sofa, 1.3), "tvmonitor": (draw_monitor, 1.5),
}


def place(pen: Pen, rng: np.random.Generator, name: str, slot: float) -> None:
    """Draws one object.

    Args:
        pen: Canvas.
        rng: Source of its pose and colours.
        name: Class name.
        slot: Horizontal position, -1 (left edge) to 1 (right edge).
    """
    camera = pen.camera
    half = camera.width / 2 / camera.focal  # half the picture's width at depth 1
    if name in FIGURES:
        draw, tall = FIGURES[name]
        z = rng.uniform(3.6, 6.0)
        size = rng.uniform(0.42, 0.6) * min(camera.height, 0.8 * camera.width) * z / camera.focal / tall
        lift = rng.uniform(1.0, 1.8) if name == "aeroplane" else 0.0
        pen.code = (_OWN + VOC.classes.index(name)) * 1000 + pen.counters.setdefault(name, 0)
        pen.counters[name] += 1
        draw(Figure(pen, slot * half * z, z, size, pick(rng, (-1, 1)) * rng.uniform(0.85, 1.1), lift), rng)
        return
    city = make_city(rng)
    if name == "person":
        z = rng.uniform(2.6, 4.2)
        so.draw_person(pen, rng, Frame(slot * half * z, z))
    elif name in ("bicycle", "motorbike"):
        z = rng.uniform(2.6, 3.8)
        so.draw_two_wheeler(pen, rng, Frame(slot * half * z, z), motor=name == "motorbike", ridden=rng.random() < 0.3)
    else:
        depth = {"car": 7.0, "bus": 14.0, "train": 24.0}[name] * rng.uniform(0.95, 1.2)
        frame = Frame(slot * half * depth, depth, rng.uniform(0.5, 1.2) * pick(rng, (-1, 1)))
        if name == "car":
            so.draw_car(pen, rng, frame)
        elif name == "bus":
            so.draw_bus(pen, rng, frame, city)
        else:
            so.draw_train(pen, rng, frame, city)


def paint_background(pen: Pen, rng: np.random.Generator, group: int) -> None:
    """Open air (meadow, road or water) or a room, all of it background."""
    if group < 4:
        paint_sky(pen, rng)
        hue, value = pick(rng, ((0.22, 0.5), (0.6, 0.35), (0.1, 0.6))) if group else (0.56, 0.45)
        ribbon(pen, -90, 90, hsv(hue, rng.uniform(0.1, 0.5), value), None)
        return
    wall = hsv(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.55, 0.9))
    pen.image[:] = np.clip(wall * pen.weather.tint, 0, 255)
    camera = pen.camera
    for x in range(0, camera.width, max(8, camera.width // 14)):
        cv2.line(pen.image, (x, 0), (x, camera.height), (wall * 0.95).tolist(), max(1, camera.width // 160))
    ribbon(pen, -30, 30, hsv(rng.uniform(0.04, 0.12), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.6)), None, z1=9.0)


def paint_voc(rng: np.random.Generator, index: int, height: int,
              width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints one picture with two or three objects of a group.

    Args:
        rng: Source of every random choice.
        index: Chooses the group; seven indices in a row hold all classes.
        height: Rows.
        width: Columns.

    Returns:
        Picture, uint8 RGB (height, width, 3); class ids and object numbers (1, 2, …), uint8 (height, width), both with
        0 = background and a ring of 255 around the objects.
    """
    group = index % len(GROUPS)
    camera = Camera(height, width, focal=max(width, height) * rng.uniform(0.85, 1.0),
                    horizon=height * rng.uniform(0.42, 0.55), eye=rng.uniform(1.1, 1.4), bend=0.0,
                    roll=rng.normal(0.0, 0.01))
    pen = Pen(camera, make_weather(rng), np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint16))
    paint_background(pen, rng, group)
    pen.codes[:] = 0
    names = list(GROUPS[group])
    rng.shuffle(names)
    slots = np.array([-0.62, 0.0, 0.62]) + rng.uniform(-0.12, 0.12, 3)
    for name, slot in sorted(zip(names, slots, strict=True), key=lambda pair: pair[0] not in _LARGE):
        place(pen, rng, name, slot)
    image = finish(pen, rng)
    table = np.zeros(_OWN + 30, np.uint8)
    for code, name in _STREET_CODES.items():
        table[code] = VOC.classes.index(name)
    table[_OWN:_OWN + len(VOC.classes)] = np.arange(len(VOC.classes))
    ids = table[np.where(pen.codes >= 1000, pen.codes // 1000, pen.codes)]
    numbers = np.searchsorted(np.unique(np.append(pen.codes, 0)), pen.codes).astype(np.uint8)
    kernel = np.ones((5, 5) if min(height, width) >= 200 else (3, 3), np.uint8)
    ring = cv2.dilate(pen.codes, kernel) != cv2.erode(pen.codes, kernel)
    ids[ring], numbers[ring] = BORDER, BORDER
    return image, ids, numbers
