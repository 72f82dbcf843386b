"""What a picture shows, by a detector that is told what to find and by its pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.arrays import object_array
from visionllm.core.images import Images, Recipe
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask
from visionllm.core.sample import Picture, PictureTarget, Shows, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS
from visionllm.metrics.shows import BASIC, has_colour, lies

SIDE = 64
# Words of a picture are its red squares' names by where they stand.
Blocks = dict[str, tuple[int, str]]


def picture(blocks: Blocks) -> Picture:
    """Squares of a colour on grass, told by their column."""
    pixels = np.full((SIDE, SIDE, 3), (100, 140, 60), np.uint8)
    for column, colour in blocks.values():
        pixels[20:36, column : column + 16] = BASIC[colour]
    return Picture(pixels=pixels, name=",".join(f"{name}:{column}" for name, (column, _) in blocks.items()))


def judge(seen: Picture, names: Sequence[str]) -> Masks:
    """Finds what the picture's name says is in it."""
    scale = seen.size[0] / SIDE
    found = dict(one.split(":") for one in seen.name.split(",") if one)
    rows = [name for name in names if name in found]
    boxes = [[int(found[name]) * scale, 20 * scale, (int(found[name]) + 16) * scale, 36 * scale] for name in rows]
    masks = []
    for x0, y0, x1, y1 in boxes:
        dense = np.zeros((seen.size[1], seen.size[0]), bool)
        dense[int(y0) : int(y1), int(x0) : int(x1)] = True
        masks.append(Mask.of(dense))
    return Masks(
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4), scores=np.full(len(rows), 0.9, np.float32),
        labels=np.array([list(names).index(name) for name in rows], np.int64), phrases=tuple(names),
        presence=np.ones(len(names), np.float32), size=seen.size, masks=object_array(masks),
    )  # fmt: skip


def report(made: Blocks | None, truth: Blocks, shows: Shows, source: Blocks | None = None) -> dict:
    metric = METRICS["shows"]((), judge=judge)
    target = PictureTarget(pictures=(picture(truth),), shows=(shows,))
    turn = Turn(task="generation", phrases=("it",), target=target)
    links = ()
    if made is not None:
        recipe = Recipe(task="generation", phrase="it", prompt=None, decoder="generation", options={}, place=0,
                        size=(SIDE, SIDE), model=None)  # fmt: skip
        meta = LinkMeta(sample=0, turn=0, task="generation", token="[GEN]", phrase="it")
        result = Images(pictures=(picture(made),), recipes=(recipe,))
        links = (LinkResult(meta=meta, decoder="generation", result=result),)
    pictures = () if source is None else (picture(source),)
    metric.add(turn, Answer(text="", links=links, pictures=pictures), key=0)
    return metric.compute()


def test_objects_colours_and_relations() -> None:
    asked = Shows(things=(("car", "red"), ("dog", "black")), relations=((0, "left of", 1),))
    truth = {"car": (4, "red"), "dog": (40, "black")}
    right = report(truth, truth, asked)
    assert [right[what] for what in ("objects", "colours", "relations", "all", "made")] == [1, 1, 1, 1, 1]
    swapped = report({"car": (40, "red"), "dog": (4, "black")}, truth, asked)
    assert (swapped["objects"], swapped["colours"], swapped["relations"], swapped["all"]) == (1, 1, 0, 0)
    painted = report({"car": (4, "blue"), "dog": (40, "black")}, truth, asked)
    assert (painted["objects"], painted["colours"], painted["all"]) == (1, 0.5, 0)
    alone = report({"dog": (40, "black")}, truth, asked)
    assert (alone["objects"], alone["colours"], alone["relations"]) == (0.5, 0.5, 0)
    nothing = report(None, truth, asked)
    assert (nothing["objects"], nothing["relations"], nothing["made"]) == (0, 0, 0)
    assert nothing["truth"]["all"] == 1, "the truth is looked at, whatever was made"


def test_changes_of_a_picture() -> None:
    before, after = {"car": (4, "red"), "dog": (40, "black")}, {"dog": (40, "black")}
    gone = Shows(absent=("car",))
    assert report(after, after, gone, before)["changes"] == 1
    assert report(before, after, gone, before)["changes"] == 0
    went = Shows(things=(("car", None),), moved=((0, "right"),))
    assert report({"car": (20, "red")}, {"car": (30, "red")}, went, before)["changes"] == 1
    assert report({"car": (4, "red")}, {"car": (30, "red")}, went, before)["changes"] == 0
    assert report({}, {"car": (30, "red")}, went, before)["changes"] == 0
    light = Shows(light=True)
    dark, bright = {"a": (0, "black"), "b": (16, "black")}, {"a": (0, "white"), "b": (16, "white")}
    assert report(dark, dark, light, bright)["changes"] == 1
    assert report(bright, dark, light, bright)["changes"] == 0


def test_nothing_told_is_nothing_asked() -> None:
    assert report({}, {}, Shows())["phrases"] == 0


@pytest.mark.parametrize("name", BASIC)
def test_a_plain_colour_is_itself_in_sun_and_shade(name: str) -> None:
    colour = np.array(BASIC[name])
    shaded = np.concatenate([np.tile(colour, (60, 1)), np.tile(colour * 0.8, (40, 1))]).astype(np.uint8)
    assert has_colour(shaded, name)
    others = [other for other in BASIC if other != name and has_colour(shaded, other)]
    assert not others or {name, *others} <= {"black", "gray", "white"} | {"red", "brown", "orange", "pink"}


def test_tyres_and_windows_do_not_count() -> None:
    car = np.concatenate([np.tile(BASIC["blue"], (40, 1)), np.tile(BASIC["black"], (34, 1)),
                          np.tile(BASIC["gray"], (26, 1))]).astype(np.uint8)  # fmt: skip
    assert has_colour(car, "blue")
    assert not has_colour(car, "red")
    assert not has_colour(car, "gray")
    assert not has_colour(np.zeros((0, 3), np.uint8), "black")


def test_lies() -> None:
    left, right = np.array([0, 0, 10, 10]), np.array([20, 5, 30, 15])
    assert lies(left, "left of", right)
    assert lies(right, "right of", left)
    assert lies(left, "above", right)
    assert not lies(left, "right of", right)
    assert not lies(left, "below", right)
