"""Sketches: one or two large things on plain ground, told in one short caption. What a small model learns to draw."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import animals, outdoors, riders, tableware, vehicles
from .canvas import Desk, Ground, Sprite
from .palette import RGB, jitter, mix, shade
from .stage import Backdrop, Stage, Thing
from .street import ground_shadow
from .table import toy_ball

Draw = Callable[[Sprite, random.Random], None]


@dataclass(frozen=True, slots=True)
class _Model:
    """How a thing is drawn, how wide and tall it is in its own metres, how large of the picture, seen from its side."""

    draw: Draw
    wide: float
    tall: float
    share: float = 0.4
    sideways: bool = False


# The smaller of two things is drawn larger against the other than it is: both are to be seen well. Nothing is among
# them whose colour is that of a part of it.
_LIVING = {
    "person": _Model(riders.person, 0.9, 2.0, 0.5), "dog": _Model(animals.dog, 1.5, 1.2, 0.34),
    "horse": _Model(animals.horse, 2.8, 2.3, 0.44), "cow": _Model(animals.cow, 2.8, 1.9, 0.42),
    "sheep": _Model(animals.sheep, 1.6, 1.2, 0.36), "tree": _Model(outdoors.tree, 3.4, 5.9, 0.55),
    "house": _Model(outdoors.house, 9.4, 6.8, 0.46), "ball": _Model(outdoors.ball, 0.6, 0.6, 0.24),
    "bench": _Model(outdoors.bench, 2.2, 1.3, 0.38),
}  # fmt: skip
_TRAFFIC = {
    "car": _Model(vehicles.car, 4.8, 1.9, 0.44, sideways=True),
    "van": _Model(vehicles.van, 5.5, 2.6, 0.44, sideways=True),
    "bus": _Model(vehicles.bus, 10.4, 3.7, 0.5, sideways=True),
    "fire hydrant": _Model(outdoors.fire_hydrant, 0.6, 1.1, 0.34),
    "trash bin": _Model(outdoors.trash_bin, 0.7, 1.3, 0.36),
    "person": _LIVING["person"], "tree": _LIVING["tree"], "ball": _LIVING["ball"],
}  # fmt: skip
_WARE = {
    "cup": _Model(tableware.cup, 1.1, 1.1, 0.32), "bottle": _Model(tableware.bottle, 0.7, 2.3, 0.5),
    "bowl": _Model(tableware.bowl, 1.8, 1.2, 0.38), "vase": _Model(tableware.vase, 1.5, 2.7, 0.5),
    "book": _Model(tableware.book, 1.7, 1.6, 0.36), "plate": _Model(tableware.plate, 2.5, 1.4, 0.42),
    "apple": _Model(tableware.apple, 0.85, 0.8, 0.26), "banana": _Model(tableware.banana, 1.5, 0.9, 0.34),
    "clock": _Model(tableware.clock, 1.25, 1.5, 0.36), "ball": _Model(toy_ball, 1.0, 1.0, 0.28),
}  # fmt: skip
_GROUNDS = {"grass": _LIVING, "road": _TRAFFIC, "table": _WARE}


def build(stage: Stage) -> None:
    """One thing, or two that lie beside each other, or one before the other."""
    rng, w, h = stage.rng, stage.width, stage.height
    stage.calm = True
    ground = stage.ground = rng.choice(tuple(_GROUNDS))
    models = _GROUNDS[ground]
    names = rng.sample(tuple(models), 2 if rng.random() < 0.65 else 1)
    level = rng.uniform(0.3, 0.48) * h  # of the horizon, or where the table ends
    stage.fog = (204, 210, 214)
    if len(names) == 1:
        spots = [(rng.uniform(0.3, 0.7), rng.uniform(0.74, 0.9))]
    else:
        left = (rng.uniform(0.22, 0.29), rng.uniform(0.72, 0.92))
        right = (rng.uniform(0.71, 0.78), rng.uniform(0.72, 0.92))
        spots = [left, right] if rng.random() < 0.5 else [right, left]
    desk = Desk(elevation=rng.uniform(0.4, 0.65))
    room = 0.46 if len(names) == 2 else 0.62

    def placed(name: str, spot: tuple[float, float], rng: random.Random) -> Thing:
        model, (x, y) = models[name], spot
        # As large as it may be in its half, and never more than its share.
        most = min(room, model.share * rng.uniform(0.9, 1.15) * (1.35 if len(names) == 1 else 1.0))
        scale = w * min(most / model.wide, 1.15 * most / model.tall)
        side = rng.choice((-0.5, 0.5)) * math.pi
        heading = side + (rng.uniform(-0.5, 0.5) if model.sideways else rng.gauss(0.0, 0.35))
        if ground == "table":
            view = desk.view((x * w, y * h), scale, heading=heading, flip=rng.random() < 0.5)
        else:
            focal = 1.1 * w
            far = focal / scale
            # A camera of its own, as high as brings its foot to its place.
            camera = Ground(focal=focal, centre_x=w / 2, horizon=level, height=max(0.3, (y * h - level) * far / focal))
            view = camera.view((x - 0.5) * w * far / focal, far, heading=heading, flip=rng.random() < 0.5)
        sprite = Sprite(view)
        model.draw(sprite, rng)
        if ground != "table":
            ground_shadow(sprite, 0.35 * model.wide)
        return Thing(name, sprite, -y, stuff="pole")

    stage.things += [placed(name, spot, rng) for name, spot in zip(names, spots, strict=True)]
    held = [(thing, spot) for thing, spot in zip(stage.things, spots, strict=True)]

    def instead(thing: Thing, rng: random.Random) -> Thing:
        spot = next(spot for other, spot in held if other is thing)
        return placed(rng.choice([name for name in models if name not in names]), spot, rng)

    stage.instead = instead
    backdrop_rng = random.Random(rng.random())
    stage.paint_backdrop = lambda: _backdrop(stage, ground, level, backdrop_rng)


def _backdrop(stage: Stage, ground: str, level: float, rng: random.Random) -> Backdrop:
    w, h = stage.width, stage.height
    drop = Backdrop(w, h, rng, stage.fog)
    low = np.array([(0, level), (w, level), (w, h), (0, h)])
    if ground == "table":
        wall = jitter(rng, rng.choice(((206, 198, 182), (150, 168, 180), (226, 220, 206), (132, 150, 130))), 8)
        top: RGB = jitter(rng, rng.choice(((168, 120, 76), (120, 80, 50), (206, 180, 140))), 8)
        drop.fill("wall", np.array([(0, 0), (w, 0), (w, level), (0, level)]), wall)
        drop.image[:] = wall
        drop.fill("table", low, top)
        drop.marks([low * (1, 0) + np.array([(0, level), (0, level), (0, level + 0.03 * h), (0, level + 0.03 * h)])],
                   shade(top, 0.6))  # fmt: skip
    else:
        sky = jitter(rng, rng.choice(((92, 150, 220), (130, 170, 214))), 8)
        drop.sky(sky, mix(sky, (226, 228, 230), 0.8), level)
        grass = jitter(rng, rng.choice(((98, 140, 60), (120, 150, 70), (84, 124, 58))), 8)
        drop.fill("grass", low, grass)
        if ground == "road":
            asphalt = np.array([(0, level + 0.06 * h), (w, level + 0.06 * h), (w, h), (0, h)])
            drop.fill("road", asphalt, jitter(rng, (104, 106, 112), 8))
            y = level + 0.3 * h
            dashes = [np.array([(x, y), (x + 0.12 * w, y), (x + 0.12 * w, y + 0.02 * h), (x, y + 0.02 * h)])
                      for x in np.arange(rng.uniform(-0.2, 0.0) * w, w, 0.25 * w)]  # fmt: skip
            drop.marks(dashes, (226, 226, 220))
    return drop
