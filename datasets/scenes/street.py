"""Streets: the traffic on a road in perspective, and what stands along its pavements."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from . import animals, distractors, outdoors, riders, roadside, vehicles
from .canvas import Ground, Sprite, View, fixed
from .palette import jitter
from .roadside import Road
from .stage import Stage, Thing, log_uniform

Draw = Callable[[Sprite, random.Random], None]
VEHICLES: dict[str, tuple[Draw, float, float]] = {  # how it is drawn, its length and width on the ground
    "car": (vehicles.car, 4.6, 1.9), "van": (vehicles.van, 5.1, 2.0), "truck": (vehicles.truck, 7.4, 2.4),
    "bus": (vehicles.bus, 10.0, 2.5), "bicycle": (riders.bicycle, 1.75, 0.5),
    "motorcycle": (riders.motorcycle, 2.0, 0.7),
}  # fmt: skip
FURNITURE: dict[str, tuple[Draw, float, float]] = {  # how it is drawn, half width on the ground, room it needs in x
    "tree": (outdoors.tree, 1.0, 1.6), "street lamp": (outdoors.street_lamp, 0.3, 0.5),
    "traffic light": (outdoors.traffic_light, 0.3, 0.6), "traffic sign": (outdoors.traffic_sign, 0.3, 0.5),
    "fire hydrant": (outdoors.fire_hydrant, 0.3, 0.4), "bench": (outdoors.bench, 0.4, 1.0),
    "trash bin": (outdoors.trash_bin, 0.3, 0.5), "person": (riders.person, 0.3, 0.4), "dog": (animals.dog, 0.3, 0.7),
    "cat": (animals.cat, 0.2, 0.3), "house": (outdoors.house, 3.5, 4.6),
}  # fmt: skip


def build(stage: Stage) -> None:
    rng, width, height = stage.rng, stage.width, stage.height
    lens = rng.uniform(0.52, 0.95) * width
    ground = Ground(
        focal=lens, centre_x=width / 2, horizon=height * rng.uniform(0.36, 0.52), height=rng.uniform(1.3, 2.5)
    )
    across = rng.random() < 0.22
    lane, lanes = rng.uniform(3.0, 3.6), rng.choice((2, 2, 3, 4))
    near = rng.uniform(5.0, 9.0)
    road = Road(
        across=across, half=lane * lanes / 2, pavement=rng.uniform(1.8, 3.6),
        offset=-lane * rng.choice((0.5, 0.5, 1.0, 0.0)) * (lanes / 2 - 0.5) + rng.uniform(-0.6, 0.6),
        slope=rng.uniform(-0.28, 0.28) if rng.random() < 0.6 else 0.0, near=near, far=near + lane * lanes,
    )  # fmt: skip
    sides = (rng.choice(roadside.SIDES), rng.choice(roadside.SIDES))
    haze = rng.choice((0.0, 0.0, 0.0, 0.006, 0.012, 0.035))
    stage.fog = jitter(rng, (196, 202, 210), 14)
    if not across and rng.random() < 0.45:
        _rows(stage, ground, road, haze)
    for _ in range(rng.randint(7, 26)):
        _place_one(stage, ground, road, haze, sides)
    for _ in range(rng.randint(0, 6)):
        _place_distractor(stage, ground, road, haze)
    _place_birds(stage, ground)
    _dapple(stage, ground, road)
    backdrop_rng = random.Random(rng.random())
    stage.paint_backdrop = lambda: roadside.backdrop(stage, ground, road, sides, haze, backdrop_rng)


_KINDS = (
    "car", "van", "truck", "bus", "bicycle", "motorcycle", "tree", "street lamp", "traffic light", "traffic sign",
    "fire hydrant", "bench", "trash bin", "person", "dog", "cat", "house",
)  # fmt: skip
_SHARES = (7.5, 2.2, 2.0, 1.6, 2.2, 2.0, 2.2, 1.4, 2.6, 2.4, 1.5, 1.3, 1.5, 2.8, 1.0, 0.8, 1.5)


def _place_one(stage: Stage, ground: Ground, road: Road, haze: float, sides: tuple[str, str]) -> None:
    kind = stage.choose(_KINDS, _SHARES)
    if kind in VEHICLES:
        _place_vehicle(stage, ground, road, haze, kind)
    else:
        _place_furniture(stage, ground, road, haze, kind, sides)


def _rows(stage: Stage, ground: Ground, road: Road, haze: float) -> None:
    """Cars parked along a kerb, trees planted along a pavement: things that hide one another."""
    rng = stage.rng
    side, z = rng.choice((-1, 1)), rng.uniform(6.0, 10.0)
    for _ in range(rng.randint(2, 6)):
        kind = rng.choice(("car", "car", "car", "car", "van"))
        _draw_vehicle(stage, ground, haze, kind, road.middle(z) + side * (road.half - 0.9), z,
                      math.atan(road.slope) + (math.pi if side < 0 else 0.0) + rng.gauss(0.0, 0.02))  # fmt: skip
        z += rng.uniform(5.6, 8.0)
    if rng.random() < 0.5:
        side, z, reach = rng.choice((-1, 1)), rng.uniform(7.0, 10.0), rng.uniform(0.5, 0.9) * road.pavement
        for _ in range(rng.randint(2, 4)):
            _draw_furniture(
                stage, ground, haze, "tree", road.middle(z) + side * (road.half + reach), z, 0.0, flip=False
            )
            z *= rng.uniform(1.35, 1.7)


def _place_vehicle(stage: Stage, ground: Ground, road: Road, haze: float, kind: str) -> None:
    rng = stage.rng
    _, length, breadth = VEHICLES[kind]
    turn = math.atan(road.slope)
    if road.across:
        z = rng.uniform(road.near + 1.2, road.far - 0.8)
        x = rng.uniform(-0.55, 0.55) * stage.width / ground.focal * z
        heading = math.pi / 2 if z > (road.near + road.far) / 2 else -math.pi / 2
        heading += rng.gauss(0.0, 0.08)
    else:
        z = log_uniform(rng, 3.2 + length * 0.6, 34.0 + 2 * length)
        lane = rng.uniform(-0.9, 0.9)
        x = road.middle(z) + lane * (road.half - breadth * 0.6)
        heading = turn + (math.pi if lane < 0 else 0.0) + rng.gauss(0.0, 0.07)
        manner = rng.random()
        if manner < 0.12:
            heading += rng.choice((-1, 1)) * rng.uniform(0.4, 1.3)
        elif manner < 0.2:
            heading = rng.choice((-1, 1)) * math.pi / 2 + turn
        elif manner < 0.35:
            x = road.middle(z) + rng.choice((-1, 1)) * (road.half + 0.2)
    if rng.random() < 0.35 and not road.across and kind in ("bicycle", "motorcycle"):
        heading = rng.uniform(-math.pi, math.pi)
    _draw_vehicle(stage, ground, haze, kind, x, z, heading)


def _draw_vehicle(stage: Stage, ground: Ground, haze: float, kind: str, x: float, z: float, heading: float) -> None:
    rng = stage.rng
    draw, length, breadth = VEHICLES[kind]
    sin, cos = abs(math.sin(heading)), abs(math.cos(heading))
    half_x, half_z = (length * sin + breadth * cos) / 2, (length * cos + breadth * sin) / 2
    if z - half_z < 1.6 or not _in_sight(stage, ground, x, z, half_x) or not stage.free(x, z, half_x, half_z):
        return
    view = ground.view(x, z, heading=heading)
    sprite = Sprite(view, haze=min(0.85, haze * z), air=stage.fog)
    draw(sprite, rng)
    sprite.attributes["facing"] = facing_of(view.eye)
    vehicles.footprint_shadow(sprite, length, breadth)
    thing = Thing(kind, sprite, z)
    stage.things.append(thing)
    if kind in ("bicycle", "motorcycle") and rng.random() < 0.6:
        rider = Sprite(view, haze=sprite.haze, air=stage.fog)
        riders.person(rider, rng, pose="riding", seat=0.98 if kind == "bicycle" else 0.88)
        rider.attributes["facing"] = sprite.attributes["facing"]
        stage.things.append(Thing("person", rider, z - 0.05, carrier=thing))


def _in_sight(stage: Stage, ground: Ground, x: float, z: float, half_x: float) -> bool:
    """Whether enough of it would be in the picture for it to stay: what is dropped later need not be drawn."""
    reach = 0.3 * half_x * ground.focal / z
    return -reach < ground.spot(x, z)[0] < stage.width + reach


def facing_of(eye: np.ndarray) -> str:
    """front: the camera sees the front; away: the back; else the side."""
    forward, _, right = eye.tolist()
    angle = math.degrees(math.atan2(abs(right), forward))
    return "front" if angle < 40 else "back" if angle > 140 else "side"


def _place_furniture(stage: Stage, ground: Ground, road: Road, haze: float, kind: str, sides: tuple[str, str]) -> None:
    rng = stage.rng
    large = kind in ("tree", "house", "street lamp")
    far = {"house": 45.0, "tree": 40.0, "street lamp": 30.0}.get(kind, 15.0)
    z = log_uniform(rng, {"house": 14.0, "tree": 6.0}.get(kind, 3.0), far)
    side = rng.choice((-1, 1))
    if road.across:
        z = (
            rng.uniform(road.far + 0.4, road.far + road.pavement)
            if rng.random() < 0.7 or large
            else rng.uniform(3.0, road.near)
        )
        z += {"house": 7.0, "tree": 2.0}.get(kind, 0.0)
        x = rng.uniform(-0.5, 0.5) * stage.width / ground.focal * z
    else:
        reach = rng.uniform(0.25, 1.0) * road.pavement
        x = road.middle(z) + side * (road.half + reach)
        if kind == "tree":
            x += side * rng.uniform(0.0, 4.0) * (sides[side > 0] not in ("facades", "wall"))
        elif kind == "house":
            if sides[side > 0] in ("facades", "wall"):
                return
            x += side * (6.0 + rng.uniform(0.0, 3.0))
        elif kind in ("person", "dog") and rng.random() < 0.25:
            x = road.middle(z) + rng.uniform(-0.9, 0.9) * road.half
    heading = rng.uniform(-math.pi, math.pi)
    if kind == "house":
        heading = (
            math.atan(road.slope) - side * math.pi / 2 + rng.gauss(0.0, 0.2) if not road.across else rng.gauss(0.0, 0.4)
        )
    flip = (side > 0) if kind == "street lamp" else rng.random() < 0.5
    _draw_furniture(stage, ground, haze, kind, x, z, heading, flip=flip)


def _draw_furniture(
    stage: Stage, ground: Ground, haze: float, kind: str, x: float, z: float, heading: float, *, flip: bool
) -> None:
    rng = stage.rng
    draw, half_z, half_x = FURNITURE[kind]
    if not _in_sight(stage, ground, x, z, 0.0) or not stage.free(x, z, half_x, half_z, 0.1):
        return
    view = ground.view(x, z, heading=heading, flip=flip)
    sprite = Sprite(view, haze=min(0.85, haze * z), air=stage.fog)
    draw(sprite, rng)
    if kind == "person":
        sprite.attributes["facing"] = facing_of(view.eye)
    ground_shadow(sprite, half_x * (1.2 if kind == "tree" else 0.8))
    stage.things.append(Thing(kind, sprite, z, stuff="pole"))


def _place_distractor(stage: Stage, ground: Ground, road: Road, haze: float) -> None:
    """Bollards, masts, boxes, bushes, posters: drawn, in the way, named nowhere."""
    rng = stage.rng
    z = log_uniform(rng, 3.5, 25.0)
    if road.across:
        z = max(z, road.far + 0.5)
        x = rng.uniform(-0.5, 0.5) * stage.width / ground.focal * z
    else:
        x = road.middle(z) + rng.choice((-1, 1)) * (road.half + rng.uniform(0.3, 1.0) * road.pavement + 0.2)
    if not stage.free(x, z, 0.4, 0.4, 0.1):
        return
    sprite = Sprite(ground.view(x, z), haze=min(0.85, haze * z), air=stage.fog)
    stuff = distractors.draw(sprite, rng)
    ground_shadow(sprite, 0.5)
    stage.things.append(Thing("", sprite, z, stuff=stuff))


_BLOB = [(math.cos(t), math.sin(t)) for t in np.linspace(0, 6.28, 10)[:-1].tolist()]


def _dapple(stage: Stage, ground: Ground, road: Road) -> None:
    """Shadows on the road of trees and blocks that are not in the picture."""
    rng = stage.rng
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        z, reach = log_uniform(rng, 3.0, 16.0), rng.uniform(1.5, 6.0)
        x = (0.0 if road.across else road.middle(z)) + rng.uniform(-6.0, 6.0)
        for _ in range(rng.randint(2, 8)):
            a, b = x + rng.uniform(-reach, reach), z + rng.uniform(-0.2, 0.2) * reach
            rx, rz = rng.uniform(0.2, 0.5) * reach, rng.uniform(0.08, 0.2) * reach
            blob = [(a + rx * cos, 0.0, b + rz * sin) for cos, sin in _BLOB]
            stage.shadows.append(fixed(ground.points(blob)))


_TURN = np.linspace(0, 2 * math.pi, 17)[:-1]
_FOOT = np.stack([np.cos(_TURN) + 0.5, np.sin(_TURN)], 1)


def ground_shadow(sprite: Sprite, radius: float) -> None:
    """A flattened ellipse at the foot."""
    sprite.shadow(_FOOT * (radius, 0.22 * radius))


def _place_birds(stage: Stage, ground: Ground) -> None:
    rng = stage.rng
    if rng.random() > 0.15:
        return
    for _ in range(rng.randint(1, 3)):
        foot = (rng.uniform(0.05, 0.95) * stage.width, rng.uniform(0.05, 0.8) * ground.horizon)
        view = View(foot=foot, scale=stage.width * rng.uniform(0.03, 0.07), flip=rng.random() < 0.5)
        sprite = Sprite(view)
        animals.bird(sprite, rng)
        stage.things.append(Thing("bird", sprite, 60.0 + rng.random()))
