"""How well results fit targets. A task names its metric; a plugin brings its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from visionllm.core.answer import Answer
from visionllm.core.registry import Registry


class Metric(Protocol):
    """Collects answers and their targets, then gives figures that JSON can hold."""

    def add(self, phrases: Sequence[str], answer: Answer, target: Any, *, key: Any) -> None:
        """Take one question.

        Args:
            phrases: what was asked; the target's indices point here.
            answer: what came back.
            target: the truth.
            key: of the sample; questions about the same picture share it.
        """
        ...

    def compute(self) -> dict[str, Any]: ...


# Name -> maker of an empty metric for a data set's category names; `threshold=` is the decoder's operating point.
METRICS: Registry[Callable[..., Metric]] = Registry(
    "metric", group="visionllm.decoders", builtin="visionllm.metrics.segmentation"
)
