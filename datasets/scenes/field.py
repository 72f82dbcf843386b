"""Meadows: rolling grass under a wide sky, with people, animals, trees and houses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from . import animals, distractors, outdoors, riders
from .canvas import Ground, Sprite, View
from .palette import jitter, mix, shade
from .roadside import PATCH
from .stage import Backdrop, Stage, Thing
from .street import facing_of, ground_shadow

Draw = Callable[[Sprite, random.Random], None]
# How it is drawn, half extents on the ground in metres, how often, nearest and farthest distance.
CAST: dict[str, tuple[Draw, float, float, float, float, float]] = {
    "person": (riders.person, 0.4, 0.4, 3.0, 3.5, 18.0), "dog": (animals.dog, 0.6, 0.3, 1.6, 3.0, 9.0),
    "cat": (animals.cat, 0.3, 0.2, 1.0, 2.2, 5.0), "horse": (animals.horse, 1.2, 0.5, 2.0, 5.0, 24.0),
    "cow": (animals.cow, 1.1, 0.5, 2.0, 4.5, 22.0), "sheep": (animals.sheep, 0.6, 0.4, 2.0, 3.5, 12.0),
    "tree": (outdoors.tree, 1.5, 1.0, 2.0, 8.0, 45.0), "house": (outdoors.house, 4.5, 3.5, 1.2, 18.0, 50.0),
    "ball": (outdoors.ball, 0.4, 0.3, 1.6, 2.5, 7.0), "bench": (outdoors.bench, 1.0, 0.4, 1.0, 4.0, 12.0),
    "bicycle": (riders.bicycle, 0.9, 0.4, 1.4, 4.0, 14.0),
}  # fmt: skip


def crowd(stage: Stage) -> None:
    """Many people, near enough to tell which way they face."""
    build(stage, people=stage.rng.randint(4, 10))


def build(stage: Stage, people: int = 0) -> None:
    """A meadow with whatever stands on one, or with so many people."""
    rng, w, h = stage.rng, stage.width, stage.height
    ground = Ground(
        focal=w * rng.uniform(0.7, 1.2),
        centre_x=w / 2,
        horizon=h * rng.uniform(0.28, 0.52),
        height=rng.uniform(1.4, 2.6),
    )
    haze = rng.choice((0.0, 0.004, 0.01, 0.025))
    stage.fog = jitter(rng, (204, 210, 214), 14)
    names = list(CAST)
    weights = [CAST[n][3] for n in names]
    for _ in range(people):
        _place(stage, ground, haze, "person", among=(2.8, 9.0))
    herd = rng.choice(("sheep", "cow", "horse", "person")) if rng.random() < 0.45 else ""
    for _ in range(0 if people else rng.randint(5, 17)):
        name = herd if herd and rng.random() < 0.4 else stage.choose(names, weights)
        _place(stage, ground, haze, name)
    _sky_things(stage, ground)
    if rng.random() < 0.3:
        _fence(stage, ground, haze)
    for _ in range(rng.randint(0, 4)):
        z = rng.uniform(3.5, 25.0)
        x = rng.uniform(-0.5, 0.5) * w / ground.focal * z
        if stage.free(x, z, 0.6, 0.5, 0.1):
            sprite = Sprite(ground.view(x, z), haze=min(0.85, haze * z), air=stage.fog)
            stuff = distractors.draw(sprite, rng, ("bush", "rock", "bale", "mast"))
            ground_shadow(sprite, 0.5)
            stage.things.append(Thing("", sprite, z, stuff=stuff))
    backdrop_rng = random.Random(rng.random())
    stage.paint_backdrop = lambda: _backdrop(stage, ground, haze, backdrop_rng)


def _place(stage: Stage, ground: Ground, haze: float, name: str, *, among: tuple[float, float] | None = None) -> None:
    """Somewhere at its own distances, or at others (nearest, farthest in metres), if there is room."""
    rng = stage.rng
    draw, half_x, half_z, _, near, far = CAST[name]
    near, far = among or (near, far)
    z = near * (far / near) ** rng.random()
    x = rng.uniform(-0.48, 0.48) * stage.width / ground.focal * z
    if not stage.free(x, z, half_x, half_z, 0.05):
        return
    heading = rng.gauss(0, 0.5) if name == "house" else rng.uniform(-math.pi, math.pi)
    view = ground.view(x, z, heading=heading, flip=rng.random() < 0.5)
    if name == "ball":
        view.scale *= rng.uniform(0.5, 0.9)
    sprite = Sprite(view, haze=min(0.85, haze * z), air=stage.fog)
    draw(sprite, rng)
    if name in ("person", "bicycle"):
        sprite.attributes["facing"] = facing_of(view.eye)
    ground_shadow(sprite, half_x * 0.9)
    thing = Thing(name, sprite, z)
    stage.things.append(thing)
    if name == "bicycle" and rng.random() < 0.5:
        rider = Sprite(view, haze=sprite.haze, air=stage.fog)
        riders.person(rider, rng, pose="riding", seat=0.98)
        rider.attributes["facing"] = sprite.attributes["facing"]
        stage.things.append(Thing("person", rider, z - 0.05, carrier=thing))


def _sky_things(stage: Stage, ground: Ground) -> None:
    rng = stage.rng
    for name, draw, chance, low, high in (
        ("bird", animals.bird, 0.45, 0.03, 0.09),
        ("kite", outdoors.kite, 0.4, 0.06, 0.13),
    ):
        if rng.random() < chance:
            for _ in range(rng.randint(1, 3)):
                foot = (rng.uniform(0.06, 0.94) * stage.width, rng.uniform(0.08, 0.8) * ground.horizon)
                view = View(foot=foot, scale=stage.width * rng.uniform(low, high), flip=rng.random() < 0.5)
                sprite = Sprite(view)
                draw(sprite, rng)
                stage.things.append(Thing(name, sprite, 60.0 + rng.random()))


def _fence(stage: Stage, ground: Ground, haze: float) -> None:
    """A wooden fence across the meadow: drawn, in the way, not an object."""
    rng = stage.rng
    z = rng.uniform(5.0, 16.0)
    reach = stage.width / ground.focal * z
    sprite = Sprite(ground.view(0.0, z), haze=min(0.8, haze * z), air=stage.fog)
    wood = jitter(rng, (134, 104, 74))
    for y in (0.35, 0.7):
        sprite.fill([(-reach, y), (reach, y), (reach, y + 0.09), (-reach, y + 0.09)], wood)
    posts = [[(x, 0.0), (x + 0.12, 0.0), (x + 0.12, 1.0), (x, 1.0)] for x in np.arange(-reach, reach, 1.6)]
    sprite.fill_all(posts, shade(wood, 0.8))
    stage.things.append(Thing("", sprite, z, stuff="fence"))


def _backdrop(stage: Stage, ground: Ground, haze: float, rng: random.Random) -> Backdrop:
    drop = Backdrop(stage.width, stage.height, rng, stage.fog)
    w, h, horizon = stage.width, stage.height, ground.horizon
    unit = w / 320.0
    top = jitter(rng, rng.choice(((92, 150, 220), (130, 170, 214), (168, 178, 190), (110, 130, 190))), 10)
    low = jitter(rng, rng.choice(((206, 222, 232), (236, 214, 186), (214, 214, 214))), 8)
    drop.sky(top, low, horizon)
    grass = jitter(rng, rng.choice(((98, 140, 60), (120, 150, 70), (150, 146, 84), (84, 124, 58))), 10)
    for layer in range(rng.randint(0, 3)):
        xs = np.linspace(-5, w + 5, 24)
        phase, tall = rng.uniform(0, 6), rng.uniform(6, 26) * unit
        tops = horizon - tall * (0.55 + 0.45 * np.sin(xs * rng.uniform(0.008, 0.02) / unit + phase))
        outline = np.concatenate([np.stack([xs, tops], 1), [(w + 5, horizon + 2), (-5, horizon + 2)]])
        drop.fill(
            "hill",
            outline,
            mix(grass, (70, 110, 90), rng.uniform(0.2, 0.7)),
            haze=min(0.8, 0.5 - 0.15 * layer + 8 * haze),
        )
    drop.fill(
        "grass", np.array([(0, horizon), (w, horizon), (w, h), (0, h)]), grass, kind="grass", haze=min(0.3, 6 * haze)
    )
    patches = []
    for _ in range(rng.randint(1, 7)):
        z = 2.5 * 16 ** rng.random()
        x = rng.uniform(-0.5, 0.5) * w / ground.focal * z
        a, b = rng.uniform(0.5, 3.0), rng.uniform(0.4, 2.0)
        patches.append([(x + a * cos * rng.uniform(0.7, 1.2), 0, z + b * sin) for cos, sin in PATCH])
    for shape in ground.quads(patches):
        drop.marks(shape[None], shade(grass, rng.choice((0.82, 0.9, 1.1))))
    if rng.random() < 0.25:
        x0, x1 = rng.uniform(-2, 2), rng.uniform(-8, 8)
        path = ground.points([(x0 - 0.8, 0, 1.0), (x0 + 0.8, 0, 1.0), (x1 + 0.8, 0, 40.0), (x1 - 0.8, 0, 40.0)])
        drop.fill("road", path, jitter(rng, (176, 150, 110), 10), kind="asphalt")
    tufts = []
    for _ in range(rng.randint(0, 24)):
        z = 2.2 * 6 ** rng.random()
        x, r = rng.uniform(-0.5, 0.5) * w / ground.focal * z, rng.uniform(0.05, 0.15)
        tufts.append(
            [(x - r, 0, z), (x - 0.6 * r, 2 * r, z), (x, 0.4 * r, z), (x + 0.7 * r, 2.2 * r, z), (x + r, 0, z)]
        )
    drop.marks(ground.quads(tufts), shade(grass, rng.choice((0.7, 1.25))))
    drop.add_textures()
    return drop
