"""From a seed to a labelled picture: place, keep what can be seen well, paint, measure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from visionllm.core.sample import Question, Shows

from . import field as meadow
from . import sketch, street, table
from .canvas import paint, stamp
from .catalogue import SPECIAL, STUFF, WORLDS
from .lighting import cast_shadows, develop
from .riders import COCO_KEYPOINTS, COCO_SKELETON
from .stage import Stage, Thing

MIN_SIDE = 7.0  # pixels, at a width of 320 and below; grows with the picture
MIN_VISIBLE = 0.25
MIN_INSIDE = 0.45  # share of the drawn extent that must lie inside the picture
MOST = 14
_BUILD = {"street": street.build, "table": table.build, "field": meadow.build, "crowd": meadow.crowd,
          "sketch": sketch.build}  # fmt: skip

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One labelled object; boxes are xyxy in pixels, x2 is the last column + 1."""

    category: str
    box_xyxy: Box
    full_box_xyxy: Box
    keypoints: np.ndarray | None
    depth: int
    attributes: dict[str, str]
    visible: float
    carrier: int = -1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture and all that is true of it; objects are ordered from the farthest to the nearest."""

    STUFF = STUFF
    coco_keypoint_names = COCO_KEYPOINTS
    coco_skeleton = COCO_SKELETON

    seed: int
    world: str
    image: np.ndarray = field(repr=False)
    objects: tuple[SceneObject, ...]
    id_map: np.ndarray = field(repr=False)
    stuff_map: np.ndarray = field(repr=False)
    ground: str = ""

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: the visible pixels of an object."""
        return np.equal(self.id_map, index)

    def stuff(self, name: str) -> np.ndarray:
        """(H, W) bool: the pixels of a kind of stuff that no object hides."""
        return np.equal(self.stuff_map, STUFF.index(name)) & (self.id_map < 0)

    @cached_property
    def _language(self) -> Language:
        return Language(self)

    def relations(self) -> list[tuple[int, str, int]]:
        return self._language.relations()

    def caption(self) -> str:
        return self._language.caption()

    def captions(self) -> tuple[tuple[str, Shows], ...]:
        """What may be said of the whole picture, the fullest first, and what a picture of it must show."""
        return self._language.captions()

    def grounded_caption(self) -> list[tuple[str, tuple[int, ...]]]:
        return self._language.grounded_caption()

    def referring(self, k: int) -> list[tuple[str, tuple[int, ...]]]:
        return self._language.referring(k)

    def questions(self) -> list[Question]:
        return self._language.questions()


def draw_scene(
    seed: int,
    *,
    size: tuple[int, int] = (320, 240),
    world: str | None = None,
    favour: Mapping[str, float] | None = None,
) -> Scene:
    """Draw the picture of a seed; a pure function of its arguments.

    Args:
        size: (width, height).
        favour: category -> how many times as often it is drawn.
    """
    chosen, stage, marks = staged(seed, size=size, world=world, favour=favour)
    return render(seed, chosen, stage, marks)


def staged(
    seed: int, *, size: tuple[int, int], world: str | None = None, favour: Mapping[str, float] | None = None
) -> tuple[str, Stage, _Marks]:
    """The world of a seed, its stage, and what is to be drawn of it."""
    width, height = size
    assert min(size) >= 64, f"size must be at least 64 x 64, got {size}"
    known = (*WORLDS, *SPECIAL)
    assert world is None or world in known, f"world must be one of {known}, got {world!r}"
    attempt = 0
    while True:
        rng = random.Random(f"{seed}/{attempt}")
        chosen = rng.choices(WORLDS, (0.5, 0.25, 0.25))[0]
        stage = Stage(width=width, height=height, rng=rng, favour=favour or {})
        _BUILD[world or chosen](stage)
        marks = _keep(stage)
        if len(marks.full) >= (2 if not stage.calm else len(stage.things)):
            return world or chosen, stage, marks
        attempt += 1


def _keep(stage: Stage) -> _Marks:
    """The things worth drawing, far to near: none too small, too hidden or too far outside the picture."""
    things = sorted(stage.things, key=lambda thing: -thing.distance)
    things = _without(things, [thing for thing in things if thing.category and not _inside(thing, stage)])
    prints: dict[int, _Print] = {}
    while True:
        labelled = [thing for thing in things if thing.category]
        while len(labelled) > MOST:
            things = _without(things, [stage.rng.choice(labelled)])
            labelled = [thing for thing in things if thing.category]
        marks = _Marks(stage, things, prints)
        poor = marks.poor()
        if not poor:
            return marks
        things = _without(things, poor)


def _without(things: list[Thing], dropped: list[Thing]) -> list[Thing]:
    """A rider and what he rides go together."""
    gone = {id(thing) for thing in dropped}
    gone |= {id(thing.carrier) for thing in dropped if thing.carrier}
    return [t for t in things if id(t) not in gone and (t.carrier is None or id(t.carrier) not in gone)]


