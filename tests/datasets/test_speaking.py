"""Expressions, captions and questions: what is asked is what the record says, and the picture stays whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from visionllm.core.errors import AnnotationError
from visionllm.core.sample import Record, Sample
from visionllm.datasets.asking import ASKERS
from visionllm.datasets.catalog import Dataset, open_dataset
from visionllm.datasets.formats.reader import Wording
from visionllm.datasets.plan import item_rng
from visionllm.datasets.speaking import MOST_LOOKS, MOST_QUESTIONS
from visionllm.datasets.transforms import Augment
from visionllm.routing.render import render

# Askers that need words; a conversation takes what there is.
WORDS = ("grounding", "referring", "captions", "questions")


def opened(task: str) -> Dataset:
    return open_dataset("scenes", "val", task=task)


def record_of(dataset: Dataset, index: int) -> Record:
    record = dataset.read(index)
    assert isinstance(record, Record)
    return record


@pytest.mark.parametrize("task", WORDS)
def test_a_reader_fills_what_the_asker_needs_and_nothing_else(task: str) -> None:
    record = record_of(opened(task), 0)
    for name in ("masks", "expressions", "captions", "questions"):
        assert bool(getattr(record, name) is not None and len(getattr(record, name))) == (name in ASKERS[task].needs)


@pytest.mark.parametrize(
    ("task", "token", "lengths"),
    [("grounding", "detection", {1, 2, 8}), ("referring", "segmentation", {1, 2, 8}),
     ("expressions", "segmentation", {1, 4, 8})],
)  # fmt: skip
def test_an_expression_asks_for_the_things_it_means(task: str, token: str, lengths: set[int]) -> None:
    dataset = opened(task)
    counts: list[int] = []
    for position in range(60):
        record = record_of(dataset, position % 20)
        means = {words.removeprefix("the "): things for words, things in record.expressions}
        turn = dataset.ask_about(record, item_rng(0, position)).turns[0]
        counts.append(len(turn.phrases))
        assert turn.task == token
        assert turn.whole
        for i, phrase in enumerate(turn.phrases):
            own = turn.target.boxes_xyxy[turn.target.phrase == i]
            assert own.tolist() == record.boxes_xyxy[list(means[phrase])].tolist()
        assert (turn.target.masks is not None) == (token == "segmentation")
    assert lengths <= set(counts)
    assert (np.mean(counts) > 5) == (task == "expressions")


def test_evaluation_asks_for_single_things_one_at_a_time() -> None:
    dataset = opened("grounding")
    for index in range(5):
        record = record_of(dataset, index)
        samples = dataset.ask_all(index)
        assert len(samples) == sum(len(things) == 1 for _, things in record.expressions)
        assert all(len(s.turns[0].phrases) == len(s.turns[0].target.boxes_xyxy) == 1 for s in samples)
        assert sum(len(s.turns[0].phrases) for s in dataset.ask_all(index, chunk=3)) == len(samples)


def test_talk_repeats_the_record() -> None:
    questions, captions = opened("questions"), opened("captions")
    lengths = set()
    for position in range(40):
        record = record_of(questions, position % 10)
        turns = questions.ask_about(record, item_rng(1, position)).turns
        lengths.add(len(turns))
        known = {(words, one.answer) for one in record.questions for words in (one.text, *one.other)}
        assert {(turn.question, turn.reply) for turn in turns} <= known
        assert all(turn.task is None and turn.whole for turn in turns)
        told = record_of(captions, position % 10)
        assert captions.ask_about(told, item_rng(1, position)).turns[0].reply == told.captions[0]
    assert {1, 12, MOST_QUESTIONS} <= lengths <= set(range(1, MOST_QUESTIONS + 1))
    assert len(questions.ask_all(0)) == len(record_of(questions, 0).questions)


def test_a_look_finds_what_its_question_speaks_of() -> None:
    """Phrases are words of the question in every wording, and their boxes are those of the answer."""
    dataset = opened("looking")
    counted = 0
    for position in range(60):
        record = record_of(dataset, position % 20)
        sample = dataset.ask_about(record, item_rng(1, position))
        assert 1 <= len(sample.turns) <= MOST_LOOKS
        boxes = [tuple(box) for turn in sample.turns for box in turn.target.boxes_xyxy.tolist()]
        assert len(set(boxes)) == len(boxes)
        for turn in sample.turns:
            assert turn.task == "looking"
            assert turn.whole
            assert turn.reply is None
            for phrase in turn.phrases:
                assert phrase in turn.question
            found = np.bincount(turn.target.phrase, minlength=len(turn.phrases)).tolist()
            if str(turn.then).isdigit():
                counted += 1
                assert found == [int(turn.then)]
            elif len(turn.phrases) == 1 and turn.then in ("yes", "no"):
                assert (found[0] > 0) == (turn.then == "yes")
            elif "more" in turn.question:
                assert (found[0] > found[1]) == (turn.then == "yes")
            else:
                assert found == [1] * len(turn.phrases)
    assert counted > 20


def test_a_question_that_nobody_can_look_for_is_a_bad_sample() -> None:
    record = record_of(opened("looking"), 0)
    silent = replace(record, questions=tuple(one._replace(looks=()) for one in record.questions))
    with pytest.raises(AnnotationError, match="ask for task questions"):
        ASKERS["looking"].draw(silent, Wording(), item_rng(0, 0))


@pytest.mark.parametrize("task", WORDS)
def test_a_record_that_says_nothing_is_a_bad_sample(task: str) -> None:
    silent = record_of(opened("detection"), 0)
    with pytest.raises(AnnotationError, match="remove it"):
        ASKERS[task].draw(silent, Wording(), item_rng(0, 0))


def test_nothing_is_cut_off_a_picture_of_which_words_are_true() -> None:
    """Every pixel of the picture stays in view, however it is flipped or shrunk."""
    augment = Augment(sizes=((96, 72),), crop=0.9, out=0.5, light=0, blur=0, noise=0)
    cut = 0
    for task in ("detection", "grounding"):
        dataset = opened(task)
        for position in range(30):
            sample = dataset.ask(position % 10, item_rng(0, position))
            assert isinstance(sample, Sample)
            changed = augment(sample, item_rng(3, position))
            same = len(changed.turns[0].target.boxes_xyxy) == len(sample.turns[0].target.boxes_xyxy)
            area = [
                np.prod(t.boxes_xyxy[:, 2:] - t.boxes_xyxy[:, :2], axis=1).sum() / np.prod(s.pictures[0].size)
                for s in (sample, changed) for t in (s.turns[0].target,)
            ]  # fmt: skip
            if task == "grounding":
                assert same
                assert area[1] <= area[0] * 1.02
            else:
                cut += not same or bool(area[1] > area[0] * 1.02)
    assert cut > 10


def test_words_of_sides_still_forbid_the_mirror() -> None:
    dataset = opened("questions")
    sides = [i for i in range(30) if any("left" in q.text for q in record_of(dataset, i).questions)]
    assert sides
    augment = Augment(flip=1.0, crop=0, out=0, light=0, blur=0, noise=0)
    for index in sides[:5]:
        for sample in dataset.ask_all(index):
            changed = augment(sample, item_rng(0, index)).pictures[0].pixels
            spoken = "left" in str(sample.turns[0].question) or "right" in str(sample.turns[0].question)
            spoken |= sample.turns[0].reply in ("left", "right")
            assert (changed == sample.pictures[0].pixels).all() == spoken


def test_a_grounded_caption_routes_what_it_says() -> None:
    """The words are those of the plain caption, and each phrase stands for the things it means."""
    plain, pointing = opened("captions"), opened("grounded_captions")
    for index in range(12):
        record = record_of(pointing, index)
        (sample,) = pointing.ask_all(index)
        (turn,) = sample.turns
        pieces = render(sample, [1])
        said = "".join(p.text for p in pieces if p.supervised and not p.control)
        assert said == record_of(plain, index).captions[0]
        links = [p.link for p in pieces if p.link is not None]
        assert [(link.phrase, link.group) for link in links] == list(zip(turn.phrases, range(len(links)), strict=True))
        for place in range(len(turn.phrases)):
            own = turn.target.boxes_xyxy[turn.target.phrase == place]
            assert len(own) > 0
            assert all(box.tolist() in record.boxes_xyxy.tolist() for box in own)


def test_turns_of_a_conversation_lean_on_one_another() -> None:
    """The same things for the other task, with their targets; what is looked for is in no breath with others."""
    dataset, again = opened("conversation"), 0
    for position in range(60):
        record = record_of(dataset, position)
        turns = dataset.ask_about(record, item_rng(0, position)).turns
        for before, turn in pairwise(turns):
            if turn.called:
                assert {before.task, turn.task} == {"detection", "segmentation"}
                assert (turn.phrases, turn.target) == (before.phrases, before.target)
                assert turn.target.masks is not None
                again += 1
            assert not (turn.joined and "looking" in (before.task, turn.task))
    assert again > 3
