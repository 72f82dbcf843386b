"""Conversations as text: who asks in one breath is answered in one reply, and every reply ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from visionllm.core.sample import Sample, Turn
from visionllm.routing.render import Style, render, render_question
from visionllm.routing.vocabulary import END, START

Make = Callable[..., Any]
CARS = Turn(task="detection", phrases=("cars", "dog"))
MASKS = Turn(task="segmentation", phrases=("red car",))
TALK = Turn(question="How many cars?", reply="2")


def text_of(sample: Sample, **settings: Any) -> str:
    return "".join(piece.text for piece in render(sample, [], **settings))


def test_one_breath_is_one_reply_and_each_link_keeps_its_turn() -> None:
    sample = Sample(turns=(CARS, replace(MASKS, joined=True), replace(TALK, joined=True)))
    pieces = render(sample, [])
    assert text_of(sample) == (
        f"{START}user\ndetect cars, dog; segment red car; How many cars?{END}\n{START}assistant\n"
        f"<ref>cars</ref>[DET], <ref>dog</ref>[DET]; <ref>red car</ref>[SEG]; 2{END}\n"
    )
    links = [piece.link for piece in pieces if piece.link is not None]
    assert [(link.token, link.phrase, link.turn, link.group) for link in links] == [
        ("[DET]", "cars", 0, 0), ("[DET]", "dog", 0, 1), ("[SEG]", "red car", 1, 0)
    ]  # fmt: skip
    assert render_question(*sample.turns) == "detect cars, dog; segment red car; How many cars?"


def test_nobody_greets_twice_in_one_breath() -> None:
    rng = np.random.default_rng(0)
    asked = [render_question(CARS, replace(MASKS, joined=True), rng=rng).lower() for _ in range(200)]
    greetings = ("hi, ", "hello! ", "now ", "next, ")
    assert any(words.startswith(greetings) for words in asked)
    assert not any(greeting in words[1:] for words in asked for greeting in ("hi, ", "hello! "))
    assert any(" and then " in words for words in asked)


def test_turns_apart_are_exchanges_of_their_own() -> None:
    sample = Sample(turns=(CARS, MASKS, replace(TALK, joined=True)))
    whole = text_of(sample)
    assert whole.count(f"{START}user") == whole.count(f"{START}assistant") == 2
    assert whole.count(END) == 4
    assert text_of(sample, reply=False).endswith(f"{START}assistant\n")
    assert "[DET]" in text_of(sample, reply=False)  # the past stays
    assert "[SEG]" not in text_of(sample, reply=False)


def test_what_is_supervised_are_the_replies() -> None:
    sample = Sample(turns=(CARS, replace(TALK, joined=True), MASKS))
    said = "".join(piece.text for piece in render(sample, []) if piece.supervised)
    assert said == (f"<ref>cars</ref>[DET], <ref>dog</ref>[DET]; 2{END}<ref>red car</ref>[SEG]{END}")


@pytest.mark.parametrize("turns", [(TALK,), (CARS, MASKS), (CARS, replace(MASKS, joined=True)), (TALK, TALK)])
def test_branches_are_for_one_routed_turn(turns: tuple[Turn, ...]) -> None:
    """Anything else is rendered as without them: a reply in words must not lose its end."""
    sample = Sample(turns=turns)
    assert render(sample, [], style=Style(tree=True)) == render(sample, [])
    alone = render(Sample(turns=(CARS,)), [], style=Style(tree=True))
    assert {piece.branch for piece in alone} == {0, 1, 2}


def test_wordings_are_drawn_for_each_part() -> None:
    sample = Sample(turns=(CARS, replace(MASKS, joined=True)))
    drawn = {render_question(*sample.turns, rng=np.random.default_rng(seed)) for seed in range(40)}
    assert len(drawn) > 35
    assert any("; " not in question for question in drawn)


def test_names_stand_in_the_question_as_the_reply_repeats_them() -> None:
    turn = Turn(task="detection", phrases=("throttle", "Sea lion"))
    drawn = [render_question(turn, rng=np.random.default_rng(seed)) for seed in range(1500)]
    assert all("throttle" in question and "Sea lion" in question for question in drawn)
    assert any(question.startswith("throttle") for question in drawn)
    assert any(question[0].isupper() for question in drawn)


@pytest.mark.parametrize(("task", "phrase", "said"), [
    ("detection", "the bus", "bus"), ("segmentation", "Every one  of the red cars", "red cars"),
    ("detection", "an owl", "owl"), ("generation", "a white dog on the grass", "white dog on the grass"),
    ("detection", "all", "all"), ("detection", "one-way sign", "one-way sign"), ("detection", "theatre", "theatre"),
    ("editing", "the car blue", "the car blue"),  # no wording of its puts anything in front
])  # fmt: skip
def test_a_reply_says_a_phrase_without_what_leads_to_it(task: str, phrase: str, said: str) -> None:
    """As replies in training do; the answer is asked for by the user's own words all the same."""
    for tree in (False, True):
        pieces = render(Sample(turns=(Turn(task=task, phrases=(phrase,)),)), [], style=Style(tree=tree))
        (at,) = [i for i, piece in enumerate(pieces) if piece.link is not None]
        assert pieces[at - 2].text == said
        assert pieces[at].link.phrase == phrase
        assert tree or any(phrase in piece.text for piece in pieces if not piece.supervised)


