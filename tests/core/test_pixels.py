"""How large a decoder wants its pictures."""

from __future__ import annotations

import pytest

from visionllm.core.pixels import PixelSpec


@pytest.mark.parametrize(
    ("size", "longest", "enlarge", "made"),
    [
        ((320, 240), 640, None, (640, 480)),
        ((320, 240), 640, 1.5, (480, 360)),
        ((640, 380), 640, 1.5, (640, 380)),
        ((1000, 4000), 640, 1.0, (160, 640)),
        ((100, 50), 640, 1.0, (100, 50)),
        ((4000, 1), 64, 2.0, (64, 1)),
    ],
)
def test_the_longer_side_and_no_more_than_so_many_times_as_large(
    size: tuple[int, int], longest: int, enlarge: float | None, made: tuple[int, int]
) -> None:
    assert PixelSpec(longest=longest, enlarge=enlarge).resized(size) == made
