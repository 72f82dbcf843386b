"""Panoptic quality (Kirillov et al. 2019, "Panoptic Segmentation", section 4): what is found, and how well it fits.

A segment is found by one of the same category that overlaps it by more than half; such a partner is unique. Pixels of
the truth that belong to nobody (id 0) count against nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.errors import ShapeError
from visionllm.core.panoptic import Panoptic, PanopticTruth
from visionllm.core.sample import Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import RESAMPLES, bounds, drawn, mean_of_known, ratio


class PanopticQuality:
    """Collects pairs of a found and a true segmentation.

    Args:
        stuff: categories that are no things, for the two means reported beside the whole.
    """

    def __init__(self, stuff: Collection[str] = ()) -> None:
        self.stuff = set(stuff)
        # Picture by picture: category -> sum of overlaps, number of hits, false ones, missed ones.
        self._pictures: list[dict[str, np.ndarray]] = []

    def add(self, found: Panoptic, truth: Panoptic) -> None:
        """Take one picture.

        Raises:
            ShapeError: the two are of different sizes.
        """
        if found.ids.shape != truth.ids.shape:
            raise ShapeError(f"segmentations of {found.ids.shape} and {truth.ids.shape} cannot be compared")
        pairs, counts = np.unique(np.stack([found.ids, truth.ids]).reshape(2, -1), axis=1, return_counts=True)
        both = {(int(a), int(b)): int(n) for (a, b), n in zip(pairs.T, counts, strict=True)}
        names = {segment.id: segment.phrase for segment in truth.segments}
        areas = {segment.id: segment.area for segment in truth.segments}
        matched: set[int] = set()
        counts_of: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
        for segment in found.segments:
            void = both.get((segment.id, 0), 0)
            partner = None
            for true_id, name in names.items():
                shared = both.get((segment.id, true_id), 0)
                union = segment.area - void + areas[true_id] - shared
                if name == segment.phrase and shared and shared > 0.5 * union:
                    partner, overlap = true_id, shared / union
            if partner is not None:
                matched.add(partner)
                counts_of[segment.phrase] += overlap, 1, 0, 0
            elif void <= 0.5 * segment.area:
                counts_of[segment.phrase][2] += 1
        for true_id, name in names.items():
            if true_id not in matched:
                counts_of[name][3] += 1
        self._pictures.append(dict(counts_of))

    def compute(self, resamples: int = RESAMPLES) -> dict[str, Any]:
        """``PQ``, ``SQ``, ``RQ`` (means over categories that were found or are there), ``PQ_things``, ``PQ_stuff``, and
        their 95 % intervals, ``categories`` with each one's figures."""
        names = sorted({name for own in self._pictures for name in own})
        nothing = np.zeros(4)
        table = np.array([[own.get(name, nothing) for name in names] for own in self._pictures])
        table = table.reshape(len(self._pictures), len(names), 4)
        weights = drawn(len(self._pictures), resamples=resamples)
        whole, resampled = _quality(table.sum(0)[None]), _quality(np.einsum("rp,pnk->rnk", weights, table))
        segments = (table[..., 1] + table[..., 3]).sum(0).astype(int).tolist()
        stuff = np.array([name in self.stuff for name in names], bool)
        every = np.ones(len(names), bool)
        means = {"PQ": (0, every), "SQ": (1, every), "RQ": (2, every), "PQ_things": (0, ~stuff), "PQ_stuff": (0, stuff)}
        report: dict[str, Any] = {}
        for key, (kind, rows) in means.items():
            value, several = (mean_of_known(values[:, rows, kind], 1) for values in (whole, resampled))
            report[key] = None if np.isnan(value[0]) else float(value[0])
            report[f"{key}_interval"] = bounds(several)
        report["categories"] = {
            name: {"PQ": float(pq), "SQ": float(sq), "RQ": float(rq), "segments": count}
            for name, (pq, sq, rq), count in zip(names, whole[0], segments, strict=True)
        }
        return report


@METRICS.register("panoptic")
class PanopticMetric:
    """Masks of all that was asked, merged, against the truth of each picture."""

    def __init__(
        self, names: Sequence[str] = (), *, threshold: float | None = None, resamples: int = RESAMPLES
    ) -> None:
        self._threshold, self._resamples = 0.5 if threshold is None else threshold, resamples
        self._quality = PanopticQuality()

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        """Take one question; masks that do not reach the operating point own nothing."""
        truth: PanopticTruth = turn.target
        self._quality.stuff |= truth.stuff
        self._quality.add(answer.masks.above(self._threshold).panoptic(truth.stuff), truth.whole)

    def compute(self) -> dict[str, Any]:
        """As of ``PanopticQuality``."""
        return self._quality.compute(self._resamples)


def _quality(counts: np.ndarray) -> np.ndarray:
    """(..., 4) overlaps, hits, false and missed ones -> (..., 3) PQ, SQ, RQ; NaN where there is none of a category."""
    overlap, hits, false, missed = np.moveaxis(counts, -1, 0)
    recognised = ratio(hits, hits + (false + missed) / 2)
    quality = np.where(np.isnan(recognised), np.nan, np.nan_to_num(ratio(overlap, hits)))
    return np.stack([quality * recognised, quality, recognised], -1)
