"""Views (object metres to pixels), display lists of one object, and the two rasters made from them.

Pixel coordinates are of edge convention: the picture spans [0, W] x [0, H] and a pixel's centre lies at +0.5.
World: X right, Y up, Z away from the camera. Object: x forward, y up, z to its own right, origin on the ground.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from .palette import RGB, mix, shade

SHIFT = 4
_ONE = float(1 << SHIFT)
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 25)[:-1])], 1)
OCTAGON = CIRCLE[::3]
_SUN = np.array([-0.45, 0.8, -0.4])
_SUN_X, _SUN_Y, _SUN_Z = _SUN.tolist()
_FLAT_EYE = np.array([0.0, 1.0, -100.0])
_ORIGIN = np.zeros(2)

Points = np.ndarray | Sequence[tuple[float, ...]]


class View:
    """How one object stands in the picture: projects its metres, knows where the camera and the sun are for it."""

    __slots__ = ("foot", "scale", "eye", "sun", "flip", "_basis", "_place", "_focal", "_centre")

    def __init__(self, *, foot: tuple[float, float], scale: float, flip: bool = False) -> None:
        """A flat view: a billboard that faces the camera. foot is the pixel where its origin stands."""
        self.foot, self.scale, self.flip = foot, scale, flip
        self.eye, self.sun = _FLAT_EYE, _SUN
        self._basis: np.ndarray | None = None
        self._place = _ORIGIN
        self._centre = (0.0, 0.0)
        self._focal = 0.0

    def project(self, points_N3: np.ndarray) -> np.ndarray:
        """(N, 3) object metres to (N, 2) pixels."""
        assert self._basis is not None, "a flat view has no third dimension"
        moved = points_N3 @ self._basis
        moved += self._place
        if self._focal == 0.0:
            return moved
        scale = np.maximum(moved[:, 2:], 0.25)
        np.divide(self._focal, scale, out=scale)
        moved = moved[:, :2] * scale
        moved += self._centre
        return moved

    def flat(self, points_N2: Points) -> np.ndarray:
        """(N, 2) metres in the plane that faces the camera (x right, y up) to pixels."""
        pixels = np.array(points_N2, float)
        pixels[:, 0] *= -self.scale if self.flip else self.scale
        pixels[:, 1] *= -self.scale
        pixels += self.foot
        return pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """A level camera over a ground plane: focal length and horizon in pixels, height in metres."""

    focal: float
    centre_x: float
    horizon: float
    height: float

    def spot(self, x: float, z: float, y: float = 0.0) -> tuple[float, float]:
        return self.centre_x + self.focal * x / z, self.horizon + self.focal * (self.height - y) / z

    def points(self, world_N3: Points) -> np.ndarray:
        """(N, 3) world metres (X, Y, Z) to pixels; Z is held in front of the camera."""
        p = np.asarray(world_N3, float)
        scale = self.focal / np.maximum(p[:, 2], 0.2)
        out = np.empty((len(p), 2))
        np.multiply(p[:, 0], scale, out=out[:, 0])
        np.multiply(self.height - p[:, 1], scale, out=out[:, 1])
        out += (self.centre_x, self.horizon)
        return out

    def quads(self, world_NK3: np.ndarray | Sequence[Points]) -> np.ndarray:
        """(N, K, 3) world metres to (N, K, 2) pixels: N polygons of equally many corners."""
        p = np.asarray(world_NK3, float)
        return self.points(p.reshape(-1, 3)).reshape(*p.shape[:-1], 2) if len(p) else np.empty((0, 1, 2))

    def view(self, x: float, z: float, *, heading: float = 0.0, flip: bool = False) -> View:
        """heading 0 looks away from the camera, pi towards it, pi / 2 to the right."""
        view = View(foot=self.spot(x, z), scale=self.focal / z, flip=flip)
        sin, cos = math.sin(heading), math.cos(heading)
        # Rows: where object x (forward), y (up), z (right) go in camera axes (X, -Y, Z); place, eye, sun.
        rows = np.array(
            (sin, 0.0, cos, 0.0, -1.0, 0.0, cos, 0.0, -sin, x, self.height, z,
             -x * sin - z * cos, self.height, -x * cos + z * sin,
             _SUN_X * sin + _SUN_Z * cos, _SUN_Y, _SUN_X * cos - _SUN_Z * sin)
        ).reshape(6, 3)  # fmt: skip
        view._basis, view._place, view.eye, view.sun = rows[:3], rows[3], rows[4], rows[5]
        view._focal, view._centre = self.focal, (self.centre_x, self.horizon)
        return view


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """A distant camera that looks down on a table at an elevation (0 = from the side, pi / 2 = from the top)."""

    elevation: float

    def view(self, foot: tuple[float, float], scale: float, *, heading: float = 0.0, flip: bool = False) -> View:
        view = View(foot=foot, scale=scale, flip=flip)
        sin, cos = math.sin(heading), math.cos(heading)
        up, over = math.cos(self.elevation), math.sin(self.elevation)
        view._basis = np.array([[sin, -cos * over], [0.0, -up], [cos, sin * over]]) * scale
        view._place = np.array(foot)
        away = np.array([0.0, over, -up]) * 1e4
        view.eye = np.array([away[0] * sin + away[2] * cos, away[1], away[0] * cos - away[2] * sin])
        view.sun = np.array([_SUN_X * sin + _SUN_Z * cos, _SUN_Y, _SUN_X * cos - _SUN_Z * sin])
        return view


Stroke = tuple[list[np.ndarray], RGB, int]
_SOLID, _FLAT, _PIXELS, _LIMB, _DISC = range(5)  # what a draft is made of: points, or the numbers of a flat shape
_CORNERS = {_LIMB: 12, _DISC: 24}
_OUTLINE = -1
# Points or numbers, what they are, corners of each polygon (0: they are one; _OUTLINE: its hull), colour, thickness.
_Draft = tuple[np.ndarray | tuple[float, ...], int, int, RGB, int]


@dataclass(slots=True)
class Sprite:
    """The display list of one object: polygons and lines, back to front, in metres until somebody draws them.

    Points are collected and brought to pixels all at once: many small projections cost far more than a large one.
    """

    view: View
    haze: float = 0.0
    air: RGB = (200, 205, 210)
    shadows: list[np.ndarray] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    keypoints: np.ndarray | None = None
    _drafts: list[_Draft] = field(default_factory=list)
    _carrying: int = 0
    _strokes: list[Stroke] = field(default_factory=list)

    @property
    def strokes(self) -> list[Stroke]:
        """The object, in fixed-point pixels; thickness 0 means filled."""
        return self._developed()[self._carrying :]

    @property
    def support(self) -> list[Stroke]:
        """What carries it and is no part of it."""
        return self._developed()[: self._carrying]

    def _developed(self) -> list[Stroke]:
        if len(self._strokes) != len(self._drafts):
            self._strokes = self._develop()
        return self._strokes

    def _develop(self) -> list[Stroke]:
        pixels, at = self._pixels()
        whole, strokes = fixed(pixels), []
        for points, kind, corners, colour, thickness in self._drafts:
            start = at[kind]
            end = at[kind] = start + (_CORNERS.get(kind) or len(points))
            if not corners:
                polygons = [whole[start:end]]
            elif corners == _OUTLINE:
                polygons = [fixed(hull(pixels[start:end]))]
            else:
                polygons = list(whole[start:end].reshape(-1, corners, 2))
            strokes.append((polygons, colour, thickness))
        return strokes

    def _pixels(self) -> tuple[np.ndarray, list[int]]:
        """(N, 2): the points of all drafts kind by kind, and where each kind begins."""
        groups: tuple[list[Any], ...] = ([], [], [], [], [])
        for points, kind, _, _, _ in self._drafts:
            groups[kind].append(points)
        solid, flat, pixels, limbs, discs = groups
        stacks = [self.view.project(np.concatenate(solid))] if solid else []
        at = [0] * 5
        at[_FLAT] = len(stacks[0]) if solid else 0
        at[_LIMB] = at[_FLAT] + sum(map(len, flat))
        at[_DISC] = at[_LIMB] + len(limbs) * _CORNERS[_LIMB]
        at[_PIXELS] = at[_DISC] + len(discs) * _CORNERS[_DISC]
        if limbs:
            flat.append(capsules(limbs).reshape(-1, 2))
        if discs:
            middle_radii = np.array(discs)[:, None]
            flat.append((CIRCLE * middle_radii[..., 2:] + middle_radii[..., :2]).reshape(-1, 2))
        if flat:
            stacks.append(self.view.flat(np.concatenate(flat)))
        return np.concatenate(stacks + pixels), at

    def _add(
        self, points: np.ndarray | tuple[float, ...], kind: int, colour: RGB, *, thickness: int = 0, corners: int = 0
    ) -> None:
        tinted = mix(colour, self.air, self.haze) if self.haze else colour
        self._drafts.append((points, kind, corners, tinted, thickness))

    def fill(self, points: Points, colour: RGB) -> None:
        """Fill one polygon of (N, 3) object metres or (N, 2) metres in the picture plane."""
        p = np.asarray(points, float)
        self._add(p, _SOLID if p.shape[1] == 3 else _FLAT, colour)

    def fill_all(self, polygons: Sequence[Points] | np.ndarray, colour: RGB) -> None:
        """Fill polygons of equally many corners that do not overlap each other."""
        if len(polygons):
            stack = np.asarray(polygons, float)
            _, corners, axes = stack.shape
            self._add(stack.reshape(-1, axes), _SOLID if axes == 3 else _FLAT, colour, corners=corners)

    def fill_each(self, polygons_NK2: np.ndarray, colours: list[RGB]) -> None:
        """Many polygons of K corners in the picture plane, one after the other."""
        for polygon, colour in zip(polygons_NK2, colours, strict=True):
            self._add(polygon, _FLAT, colour)

    def fill_pixels(self, points_px: np.ndarray, colour: RGB) -> None:
        self._add(points_px, _PIXELS, colour)

    def line(self, points: Points, colour: RGB, width: float) -> None:
        """An open line; width in metres, never thinner than a pixel."""
        p = np.asarray(points, float)
        self._add(p, _SOLID if p.shape[1] == 3 else _FLAT, colour, thickness=max(1, round(width * self.view.scale)))

    def disc(self, x: float, y: float, rx: float, ry: float, colour: RGB, angle: float = 0.0) -> None:
        """A filled ellipse in the picture plane."""
        if angle:
            self.fill(ellipse(x, y, rx, ry, angle), colour)
        else:
            self._add((x, y, rx, ry), _DISC, colour)

    def hull(self, points_N3: np.ndarray, colour: RGB) -> None:
        """Fill the convex hull of the projected points."""
        self._add(points_N3, _SOLID, colour, corners=_OUTLINE)

    def limb(self, a: tuple[float, float], b: tuple[float, float], ra: float, rb: float, colour: RGB) -> None:
        """A capsule in the picture plane, in metres."""
        self._add((*a, *b, ra, rb), _LIMB, colour)

    def so_far_is_support(self) -> None:
        """What was drawn until now carries the object (a pole) and is no part of it."""
        self._carrying = len(self._drafts)

    def shadow(self, points: Points) -> None:
        p = np.asarray(points, float)
        self.shadows.append(fixed(self.view.project(p) if p.shape[1] == 3 else self.view.flat(p)))

    def solid(self, quads_N43: np.ndarray, colours: list[RGB], inside: np.ndarray) -> list[bool]:
        """Draw the faces (N, 4, 3) that look at the camera, far ones first, shaded by the sun; says which are seen."""
        seen, order, gain = facing(self.view, quads_N43, inside)
        for i in order:
            if seen[i]:
                self.fill(quads_N43[i], shade(colours[i], gain[i]))
        return seen


_NEXT, _LAST = np.array([1, 2, 0]), np.array([2, 0, 1])


def facing(view: View, quads_N43: np.ndarray, inside: np.ndarray) -> tuple[list[bool], list[int], list[float]]:
    """Which faces look at the camera, the order far to near, and each face's brightness; inside: a point."""
    corners = quads_N43.transpose(1, 2, 0).copy()  # (4, 3, N): an axis is a row, so every step is one long loop
    middle = np.add.reduce(corners) / 4.0
    a, b = corners[2] - corners[0], corners[3] - corners[1]
    normal = a.take(_NEXT, 0) * b.take(_LAST, 0)
    normal -= a.take(_LAST, 0) * b.take(_NEXT, 0)
    normal /= np.sqrt(np.add.reduce(normal * normal)) + 1e-9
    outward = np.add.reduce((middle - inside[:, None]) * normal) >= 0
    normal *= np.where(outward, 1.0, -1.0)
    to_eye = view.eye[:, None] - middle
    gain = 0.62 + 0.45 * np.maximum(0.0, normal.T @ view.sun)
    order = np.argsort(-np.add.reduce(to_eye * to_eye), kind="stable")
    return (np.add.reduce(normal * to_eye) > 0).tolist(), order.tolist(), gain.tolist()


