"""The things of the synthetic streets: vehicles, people, street furniture, trees, houses, walls and fences.

Every function draws one thing with its near end at (d, z), in metres as in canvas.py.
"""
import numpy as np

from .canvas import COS, SIN, Box, Colour, Figure, Label, Pen, Rng, hsv, pick

DARK, GLASS, STEEL = hsv(0.6, 0.1, 0.1), hsv(0.58, 0.33, 0.3), hsv(0.6, 0.03, 0.6)
WHITE, RED, BLUE, YELLOW = hsv(0.0, 0.0, 0.94), hsv(0.99, 0.88, 0.8), hsv(0.62, 0.9, 0.72), hsv(0.13, 0.92, 0.98)


# ---------------------------------------------------------------------------------------------------------- vehicles
def draw_body(pen: Pen, label: Label, d: float, z: float, size: tuple[float, float, float], colour: Colour,
              away: bool) -> Box:
    """Starts a vehicle with a dark sill, the body, wheels, and rear lamps (it drives ``away``) or head lamps.

    ``size`` is the half width, length and height of the body.
    """
    pen.begin(label)
    half, length, tall = size
    pen.shadow(d, z, half + 0.1, length)
    Box(pen, (d - half + 0.05, d + half - 0.05), (0.02, 0.4), (z + 0.1, z + length - 0.1)).paint(DARK)
    body = Box(pen, (d - half, d + half), (0.3, tall), (z, z + length))
    body.paint(colour)
    body.wheels(0.2 + 0.2 * half)
    body.detail("front", [0.04, 0.78], [0.22, 0.96], 0.3 / (tall - 0.3), 0.5 / (tall - 0.3), RED if away else WHITE)
    return body


def draw_car(pen: Pen, d: float, z: float, away: bool) -> None:
    """A car: body and a tapered cabin with windows."""
    rng = pen.rng
    length, grey = rng.uniform(3.9, 4.7), rng.random() < 0.6
    colour = hsv(pick(rng, (0.0, 0.58, 0.64)), 0.05 if grey else rng.uniform(0.35, 0.7),
                 rng.uniform(0.2, 0.95) if grey else rng.uniform(0.25, 0.6))
    draw_body(pen, Label.CAR, d, z, (0.9, length, 0.9), colour, away)
    near = z + length * (0.05 if away else 0.28)
    cabin = Box(pen, (d - 0.85, d + 0.85), (0.88, rng.uniform(1.4, 1.75)), (near, near + 0.67 * length), 0.25)
    cabin.paint(colour)
    cabin.detail("front", 0.07, 0.93, 0.12, 0.88, GLASS)
    cabin.detail(cabin.side, [0.07, 0.54], [0.47, 0.93], 0.12, 0.88, GLASS)


def draw_truck(pen: Pen, d: float, z: float, away: bool) -> None:
    """A lorry: coloured cab in front, a pale cargo box without windows behind."""
    rng = pen.rng
    length = rng.uniform(6.5, 8.4)
    colour = hsv(pick(rng, (0.07, 0.6)), rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.85))
    pale = hsv(rng.random(), rng.uniform(0.0, 0.1), rng.uniform(0.78, 0.95))
    draw_body(pen, Label.TRUCK, d, z, (1.2, length, 1.0), DARK, away)
    cab_z, cargo_z = (z + length - 1.9, z) if away else (z, z + 2.1)
    cab = Box(pen, (d - 1.2, d + 1.2), (0.6, 2.8), (cab_z, cab_z + 1.9))
    cargo = Box(pen, (d - 1.25, d + 1.25), (0.95, rng.uniform(3.3, 3.9)), (cargo_z, cargo_z + length - 2.1))
    for part, tone in ((cab, colour), (cargo, pale)) if away else ((cargo, pale), (cab, colour)):
        part.paint(tone)
    cab.detail(cab.side, 0.3, 0.8, 0.5, 0.85, GLASS)
    if away:  # the doors
        cargo.detail("front", [0.0, 0.485, 0.96], [0.04, 0.515, 1.0], 0.02, 1.0, pale * 0.6)
    else:
        cab.detail("front", 0.05, 0.95, 0.48, 0.88, GLASS)


def draw_bus(pen: Pen, d: float, z: float, away: bool) -> None:
    """A city bus in one bright colour, with a long row of windows and a destination display."""
    rng = pen.rng
    size = (1.27, rng.uniform(9.2, 11.6), rng.uniform(2.95, 3.25))
    body = draw_body(pen, Label.BUS, d, z, size, pen.city.bus * rng.uniform(0.85, 1.1), away)
    edges = np.linspace(0.02, 0.98, int(rng.integers(7, 10)))
    body.detail(body.side, 0.01, 0.99, 0.36, 0.83, DARK)
    body.detail(body.side, edges[:-1] + 0.008, edges[1:] - 0.008, 0.39, 0.8, GLASS * 1.35)
    body.detail("front", 0.06, 0.94, 0.52 if away else 0.32, 0.8, GLASS)
    body.detail("front", 0.2, 0.8, 0.84, 0.95, hsv(0.1, 0.88, 0.98))


