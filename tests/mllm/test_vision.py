"""InternVL's tiling, against transformers' own choice of the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from visionllm.mllm.vision import count_tiles, make_tiles, tile_grid

side = st.integers(1, 4000)


@given(side, side, st.integers(1, 24))
@example(448, 448, 12)
@example(640, 640, 12)
@example(896, 448, 12)
@example(1000, 500, 40)
def test_the_grid_is_transformers(width: int, height: int, most: int) -> None:
    columns, rows = tile_grid((width, height), tile=448, max_tiles=most)
    # Ours: (columns, rows) of a (width, height); theirs of a (height, width), a name apart.
    theirs = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
    assert (columns, rows) == tuple(theirs)
    assert columns * rows <= most


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((800, 1300), {6: (2, 3), 12: (2, 3), 40: (5, 8)}),
        ((1920, 1080), {6: (2, 1), 12: (4, 2), 40: (7, 4)}),
        ((640, 480), {6: (3, 2), 12: (4, 3), 40: (4, 3)}),
        ((640, 640), {6: (2, 2), 12: (2, 2), 40: (2, 2)}),
        ((448, 448), {6: (1, 1), 12: (1, 1), 40: (1, 1)}),
        ((300, 200), {6: (3, 2), 12: (3, 2), 40: (3, 2)}),
    ],
)
def test_grids_of_known_sizes(size: tuple[int, int], grids: dict[int, tuple[int, int]]) -> None:
    for most, grid in grids.items():
        assert tile_grid(size, tile=448, max_tiles=most) == grid
        tiles = grid[0] * grid[1]
        # The thumbnail comes on top, where there is more than one tile.
        assert count_tiles(size, tile=448, max_tiles=most) == tiles + (tiles > 1)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 6))
def test_as_many_tiles_as_counted(width: int, height: int, most: int) -> None:
    tiles = make_tiles(np.zeros((height, width, 3), np.uint8), tile=16, max_tiles=most)
    assert tiles.shape == (count_tiles((width, height), tile=16, max_tiles=most), 3, 16, 16)


def test_tiles_stand_row_by_row_and_the_thumbnail_last() -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 40 * (3 * row + column)
    tiles = make_tiles(pixels, tile=16, max_tiles=6)
    grey = tiles[:, 0] * 0.229 + 0.485
    assert len(tiles) == 7
    torch.testing.assert_close(grey[:6].mean((1, 2)) * 255, torch.arange(6) * 40.0, atol=0.01, rtol=0)
    assert float(grey[6].mean() * 255) == pytest.approx(100, abs=2)
    assert grey[6].std() > 0.1
