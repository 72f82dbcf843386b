"""One mask of a picture, and the two ways COCO writes it: run-length codes and polygons, both checked when read.

Beside it the soft mask, which says of every pixel how likely it is.

A run-length code lists run lengths down the columns, the first run being of zeros; compressed, the runs are a string.
Sizes are (width, height), except in a code, whose ``size`` is [height, width].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionllm.core.errors import AnnotationError, ShapeError
from visionllm.core.geometry import Geometry

Size = tuple[int, int]


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Mask:
    """The pixels of one thing, kept as the window of the picture that holds them: a hundred of them stay small.

    Args:
        patch: (h, w) bool.
        corner: (x, y) of the patch's first pixel in the picture.
        size: (width, height) of the picture.

    Raises:
        ShapeError: the patch is not of two dimensions and bool, or reaches out of the picture.
    """

    patch: np.ndarray
    corner: tuple[int, int]
    size: Size

    def __post_init__(self) -> None:
        if self.patch.ndim != 2 or self.patch.dtype != np.bool_:
            raise ShapeError(f"a mask must be (h, w) bool, got {self.patch.shape} {self.patch.dtype}")
        (x, y), (height, width) = self.corner, self.patch.shape
        if x < 0 or y < 0 or x + width > self.size[0] or y + height > self.size[1]:
            raise ShapeError(f"a mask of {width} x {height} at {self.corner} reaches out of a picture of {self.size}")

    @classmethod
    def of(cls, mask_HW: np.ndarray) -> Mask:
        """From (H, W) bool of the whole picture."""
        if mask_HW.ndim != 2 or mask_HW.dtype != np.bool_:
            raise ShapeError(f"a mask must be (H, W) bool, got {mask_HW.shape} {mask_HW.dtype}")
        size = (mask_HW.shape[1], mask_HW.shape[0])
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        if not len(rows):
            return cls(patch=np.zeros((0, 0), bool), corner=(0, 0), size=size)
        y1, y2, x1, x2 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        return cls(patch=mask_HW[y1:y2, x1:x2].copy(), corner=(x1, y1), size=size)

    @classmethod
    def from_rle(cls, code: Mapping[str, Any], *, size: Size | None = None, source: str = "mask") -> Mask:
        """From a COCO run-length code, compressed or not.

        Args:
            size: (width, height) that the code must have; None takes any.
            source: what errors begin with.

        Raises:
            AnnotationError: it is no such code, of another size, or its runs do not add up to the picture.
        """
        if not isinstance(code, Mapping) or not {"size", "counts"} <= code.keys():
            raise AnnotationError(f"{source}: a run-length code has size and counts")
        height, width = _code_size(code["size"], size, source)
        counts = _counts(code["counts"], source)
        if counts and min(counts) < 0:
            raise AnnotationError(f"{source}.counts: run {counts.index(min(counts))} is negative ({min(counts)})")
        total = sum(counts)
        if total != height * width:
            length = "short" if total < height * width else "long"
            raise AnnotationError(
                f"{source}.counts: too {length}, the runs add up to {total} pixels, a size of {height} x {width} has "
                f"{height * width}"
            )
        values = np.arange(len(counts)) % 2 == 1
        return cls.of(np.repeat(values, counts).reshape(width, height).T)

    @classmethod
    def from_polygons(cls, polygons: Sequence[Sequence[float]], size: Size, *, source: str = "mask") -> Mask:
        """The union of polygons ``[x1, y1, x2, y2, ...]`` in pixel edges, filled as COCO's own tools fill them.

        Raises:
            AnnotationError: a polygon has an odd number of values, fewer than three points, or one that is not finite.
        """
        from faster_coco_eval.core import mask as coco

        flat = []
        for number, polygon in enumerate(polygons):
            values = _numbers(polygon, f"{source}.segmentation[{number}]")
            if len(values) % 2 or len(values) < 6:
                raise AnnotationError(
                    f"{source}.segmentation[{number}]: {len(values)} values; a polygon needs three points x, y or more"
                )
            flat.append(values)
        if not flat:
            raise AnnotationError(f"{source}.segmentation: no polygon")
        return cls.of(coco.decode(coco.merge(coco.frPyObjects(flat, size[1], size[0]))).astype(bool))

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.patch.sum())

    @property
    def box_xyxy(self) -> np.ndarray:
        """(4,) float32 edges of the pixels set; zeros for an empty mask."""
        rows, columns = np.flatnonzero(self.patch.any(1)), np.flatnonzero(self.patch.any(0))
        if not len(rows):
            return np.zeros(4, np.float32)
        x, y = self.corner
        return np.array([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1], np.float32)

    def dense(self) -> np.ndarray:
        """(H, W) bool of the whole picture."""
        whole = np.zeros((self.size[1], self.size[0]), bool)
        self.paste(whole, True)
        return whole

    def paste(self, canvas_HW: np.ndarray, value: Any) -> None:
        """Write ``value`` where the mask is set, in place."""
        (x, y), (height, width) = self.corner, self.patch.shape
        canvas_HW[y : y + height, x : x + width][self.patch] = value

    def rle(self) -> dict[str, Any]:
        """COCO's compressed run-length code; ``counts`` is a str, so JSON can hold it."""
        from faster_coco_eval.core import mask as coco

        code = coco.encode(np.asfortranarray(self.dense().astype(np.uint8)))
        counts = code["counts"]
        return {
            "size": [self.size[1], self.size[0]],
            "counts": counts.decode() if isinstance(counts, bytes) else counts,
        }

    def moved(self, geometry: Geometry) -> Mask:
        """Through a geometry of pictures of this size; a pixel of the result is set where half of it is covered."""
        (x, y), (height, width) = self.corner, self.patch.shape
        if not self.patch.any():
            return Mask(patch=np.zeros((0, 0), bool), corner=(0, 0), size=geometry.output_size)
        window = Geometry.crop(self.size, (x, y, x + width, y + height)).inverse().then(geometry)
        return Mask.of(window.mask(self.patch))

    def at(self, points_norm: np.ndarray) -> np.ndarray:
        """(..., 2) points normalised by the picture -> (...) bool: whether the pixel under each is set."""
        place = np.floor(points_norm * np.array(self.size)).astype(np.int64) - np.array(self.corner)
        inside = ((place >= 0) & (place < np.array(self.patch.shape[::-1]))).all(-1)
        if not inside.any():
            return inside
        place = np.where(inside[..., None], place, 0)
        return inside & self.patch[place[..., 1], place[..., 0]]

    def intersection(self, other: Mask) -> int:
        """Number of pixels set in both.

        Raises:
            ShapeError: they are of pictures of different sizes.
        """
        if self.size != other.size:
            raise ShapeError(f"masks of pictures of {self.size} and {other.size} cannot be compared")
        (ax, ay), (bx, by) = self.corner, other.corner
        x1, y1 = max(ax, bx), max(ay, by)
        x2 = min(ax + self.patch.shape[1], bx + other.patch.shape[1])
        y2 = min(ay + self.patch.shape[0], by + other.patch.shape[0])
        if x2 <= x1 or y2 <= y1:
            return 0
        return int(
            (self.patch[y1 - ay : y2 - ay, x1 - ax : x2 - ax] & other.patch[y1 - by : y2 - by, x1 - bx : x2 - bx]).sum()
        )

    def iou(self, other: Mask) -> float:
        """Intersection over union; two empty masks have 0."""
        both = self.intersection(other)
        union = self.area + other.area - both
        return both / union if union else 0.0


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class SoftMask:
    """How likely each pixel is, kept as the window of the picture where that is not nothing.

    Args:
        patch: (h, w) uint8, likelihood times 255.
        corner: (x, y) of the patch's first pixel in the picture.
        size: (width, height) of the picture.
        threshold: likelihood from which on a pixel counts; 0 takes all that are likely at all.

    Raises:
        ShapeError: the patch is not of two dimensions and uint8, or reaches out of the picture.
    """

    patch: np.ndarray
    corner: tuple[int, int]
    size: Size
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.patch.ndim != 2 or self.patch.dtype != np.uint8:
            raise ShapeError(f"a soft mask must be (h, w) uint8, got {self.patch.shape} {self.patch.dtype}")
        Mask(patch=self.patch > 0, corner=self.corner, size=self.size)

    @classmethod
    def any_of(cls, masks: Iterable[Mask], scores: Iterable[float], size: Size, threshold: float = 0.0) -> SoftMask:
        """That a pixel lies in at least one of some masks, each right with its score, on its own (noisy or).

        Args:
            scores: in [0, 1], one a mask.
            size: (width, height) of the picture, for no masks at all.
        """
        kept = [(mask, score) for mask, score in zip(masks, scores, strict=True) if mask.patch.size and score > 0]
        if not kept:
            return cls(patch=np.zeros((0, 0), np.uint8), corner=(0, 0), size=size, threshold=threshold)
        x1, y1 = (min(mask.corner[axis] for mask, _ in kept) for axis in (0, 1))
        x2, y2 = (max(mask.corner[axis] + mask.patch.shape[1 - axis] for mask, _ in kept) for axis in (0, 1))
        in_none = np.ones((y2 - y1, x2 - x1), np.float32)
        for mask, score in kept:
            (x, y), (height, width) = mask.corner, mask.patch.shape
            in_none[y - y1 : y - y1 + height, x - x1 : x - x1 + width][mask.patch] *= 1 - score
        patch = np.rint(255 * (1 - in_none)).astype(np.uint8)
        return cls(patch=patch, corner=(x1, y1), size=size, threshold=threshold)

    @property
    def peak(self) -> float:
        """The likeliest pixel's likelihood; 0 where there is none."""
        return float(self.patch.max(initial=0)) / 255

    @property
    def level(self) -> int:
        """Least value of the patch that counts."""
        return max(1, round(255 * self.threshold))

    def mask(self) -> Mask:
        """The pixels that count."""
        return Mask(patch=self.patch >= self.level, corner=self.corner, size=self.size)

    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that the patch lies in."""
        (x, y), (height, width) = self.corner, self.patch.shape
        return slice(y, y + height), slice(x, x + width)


def _code_size(value: Any, expected: Size | None, source: str) -> tuple[int, int]:
    if not isinstance(value, Sequence) or len(value) != 2 or any(type(v) is not int or v < 1 for v in value):
        raise AnnotationError(f"{source}.size: expected [height, width], got {value!r}")
    if expected is not None and (value[1], value[0]) != expected:
        raise AnnotationError(
            f"{source}.size: [{value[0]}, {value[1]}], but the picture is {expected[1]} high, {expected[0]} wide"
        )
    return value[0], value[1]


def _counts(value: Any, source: str) -> list[int]:
    if isinstance(value, (str, bytes)):
        return _decompress(value, source)
    if not isinstance(value, Sequence) or any(type(run) is not int for run in value):
        raise AnnotationError(f"{source}.counts: expected whole numbers or a compressed string")
    return list(value)


def _decompress(text: str | bytes, source: str) -> list[int]:
    """Runs of a compressed code: five bits a letter (from code 48 on), low bits first; the sixth says that more follow.

    The fifth bit of the last letter is the sign. From the fourth run on, a number is the difference to the run two
    places before it.
    """
    codes = text.encode("ascii", "replace") if isinstance(text, str) else text
    counts: list[int] = []
    number = shift = 0
    for place, code in enumerate(codes):
        letter = code - 48
        if not 0 <= letter < 64 or shift > 40:
            raise AnnotationError(f"{source}.counts: not a run-length string at letter {place}")
        number |= (letter & 31) << shift
        shift += 5
        if letter & 32:
            continue
        if letter & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    if shift:
        raise AnnotationError(f"{source}.counts: the run-length string breaks off inside its last number")
    return counts


def _numbers(values: Any, source: str) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise AnnotationError(f"{source}: expected numbers x1, y1, x2, y2, ...")
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise AnnotationError(f"{source}: value {place} is {value!r}, not a finite number")
    return [float(value) for value in values]
