"""Boxes, for numpy arrays and torch tensors alike; every function takes any leading dimensions.

xyxy = left, top, right, bottom edges (right and bottom exclusive); xywh = left, top, width, height;
cxcywh = centre, width, height. Half precision is raised to float32 wherever areas are compared.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

A = TypeVar("A", Tensor, np.ndarray)


def xyxy_to_xywh(boxes_xyxy: A) -> A:
    return _concatenate(boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - boxes_xyxy[..., :2])


def xywh_to_xyxy(boxes_xywh: A) -> A:
    return _concatenate(boxes_xywh[..., :2], boxes_xywh[..., :2] + boxes_xywh[..., 2:])


def xyxy_to_cxcywh(boxes_xyxy: A) -> A:
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return _concatenate((low + high) / 2, high - low)


def cxcywh_to_xyxy(boxes_cxcywh: A) -> A:
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return _concatenate(centre - half, centre + half)


def box_area(boxes_xyxy: A) -> A:
    """(..., 4) -> (...); an inside-out box has area 0."""
    boxes_xyxy = _precise(boxes_xyxy)
    return _sides(boxes_xyxy[..., :2], boxes_xyxy[..., 2:]).prod(-1)


def box_iou(a_xyxy: A, b_xyxy: A) -> A:
    """Intersection over union of all pairs: (..., N, 4), (..., M, 4) -> (..., N, M)."""
    return elementwise_iou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])


def generalized_box_iou(a_xyxy: A, b_xyxy: A) -> A:
    """Generalized IoU of all pairs: (..., N, 4), (..., M, 4) -> (..., N, M), in [-1, 1]."""
    return elementwise_generalized_iou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])


def elementwise_iou(a_xyxy: A, b_xyxy: A) -> A:
    """IoU of box i with box i: (..., 4), (..., 4) -> (...); two empty boxes have 0."""
    inter, union = _intersection_and_union(_precise(a_xyxy), _precise(b_xyxy))
    return _ratio(inter, union)


def elementwise_generalized_iou(a_xyxy: A, b_xyxy: A) -> A:
    """Generalized IoU of box i with box i (Rezatofighi et al. 2019); it has a gradient where boxes do not touch."""
    a_xyxy, b_xyxy = _precise(a_xyxy), _precise(b_xyxy)
    xp = _namespace(a_xyxy)
    inter, union = _intersection_and_union(a_xyxy, b_xyxy)
    low = xp.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull = _sides(low, xp.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])).prod(-1)
    return _ratio(inter, union) - _ratio(hull - union, hull)


def intersection_area(a_xyxy: A, b_xyxy: A) -> A:
    """Shared area of all pairs: (..., N, 4), (..., M, 4) -> (..., N, M)."""
    return _intersection_and_union(_precise(a_xyxy)[..., :, None, :], _precise(b_xyxy)[..., None, :, :])[0]


def clip_boxes(boxes_xyxy: A, size: tuple[int, int]) -> A:
    """Cut boxes at the edges of a picture of ``size`` (width, height)."""
    limit = (*size, *size)
    high = boxes_xyxy.new_tensor(limit) if isinstance(boxes_xyxy, Tensor) else np.array(limit, boxes_xyxy.dtype)
    return _namespace(boxes_xyxy).minimum(boxes_xyxy.clip(min=0), high)


def valid_boxes(boxes_xyxy: A) -> A:
    """(..., 4) -> (...) bool: all four numbers finite, width and height above zero."""
    finite = _namespace(boxes_xyxy).isfinite(boxes_xyxy).all(-1)
    return finite & (boxes_xyxy[..., 2] > boxes_xyxy[..., 0]) & (boxes_xyxy[..., 3] > boxes_xyxy[..., 1])


def _intersection_and_union(a_xyxy: Any, b_xyxy: Any) -> tuple[Any, Any]:
    xp = _namespace(a_xyxy)
    low = xp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    inter = _sides(low, xp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])).prod(-1)
    return inter, box_area(a_xyxy) + box_area(b_xyxy) - inter


def _sides(low: Any, high: Any) -> Any:
    return (high - low).clip(min=0)


def _ratio(part: Any, whole: Any) -> Any:
    # The floor only guards 0 / 0: the smallest box a float32 picture coordinate can make is far larger.
    return part / whole.clip(min=1e-12)


def _precise(boxes: Any) -> Any:
    if isinstance(boxes, Tensor):
        return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()
    return boxes.astype(np.result_type(boxes.dtype, np.float32), copy=False)


def _namespace(array: Any) -> Any:
    return torch if isinstance(array, Tensor) else np


def _concatenate(low: A, high: A) -> A:
    if isinstance(low, Tensor):
        return torch.cat([low, high], dim=-1)
    return np.concatenate([low, high], axis=-1)
