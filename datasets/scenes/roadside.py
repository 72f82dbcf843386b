"""The road itself and what lies beside and behind it: lanes, pavements, facades, woods, walls, a skyline."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from .canvas import Ground
from .palette import jitter, mix, shade
from .stage import Backdrop, Stage, log_uniform

SIDES = ("facades", "facades", "wood", "grass", "wall")


@dataclass(frozen=True, kw_only=True, slots=True)
class Road:
    """Where the road runs: its middle at depth z lies at x = offset + slope * z, for roads that lead away."""

    across: bool
    half: float
    pavement: float
    offset: float
    slope: float
    near: float
    far: float

    def middle(self, z: float) -> float:
        return self.offset + self.slope * z


def backdrop(
    stage: Stage, ground: Ground, road: Road, sides: tuple[str, str], haze: float, rng: random.Random
) -> Backdrop:
    drop = Backdrop(stage.width, stage.height, rng, stage.fog)
    w, h, horizon = stage.width, stage.height, ground.horizon
    low = jitter(rng, rng.choice(((206, 216, 226), (188, 196, 206), (226, 214, 200))), 8)
    top = jitter(rng, rng.choice(((120, 164, 214), (150, 164, 186), (104, 142, 196), (178, 184, 192))), 10)
    drop.sky(top, mix(low, stage.fog, min(0.8, haze * 20)), horizon)
    grass = jitter(rng, rng.choice(((86, 118, 58), (108, 124, 66), (122, 116, 76))), 10)
    drop.fill(
        "grass", np.array([(0, horizon), (w, horizon), (w, h), (0, h)]), grass, kind="grass", haze=min(0.3, haze * 8)
    )
    _skyline(drop, ground, rng, haze, w)
    if road.across:
        _across(drop, ground, road, sides, haze, rng, w)
    else:
        _along(drop, ground, road, sides, haze, rng)
    _litter(drop, ground, road, rng)
    drop.add_textures()
    return drop


_PANE = np.array([0.1, 0.9, 0.9, 0.1])


def _skyline(drop: Backdrop, ground: Ground, rng: random.Random, haze: float, w: int) -> None:
    """Far woods, hills or blocks along the horizon."""
    unit, y = w / 320.0, ground.horizon
    for layer in range(rng.randint(1, 3)):
        far = min(0.8, 0.45 - 0.15 * layer + haze * 10)
        if rng.random() < 0.55:
            xs = np.linspace(-5, w + 5, 40).tolist()
            outline = [(x, y - unit * (rng.uniform(4, 10) + 9 * math.sin(0.013 * x / unit + layer) ** 2)) for x in xs]
            outline += [(w + 5, y + 1), (-5, y + 1)]
            drop.fill("vegetation", outline, jitter(rng, (52, 82, 48), 8), haze=far)
        else:
            x = rng.uniform(-20, 20) * unit
            while x < w:
                width, tall = rng.uniform(10, 36) * unit, rng.uniform(6, 34) * unit
                colour = jitter(rng, rng.choice(((132, 124, 120), (110, 84, 76), (150, 152, 158))), 12)
                block = np.array([(x, y + 1), (x + width, y + 1), (x + width, y - tall), (x, y - tall)])
                drop.fill("building", block, colour, haze=far)
                rows_y = np.arange(y - tall + 3 * unit, y - 2 * unit, 4 * unit)
                rows = np.empty((len(rows_y), 4, 2))
                rows[..., 0] = _PANE * width + x
                rows[:, :2, 1], rows[:, 2:, 1] = rows_y[:, None], (rows_y + unit)[:, None]
                drop.marks(rows, shade(colour, 0.6), haze=far)
                x += width + max(0.0, rng.uniform(-10, 30)) * unit


def _dashes(road: Road, x0: float, x1: float, starts: np.ndarray, length: float) -> np.ndarray:
    """(N, 4, 3): dashes between two lines that run along the road."""
    corners = np.zeros((len(starts), 4, 3))
    corners[..., 2] = starts[:, None] + (0.0, 0.0, length, length)
    corners[..., 0] = road.offset + road.slope * corners[..., 2] + (x0, x1, x1, x0)
    return corners


def _strip(road: Road, x0: float, x1: float, z0: float, z1: float) -> list[tuple[float, float, float]]:
    """A quad on the ground between two lines that run along the road."""
    near, far = road.middle(z0), road.middle(z1)
    return [(near + x0, 0.0, z0), (near + x1, 0.0, z0), (far + x1, 0.0, z1), (far + x0, 0.0, z1)]


def _along(drop: Backdrop, ground: Ground, road: Road, sides: tuple[str, str], haze: float, rng: random.Random) -> None:
    end, begin = 120.0, 0.5
    tar = jitter(rng, rng.choice(((92, 93, 97), (118, 118, 120), (74, 75, 80))), 8)
    slab = jitter(rng, rng.choice(((160, 156, 150), (140, 140, 142), (172, 150, 134))), 8)
    edge = road.half + road.pavement
    for sign, side in zip((-1, 1), sides, strict=True):
        _flank(drop, ground, road, sign, side, haze, rng)
        kerb = sign * (road.half + 0.18)
        strips = ground.quads([_strip(road, sign * road.half, x, begin, end) for x in (sign * edge, kerb)])
        drop.fill("pavement", strips[0], slab, kind="tiles")
        drop.marks(strips[1:], shade(slab, 0.7))
    drop.fill("road", ground.points(_strip(road, -road.half, road.half, begin, end)), tar, kind="asphalt")
    paint = jitter(rng, rng.choice(((226, 226, 220), (226, 226, 220), (222, 190, 70))), 8)
    lines: list[np.ndarray] = []
    lanes = max(2, round(2 * road.half / 3.3))
    for k in range(1, lanes):
        x = -road.half + 2 * road.half * k / lanes
        if rng.random() < 0.25:
            lines.append(np.array([_strip(road, x - 0.08, x + 0.08, begin, end)]))
        else:
            start = rng.uniform(0.6, 3.0)
            lines.append(_dashes(road, x - 0.08, x + 0.08, np.arange(start, 60.0, 5.0), 2.2))
    drop.marks(ground.quads(np.concatenate(lines)), paint)
    if rng.random() < 0.6:
        edges = [_strip(road, s * (road.half - 0.35), s * (road.half - 0.22), begin, end) for s in (-1, 1)]
        drop.marks(ground.quads(edges), (222, 222, 216))
    if rng.random() < 0.2:
        z = rng.uniform(5, 14)
        starts = np.arange(-road.half + 0.4, road.half - 0.6, 1.0).tolist()
        drop.marks(ground.quads([_strip(road, x, x + 0.5, z, z + 2.6) for x in starts]), (226, 226, 222))


_ROWS_OF_TREES = np.geomspace(70.0, 6.0, 9).tolist()


def _flank(drop: Backdrop, ground: Ground, road: Road, sign: int, side: str, haze: float, rng: random.Random) -> None:
    """What stands beyond one pavement, far parts first."""
    edge = sign * (road.half + road.pavement + rng.uniform(0.2, 1.2))
    if side == "facades":
        z = 90.0
        while z > 3.0:
            depth = min(z - 1.5, rng.uniform(7.0, 16.0))
            _facade(drop, ground, road, edge, z - depth, z, haze, rng)
            z -= depth + (rng.uniform(2.0, 6.0) if rng.random() < 0.2 else 0.0)
    elif side == "wood":
        for z in _ROWS_OF_TREES:
            base = road.middle(z) + edge + sign * rng.uniform(3.0, 5.0)
            outline = [(base, 0.0, z)]
            for k in range(13):
                outline.append((base + sign * k * 2.4, rng.uniform(3.6, 6.4) if k else 2.6, z))
            outline.append((base + sign * 30.0, 0.0, z))
            drop.fill(
                "vegetation",
                ground.points(outline),
                jitter(rng, (46, 74, 42), 9),
                kind="grass",
                haze=min(0.7, (haze + 0.004) * z),
            )
    elif side == "wall":
        tall = rng.uniform(1.0, 2.6)
        corners = [(road.middle(z) + edge, y, z) for z, y in ((1.0, 0), (80.0, 0), (80.0, tall), (1.0, tall))]
        drop.fill(
            "wall",
            ground.points(corners),
            jitter(rng, rng.choice(((140, 84, 66), (150, 148, 144), (120, 116, 108))), 8),
            kind="bricks",
        )


def _facade(
    drop: Backdrop, ground: Ground, road: Road, x: float, z0: float, z1: float, haze: float, rng: random.Random
) -> None:
    """A flat-roofed block: the wall along the street and the end that looks at the camera."""
    z0 = max(1.0, z0)
    floors = rng.randint(2, 7)
    tall = floors * 3.1 + 0.8
    colour = jitter(
        rng,
        rng.choice(((150, 92, 74), (168, 160, 148), (124, 128, 136), (188, 176, 150), (110, 76, 66), (96, 108, 124))),
        10,
    )
    fade = min(0.75, haze * (z0 + z1) / 2)
    near, far = road.middle(z0) + x, road.middle(z1) + x
    back, rim = near + math.copysign(14.0, x), tall - 0.5
    columns = max(2, int((z1 - z0) / 2.6))
    corners = np.empty((3 + floors * columns, 4, 3))
    corners[0] = (near, 0, z0), (back, 0, z0), (back, tall, z0), (near, tall, z0)
    corners[1] = (near, 0, z0), (far, 0, z1), (far, tall, z1), (near, tall, z0)
    corners[2] = (near, tall, z0), (far, tall, z1), (far, rim, z1), (near, rim, z0)
    panes = corners[3:].reshape(floors, columns, 4, 3)
    panes[..., 2] = z0 + (z1 - z0) * (np.arange(columns)[:, None] + (0.25, 0.75, 0.75, 0.25)) / columns
    panes[..., 0] = road.offset + road.slope * panes[..., 2] + x
    panes[..., 1] = 3.1 * np.arange(floors)[:, None, None] + (1.0, 1.0, 2.5, 2.5)
    shapes = ground.quads(corners)
    drop.fill("building", shapes[0], shade(colour, 0.72), kind="plain", haze=fade)
    drop.fill("building", shapes[1], colour, haze=fade)
    drop.marks(shapes[3:], rng.choice(((44, 54, 68), (70, 86, 104), (60, 60, 64))), haze=fade)
    drop.marks(shapes[2:3], shade(colour, 0.8), haze=fade)


def _across(
    drop: Backdrop, ground: Ground, road: Road, sides: tuple[str, str], haze: float, rng: random.Random, w: int
) -> None:
    """A road that crosses the picture, with a pavement on both sides and something behind."""
    y = [
        ground.spot(0, z)[1]
        for z in (road.far + road.pavement, road.far, road.near, max(1.2, road.near - road.pavement))
    ]
    behind = road.far + road.pavement + rng.uniform(0.5, 2.0)
    base = ground.spot(0, behind)[1]
    metre = ground.focal / behind
    if sides[0] == "facades":
        x = -rng.uniform(0, 8) * metre
        while x < w:
            width, floors = rng.uniform(6, 13) * metre, rng.randint(1, 5)
            _flat_block(drop, x, base, width, floors, metre, rng)
            x += width + (rng.uniform(1, 5) * metre if rng.random() < 0.3 else 0.0)
    elif sides[0] in ("wall", "wood"):
        tall = rng.uniform(0.9, 2.4) * metre
        stuff, colour = ("wall", (142, 88, 70)) if sides[0] == "wall" else ("vegetation", (52, 84, 46))
        drop.fill(stuff, np.array([(0, base), (w, base), (w, base - tall), (0, base - tall)]), jitter(rng, colour, 10),
                  kind="bricks" if stuff == "wall" else "grass")  # fmt: skip
    slab, tar = jitter(rng, (156, 153, 148), 12), jitter(rng, (96, 97, 101), 14)
    for a, b in ((y[0], y[1]), (y[2], y[3])):
        drop.fill("pavement", np.array([(0, a), (w, a), (w, b), (0, b)]), slab, kind="tiles")
    drop.fill("road", np.array([(0, y[1]), (w, y[1]), (w, y[2]), (0, y[2])]), tar, kind="asphalt")
    drop.marks(
        [np.array([(0, v), (w, v), (w, v + 0.01 * w), (0, v + 0.01 * w)]) for v in (y[2] - 0.008 * w,)],
        shade(slab, 0.7),
    )
    z = (road.near + road.far) / 2
    start = rng.uniform(-3, 0)
    reach = w / ground.focal * z
    dashes = [[(x, 0, z - 0.09), (x + 2.0, 0, z - 0.09), (x + 2.0, 0, z + 0.09), (x, 0, z + 0.09)]
              for x in np.arange(-reach + start, reach, 4.5).tolist()]  # fmt: skip
    drop.marks(ground.quads(dashes), rng.choice(((228, 228, 222), (224, 190, 70))))


def _flat_block(
    drop: Backdrop, x: float, base: float, width: float, floors: int, metre: float, rng: random.Random
) -> None:
    tall = (floors * 3.1 + 0.6) * metre
    colour = jitter(rng, rng.choice(((150, 92, 74), (172, 164, 150), (128, 132, 140), (190, 178, 152))), 10)
    drop.fill(
        "building",
        np.array([(x, base), (x + width, base), (x + width, base - tall), (x, base - tall)]),
        colour,
        kind="plain",
    )
    columns = max(2, int(width / metre / 2.4))
    panes = []
    for floor in range(floors):
        top = base - (floor * 3.1 + 2.5) * metre
        for k in range(columns):
            a, b = x + width * (k + 0.25) / columns, x + width * (k + 0.75) / columns
            panes.append([(a, top), (b, top), (b, top + 1.5 * metre), (a, top + 1.5 * metre)])
    drop.marks(panes, rng.choice(((46, 56, 70), (72, 88, 106))))
    top, rim = base - tall, base - tall + 0.4 * metre
    drop.marks([np.array([(x, top), (x + width, top), (x + width, rim), (x, rim)])], shade(colour, 0.75))


PATCH = [(math.cos(t), math.sin(t)) for t in np.linspace(0, 6.28, 9)[:-1].tolist()]  # a blob's eight corners


def _litter(drop: Backdrop, ground: Ground, road: Road, rng: random.Random) -> None:
    """Patches of tar, manholes, cracks and leaves: nothing that should be found."""
    w = drop.stuff.shape[1]
    for _ in range(rng.randint(0, 5)):
        z = rng.uniform(road.near, road.far) if road.across else log_uniform(rng, 3.0, 25.0)
        x = rng.uniform(-5.0, 5.0) if road.across else road.middle(z) + rng.uniform(-0.8, 0.8) * road.half
        sx, sz = rng.uniform(0.2, 1.2), rng.uniform(0.2, 0.8)
        corners = [(x + sx * cos * rng.uniform(0.7, 1.2), 0.0, z + sz * sin) for cos, sin in PATCH]
        drop.marks([ground.points(corners)], shade(drop.colours["road"], rng.choice((0.78, 0.86, 1.1))))
    leaves = []
    for _ in range(rng.randint(0, 14)):
        z = log_uniform(rng, 2.5, 12.0)
        x = rng.uniform(-0.5, 0.5) * w / ground.focal * z
        leaves.append([(x, 0, z), (x + 0.12, 0, z + 0.1), (x + 0.02, 0, z + 0.2)])
    drop.marks(ground.quads(leaves), rng.choice(((150, 110, 50), (90, 100, 50), (180, 150, 80))))
