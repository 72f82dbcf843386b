"""Masks against truth: COCO mask precision with all that is measured of boxes, and semantic IoU.

Precision by faster-coco-eval (COCO protocol, masks). The semantic figure gives each pixel to the likeliest phrase
(``Masks.semantic``) and compares all pixels of a category over all pictures (mean IoU, Everingham et al. 2015, "PASCAL
VOC", section 3.3), those in which it was asked for in vain among them. It is also given for each phrase by itself
(``Masks.area``), and at other points, to choose from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.arrays import object_array
from visionllm.core.errors import DatasetError
from visionllm.core.instances import EVEN
from visionllm.core.masks import Mask
from visionllm.core.sample import Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import bounds, drawn, mean_of_known, ratio
from visionllm.metrics.detection import DetectionMetric

_POINTS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@METRICS.register("segmentation")
class SegmentationMetric(DetectionMetric):
    """Scores masks. An object without a mask is neither asked for nor a mistake: it counts as a crowd in its box."""

    result: ClassVar[str] = "masks"
    iou_type: ClassVar[str] = "segm"

    def __init__(self, names: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(names, **settings)
        self._levels: dict[str, int] = {}  # likelihood times 255 from which on a pixel counts by itself
        # By phrase: (4, 256) pixels of each likelihood, those that are its own among all and by itself, and of these
        # the true ones; and its true pixels.
        self._pixels: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((4, 256)))
        self._true: dict[str, int] = defaultdict(int)
        # Picture -> phrase -> pixels that count as its own, among all and by itself, the true ones of these two, and
        # all true ones, at the levels of the answer.
        self._parts: dict[Hashable, dict[str, list[float]]] = defaultdict(dict)
        self._codes: dict[int, dict[str, Any]] = {}

    def add(self, turn: Turn, answer: Answer, *, key: Hashable) -> None:
        """As for boxes.

        Raises:
            DatasetError: the target has boxes but no masks.
        """
        target = turn.target
        if target.masks is None and len(target.boxes_xyxy):
            raise DatasetError(f"sample {key}: the data set has no masks to compare with; give one that has")
        found = answer.masks
        size = found.size
        masks = [] if target.masks is None else target.masks.tolist()
        unknown = np.array([mask is None for mask in masks], bool)
        filled = [m or _box_mask(box, size) for m, box in zip(masks, target.boxes_xyxy, strict=True)]
        target = replace(target, masks=object_array(filled), ignore=target.ignored | unknown)
        self._codes = {}
        super().add(replace(turn, target=target), answer, key=key)
        labels, likely = found.likeliest()
        for i, phrase in enumerate(turn.phrases):
            true = union(object_array(filled)[(target.phrase == i) & ~target.ignored], size)
            self._true[phrase] += int(true.sum())
            numbers = [number for number, text in enumerate(found.phrases) if text == phrase]
            mine, alone = np.where(np.isin(labels, numbers), likely, 0), np.zeros_like(likely)
            for area in found.areas[numbers]:
                self._levels[phrase] = area.level
                np.maximum(alone[area.window()], area.patch, out=alone[area.window()])
            values = (mine, alone, np.where(true, mine, 0), np.where(true, alone, 0))
            self._pixels[phrase] += [np.bincount(value.ravel(), minlength=256) for value in values]
            levels = (EVEN, self._levels.get(phrase, 1)) * 2
            counted = [float((value >= level).sum()) for value, level in zip(values, levels, strict=True)]
            self._parts[key][phrase] = [*counted, float(true.sum())]

    def shapes(self, found: Any) -> np.ndarray:
        return found.masks

    def overlaps(self, found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both = np.array([[a.intersection(b) for b in truth] for a in found], np.float64).reshape(len(found), len(truth))
        areas, true = (np.array([mask.area for mask in masks], np.float64) for masks in (found, truth))
        return both / np.maximum(areas[:, None] + true[None] - both, 1), both / np.maximum(areas, 1)[:, None]

    def plain(self, shapes: np.ndarray) -> list[dict[str, Any]]:
        # What a query found stands under every phrase: it is coded once an answer.
        for mask in shapes:
            if id(mask) not in self._codes:
                self._codes[id(mask)] = {"segmentation": mask.rle(), "area": mask.area}
        return [self._codes[id(mask)] for mask in shapes]

    def compute(self) -> dict[str, Any]:
        """As for boxes, and ``mIoU`` (mean over the categories that are there) with each category's ``IoU``;
        ``mIoU_alone`` takes each phrase by itself; all with 95 % intervals. ``semantic`` has both means at other
        thresholds."""
        report = super().compute()
        names = [name for name, entry in report["categories"].items() if entry["objects"] and self._true[name]]
        # (names, 2, 256): of each category, among all and alone, at each likelihood.
        reached = np.stack([self._pixels[name] for name in names]) if names else np.zeros((0, 4, 256))
        reached = reached[..., ::-1].cumsum(-1)[..., ::-1]
        ours, both = reached[:, :2], reached[:, 2:]
        true = np.array([self._true[name] for name in names])[:, None, None]
        values = both / (ours + true - both)
        levels = np.array([[EVEN, self._levels.get(name, 1)] for name in names], np.int64).reshape(-1, 2)
        own = np.take_along_axis(values, levels[..., None], 2)[..., 0]
        for name, value in zip(names, own, strict=True):
            report["categories"][name]["IoU"] = float(value[0])

        def mean(each: np.ndarray) -> dict[str, float | None]:
            among, alone = each.mean(0).tolist() if names else (None, None)
            return {"mIoU": among, "mIoU_alone": alone}

        others = [{"threshold": t, **mean(values[..., round(255 * t)])} for t in _POINTS]
        return {**report, **mean(own), **self._semantic_intervals(names, report["categories"]), "semantic": others}

    def _semantic_intervals(self, names: Sequence[str], categories: dict[str, Any]) -> dict[str, list[float] | None]:
        """Of the means; those of the categories go into their entries."""
        weights = drawn(len(self._parts), resamples=self._resamples)
        nothing = [0.0] * 5
        parts = [[own.get(name, nothing) for name in names] for own in self._parts.values()]
        table = np.array(parts, np.float64).reshape(len(self._parts), len(names), 5)
        ours, both, true = np.split(np.einsum("rp,pnk->rnk", weights, table), [2, 4], axis=2)
        # Where nothing of a category is drawn, it is not there.
        values = np.where(true > 0, ratio(both, ours + true - both), np.nan)
        for place, name in enumerate(names):
            categories[name]["IoU_interval"] = bounds(values[:, place, 0])
        among, alone = (bounds(mean_of_known(values[..., kind], 1)) for kind in (0, 1))
        return {"mIoU_interval": among, "mIoU_alone_interval": alone}


def union(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    whole = np.zeros((size[1], size[0]), bool)
    for mask in masks:
        mask.paste(whole, True)
    return whole


def _box_mask(box_xyxy: np.ndarray, size: tuple[int, int]) -> Mask:
    x1, y1, x2, y2 = (int(value) for value in (*np.floor(box_xyxy[:2]), *np.ceil(box_xyxy[2:])))
    return Mask(patch=np.ones((y2 - y1, x2 - x1), bool), corner=(x1, y1), size=size)
