"""Masks of things that were pointed at: mean IoU, by the way of pointing.

Each region means one thing and brings one mask, so nothing is ranked: the figure of interactive segmentation (Sofiiuk
et al. 2022, "Reviving Iterative Training with Mask Guidance", section 4) after the first click or box.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.sample import Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval


@METRICS.register("interactive")
class InteractiveMetric:
    """Scores one mask a region; a region that brought none scores 0."""

    def __init__(self, names: Sequence[str] = (), **_: Any) -> None:
        self._found: dict[str, dict[Hashable, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        """Take one question; its phrases are the names of its regions."""
        found = answer.masks
        for number, (phrase, region) in enumerate(zip(turn.phrases, turn.regions, strict=True)):
            truth = turn.target.masks[turn.target.phrase == number][0]
            own = list(found.of(phrase).masks) if phrase in found.phrases else []
            both = own[0].intersection(truth) if len(own) else 0
            either = own[0].area + truth.area - both if len(own) else truth.area
            self._found[type(region).__name__.lower()][key].append(both / max(1, either))

    def compute(self) -> dict[str, Any]:
        """For each way of pointing ``IoU``, its 95 % interval by pictures, ``IoU50`` (share of at least half) and the
        number of ``regions``."""
        report = {}
        for kind, pictures in sorted(self._found.items()):
            values = np.array([value for own in pictures.values() for value in own])
            report[kind] = {
                "IoU": float(values.mean()), "IoU_interval": interval(list(pictures.values())),
                "IoU50": float((values >= 0.5).mean()), "regions": len(values),
            }  # fmt: skip
        return report