def draw_tram(pen: Pen, d: float, z: float) -> None:
    """A tram of two or three cars: coloured below and along the roof, pale between."""
    rng = pen.rng
    pen.begin(Label.TRAIN)
    pen.shadow(d, z, 1.3, 20.0)
    cars, length, tall = int(rng.integers(2, 4)), rng.uniform(6.5, 8.5), rng.uniform(3.3, 3.6)
    Box(pen, (d - 1.15, d + 1.15), (0.05, tall - 0.2), (z + 0.2, z + cars * (length + 0.5) - 0.7)).paint(DARK)
    for near in z + np.arange(cars)[::-1] * (length + 0.5):
        car = Box(pen, (d - 1.3, d + 1.3), (0.3, tall), (near, near + length))
        car.paint(hsv(0.12, 0.1, 0.88))
        car.detail(car.side, 0.0, 1.0, [0.0, 0.9], [0.32, 1.0], pen.city.tram)
        car.detail(car.side, np.arange(0.05, 0.9, 0.24), np.arange(0.05, 0.9, 0.24) + 0.18, 0.38, 0.76, GLASS)
        Box(pen, (d - 0.8, d + 0.8), (tall, tall + 0.35), (near + 1.0, near + length - 1.5)).paint(STEEL * 0.7)
    car.detail("front", 0.0, 1.0, 0.0, 0.32, pen.city.tram)
    car.detail("front", 0.08, 0.92, 0.37, 0.78, GLASS)
    car.detail("front", [0.43, 0.25], [0.57, 0.75], [0.14, 0.86], [0.26, 0.96], hsv(0.13, 0.5, 1.0))


# ------------------------------------------------------------------------------------------- people and two-wheelers
def cloth(rng: Rng, bright: bool = False) -> Colour:
    """Colour of everyday clothing (blue to crimson), or bright: of clothing worn to be seen (orange to lime)."""
    if bright:
        return hsv(rng.uniform(0.05, 0.24), rng.uniform(0.75, 1.0), rng.uniform(0.8, 1.0))
    return hsv(rng.uniform(0.55, 1.0), rng.uniform(0.2, 0.85), rng.uniform(0.2, 0.75))


def draw_person(pen: Pen, d: float, z: float) -> None:
    """A walking or standing pedestrian."""
    rng = pen.rng
    pen.begin(Label.PERSON)
    pen.shadow(d, z, 0.3, 0.5)
    f = Figure(pen, d, z, rng.uniform(0.92, 1.1), pick(rng, (-1.0, 1.0)))
    step, top, legs = rng.uniform(0.05, 0.3), cloth(rng), cloth(rng) * 0.75
    for side in (-1, 1):
        f.bar(0.06 * side, 0.9, side * (0.08 + step), 0.0, 0.2, legs)
        f.bar(0.24 * side, 1.38, side * (0.3 - step * 0.7), 0.85, 0.13, top * 0.85)
    f.fill([-0.19, 0.19, 0.27, 0.18, -0.18, -0.27], [0.8, 0.8, 1.38, 1.48, 1.48, 1.38], top)
    f.oval(0.0, 1.62, 0.13, 0.17, hsv(0.065, 0.34, rng.uniform(0.34, 0.95)))
    f.oval(0.0, 1.73, 0.13, 0.07, DARK)


def draw_bicycle(f: Figure, rng: Rng) -> None:
    """A bicycle from the side: wheels, frame, saddle, handlebar."""
    colour = hsv(rng.uniform(0.32, 0.58), rng.uniform(0.65, 1.0), rng.uniform(0.6, 0.95))
    for a in (-0.55, 0.55):
        f.oval(a, 0.36, 0.36, 0.36, DARK)
        f.oval(a, 0.36, 0.28, 0.28, STEEL * 0.8)
    for line in ((-0.55, 0.36, -0.05, 0.3), (-0.05, 0.3, 0.38, 0.8), (0.38, 0.8, -0.2, 0.82), (-0.2, 0.82, -0.55, 0.36),
                 (-0.05, 0.3, -0.24, 0.95), (0.55, 0.36, 0.34, 1.02), (0.34, 1.02, 0.5, 1.05)):
        f.bar(*line, 0.08, colour)
    f.bar(-0.38, 0.97, -0.1, 0.97, 0.08, DARK)


