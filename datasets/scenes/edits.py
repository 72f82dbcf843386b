"""Pairs of pictures before and after one change, told in words: the same scene drawn twice."""

from __future__ import annotations

import colorsys
import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from visionllm.core.sample import Shows

from .canvas import SHIFT, Sprite
from .language import article, colour_of
from .lighting import DAY, NIGHT
from .palette import COLOURS, RGB
from .scene import Scene, marks_of, render, staged
from .stage import Stage, Thing

KINDS = ("remove", "add", "replace", "recolour", "move", "night", "day")
_GRAYS = ("black", "white", "gray")
# A hue as near as this to that of a thing's colour is a shade of it, in turns.
_NEAR = 0.06
# How far things move, of the width; how much of a thing may be hidden that is spoken of.
_FAR = (0.15, 0.35)
_SEEN = 0.6
# Other words for a change, by kind: ``one`` is the thing spoken of, ``other`` what is new (a thing, a colour, a side).
_WORDINGS = {
    "remove": ("delete {one}", "erase {one}", "get rid of {one}", "take {one} away"),
    "add": ("insert {other}", "put {other} into the picture", "place {other} here"),
    "replace": ("turn {one} into {other}", "change {one} into {other}", "swap {one} for {other}", "make {one} {other}"),
    "recolour": ("paint {one} {other}", "turn {one} {other}", "colour {one} {other}", "color {one} {other}",
                 "change the colour of {one} to {other}"),
    "move": ("shift {one} to the {other}", "move {one} {other}", "put {one} further to the {other}"),
    "night": ("make it dark", "make it look like night", "change it to night"),
    "day": ("make it bright", "make it look like day", "change it to day"),
}  # fmt: skip
# Part of a thing that a new colour must change.
_PAINTED = 0.35
# Channels that differ by less are the same to anybody; pixels around what changed that may change with it.
_SAME, _AROUND = 6, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneEdit:
    """One change.

    Args:
        kind: one of ``KINDS``.
        text: the change in words, such as ``remove the red car``.
        before, after: (H, W, 3) uint8.
        region: (H, W) bool, where the two differ, and a little around it.
        shows: what is so in the picture after.
        wordings: the change in other words.
    """

    kind: str
    text: str
    before: np.ndarray = field(repr=False)
    after: np.ndarray = field(repr=False)
    region: np.ndarray = field(repr=False)
    shows: Shows
    wordings: tuple[str, ...] = ()


def draw_edits(
    seed: int,
    *,
    size: tuple[int, int] = (320, 240),
    world: str | None = None,
    favour: Mapping[str, float] | None = None,
) -> tuple[SceneEdit, ...]:
    """One change of every kind that the scene of a seed allows; a pure function of its arguments. Things are replaced
    where the world has others for their place."""
    chosen, stage, marks = staged(seed, size=size, world=world, favour=favour)
    assert stage.paint_backdrop is not None
    # Painted once: it has chances of its own, which go on.
    backdrop = stage.paint_backdrop()
    image, stuff = backdrop.image.copy(), backdrop.stuff.copy()
    state, rng = stage.rng.getstate(), random.Random(f"edit/{seed}")

    def drawn(things: list[Thing], mood: int | None = None) -> Scene:
        # The same chances again: nothing but the change differs.
        stage.rng.setstate(state)
        backdrop.image, backdrop.stuff = image.copy(), stuff.copy()
        stage.paint_backdrop = lambda: backdrop
        return render(seed, chosen, stage, marks_of(stage, things), mood)

    things = marks.things
    plain = drawn(things)
    labelled = [thing for thing in things if thing.category]
    carried = {id(thing.carrier) for thing in things if thing.carrier}
    single = {
        members[0]: text for text, members in sorted(plain.referring(10**6), key=lambda one: -len(one[0]))
        if len(members) == 1
    }  # fmt: skip
    # What is spoken of stands by itself, can be told from all others, and is mostly to be seen.
    free = [
        number for number, thing in enumerate(labelled)
        if number in single and thing.carrier is None and id(thing) not in carried
        and plain.objects[number].visible >= _SEEN
    ]  # fmt: skip
    rng.shuffle(free)
    edits: list[SceneEdit] = []

    def told(kind: str, text: str, before: Scene, after: Scene, number: int | None, shows: Shows, other: str = "",
             ) -> None:  # fmt: skip
        region = _region(before.image, after.image)
        # Of one among several of its kind nobody can tell by names whether it was the one.
        if number is not None and sum(one.category == labelled[number].category for one in labelled) > 1:
            shows = Shows()
        if region.any():
            one = "" if number is None else single[number]
            wordings = tuple(words.format(one=one, other=other) for words in _WORDINGS[kind])
            edits.append(SceneEdit(kind=kind, text=text, before=before.image, after=after.image, region=region,
                                   shows=shows, wordings=wordings))  # fmt: skip

    if free:
        number = free[0]
        without = drawn([thing for thing in things if thing is not labelled[number]])
        category = labelled[number].category
        told("remove", f"remove {single[number]}", plain, without, number, Shows(absent=(category,)))
        colour = colour_of(plain.objects[number])
        named = article(f"{colour} {category}" if colour else category)
        told("add", f"add {named}", without, plain, number, Shows(things=((category, colour),)), named)
        if stage.instead is not None:
            other = stage.instead(labelled[number], rng)
            there = drawn(_with(things, labelled[number], other))
            colour = colour_of(there.objects[number])
            named = article(f"{colour} {other.category}" if colour else other.category)
            told("replace", f"replace {single[number]} with {named}", plain, there, number,
                 Shows(things=((other.category, colour),), absent=(category,)), named)  # fmt: skip
    for number in free:
        old, category = colour_of(plain.objects[number]), labelled[number].category
        if old is None or old in _GRAYS:
            continue
        new = rng.choice([name for name in COLOURS if name not in (old, *_GRAYS)])
        painted = _as(labelled[number], _recoloured(labelled[number].sprite, old, new))
        after = drawn(_with(things, labelled[number], painted))
        mask = plain.mask(number)
        if (cv2.absdiff(plain.image, after.image)[mask] >= _SAME).any(-1).mean() < _PAINTED:
            continue  # what it is called by is not what most of it is
        told("recolour", f"make {single[number]} {new}", plain, after, number,
             Shows(things=((category, new),)), new)  # fmt: skip
        break
    for number in free:
        shift = _room(labelled[number], stage, rng)
        if shift is None:
            continue
        aside = _as(labelled[number], _shifted(labelled[number].sprite, shift))
        gone = drawn(_with(things, labelled[number], aside))
        if gone.objects[number].visible < _SEEN:  # behind something else
            continue
        way = "right" if shift > 0 else "left"
        told("move", f"move {single[number]} to the {way}", plain, gone, number,
             Shows(things=((labelled[number].category, None),), moved=((0, way),)), way)  # fmt: skip
        break
    day, night = drawn(things, DAY), drawn(things, NIGHT)
    told("night", rng.choice(("make it night", "turn day into night")), day, night, None, Shows(light=True))
    told("day", rng.choice(("make it day", "turn night into day")), night, day, None, Shows(light=True))
    return tuple(edits)


