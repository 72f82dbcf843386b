"""How a decoder wants its pictures, and the pictures so prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(kw_only=True, slots=True, frozen=True)
class PixelSpec:
    """Size rule and normalisation of one role of a decoder's pictures.

    Args:
        longest: the longer side is resized to this many pixels, aspect kept.
        enlarge: but a picture is never made more than so many times as large; None sets no limit. Pixels made up cost
            as much as real ones.
        multiple: both sides of the padded batch are multiples of this.
        mean, std: per channel, on RGB in [0, 1].
    """

    longest: int
    enlarge: float | None = None
    multiple: int = 32
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) that a picture of ``size`` gets, without padding."""
        scale = self.longest / max(size)
        if self.enlarge is not None:
            scale = min(scale, self.enlarge)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Pixels:
    """Pictures of a batch prepared by one spec, padded right and bottom.

    Args:
        values: (N, 3, H, W) normalised; padding is zero after normalisation.
        mask: (N, H, W) bool, True on the picture.
        geometry: one ``core.geometry.Geometry`` a picture, original pixels -> resized pixels.
        owners: (sample, picture) of all that ask about the picture of each row: one picture is prepared once.
    """

    values: Tensor
    mask: Tensor
    geometry: tuple[Any, ...]
    owners: tuple[tuple[tuple[int, int], ...], ...]

    def to(self, device: torch.device | str) -> Pixels:
        return Pixels(
            values=self.values.to(device), mask=self.mask.to(device), geometry=self.geometry, owners=self.owners
        )
