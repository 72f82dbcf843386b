"""Regions: what a user points at. A prompt says ``<region>`` where it speaks of one.

Coordinates are pixel edges of the original picture. Whatever its kind, a region is a mask in the end; the kind decides
how the mask is made of a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import cv2
import numpy as np

from visionllm.core.errors import AnnotationError, PromptError
from visionllm.core.geometry import Geometry
from visionllm.core.masks import Mask

PLACEHOLDER = "<region>"
# Width of a stroke and of a dot, as a part of the picture's longer side: about that of a finger on a screen.
_STROKE = 0.02
Pair = tuple[float, float]


@dataclass(kw_only=True, frozen=True, eq=False)
class Region:
    """One region of a picture; use one of its kinds.

    Args:
        picture: which of the pictures, counted from 0.
    """

    picture: int = 0

    # Whether it ends where the thing ends that it means, and does not merely lie on it.
    outlines: ClassVar[bool] = False

    def mask(self, size: tuple[int, int]) -> Mask:
        """Its pixels in a picture of (width, height).

        Raises:
            PromptError: it is empty, no shape, or outside the picture.
        """
        mask = self._drawn(size)
        if not mask.area:
            raise PromptError(f"{self._kind()}: holds no pixel of a picture of {size[0]} x {size[1]}")
        return mask

    def moved(self, geometry: Geometry) -> Self:
        """Through a geometry that keeps it inside the picture."""
        raise NotImplementedError

    def _drawn(self, size: tuple[int, int]) -> Mask:
        raise NotImplementedError

    def _kind(self) -> str:
        return type(self).__name__.lower()

    def _table(self, values: Any) -> np.ndarray:
        """(...) float64.

        Raises:
            PromptError: they are no numbers, or do not make a table.
        """
        try:
            table = np.asarray(values)
        except ValueError:  # rows of different lengths
            table = np.asarray(None)
        if table.dtype.kind not in "iuf":
            raise PromptError(f"{self._kind()}: expected numbers, got {values!r}")
        return table.astype(np.float64)

    def _check(self, points_xy: np.ndarray, size: tuple[int, int]) -> None:
        """Whether (N, 2) points lie in the picture; the first that does not is named."""
        finite = np.isfinite(points_xy).all(1)
        inside = ((points_xy >= 0) & (points_xy <= np.array(size))).all(1)
        for wrong, words in (
            (~finite, "is not finite"),
            (~inside, f"reaches out of the picture of {size[0]} x {size[1]} pixels"),
        ):
            if wrong.any():
                x, y = points_xy[wrong][0]
                raise PromptError(f"{self._kind()}: ({x:g}, {y:g}) {words}")


@dataclass(frozen=True, eq=False)
class Point(Region):
    """A place (x, y): the thing there."""

    x: float
    y: float

    def moved(self, geometry: Geometry) -> Self:
        x, y = geometry.points(np.array([self.x, self.y])).tolist()
        return replace(self, x=x, y=y)

    def _drawn(self, size: tuple[int, int]) -> Mask:
        place = self._table([[self.x, self.y]])
        self._check(place, size)
        return _strokes(place, size)


@dataclass(frozen=True, eq=False)
class Box(Region):
    """A box by its corners: the thing it frames."""

    x1: float
    y1: float
    x2: float
    y2: float

    outlines: ClassVar[bool] = True

    def moved(self, geometry: Geometry) -> Self:
        box = geometry.boxes_exact(np.array([self.x1, self.y1, self.x2, self.y2]))
        x1, y1, x2, y2 = np.clip(box, 0, np.tile(geometry.output_size, 2)).tolist()
        return replace(self, x1=x1, y1=y1, x2=x2, y2=y2)

    def _drawn(self, size: tuple[int, int]) -> Mask:
        corners = self._table([[self.x1, self.y1], [self.x2, self.y2]])
        self._check(corners, size)
        if (corners[1] <= corners[0]).any():
            raise PromptError(f"box: {corners.ravel().tolist()} has no area; give x1 < x2 and y1 < y2")
        (x1, y1), (x2, y2) = np.floor(corners[0]).astype(int), np.ceil(corners[1]).astype(int)
        return Mask(patch=np.ones((y2 - y1, x2 - x1), bool), corner=(int(x1), int(y1)), size=size)


@dataclass(frozen=True, eq=False)
class _Drawn(Region):
    """Points (x, y) in the order in which they were drawn."""

    points_xy: Sequence[Pair]

    def moved(self, geometry: Geometry) -> Self:
        return replace(self, points_xy=_pairs(geometry.points(np.array(self.points_xy))))

    def _places(self, size: tuple[int, int], *, least: int) -> np.ndarray:
        """(N, 2), checked."""
        table = np.atleast_1d(self._table(self.points_xy))
        if table.ndim != 2 or table.shape[1] != 2 or len(table) < least:
            raise PromptError(
                f"{self._kind()}: needs {least} points (x, y) or more, got {len(table)} of shape {table.shape}"
            )
        self._check(table, size)
        return table


@dataclass(frozen=True, eq=False)
class Scribble(_Drawn):
    """A line through points: the thing it was drawn on."""

    def _drawn(self, size: tuple[int, int]) -> Mask:
        return _strokes(self._places(size, least=2), size)


@dataclass(frozen=True, eq=False)
class Polygon(_Drawn):
    """An outline through points, closed by itself."""

    outlines: ClassVar[bool] = True

    def _drawn(self, size: tuple[int, int]) -> Mask:
        points = self._places(size, least=3)
        try:
            return Mask.from_polygons([points.ravel().tolist()], size, source="polygon")
        except AnnotationError as error:
            raise PromptError(str(error)) from None


@dataclass(frozen=True, eq=False)
class Pixels(Region):
    """A mask: a ``Mask``, or (H, W) bool."""

    shape: Any

    outlines: ClassVar[bool] = True

    def moved(self, geometry: Geometry) -> Self:
        return replace(self, shape=self._own().moved(geometry))

    def _drawn(self, size: tuple[int, int]) -> Mask:
        mask = self._own()
        if mask.size != size:
            raise PromptError(
                f"pixels: a mask of {mask.size[0]} x {mask.size[1]} on a picture of {size[0]} x {size[1]}"
            )
        return mask

    def _own(self) -> Mask:
        if isinstance(self.shape, Mask):
            return self.shape
        if not isinstance(self.shape, np.ndarray) or self.shape.ndim != 2 or self.shape.dtype != np.bool_:
            shape = getattr(self.shape, "shape", type(self.shape).__name__)
            kind = getattr(self.shape, "dtype", "")
            raise PromptError(f"pixels: expected a Mask or (H, W) bool, got {shape} {kind}".rstrip())
        return Mask.of(self.shape)


def region_name(number: int) -> str:
    """What a conversation calls its region of this number, counted from 0."""
    return f"region {number + 1}"


def picture_name(number: int) -> str:
    """What a conversation about several pictures calls the one of this number, counted from 0."""
    return f"picture {number + 1}"


def named_picture(phrase: str, count: int) -> int | None:
    """The picture that a phrase is about, of ``count``, by its last words: "cars in picture 2" is about the second."""
    return next((number for number in range(count) if phrase.casefold().endswith(f" in {picture_name(number)}")), None)


def named_region(phrase: str, regions: Sequence[Region]) -> Region | None:
    """The region that a phrase speaks of."""
    return next((region for number, region in enumerate(regions) if phrase == region_name(number)), None)


def check_regions(regions: Sequence[Any], sizes: Sequence[tuple[int, int]], prompt: str) -> None:
    """Whether regions fit the prompt and the pictures.

    Args:
        sizes: (width, height) of each picture.

    Raises:
        PromptError: their number is not that of the placeholders, or one is of no picture or no part of it.
    """
    count = prompt.count(PLACEHOLDER)
    if count != len(regions):
        raise PromptError(f"prompt: says {PLACEHOLDER} {count} times, and {len(regions)} regions are given")
    for number, region in enumerate(regions):
        where = f"regions[{number}]"
        if not isinstance(region, Region):
            raise PromptError(f"{where}: expected Box(...), Point(...) or another region, got {type(region).__name__}")
        if not isinstance(region.picture, (int, np.integer)):
            raise PromptError(f"{where}: picture: expected a whole number, got {region.picture!r}")
        if not 0 <= region.picture < len(sizes):
            raise PromptError(f"{where}: of picture {region.picture}; there are {len(sizes)}, counted from 0")
        try:
            region.mask(sizes[region.picture])
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None


def _pairs(points_xy: np.ndarray) -> tuple[Pair, ...]:
    return tuple((float(x), float(y)) for x, y in points_xy)


def _strokes(points_xy: np.ndarray, size: tuple[int, int]) -> Mask:
    """A line of the width of a finger; one point is a dot."""
    canvas = np.zeros((size[1], size[0]), np.uint8)
    width = max(1, round(_STROKE * max(size)))
    # OpenCV counts pixels, we count edges: the pixel a point lies in.
    places = np.clip(np.floor(points_xy), 0, np.array(size) - 1).astype(np.int32)
    cv2.polylines(canvas, [places[:, None]], False, 1, width)
    for x, y in places.tolist():
        cv2.circle(canvas, (x, y), width // 2, 1, cv2.FILLED)
    return Mask.of(canvas.astype(bool))
