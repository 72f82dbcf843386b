"""Animals: flat sprites in metres (x right, y up), each with its own silhouette."""

from __future__ import annotations

import math
import random

import numpy as np

from .canvas import OCTAGON, Sprite, box
from .palette import COLOURS, RGB, mix, named, shade


def _legs(
    sprite: Sprite, rng: random.Random, xs: tuple[float, float], top: float, radius: float, coat: RGB, hoof: RGB
) -> None:
    """Four legs with a knee each; the far pair is darker."""
    stride = rng.uniform(0.0, 0.28) * top
    for far in (True, False):
        for x, sign in zip(xs, (-1, 1), strict=True):
            swing = stride * (sign if far else -sign) + (0.06 * top if far else -0.02 * top)
            knee, foot = (x + 0.4 * swing + 0.03 * top, top * 0.5), (x + swing, radius * 0.6)
            colour = shade(coat, 0.72) if far else coat
            sprite.limb((x, top), knee, radius * 1.5, radius, colour)
            sprite.limb(knee, foot, radius, radius * 0.8, colour)
            sprite.fill(box(foot[0] - radius, 0, foot[0] + radius * 1.3, radius * 1.2), hoof)


def dog(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("brown", "black", "white", "gray", "orange"))
    coat = named(rng, name)
    sprite.attributes.update(colour=name)
    dark = shade(coat, 0.7) if name != "black" else (60, 58, 58)
    slim = rng.uniform(0.85, 1.15)
    tail = rng.uniform(0.6, 0.95)
    sprite.limb((-0.34, 0.5), (-0.56, tail), 0.04, 0.022, dark)
    _legs(sprite, rng, (-0.27, 0.24), 0.36, 0.04, coat, shade(coat, 0.8))
    sprite.limb((-0.27, 0.45), (0.25, 0.47), 0.13 * slim, 0.16 * slim, coat)
    sprite.limb((0.26, 0.52), (0.42, 0.72), 0.11, 0.08, coat)
    sprite.limb((0.42, 0.76), (0.62, 0.69), 0.105, 0.05, coat)
    sprite.disc(0.665, 0.705, 0.028, 0.025, (20, 18, 18))
    sprite.disc(0.49, 0.79, 0.016, 0.018, (20, 18, 18) if name != "black" else (200, 190, 170))
    if rng.random() < 0.6:
        sprite.fill([(0.34, 0.84), (0.42, 0.85), (0.41, 0.64), (0.34, 0.62)], dark)
    else:
        sprite.fill([(0.34, 0.8), (0.45, 0.84), (0.36, 0.98)], dark)
    if rng.random() < 0.4:
        sprite.line([(0.3, 0.62), (0.43, 0.62)], COLOURS[rng.choice(("red", "blue"))], 0.04)


def cat(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("orange", "black", "white", "gray"))
    coat = named(rng, name)
    sprite.attributes.update(colour=name)
    dark = shade(coat, 0.72) if name != "black" else (66, 62, 62)
    sprite.line([(0.12, 0.05), (0.26, 0.05), (0.32, 0.14), (0.28, 0.26), (0.31, 0.33)], coat, 0.05)
    sprite.disc(0.0, 0.14, 0.17, 0.15, coat)
    sprite.limb((-0.01, 0.18), (-0.05, 0.36), 0.13, 0.08, coat)
    for x in (-0.13, -0.03):
        sprite.limb((x, 0.22), (x - 0.01, 0.03), 0.035, 0.032, coat)
    for x in (-0.155, 0.015):
        sprite.fill([(x, 0.5), (x + 0.09, 0.53), (x + (0.0 if x < 0 else 0.1), 0.64)], coat)
    sprite.disc(-0.06, 0.46, 0.12, 0.1, coat)
    for x in (-0.105, -0.015):
        sprite.disc(x, 0.475, 0.022, 0.022, (150, 190, 60))
        sprite.disc(x, 0.475, 0.008, 0.02, (16, 16, 16))
    sprite.fill([(-0.08, 0.44), (-0.04, 0.44), (-0.06, 0.42)], (220, 130, 130))
    for y in (0.2, 0.27, 0.34):
        sprite.line([(0.04, y), (0.12, y + 0.03)], dark, 0.02)


def horse(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("brown", "black", "white", "gray"))
    coat = named(rng, name)
    sprite.attributes.update(colour=name)
    mane = shade(coat, 0.45) if name not in ("black", "white") else (84, 78, 74)
    graze = rng.random() < 0.3
    sprite.fill([(-0.82, 1.38), (-0.98, 1.3), (-1.1, 0.7), (-0.95, 0.62), (-0.86, 1.1)], mane)
    _legs(sprite, rng, (-0.62, 0.58), 0.98, 0.075, coat, (40, 36, 34))
    sprite.limb((-0.6, 1.2), (0.5, 1.18), 0.3, 0.28, coat)
    base, poll = (0.55, 1.3), ((1.15, 0.85) if graze else (1.0, 1.85))
    nose = (1.25, 0.42) if graze else (1.38, 1.6)
    sprite.limb(base, poll, 0.25, 0.14, coat)
    dx, dy = poll[0] - base[0], poll[1] - base[1]
    n = math.hypot(dx, dy)
    ox, oy = -dy / n, dx / n
    sprite.fill([(base[0] + 0.24 * ox, base[1] + 0.24 * oy), (poll[0] + 0.18 * ox, poll[1] + 0.18 * oy),
                 (poll[0] + 0.02 * ox, poll[1] + 0.02 * oy),
                 (base[0] + 0.08 * ox, base[1] + 0.08 * oy)], mane)  # fmt: skip
    sprite.limb(poll, nose, 0.14, 0.085, coat)
    sprite.fill(
        [(poll[0] - 0.08, poll[1] + 0.08), (poll[0] + 0.06, poll[1] + 0.1), (poll[0] + 0.02, poll[1] + 0.3)], coat
    )
    sprite.disc(poll[0] * 0.7 + nose[0] * 0.3, poll[1] * 0.7 + nose[1] * 0.3 + 0.03, 0.025, 0.025, (14, 12, 12))
    sprite.disc(nose[0] + 0.03, nose[1] + 0.01, 0.02, 0.02, (30, 24, 24))


