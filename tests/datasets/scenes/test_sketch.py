"""Sketches: few things, all of them told, and nothing told that is not so."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm.datasets.catalog import open_dataset
from visionllm.datasets.scenes import draw_edits, draw_scene
from visionllm.datasets.scenes.edits import KINDS
from visionllm.datasets.scenes.language import colour_of

SIZE = (128, 128)
SEEDS = range(60)


@pytest.fixture(scope="module")
def sketches() -> list:
    return [draw_scene(seed, size=SIZE, world="sketch") for seed in SEEDS]


def test_a_sketch_is_a_pure_function_of_its_seed(sketches: list) -> None:
    for scene in sketches[:8]:
        again = draw_scene(scene.seed, size=SIZE, world="sketch")
        assert np.array_equal(scene.image, again.image)
        assert scene.captions() == again.captions()
    assert not np.array_equal(sketches[0].image, sketches[1].image)


def test_one_or_two_things_mostly_to_be_seen(sketches: list) -> None:
    counts = {len(scene.objects) for scene in sketches}
    assert counts == {1, 2}
    for scene in sketches:
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box_xyxy
            assert thing.visible > 0.5, (scene.seed, thing)
            assert max(x1 - x0, y1 - y0) >= 0.12 * SIZE[0], (scene.seed, thing)
        assert scene.ground in ("grass", "road", "table")


def test_captions_say_what_is_so(sketches: list) -> None:
    related = 0
    for scene in sketches:
        kinds = {thing.category: thing for thing in scene.objects}
        fullest, shows = scene.captions()[0]
        assert {name for name, _ in shows.things} == set(kinds), fullest
        assert fullest.endswith(("on grass", "on a road", "on a table"))
        texts = [text for text, _ in scene.captions()]
        assert len(texts) == len(set(texts))
        for text, shows in scene.captions():
            for name, colour in shows.things:
                assert name in text
                assert colour is None or f"{colour} {name}" in text
                assert colour in (None, colour_of(kinds[name]))
            height, width = scene.image.shape[:2]
            places = [np.divide(kinds[name].box_xyxy, (width, height) * 2) for name, _ in shows.things]
            np.testing.assert_allclose(shows.boxes, places)
            for i, relation, j in shows.relations:
                first, second = shows.things[i][0], shows.things[j][0]
                assert text.index(first) < text.index(relation) < text.index(second)
                x = {name: sum(kinds[name].box_xyxy[::2]) for name in (first, second)}
                if relation == "left of":
                    assert x[first] < x[second]
                    related += 1
    assert related > 20


def test_no_chance_in_light() -> None:
    """What stands where nothing changes is the same to the last bit, by day as it is drawn."""
    for seed in range(10):
        for edit in draw_edits(seed, size=SIZE, world="sketch"):
            if edit.kind not in ("night", "day"):
                assert np.array_equal(edit.before[~edit.region], edit.after[~edit.region])


def test_every_kind_of_edit_and_what_it_must_show() -> None:
    kinds = set()
    for seed in range(20):
        scene = draw_scene(seed, size=SIZE, world="sketch")
        names = {thing.category for thing in scene.objects}
        for edit in draw_edits(seed, size=SIZE, world="sketch"):
            kinds.add(edit.kind)
            told = [name for name, _ in edit.shows.things]
            assert all(name in edit.text for name in told)
            if edit.kind == "remove":
                assert not told
                assert set(edit.shows.absent) <= names
            elif edit.kind == "replace":
                assert edit.shows.absent[0] in names
                assert told[0] not in names
            elif edit.kind == "move":
                ((_, way),) = edit.shows.moved
                assert edit.text.endswith(way)
            elif edit.kind in ("night", "day"):
                assert edit.shows.light
                darker = edit.after.mean() < edit.before.mean()
                assert darker == (edit.kind == "night")
    assert kinds == set(KINDS)


def test_the_reader_tells_what_a_caption_asks_for() -> None:
    data = open_dataset("scenes", "sketches_val", task="generation")
    (sample,) = data.ask_all(0)
    (turn,) = sample.turns
    assert not sample.pictures
    assert turn.target.shows[0].things
    assert all(name in turn.phrases[0] for name, _ in turn.target.shows[0].things)
    edits = open_dataset("scenes", "sketches_val", task="editing").ask_all(0)
    assert any(one.turns[0].target.shows[0].absent for one in edits)
