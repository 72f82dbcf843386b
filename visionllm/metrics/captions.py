"""Captions against what people wrote: CIDEr-D (Vedantam et al. 2015, "CIDEr", sections 3 and 5).

A caption is the bag of its runs of one to four words, each weighted by how rare it is among the pictures of the set; it
is compared with each reference by the cosine of these, run length by run length. Runs count no more often than in the
reference, and a Gaussian of the difference in length keeps long captions from gaining by it. Times ten, as published.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.sample import Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval

LONGEST, SIGMA = 4, 6.0
Run = tuple[str, ...]


@METRICS.register("captions")
class CaptionMetric:
    """Scores each reply against all its references, the turn's ``target.references``; a picture may bring several (of
    its regions)."""

    def __init__(self, names: Sequence[str] = (), **_: Any) -> None:
        self._found: list[str] = []
        self._truth: list[list[str]] = []
        self._keys: list[Hashable] = []

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        self._found.append(_plain(answer.text))
        self._truth.append([_plain(text) for text in turn.target.references])
        self._keys.append(key)

    def compute(self) -> dict[str, Any]:
        """``CIDEr`` and its 95 % interval, ``exact`` (share of replies that are one of the references), number of
        ``captions``."""
        scores = cider(self._found, self._truth)
        pictures: dict[Hashable, list[float]] = defaultdict(list)
        for key, score in zip(self._keys, scores.tolist(), strict=True):
            pictures[key].append(score)
        exact = [words in texts for words, texts in zip(self._found, self._truth, strict=True)]
        return {
            "CIDEr": float(scores.mean()) if len(scores) else None,
            "CIDEr_interval": interval(list(pictures.values())),
            "exact": sum(exact) / len(exact) if exact else None,
            "captions": len(exact),
        }


def cider(found: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) scores of N captions, words apart by spaces, each with its own references."""
    cooked = [[_runs(text) for text in texts] for texts in references]
    rarity: Counter[Run] = Counter()
    for runs in cooked:
        rarity.update({run for own in runs for run in own})
    pictures = math.log(max(1, len(references)))
    scores = []
    for text, runs in zip(found, cooked, strict=True):
        own = _weighted(_runs(text), rarity, pictures)
        parts = [_alike(own, _weighted(other, rarity, pictures)) for other in runs]
        scores.append(10 * float(np.mean(parts)) if parts else 0.0)
    return np.array(scores, np.float64)


def _plain(text: str) -> str:
    """Lower case without punctuation. Articles stay: the published figures count them."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def _runs(text: str) -> Counter[Run]:
    words = text.split()
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _weighted(runs: Counter[Run], rarity: Counter[Run], pictures: float) -> tuple[list[dict[Run, float]], int]:
    """Weights by length of the run, and the length of the text, which the published code counts in pairs of words."""
    table: list[dict[Run, float]] = [defaultdict(float) for _ in range(LONGEST)]
    for run, count in runs.items():
        table[len(run) - 1][run] = count * (pictures - math.log(max(1, rarity[run])))
    return table, sum(count for run, count in runs.items() if len(run) == 2)


def _alike(found: tuple[list[dict[Run, float]], int], truth: tuple[list[dict[Run, float]], int]) -> float:
    total = 0.0
    for own, other in zip(found[0], truth[0], strict=True):
        norms = math.sqrt(sum(v * v for v in own.values())) * math.sqrt(sum(v * v for v in other.values()))
        both = sum(min(weight, other[run]) * other[run] for run, weight in own.items() if run in other)
        total += both / norms if norms else 0.0
    return total / LONGEST * math.exp(-((found[1] - truth[1]) ** 2) / (2 * SIGMA**2))
