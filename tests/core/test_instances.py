"""Masks as a result: everything detections do, with the pixels."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from visionllm.core.arrays import object_array
from visionllm.core.errors import ShapeError, UnknownNameError
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask, SoftMask
from visionllm.core.sample import Picture

SIZE = (60, 40)


def square(x: int, y: int, side: int) -> np.ndarray:
    mask_HW = np.zeros((SIZE[1], SIZE[0]), bool)
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


def found(*squares: tuple[int, int, int], labels: tuple[int, ...] = (), phrases: tuple[str, ...] = ("cup",)) -> Masks:
    masks = object_array([Mask.of(square(*one)) for one in squares])
    return Masks(
        boxes_xyxy=np.array([mask.box_xyxy for mask in masks], np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, len(masks)).astype(np.float32),
        labels=np.array(labels or [0] * len(masks), np.int64),
        phrases=phrases,
        presence=np.full(len(phrases), 0.8, np.float32),
        size=SIZE,
        masks=masks,
        picture=Picture(pixels=np.full((SIZE[1], SIZE[0], 3), 120, np.uint8)),
    )


def test_masks_go_with_their_boxes() -> None:
    both = Masks.merge([found((2, 3, 5)), found((20, 10, 8), (40, 5, 30), phrases=("plate",))])
    assert (len(both), both.phrases, both.labels.tolist()) == (3, ("cup", "plate"), [0, 1, 1])
    for part in (both[1:], both[[2, 0]], both.of("plate"), both.above(0.6)):
        for box, mask in zip(part.boxes_xyxy, part.masks, strict=True):
            np.testing.assert_array_equal(mask.box_xyxy, box)
    np.testing.assert_array_equal(both.dense_NHW[1], square(20, 10, 8))
    assert repr(both) == "Masks(3 masks: cup 1, plate 2)"


def test_nothing_found_is_normal() -> None:
    none = Masks.empty(("cup",), SIZE)
    assert none.dense_NHW.shape == (0, 40, 60)
    assert none.area("cup").area == 0
    assert (none.semantic() == -1).all()
    assert (Masks.empty((), SIZE).semantic() == -1).all()
    assert len(Masks.merge([none, found((1, 1, 3))])) == 1


def test_a_phrase_is_the_union_of_its_masks() -> None:
    union = found((2, 3, 5), (4, 3, 5)).area("cup")
    np.testing.assert_array_equal(union.dense(), square(2, 3, 5) | square(4, 3, 5))


def test_what_several_say_faintly_is_likely() -> None:
    """Two masks of .6 each: .84 where both are, .6 where one is; of a threshold between the two only both reach it."""
    both = replace(found((2, 3, 5), (4, 3, 5)), scores=np.array([0.6, 0.6], np.float32), areas=None)
    both = replace(both, areas=object_array([replace(both.areas[0], threshold=0.7)]))
    np.testing.assert_array_equal(both.area("cup").dense(), square(2, 3, 5) & square(4, 3, 5))
    assert both.areas[0].peak == pytest.approx(0.84, abs=1 / 255)
    # Taking rows leaves the area, in every way of taking; a merge keeps both areas.
    for part in (both[:1], both.above(0.9), both.of("cup")):
        assert part.area("cup").area == both.area("cup").area == 15
    merged = Masks.merge([both, found((30, 10, 4), phrases=("plate",))])
    assert [merged.area(phrase).area for phrase in merged.phrases] == [15, 16]
    assert [Mask.from_rle(row["area_rle"]).area for row in merged.to_dict()["phrases"]] == [15, 16]
    with pytest.raises(UnknownNameError, match="fork"):
        merged.area("fork")


def test_a_pixel_goes_to_its_likeliest_phrase() -> None:
    two = found((2, 3, 10), (8, 3, 10), labels=(0, 1), phrases=("cup", "plate"))  # scores .9 and .5
    labels = two.semantic()
    cup = square(2, 3, 10)
    np.testing.assert_array_equal(labels == 0, cup)
    np.testing.assert_array_equal(labels == 1, square(8, 3, 10) & ~cup)
    assert (labels == -1).sum() == labels.size - (cup | square(8, 3, 10)).sum()
    # By itself the plate has all of it.
    assert two.area("plate").area == 100
    # The level of an area is its own; a pixel that belongs to none more likely than not has none.
    strict = replace(two, areas=object_array([replace(area, threshold=0.6) for area in two.areas]))
    assert strict.area("plate").area == 0
    np.testing.assert_array_equal(strict.semantic(), labels)
    faint = replace(two, scores=np.array([0.9, 0.49], np.float32), areas=None)
    assert sorted(np.unique(faint.semantic())) == [-1, 0]


def test_areas_of_another_number_or_picture_are_refused() -> None:
    one = found((2, 3, 5))
    with pytest.raises(ShapeError, match=r"areas must be \(1,\) of SoftMask"):
        replace(one, areas=object_array([]))
    with pytest.raises(ShapeError, match=r"areas\[0\] must be a SoftMask of a picture of \(60, 40\)"):
        replace(one, areas=object_array([SoftMask.any_of([], [], (4, 4))]))


def test_exports_hold_codes_that_read_back() -> None:
    masks = found((2, 3, 5), (20, 10, 8))
    for entry, mask in zip(json.loads(json.dumps(masks.to_coco(image_id=7))), masks.masks, strict=True):
        assert entry["image_id"] == 7
        np.testing.assert_array_equal(Mask.from_rle(entry["segmentation"], size=SIZE).dense(), mask.dense())
    rows = json.loads(json.dumps(masks.to_dict()))["boxes"]
    assert [Mask.from_rle(row["mask_rle"]).area for row in rows] == [25, 64]
    assert masks.to_supervision().mask.sum() == 25 + 64


def test_drawing_tints_the_mask_and_little_else() -> None:
    masks = found((30, 20, 12))
    changed = (np.asarray(masks.draw()) != 120).any(-1)
    inside = masks.dense_NHW[0]
    assert changed[inside].all()
    assert not changed[39, :25].any()


def test_a_mask_of_another_picture_is_refused() -> None:
    wrong = object_array([Mask.of(np.ones((5, 5), bool))])
    with pytest.raises(ShapeError, match=r"masks\[0\] must be a Mask of a picture of \(60, 40\)"):
        replace(found((1, 1, 3)), masks=wrong)
    with pytest.raises(ShapeError, match=r"masks must be \(1,\)"):
        replace(found((1, 1, 3)), masks=object_array([]))