def cow(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("white", "brown", "black"))
    coat = named(rng, name)
    sprite.attributes.update(colour=name)
    spots = COLOURS["black"] if name == "white" else COLOURS["white"]
    sprite.line([(-0.95, 1.3), (-1.04, 1.1), (-1.02, 0.72)], coat, 0.06)
    sprite.disc(-1.02, 0.68, 0.06, 0.1, shade(coat, 0.5))
    sprite.disc(-0.42, 0.66, 0.2, 0.14, (226, 170, 160))
    _legs(sprite, rng, (-0.72, 0.62), 0.72, 0.085, coat, (40, 36, 34))
    body = [
        (-0.98, 1.3),
        (-0.85, 1.42),
        (0.6, 1.44),
        (0.85, 1.3),
        (0.85, 0.85),
        (0.6, 0.68),
        (-0.7, 0.62),
        (-0.96, 0.85),
    ]
    sprite.fill(body, coat)
    for _ in range(rng.randint(2, 4)):
        x, y = rng.uniform(-0.6, 0.5), rng.uniform(0.9, 1.25)
        blob = OCTAGON * (rng.uniform(0.12, 0.3), rng.uniform(0.1, 0.18)) + (x, y)
        sprite.fill(blob, mix(spots, coat, 0.05))
    low = rng.uniform(-0.5, 0.1)
    head = (1.1, 1.3 + low)
    sprite.limb((0.75, 1.18), (1.0, 1.28 + low), 0.24, 0.18, coat)
    sprite.fill([(0.98, head[1] + 0.12), (0.78, head[1] + 0.2), (0.82, head[1] + 0.06)], shade(coat, 0.75))
    sprite.line([(1.02, head[1] + 0.16), (1.04, head[1] + 0.3), (1.12, head[1] + 0.36)], (222, 214, 190), 0.05)
    sprite.limb(head, (1.34, head[1] - 0.22), 0.16, 0.1, spots if name == "white" else coat)
    sprite.limb((1.36, head[1] - 0.24), (1.4, head[1] - 0.27), 0.1, 0.09, (226, 176, 164))
    sprite.disc(1.16, head[1] + 0.02, 0.03, 0.03, (240, 240, 240) if name != "brown" else (14, 12, 12))


def sheep(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("white", "white", "gray", "brown"))
    wool = named(rng, name)
    sprite.attributes.update(colour=name)
    face = (48, 44, 42) if rng.random() < 0.6 else (214, 196, 172)
    _legs(sprite, rng, (-0.3, 0.28), 0.36, 0.04, face, (30, 28, 28))
    centres = [(0.42 * math.cos(t) * 1.05, 0.58 + 0.2 * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 11)[:-1]]
    sprite.disc(0.0, 0.58, 0.45, 0.25, wool)
    for x, y in centres:
        sprite.disc(x, y, 0.13, 0.13, shade(wool, rng.uniform(0.88, 1.05)))
    for _ in range(6):
        sprite.disc(rng.uniform(-0.35, 0.3), rng.uniform(0.48, 0.7), 0.1, 0.08, shade(wool, rng.uniform(0.85, 1.04)))
    drop = rng.uniform(-0.3, 0.0)
    sprite.limb((0.5, 0.74 + drop), (0.68, 0.6 + drop), 0.12, 0.075, face)
    sprite.fill([(0.46, 0.82 + drop), (0.3, 0.76 + drop), (0.44, 0.72 + drop)], shade(face, 0.8))
    sprite.disc(0.47, 0.86 + drop, 0.11, 0.07, wool)
    sprite.disc(0.57, 0.73 + drop, 0.018, 0.018, (230, 230, 220) if face[0] < 100 else (20, 20, 20))


def bird(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("black", "white", "gray", "brown", "blue"))
    coat = named(rng, name)
    sprite.attributes.update(colour=name)
    wing = shade(coat, 0.75) if name != "black" else (62, 60, 64)
    sprite.fill([(-0.3, 0.02), (-0.62, 0.1), (-0.62, -0.06)], wing)
    lift = rng.uniform(0.25, 0.6) * rng.choice((1, 1, -0.7))
    sprite.fill([(-0.16, 0.04), (0.1, 0.06), (-0.05, lift + 0.1), (-0.36, lift * 1.5)], shade(wing, 0.8))
    sprite.limb((-0.22, 0.0), (0.2, 0.02), 0.09, 0.12, coat)
    sprite.disc(0.33, 0.1, 0.1, 0.09, coat)
    sprite.fill([(0.41, 0.13), (0.41, 0.05), (0.55, 0.08)], (236, 160, 40))
    sprite.disc(0.36, 0.12, 0.02, 0.02, (16, 16, 16) if name != "black" else (230, 220, 120))
    sprite.fill([(-0.2, 0.02), (0.12, 0.03), (-0.12, lift), (-0.5, lift * 1.35)], wing)
