"""Pointing: every way hits the thing it means, and the question holds a place for it."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm.core.errors import AnnotationError
from visionllm.core.masks import Mask
from visionllm.core.sample import Record
from visionllm.datasets.asking import ASKERS
from visionllm.datasets.catalog import open_dataset
from visionllm.datasets.formats import Wording
from visionllm.datasets.plan import item_rng
from visionllm.datasets.pointing import POINTERS
from visionllm.datasets.transforms import Augment


def record(index: int = 0) -> Record:
    found = open_dataset("scenes", "val", task="interactive").read(index)
    assert isinstance(found, Record)
    return found


@pytest.mark.parametrize("kind", POINTERS)
def test_what_is_pointed_at_is_the_thing(kind: str) -> None:
    for index in range(8):
        shown = record(index)
        assert shown.masks is not None
        for thing, mask in enumerate(shown.masks):
            for rng in (item_rng(1, thing), None):
                region = POINTERS[kind](mask, rng).mask(shown.picture.size)
                share = region.intersection(mask) / region.area
                if kind == "box":
                    box = Mask(patch=np.ones_like(mask.patch), corner=mask.corner, size=mask.size)
                    both = region.intersection(box)
                    assert both / (region.area + box.area - both) > (0.4 if mask.patch.size < 100 else 0.6)
                elif kind in ("point", "scribble"):
                    assert share > 0
                else:  # an outline closes what is open in a thing, such as the wheels of a bicycle
                    assert share > (0.4 if kind == "polygon" else 0.99)


def test_a_question_has_a_place_for_every_region() -> None:
    counts = set()
    for position in range(60):
        shown = record(position % 8)
        sample = ASKERS["interactive"].draw(shown, Wording(), item_rng(0, position))
        (turn,) = sample.turns
        counts.add(len(turn.regions))
        assert turn.question is not None
        assert turn.question.count("<region>") == len(turn.regions) == len(turn.phrases) == len(turn.target.masks)
        assert turn.phrases == tuple(f"region {i + 1}" for i in range(len(turn.phrases)))
        for region, mask in zip(turn.regions, turn.target.masks, strict=True):
            assert region.mask(shown.picture.size).intersection(mask) > 0
    assert counts == {1, 2, 3}


def test_regions_move_with_their_things() -> None:
    """Through flips, zooms and resizes; nothing is cut off."""
    augment = Augment(sizes=((384, 288),))
    for position in range(20):
        sample = ASKERS["interactive"].draw(record(position % 8), Wording(), item_rng(0, position))
        moved = augment(sample, item_rng(3, position))
        for region, mask in zip(moved.turns[0].regions, moved.turns[0].target.masks, strict=True):
            assert region.mask(moved.pictures[0].size).intersection(mask) > 0


def test_evaluation_frames_and_dots_each_thing() -> None:
    shown = record()
    samples = ASKERS["interactive"].every(shown, Wording())
    assert len(samples) == 2 * len(shown.boxes_xyxy)
    names = ASKERS["recognition"].every(shown, Wording())
    assert [sample.turns[0].reply for sample in names] == [shown.names[label] for label in shown.labels]
    assert all(len(sample.turns[0].regions) == 1 for sample in names)


def test_the_reply_names_every_region_in_its_order() -> None:
    counts = set()
    for position in range(40):
        shown = record(position % 8)
        (turn,) = ASKERS["recognition"].draw(shown, Wording(), item_rng(0, position)).turns
        names = (turn.reply or "").split(", ")
        counts.add(len(names))
        assert turn.question is not None
        assert turn.question.count("<region>") == len(turn.regions) == len(names)
        for region, name in zip(turn.regions, names, strict=True):
            drawn = region.mask(shown.picture.size)
            assert any(
                drawn.intersection(mask) and shown.names[label] == name
                for mask, label in zip(shown.masks, shown.labels, strict=True)
            )
    assert max(counts) > 3
    assert counts <= set(range(1, 9))


def test_a_region_is_described_as_no_other_thing_is() -> None:
    data = open_dataset("scenes", "val", task="region_captions")
    for index in range(4):
        shown = data.read(index)
        assert isinstance(shown, Record)
        assert shown.masks is not None
        meaning = dict(shown.expressions)
        for sample in ASKERS["region_captions"].every(shown, Wording()):
            (turn,) = sample.turns
            (thing,) = {meaning[text] for text in turn.target.references}
            assert turn.reply in turn.target.references
            assert np.allclose(turn.regions[0].mask(shown.picture.size).box_xyxy, shown.masks[thing[0]].box_xyxy)
        (drawn,) = ASKERS["region_captions"].draw(shown, Wording(), item_rng(0, index)).turns
        (thing,) = meaning[drawn.reply]
        assert drawn.regions[0].mask(shown.picture.size).intersection(shown.masks[thing]) > 0


def test_a_picture_without_masks_is_a_bad_sample() -> None:
    bare = open_dataset("scenes", "val").read(0)
    assert isinstance(bare, Record)
    with pytest.raises(AnnotationError, match="nothing is said of any single object with a mask"):
        ASKERS["region_captions"].draw(bare, Wording(), item_rng(0, 0))
    for task in ("interactive", "recognition"):
        with pytest.raises(AnnotationError, match="nothing in it has a mask to point at"):
            ASKERS[task].draw(bare, Wording(), item_rng(0, 0))
        assert ASKERS[task].every(bare, Wording()) == ()