def draw_motorcycle(f: Figure, rng: Rng) -> None:
    """A motorcycle from the side: wheels, engine, seat, red tank and tail, fork and lamp."""
    colour = hsv(rng.uniform(0.97, 1.03), rng.uniform(0.8, 1.0), rng.uniform(0.6, 0.9))
    for a in (-0.72, 0.74):
        f.oval(a, 0.34, 0.34, 0.34, DARK)
        f.oval(a, 0.34, 0.16, 0.16, STEEL)
    f.fill([-0.6, 0.45, 0.5, -0.4], [0.3, 0.25, 0.65, 0.7], STEEL * 0.45)
    f.fill([-1.0, -0.85, -0.1, 0.0, -0.6], [0.72, 0.92, 0.86, 0.66, 0.6], DARK)
    f.fill([-0.12, 0.1, 0.52, 0.58, 0.3, -0.05], [0.66, 1.0, 1.0, 0.72, 0.55, 0.55], colour)
    f.fill([-1.05, -0.9, -0.45, -0.55], [0.7, 0.84, 0.68, 0.52], colour)
    f.bar(0.74, 0.34, 0.42, 1.12, 0.1, STEEL * 0.7)
    f.oval(0.62, 0.92, 0.13, 0.13, WHITE)


def draw_two_wheeler(pen: Pen, d: float, z: float, motor: bool, ridden: bool) -> None:
    """A bicycle or motorcycle, parked or with its rider. Some parked ones are annotated as a group."""
    rng = pen.rng
    f = Figure(pen, d, z, rng.uniform(1.0, 1.15), rng.uniform(0.65, 1.0) * pick(rng, (-1, 1)))
    pen.shadow(d, z, 0.9, 0.6)
    pen.begin(Label.MOTORCYCLE if motor else Label.BICYCLE, group=not ridden and rng.random() < 0.1)
    (draw_motorcycle if motor else draw_bicycle)(f, rng)
    if ridden:
        pen.begin(Label.RIDER)
        top, legs, hip = cloth(rng, bright=True), cloth(rng) * 0.6, -0.4 if motor else -0.24
        f.bar(hip, 0.95, 0.22, 0.7, 0.21, legs)
        f.bar(0.2, 0.74, 0.02, 0.25, 0.17, legs * 0.9)
        f.fill([hip - 0.18, hip + 0.16, hip + 0.5, hip + 0.26, hip + 0.04], [0.9, 0.86, 1.42, 1.56, 1.45], top)
        f.bar(hip + 0.3, 1.42, 0.38, 1.1, 0.13, top * 0.85)
        f.oval(hip + 0.38, 1.66, 0.15, 0.17, hsv(0.065, 0.34, rng.uniform(0.34, 0.95)))
        f.oval(hip + 0.38, 1.75, 0.17, 0.1, cloth(rng, bright=True))


# -------------------------------------------------------------------------------------------------- street furniture
def draw_pole(pen: Pen, d: float, z: float, tall: float = 6.5) -> Figure:
    """A vertical mast; returns the plane it stands in."""
    pen.begin(Label.POLE)
    pen.shadow(d, z, 0.3, 0.5)
    f, radius = Figure(pen, d, z), pen.rng.uniform(0.12, 0.18)
    colour = hsv(0.45, 0.1, pen.rng.uniform(0.2, 0.36))
    f.bar(0.0, 0.0, 0.0, tall, 2 * radius, colour)
    f.bar(-0.3 * radius, 0.0, -0.3 * radius, tall, 0.5 * radius, colour * 1.3)
    return f


def draw_traffic_light(pen: Pen, d: float, z: float) -> None:
    """A signal head with three lamps in a yellow frame on a mast."""
    low, lit = pen.rng.uniform(1.9, 2.6), int(pen.rng.integers(3))
    f = draw_pole(pen, d, z, low + 1.5)
    pen.begin(Label.LIGHT)
    f.bar(0.0, low, 0.0, low + 1.55, 0.68, hsv(0.13, 0.85, 0.85))
    f.bar(0.0, low + 0.06, 0.0, low + 1.49, 0.56, DARK)
    for k, hue in enumerate((0.4, 0.12, 0.0)):
        f.oval(0.0, low + 0.3 + 0.48 * k, 0.19, 0.19, hsv(hue, 0.85, 1.0 if k == lit else 0.25))


