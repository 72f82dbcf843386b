"""Panoptic quality (Kirillov et al. 2019, "Panoptic Segmentation", section 4): what is found, and how well it fits.

A segment is found by one of the same category that overlaps it by more than half; such a partner is unique. Pixels of
the truth that belong to nobody (id 0) count against nobody.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np

from visionllm.core.errors import ShapeError
from visionllm.core.panoptic import Panoptic


class PanopticQuality:
    """Collects pairs of a found and a true segmentation.

    Args:
        stuff: categories that are no things, for the two means reported beside the whole.
    """

    def __init__(self, stuff: Collection[str] = ()) -> None:
        self._stuff = set(stuff)
        self._overlap: dict[str, float] = defaultdict(float)
        self._counts: dict[str, Counter[str]] = {"hit": Counter(), "false": Counter(), "missed": Counter()}

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
                self._overlap[segment.phrase] += overlap
                self._counts["hit"][segment.phrase] += 1
            elif void <= 0.5 * segment.area:
                self._counts["false"][segment.phrase] += 1
        self._counts["missed"].update(name for true_id, name in names.items() if true_id not in matched)

    def compute(self) -> dict[str, Any]:
        """``PQ``, ``SQ``, ``RQ`` (means over categories that were found or are there), ``PQ_things``, ``PQ_stuff``,
        ``categories`` with each one's figures."""
        names = sorted({name for counter in self._counts.values() for name in counter})
        each = {}
        for name in names:
            hits, false, missed = (self._counts[kind][name] for kind in ("hit", "false", "missed"))
            quality = self._overlap[name] / hits if hits else 0.0
            recognised = hits / (hits + (false + missed) / 2)
            each[name] = {"PQ": quality * recognised, "SQ": quality, "RQ": recognised, "segments": hits + missed}
        things = [entry["PQ"] for name, entry in each.items() if name not in self._stuff]
        stuff = [entry["PQ"] for name, entry in each.items() if name in self._stuff]
        means = {key: _mean([entry[key] for entry in each.values()]) for key in ("PQ", "SQ", "RQ")}
        return {**means, "PQ_things": _mean(things), "PQ_stuff": _mean(stuff), "categories": each}


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
