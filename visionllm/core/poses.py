"""Keypoints: which points a kind of thing has, and where they are on one thing of a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from visionllm.core.errors import ShapeError
from visionllm.core.geometry import Geometry

UNKNOWN, HIDDEN, VISIBLE = 0, 1, 2
# Sigma of points whose owner gives none; part of a box's area that a body fills (MPII).
PLAIN_SIGMA, BODY = 0.05, 0.53
# Words that change places in a mirror. The near side of a horse is its left one.
_MIRROR = {"left": "right", "right": "left", "near": "off", "off": "near"}


@dataclass(kw_only=True, frozen=True)
class Skeleton:
    """The keypoints of a kind of thing, in the order of its annotations.

    Args:
        name: for messages.
        keypoints: plain words, no two alike ("left front paw").
        edges: pairs of indices that a drawing joins.
        sigmas: how exactly each point can be placed, the constants of object keypoint similarity (COCO); None where the
            owner gives none.

    Raises:
        ShapeError: two points have one name, an edge leads to no point, or the sigmas are of another number.
    """

    name: str
    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for place, word in enumerate(self.keypoints):
            if word in self.keypoints[:place]:
                raise ShapeError(f"skeleton {self.name}: {word!r} stands twice")
        for edge in self.edges:
            if not all(0 <= end < len(self.keypoints) for end in edge):
                raise ShapeError(f"skeleton {self.name}: edge {list(edge)} leads to no point of {len(self.keypoints)}")
        if self.sigmas is not None and len(self.sigmas) != len(self.keypoints):
            raise ShapeError(f"skeleton {self.name}: {len(self.sigmas)} sigmas for {len(self.keypoints)} points")

    def __len__(self) -> int:
        return len(self.keypoints)

    @cached_property
    def spread(self) -> np.ndarray:
        """(K,) float64 sigmas, a plain one where the owner gives none."""
        return np.array(self.sigmas or [PLAIN_SIGMA] * len(self), np.float64)

    def named(self, names: Sequence[str]) -> Skeleton:
        """The points of these names, in their order, with the edges between them; names it lacks stand alone."""
        place = {self.keypoints.index(name): new for new, name in enumerate(names) if name in self.keypoints}
        edges = tuple((place[a], place[b]) for a, b in self.edges if a in place and b in place)
        spread = {new: self.spread[old] for old, new in place.items()}
        sigmas = tuple(float(spread.get(new, PLAIN_SIGMA)) for new in range(len(names)))
        return Skeleton(name=self.name, keypoints=tuple(names), edges=edges, sigmas=self.sigmas and sigmas)

    @cached_property
    def flips(self) -> tuple[int, ...]:
        """For each point the one that takes its name in a mirror; itself where it has no side.

        Raises:
            ShapeError: a point of one side has no partner.
        """
        found = []
        for word in self.keypoints:
            other = " ".join(_MIRROR.get(part, part) for part in word.split(" "))
            if other not in self.keypoints:
                raise ShapeError(f"skeleton {self.name}: {word!r} has no {other!r} to change places with")
            found.append(self.keypoints.index(other))
        return tuple(found)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Pose:
    """The keypoints of one thing.

    Args:
        points_xy: (K, 2) float32, pixels of the picture, edges; meaningless where unknown.
        visibility: (K,) int8: 0 unknown, 1 hidden but known, 2 visible (COCO's flags).
        skeleton: what the points are.

    Raises:
        ShapeError: the numbers of points differ, or a flag or a known point is not sound.
    """

    points_xy: np.ndarray
    visibility: np.ndarray
    skeleton: Skeleton

    def __post_init__(self) -> None:
        count = len(self.skeleton)
        if self.points_xy.shape != (count, 2) or self.visibility.shape != (count,):
            raise ShapeError(
                f"a pose of {self.skeleton.name} has {count} points, got {self.points_xy.shape} and "
                f"{self.visibility.shape}"
            )
        if not np.isin(self.visibility, (UNKNOWN, HIDDEN, VISIBLE)).all():
            raise ShapeError(f"visibility must be 0, 1 or 2, got {sorted(set(self.visibility.tolist()))}")
        if not np.isfinite(self.points_xy[self.known]).all():
            raise ShapeError("a known point is not finite")

    @property
    def known(self) -> np.ndarray:
        """(K,) bool."""
        return self.visibility != UNKNOWN

    def named(self, names: Sequence[str]) -> Pose:
        """The points of these names; those that the skeleton lacks are unknown."""
        points, visibility = np.zeros((len(names), 2), np.float32), np.zeros(len(names), np.int8)
        for new, name in enumerate(names):
            if name in self.skeleton.keypoints:
                old = self.skeleton.keypoints.index(name)
                points[new], visibility[new] = self.points_xy[old], self.visibility[old]
        return Pose(points_xy=points, visibility=visibility, skeleton=self.skeleton.named(names))

    def flat(self) -> list[float]:
        """COCO's form: x, y, flag of every point, zeros where unknown."""
        table = np.concatenate([np.where(self.known[:, None], self.points_xy, 0), self.visibility[:, None]], 1)
        return [float(value) for value in table.ravel()]

    def moved(self, geometry: Geometry) -> Pose:
        """Through a geometry: in a mirror sides change names, and what leaves the picture is no longer known."""
        points, visibility = geometry.points(self.points_xy), self.visibility
        if geometry.mirrors:
            order = list(self.skeleton.flips)
            points, visibility = points[order], visibility[order]
        inside = ((points >= 0) & (points <= np.array(geometry.output_size))).all(1)
        kept = np.where(inside, visibility, UNKNOWN).astype(np.int8)
        return Pose(points_xy=np.where(kept[:, None] != UNKNOWN, points, 0).astype(np.float32), visibility=kept,
                    skeleton=self.skeleton)  # fmt: skip


def plain_names(raw: Sequence[str]) -> tuple[str, ...]:
    """Names of keypoints as annotation files write them, in plain words: ``L_F_Elbow`` is ``left front elbow``."""
    return tuple(_plain(name) for name in raw)


def _plain(name: str) -> str:
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.strip().replace("_", " ").replace("-", " "))
    words = re.sub(r"(?<=[A-Za-z])(?=\d)", " ", text).split()
    # A side in capitals stands first: "foreleg R 1" is the right foreleg's first point.
    sides = {"L": "left", "R": "right"}
    side = next((sides[word] for word in words if word in sides), None)
    rest = [{"F": "front", "B": "back"}.get(word, word.lower()) for word in words if word not in sides]
    return " ".join([side, *rest] if side else rest)
