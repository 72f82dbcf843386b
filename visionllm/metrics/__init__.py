"""How well results fit targets. A task names its metric; a plugin brings its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from visionllm.core.answer import Answer
from visionllm.core.registry import Registry
from visionllm.core.sample import Turn


class Metric(Protocol):
    """Collects answers and their targets, then gives figures that JSON can hold."""

    def add(self, turn: Turn, answer: Answer, *, key: Any) -> None:
        """Take one question.

        Args:
            turn: what was asked, and the truth: its ``target``, or its ``reply``.
            answer: what came back.
            key: of the sample; questions about the same picture share it.
        """
        ...

    def compute(self) -> dict[str, Any]: ...


# Name -> maker of an empty metric for a data set's category names; `threshold=` is the decoder's operating point.
METRICS: Registry[Callable[..., Metric]] = Registry(
    "metric", group="visionllm.decoders", builtin="visionllm.metrics.all"
)