def fixed(points_px: np.ndarray) -> np.ndarray:
    """Pixels of edge convention to OpenCV's fixed-point pixel centres."""
    scaled = points_px * _ONE
    scaled -= _ONE / 2
    return np.rint(scaled, out=scaled).astype(np.int32)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    ring = CIRCLE * (rx, ry)
    if angle:
        sin, cos = math.sin(angle), math.cos(angle)
        ring = ring @ np.array([[cos, sin], [-sin, cos]])
    return ring + (x, y)


def capsules(limbs: Sequence[tuple[float, ...]]) -> np.ndarray:
    """(M, 12, 2): limbs (x and y of one end, x and y of the other, both radii), each the hull of two discs."""
    rows = np.array(limbs)
    turn = np.array([math.atan2(by - ay, bx - ax) for ax, ay, bx, by, _, _ in limbs])
    angles = turn[:, None] + _HALF_TURN
    out = np.empty((len(limbs), 12, 2))
    out[:, :6, 0] = out[:, 6:, 0] = np.cos(angles)
    out[:, :6, 1] = out[:, 6:, 1] = np.sin(angles)
    out[:, :6] *= -rows[:, None, 4:5]
    out[:, :6] += rows[:, None, :2]
    out[:, 6:] *= rows[:, None, 5:]
    out[:, 6:] += rows[:, None, 2:4]
    return out


