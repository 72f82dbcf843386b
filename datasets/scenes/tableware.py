"""Things on a table in decimetres, drawn from any elevation: solids of revolution, boxes, flat cutlery, fruit."""

from __future__ import annotations

import math
import random

import numpy as np

from .canvas import CIRCLE, Sprite, cuboid, ellipse, facing, hull, patch, patches
from .palette import COLOURS, RGB, jitter, mix, named, shade

WARES = ("red", "blue", "white", "yellow", "green", "pink", "orange", "purple", "gray", "brown", "black")


def _ring(radius: float, height: float) -> np.ndarray:
    ring = np.empty((24, 3))
    ring[:, ::2] = CIRCLE * radius
    ring[:, 1] = height
    return ring


def _turned(sprite: Sprite, profile: list[tuple[float, float]], colour: RGB) -> None:
    """A solid of revolution from (radius, height) pairs, bottom to top, with light from the left."""
    radii, heights = np.array(profile).T
    rings = np.empty((len(profile), 24, 3))
    rings[..., ::2] = CIRCLE * radii[:, None, None]
    rings[..., 1] = heights[:, None]
    points = rings.reshape(-1, 3)
    for first in range(0, len(points) - 24, 24):
        sprite.hull(points[first : first + 48], colour)
    px = sprite.view.project(np.array([(0.0, h, 0.0) for _, h in profile]))
    radius = radii * sprite.view.scale
    for start, end, gain in ((0.35, 0.92, 0.8), (0.7, 0.96, 0.66), (-0.75, -0.5, 1.18)):
        band = np.concatenate([px, px[::-1]])
        band[: len(px), 0] += radius * start
        band[len(px) :, 0] += radius[::-1] * end
        sprite.fill_pixels(band, shade(colour, gain))


_FROM_BELOW = np.concatenate([CIRCLE[6:], CIRCLE[:6]])


def _shadow(sprite: Sprite, radius: float, height: float = 0.4) -> None:
    ring = np.zeros((24, 3))
    ring[:, ::2] = _FROM_BELOW * (radius * 1.05)
    sprite.shadow(ring)
    cast = ellipse(0.3 * height, 0.08, radius * 1.1, radius * 0.75) * (1, -1) * sprite.view.scale
    sprite.shadows.append(np.rint((cast + sprite.view.foot) * 16).astype(np.int32))


