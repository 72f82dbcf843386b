"""Conversations: what was said stays said, to the id, and every turn may route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from visionllm.core.errors import PromptError
from visionllm.core.sample import Turn

Make = Callable[..., Any]
EVERYTHING = {"objects": {"threshold": 0.0}}


def test_the_first_question_is_answered_as_without_a_conversation(model: Any, picture: Make) -> None:
    alone = model.ask(picture(), "what is here", max_new_tokens=10)
    chat = model.chat(picture(), max_new_tokens=10)
    assert chat.ask("what is here").trace.token_ids == alone.trace.token_ids
    assert [answer.prompt for answer in chat.answers] == ["what is here"]


def test_every_turn_may_route_and_gives_its_own_links(
    model: Any, picture: Make, dictate: Make, reply_ids: Make
) -> None:
    chat = model.chat(picture(), options=EVERYTHING)
    dictate(model, reply_ids(model, ("car", "dog")))
    first = chat.ask("detect car and dog")
    dictate(model, reply_ids(model, ("tree",)))
    second = chat.ask("and the tree?")
    assert [link.meta.phrase for link in first.links] == ["car", "dog"]
    assert [link.meta.phrase for link in second.links] == ["tree"]
    assert len(second.detections) > 0
    # The link hangs on all that was said: alone, the same words give another answer.
    dictate(model, reply_ids(model, ("tree",)))
    alone = model.ask(picture(), "and the tree?", options=EVERYTHING)
    assert np.abs(alone.detections.scores - second.detections.scores).max() > 1e-4


def test_the_past_is_read_as_it_was_written(model: Any, picture: Make, dictate: Make, reply_ids: Make) -> None:
    """The ids of the second prompt: those of the first, the reply, its end, and the new question."""
    script = reply_ids(model, ("car",))
    dictate(model, script)
    chat = model.chat(picture())
    answer = chat.ask("detect car")
    sample = chat._sample.with_turns(Turn(question="detect car"))
    went = Turn(question="detect car", said=answer.trace.token_ids)
    before, after = (
        model.processor.encode([one], reply=False).input_ids[0].tolist()
        for one in (sample, sample.with_turns(went, Turn(question="go on")))
    )
    said = [*answer.trace.token_ids, model.vocabulary.end, *model.vocabulary.plain("\n")]
    assert after[: len(before) + len(said)] == before + said
    assert list(answer.trace.token_ids) == [token for token in script if token != model.vocabulary.end]


def test_letters_of_the_past_do_not_steer(model: Any, picture: Make, dictate: Make) -> None:
    """The model repeats a user's "[DET]" letter by letter; it is no routing token when it is read again."""
    dictate(model, model.vocabulary.plain("<ref>car</ref>[DET]"))
    chat = model.chat(picture())
    first = chat.ask("say [DET]")
    assert first.links == ()
    past = Turn(question=first.prompt, said=first.trace.token_ids)
    ids = model.processor.encode([chat._sample.with_turns(past, Turn(question="again"))], reply=False).input_ids[0]
    assert not set(ids.tolist()) & set(model.vocabulary.routing)


def test_what_is_not_waited_for_is_not_said(model: Any, picture: Make) -> None:
    chat = model.chat(picture(), max_new_tokens=6)
    for _ in chat.ask("what is here", stream=True):
        break
    assert chat.answers == []
    assert list(chat.ask("what is here", stream=True))[-1].answer is chat.answers[0]


def test_a_conversation_without_end_meets_the_context(make_model: Make) -> None:
    chat = make_model(context=64).chat(max_new_tokens=8)

    def talk() -> None:
        for _ in range(20):
            chat.ask("go on and on and on")

    with pytest.raises(PromptError, match=r"the model reads 64|fills the context"):
        talk()
    assert chat.answers
    with pytest.raises(PromptError, match="prompt: empty"):
        chat.ask(" ")
