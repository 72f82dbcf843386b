"""Captions that point: the words as of any caption, and whether what they name is where they say.

``box_recall`` is the share of the things the true caption means that some box of the reply overlaps by half or more;
``box_precision`` the share of the reply's boxes that overlap one of them so. Which phrase a box stands behind is not
asked: a caption may name a thing otherwise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.boxes import box_iou
from visionllm.core.sample import Turn, WordsTarget
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval
from visionllm.metrics.captions import CaptionMetric

_MARKS = re.compile(r"</?ref>|\[[A-Z]+\]")
_THRESHOLD = 0.5  # where the decoder names no operating point


@METRICS.register("grounded_captions")
class GroundedCaptionMetric:
    """Scores words and boxes of one caption a picture."""

    def __init__(self, names: Sequence[str] = (), *, threshold: float | None = None, **_: Any) -> None:
        self._threshold = _THRESHOLD if threshold is None else threshold
        self._words = CaptionMetric()
        self._recall: dict[Hashable, list[float]] = defaultdict(list)
        self._precision: dict[Hashable, list[float]] = defaultdict(list)

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        plain = replace(answer, text=_MARKS.sub("", answer.text))
        self._words.add(replace(turn, target=WordsTarget(references=(turn.reply or "",))), plain, key=key)
        found, truth = answer.detections.above(self._threshold), np.unique(turn.target.boxes_xyxy, axis=0)
        iou = box_iou(truth.astype(np.float64), found.boxes_xyxy.astype(np.float64)) >= 0.5
        self._recall[key] += iou.any(1).astype(float).tolist()
        self._precision[key] += iou.any(0).astype(float).tolist()

    def compute(self) -> dict[str, Any]:
        """As for captions, with ``box_recall``, ``box_precision`` and their 95 % intervals."""
        report = self._words.compute()
        for name, pictures in (("recall", self._recall), ("precision", self._precision)):
            values = [value for own in pictures.values() for value in own]
            report[f"box_{name}"] = sum(values) / len(values) if values else None
            report[f"box_{name}_interval"] = interval(list(pictures.values()))
        return report