def cup(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(WARES)
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    r, h = rng.uniform(0.38, 0.46), rng.uniform(0.7, 0.95)
    _shadow(sprite, r, h)
    handle = np.array(
        [(r * 0.9, h * 0.8), (r * 1.45, h * 0.82), (r * 1.6, h * 0.55), (r * 1.45, h * 0.25), (r * 0.85, h * 0.2)]
    )
    arc = np.stack([handle[:, 0], handle[:, 1], np.zeros(5)], 1)
    sprite.line(arc, shade(paint, 0.75), 0.13)
    _turned(sprite, [(r * 0.78, 0.0), (r * 0.95, h * 0.35), (r, h)], paint)
    if rng.random() < 0.4:
        band = np.concatenate([_ring(r * 0.985, h * 0.55), _ring(r, h * 0.72)])
        sprite.hull(band, mix(paint, (255, 255, 255) if name != "white" else COLOURS["blue"], 0.6))
    sprite.fill(_ring(r, h), mix(paint, (255, 255, 255), 0.35))
    sprite.fill(_ring(r * 0.88, h - 0.03), shade(paint, 0.5))
    sprite.fill(_ring(r * 0.78, h - 0.1), rng.choice(((72, 42, 24), (112, 66, 30), (90, 30, 20))))


def bottle(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("green", "brown", "blue", "white", "red", "yellow"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    r, h = rng.uniform(0.3, 0.4), rng.uniform(2.1, 2.7)
    _shadow(sprite, r, h)
    _turned(
        sprite,
        [(r * 0.95, 0), (r, h * 0.1), (r, h * 0.55), (r * 0.75, h * 0.68), (r * 0.36, h * 0.78), (r * 0.34, h * 0.94)],
        paint,
    )
    sprite.hull(np.concatenate([_ring(r * 1.01, h * 0.18), _ring(r * 1.01, h * 0.46)]), (236, 230, 212))
    sprite.hull(np.concatenate([_ring(r * 1.01, h * 0.26), _ring(r * 1.01, h * 0.34)]), named(rng, rng.choice(WARES)))
    cap = rng.choice(("red", "white", "black", "yellow"))
    sprite.hull(np.concatenate([_ring(r * 0.42, h * 0.92), _ring(r * 0.42, h)]), named(rng, cap))
    sprite.fill(_ring(r * 0.42, h), mix(named(rng, cap), (255, 255, 255), 0.2))


def plate(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("white", "white", "blue", "green", "yellow", "pink", "gray"))
    paint = mix(named(rng, name), (240, 240, 236), 0.2)
    sprite.attributes.update(colour=name)
    r = rng.uniform(1.1, 1.4)
    _shadow(sprite, r, 0.2)
    sprite.hull(np.concatenate([_ring(r * 0.7, 0), _ring(r, 0.16)]), shade(paint, 0.7))
    sprite.fill(_ring(r, 0.16), paint)
    if rng.random() < 0.6:
        sprite.fill(_ring(r * 0.95, 0.16), mix(paint, named(rng, rng.choice(WARES)), 0.6))
        sprite.fill(_ring(r * 0.89, 0.16), paint)
    sprite.fill(_ring(r * 0.66, 0.08), shade(paint, 0.82))
    sprite.fill(_ring(r * 0.62, 0.06), shade(paint, 0.96))


def bowl(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(WARES)
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    r, h = rng.uniform(0.75, 0.95), rng.uniform(0.55, 0.75)
    _shadow(sprite, r, h)
    _turned(sprite, [(r * 0.4, 0), (r * 0.45, h * 0.08), (r * 0.8, h * 0.45), (r, h)], paint)
    sprite.fill(_ring(r, h), mix(paint, (255, 255, 255), 0.3))
    sprite.fill(_ring(r * 0.92, h - 0.02), shade(paint, 0.6))
    filling = rng.choice(((214, 170, 90), (196, 60, 40), (222, 214, 190), (110, 140, 60)))
    sprite.fill(_ring(r * 0.76, h - 0.2), filling)
    for _ in range(5):
        ring = _ring(r * 0.1, h - 0.18) + (rng.uniform(-0.4, 0.4) * r, 0, rng.uniform(-0.4, 0.4) * r)
        sprite.fill(ring, shade(filling, rng.choice((0.75, 1.2))))


def vase(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(WARES)
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    r, h = rng.uniform(0.45, 0.6), rng.uniform(1.4, 1.9)
    _shadow(sprite, r, h)
    for _ in range(rng.randint(3, 5)):
        x, y, z = rng.uniform(-0.7, 0.7), h + rng.uniform(0.5, 1.1), rng.uniform(-0.4, 0.4)
        sprite.line(np.array([(0.0, h * 0.9, 0.0), (x * 0.5, (h + y) / 2, z * 0.5), (x, y, z)]), (50, 110, 50), 0.06)
        flower = sprite.view.project(np.array([(x, y, z)]))[0]
        petal = named(rng, rng.choice(("red", "yellow", "pink", "purple", "orange", "white")))
        for a in np.arange(5) * 2 * math.pi / 5:
            sprite.fill_pixels(
                (CIRCLE[::3] * 0.15 + (0.17 * math.cos(a), 0.17 * math.sin(a))) * sprite.view.scale + flower, petal
            )
        sprite.fill_pixels(CIRCLE[::3] * 0.1 * sprite.view.scale + flower, (240, 200, 60))
    _turned(
        sprite,
        [(r * 0.6, 0), (r * 0.95, h * 0.25), (r, h * 0.42), (r * 0.75, h * 0.68), (r * 0.42, h * 0.85), (r * 0.55, h)],
        paint,
    )
    sprite.hull(np.concatenate([_ring(r * 1.0, h * 0.38), _ring(r * 1.0, h * 0.46)]), mix(paint, (255, 255, 255), 0.55))
    if sprite.view.eye[1] > 5e3:
        sprite.fill(_ring(r * 0.45, h), shade(paint, 0.4))


def wine_glass(sprite: Sprite, rng: random.Random) -> None:
    drink = rng.choice(("red", "yellow", "white"))
    wine: RGB = {"red": (120, 16, 40), "yellow": (226, 200, 110), "white": (214, 226, 230)}[drink]
    sprite.attributes.update(drink={"red": "red wine", "yellow": "white wine", "white": "water"}[drink])
    clear = (206, 218, 224)
    r, h = rng.uniform(0.36, 0.44), rng.uniform(1.7, 2.0)
    _shadow(sprite, r * 0.9, h)
    sprite.hull(np.concatenate([_ring(r * 0.85, 0), _ring(r * 0.8, 0.05)]), shade(clear, 0.85))
    sprite.hull(np.concatenate([_ring(0.05, 0.05), _ring(0.06, h * 0.48)]), shade(clear, 0.95))
    _turned(sprite, [(0.08, h * 0.45), (r * 0.85, h * 0.56), (r, h * 0.72), (r * 0.8, h)], clear)
    _turned(sprite, [(0.07, h * 0.47), (r * 0.78, h * 0.57), (r * 0.9, h * 0.72)], wine)
    sprite.fill(_ring(r * 0.9, h * 0.72), mix(wine, (255, 255, 255), 0.25))
    rim = _ring(r * 0.8, h)
    sprite.line(np.concatenate([rim, rim[:1]]), (244, 248, 250), 0.04)


def book(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(WARES)
    cover = named(rng, name)
    sprite.attributes.update(colour=name)
    a, b, h = rng.uniform(0.75, 0.95), rng.uniform(1.05, 1.3), rng.uniform(0.16, 0.34)
    solid = cuboid(-a, 0, -b, a, h, b)
    sprite.shadow(np.array([(-a, 0, -b - 0.12), (a + 0.12, 0, -b - 0.12), (a + 0.12, 0, b), (-a, 0, b)]))
    sprite.fill(solid[4] * (1, 0, 1), shade(cover, 0.5))
    seen, order, gain = facing(sprite.view, solid, solid.mean((0, 1)))
    for i in order:
        if seen[i]:
            pages = i in (1, 2, 3)
            sprite.fill(solid[i], shade((228, 222, 204) if pages else cover, gain[i]))
            if pages:
                sprite.fill_all(patches(solid[i], ((0, 0, 1, 0.16), (0, 0.84, 1, 1))), shade(cover, gain[i] * 0.8))
    top = solid[4]
    ink = mix(cover, (255, 250, 230) if name not in ("white", "yellow") else (40, 40, 60), 0.8)
    sprite.fill_all(patches(top, ((0.66, 0.2, 0.78, 0.8), (0.52, 0.3, 0.58, 0.7))), ink)
    sprite.fill(patch(top, 0.14, 0.3, 0.4, 0.7), named(rng, rng.choice(WARES)))
    sprite.fill(patch(top, 0.0, 0.0, 1.0, 0.06), shade(cover, 0.75))


_KEYS = tuple(
    (0.14 + 0.11 * r, 0.07 + 0.088 * c, 0.225 + 0.11 * r, 0.14 + 0.088 * c) for r in range(4) for c in range(10)
)


def laptop(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("gray", "black", "white"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    a, b, h = 1.15, 1.6, 0.1
    base = cuboid(-a, 0, -b, a, h, b)
    lean, lid = rng.uniform(0.12, 0.4), 2.0
    sprite.shadow(base[4] * (1.08, 0, 1.06))
    screen = np.array([(-1.0, 0, -1), (-1.0, 0, 1), (-1.0, 1, 1), (-1.0, 1, -1)]) * (a, lid, b)
    screen[2:, 0] -= lean * lid
    screen[:, 1] += h
    # Corner 0 to 1 runs along z, 0 to 3 up. The front is what the keyboard sees.
    normal = np.cross(screen[1] - screen[0], screen[3] - screen[0])
    normal = normal if normal[0] > 0 else -normal
    front = float(normal @ (sprite.view.eye - screen.mean(0))) > 0

    def draw_screen() -> None:
        sprite.fill(screen, shade(paint, 0.5) if front else shade(paint, 0.85))
        if front:
            sprite.fill(
                patch(screen, 0.05, 0.07, 0.95, 0.93),
                rng.choice(((46, 90, 160), (230, 234, 240), (30, 60, 70), (160, 80, 110))),
            )
            for k in range(3):
                sprite.fill(
                    patch(screen, 0.12, 0.62 - 0.2 * k, rng.uniform(0.5, 0.85), 0.72 - 0.2 * k),
                    rng.choice(((240, 240, 240), (60, 66, 80), (90, 200, 160))),
                )
        else:
            sprite.fill(patch(screen, 0.44, 0.44, 0.56, 0.58), mix(paint, (255, 255, 255), 0.5))

    if front:
        draw_screen()
    sprite.solid(base, [paint] * 5, base.mean((0, 1)))
    top = base[4]
    dark = (52, 54, 58)
    sprite.fill_all(patches(top, _KEYS), dark)
    sprite.fill(patch(top, 0.66, 0.36, 0.92, 0.64), shade(paint, 0.75))
    if not front:
        draw_screen()


def clock(sprite: Sprite, rng: random.Random) -> None:
    """A round alarm clock that stands on two feet and faces the camera."""
    name = rng.choice(("red", "blue", "black", "green", "yellow", "pink"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    _shadow(sprite, 0.5, 0.4)
    for x in (-0.35, 0.35):
        sprite.limb((x * 0.7, 0.3), (x, 0.03), 0.07, 0.06, shade(paint, 0.6))
        sprite.disc(x * 0.9, 1.3, 0.2, 0.15, shade(paint, 0.8), -x)
    sprite.disc(0, 0.72, 0.62, 0.62, paint)
    sprite.disc(0, 0.72, 0.5, 0.5, (244, 242, 232))
    for k in range(12):
        a = k * math.pi / 6
        sprite.fill(ellipse(0.42 * math.cos(a), 0.72 + 0.42 * math.sin(a), 0.035, 0.035)[::3], (40, 40, 44))
    for length, width in ((0.24, 0.08), (0.38, 0.05)):
        a = rng.uniform(0, 2 * math.pi)
        sprite.line([(0, 0.72), (length * math.cos(a), 0.72 + length * math.sin(a))], (24, 24, 28), width)
    sprite.disc(0, 0.72, 0.05, 0.05, COLOURS["red"])


def apple(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("red", "green", "yellow"))
    paint = named(rng, name) if name != "green" else jitter(rng, (120, 176, 52))
    sprite.attributes.update(colour=name)
    _shadow(sprite, 0.32, 0.4)
    sprite.fill_pixels(_blob(sprite, [(-0.16, 0.36, 0.26, 0.3), (0.16, 0.36, 0.26, 0.3)]), paint)
    for x in (-0.15, 0.15):
        sprite.disc(x, 0.40, 0.25, 0.27, paint)
    sprite.disc(0.14, 0.3, 0.2, 0.2, shade(paint, 0.82))
    sprite.disc(0.0, 0.6, 0.1, 0.05, shade(paint, 0.5))
    sprite.line([(0.0, 0.58), (0.05, 0.8)], (84, 56, 34), 0.06)
    sprite.fill([(0.06, 0.72), (0.18, 0.84), (0.32, 0.8), (0.2, 0.7)], (70, 140, 56))
    sprite.disc(-0.2, 0.48, 0.07, 0.1, mix(paint, (255, 255, 255), 0.55))


def _blob(sprite: Sprite, discs: list[tuple[float, float, float, float]]) -> np.ndarray:
    return hull(sprite.view.flat(np.concatenate([CIRCLE * (rx, ry) + (x, y) for x, y, rx, ry in discs])))


def orange(sprite: Sprite, rng: random.Random) -> None:
    paint = jitter(rng, (240, 140, 24), 10)
    sprite.attributes.update(colour="orange")
    _shadow(sprite, 0.34, 0.4)
    if rng.random() < 0.25:
        sprite.disc(0, 0.34, 0.36, 0.36, paint)
        sprite.disc(0, 0.34, 0.32, 0.32, (250, 224, 170))
        for k in range(8):
            a = k * math.pi / 4
            wedge = [(0.04 * math.cos(a), 0.04 * math.sin(a)), (0.28 * math.cos(a - 0.33), 0.28 * math.sin(a - 0.33)),
                     (0.28 * math.cos(a + 0.33), 0.28 * math.sin(a + 0.33))]  # fmt: skip
            sprite.fill(np.array(wedge) + (0, 0.34), (244, 160, 40))
        return
    sprite.disc(0, 0.36, 0.36, 0.36, shade(paint, 0.85))
    sprite.disc(-0.04, 0.39, 0.31, 0.31, paint)
    for _ in range(10):
        a, r = rng.uniform(0, 6.28), rng.uniform(0.05, 0.28)
        sprite.fill(CIRCLE[::4] * 0.018 + (r * math.cos(a), 0.36 + r * math.sin(a)), shade(paint, 0.8))
    sprite.disc(-0.14, 0.5, 0.09, 0.07, mix(paint, (255, 255, 255), 0.5))
    sprite.disc(0.04, 0.66, 0.06, 0.03, (70, 110, 40))


def banana(sprite: Sprite, rng: random.Random) -> None:
    name = "green" if rng.random() < 0.15 else "yellow"
    paint = jitter(rng, (238, 212, 60) if name == "yellow" else (140, 180, 60), 8)
    sprite.attributes.update(colour=name)
    turn = rng.uniform(-0.6, 0.6)
    rot = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    _shadow(sprite, 0.6, 0.2)
    t = np.linspace(math.pi * 1.12, math.pi * 1.9, 12)
    width = 0.17 * np.sin(np.linspace(0.25, math.pi - 0.25, 12)) + 0.03
    spine, normal = np.stack([0.75 * np.cos(t), 0.85 + 0.72 * np.sin(t)], 1), np.stack([np.cos(t), np.sin(t)], 1)
    outer, inner, mid = (
        spine + normal * width[:, None],
        spine - normal * width[:, None],
        spine + normal * width[:, None] * 0.25,
    )
    turned = [(np.concatenate(pair) - (0, 0.3)) @ rot + (0, 0.3) for pair in ((outer, inner[::-1]), (outer, mid[::-1]))]
    sprite.fill(turned[0], paint)
    sprite.fill(turned[1], shade(paint, 0.8))
    ends = (spine[[0, -1]] - (0, 0.3)) @ rot + (0, 0.3)
    for end in ends:
        sprite.disc(end[0], end[1], 0.06, 0.06, (92, 70, 30))


def _flat_thing(sprite: Sprite, pieces: list[np.ndarray], colour: RGB) -> None:
    """Cutlery: (N, 2) outlines that lie on the table (x along the handle), with a dark rim beneath."""
    for piece in pieces:
        lying = np.stack([piece[:, 0], np.full(len(piece), 0.0), piece[:, 1]], 1)
        sprite.shadow(lying + (0.05, 0.0, 0.1))
        sprite.fill(lying, shade(colour, 0.6))
    for piece in pieces:
        raised = np.stack([piece[:, 0], np.full(len(piece), 0.05), piece[:, 1]], 1)
        sprite.fill(raised, colour)


def _handle(rng: random.Random, sprite: Sprite) -> RGB:
    name = rng.choice(("gray", "gray", "gray", "yellow", "brown", "red", "blue"))
    sprite.attributes.update(colour=name)
    return (196, 200, 206) if name == "gray" else named(rng, name)


def fork(sprite: Sprite, rng: random.Random) -> None:
    colour = _handle(rng, sprite)
    handle = np.array([(-1.2, -0.13), (-1.2, 0.13), (0.3, 0.06), (0.3, -0.06)])
    head = np.array([(0.25, -0.06), (0.25, 0.06), (0.5, 0.24), (0.72, 0.24), (0.72, -0.24), (0.5, -0.24)])
    tines = [
        np.array([(0.7, z - 0.045), (0.7, z + 0.045), (1.2, z + 0.03), (1.2, z - 0.03)]) for z in (-0.195, 0.0, 0.195)
    ]
    _flat_thing(sprite, [handle, head, *tines], colour)


def knife(sprite: Sprite, rng: random.Random) -> None:
    colour = _handle(rng, sprite)
    handle = np.array([(-1.25, -0.13), (-1.25, 0.13), (-0.2, 0.1), (-0.2, -0.1)])
    blade = np.array([(-0.2, -0.1), (1.15, -0.1), (1.3, -0.04), (1.2, 0.1), (0.9, 0.17), (-0.2, 0.13)])
    _flat_thing(sprite, [handle], shade(colour, 0.75))
    _flat_thing(sprite, [blade], (206, 210, 216))


def spoon(sprite: Sprite, rng: random.Random) -> None:
    colour = _handle(rng, sprite)
    handle = np.array([(-1.2, -0.12), (-1.2, 0.12), (0.6, 0.05), (0.6, -0.05)])
    _flat_thing(sprite, [handle, ellipse(0.85, 0, 0.38, 0.25)], colour)
    dip = ellipse(0.87, 0, 0.28, 0.17)
    sprite.fill(np.stack([dip[:, 0], np.full(24, 0.05), dip[:, 1]], 1), shade(colour, 0.78))


def scissors(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("red", "blue", "green", "orange", "black", "yellow"))
    grip = named(rng, name)
    sprite.attributes.update(colour=name)
    spread = rng.uniform(0.12, 0.35)
    for sign in (-1, 1):
        rot = np.array([[math.cos(spread), sign * math.sin(spread)], [-sign * math.sin(spread), math.cos(spread)]])
        _flat_thing(
            sprite, [np.array([(-0.5, -0.07), (-0.5, 0.07), (1.15, 0.02), (1.1, -0.06)]) @ rot], (196, 200, 206)
        )
        ring = np.concatenate([ellipse(-0.8, 0, 0.36, 0.26), ellipse(-0.8, 0, 0.36, 0.26)[:1]]) @ rot
        sprite.line(np.stack([ring[:, 0], np.full(25, 0.06), ring[:, 1]], 1), grip, 0.15)
    sprite.fill(_ring(0.06, 0.07), (90, 92, 96))


_ICONS = tuple((0.18 + 0.16 * r, 0.16 + 0.24 * c, 0.28 + 0.16 * r, 0.32 + 0.24 * c) for r in range(4) for c in range(3))


def phone(sprite: Sprite, rng: random.Random) -> None:
    name = rng.choice(("black", "white", "red", "blue", "pink"))
    paint = named(rng, name)
    sprite.attributes.update(colour=name)
    body = cuboid(-0.75, 0, -0.38, 0.75, 0.09, 0.38)
    sprite.shadow(body[4] * (1.06, 0, 1.15))
    sprite.solid(body, [paint] * 5, body.mean((0, 1)))
    sprite.fill(patch(body[4], 0.1, 0.07, 0.88, 0.93), (24, 28, 40))
    for icon in patches(body[4], _ICONS):
        sprite.fill(icon, rng.choice(((90, 180, 240), (240, 160, 70), (110, 210, 120), (230, 90, 100))))
    sprite.fill(patch(body[4], 0.92, 0.42, 0.97, 0.58), shade(paint, 0.6))
