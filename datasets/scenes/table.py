"""Tables: things on a top seen from any elevation, from nearly level to straight down."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from . import outdoors, tableware
from .canvas import Desk, Sprite
from .palette import COLOURS, RGB, jitter, mix, named, shade
from .stage import Backdrop, Stage, Thing

Draw = Callable[[Sprite, random.Random], None]


def toy_ball(sprite: Sprite, rng: random.Random) -> None:
    """A toy ball, drawn by outdoors in metres of a smaller size."""
    sprite.view.scale *= rng.uniform(1.4, 1.9)
    outdoors.ball(sprite, rng)


# How it is drawn, its radius on the table in decimetres, how often, and whether it lies flat (any heading).
WARE: dict[str, tuple[Draw, float, float, bool]] = {
    "cup": (tableware.cup, 0.6, 2.0, False), "bottle": (tableware.bottle, 0.45, 1.6, False),
    "wine glass": (tableware.wine_glass, 0.45, 1.1, False), "plate": (tableware.plate, 1.3, 1.8, False),
    "bowl": (tableware.bowl, 0.95, 1.3, False), "vase": (tableware.vase, 0.6, 1.0, False),
    "book": (tableware.book, 1.2, 1.6, True), "laptop": (tableware.laptop, 1.7, 1.5, True),
    "phone": (tableware.phone, 0.7, 1.2, True), "clock": (tableware.clock, 0.6, 2.2, False),
    "apple": (tableware.apple, 0.4, 1.4, False), "orange": (tableware.orange, 0.4, 1.3, False),
    "banana": (tableware.banana, 0.7, 1.3, False), "ball": (toy_ball, 0.5, 1.0, False),
    "fork": (tableware.fork, 0.8, 1.1, True), "knife": (tableware.knife, 0.8, 1.1, True),
    "spoon": (tableware.spoon, 0.8, 1.1, True), "scissors": (tableware.scissors, 0.9, 1.0, True),
}  # fmt: skip
FROM_THE_SIDE = {"clock": 0.8, "bottle": 1.15, "wine glass": 1.1}  # the elevation up to which each is told apart


def build(stage: Stage) -> None:
    rng, w, h = stage.rng, stage.width, stage.height
    elevation = rng.uniform(0.35, 1.35)
    desk = Desk(elevation=elevation)
    unit = min(w / 320.0, h / 240.0) * rng.uniform(25.0, 42.0)
    squash = math.sin(elevation)
    edge = h * rng.uniform(0.12, 0.38) if elevation < 0.85 else -1.0
    names = [n for n in WARE if elevation < FROM_THE_SIDE.get(n, 9.0)]
    weights = [WARE[n][2] for n in names]
    wanted = rng.randint(6, 22)
    favourite = rng.choice(names) if rng.random() < 0.4 else ""
    for _ in range(wanted):
        name = favourite if favourite and rng.random() < 0.35 else stage.choose(names, weights)
        draw, radius, _, lies = WARE[name]
        x, y = rng.uniform(0.06, 0.94) * w, rng.uniform(max(edge, 0.0) + 0.1 * h, 0.95 * h)
        tight = radius * unit * (0.62 if rng.random() < 0.5 else 0.95)
        if not stage.free(x, y / squash, tight, tight, 0.0):
            continue
        size = unit * rng.uniform(0.85, 1.15)
        heading = rng.uniform(-math.pi, math.pi) if lies else rng.choice((-0.5, 0.5)) * math.pi + rng.gauss(0, 0.5)
        if name == "laptop":
            heading = math.pi + rng.gauss(0, 0.5) if rng.random() < 0.75 else rng.gauss(0, 0.5)
        sprite = Sprite(desk.view((x, y), size, heading=heading, flip=rng.random() < 0.5))
        draw(sprite, rng)
        stage.things.append(
            Thing(name, sprite, -y + (1.5 * radius * unit if name in ("plate",) or radius == 0.8 else 0.0))
        )
    backdrop_rng = random.Random(rng.random())
    stage.paint_backdrop = lambda: _backdrop(stage, desk, unit, edge, backdrop_rng)


def _backdrop(stage: Stage, desk: Desk, unit: float, edge: float, rng: random.Random) -> Backdrop:
    w, h = stage.width, stage.height
    drop = Backdrop(w, h, rng, (220, 216, 208))
    top: RGB = jitter(rng, rng.choice(((168, 120, 76), (120, 80, 50), (206, 180, 140), (214, 210, 202), (92, 96, 104),
                                       (60, 110, 100), (150, 60, 56), (90, 60, 48))), 10)  # fmt: skip
    wall = jitter(
        rng, rng.choice(((206, 198, 182), (150, 168, 180), (186, 170, 190), (226, 220, 206), (132, 150, 130))), 12
    )
    drop.fill(
        "table",
        np.array([(0, 0), (w, 0), (w, h), (0, h)]),
        top,
        kind=rng.choice(("wood", "wood", "cloth", "plain", "tiles")),
    )
    drop.image[:] = top
    if edge > 0:
        drop.fill(
            "wall",
            np.array([(0, 0), (w, 0), (w, edge), (0, edge)]),
            wall,
            kind=rng.choice(("bricks", "stripes", "plain", "tiles")),
        )
        drop.marks([np.array([(0, edge - 0.012 * h), (w, edge - 0.012 * h), (w, edge), (0, edge)])], shade(top, 0.6))
        if rng.random() < 0.4:
            x, half = rng.uniform(0.1, 0.9) * w, rng.uniform(0.06, 0.16) * w
            frame = np.array([(x - half, -1), (x + half, -1), (x + half, edge * 0.7), (x - half, edge * 0.7)])
            drop.marks([frame], shade(wall, 0.6))
            drop.marks(
                [(frame - (x, edge * 0.3)) * 0.86 + (x, edge * 0.3)],
                rng.choice(((150, 190, 220), (60, 90, 70), (180, 140, 100))),
            )
    _clutter(drop, desk, unit, edge, rng)
    drop.add_textures()
    return drop


def _clutter(drop: Backdrop, desk: Desk, unit: float, edge: float, rng: random.Random) -> None:
    """Place mats, napkins, crumbs, stains: flat shapes that are nothing."""
    h, w = drop.stuff.shape
    for _ in range(rng.randint(0, 3)):
        foot = (rng.uniform(0, w), rng.uniform(max(edge, 0) + 0.15 * h, h))
        view = desk.view(foot, unit, heading=rng.uniform(-0.6, 0.6))
        colour = named(rng, rng.choice(tuple(COLOURS)))
        a, b = rng.uniform(0.6, 2.4), rng.uniform(0.6, 2.0)
        mat = view.project(np.array([(-a, 0, -b), (-a, 0, b), (a, 0, b), (a, 0, -b)]))
        mat[:, 1] = np.maximum(mat[:, 1], edge)
        drop.marks([mat], mix(colour, (190, 180, 170), 0.45))
        if rng.random() < 0.6:
            bars = [
                view.project(np.array([(-a, 0, z), (-a, 0, z + 0.12), (a, 0, z + 0.12), (a, 0, z)]))
                for z in np.arange(-b, b, 0.5)
            ]
            drop.marks([np.maximum(bar, (-9e3, edge)) for bar in bars], mix(colour, (220, 210, 200), 0.3))
    crumbs = []
    for _ in range(rng.randint(0, 14)):
        x, y, r = rng.uniform(0, w), rng.uniform(max(edge, 0) + 0.03 * h, h), rng.uniform(0.02, 0.06) * unit
        crumbs.append(np.array([(x - r, y), (x, y - r), (x + r, y), (x, y + r)]))
    drop.marks(crumbs, rng.choice(((90, 60, 30), (230, 220, 200), (60, 60, 60))))
