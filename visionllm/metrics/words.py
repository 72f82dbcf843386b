"""Replies in words against the words expected.

``exact`` is the share of replies that say the same (case, punctuation and articles aside, as Antol et al. 2015, "VQA",
compare answers). Where a number is expected, ``counting`` reports the share that is exact and the mean absolute error;
a reply without a number is wrong by the number itself. ``kinds`` tells the sorts of question apart, where data name
them. Where several people have answered a question, ``consensus`` is the accuracy of VQA.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from visionllm.core.answer import Answer
from visionllm.core.sample import Turn, WordsTarget
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval

_NUMBER = re.compile(r"\d+")


@METRICS.register("words")
class WordsMetric:
    """Compares the words of an answer with those of the turn."""

    def __init__(self, names: Sequence[str] = (), *, threshold: float | None = None, keep: int = 5) -> None:
        self._same: dict[Hashable, list[float]] = defaultdict(list)
        self._errors: dict[Hashable, list[int]] = defaultdict(list)
        self._kinds: dict[str, dict[Hashable, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._agreed: dict[Hashable, list[float]] = defaultdict(list)
        self._keep = keep
        self._wrong: list[dict[str, Any]] = []

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        expected, got = turn.words or "", answer.text
        same = normal(expected) == normal(got)
        self._same[key].append(float(same))
        if turn.kind:
            self._kinds[turn.kind][key].append(float(same))
        if isinstance(turn.target, WordsTarget):
            self._agreed[key].append(consensus(got, turn.target.references))
        if not same and len(self._wrong) < self._keep:
            self._wrong.append({"key": key, "question": turn.question, "expected": expected, "got": got})
        if _NUMBER.fullmatch(expected.strip()):
            number = _NUMBER.search(got)
            self._errors[key].append(abs(int(expected) - (int(number.group()) if number else 0)))

    def compute(self) -> dict[str, Any]:
        """``exact`` and its 95 % interval, ``replies``, ``counting`` (``exact`` and ``error`` with their
        intervals, ``questions``; None without any), ``consensus`` (``VQA``, its interval, ``questions``; None without
        any), ``kinds`` (of each ``exact``, its interval, ``replies``), ``wrong``."""
        counting = None
        if self._errors:
            right = [[float(error == 0) for error in own] for own in self._errors.values()]
            errors = [error for own in self._errors.values() for error in own]
            counting = {
                "exact": _mean(right), "exact_interval": interval(right), "error": sum(errors) / len(errors),
                "error_interval": interval(list(self._errors.values())), "questions": len(errors),
            }  # fmt: skip
        agreed = list(self._agreed.values())
        return {
            **_shares(self._same),
            "counting": counting,
            "consensus": None
            if not agreed
            else {
                "VQA": _mean(agreed),
                "VQA_interval": interval(agreed),
                "questions": sum(map(len, agreed)),
            },
            "kinds": {kind: _shares(own) for kind, own in sorted(self._kinds.items())},
            "wrong": self._wrong,
        }


def consensus(said: str, answers: Sequence[str]) -> float:
    """Share of what people said that a reply agrees with, three being enough (Antol et al. 2015, "VQA", section 4): the
    mean over all choices of all people but one, so that a person is judged as a machine is. One answer is the truth."""
    same = [normal(answer) == normal(said) for answer in answers]
    if len(answers) < 2:
        return float(any(same))
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(answers)


def _shares(same: Mapping[Hashable, Sequence[float]]) -> dict[str, Any]:
    groups = list(same.values())
    return {"exact": _mean(groups), "exact_interval": interval(groups), "replies": sum(map(len, groups))}


def _mean(groups: Sequence[Sequence[float]]) -> float | None:
    values = [value for own in groups for value in own]
    return sum(values) / len(values) if values else None


def normal(words: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    words = re.sub(r"[^\w\s]", " ", words.casefold())
    return " ".join(word for word in words.split() if word not in ("a", "an", "the"))
