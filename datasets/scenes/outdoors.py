"""Trees, houses, street furniture and toys: flat sprites in metres (x right, y up), houses as solids."""

from __future__ import annotations

import math
import random

import numpy as np

from .canvas import CIRCLE, OCTAGON, Sprite, box, cuboid, ellipse, facing, patch, patches
from .palette import COLOURS, RGB, jitter, mix, named, shade

METAL: RGB = (120, 126, 132)


def tree(sprite: Sprite, rng: random.Random) -> None:
    shape = rng.choice(("round", "round", "conifer", "slender"))
    name = "green" if shape == "conifer" or rng.random() < 0.8 else rng.choice(("orange", "yellow", "red"))
    leaf: RGB = {"green": (52, rng.randint(88, 128), 44), "orange": (206, 122, 36), "yellow": (214, 182, 52),
                 "red": (170, 52, 40)}[name]  # fmt: skip
    leaf = jitter(rng, leaf, 8)
    bark = jitter(rng, (96, 70, 48))
    height = rng.uniform(4.0, 6.5)
    sprite.attributes.update(colour=name, shape=shape)
    trunk = height * (0.16 if shape == "conifer" else rng.uniform(0.28, 0.4))
    sprite.fill(
        [(-0.04 * height, 0), (0.04 * height, 0), (0.025 * height, trunk * 1.3), (-0.025 * height, trunk * 1.3)], bark
    )
    sprite.fill(
        [(0.005 * height, 0), (0.04 * height, 0), (0.025 * height, trunk), (0.005 * height, trunk)], shade(bark, 0.7)
    )
    if shape == "conifer":
        tiers = rng.randint(3, 5)
        for k in range(tiers):
            low, half = trunk + (height - trunk) * k / (tiers + 0.6), 0.24 * height * (1 - 0.75 * k / tiers)
            top = min(height, low + (height - trunk) * 1.7 / tiers)
            teeth = [(x * half, low + 0.03 * height * (j % 2)) for j, x in enumerate(np.linspace(-1, 1, 9))]
            sprite.fill([*teeth, (0.0, top)], shade(leaf, 0.62 + 0.1 * k))
            sprite.fill(
                [(-half * 0.8, low + 0.02 * height), (0, low + 0.02 * height), (-half * 0.05, top)],
                shade(leaf, 0.75 + 0.1 * k),
            )
        return
    rx, ry = (0.30, 0.33) if shape == "round" else (0.15, 0.36)
    middle = height * (1 - ry)
    for count, spread, radius, gain in ((9, 0.78, 0.46, 0.62), (9, 0.62, 0.34, 0.85), (8, 0.52, 0.22, 1.12)):
        angle = 2 * math.pi * (np.arange(count) + rng.random()) / count
        reach = np.array([spread * (1.0 if gain < 0.7 else rng.uniform(0.3, 1.0)) for _ in range(count)])
        size = radius * np.array([rng.uniform(0.8, 1.1) for _ in range(count)])[:, None, None]
        middles = np.stack([reach * np.cos(angle) * rx, reach * np.sin(angle) * ry + middle / height], 1)
        if gain > 0.7:
            middles += np.array([-0.05, 0.1]) * (gain - 0.6)
        else:
            sprite.disc(0, middle, rx * height * 0.85, ry * height * 0.85, shade(leaf, gain))
        blobs = (OCTAGON * (rx, ry) * size + middles[:, None]) * height
        sprite.fill_each(blobs, [shade(leaf, gain * rng.uniform(0.9, 1.1)) for _ in range(count)])


