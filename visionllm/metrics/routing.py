"""Whether a reply routes what was asked: the right tokens, the right phrases, the right order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from visionllm.metrics.bootstrap import interval

Route = tuple[str, str]  # (token, phrase)


def routing_exact(expected: Sequence[Route], got: Sequence[Route]) -> bool:
    """Whether a reply routes exactly as asked."""
    return failure(expected, got) is None


def failure(expected: Sequence[Route], got: Sequence[Route]) -> str | None:
    """The kind of failure of one reply, None if there is none.

    ``wrong token``: the phrases are right; ``wrong order``: only their order is not; else by number: ``missing``,
    ``extra``, or ``wrong phrase`` where as many came as were asked.
    """
    expected, got = list(expected), list(got)
    if got == expected:
        return None
    if [phrase for _, phrase in got] == [phrase for _, phrase in expected]:
        return "wrong token"
    if sorted(got) == sorted(expected):
        return "wrong order"
    if len(got) != len(expected):
        return "missing" if len(got) < len(expected) else "extra"
    return "wrong phrase"


class RoutingCounter:
    """Counts exact replies and kinds of failure, and keeps the first failures for the reader.

    Args:
        keep: how many failures to keep.
    """

    def __init__(self, keep: int = 5) -> None:
        self._keep = keep
        self._kinds: Counter[str] = Counter()
        self._exact: list[float] = []
        self._examples: list[dict[str, Any]] = []

    def add(self, expected: Sequence[Route], got: Sequence[Route]) -> None:
        kind = failure(expected, got)
        self._exact.append(float(kind is None))
        if kind is None:
            return
        self._kinds[kind] += 1
        if len(self._examples) < self._keep:
            self._examples.append({"kind": kind, "expected": _words(expected), "got": _words(got)})

    def compute(self) -> dict[str, Any]:
        """``exact`` (share of replies, None without any) and its 95 % interval, ``replies``, ``failures`` by kind,
        ``examples``."""
        return {
            "exact": sum(self._exact) / len(self._exact) if self._exact else None,
            "exact_interval": interval([[exact] for exact in self._exact]),
            "replies": len(self._exact),
            "failures": dict(self._kinds.most_common()),
            "examples": list(self._examples),
        }


def _words(routes: Sequence[Route]) -> str:
    return ", ".join(f"{phrase}{token}" for token, phrase in routes)
