"""Whether pictures that were made show what was asked: a detector is asked, and pixels are.

H x W = pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import cv2
import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.instances import Masks
from visionllm.core.sample import Picture, Shows, Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval

# The eleven basic colour terms of English (Berlin and Kay 1969, "Basic color terms"), as sRGB.
BASIC = {
    "red": (200, 34, 34), "orange": (236, 130, 28), "yellow": (238, 208, 50), "green": (48, 142, 62),
    "blue": (42, 84, 190), "purple": (120, 58, 158), "pink": (236, 138, 178), "brown": (116, 72, 40),
    "black": (28, 28, 32), "white": (234, 234, 232), "gray": (130, 133, 138),
}  # fmt: skip
_GRAYS = ("black", "white", "gray")
# Shaded sides are darker, so that lightness says less of a colour than hue does.
_LIGHTNESS = 0.5
# A part of a thing that is coloured this much is what its colour is told by, not its tyres, windows and outlines.
_COLOURED = 0.25
# A colour that fills so much of the rest is one that may be told.
_FILLS = 0.35
# What moved went by more than this part of the width.
_WOBBLE = 0.05
# Small pictures are shown to the detector this large, at least.
_SIDE = 256

# Finds things of the given names in a picture.
Judge = Callable[[Picture, Sequence[str]], Masks]


@METRICS.register("shows")
class ShowsMetric:
    """Things, their colours and how they lie to each other in pictures that were made, by a detector that had no part
    in making them. The pictures that the words came from are looked at the same way: no better than they is to be had.

    Args:
        judge: the detector; what it gives back, it has found.
    """

    judged_by: ClassVar[str] = "detector"

    def __init__(self, categories: Sequence[str] = (), *, threshold: float | None = None, judge: Judge) -> None:
        self._judge = judge
        self._asked = 0
        self._made = 0
        self._values: dict[str, dict[str, dict[Hashable, list[float]]]] = {
            name: defaultdict(lambda: defaultdict(list)) for name in ("pictures", "truth")
        }

    def add(self, turn: Turn, answer: Answer, *, key: Any) -> None:
        made = answer.results.get(turn.task) if turn.task else None
        for phrase, truth, shows in zip(turn.phrases, turn.target.pictures, turn.target.shows, strict=False):
            if shows == Shows():
                continue
            self._asked += 1
            found = None if made is None else next(iter(made.of(phrase)), None)
            self._made += found is not None
            source = answer.pictures[0] if answer.pictures else None
            pictures = {"truth": truth if found is None else _as_large(truth, found), "pictures": found}
            for name, picture in pictures.items():
                for what, right in self._look(picture, shows, source, truth).items():
                    self._values[name][what][key] += [float(one) for one in right]

    def compute(self) -> dict[str, Any]:
        """Shares of what was asked that is there: ``objects``, ``colours`` of all objects with one, ``relations``,
        ``changes`` (what had to go, where it went, light), ``all`` (pictures in which nothing lacks); their 95 %
        intervals; the same of the true pictures as ``truth``; ``made``, number of ``phrases``. What a picture that was
        not made was to show is not there."""
        report: dict[str, Any] = {}
        for name, values in self._values.items():
            told: dict[str, Any] = {}
            for what in ("objects", "colours", "relations", "changes", "all"):
                by_key = list(values[what].values())
                every = [value for own in by_key for value in own]
                told[what] = float(np.mean(every)) if every else None
                told[f"{what}_interval"] = interval(by_key)
            if name == "truth":
                report["truth"] = told
            else:
                report |= told
        return report | {"made": self._made / self._asked if self._asked else None, "phrases": self._asked}

    def _box(self, picture: Picture, name: str) -> np.ndarray | None:
        """(4,) of the likeliest thing of a name, in parts of the picture; None where it is not found."""
        picture = _enlarged(picture)
        own = self._judge(picture, (name,)).of(name)
        return own.boxes_xyxy[int(own.scores.argmax())] / (*picture.size, *picture.size) if len(own) else None

    def _look(
        self, picture: Picture | None, shows: Shows, source: Picture | None, truth: Picture
    ) -> dict[str, list[bool]]:
        right: dict[str, list[bool]] = {"objects": [], "colours": [], "relations": [], "changes": []}
        where: list[np.ndarray | None] = []
        names = sorted({name for name, _ in shows.things} | set(shows.absent))
        found = None
        if picture is not None and names:
            picture = _enlarged(picture)
            found = self._judge(picture, names)
        for name, colour in shows.things:
            own = None if found is None else found.of(name)
            if own is None or picture is None or not len(own):
                where.append(None)
                right["objects"].append(False)
                right["colours"] += [False] * (colour is not None)
                continue
            best = int(own.scores.argmax())
            where.append(own.boxes_xyxy[best] / (*picture.size, *picture.size))
            right["objects"].append(True)
            if colour is not None:
                right["colours"].append(has_colour(picture.pixels[own.masks[best].dense()], colour))
        for i, relation, j in shows.relations:
            first, second = where[i], where[j]
            right["relations"].append(first is not None and second is not None and lies(first, relation, second))
        right["changes"] += [found is not None and not len(found.of(name)) for name in shows.absent]
        for i, way in shows.moved:
            assert source is not None, "what moved was in another picture"
            before, after = self._box(source, shows.things[i][0]), where[i]
            right["changes"].append(before is not None and after is not None and _went(before, way, after))
        if shows.light:
            assert source is not None, "light changes in a picture"
            right["changes"].append(picture is not None and _nearer(picture, truth, source))
        return right | {"all": [all(one for many in right.values() for one in many)]}


def _went(before_xyxy: np.ndarray, way: str, after_xyxy: np.ndarray) -> bool:
    """Whether the middle of a box went by more than a wobble; boxes in parts of the picture."""
    by = float(after_xyxy[0] + after_xyxy[2] - before_xyxy[0] - before_xyxy[2]) / 2
    return (by if way == "right" else -by) > _WOBBLE


def _nearer(picture: Picture, truth: Picture, source: Picture) -> bool:
    """Whether the mean colour of a picture is nearer to the true one's than to the source's."""
    mean, wanted, was = (one.pixels.reshape(-1, 3).mean(0) for one in (picture, truth, source))
    return bool(np.abs(mean - wanted).sum() < np.abs(mean - was).sum())


def has_colour(pixels_N3: np.ndarray, colour: str) -> bool:
    """Whether a thing of these pixels may be called so: each pixel goes to the nearest of the basic colours (CIELAB,
    lightness at half its weight); a thing is told by the colour most of its coloured pixels have, if there are enough
    of these, or by one that fills much of it.

    Args:
        colour: one of ``BASIC``.
    """
    if not len(pixels_N3):
        return False
    names = tuple(BASIC)
    own_N = _lab(pixels_N3)[:, None] - _lab(np.array(list(BASIC.values()), np.uint8))
    nearest_N = np.square(own_N * (_LIGHTNESS, 1, 1)).sum(-1).argmin(1)
    share = np.bincount(nearest_N, minlength=len(names)) / len(pixels_N3)
    asked = share[names.index(colour)]
    vivid = np.array([name not in _GRAYS for name in names])
    if asked >= _FILLS:
        return True
    if share[vivid].sum() >= _COLOURED:
        return bool(asked == share[vivid].max()) and colour not in _GRAYS
    return bool(asked == share.max())


def lies(first_xyxy: np.ndarray, relation: str, second_xyxy: np.ndarray) -> bool:
    """Whether the middle of one box lies to the other's as a relation says: left of, right of, above, below."""
    x, y = (first_xyxy[:2] + first_xyxy[2:] - second_xyxy[:2] - second_xyxy[2:]) / 2
    along = {"left of": -x, "right of": x, "above": -y, "below": y}[relation]
    return bool(along > 0)


def _lab(pixels_N3: np.ndarray) -> np.ndarray:
    """(N, 3) float32 CIELAB of uint8 sRGB."""
    return np.asarray(cv2.cvtColor(pixels_N3[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0])


def _enlarged(picture: Picture) -> Picture:
    times = _SIDE / max(picture.size)
    if times <= 1:
        return picture
    size = (round(picture.size[0] * times), round(picture.size[1] * times))
    return replace(picture, pixels=cv2.resize(picture.pixels, size, interpolation=cv2.INTER_CUBIC))


def _as_large(truth: Picture, made: Picture) -> Picture:
    """The true picture with no more pixels than the one that was made."""
    if truth.size[0] <= made.size[0]:
        return truth
    return replace(truth, pixels=cv2.resize(truth.pixels, made.size, interpolation=cv2.INTER_AREA))