def house(sprite: Sprite, rng: random.Random) -> None:
    """A detached house with a pitched roof; the view must know headings."""
    name = rng.choice(("red", "yellow", "white", "brown", "gray", "orange", "blue"))
    wall = mix(named(rng, name), (200, 190, 178), 0.25)
    roof = rng.choice(((122, 52, 40), (84, 60, 50), (70, 74, 82), (150, 84, 58)))
    sprite.attributes.update(colour=name)
    half, depth, eaves = rng.uniform(3.2, 4.4), rng.uniform(2.4, 3.2), rng.uniform(3.0, 4.8)
    ridge, lip = eaves + rng.uniform(1.6, 2.4), 0.35
    walls = cuboid(-half, 0, -depth, half, eaves, depth)
    inside = np.array([0.0, eaves / 2, 0.0])
    seen, order, gain = facing(sprite.view, walls[:4], inside)
    brick = rng.random() < 0.5
    for i in order:
        if seen[i]:
            _wall(
                sprite,
                walls[i],
                shade(wall, gain[i]),
                gable=bool(i < 2),
                brick=brick,
                eaves=eaves,
                ridge=ridge,
                rng=rng,
            )
    slopes = np.array([[(-half - lip, eaves - 0.15, s * (depth + lip)), (half + lip, eaves - 0.15, s * (depth + lip)),
                        (half + lip, ridge, 0.0), (-half - lip, ridge, 0.0)] for s in (-1, 1)])  # fmt: skip
    visible, order, gain = facing(sprite.view, slopes, np.array([0.0, eaves * 0.5, 0.0]))
    x, z = half * rng.choice((-0.5, 0.5)), -depth * 0.35
    chimney = cuboid(x - 0.3, eaves, z - 0.3, x + 0.3, ridge + 0.7, z + 0.3)
    sprite.solid(chimney, [shade(roof, 0.8)] * 5, chimney.mean((0, 1)))
    for i in order:
        if visible[i]:
            sprite.fill(slopes[i], shade(roof, gain[i]))
            rows = tuple((0, v, 1, v + 0.03) for v in (0.2, 0.4, 0.6, 0.8))
            sprite.fill_all(patches(slopes[i], rows), shade(roof, gain[i] * 0.8))


_COURSES = tuple((0.0, v, 1.0, v + 0.008) for v in np.arange(0.06, 1.0, 0.08).tolist())


def _wall(
    sprite: Sprite,
    quad: np.ndarray,
    colour: RGB,
    *,
    gable: bool,
    brick: bool,
    eaves: float,
    ridge: float,
    rng: random.Random,
) -> None:
    sprite.fill(quad, colour)
    if gable:
        peak = (quad[2] + quad[3]) / 2
        peak[1] = ridge
        sprite.fill(np.array([quad[3], quad[2], peak]), colour)
        if rng.random() < 0.6:
            sprite.fill(patch(quad, 0.42, 1.08, 0.58, 1.26), (52, 62, 76))
    if brick:
        sprite.fill_all(patches(quad, _COURSES), shade(colour, 0.82))
    floors = 1 if eaves < 3.6 else 2
    columns = 2 if gable else 3
    door_at = rng.randrange(columns)
    glass = (56, 70, 88) if rng.random() < 0.75 else (238, 206, 120)
    frames, panes, doors = [], [], []
    for floor in range(floors):
        for k in range(columns):
            u0, u1 = (k + 0.28) / columns, (k + 0.72) / columns
            v0, v1 = (floor + 0.35) / floors, (floor + 0.78) / floors
            if floor == 0 and k == door_at:
                doors.append((u0, 0.0, u1 - 0.1 / columns, 0.68 / floors))
                continue
            frames.append((u0 - 0.02, v0 - 0.02, u1 + 0.02, v1 + 0.02))
            mid = (u0 + u1) / 2
            panes += [(u0, v0, mid - 0.006, v1), (mid + 0.006, v0, u1, v1)]
    sprite.fill_all(patches(quad, tuple(frames)), (226, 222, 212))
    sprite.fill_all(patches(quad, tuple(panes)), glass)
    sprite.fill_all(patches(quad, tuple(doors)), rng.choice(((92, 56, 34), (44, 70, 54), (110, 34, 32), (60, 60, 66))))


def traffic_light(sprite: Sprite, rng: random.Random) -> None:
    """The lamp housing is the object; the mast that carries it is not."""
    state = rng.choice(("red", "red", "yellow", "green"))
    sprite.attributes.update(state=state)
    y, x = rng.uniform(2.6, 3.4), 0.0
    if rng.random() < 0.4:
        y, mast = rng.uniform(3.8, 4.6), rng.uniform(1.8, 3.2)
        sprite.line([(mast, 0), (mast, y + 1.3), (mast, y + 1.3), (-0.1, y + 1.3)], METAL, 0.14)
        sprite.line([(0, y + 1.3), (0, y + 0.9)], METAL, 0.1)
    else:
        sprite.line([(0.0, 0), (0.0, y + 0.5)], METAL, 0.14)
    sprite.so_far_is_support()
    sprite.fill(box(x - 0.24, y, x + 0.24, y + 1.15), (34, 36, 38))
    sprite.fill(box(x - 0.2, y + 0.04, x + 0.2, y + 1.11), (20, 22, 24))
    lit: dict[str, RGB] = {"red": (255, 60, 40), "yellow": (255, 206, 60), "green": (60, 240, 120)}
    for k, name in enumerate(("green", "yellow", "red")):
        colour = lit[name] if name == state else shade(lit[name], 0.2)
        sprite.disc(x, y + 0.22 + 0.355 * k, 0.145, 0.145, colour)
        if name == state:
            sprite.disc(x, y + 0.22 + 0.355 * k, 0.07, 0.07, mix(colour, (255, 255, 240), 0.6))


