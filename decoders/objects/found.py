"""What a phrase found among the queries of a picture, in pixels of the picture as it came.

N = queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from visionllm.core.sample import Picture

# Least score with which a query speaks for the pixels of its mask.
FAINT = 0.1


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Found:
    """What one phrase found: the queries, best first, and the fields of ``Detections``; all that speak for it, were it
    faintly, with their scores."""

    rows: np.ndarray
    fields: dict[str, Any]
    faint: dict[int, float]


def find(
    phrase: str, picture: Picture, boxes_xyxy: np.ndarray, scores_N: Tensor, presence: float, threshold: float,
    limit: int, overlap: float | None, among: slice = slice(None),
) -> Found:  # fmt: skip
    """What one phrase found among some queries: at most ``limit`` boxes from ``threshold`` on, of two that overlap more
    than ``overlap`` the surer."""
    order = scores_N[among].float().argsort(descending=True, stable=True) + (among.start or 0)
    faint = order[scores_N[order] >= FAINT]
    order = order[scores_N[order] >= threshold]
    if overlap is not None:
        order = order[nms(torch.from_numpy(boxes_xyxy).to(order.device)[order], scores_N[order].float(), overlap)]
    order = order[:limit]
    rows = order.cpu().numpy()
    fields: dict[str, Any] = {
        "boxes_xyxy": boxes_xyxy[rows], "scores": scores_N[order].float().cpu().numpy(),
        "labels": np.zeros(len(rows), np.int64), "phrases": (phrase,), "presence": np.array([presence], np.float32),
        "size": picture.size, "threshold": float(threshold), "picture": picture, "picture_name": picture.name,
    }  # fmt: skip
    return Found(rows=rows, fields=fields, faint=dict(zip(faint.tolist(), scores_N[faint].tolist(), strict=True)))


def in_picture(boxes_N4: Tensor, picture: Picture) -> np.ndarray:
    """(N, 4) cxcywh_norm -> float32 xyxy in pixels, inside the picture."""
    boxes = boxes_N4.float().cpu().numpy()
    scale = np.tile(np.array(picture.size, np.float32), 2)
    xyxy = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1) * scale
    return np.clip(xyxy, 0, scale).astype(np.float32)
