"""Regions: each is a mask in the end, moves with its picture, and is told in one line where it is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionllm import Box, Pixels, Point, Polygon, Scribble
from visionllm.core.errors import PromptError
from visionllm.core.geometry import Geometry
from visionllm.core.masks import Mask
from visionllm.core.regions import Region, check_regions, named_region, region_name

SIZE = (60, 40)
WHOLE = np.zeros((40, 60), bool)
WHOLE[10:20, 30:45] = True
REGIONS: list[Region] = [
    Point(20.5, 10), Box(5, 5.5, 30, 20), Scribble([(5, 5), (20, 30), (40, 8)]), Polygon([(10, 5), (40, 8), (22, 35)]),
    Pixels(WHOLE), Pixels(Mask.of(WHOLE)),
]  # fmt: skip


def test_masks_by_hand() -> None:
    assert Box(5, 5.5, 30, 20).mask(SIZE).box_xyxy.tolist() == [5, 5, 30, 20]
    assert Pixels(WHOLE).mask(SIZE).area == WHOLE.sum()
    assert Polygon([(10, 10), (30, 10), (30, 30), (10, 30)]).mask(SIZE).area == 400
    dot = Point(20.5, 10).mask(SIZE)
    assert dot.at(np.array([20.5, 10.5]) / SIZE)
    assert dot.area < 10
    line = Scribble([(5.5, 5.5), (50.5, 5.5)]).mask(SIZE)
    assert line.box_xyxy[0] == 5
    assert line.box_xyxy[2] == 51


@pytest.mark.parametrize("corner", [(0, 0), (60, 0), (0, 40), (60, 40)])
def test_the_edge_belongs_to_the_picture(corner: tuple[float, float]) -> None:
    assert Point(*corner).mask(SIZE).area > 0


@pytest.mark.parametrize("region", REGIONS, ids=lambda region: type(region).__name__)
def test_regions_move_with_the_picture(region: Region) -> None:
    """Up to a pixel at the border: the moved region's mask is the mask of the moved picture."""
    geometry = Geometry.hflip(SIZE).then(Geometry.resize(SIZE, (120, 80)))
    moved, expected = region.moved(geometry).mask((120, 80)), region.mask(SIZE).moved(geometry)
    if isinstance(region, (Point, Scribble)):  # strokes are of the picture, not of the thing
        middle = [(box[:2] + box[2:]) / 2 for box in (moved.box_xyxy, expected.box_xyxy)]
        np.testing.assert_allclose(middle[0], middle[1], atol=2.5)
        return
    overlap = moved.intersection(expected) / (moved.area + expected.area - moved.intersection(expected))
    assert overlap > 0.93


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (Point(61, 10), "point: .* reaches out of the picture of 60 x 40"),
        (Point(-1, 10), "reaches out"),
        (Point(float("nan"), 10), "not finite"),
        (Box(5, 5, 90, 20), "box: .* reaches out"),
        (Box(20, 5, 20, 30), "has no area; give x1 < x2"),
        (Box(30, 5, 20, 30), "has no area"),
        (Polygon([(1, 1), (5, 5)]), r"polygon: needs 3 points \(x, y\) or more, got 2"),
        (Polygon([(1, 1), (5, 5), (70, 5)]), "polygon: .* reaches out"),
        (Polygon([(1, 1), (5, 5), (9, 9)]), "polygon: holds no pixel"),
        (Scribble([(1, 1)]), "scribble: needs 2 points"),
        (Pixels(np.zeros((40, 60), bool)), "pixels: holds no pixel of a picture of 60 x 40"),
        (Pixels(np.zeros((4, 6), bool)), "a mask of 6 x 4 on a picture of 60 x 40"),
        (Pixels(np.zeros((40, 60))), "expected a Mask or"),
        (Pixels([[True], [True, False]]), "expected a Mask or .* got list"),
        (Polygon([(1, 1), (5,), (9, 9)]), "polygon: expected numbers, got"),
        (Polygon("abc"), "polygon: expected numbers, got 'abc'"),  # type: ignore[arg-type]
        (Scribble(None), "scribble: expected numbers, got None"),  # type: ignore[arg-type]
        (Scribble([(1, 1)] * 500 + [(70, 5)]), r"scribble: \(70, 5\) reaches out"),  # the one point that does
        (Point("3", "4"), "point: expected numbers"),  # type: ignore[arg-type]
        (Box(None, 1, 2, 3), "box: expected numbers"),  # type: ignore[arg-type]
        (Box(1, 1, 5, 5, picture=0.5), "picture: expected a whole number, got 0.5"),  # type: ignore[arg-type]
        (Box(1, 1, 5, 5, picture=2), "of picture 2; there are 1, counted from 0"),
        ((1, 2, 3, 4), r"expected Box\(...\), Point\(...\) or another region, got tuple"),
    ],
)
def test_what_is_no_region_is_one_line(region: Any, words: str) -> None:
    with pytest.raises(PromptError, match=rf"regions\[0\]: .*{words}|regions\[0\]: {words}") as caught:
        check_regions([region], [SIZE], "segment <region>")
    assert "\n" not in str(caught.value)


def test_regions_and_placeholders_are_counted() -> None:
    with pytest.raises(PromptError, match="says <region> 1 times, and 2 regions are given"):
        check_regions([Point(1, 1)] * 2, [SIZE], "segment <region>")


def test_names_lead_back_to_regions() -> None:
    assert [named_region(region_name(i), REGIONS) for i in range(len(REGIONS))] == REGIONS
    assert (
        named_region("region 0", REGIONS) is named_region("region 7", REGIONS) is named_region("car", REGIONS) is None
    )