def _inside(thing: Thing, stage: Stage) -> bool:
    x0, y0, x1, y1 = thing.extent()
    wide = min(x1, stage.width) - max(x0, 0.0)
    tall = min(y1, stage.height) - max(y0, 0.0)
    return wide > 0 and tall > 0 and wide * tall >= MIN_INSIDE * (x1 - x0) * (y1 - y0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Print:
    """What a thing covers if nothing hides it: a window of the picture, its mask in there, its pixels and extent."""

    window: tuple[slice, slice]
    mask: np.ndarray
    full: tuple[int, Box]


class _Marks:
    """The id map of a list of things, and what was measured while it was stamped.

    prints remembers what each thing covers, so that stamping it again in another list is one masked copy.
    """

    def __init__(self, stage: Stage, things: list[Thing], prints: dict[int, _Print]) -> None:
        self.things = things
        self.id_map = np.full((stage.height, stage.width), -1, np.int16)
        self.index: dict[int, int] = {}
        self._limit = MIN_SIDE * max(1.0, min(stage.width / 320.0, stage.height / 240.0))
        mine: list[_Print] = []
        for thing in things:
            if thing.sprite.support:
                stamp(self.id_map, thing.sprite.support, -1)
            if not thing.category:
                stamp(self.id_map, thing.sprite.strokes, -1)
                continue
            number = self.index[id(thing)] = len(mine)
            known = prints.get(id(thing))
            if known:
                np.copyto(self.id_map[known.window], number, where=known.mask)
            else:
                known = prints[id(thing)] = self._stamp(thing, number)
            mine.append(known)
        self.full: list[tuple[int, Box]] = [known.full for known in mine]
        self.now: list[tuple[int, Box]] = [
            _measure(np.equal(self.id_map[known.window], number), known.window) for number, known in enumerate(mine)
        ]

    def _stamp(self, thing: Thing, number: int) -> _Print:
        stamp(self.id_map, thing.sprite.strokes, number)
        window = self._window(thing)
        mask = np.equal(self.id_map[window], number)
        return _Print(window=window, mask=mask, full=_measure(mask, window))

    def _window(self, thing: Thing) -> tuple[slice, slice]:
        x0, y0, x1, y1 = thing.extent()
        pad = 2 + max(thickness for _, _, thickness in thing.sprite.strokes)
        height, width = self.id_map.shape
        return (
            slice(max(0, int(y0) - pad), min(height, int(y1) + pad + 1)),
            slice(max(0, int(x0) - pad), min(width, int(x1) + pad + 1)),
        )

    def poor(self) -> list[Thing]:
        out = []
        for thing in self.things:
            if not thing.category:
                continue
            number = self.index[id(thing)]
            count, (x0, y0, x1, y1) = self.now[number]
            if min(x1 - x0, y1 - y0) < self._limit or count < MIN_VISIBLE * self.full[number][0]:
                out.append(thing)
        return out


def _measure(mask: np.ndarray, window: tuple[slice, slice]) -> tuple[int, Box]:
    """Pixels of a mask that lies in a window of the picture, and their extent in the picture."""
    seen = mask.view(np.uint8)
    count = cv2.countNonZero(seen)
    if not count:
        return 0, (0.0, 0.0, 0.0, 0.0)
    left, top, width, height = cv2.boundingRect(seen)
    x, y = window[1].start + left, window[0].start + top
    return count, (float(x), float(y), float(x + width), float(y + height))


def marks_of(stage: Stage, things: list[Thing]) -> _Marks:
    """What is to be drawn where the things are others than ``staged`` chose."""
    return _Marks(stage, things, {})


def render(seed: int, world: str, stage: Stage, marks: _Marks, mood: int | None = None) -> Scene:
    """Paint it. What chance decides is drawn from the stage; ``mood`` is a time of day in its place."""
    assert stage.paint_backdrop is not None
    things, drop = marks.things, stage.paint_backdrop()
    image, stuff = drop.image, drop.stuff
    cast_shadows(image, stage.shadows + [shape for thing in things for shape in thing.sprite.shadows], stage.rng)
    for thing in things:
        if thing.sprite.support:
            paint(image, thing.sprite.support)
            stamp(stuff, thing.sprite.support, STUFF.index(thing.stuff))
        if not thing.category:
            stamp(stuff, thing.sprite.strokes, STUFF.index(thing.stuff))
        paint(image, thing.sprite.strokes)
    labelled = [thing for thing in things if thing.category]
    objects = tuple(_describe(marks, thing, number, len(labelled)) for number, thing in enumerate(labelled))
    return Scene(
        seed=seed,
        world=world,
        image=develop(image, stage.rng, mood, calm=stage.calm),
        ground=stage.ground,
        objects=objects,
        id_map=marks.id_map,
        stuff_map=stuff,
    )


def _describe(marks: _Marks, thing: Thing, number: int, total: int) -> SceneObject:
    count, box = marks.now[number]
    full_count, full_box = marks.full[number]
    height, width = marks.id_map.shape
    share = ((box[2] - box[0]) * (box[3] - box[1]) / (width * height)) ** 0.5
    attributes = dict(thing.sprite.attributes)
    attributes["size"] = "small" if share < 0.1 else "large" if share > 0.3 else "medium"
    return SceneObject(
        category=thing.category, box_xyxy=box, full_box_xyxy=full_box,
        keypoints=_seen_keypoints(thing.sprite.keypoints, marks.id_map, number),
        depth=total - 1 - number, attributes=attributes, visible=count / full_count,
        carrier=marks.index[id(thing.carrier)] if thing.carrier else -1,
    )  # fmt: skip


def _seen_keypoints(keypoints: np.ndarray | None, id_map: np.ndarray, number: int) -> np.ndarray | None:
    """COCO visibility: 0 outside the picture, 1 hidden by anything, 2 seen."""
    if keypoints is None:
        return None
    out = keypoints.copy()
    height, width = id_map.shape
    for k, (x, y, _) in enumerate(keypoints.tolist()):
        if not (0 <= x < width and 0 <= y < height):
            out[k] = 0.0
            continue
        column, row = int(x), int(y)
        if id_map.item(row, column) == number:
            continue
        around = id_map[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        if number not in around:
            out[k, 2] = 1.0
    return out


from .language import Language  # noqa: E402  (the language of a scene needs no drawing)

__all__ = ["Scene", "SceneObject", "draw_scene"]