def draw_sign(pen: Pen, d: float, z: float) -> None:
    """One or two traffic signs on a post: round, triangular, diamond or square."""
    rng, y = pen.rng, pen.rng.uniform(2.6, 3.4)
    f = draw_pole(pen, d, z, y)
    pen.begin(Label.SIGN)
    for _ in range(int(rng.integers(1, 3))):
        size = rng.uniform(0.48, 0.62)
        corners, start, outer, inner = pick(rng, ((16, 0.0, RED, WHITE), (3, 0.5, RED, WHITE), (4, 0.0, WHITE, YELLOW),
                                                  (16, 0.0, WHITE, BLUE), (4, 0.25, WHITE, BLUE)))
        t = (start + np.arange(corners) * 2 / corners) * np.pi
        for share, colour in ((size, outer), (0.74 * size, inner)):
            f.fill(share * np.cos(t), y + share * np.sin(t), colour)
        f.bar(-0.3 * size, y, 0.3 * size, y, 0.2 * size, WHITE if inner is BLUE else DARK)
        y -= 2.05 * size


# ------------------------------------------------------------------------------------------------ trees and buildings
def draw_tree(pen: Pen, d: float, z: float) -> None:
    """A tree: trunk and a crown of irregular lumps, the later ones brighter."""
    rng = pen.rng
    pen.begin(Label.VEGETATION)
    pen.shadow(d, z, 0.5, 0.8)
    f, tall, radius = Figure(pen, d, z), rng.uniform(3.2, 5.5), rng.uniform(1.3, 2.4)
    f.bar(0.0, 0.0, 0.0, tall, 0.36, hsv(0.07, 0.5, 0.4))
    hue, saturation = pen.city.leaf_hue + rng.uniform(-0.035, 0.035), rng.uniform(0.5, 0.72)
    for level in np.repeat([0, 1, 2], 4):
        a, y = rng.uniform(-0.62, 0.62) * radius, tall + rng.uniform(-0.1, 0.9 + 0.18 * level) * radius
        r = radius * (0.62 - 0.13 * level) * rng.uniform(0.78, 1.12, 16)
        f.fill(a + r * COS, y + r * SIN, hsv(hue, saturation, 0.2 + 0.1 * level))


def draw_house(pen: Pen, d: float, z: float, wide: float, length: float) -> None:
    """A house: facade, roof edge and rows of windows with frames."""
    rng = pen.rng
    pen.begin(Label.BUILDING)
    colour = hsv(pick(rng, (0.1, pen.city.facade_hue)), rng.uniform(0.05, 0.3), rng.uniform(0.5, 0.82))
    frame, glass = colour * rng.uniform(1.12, 1.3), GLASS * rng.uniform(0.7, 1.5)
    rows, bay = int(rng.integers(2, 7)), rng.uniform(1.8, 3.0)
    house = Box(pen, (d - wide / 2, d + wide / 2), (0.0, 3.2 * rows), (z, z + length))
    house.paint(colour)
    for face, metres in (("front", wide), (house.side, length)):
        columns = max(2, round(metres / bay))
        a, y = np.meshgrid(np.arange(columns), np.arange(rows))
        house.detail(face, 0.0, 1.0, 0.97, 1.0, frame)
        for margin, tone in ((0.0, frame), (0.05, glass)):
            house.detail(face, (a.ravel() + 0.2 + margin) / columns, (a.ravel() + 0.8 - margin) / columns,
                         (y.ravel() + 0.22 + margin) / rows, (y.ravel() + 0.82 - margin) / rows, tone)


def draw_barrier(pen: Pen, d: float, z: float, length: float, wall: bool) -> None:
    """A brick wall, or a fence of pales with dark gaps; the annotation covers both pales and gaps."""
    rng = pen.rng
    pen.begin(Label.WALL if wall else Label.FENCE)
    tall = rng.uniform(2.2, 3.6)
    box = Box(pen, (d - 0.1, d + 0.1), (0.0, tall), (z, z + length))
    if wall:
        colour = hsv(rng.uniform(0.0, 0.035), 0.54, rng.uniform(0.42, 0.62))
        rows = round(tall / 0.34)
        box.paint(colour)
        a, row = (m.ravel() for m in np.meshgrid(np.arange(0.0, 1.0, 0.9 / length), np.arange(rows)))
        a = a + row % 2 * 0.45 / length  # every other row is set off by half a brick
        box.detail(box.side, a, a + 0.06 / length, row / rows, (row + 1) / rows, colour * 0.62)
        box.detail(box.side, 0.0, 1.0, np.arange(rows) / rows, (np.arange(rows) + 0.15) / rows, colour * 0.62)
    else:
        colour = hsv(rng.uniform(0.08, 0.13), pick(rng, (0.06, 0.4)), 0.85)
        pales = np.arange(0.0, 1.0, 0.42 / length)
        box.paint(hsv(0.25, 0.3, 0.2))
        box.detail(box.side, 0.0, 1.0, [0.15, 0.75], [0.22, 0.82], colour * 0.8)
        box.detail(box.side, pales, pales + 0.3 / length, 0.02, 1.0, colour)
