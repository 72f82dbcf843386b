"""Masks against truth: COCO mask precision with all that is measured of boxes, and semantic IoU.

Precision by faster-coco-eval (COCO protocol, masks). The semantic figure joins the masks of a phrase that reach the
operating point and compares all pixels of a category over all pictures (mean IoU, Everingham et al. 2015, "PASCAL VOC",
section 3.3), those in which it was asked for in vain among them. It is also given at other points, to choose from.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.arrays import object_array
from visionllm.core.errors import DatasetError
from visionllm.core.masks import Mask
from visionllm.core.sample import Turn
from visionllm.metrics import METRICS
from visionllm.metrics.detection import DetectionMetric

_THRESHOLD = 0.5  # of the semantic figure, where the decoder names no operating point
_POINTS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@METRICS.register("segmentation")
class SegmentationMetric(DetectionMetric):
    """Scores masks. An object without a mask is neither asked for nor a mistake: it counts as a crowd in its box."""

    result: ClassVar[str] = "masks"
    iou_type: ClassVar[str] = "segm"

    def __init__(self, names: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(names, **settings)
        own = _THRESHOLD if self._threshold is None else self._threshold
        self._points = np.array([own, *_POINTS])
        self._pixels: dict[str, np.ndarray] = {}  # (points, 2): of both, of either
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
        for i, phrase in enumerate(turn.phrases):
            true = object_array(filled)[(target.phrase == i) & ~target.ignored]
            own = found.of(phrase) if phrase in found.phrases else found[:0]
            counts = self._counts(own.masks, own.scores, union(true, size))
            self._pixels[phrase] = self._pixels.get(phrase, 0.0) + counts

    def _counts(self, masks: np.ndarray, scores: np.ndarray, true: np.ndarray) -> np.ndarray:
        """(points, 2) pixels of both and of either, at each point."""
        ours, placed = np.zeros_like(true), 0
        order, counts = np.argsort(-scores, kind="stable"), np.zeros((len(self._points), 2))
        both, either = 0.0, float(true.sum())
        for point in np.argsort(-self._points, kind="stable").tolist():
            reach = int((scores >= self._points[point]).sum())
            if reach > placed:
                for mask in masks[order[placed:reach]]:
                    mask.paste(ours, True)
                placed, both, either = reach, float((ours & true).sum()), float((ours | true).sum())
            counts[point] = both, either
        return counts

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
        ``semantic`` is the mean at other thresholds."""
        report = super().compute()
        known = {name for name, entry in report["categories"].items() if entry["objects"]}
        counted = {name: pixels for name, pixels in self._pixels.items() if name in known and pixels[:, 1].all()}
        each = {name: pixels[:, 0] / pixels[:, 1] for name, pixels in counted.items()}
        for name, values in each.items():
            report["categories"][name]["IoU"] = float(values[0])
        mean = np.mean(list(each.values()), axis=0).tolist() if each else [None] * len(self._points)
        others = [{"threshold": t, "mIoU": v} for t, v in zip(_POINTS, mean[1:], strict=True)]
        return {**report, "mIoU": mean[0], "semantic": others}


def union(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    whole = np.zeros((size[1], size[0]), bool)
    for mask in masks:
        mask.paste(whole, True)
    return whole


def _box_mask(box_xyxy: np.ndarray, size: tuple[int, int]) -> Mask:
    x1, y1, x2, y2 = (int(value) for value in (*np.floor(box_xyxy[:2]), *np.ceil(box_xyxy[2:])))
    return Mask(patch=np.ones((y2 - y1, x2 - x1), bool), corner=(x1, y1), size=size)
