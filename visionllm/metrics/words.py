"""Replies in words against the words expected.

``exact`` is the share of replies that say the same (case, punctuation and articles aside, as Antol et al. 2015, "VQA",
compare answers). Where a number is expected, ``counting`` reports the share that is exact and the mean absolute error;
a reply without a number is wrong by the number itself.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

from visionllm.core.answer import Answer
from visionllm.core.sample import Turn
from visionllm.metrics import METRICS

_NUMBER = re.compile(r"\d+")


@METRICS.register("words")
class WordsMetric:
    """Compares the reply of an answer with the reply of the turn."""

    def __init__(self, names: Sequence[str] = (), *, threshold: float | None = None, keep: int = 5) -> None:
        self._same: list[bool] = []
        self._errors: list[int] = []
        self._keep = keep
        self._wrong: list[dict[str, Any]] = []

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        expected, got = turn.reply or "", answer.text
        same = normal(expected) == normal(got)
        self._same.append(same)
        if not same and len(self._wrong) < self._keep:
            self._wrong.append({"key": key, "question": turn.question, "expected": expected, "got": got})
        if _NUMBER.fullmatch(expected.strip()):
            number = _NUMBER.search(got)
            self._errors.append(abs(int(expected) - (int(number.group()) if number else 0)))

    def compute(self) -> dict[str, Any]:
        """``exact``, ``replies``, ``counting`` (``exact``, ``error``, ``questions``; None without any), ``wrong``."""
        counting = None
        if self._errors:
            exact = sum(error == 0 for error in self._errors) / len(self._errors)
            counting = {"exact": exact, "error": sum(self._errors) / len(self._errors), "questions": len(self._errors)}
        return {
            "exact": sum(self._same) / len(self._same) if self._same else None,
            "replies": len(self._same),
            "counting": counting,
            "wrong": self._wrong,
        }


def normal(words: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    words = re.sub(r"[^\w\s]", " ", words.casefold())
    return " ".join(word for word in words.split() if word not in ("a", "an", "the"))