def test_each_part_learns_from_its_own_truth(make_model: Make, boxed: Make) -> None:
    """Losses of a breath of boxes and boxes are those of its targets, whichever is asked first."""
    model = make_model(mask_width=16, denoising=0)
    one, other = (
        boxed(phrases=(name,), boxes=((0, *box),)) for name, box in (("car", (5, 5, 40, 30)), ("dog", (9, 9, 70, 50)))
    )
    second = replace(other.turns[0], task="segmentation", joined=True)
    batch = model.processor.encode([one.with_turns(one.turns[0], second)])
    assert [(meta.token, meta.turn) for meta in batch.links.meta] == [("[DET]", 0), ("[SEG]", 1)]
    losses = model(batch)
    wrong = one.with_turns(one.turns[0], replace(second, target=one.turns[0].target))
    mistaken = model(model.processor.encode([wrong]))
    assert float(mistaken.sums["objects/l1"].detach()) != float(losses.sums["objects/l1"].detach())
    assert model.counts(batch)["objects/presence"] == 2


def test_a_conversation_of_all_kinds_trains(make_model: Make) -> None:
    """Scenes bring every kind; every loss of the decoder and of the words is there and finite."""
    from visionllm.datasets.catalog import open_dataset
    from visionllm.datasets.plan import item_rng

    model = make_model(mask_width=16, pose_layers=1, context=4096, looks=True).train()
    dataset = open_dataset("scenes", "train", task="conversation")
    samples = [dataset.ask(i, item_rng(0, i)) for i in range(6)]
    tasks = {turn.task for sample in samples for turn in sample.turns}
    assert tasks == {None, "detection", "segmentation", "pose", "looking"}
    assert any(turn.joined for sample in samples for turn in sample.turns)
    losses = model(model.processor.encode(samples, [Style(rng=np.random.default_rng(i)) for i in range(6)]))
    assert {"lm", "end", "link", "objects/mask", "objects/class"} <= set(losses.sums)
    assert all(np.isfinite(float(value.detach())) for value in losses.sums.values())
    assert float(losses.sums["objects/mask"].detach()) > 0
    assert float(losses.sums["objects/oks"].detach()) > 0
    one, again = (tuple(turn.phrases for turn in dataset.ask_all(0)[0].turns) for _ in range(2))
    assert one == again


def test_a_reply_in_free_words_keeps_its_end_in_every_layout() -> None:
    """It is written one word after the other, so it has no branches."""
    turn = Turn(task="detection", phrases=("red car",), question="?", reply="A red car.")
    for tree in (False, True):
        pieces = render(Sample(turns=(turn,)), [], style=Style(tree=tree))
        assert "".join(p.text for p in pieces if p.supervised) == "A <ref>red car</ref>[DET].<|im_end|>"
        assert {p.branch for p in pieces} == {0}


def test_a_reply_in_free_words_keeps_its_articles() -> None:
    reply = "Here is the red car and a dog."
    turn = Turn(task="detection", phrases=("the red car", "a dog"), question="?", reply=reply)
    said = "".join(piece.text for piece in render(Sample(turns=(turn,)), []) if piece.supervised)
    assert said.startswith("Here is <ref>the red car</ref>[DET] and <ref>a dog</ref>[DET].")
