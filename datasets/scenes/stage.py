"""What a world hands to the renderer: things to draw with their depth, and a backdrop painted on demand."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from .canvas import SHIFT, Points, Sprite, fixed
from .catalogue import STUFF
from .palette import RGB, mix, texture

Footprint = tuple[float, float, float, float]


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Near things are as frequent as far ones in the picture, not on the ground."""
    return low * (high / low) ** rng.random()


@dataclass(slots=True)
class Thing:
    """One sprite in the world; category "" is a distractor that is drawn and not labelled."""

    category: str
    sprite: Sprite
    distance: float
    carrier: Thing | None = None
    stuff: str = "nothing"
    _extent: tuple[float, float, float, float] | None = None

    def extent(self) -> tuple[float, float, float, float]:
        """The drawn extent (x0, y0, x1, y1) in pixels, also outside the picture."""
        if self._extent is None:
            points = np.concatenate([p for polygons, _, _ in self.sprite.strokes for p in polygons])
            x, y, width, height = cv2.boundingRect(points)  # in sixteenths of a pixel; the last one counts
            one = float(1 << SHIFT)
            self._extent = x / one, y / one, (x + width - 1) / one + 1.0, (y + height - 1) / one + 1.0
        return self._extent


class Backdrop:
    """Colours and stuff of everything that is not an object, painted region by region, back to front."""

    def __init__(self, width: int, height: int, rng: random.Random, air: RGB) -> None:
        self.rng, self.air = rng, air
        self.image = np.empty((height, width, 3), np.uint8)
        self.stuff = np.zeros((height, width), np.uint8)
        self.colours: dict[str, RGB] = {}
        self._textures: dict[str, str] = {}

    def sky(self, top: RGB, low: RGB, horizon: float) -> None:
        height = self.image.shape[0]
        share = np.clip(np.arange(height, dtype=np.float32) / max(1.0, horizon), 0, 1)[:, None]
        column = np.asarray(top, np.float32) * (1 - share) + np.asarray(low, np.float32) * share
        planes = np.empty((3, *self.stuff.shape), np.uint8)
        planes[:] = column.astype(np.uint8).T[..., None]
        cv2.merge(tuple(planes), dst=self.image)
        self.stuff[:] = STUFF.index("sky")
        self._textures["sky"] = "sky"

    def fill(self, stuff: str, points_px: Points, colour: RGB, *, kind: str = "", haze: float = 0.0) -> None:
        shape = [fixed(np.asarray(points_px, float))]
        cv2.fillPoly(self.image, shape, mix(colour, self.air, haze), cv2.LINE_AA, SHIFT)
        cv2.fillPoly(self.stuff, shape, STUFF.index(stuff), cv2.LINE_8, SHIFT)
        self.colours[stuff] = colour
        if kind:
            self._textures[stuff] = kind

    def marks(self, polygons_px: Sequence[Points] | np.ndarray, colour: RGB, haze: float = 0.0) -> None:
        """Detail on what is there, polygons of equally many corners: lane lines, windows, cracks, leaves."""
        if len(polygons_px):
            shapes = list(fixed(np.asarray(polygons_px, float)))
            cv2.fillPoly(self.image, shapes, mix(colour, self.air, haze), cv2.LINE_AA, SHIFT)

    def add_textures(self) -> None:
        height, width = self.stuff.shape
        detail = np.full_like(self.stuff, 128)
        for stuff, kind in self._textures.items():
            sheet = texture(kind, width, height)
            y, x = self.rng.randrange(height), self.rng.randrange(width)
            mask = np.equal(self.stuff, STUFF.index(stuff)).view(np.uint8)
            cv2.copyTo(sheet[y : y + height, x : x + width], mask, detail)
        gain = self.rng.uniform(0.5, 1.0)
        cv2.addWeighted(self.image, 1.0, cv2.cvtColor(detail, cv2.COLOR_GRAY2RGB), gain, -128.0 * gain, dst=self.image)


@dataclass(slots=True)
class Stage:
    width: int
    height: int
    rng: random.Random
    things: list[Thing] = field(default_factory=list)
    paint_backdrop: Callable[[], Backdrop] | None = None
    fog: RGB = (200, 205, 210)
    shadows: list[np.ndarray] = field(default_factory=list)  # of things outside the picture
    taken: list[Footprint] = field(default_factory=list)
    calm: bool = False  # no chance in light and camera
    instead: Callable[[Thing, random.Random], Thing] | None = None  # another thing in the place of one
    favour: Mapping[str, float] = field(default_factory=dict)  # category -> how much more often it is drawn
    ground: str = ""  # what all of it stands on, where a caption tells it

    def choose(self, kinds: Sequence[str], weights: Sequence[float]) -> str:
        """One of the kinds, by their weights and what is favoured."""
        favoured = [weight * self.favour.get(kind, 1.0) for kind, weight in zip(kinds, weights, strict=True)]
        return self.rng.choices(kinds, favoured)[0]

    def free(self, x: float, z: float, half_x: float, half_z: float, gap: float = 0.3) -> bool:
        """Whether a rectangle on the ground touches none that was taken; takes it then."""
        for other_x, other_z, other_hx, other_hz in self.taken:
            if abs(x - other_x) < half_x + other_hx + gap and abs(z - other_z) < half_z + other_hz + gap:
                return False
        self.taken.append((x, z, half_x, half_z))
        return True