def _with(things: list[Thing], old: Thing, new: Thing) -> list[Thing]:
    return [new if thing is old else thing for thing in things]


def _as(thing: Thing, sprite: Sprite) -> Thing:
    """The thing with another sprite."""
    other = copy.copy(thing)
    other.sprite, other._extent = sprite, None
    return other


def _recoloured(sprite: Sprite, old: str, new: str) -> Sprite:
    """Its shades of one named colour become the same shades of another."""
    main, wanted = _hsv(COLOURS[old]), _hsv(COLOURS[new])

    def other(colour: RGB) -> RGB:
        hue, saturation, value = _hsv(colour)
        apart = abs(hue - main[0])
        if min(apart, 1 - apart) > _NEAR or saturation < 0.15:
            return colour
        strong = min(1.0, wanted[1] * saturation / main[1])
        bright = min(1.0, wanted[2] * value / main[2])
        r, g, b = colorsys.hsv_to_rgb(wanted[0], strong, bright)
        return int(r * 255), int(g * 255), int(b * 255)

    made = copy.copy(sprite)
    made._strokes = [(polygons, other(colour), thickness) for polygons, colour, thickness in sprite._developed()]
    made.attributes = {**sprite.attributes, "colour": new}
    return made


def _shifted(sprite: Sprite, pixels: int) -> Sprite:
    """All of it, its shadow too, to the right."""
    made, step = copy.copy(sprite), np.array([pixels << SHIFT, 0])
    made._strokes = [
        ([(points + step).astype(points.dtype) for points in polygons], colour, thickness)
        for polygons, colour, thickness in sprite._developed()
    ]
    made.shadows = [(shape + step).astype(shape.dtype) for shape in sprite.shadows]
    if sprite.keypoints is not None:
        made.keypoints = sprite.keypoints + np.array([pixels, 0, 0], sprite.keypoints.dtype)
    return made


def _room(thing: Thing, stage: Stage, rng: random.Random) -> int | None:
    """Pixels by which a thing can move and stay whole; None where there is no room."""
    left, _, right, _ = thing.extent()
    far = rng.uniform(*_FAR) * stage.width
    ways = [shift for shift in (-far, far) if left + shift >= 0 and right + shift <= stage.width]
    return round(rng.choice(ways)) if ways else None


def _region(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    differs = (cv2.absdiff(before, after) >= _SAME).any(-1).astype(np.uint8)
    return cv2.dilate(differs, np.ones((2 * _AROUND + 1,) * 2, np.uint8)).astype(bool)


def _hsv(colour: RGB) -> tuple[float, float, float]:
    return colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
