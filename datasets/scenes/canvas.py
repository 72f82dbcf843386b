"""Views (object metres to pixels), display lists of one object, and the two rasters made from them.

Pixel coordinates are of edge convention: the picture spans [0, W] x [0, H] and a pixel's centre lies at +0.5.
World: X right, Y up, Z away from the camera. Object: x forward, y up, z to its own right, origin on the ground.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from .palette import RGB, mix, shade

SHIFT = 4
_ONE = float(1 << SHIFT)
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 25)[:-1])], 1)
OCTAGON = CIRCLE[::3]
_SUN = np.array([-0.45, 0.8, -0.4])

Points = np.ndarray | Sequence[tuple[float, ...]]


class View:
    """How one object stands in the picture: projects its metres, knows where the camera and the sun are for it."""

    __slots__ = ("foot", "scale", "eye", "sun", "flip", "_basis", "_place", "_focal", "_centre")

    def __init__(self, *, foot: tuple[float, float], scale: float, flip: bool = False) -> None:
        """A flat view: a billboard that faces the camera. foot is the pixel where its origin stands."""
        self.foot, self.scale, self.flip = foot, scale, flip
        self.eye, self.sun = np.array([0.0, 1.0, -100.0]), _SUN
        self._basis: np.ndarray | None = None
        self._place = self._centre = np.zeros(2)
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

    def view(self, x: float, z: float, *, heading: float = 0.0, flip: bool = False) -> View:
        """heading 0 looks away from the camera, pi towards it, pi / 2 to the right."""
        view = View(foot=self.spot(x, z), scale=self.focal / z, flip=flip)
        sin, cos = math.sin(heading), math.cos(heading)
        # Rows: where object x (forward), y (up), z (right) go in camera axes (X, -Y, Z).
        view._basis = np.array([[sin, 0.0, cos], [0.0, -1.0, 0.0], [cos, 0.0, -sin]])
        view._place = np.array([x, self.height, z])
        view._focal, view._centre = self.focal, np.array([self.centre_x, self.horizon])
        view.eye = np.array([-x * sin - z * cos, self.height, -x * cos + z * sin])
        view.sun = np.array([_SUN[0] * sin + _SUN[2] * cos, _SUN[1], _SUN[0] * cos - _SUN[2] * sin])
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
        view.sun = np.array([_SUN[0] * sin + _SUN[2] * cos, _SUN[1], _SUN[0] * cos - _SUN[2] * sin])
        return view


Stroke = tuple[list[np.ndarray], RGB, int]
_SOLID, _FLAT, _PIXELS, _HULL = 0, 1, 2, 4  # what the points of a piece are; the hull is of solid points


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
    _pieces: list[tuple[np.ndarray, int]] = field(default_factory=list)
    _drafts: list[tuple[int, RGB, int]] = field(default_factory=list)  # end of its pieces, colour, thickness
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
        if len(self._strokes) == len(self._drafts):
            return self._strokes
        groups: tuple[list[np.ndarray], ...] = ([], [], [])
        for points, kind in self._pieces:
            groups[kind & 3].append(points)
        stacks = [np.concatenate(group) if group else np.empty((0, 2)) for group in groups]
        if groups[_SOLID]:
            stacks[_SOLID] = self.view.project(stacks[_SOLID])
        if groups[_FLAT]:
            stacks[_FLAT] = self.view.flat(stacks[_FLAT])
        pixels = np.concatenate(stacks)
        whole, at = fixed(pixels), [0, len(stacks[_SOLID]), len(stacks[_SOLID]) + len(stacks[_FLAT])]
        polygons = []
        for points, kind in self._pieces:
            start = at[kind & 3]
            end = at[kind & 3] = start + len(points)
            polygons.append(fixed(hull(pixels[start:end])) if kind == _HULL else whole[start:end])
        start = 0
        self._strokes = []
        for end, colour, thickness in self._drafts:
            self._strokes.append((polygons[start:end], colour, thickness))
            start = end
        return self._strokes

    def _add(self, points: np.ndarray, kind: int, colour: RGB, thickness: int = 0) -> None:
        self._pieces.append((points, kind))
        self._close(colour, thickness)

    def _close(self, colour: RGB, thickness: int) -> None:
        tinted = mix(colour, self.air, self.haze) if self.haze else colour
        self._drafts.append((len(self._pieces), tinted, thickness))

    def fill(self, points: Points, colour: RGB) -> None:
        """Fill one polygon of (N, 3) object metres or (N, 2) metres in the picture plane."""
        p = np.asarray(points, float)
        self._add(p, _SOLID if p.shape[1] == 3 else _FLAT, colour)

    def fill_all(self, polygons: Sequence[Points] | np.ndarray, colour: RGB) -> None:
        """Fill polygons of equally many corners that do not overlap each other."""
        if len(polygons):
            stack = np.asarray(polygons, float)
            kind = _SOLID if stack.shape[2] == 3 else _FLAT
            self._pieces += [(polygon, kind) for polygon in stack]
            self._close(colour, 0)

    def fill_each(self, polygons_NK2: np.ndarray, colours: list[RGB]) -> None:
        """Many polygons of K corners in the picture plane, one after the other."""
        for polygon, colour in zip(polygons_NK2, colours, strict=True):
            self._add(polygon, _FLAT, colour)

    def fill_pixels(self, points_px: np.ndarray, colour: RGB) -> None:
        self._add(points_px, _PIXELS, colour)

    def line(self, points: Points, colour: RGB, width: float) -> None:
        """An open line; width in metres, never thinner than a pixel."""
        p = np.asarray(points, float)
        self._add(p, _SOLID if p.shape[1] == 3 else _FLAT, colour, max(1, round(width * self.view.scale)))

    def disc(self, x: float, y: float, rx: float, ry: float, colour: RGB, angle: float = 0.0) -> None:
        """A filled ellipse in the picture plane."""
        self.fill(ellipse(x, y, rx, ry, angle), colour)

    def capsule(self, a_px: np.ndarray, b_px: np.ndarray, ra_px: float, rb_px: float, colour: RGB) -> None:
        """A limb: the hull of two discs, in pixels."""
        self.fill_pixels(capsule(a_px, b_px, ra_px, rb_px), colour)

    def hull(self, points_N3: np.ndarray, colour: RGB) -> None:
        """Fill the convex hull of the projected points."""
        self._add(points_N3, _HULL, colour)

    def limb(self, a: tuple[float, float], b: tuple[float, float], ra: float, rb: float, colour: RGB) -> None:
        """A capsule in the picture plane, in metres."""
        self.fill(capsule(np.array(a), np.array(b), ra, rb), colour)

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
        return [bool(s) for s in seen]


def facing(view: View, quads_N43: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which faces look at the camera, the order far to near, and each face's brightness; inside: a point (or N)."""
    middle = quads_N43.mean(1)
    a, b = quads_N43[:, 2] - quads_N43[:, 0], quads_N43[:, 3] - quads_N43[:, 1]
    normal = a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]
    normal /= np.sqrt((normal**2).sum(1, keepdims=True)) + 1e-9
    normal *= np.where(((middle - inside) * normal).sum(1, keepdims=True) < 0, -1.0, 1.0)
    to_eye = view.eye - middle
    gain = 0.62 + 0.45 * np.maximum(0.0, normal @ view.sun)
    return (normal * to_eye).sum(1) > 0, np.argsort(-(to_eye**2).sum(1), kind="stable"), gain


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


def capsule(a: np.ndarray, b: np.ndarray, ra: float, rb: float) -> np.ndarray:
    turn = math.atan2(b[1] - a[1], b[0] - a[0])
    angles = turn + _HALF_TURN
    out = np.empty((12, 2))
    out[:6, 0] = out[6:, 0] = np.cos(angles)
    out[:6, 1] = out[6:, 1] = np.sin(angles)
    out[:6] *= -ra
    out[:6] += a
    out[6:] *= rb
    out[6:] += b
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
    a0, a1, b0, b1 = 1.0 - u0, 1.0 - u1, 1.0 - v0, 1.0 - v1
    shares = (
        (a0 * b0, u0 * b0, u0 * v0, a0 * v0),
        (a1 * b0, u1 * b0, u1 * v0, a1 * v0),
        (a1 * b1, u1 * b1, u1 * v1, a1 * v1),
        (a0 * b1, u0 * b1, u0 * v1, a0 * v1),
    )
    return np.asarray(np.array(shares) @ quad_43)


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
