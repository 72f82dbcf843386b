"""From a sample to pieces, and from a written reply back to links."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from visionllm.core.errors import UnknownNameError
from visionllm.core.sample import Sample, Turn
from visionllm.core.task import TASKS
from visionllm.routing.readout import Text, find_links
from visionllm.routing.render import Style, render, render_question
from visionllm.routing.wording import load_templates

Make = Callable[..., Any]


def written(model: Any, *pieces: str) -> list[int]:
    """Ids of a reply: control tokens by their text, everything else as plain words."""
    vocabulary, ids = model.vocabulary, []
    for piece in pieces:
        steers = piece in ("<ref>", "</ref>", "[DET]", "<|im_end|>")
        ids += [vocabulary.control(piece)] if steers else vocabulary.plain(piece)
    return ids


def text_of(rows: list[list[int]], start: int = 2) -> Text:
    width = start + max(len(row) for row in rows)
    ids, owner = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -1)
    for r, row in enumerate(rows):
        ids[r, start : start + len(row)] = torch.tensor(row)
        owner[r, : start + len(row)] = r
    zeros = torch.zeros_like(ids)
    return Text(ids=ids, owner=owner, branch=zeros, position=zeros)


@pytest.mark.parametrize(
    ("pieces", "phrases"),
    [
        (("<ref>", "car", "</ref>", "[DET]"), ["car"]),
        (("<ref>", "car", "</ref>", "[DET]", ", ", "<ref>", "a red [DET]", "</ref>", "[DET]"), ["car", "a red [DET]"]),
        (("I see ", "<ref>", "größe 你好", "</ref>", "[DET]", "."), ["größe 你好"]),
        (("[DET]",), [""]),  # nothing named
        (("car", "[DET]"), [""]),  # words that are no phrase
        (("<ref>", "car", "</ref>", " ", "[DET]"), [""]),  # the token must follow directly
        (("<ref>", "a", "<ref>", "b", "</ref>", "[DET]"), ["b"]),  # the last mark counts
        (("</ref>", "[DET]"), [""]),  # closed, never opened
        (("<ref>", "</ref>", "[DET]"), [""]),
        (("<ref>", "car", "</ref>"), []),
        (("<ref>", "car", "</ref>", "[DET]", "[DET]"), ["car", ""]),
    ],
)
def test_phrases_of_a_reply(model: Any, pieces: tuple[str, ...], phrases: list[str]) -> None:
    links = find_links(text_of([written(model, *pieces)]), 2, model.vocabulary)
    assert [meta.phrase for meta in links.meta] == phrases
    assert [meta.group for meta in links.meta] == list(range(len(phrases)))
    assert all(meta.task == "detection" and meta.token == "[DET]" for meta in links.meta)


def test_links_of_a_batch_are_where_their_tokens_are(model: Any) -> None:
    """Prompts are not searched, nor is what stands on finished rows."""
    long = written(model, "<ref>", "dog", "</ref>", "[DET]", " and ", "<ref>", "cat", "</ref>", "[DET]")
    short = written(model, "<ref>", "car", "</ref>", "[DET]", "<|im_end|>")
    text = text_of([short, long], start=1)
    det = model.vocabulary.control("[DET]")
    text.ids[0, -1] = det  # on padding
    text.ids[:, 0] = det  # in the prompt
    links = find_links(text, 1, model.vocabulary)
    assert [(m.sample, m.phrase) for m in links.meta] == [(0, "car"), (1, "dog"), (1, "cat")]
    for row, column in zip(links.row, links.column, strict=True):
        assert text.ids[row, column] == det
    assert links.queries == (4, 4, 4)


def test_what_is_rendered_is_found_again(model: Any, boxed: Make) -> None:
    """Training's own layout and the one read from a written reply are the same."""
    for phrases in [("car",), ("car", "dog on a bench", "<ref>"), ("[DET]", "x</ref>[DET]")]:
        batch = model.processor.encode([boxed(phrases=phrases)])
        start = int((batch.labels[0] != -100).nonzero()[0])
        found = find_links(Text.of(batch), start, model.vocabulary)
        assert (found.row, found.column, found.queries) == (batch.links.row, batch.links.column, batch.links.queries)
        assert [m.phrase for m in found.meta] == [m.phrase for m in batch.links.meta] == list(phrases)


def test_supervision_is_the_reply_and_nothing_else(model: Any, boxed: Make) -> None:
    batch = model.processor.encode([boxed()])
    kept = batch.labels[0][batch.labels[0] != -100]
    assert model.vocabulary.text(kept.tolist()) == "<ref>car</ref>[DET], <ref>dog</ref>[DET]<|im_end|>"
    tree = model.processor.encode([boxed()], [Style(tree=True)])
    # In a branch only the routing token follows from what stands before it.
    assert model.vocabulary.text(tree.labels[0][tree.labels[0] != -100].tolist()) == "[DET][DET]"


def test_branches_start_at_the_end_of_the_trunk(model: Any, boxed: Make) -> None:
    batch = model.processor.encode([boxed(phrases=("car", "a big dog", "cat"))], [Style(tree=True)])
    branch, position = batch.branch[0], batch.position_ids[0]
    trunk = int((branch == 0).sum())
    assert position[branch == 0].tolist() == list(range(trunk))
    for k in (1, 2, 3):
        own = position[branch == k]
        assert own.tolist() == list(range(trunk, trunk + len(own)))


def test_the_prompt_for_generation_is_the_front_of_the_training_text(model: Any, boxed: Make) -> None:
    """What the model is asked in use is what it was trained on, to the last id."""
    sample = boxed(question="where are they?")
    whole, prompt = model.processor.encode([sample]), model.processor.encode([sample], reply=False)
    width = prompt.input_ids.shape[1]
    assert torch.equal(whole.input_ids[:, :width], prompt.input_ids)
    assert whole.labels[0, width] != -100
    assert bool((whole.labels[0, :width] == -100).all())


@pytest.mark.parametrize("seed", range(20))
def test_every_wording_names_every_phrase_in_order(seed: int) -> None:
    phrases = ("cars", "red dog", "glass {x} %s")
    question = render_question(Turn(task="detection", phrases=phrases), rng=np.random.default_rng(seed))
    places = [question.index(phrase) for phrase in phrases]
    assert places == sorted(places)
    assert "{phrases}" not in question


def test_templates_of_every_task_are_whole() -> None:
    for name in TASKS:
        templates = load_templates(TASKS[name].templates)
        for group in templates.groups:
            assert "{links}" in group.reply
            assert all("{phrases}" in question for question in group.questions)
        assert all("{" not in words for words in templates.branches)


def test_turns_of_plain_words(model: Any) -> None:
    sample = Sample(turns=(Turn(question="hello", reply="hi [DET]"), Turn(question="and?", reply="bye")))
    batch = model.processor.encode([sample])
    assert len(batch.links) == 0
    kept = batch.labels[0][batch.labels[0] != -100]
    assert model.vocabulary.text(kept.tolist()) == "hi [DET]<|im_end|>bye<|im_end|>"


def test_a_conversation_keeps_earlier_replies_when_it_goes_on() -> None:
    sample = Sample(turns=(Turn(question="a", reply="first"), Turn(question="b")))
    words = "".join(piece.text for piece in render(sample, [], reply=False))
    assert "first" in words
    assert words.endswith("assistant\n")


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UnknownNameError, match="detection"):
        render(Sample(turns=(Turn(task="detektion", phrases=("x",)),)), [])
