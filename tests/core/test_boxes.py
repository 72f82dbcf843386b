"""Boxes: conversions undo each other, overlaps agree with torchvision and with counting pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.ops
from hypothesis import given
from hypothesis import strategies as st

from visionllm.core import boxes as B

edge = st.floats(-1000, 1000, width=32)
side = st.floats(0.125, 1000, width=32)
boxes = st.lists(st.tuples(edge, edge, side, side), min_size=1, max_size=6).map(
    lambda rows: np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float64)
)


@given(boxes)
def test_conversions_undo_each_other(xyxy: np.ndarray) -> None:
    assert np.allclose(B.xywh_to_xyxy(B.xyxy_to_xywh(xyxy)), xyxy, atol=1e-9)
    assert np.allclose(B.cxcywh_to_xyxy(B.xyxy_to_cxcywh(xyxy)), xyxy, atol=1e-9)
    back = B.cxcywh_to_xyxy(B.xyxy_to_cxcywh(torch.from_numpy(xyxy)))
    assert torch.allclose(back, torch.from_numpy(xyxy), atol=1e-9)


@given(boxes, boxes)
def test_overlaps_agree_with_torchvision(a: np.ndarray, b: np.ndarray) -> None:
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    assert torch.allclose(B.box_iou(ta, tb), torchvision.ops.box_iou(ta, tb), atol=1e-9)
    expected = torchvision.ops.generalized_box_iou(ta, tb)
    assert torch.allclose(B.generalized_box_iou(ta, tb), expected, atol=1e-9)
    assert np.allclose(B.generalized_box_iou(a, b), expected, atol=1e-9)
    assert np.allclose(B.elementwise_generalized_iou(a, a), 1)


def test_overlap_counts_pixels() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, (12, 2))
    xyxy = np.concatenate([low, low + rng.integers(1, 12, (12, 2))], 1).astype(np.float32)
    grid = np.zeros((12, 32, 32), bool)
    for mask, (x1, y1, x2, y2) in zip(grid, xyxy.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    inter = (grid[:, None] & grid[None]).sum((2, 3))
    assert np.allclose(B.intersection_area(xyxy, xyxy), inter)
    assert np.allclose(B.box_iou(xyxy, xyxy), inter / (grid[:, None] | grid[None]).sum((2, 3)), atol=1e-6)


def test_leading_dimensions_and_no_boxes() -> None:
    a, b = torch.rand(3, 5, 4), torch.rand(3, 0, 4)
    assert B.box_iou(a, b).shape == (3, 5, 0)
    assert B.generalized_box_iou(a, a).shape == (3, 5, 5)
    assert B.box_iou(np.zeros((0, 4), np.float32), np.zeros((2, 4), np.float32)).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_areas(dtype: torch.dtype) -> None:
    # 800 * 800 does not fit float16.
    big = torch.tensor([[0, 0, 800, 800]], dtype=dtype)
    assert B.box_area(big).item() == 640_000
    assert B.box_iou(big, big).dtype == torch.float32
    assert B.box_iou(big, big).item() == 1


def test_empty_boxes_give_numbers_and_gradients() -> None:
    empty = torch.zeros(1, 4, requires_grad=True)
    value = B.generalized_box_iou(empty, torch.zeros(1, 4)).sum() + B.box_iou(empty, torch.zeros(1, 4)).sum()
    value.backward()
    assert value.isfinite()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()


def test_generalized_iou_pulls_boxes_that_do_not_touch() -> None:
    box = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
    B.elementwise_generalized_iou(box, torch.tensor([[5.0, 0, 6, 1]])).sum().backward()
    assert box.grad is not None
    assert box.grad[0, 2] > 0


def test_clip() -> None:
    xyxy = np.array([[-5, 2, 30, 50], [40, 40, 50, 50]], np.float32)
    expected = [[0, 2, 20, 10], [20, 10, 20, 10]]
    assert B.clip_boxes(xyxy, (20, 10)).tolist() == expected
    assert B.clip_boxes(torch.from_numpy(xyxy), (20, 10)).tolist() == expected
    assert B.clip_boxes(xyxy, (20, 10)).dtype == np.float32


@pytest.mark.parametrize(
    ("box", "valid"),
    [
        ((0, 0, 1, 1), True),
        ((0, 0, 0, 1), False),  # no width
        ((0, 3, 1, 1), False),  # upside down
        ((0, 0, float("nan"), 1), False),
        ((0, 0, float("inf"), 1), False),
    ],
)
def test_validity(box: tuple[float, ...], valid: bool) -> None:
    assert B.valid_boxes(np.array([box])).tolist() == [valid]
    assert B.valid_boxes(torch.tensor([box])).tolist() == [valid]
