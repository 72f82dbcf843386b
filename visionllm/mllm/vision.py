"""InternVL's dynamic tiling: a picture becomes tiles of one size and, with more than one, a thumbnail.

The grid choice is InternVL 1.5's (Chen et al. 2024, arXiv 2404.16821, section 3.2).
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

from visionllm.core.pixels import IMAGENET_MEAN, IMAGENET_STD


@cache
def _grids(low: int, high: int) -> tuple[tuple[int, int], ...]:
    found = {(c, r) for c in range(1, high + 1) for r in range(1, high + 1) if low <= c * r <= high}
    # The original sorts a set by product alone; a stable secondary key keeps ties reproducible.
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], grid)))


def tile_grid(size: tuple[int, int], *, tile: int, max_tiles: int, min_tiles: int = 1) -> tuple[int, int]:
    """(columns, rows) whose aspect is nearest to the picture's.

    On an exact tie a larger grid wins if the picture has more than half its area.

    Args:
        size: (width, height) of the picture.
    """
    width, height = size
    aspect, best, best_gap = width / height, (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        gap = abs(aspect - columns / rows)
        if gap < best_gap:
            best, best_gap = (columns, rows), gap
        elif gap == best_gap and width * height > 0.5 * tile * tile * columns * rows:
            best = (columns, rows)
    return best


def count_tiles(size: tuple[int, int], *, tile: int, max_tiles: int) -> int:
    """Number of tiles of a picture, the thumbnail included."""
    columns, rows = tile_grid(size, tile=tile, max_tiles=max_tiles)
    return columns * rows + (1 if columns * rows > 1 else 0)


def make_tiles(pixels: np.ndarray, *, tile: int, max_tiles: int) -> Tensor:
    """(H, W, 3) uint8 RGB -> (tiles, 3, tile, tile) normalised with ImageNet statistics, row-major, thumbnail last."""
    height, width = pixels.shape[:2]
    columns, rows = tile_grid((width, height), tile=tile, max_tiles=max_tiles)
    canvas = _resize(pixels, columns * tile, rows * tile)
    parts = [canvas[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile] for r in range(rows) for c in range(columns)]
    if len(parts) > 1:
        parts.append(_resize(pixels, tile, tile))
    values = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return (values - mean) / std


def _resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    shrinks = width < pixels.shape[1] and height < pixels.shape[0]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