_HALF_TURN = np.linspace(-math.pi / 2, math.pi / 2, 6)


def hull(points_px: np.ndarray) -> np.ndarray:
    return cv2.convexHull(points_px.astype(np.float32))[:, 0].astype(float)


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def cuboid(x0: float, y0: float, z0: float, x1: float, y1: float, z1: float) -> np.ndarray:
    """(5, 4, 3): the faces rear, front, left, right, top of a box that stands on something."""
    return np.array(
        [
            [(x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)],
            [(x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)],
            [(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)],
            [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)],
            [(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)],
        ]
    )


def patch(quad_43: np.ndarray, u0: float, v0: float, u1: float, v1: float) -> np.ndarray:
    """The part [u0, u1] x [v0, v1] of a quad: u runs from corner 0 to 1, v from corner 0 to 3."""
    return np.asarray(_shares(((u0, v0, u1, v1),))[0] @ quad_43)


def patches(quad_43: np.ndarray, spans: tuple[tuple[float, float, float, float], ...]) -> np.ndarray:
    """(K, 4, 3): K parts (u0, v0, u1, v1) of a quad at once."""
    return np.asarray(_shares(spans) @ quad_43)


@lru_cache(maxsize=1024)
def _shares(spans: tuple[tuple[float, float, float, float], ...]) -> np.ndarray:
    """(K, 4, 4): what each corner of a quad adds to each corner of a part."""
    rows = []
    for u0, v0, u1, v1 in spans:
        a0, a1, b0, b1 = 1.0 - u0, 1.0 - u1, 1.0 - v0, 1.0 - v1
        rows += [
            (a0 * b0, u0 * b0, u0 * v0, a0 * v0),
            (a1 * b0, u1 * b0, u1 * v0, a1 * v0),
            (a1 * b1, u1 * b1, u1 * v1, a1 * v1),
            (a0 * b1, u0 * b1, u0 * v1, a0 * v1),
        ]
    shares = np.array(rows).reshape(-1, 4, 4)
    shares.flags.writeable = False
    return shares


def paint(image: np.ndarray, strokes: list[Stroke]) -> None:
    for polygons, colour, thickness in strokes:
        if thickness:
            cv2.polylines(image, polygons, False, colour, thickness, cv2.LINE_AA, SHIFT)
        else:
            cv2.fillPoly(image, polygons, colour, cv2.LINE_AA, SHIFT)


def stamp(index_map: np.ndarray, strokes: list[Stroke], index: int) -> None:
    """The same shapes without anti-aliasing: a pixel belongs to the last shape that covers it."""
    for polygons, _, thickness in strokes:
        if thickness:
            cv2.polylines(index_map, polygons, False, index, thickness, cv2.LINE_8, SHIFT)
        else:
            cv2.fillPoly(index_map, polygons, index, cv2.LINE_8, SHIFT)