def traffic_sign(sprite: Sprite, rng: random.Random) -> None:
    """The plate is the object; its pole is not."""
    kind = rng.choice(("stop", "limit", "warning", "no entry", "blue"))
    y = rng.uniform(2.1, 2.6)
    sprite.line([(0, 0), (0, y + 0.3)], METAL, 0.08)
    sprite.so_far_is_support()
    red, white = COLOURS["red"], (240, 240, 238)
    colour = {"stop": "red", "limit": "white", "warning": "yellow", "no entry": "red", "blue": "blue"}[kind]
    sprite.attributes.update(colour=colour, sign={"limit": "speed limit"}.get(kind, kind))
    middle = (0.0, y + 0.4)
    if kind == "stop":
        octagon = np.stack(
            [np.cos(np.arange(8) * math.pi / 4 + math.pi / 8), np.sin(np.arange(8) * math.pi / 4 + math.pi / 8)], 1
        )
        sprite.fill(octagon * 0.44 + middle, white)
        sprite.fill(octagon * 0.40 + middle, red)
        sprite.fill_all([box(x, y + 0.31, x + 0.09, y + 0.49) for x in (-0.3, -0.15, 0.03, 0.19)], white)
    elif kind == "warning":
        sprite.fill(np.array([(-0.46, y + 0.05), (0.46, y + 0.05), (0, y + 0.85)]), red)
        sprite.fill(np.array([(-0.33, y + 0.13), (0.33, y + 0.13), (0, y + 0.69)]), (246, 220, 80))
        sprite.fill_all([box(-0.04, y + 0.3, 0.04, y + 0.52), box(-0.04, y + 0.18, 0.04, y + 0.25)], (24, 24, 24))
    else:
        sprite.disc(*middle, 0.42, 0.42, {"limit": red, "no entry": red, "blue": COLOURS["blue"]}[kind])
        if kind == "no entry":
            sprite.fill(box(-0.28, y + 0.34, 0.28, y + 0.47), white)
        elif kind == "blue":
            sprite.fill([(-0.07, y + 0.15), (0.07, y + 0.15), (0.07, y + 0.42), (0.2, y + 0.42), (0, y + 0.68),
                         (-0.2, y + 0.42), (-0.07, y + 0.42)], white)  # fmt: skip
        else:
            sprite.disc(*middle, 0.32, 0.32, white)
            digit = 0.11
            for x in (-0.13, 0.13):
                sprite.disc(x, y + 0.4, digit, 0.17, (26, 26, 26))
                sprite.disc(x, y + 0.4, digit * 0.45, 0.1, white)


