"""Pairs of scenes that differ by one change, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm.datasets.scenes import draw_edits, draw_scene
from visionllm.datasets.scenes.edits import KINDS

SEEDS = range(30)


def test_all_kinds_occur_and_a_draw_is_pure() -> None:
    kinds = set()
    for seed in SEEDS:
        edits, again = draw_edits(seed), draw_edits(seed)
        kinds |= {edit.kind for edit in edits}
        for one, other in zip(edits, again, strict=True):
            assert (one.kind, one.text) == (other.kind, other.text)
            assert np.array_equal(one.after, other.after)
    assert kinds == set(KINDS) - {"replace"}, "in a full scene there is nothing to stand in"


def test_nothing_differs_outside_of_the_region() -> None:
    for seed in SEEDS:
        for edit in draw_edits(seed):
            lost = np.abs(edit.before.astype(int) - edit.after)[~edit.region]
            assert lost.size == 0 or lost.max() < 6, (seed, edit.kind)
            share = edit.region.mean()
            assert 0 < share < 0.6 or edit.kind in ("night", "day"), (seed, edit.text, share)


def test_what_is_removed_is_gone_and_what_is_added_was_not_there() -> None:
    for seed in SEEDS:
        scene = draw_scene(seed)
        by_kind = {edit.kind: edit for edit in draw_edits(seed)}
        removed, added = by_kind["remove"], by_kind["add"]
        assert np.array_equal(removed.before, scene.image)
        assert np.array_equal(removed.before, added.after)
        assert np.array_equal(removed.after, added.before)
        # The one thing that is spoken of lies where the two differ, all of it.
        text = removed.text.removeprefix("remove ")
        (index,) = dict(scene.referring(10**6))[text]
        assert (removed.region | ~scene.mask(index)).mean() > 0.999, (seed, text)
        assert added.text.endswith(scene.objects[index].category)


def test_other_words_say_the_same() -> None:
    """They name what the plainest words name, and what is new; a verb stands in front, as in every request."""
    verbs = {"delete", "erase", "get", "take", "insert", "put", "place", "turn", "change", "swap", "make", "paint",
             "colour", "color", "shift", "move"}  # fmt: skip
    said = set()
    for seed in SEEDS:
        for edit in draw_edits(seed, size=(128, 128), world="sketch"):
            own = edit.text.split()
            assert len(set(edit.wordings)) == len(edit.wordings) > 2
            assert edit.text not in edit.wordings
            for words in edit.wordings:
                assert words.split()[0] in verbs, words
                kept = set(own[1:]) - {"to", "with", "it", "day", "night", "into"}
                assert kept <= set(words.split()), (edit.text, words)
            said.add(edit.kind)
    assert said == set(KINDS)


def test_a_new_colour_is_the_one_that_is_named() -> None:
    """The hue of what changed, where it is strongest."""
    import cv2

    hues = {"red": 0, "orange": 15, "yellow": 25, "green": 65, "blue": 110, "purple": 140, "pink": 168, "brown": 12}
    right = total = 0
    for seed in SEEDS:
        edit = next((edit for edit in draw_edits(seed) if edit.kind == "recolour"), None)
        if edit is None:
            continue
        new = edit.text.split()[-1]
        apart = np.abs(edit.before.astype(int) - edit.after).sum(-1)
        core = apart >= max(30, int(np.quantile(apart[edit.region], 0.8)))
        if core.sum() < 20:
            continue
        hue = float(np.median(cv2.cvtColor(edit.after, cv2.COLOR_RGB2HSV)[core][:, 0]))
        away = abs(hue - hues[new])
        right += min(away, 180 - away) <= 14
        total += 1
    assert total >= 15
    assert right >= 0.85 * total, (right, total)  # at dusk and at night colours turn


def test_what_moves_leaves_its_place_for_another() -> None:
    for seed in SEEDS:
        edit = next((edit for edit in draw_edits(seed) if edit.kind == "move"), None)
        if edit is None:
            continue
        scene = draw_scene(seed)
        words, _, side = edit.text.removeprefix("move ").rpartition(" to the ")
        (index,) = dict(scene.referring(10**6))[words]
        x1, _, x2, _ = scene.objects[index].box_xyxy
        columns = np.flatnonzero(edit.region.any(0))
        beyond = columns.max() - x2 if side == "right" else x1 - columns.min()
        assert beyond > 20, (seed, edit.text)


@pytest.mark.parametrize("kind", ["night", "day"])
def test_night_is_darker_than_day(kind: str) -> None:
    for seed in range(10):
        edit = next(edit for edit in draw_edits(seed) if edit.kind == kind)
        dark, light = (edit.after, edit.before) if kind == "night" else (edit.before, edit.after)
        assert dark.mean() < 0.75 * light.mean()
