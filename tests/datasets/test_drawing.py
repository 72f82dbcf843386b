"""Captions become requests for the pictures they are of."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from visionllm.core.errors import AnnotationError, ShapeError
from visionllm.core.geometry import Geometry
from visionllm.core.sample import Picture, PictureTarget, Record, Source
from visionllm.datasets.asking import ASKERS
from visionllm.datasets.catalog import open_dataset
from visionllm.datasets.drawing import MOST_OFF, _phrase
from visionllm.datasets.plan import item_rng
from visionllm.datasets.transforms import Augment, shrunk


def test_a_scene_is_asked_for_by_its_caption() -> None:
    dataset = open_dataset("scenes", "train", task="generation")
    assert dataset.tasks == {"generation"}
    phrases = set()
    for position in range(6):
        record = dataset.read(3)
        sample = dataset.ask_about(record, item_rng(0, position))
        (turn,) = sample.turns
        assert sample.pictures == ()  # what is to be made is not shown
        assert isinstance(turn.target, PictureTarget)
        assert np.array_equal(turn.target.pictures[0].pixels, record.picture.pixels)
        (phrase,) = turn.phrases
        assert phrase in {_phrase(caption) for caption in record.captions}
        assert not phrase.endswith(".")
        phrases.add(phrase)
    (first,) = dataset.ask_all(3)
    assert first.turns[0].phrases == (_phrase(dataset.read(3).captions[0]),)


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("A red car.", "red car"),
        ("an owl", "owl"),
        ("Two dogs", "two dogs"),
        ("TV on a table.", "TV on a table"),
        (" x ", "x"),
    ],
)
def test_captions_stand_within_a_question(caption: str, phrase: str) -> None:
    assert _phrase(caption) == phrase


@pytest.mark.parametrize(
    ("task", "scale", "most"),
    [("super_resolution", 2, MOST_OFF), ("super_resolution_x4", 4, MOST_OFF), ("super_resolution_aligned", 2, 0)],
)
def test_a_small_picture_and_a_sharp_one(task: str, scale: int, most: float) -> None:
    """In an evaluation they lie on each other; in training the small one is off by a known amount at most."""
    dataset = open_dataset("scenes", "train", task=task)
    (known,) = dataset.ask_all(5)
    offs = []
    for position in range(8):
        sample = known if position == 0 else dataset.ask_about(dataset.read(5), item_rng(1, position))
        (small,), (sharp,) = sample.pictures, sample.turns[0].target.pictures
        assert sharp.size == (small.size[0] * scale, small.size[1] * scale)
        assert sample.turns[0].task == "super_resolution"
        reference = cv2.resize(sharp.pixels, small.size, interpolation=cv2.INTER_AREA).astype(np.float32)
        (x, y), _ = cv2.phaseCorrelate(reference.mean(2), small.pixels.astype(np.float32).mean(2))
        offs.append((x, y))
    np.testing.assert_allclose(offs[0], 0, atol=0.05)
    others = np.array(offs[1:])
    assert np.abs(others).max() < most + 0.5
    assert (np.abs(others).max() > 1) == (most > 1)


def test_a_larger_target_moves_with_its_picture() -> None:
    """A crop, a flip and a resize of the small picture, and the same of one with twice its pixels."""
    rng = np.random.default_rng(0)
    sharp = cv2.GaussianBlur(rng.integers(0, 256, (96, 128, 3)).astype(np.uint8), (0, 0), 4)
    small = cv2.resize(sharp, (64, 48), interpolation=cv2.INTER_AREA)
    geometry = Geometry.crop((64, 48), (8, 4, 56, 40)).then(Geometry.hflip((48, 36)))
    geometry = geometry.then(Geometry.resize((48, 36), (60, 45)))
    (made,) = PictureTarget(pictures=(Picture(pixels=sharp),)).transform(geometry).pictures
    assert made.size == (120, 90)
    back = cv2.resize(made.pixels, (60, 45), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(back - geometry.picture(small)).mean() < 1.5
    with pytest.raises(ShapeError, match="no multiple"):
        PictureTarget(pictures=(Picture(pixels=sharp[:95]),)).transform(geometry)


def test_a_scene_and_a_change_of_it() -> None:
    dataset = open_dataset("scenes", "train", task="editing")
    every = dataset.ask_all(2)
    assert len({sample.turns[0].phrases for sample in every}) == len(every) > 3
    for sample in (*every, dataset.ask_about(dataset.read(2), item_rng(0, 0))):
        (turn,), (before,) = sample.turns, sample.pictures
        (after,), (changed,) = turn.target.pictures, turn.target.changed
        assert turn.whole
        assert not np.array_equal(before.pixels, after.pixels)
        still = ~changed.dense()
        assert np.abs(before.pixels.astype(int) - after.pixels)[still].max(initial=0) < 6


def test_a_change_is_learned_in_many_words_and_measured_in_the_plainest() -> None:
    dataset = open_dataset("scenes", "sketches", task="editing")
    record = dataset.read(0)
    plain = {edit.text for edit in record.edits}
    others = {words for edit in record.edits for words in edit.wordings}
    assert {sample.turns[0].phrases[0] for sample in dataset.ask_all(0)} == plain
    drawn = [dataset.ask_about(record, item_rng(0, number)).turns[0].phrases[0] for number in range(200)]
    assert set(drawn) <= plain | others
    assert 0.35 < np.mean([words in plain for words in drawn]) < 0.65


def test_things_and_a_change_are_asked_for_in_one_breath() -> None:
    """Of the very picture that is shown; a thing that was named before may be "one"."""
    dataset = open_dataset("scenes", "train", task="breath")
    first, said = set(), []
    for index in range(24):
        record = dataset.read(index)
        assert isinstance(record, Record)
        sample = dataset.ask_about(record, item_rng(0, index))
        assert [turn.joined for turn in sample.turns] == [False] + [True] * (len(sample.turns) - 1)
        first.add(sample.turns[0].task)
        changes = [turn for turn in sample.turns if turn.task == "editing"]
        assert len(changes) == 1
        assert len(sample.turns) > 1
        assert np.array_equal(sample.pictures[0].pixels, record.picture.pixels)
        words, target = changes[0].phrases[0], changes[0].target
        own = [edit for edit in record.edits if edit.after is target.pictures[0]]
        assert len(own) == 1
        assert np.array_equal(own[0].before.pixels, record.picture.pixels)
        for turn in sample.turns:
            if turn.task != "editing":
                assert 1 <= len(turn.phrases) <= 3
                assert (turn.target.masks is not None) or turn.task == "detection"
        if words not in (own[0].text, *own[0].wordings):
            said.append(words)
            assert " one" in words
    assert first == {"detection", "segmentation", "editing"}
    assert said
    lit = replace(record, edits=tuple(edit for edit in record.edits if edit.shows.light))
    change = next(turn for turn in dataset.ask_about(lit, item_rng(0, 0)).turns if turn.task == "editing")
    assert change.target.shows[0].light  # where no thing can be spoken of
    once, again = dataset.ask_all(3)[0], dataset.ask_all(3)[0]
    assert [turn.phrases for turn in once.turns] == [turn.phrases for turn in again.turns]


def test_a_picture_is_asked_for_beside_one_that_has_no_part_in_it() -> None:
    dataset = open_dataset("scenes", "train", task="beside")
    asked, known = set(), 0
    for index in range(40):
        record = dataset.read(index % 4)
        assert isinstance(record, Record)
        sample = dataset.ask_about(record, item_rng(0, index))
        (turn,) = sample.turns
        asked.add(turn.task)
        assert turn.target is None
        assert sample.pictures == (record.picture,)
        known += any(name in turn.phrases[0] for name in record.names)
    assert asked == {"generation", "editing", "super_resolution"}
    assert 8 < known < 32  # what a picture is called names nothing
    (once,), (again,) = dataset.ask_all(3), dataset.ask_all(3)
    assert [(turn.task, turn.phrases) for turn in once.turns] == [(turn.task, turn.phrases) for turn in again.turns]


def test_a_caption_is_asked_for_in_one_breath_with_a_list() -> None:
    dataset = open_dataset("scenes", "train", task="described")
    first = set()
    for index in range(24):
        record = dataset.read(index % 6)
        assert isinstance(record, Record)
        sample = dataset.ask_about(record, item_rng(0, index))
        assert [turn.joined for turn in sample.turns] == [False, True]
        (words,), (listed,) = ([turn for turn in sample.turns if (turn.task is None) is free] for free in (True, False))
        assert words.reply in record.captions
        assert 1 <= len(listed.phrases) <= 3
        first.add(sample.turns[0].task)
    assert first == {None, "detection", "segmentation"}


def test_what_is_asked_in_capitals_means_what_it_means_in_small_letters() -> None:
    dataset = open_dataset("scenes", "train", task="loud")
    tasks = set()
    for index in range(24):
        record = dataset.read(index % 6)
        assert isinstance(record, Record)
        (turn,) = dataset.ask_about(record, item_rng(0, index)).turns
        tasks.add(turn.task)
        assert len(turn.phrases) <= 6
        assert turn.phrases == tuple(phrase.upper() for phrase in turn.means)
        assert turn.plain().phrases == turn.means
    assert tasks == {"detection", "segmentation", "generation", "editing", "super_resolution"}


def test_both_sides_of_a_change_are_augmented_alike() -> None:
    """A flip and a resize, and no light: what differs is still what the mask says."""
    dataset = open_dataset("scenes", "train", task="editing")
    augment = Augment(sizes=((160, 120),), light=1.0, blur=1.0, noise=1.0)
    for position in range(8):
        sample = augment(dataset.ask_about(dataset.read(position), item_rng(0, position)), item_rng(1, position))
        (before,), target = sample.pictures, sample.turns[0].target
        assert before.size == target.pictures[0].size == (160, 120)
        still = ~target.changed[0].dense()
        apart = np.abs(before.pixels.astype(int) - target.pictures[0].pixels)
        assert apart[still].max(initial=0) < 24  # a pixel on the edge of the mask holds some of either
        assert apart[still].mean() < 1 if still.any() else True
        assert apart.max() > 24


def test_a_shrunk_record_keeps_its_edits() -> None:
    record = open_dataset("scenes", "train", task="editing").read(0)
    small = shrunk(record, 160)
    assert [edit.text for edit in small.edits] == [edit.text for edit in record.edits]
    assert {edit.before.size for edit in small.edits} == {edit.changed.size for edit in small.edits} == {(160, 120)}


def test_a_picture_without_captions_is_named() -> None:
    record = Record(
        picture=open_dataset("scenes", "train").read(0).picture, names=(), boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64), crowd=np.zeros(0, bool), source=Source(dataset="d", index=7),
    )  # fmt: skip
    for task, words in (("generation", "no caption"), ("editing", "no edit")):
        asker = ASKERS[task]
        with pytest.raises(AnnotationError, match=rf"d\[7\].*{words}"):
            asker.draw(record, None, item_rng(0, 0))
        with pytest.raises(AnnotationError, match=rf"d\[7\].*{words}"):
            asker.every(record, None)
