"""Turns that lean on the one before them: "and the dogs?", "now outline them"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from visionllm.core.sample import Turn

# The same again of other things; and what the things of the turn before are called, one or several of them.
_MORE = (
    "and {phrases}?", "and {phrases}", "and the {phrases}?", "and the {phrases}", "now {phrases}", "now the {phrases}",
    "what about {phrases}?", "what about the {phrases}?", "how about the {phrases}?", "also {phrases}",
    "the {phrases} too", "{phrases} too please", "the same for {phrases}", "do the same for the {phrases}",
    "the {phrases} as well", "then the {phrases}", "now do {phrases}", "next, the {phrases}",
)  # fmt: skip
_ONE, _MANY = ("it", "it", "it", "that", "that one"), ("them", "them", "them", "these", "those", "all of them")
_JOINS = (", ", " and ", ", ")


def more(turn: Turn, rng: np.random.Generator) -> Turn:
    """A turn of a list, asked as one that goes on with the task of the turn before it."""
    between = _JOINS[int(rng.integers(len(_JOINS)))]
    words = _MORE[int(rng.integers(len(_MORE)))]
    # A name that opens the question keeps its case: the reply repeats it as it was typed.
    if rng.random() < 0.2 and not words.startswith("{"):
        words = words[:1].upper() + words[1:]
    return replace(turn, question=words.replace("{phrases}", between.join(turn.phrases)))


def louder(turn: Turn) -> Turn:
    """A turn whose names, and whose question where it has one, are in capitals; they mean what they mean in small
    letters."""
    question = None if turn.question is None else turn.question.upper()
    phrases = tuple(phrase.upper() for phrase in turn.phrases)
    return replace(turn, phrases=phrases, question=question, means=turn.means or turn.phrases)


def again(turn: Turn, task: str, rng: np.random.Generator) -> Turn:
    """The same phrases for another task, called "them" or "it"; the reply says what they are."""
    called: Sequence[str] = _ONE if len(turn.phrases) == 1 and rng.random() < 0.5 else _MANY
    return replace(turn, task=task, question=None, called=called[int(rng.integers(len(called)))])
