"""Masks: codes go there and back, agree with COCO's own tools, and what is broken is refused."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco
from hypothesis import given
from hypothesis import strategies as st

from visionllm.core.errors import AnnotationError, ShapeError
from visionllm.core.masks import Mask


def dense(seed: int, height: int, width: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < share


masks = st.builds(
    dense, st.integers(0, 9999), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 0.05, 0.5, 1])
)


@given(masks)
def test_a_code_goes_there_and_back(mask_HW: np.ndarray) -> None:
    mask = Mask.of(mask_HW)
    code = mask.rle()
    assert isinstance(code["counts"], str)
    np.testing.assert_array_equal(mask.dense(), mask_HW)
    np.testing.assert_array_equal(Mask.from_rle(code, size=mask.size).dense(), mask_HW)
    assert mask.area == mask_HW.sum()


@given(masks)
def test_plain_counts_are_read_down_the_columns(mask_HW: np.ndarray) -> None:
    flat = mask_HW.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    counts = [0, *runs] if flat[0] else runs
    code = {"size": list(mask_HW.shape), "counts": counts}
    np.testing.assert_array_equal(Mask.from_rle(code).dense(), mask_HW)


@given(masks)
def test_box_and_decoding_are_those_of_coco(mask_HW: np.ndarray) -> None:
    code = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    mask = Mask.from_rle(code)
    np.testing.assert_array_equal(mask.dense(), coco.decode(code).astype(bool))
    x, y, w, h = coco.toBbox(code).tolist()
    assert mask.box_xyxy.tolist() == [x, y, x + w, y + h]


@given(masks, st.integers(0, 9999))
def test_overlap_is_counted_in_windows_as_in_whole_pictures(mask_HW: np.ndarray, seed: int) -> None:
    other_HW = dense(seed, *mask_HW.shape, 0.1)
    a, b = Mask.of(mask_HW), Mask.of(other_HW)
    assert a.intersection(b) == (mask_HW & other_HW).sum()
    union = (mask_HW | other_HW).sum()
    assert a.iou(b) == pytest.approx((mask_HW & other_HW).sum() / union if union else 0)


def test_polygons_are_filled_as_coco_fills_them() -> None:
    polygons = [[2.5, 1.0, 30.0, 4.0, 12.0, 25.5], [20, 20, 38, 20, 38, 29, 20, 29]]
    theirs = coco.decode(coco.merge(coco.frPyObjects(polygons, 30, 40))).astype(bool)
    mask = Mask.from_polygons(polygons, (40, 30))
    np.testing.assert_array_equal(mask.dense(), theirs)
    assert mask.dense()[24, 30]
    assert not mask.dense()[0, 0]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"size": [4, 5], "counts": [3, 4]}, r"ann 7\.counts: too short, .* 7 pixels, a size of 4 x 5 has 20"),
        ({"size": [4, 5], "counts": [3, 44]}, r"ann 7\.counts: too long"),
        ({"size": [4, 5], "counts": [30, -10]}, r"ann 7\.counts: run 1 is negative"),
        ({"size": [4, 5], "counts": [3.0, 17]}, r"ann 7\.counts: expected whole numbers"),
        ({"size": [4, 5], "counts": "~~"}, r"ann 7\.counts: not a run-length string at letter 0"),
        ({"size": [4, 5], "counts": "P"}, r"ann 7\.counts: .* breaks off"),
        ({"size": [4, 5], "counts": "P" * 40}, r"ann 7\.counts: not a run-length string"),
        ({"size": [5, 4], "counts": [20]}, r"ann 7\.size: \[5, 4\], but the picture is 4 high, 5 wide"),
        ({"size": [0, 5], "counts": []}, r"ann 7\.size: expected \[height, width\]"),
        ({"counts": [20]}, "size and counts"),
        ([1, 2], "size and counts"),
    ],
)
def test_a_broken_code_is_refused(code: object, words: str) -> None:
    with pytest.raises(AnnotationError, match=words):
        Mask.from_rle(code, size=(5, 4), source="ann 7")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("polygon", "words"),
    [
        ([1, 1, 5, 5], "4 values; a polygon needs three points"),
        ([1, 1, 5, 5, 3, 2, 9], "7 values"),
        ([1, 1, 5, float("nan"), 3, 2], "value 3 is nan"),
        ([1, 1, 5, "x", 3, 2], "value 3 is 'x'"),
        ("abc", "expected numbers"),
    ],
)
def test_a_broken_polygon_is_refused(polygon: object, words: str) -> None:
    with pytest.raises(AnnotationError, match=rf"ann 7\.segmentation\[1\]: .*{words}"):
        Mask.from_polygons([[0, 0, 5, 0, 5, 5], polygon], (20, 20), source="ann 7")  # type: ignore[list-item]


def test_a_mask_must_be_bool_and_lie_in_its_picture() -> None:
    with pytest.raises(ShapeError, match="bool"):
        Mask.of(np.zeros((3, 3), np.uint8))
    with pytest.raises(ShapeError, match="reaches out"):
        Mask(patch=np.ones((3, 3), bool), corner=(2, 0), size=(4, 4))
    with pytest.raises(ShapeError, match="cannot be compared"):
        Mask.of(np.ones((3, 3), bool)).iou(Mask.of(np.ones((3, 4), bool)))
