"""Expressions against the one thing they mean: was it found, and how well does it fit.

``P@0.5`` is the share of expressions whose answer overlaps the thing by half or more (Kazemzadeh et al. 2014,
"ReferItGame"; Yu et al. 2016, "RefCOCO"); ``gIoU`` the mean overlap of an expression and ``cIoU`` the sum of all
intersections over the sum of all unions (Liu et al. 2023, "GRES", section 5.1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.errors import DatasetError
from visionllm.core.sample import Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import RESAMPLES, interval, ratio_interval
from visionllm.metrics.detection import box_overlaps
from visionllm.metrics.segmentation import union


class _Expressions:
    """Overlap of each expression's answer with its truth."""

    def __init__(
        self, names: Sequence[str] = (), *, threshold: float | None = None, resamples: int = RESAMPLES
    ) -> None:
        self._threshold, self._resamples = threshold, resamples
        self._ious: dict[Hashable, list[float]] = defaultdict(list)

    def compute(self) -> dict[str, Any]:
        """``P@0.5`` and ``gIoU``, each with its 95 % interval, number of expressions."""
        return {**self._shares(self._ious), "expressions": sum(map(len, self._ious.values()))}

    def _shares(self, ious: Mapping[Hashable, Sequence[float]]) -> dict[str, Any]:
        groups = list(ious.values())
        hits = [[float(iou >= 0.5) for iou in own] for own in groups]
        report: dict[str, Any] = {}
        for name, own in (("P@0.5", hits), ("gIoU", groups)):
            values = [value for one in own for value in one]
            report[name] = float(np.mean(values)) if values else None
            report[f"{name}_interval"] = interval(own, resamples=self._resamples)
        return report


@METRICS.register("grounding")
class GroundingMetric(_Expressions):
    """The best box of each expression against the truth; of several true ones the nearest."""

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        found = answer.detections
        for i, phrase in enumerate(turn.phrases):
            true = turn.target.boxes_xyxy[turn.target.phrase == i]
            own = found.of(phrase) if phrase in found.phrases else None
            iou = 0.0
            if own is not None and len(own) and len(true):
                best = own.boxes_xyxy[int(own.scores.argmax())]
                iou = float(box_overlaps(best[None].astype(np.float64), true.astype(np.float64))[0].max())
            self._ious[key].append(iou)


@METRICS.register("referring")
class ReferringMetric(_Expressions):
    """The best mask of each expression against the pixels it means.

    An expression means one thing, so of what was found the surest answers, as models of many queries are scored on
    RefCOCO (Yan et al. 2023, "Universal Instance Perception as Object Discovery and Retrieval"). ``all``
    joins the masks that reach the operating point instead, as a caller would who takes all he is given.
    """

    def __init__(self, names: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(names, **settings)
        self._all: dict[Hashable, list[float]] = defaultdict(list)
        # Of the best and of all: pixels of both, of either.
        self._pixels: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros((2, 2)))

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        """Take an answer.

        Raises:
            DatasetError: the truth has no masks.
        """
        target, found = turn.target, answer.masks
        if target.masks is None or any(mask is None for mask in target.masks.tolist()):
            raise DatasetError(f"sample {key}: the data set has no masks to compare with; give one that has")
        for i, phrase in enumerate(turn.phrases):
            true = union(target.masks[target.phrase == i], found.size)
            own = found.of(phrase) if phrase in found.phrases else found[:0]
            best = np.argsort(-own.scores, kind="stable")[:1]
            sure = own.scores >= (0.5 if self._threshold is None else self._threshold)
            sure[best] = True
            for kind, (masks, ious) in enumerate(((own.masks[best], self._ious), (own.masks[sure], self._all))):
                ours = union(masks, found.size)
                both, either = float((ours & true).sum()), float((ours | true).sum())
                self._pixels[key][kind] += both, either
                ious[key].append(both / either if either else 0.0)

    def compute(self) -> dict[str, Any]:
        """As for boxes, and ``cIoU`` with its interval; ``all`` has the same of all masks joined."""
        return {
            **super().compute(),
            **self._cumulative(0),
            "all": {**(self._shares(self._all) if self._all else {}), **self._cumulative(1)},
        }

    def _cumulative(self, kind: int) -> dict[str, Any]:
        both, either = np.array([own[kind] for own in self._pixels.values()]).reshape(-1, 2).T
        return {
            "cIoU": float(both.sum() / either.sum()) if either.sum() else None,
            "cIoU_interval": ratio_interval(both, either, resamples=self._resamples),
        }