def street_lamp(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("gray", "black", "green"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    height = rng.uniform(4.2, 5.6)
    sprite.fill([(-0.16, 0), (0.16, 0), (0.12, 0.5), (-0.12, 0.5)], shade(paint, 0.8))
    sprite.fill([(-0.09, 0.3), (0.09, 0.3), (0.06, height), (-0.06, height)], paint)
    if rng.random() < 0.6:
        sprite.limb((0, height), (1.1, height + 0.3), 0.06, 0.06, paint)
        sprite.fill(
            [(0.9, height + 0.34), (1.75, height + 0.36), (1.7, height + 0.18), (0.9, height + 0.16)], shade(paint, 0.8)
        )
        sprite.fill(box(1.0, height + 0.1, 1.65, height + 0.19), (250, 236, 180))
    else:
        sprite.fill([(-0.2, height), (0.2, height), (0.32, height + 0.6), (-0.32, height + 0.6)], (250, 236, 190))
        sprite.fill([(-0.4, height + 0.6), (0.4, height + 0.6), (0.0, height + 0.9)], paint)


def fire_hydrant(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("red", "yellow", "blue"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    dark = shade(paint, 0.65)
    sprite.fill(box(-0.26, 0, 0.26, 0.09), dark)
    sprite.fill(box(-0.17, 0.08, 0.17, 0.68), paint)
    sprite.fill(box(0.06, 0.08, 0.17, 0.68), dark)
    sprite.fill(box(-0.3, 0.4, 0.3, 0.56), paint)
    sprite.fill_all([box(-0.35, 0.38, -0.27, 0.58), box(0.27, 0.38, 0.35, 0.58)], dark)
    sprite.fill(box(-0.22, 0.66, 0.22, 0.74), dark)
    sprite.fill(ellipse(0, 0.74, 0.18, 0.17)[:13], paint)
    sprite.fill(box(-0.05, 0.88, 0.05, 0.98), dark)
    sprite.disc(0.0, 0.47, 0.1, 0.1, dark)


def bench(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("brown", "green", "gray", "red"))
    wood = named(rng, name)
    sprite.attributes.update(colour=name)
    iron = (46, 46, 50)
    half = rng.uniform(0.75, 1.0)
    sprite.fill_all([box(x - 0.05, 0, x + 0.05, 0.95) for x in (-half * 0.85, half * 0.85)], iron)
    for y in (0.58, 0.72, 0.86):
        sprite.fill(box(-half, y, half, y + 0.1), shade(wood, 0.9))
    sprite.fill([(-half, 0.5), (half, 0.5), (half * 1.06, 0.36), (-half * 1.06, 0.36)], wood)
    sprite.fill(box(-half * 1.06, 0.31, half * 1.06, 0.37), shade(wood, 0.6))
    sprite.fill_all([box(x - 0.05, 0, x + 0.05, 0.33) for x in (-half * 0.95, half * 0.95)], iron)


def trash_bin(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("green", "gray", "blue", "black", "yellow"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    sprite.fill([(-0.27, 0.06), (0.27, 0.06), (0.34, 0.95), (-0.34, 0.95)], paint)
    sprite.fill([(0.1, 0.06), (0.27, 0.06), (0.34, 0.95), (0.14, 0.95)], shade(paint, 0.7))
    sprite.fill_all([box(x, 0.12, x + 0.03, 0.88) for x in (-0.18, -0.02)], shade(paint, 0.8))
    sprite.fill([(-0.4, 0.93), (0.4, 0.93), (0.34, 1.12), (-0.3, 1.12)], shade(paint, 0.85))
    sprite.fill_all([ellipse(x, 0.08, 0.09, 0.09) for x in (-0.2, 0.2)], (26, 26, 28))


def ball(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("red", "yellow", "blue", "white", "green", "purple", "pink", "orange"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    other = mix(COLOURS["white"] if name != "white" else COLOURS["black"], paint, 0.1)
    sprite.disc(0, 0.3, 0.3, 0.3, paint)
    turn = rng.uniform(0, math.pi)
    if rng.random() < 0.5:
        sin, cos = math.sin(turn), math.cos(turn)
        turned = np.array([[cos, sin], [-sin, cos]])
        band = np.concatenate([CIRCLE[0:5] * (0.3, 0.3), CIRCLE[8:13] * (0.3, 0.3)])
        low = band * (1, 0.35)
        sprite.fill(np.concatenate([low, -low]) @ turned + (0, 0.3), other)
    else:
        for k in range(4):
            a = turn + k * math.pi / 2
            sprite.disc(0.19 * math.cos(a), 0.3 + 0.19 * math.sin(a), 0.075, 0.075, other)
        sprite.disc(0, 0.3, 0.06, 0.06, other)
    sprite.disc(-0.1, 0.42, 0.06, 0.045, mix(paint, (255, 255, 255), 0.7))


def kite(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("red", "yellow", "blue", "green", "purple", "pink", "orange"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    second = named(rng, rng.choice([c for c in ("red", "yellow", "blue", "white") if c != name]))
    turn = rng.uniform(-0.5, 0.5)
    rot = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    tail = np.array([(0, -0.6), (0.12, -0.8), (-0.08, -1.0), (0.1, -1.2), (-0.02, -1.4)]) @ rot
    sprite.line(tail, (70, 60, 60), 0.025)
    for k in (1, 2, 3):
        sprite.fill(np.array([(-0.1, -0.05), (-0.1, 0.05), (0.1, -0.05), (0.1, 0.05)]) @ rot + tail[k], second)
    top, right, bottom, left = np.array([(0, 0.55), (0.42, 0.12), (0, -0.62), (-0.42, 0.12)]) @ rot
    middle = np.array((0, 0.12)) @ rot
    sprite.fill(np.array([top, right, bottom, left]), paint)
    sprite.fill(np.array([top, right, middle]), shade(paint, 0.75))
    sprite.fill(np.array([left, middle, bottom]), second)
    sprite.line(np.array([top, bottom]), (50, 44, 44), 0.02)
    sprite.line(np.array([left, right]), (50, 44, 44), 0.02)
