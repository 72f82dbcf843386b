"""A task is checked when it is registered, a token when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from visionllm.core.task import TASKS, Task, Token, register_task


def task(*tokens: Token) -> Task:
    return Task(name="x", tokens=tokens, decoder="x", result="x", verb=None, templates="x:x.yaml", metric="x",
                loss_weights={})  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"text": "[X]", "queries": 0}, "queries: expected at least 1, got 0"),
        ({"text": "", "queries": 1}, "text: expected one word"),
        ({"text": "[X Y]", "queries": 1}, "text: expected one word"),
        ({"text": " [X]", "queries": 1}, "text: expected one word"),
    ],
)
def test_a_token_that_is_none(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Token(**keys)


def test_tokens_of_a_task_have_a_root() -> None:
    names = set(TASKS.held())
    root, part = Token(text="[X]", queries=2), Token(text="[Y]", queries=1, parent="[X]")
    assert task(root, part).parts_token is part
    for tokens, words in [
        ((), "the first is the root"),
        ((part, root), "the first is the root"),
        ((root, Token(text="[Y]", queries=1, parent="[Z]")), r"no token \[Z\] of this task is a root"),
        ((root, part, Token(text="[W]", queries=1, parent="[Y]")), r"no token \[Y\] of this task is a root"),
    ]:
        with pytest.raises(ValueError, match=words):
            register_task(task(*tokens))
    assert set(TASKS.held()) == names
