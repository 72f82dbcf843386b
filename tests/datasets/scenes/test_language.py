"""Every sentence about a scene is checked again from the objects alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from visionllm.datasets.scenes import CATEGORIES, WORLDS, Scene, SceneObject, draw_scene

BY_PHRASE = {word: c for c in CATEGORIES for word in (c.name, c.plural)}
WHERE = ("left of", "right of", "above", "below")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed, world=world) for world in WORLDS for seed in range(100, 140)]


def _centre(thing: SceneObject) -> tuple[float, float]:
    x0, y0, x1, y1 = thing.box_xyxy
    return (x0 + x1) / 2, (y0 + y1) / 2


def _area(thing: SceneObject) -> float:
    x0, y0, x1, y1 = thing.box_xyxy
    return (x1 - x0) * (y1 - y0)


def _stands(a: SceneObject, relation: str, b: SceneObject) -> bool:
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    return {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[relation]


def _members(scene: Scene, noun: str) -> list[int]:
    return [i for i, thing in enumerate(scene.objects) if noun in BY_PHRASE and thing.category == BY_PHRASE[noun].name]


def _resolve(scene: Scene, text: str) -> list[int] | None:
    """An own, naive reader of referring expressions; None when it does not know the form."""
    assert text.startswith("the ")
    words = text[4:]
    has = [thing.attributes for thing in scene.objects]
    everyone = range(len(scene.objects))
    if words in BY_PHRASE:
        return _members(scene, words)
    if words in ("vehicles", "animals"):
        return [i for i in everyone if BY_PHRASE[scene.objects[i].category].kind == words[:-1]]
    if words in ("child", "children"):
        return [i for i in everyone if has[i].get("age") == "child"]
    for relation in WHERE:
        if f" {relation} the " in words:
            noun, other = words.split(f" {relation} the ")
            (anchor,) = _members(scene, other)
            return [i for i in _members(scene, noun) if _stands(scene.objects[i], relation, scene.objects[anchor])]
    if match := re.fullmatch(r"(?:person|people) on (?:an? )?(.+)", words):
        mounts = _members(scene, match[1])
        return [i for i in everyone if scene.objects[i].carrier in mounts]
    if match := re.fullmatch(r"(leftmost|rightmost|largest|smallest) (.+)", words):
        key = {"leftmost": lambda i: _centre(scene.objects[i])[0], "rightmost": lambda i: -_centre(scene.objects[i])[0],
               "largest": lambda i: -_area(scene.objects[i]),
               "smallest": lambda i: _area(scene.objects[i])}[match[1]]  # fmt: skip
        return [min(_members(scene, match[2]), key=key)]
    if match := re.fullmatch(r"(?:person|people) in (\w+)", words):
        return [i for i in _members(scene, "person") if has[i]["colour"] == match[1]]
    if match := re.fullmatch(r"(?:person|people) with (\w+) trousers", words):
        return [i for i in _members(scene, "person") if has[i]["trousers"] == match[1]]
    if match := re.fullmatch(r"(walking|waving) (?:person|people)", words):
        return [i for i in _members(scene, "person") if has[i]["pose"] == match[1]]
    if match := re.fullmatch(r"traffic lights? that shows? (\w+)", words):
        return [i for i in _members(scene, "traffic light") if has[i]["state"] == match[1]]
    if match := re.fullmatch(r"(.+) signs?", words):
        if match[1] in ("stop", "speed limit", "warning", "no entry"):
            return [i for i in _members(scene, "traffic sign") if has[i]["sign"] == match[1]]
    if match := re.fullmatch(r"glass(?:es)? of (.+)", words):
        return [i for i in _members(scene, "wine glass") if has[i]["drink"] == match[1]]
    if match := re.fullmatch(r"(\w+) (.+)", words):
        return [i for i in _members(scene, match[2]) if has[i]["colour"] == match[1]]
    return None


def test_referring_expressions_are_true_of_exactly_the_named_objects(scenes: list[Scene]) -> None:
    several = 0
    for scene in scenes:
        pairs = scene.referring(1000)
        assert len({text for text, _ in pairs}) == len(pairs)
        for text, indices in pairs:
            found = _resolve(scene, text)
            assert found is not None, f"unknown form: {text}"
            assert tuple(sorted(found)) == tuple(sorted(indices)), (scene.seed, text)
            several += len(indices) > 1
        assert scene.referring(3) == pairs[:3]
    assert several > 100


def test_counts_in_questions_equal_the_objects(scenes: list[Scene]) -> None:
    zeros = 0
    for scene in scenes:
        for question, answer, *_ in scene.questions():
            if match := re.fullmatch(r"How many (.+) are there\?", question):
                assert int(answer) == len(_members(scene, match[1]))
                zeros += answer == "0"
            elif match := re.fullmatch(r"Is there (?:a pair of|an?) (.+) in the picture\?", question):
                assert (answer == "yes") == bool(_members(scene, match[1])), question
            elif match := re.fullmatch(r"Are there more (.+) than (.+)\?", question):
                assert (answer == "yes") == (len(_members(scene, match[1])) > len(_members(scene, match[2])))
            elif match := re.fullmatch(r"What colour (?:is|are) the (.+)\?", question):
                noun = match[1].removesuffix("'s shirt")
                (index,) = _members(scene, noun)
                assert answer == scene.objects[index].attributes["colour"]
            elif match := re.fullmatch(
                r"(?:Is|Are) the (.+) (above or below|to the left or to the right of) the (.+)\?", question
            ):
                (first,), (second,) = _members(scene, match[1]), _members(scene, match[3])
                assert answer in match[2].split()
                stands = answer if match[2] == "above or below" else f"{answer} of"
                assert _stands(scene.objects[first], stands, scene.objects[second])
            elif match := re.fullmatch(r"(?:Is|Are) the (.+) (left of|right of|above|below) the (.+)\?", question):
                (first,), (second,) = _members(scene, match[1]), _members(scene, match[3])
                assert (answer == "yes") == _stands(scene.objects[first], match[2], scene.objects[second])
            elif match := re.fullmatch(r"(?:Is|Are) the (.+) in the left or the right half of the picture\?", question):
                (index,) = _members(scene, match[1])
                assert answer == ("left" if _centre(scene.objects[index])[0] < scene.image.shape[1] / 2 else "right")
            else:
                assert question == "Which colour does the traffic light show?"
    assert zeros > 20


def test_relations_hold_and_mirror_each_other(scenes: list[Scene]) -> None:
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "behind": "in front of",
              "in front of": "behind", "next to": "next to"}  # fmt: skip
    seen = set()
    for scene in scenes:
        relations = set(scene.relations())
        for i, relation, j in relations:
            seen.add(relation)
            a, b = scene.objects[i], scene.objects[j]
            if relation == "on":
                assert a.carrier == j
                continue
            assert (j, mirror[relation], i) in relations
            if relation in WHERE:
                assert _stands(a, relation, b)
            elif relation == "in front of":
                assert a.depth < b.depth
    assert seen == {*mirror, "on"}


def test_the_grounded_caption_is_the_caption_and_counts_right(scenes: list[Scene]) -> None:
    for scene in scenes:
        pieces = scene.grounded_caption()
        assert "".join(text for text, _ in pieces) == scene.caption()
        for text, indices in pieces:
            if not indices:
                continue
            names = {scene.objects[i].category for i in indices}
            assert len(names) == 1
            (name,) = names
            category = BY_PHRASE[name]
            assert category.name in text or category.plural in text
            if not text.startswith(("the ", "The ")):
                assert len(indices) == len(_members(scene, name))
                assert text.startswith(("a ", "an ")) == (len(indices) == 1)


def test_colours_said_are_colours_drawn() -> None:
    """The median colour of a plainly painted thing lies nearer to its own colour name than to most others."""
    from visionllm.datasets.scenes.palette import COLOURS

    names = list(COLOURS)
    table = np.array([COLOURS[n] for n in names], float)
    right = total = 0
    for seed in range(120):
        scene = draw_scene(seed, world="table")
        if scene.image.mean() < 90:
            continue
        for i, thing in enumerate(scene.objects):
            if thing.category not in ("ball", "book", "cup") or thing.visible < 0.9:
                continue
            pixels = scene.image[scene.mask(i)].astype(float)
            nearest = np.bincount(np.abs(pixels[:, None] - table).sum(2).argmin(1), minlength=len(names))
            right += names.index(thing.attributes["colour"]) in np.argsort(-nearest)[:3]
            total += 1
    assert total > 60
    assert right / total > 0.8
