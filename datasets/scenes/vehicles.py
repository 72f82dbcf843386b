"""Cars, vans, trucks and buses: a side silhouette extruded to a solid, so that every heading is one drawing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .canvas import CIRCLE, Sprite, cuboid, facing, patch, patches
from .palette import COLOURS, RGB, jitter, mix, named, shade

GLASS: RGB = (38, 46, 56)
TYRE: RGB = (24, 24, 26)
RIM: RGB = (150, 152, 156)
PAINTS = ("red", "blue", "white", "black", "gray", "green", "yellow", "orange", "brown", "purple", "pink")


@dataclass(frozen=True, kw_only=True)
class Shell:
    """A silhouette, rear bottom over the roof to front bottom: (x, y, half width) and what each strip is made of."""

    profile: np.ndarray  # (N, 3)
    made_of: tuple[str, ...]  # N - 1 of body, glass, rear, front, roof

    def half_width(self, y: np.ndarray) -> np.ndarray:
        """(N,) heights to the half width of the body there."""
        return np.asarray(np.interp(y, *self._levels))

    @cached_property
    def front(self) -> float:
        return float(self.profile[:, 0].max())

    @cached_property
    def half(self) -> float:
        """Half the width where it is widest."""
        return float(self.profile[:, 2].max())

    @cached_property
    def _levels(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.profile[:, 1], kind="stable")
        return self.profile[order, 1], self.profile[order, 2]


def _shell(length: float, height: float, half: float, rows: list[tuple[float, float, float]], made_of: str) -> Shell:
    names = {"b": "body", "g": "glass", "r": "rear", "f": "front", "t": "roof"}
    profile = np.array(rows) * (length / 2, height, half)
    return Shell(profile=profile, made_of=tuple(names[c] for c in made_of))


CARS: dict[str, tuple[float, float, float, list[tuple[float, float, float]], str, tuple[int, int, int, int]]] = {
    # length, height, half width, rows (x of half length, y of height, z of half width), materials, cabin corners
    "sedan": (
        4.6, 1.46, 0.92,
        [(-0.98, 0.22, 0.96), (-1.0, 0.40, 1.0), (-0.97, 0.66, 0.98), (-0.72, 0.70, 0.94), (-0.40, 0.97, 0.70),
         (0.10, 1.0, 0.70), (0.44, 0.67, 0.94), (0.90, 0.56, 0.96), (0.99, 0.42, 0.96), (0.97, 0.20, 0.92)],
        "brbgtgbff", (3, 4, 5, 6),
    ),
    "hatchback": (
        3.9, 1.5, 0.88,
        [(-0.97, 0.22, 0.96), (-1.0, 0.42, 1.0), (-0.98, 0.62, 0.98), (-0.80, 0.95, 0.74), (-0.60, 1.0, 0.72),
         (0.12, 1.0, 0.72), (0.50, 0.66, 0.94), (0.90, 0.56, 0.96), (0.99, 0.42, 0.96), (0.97, 0.20, 0.92)],
        "brgttgbff", (2, 3, 5, 6),
    ),
    "suv": (
        4.7, 1.8, 0.98,
        [(-0.97, 0.24, 0.96), (-1.0, 0.42, 1.0), (-0.99, 0.62, 0.98), (-0.90, 0.95, 0.80), (-0.74, 1.0, 0.78),
         (0.10, 1.0, 0.78), (0.42, 0.67, 0.96), (0.92, 0.60, 0.97), (1.0, 0.42, 0.97), (0.97, 0.22, 0.94)],
        "brgttgbff", (2, 3, 5, 6),
    ),
    "coupe": (
        4.4, 1.3, 0.94,
        [(-0.98, 0.20, 0.97), (-1.0, 0.42, 1.0), (-0.96, 0.68, 0.98), (-0.82, 0.70, 0.94), (-0.28, 0.98, 0.68),
         (0.02, 1.0, 0.68), (0.38, 0.66, 0.94), (0.90, 0.52, 0.96), (1.0, 0.36, 0.96), (0.97, 0.18, 0.92)],
        "brbgtgbff", (3, 4, 5, 6),
    ),
}  # fmt: skip


def car(sprite: Sprite, rng: random.Random) -> None:
    model = rng.choice(tuple(CARS))
    length, height, half, rows, made_of, cabin = CARS[model]
    stretch = rng.uniform(0.94, 1.06)
    shell = _shell(length * stretch, height * rng.uniform(0.96, 1.05), half, rows, made_of)
    colour = rng.choice(PAINTS[:7] if rng.random() < 0.7 else PAINTS)
    body = named(rng, colour)
    sprite.attributes.update(colour=colour, model=model)
    radius = 0.33 if model != "suv" else 0.38
    _wheels(sprite, shell, radius, (-0.62, 0.63))
    _body(sprite, shell, body, rng)
    side = _visible_side(sprite, shell)
    if side:
        p = shell.profile
        glass_top = p[cabin[1], :2], p[cabin[2], :2]
        glass_base = p[cabin[0], :2], p[cabin[3], :2]
        quad = np.array([glass_base[0], glass_base[1], glass_top[1], glass_top[0]])
        panes = patches(quad, ((0.10, 0.10, 0.48, 0.86), (0.53, 0.10, 0.90, 0.86)))
        x0, x1 = float(p[0, 0]) * 0.9, float(p[-1, 0]) * 0.9
        low, high, seam = 0.22 * height, 0.3 * height, shade(body, 0.6)
        sill = [(x0, low), (x1, low), (x1, high), (x0, high)]
        bars = [_bar(x * length / 2 * 1.2, 0.34 * height, 0.03, high) for x in (0.02, -0.32)]
        parts = np.concatenate([panes, np.array([sill, *bars])])
        _on_side(sprite, shell, side, parts, (GLASS, GLASS, shade(body, 0.55), seam, seam))
        _near_wheels(sprite, shell, side, radius, (-0.62, 0.63), shade(body, 0.25))
    if rng.random() < 0.12:
        _roof_bar(sprite, shell, rng)


def van(sprite: Sprite, rng: random.Random) -> None:
    rows = [(-0.99, 0.18, 0.97), (-1.0, 0.30, 1.0), (-0.99, 0.55, 1.0), (-0.97, 0.94, 0.90), (-0.92, 1.0, 0.86),
            (0.52, 1.0, 0.84), (0.78, 0.56, 0.97), (0.97, 0.46, 0.97), (1.0, 0.30, 0.97),
            (0.98, 0.16, 0.94)]  # fmt: skip
    length, height = rng.uniform(4.7, 5.4), rng.uniform(2.0, 2.35)
    shell = _shell(length, height, 1.0, rows, "brgttgbff")
    colour = rng.choice(PAINTS)
    lower, upper = named(rng, colour), named(rng, colour)
    if rng.random() < 0.3 and colour not in ("white", "gray"):
        upper = named(rng, "white")
    sprite.attributes.update(colour=colour)
    _wheels(sprite, shell, 0.35, (-0.58, 0.66))
    _body(sprite, shell, lower, rng, roof=upper)
    side = _visible_side(sprite, shell)
    if side:
        h, half = height, length / 2
        panel = np.array(
            [(-0.98 * half, 0.56 * h), (0.74 * half, 0.56 * h), (0.53 * half, 0.98 * h), (-0.94 * half, 0.98 * h)]
        )
        windows = rng.random() < 0.5
        spans = ((0.06, 0.30), (0.33, 0.6), (0.63, 0.93)) if windows else ((0.66, 0.94),)
        panes = patches(panel, tuple((u0, 0.1, u1, 0.78) for u0, u1 in spans))
        bars = np.array([_bar(x * half, 0.26 * h, 0.03, 0.66 * h) for x in (0.28, -0.3)])
        colours = (shade(upper, _side_gain(sprite, side)), *[GLASS] * len(spans), *[shade(lower, 0.6)] * 2)
        _on_side(sprite, shell, side, np.concatenate([panel[None], panes, bars]), colours)
        _near_wheels(sprite, shell, side, 0.35, (-0.58, 0.66), shade(lower, 0.25))


def bus(sprite: Sprite, rng: random.Random) -> None:
    length, height = rng.uniform(8.5, 11.0), rng.uniform(3.0, 3.4)
    rows = [(-1.0, 0.10, 0.98), (-1.0, 0.42, 1.0), (-0.995, 0.88, 1.0), (-0.98, 1.0, 0.94), (0.97, 1.0, 0.94),
            (0.995, 0.90, 0.98), (1.0, 0.40, 1.0), (1.0, 0.10, 0.98)]  # fmt: skip
    shell = _shell(length, height, 1.25, rows, "rgbttgf")
    colour = rng.choice(PAINTS)
    body = named(rng, colour)
    stripe = named(rng, rng.choice(("white", "yellow", "black", "gray")))
    sprite.attributes.update(colour=colour)
    _wheels(sprite, shell, 0.48, (-0.6, 0.66))
    _body(sprite, shell, body, rng, sign=True)
    side = _visible_side(sprite, shell)
    if side:
        half, h = length / 2, height
        band = np.array(
            [(-0.97 * half, 0.44 * h), (0.97 * half, 0.44 * h), (0.97 * half, 0.86 * h), (-0.97 * half, 0.86 * h)]
        )
        count = rng.randint(6, 8)
        panes = tuple(((k + 0.07) / count, 0.08, (k + 0.93) / count, 0.94) for k in range(count - 1))
        doors = tuple((u, -0.62, u + 0.07, 0.92) for u in (0.9, 0.42))
        parts = _lift(shell, side, patches(band, ((0, -0.28, 1, -0.14), *panes, *doors)))
        sprite.fill(parts[0], shade(stripe, _side_gain(sprite, side)))
        sprite.fill_all(parts[1:count], GLASS)
        sprite.fill_all(parts[count:], shade(GLASS, 1.3))
        _near_wheels(sprite, shell, side, 0.48, (-0.6, 0.66), shade(body, 0.25))


def truck(sprite: Sprite, rng: random.Random) -> None:
    colour, cargo_name = rng.choice(PAINTS), rng.choice(("white", "gray", "brown", "blue", "red", "yellow"))
    cab_colour, cargo = named(rng, colour), named(rng, cargo_name)
    if rng.random() < 0.45:
        cargo = jitter(rng, cab_colour)
    length, height = rng.uniform(6.4, 8.2), rng.uniform(2.7, 3.3)
    sprite.attributes.update(colour=colour)
    half, split = length / 2, length / 2 - rng.uniform(1.9, 2.3)
    cab_height = rng.uniform(2.2, 2.5)
    rows = [(split / half, 0.18, 1.0), (split / half, 1.0, 0.94), (0.80, 1.0, 0.90), (0.90, 0.62, 0.98),
            (0.99, 0.52, 1.0), (1.0, 0.2, 0.98)]  # fmt: skip
    shell = _shell(length, cab_height, 1.12, rows, "btgbf")
    frame = Shell(
        profile=np.array([(-half, 0.5, 1.1), (-half, 0.9, 1.1), (half, 0.9, 1.1), (half, 0.5, 1.1)]), made_of=()
    )
    wheels = (-0.62, -0.28, 0.72) if length > 7.2 else (-0.58, 0.7)
    _wheels(sprite, frame, 0.46, wheels)
    base = 0.85
    body = cuboid(-half, base, -1.2, split - 0.12, height, 1.2)
    chassis = cuboid(-half * 0.97, 0.5, -0.9, split, base, 0.9)
    parts = [lambda: _cargo(sprite, body, chassis, cargo, rng), lambda: _body(sprite, shell, cab_colour, rng)]
    if sprite.view.eye[0] < split:
        parts.reverse()
    for part in parts:
        part()
    side = _visible_side(sprite, frame)
    if side:
        door = np.array([(split + 0.25, 0.56 * cab_height), (0.86 * half, 0.56 * cab_height),
                         (0.80 * half, 0.93 * cab_height), (split + 0.25, 0.93 * cab_height)])  # fmt: skip
        if sprite.view.eye[0] > split or abs(sprite.view.eye[2]) > abs(sprite.view.eye[0]) * 0.2:
            _on_side(sprite, shell, side, door[None], (GLASS,))
        _near_wheels(sprite, frame, side, 0.46, wheels, (30, 30, 32))


def _cargo(sprite: Sprite, body: np.ndarray, chassis: np.ndarray, cargo: RGB, rng: random.Random) -> None:
    sprite.solid(chassis, [(40, 40, 44)] * 5, chassis.mean((0, 1)))
    seen = sprite.solid(body, [cargo] * 5, body.mean((0, 1)))
    dark, light = shade(cargo, 0.55), mix(cargo, COLOURS["white"], 0.5)
    if seen[0]:
        sprite.fill_all(patches(body[0], tuple((u, 0.04, u + 0.03, 0.96) for u in (0.08, 0.485, 0.89))), dark)
        lamps = patches(body[0], tuple((u, -0.16, u + 0.16, -0.07) for u in (0.02, 0.82)))
        sprite.fill_all(lamps, (190, 30, 30))
    for k in (2, 3):
        if seen[k]:
            ribs = rng.randint(4, 9)
            spans = tuple((u / ribs, 0.02, u / ribs + 0.012, 0.98) for u in range(1, ribs))
            sprite.fill_all(patches(body[k], spans), dark)
            sprite.fill(patch(body[k], 0.15, 0.4, 0.8, 0.62), light)


_MIRROR = np.array([1.0, 1.0, -1.0])
_BELLY = np.array([(0.97, 0.8, -0.97), (0.97, 0.8, 0.97), (0.97, 0.8, 0.97), (0.97, 0.8, -0.97)])


def _body(
    sprite: Sprite, shell: Shell, body: RGB, rng: random.Random, *, roof: RGB | None = None, sign: bool = False
) -> None:
    """The strips across the car and the side that is seen."""
    p = shell.profile
    left, right = p * _MIRROR, p
    quads = np.empty((len(p) - 1, 4, 3))
    quads[:, 0], quads[:, 1], quads[:, 2], quads[:, 3] = left[:-1], right[:-1], right[1:], left[1:]
    inside = np.array([p[:, 0].mean(), p[:, 1].mean() * 0.9, 0.0])
    seen, order, gain = facing(sprite.view, quads, inside)
    sprite.fill(p.take((0, 0, -1, -1), 0) * _BELLY, (18, 18, 20))
    plate = rng.random() < 0.85
    for i in order:
        if not seen[i]:
            continue
        made_of = shell.made_of[i]
        colour = roof if roof and made_of in ("roof", "glass") else body
        sprite.fill(quads[i], shade(colour, gain[i]))
        if made_of == "glass":
            pane, glint = patches(quads[i], ((0.07, 0.08, 0.93, 0.92), (0.15, 0.5, 0.45, 0.85)))
            sprite.fill(pane, GLASS)
            sprite.fill(glint, (70, 82, 94))
        elif made_of == "rear":
            _rear(sprite, quads[i], body, plate, gain[i], low=i == 0)
        elif made_of == "front":
            _front(sprite, quads[i], body, plate and i == len(shell.made_of) - 1, upper=i != len(shell.made_of) - 1)
    side = _visible_side(sprite, shell)
    if side:
        sprite.fill(right if side > 0 else left, shade(body, _side_gain(sprite, side)))
    if sign and seen[5]:
        board, words = patches(quads[4], ((0.2, 0.1, 0.8, 0.9), (0.28, 0.35, 0.72, 0.65)))
        sprite.fill(board, (30, 30, 34))
        sprite.fill(words, (240, 180, 60))


def _rear(sprite: Sprite, quad: np.ndarray, body: RGB, plate: bool, gain: float, *, low: bool) -> None:
    # A strip that reaches the bottom holds its bumper; else the bumper is the strip below.
    base = 0.2 if low else 0.12
    parts = patches(quad, (
        (0.03, 0.35, 0.24, 0.85), (0.76, 0.35, 0.97, 0.85), (0.05, 0.40, 0.10, 0.6), (0.90, 0.40, 0.95, 0.6),
        (0.0, 0.0 if low else -0.35, 1.0, 0.16 if low else 0.0),
        (0.37, base, 0.63, base + 0.34), (0.42, base + 0.12, 0.58, base + 0.23),
    ))  # fmt: skip
    sprite.fill_all(parts[:2], (186, 22, 26))
    sprite.fill_all(parts[2:4], (250, 170, 90))
    sprite.fill(parts[4], shade(body, 0.55 * gain))
    if plate:
        sprite.fill(parts[5], (226, 226, 214))
        sprite.fill(parts[6], (60, 60, 70))


def _front(sprite: Sprite, quad: np.ndarray, body: RGB, plate: bool, *, upper: bool) -> None:
    if upper:
        parts = patches(quad, ((0.04, 0.2, 0.24, 0.9), (0.76, 0.2, 0.96, 0.9), (0.3, 0.25, 0.7, 0.95)))
        sprite.fill_all(parts[:2], (238, 238, 220))
        sprite.fill(parts[2], (34, 34, 38))
        return
    # The profile runs downwards here: v = 0 is the upper edge.
    parts = patches(quad, (
        (0.04, 0.04, 0.2, 0.3), (0.80, 0.04, 0.96, 0.3), (0.25, 0.42, 0.75, 0.72), (0.0, 0.8, 1.0, 1.0),
        (0.40, 0.5, 0.60, 0.68),
    ))  # fmt: skip
    sprite.fill_all(parts[:2], (240, 238, 224))
    sprite.fill(parts[2], (30, 30, 34))
    sprite.fill(parts[3], shade(body, 0.5))
    if plate:
        sprite.fill(parts[4], (226, 226, 214))


def _visible_side(sprite: Sprite, shell: Shell) -> int:
    """+1 for the right side, -1 for the left, 0 when the camera looks along the car."""
    eye = float(sprite.view.eye[2])
    return 0 if abs(eye) <= shell.half else (1 if eye > 0 else -1)


def _side_gain(sprite: Sprite, side: int) -> float:
    return 0.66 + 0.4 * max(0.0, side * float(sprite.view.sun[2]))


def _lift(shell: Shell, side: int, points_xy: np.ndarray) -> np.ndarray:
    """(..., 2) on the side plane to (..., 3)."""
    out = np.empty((*points_xy.shape[:-1], 3))
    out[..., :2] = points_xy
    np.multiply(shell.half_width(points_xy[..., 1]), side, out=out[..., 2])
    return out


def _on_side(sprite: Sprite, shell: Shell, side: int, polygons_xy: np.ndarray, colours: tuple[RGB, ...]) -> None:
    """Fill (K, N, 2) polygons on the side plane, one after the other."""
    for polygon, colour in zip(_lift(shell, side, polygons_xy), colours, strict=True):
        sprite.fill(polygon, colour)


def _bar(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


_DRUM = np.concatenate([CIRCLE[::2], CIRCLE[::2]])


def _wheels(sprite: Sprite, shell: Shell, radius: float, places: tuple[float, ...]) -> None:
    """All tyres as dark drums, under the body."""
    outer, inner = shell.half - 0.04, shell.half - 0.28
    drums = np.empty((len(places), 2, 24, 3))
    drums[..., :2] = _DRUM * radius
    drums[..., 0] += np.array([place * shell.front for place in places])[:, None, None]
    drums[..., 1] += radius
    drums[:, 0, :12, 2], drums[:, 0, 12:, 2] = -outer, -inner
    drums[:, 1, :12, 2], drums[:, 1, 12:, 2] = outer, inner
    for drum in drums.reshape(-1, 24, 3):
        sprite.hull(drum, TYRE)


def _near_wheels(sprite: Sprite, shell: Shell, side: int, radius: float, places: tuple[float, ...], arch: RGB) -> None:
    """Arch, tyre, rim and hub of the wheels on the side that is seen."""
    z = side * shell.half
    rings = np.empty((len(places), 4, 24, 3))
    rings[..., :2] = CIRCLE * np.array([radius * scale for scale in (1.22, 1.0, 0.6, 0.2)])[:, None, None]
    rings[..., 0] += np.array([place * shell.front for place in places])[:, None, None]
    rings[..., 1] += radius
    np.maximum(rings[:, 0, :, 1], radius * 0.8, out=rings[:, 0, :, 1])
    rings[:, 0, :, 2], rings[:, 1:, :, 2] = z, z * 1.005
    for wheel in rings:
        for ring, colour in zip(wheel, (arch, TYRE, RIM, (70, 70, 74)), strict=True):
            sprite.fill(ring, colour)


def _roof_bar(sprite: Sprite, shell: Shell, rng: random.Random) -> None:
    """The light bar of a police car or the sign of a taxi."""
    top = float(shell.profile[:, 1].max())
    x = float(shell.profile[shell.profile[:, 1].argmax(), 0]) - 0.2
    if rng.random() < 0.6:
        for z, colour in ((-0.5, (200, 40, 40)), (0.0, (50, 70, 200))):
            part = cuboid(x - 0.1, top, z, x + 0.15, top + 0.14, z + 0.5)
            sprite.solid(part, [colour] * 5, part.mean((0, 1)))
        sprite.attributes["model"] = "police car"
    else:
        part = cuboid(x - 0.1, top, -0.22, x + 0.12, top + 0.18, 0.22)
        sprite.solid(part, [(240, 220, 120)] * 5, part.mean((0, 1)))


def footprint_shadow(sprite: Sprite, length: float, width: float) -> None:
    sprite.shadow(np.array([(-length / 2, 0.0, -width / 2), (-length / 2, 0.0, width / 2 + 0.3),
                            (length / 2, 0.0, width / 2 + 0.3), (length / 2, 0.0, -width / 2)]))  # fmt: skip
