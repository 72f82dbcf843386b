"""Masks against truth: COCO mask precision with all that is measured of boxes, and semantic IoU.

Precision by faster-coco-eval (COCO protocol, masks). The semantic figure joins the masks of a phrase that reach the
operating point and compares all pixels of a category over all pictures (mean IoU, Everingham et al. 2015, "PASCAL VOC",
section 3.3).
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


@METRICS.register("segmentation")
class SegmentationMetric(DetectionMetric):
    """Scores masks. An object without a mask is neither asked for nor a mistake: it counts as a crowd in its box."""

    result: ClassVar[str] = "masks"
    iou_type: ClassVar[str] = "segm"

    def __init__(self, names: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(names, **settings)
        self._pixels: dict[str, np.ndarray] = {}  # of both, of either
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
        threshold = _THRESHOLD if self._threshold is None else self._threshold
        for i, phrase in enumerate(turn.phrases):
            true = object_array(filled)[(target.phrase == i) & ~target.ignored]
            own = object_array([])
            if phrase in found.phrases:
                of_phrase = found.of(phrase)
                own = of_phrase.masks[of_phrase.scores >= threshold]
            ours, theirs = (union(masks, size) for masks in (own, true))
            counts = np.array([(ours & theirs).sum(), (ours | theirs).sum()], np.float64)
            self._pixels[phrase] = self._pixels.get(phrase, np.zeros(2)) + counts

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
        """As for boxes, and ``mIoU`` (mean over the categories that are there) with each category's ``IoU``."""
        report = super().compute()
        known = {name for name, entry in report["categories"].items() if entry["objects"]}
        each = {name: both / either for name, (both, either) in self._pixels.items() if name in known and either}
        for name, value in each.items():
            report["categories"][name]["IoU"] = float(value)
        return {**report, "mIoU": float(np.mean(list(each.values()))) if each else None}


def union(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    whole = np.zeros((size[1], size[0]), bool)
    for mask in masks:
        mask.paste(whole, True)
    return whole


def _box_mask(box_xyxy: np.ndarray, size: tuple[int, int]) -> Mask:
    x1, y1, x2, y2 = (int(value) for value in (*np.floor(box_xyxy[:2]), *np.ceil(box_xyxy[2:])))
    return Mask(patch=np.ones((y2 - y1, x2 - x1), bool), corner=(x1, y1), size=size)
