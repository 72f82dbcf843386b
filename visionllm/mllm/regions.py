"""Regions into the language model: what the picture shows under a mask, as one embedding.

Features of several layers of the vision tower pooled under the mask (Zhang et al. 2023, "GPT4RoI", section 3.2, which
takes several levels of features of a region), a small convolution over picture and mask for what is finer than a patch
(VisionLLM v2, section 3.1: its region encoder), and where the region is. Nothing is drawn at random: one region always
gives one embedding.

R = regions, N = patches of a tile, V = width of the vision tower, D = width of the language model, S = side of a tile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from visionllm.core.config import Config

_WAVES = 6  # frequencies of a coordinate


class RegionConfig(Config):
    """How regions are encoded."""

    layers: tuple[int, ...] = Field((1, -1), min_length=1, description="hidden states of the vision tower, 0 its input")
    channels: PositiveInt = Field(32, multiple_of=8, description="of the convolution over picture and mask")


class RegionEncoder(nn.Module):
    """Masks on tiles to embeddings.

    Args:
        layers: which hidden states of the vision tower are pooled.
        vision_width: V.
        width: D.
    """

    def __init__(self, *, layers: Sequence[int], channels: int, vision_width: int, width: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(vision_width), nn.Linear(vision_width, width)) for _ in self.layers
        )
        sides = (4, channels // 2, channels, channels * 2)
        self.fine = nn.Sequential(*[
            part
            for before, after in itertools.pairwise(sides)
            for part in (nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU())
        ])  # fmt: skip
        self.shape = nn.Linear(2 * sides[-1], width)
        self.place = nn.Linear(4 * 2 * _WAVES, width)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, hidden: Sequence[Tensor], tiles_R3SS: Tensor, masks_RSS: Tensor, boxes_R4: Tensor) -> Tensor:
        """(R, D) embeddings.

        Args:
            hidden: (R, N, V) of each layer, of the tile that shows the region's picture.
            tiles_R3SS: these tiles.
            masks_RSS: part of each pixel that the region covers.
            boxes_R4: of the regions, cxcywh_norm.
        """
        side = math.isqrt(hidden[0].shape[1])
        cover = F.adaptive_avg_pool2d(masks_RSS[:, None].float(), side).flatten(1)
        # However small the region, its shares of the patches add up to one.
        share = cover / cover.sum(1, keepdim=True).clamp(min=1e-6)
        total = self.place(_waves(boxes_R4).to(self.place.weight.dtype))
        for layer, states in zip(self.pooled, hidden, strict=True):
            total = total + layer(torch.einsum("rn,rnv->rv", share.to(states.dtype), states))
        maps = self.fine(torch.cat([tiles_R3SS, masks_RSS[:, None].to(tiles_R3SS.dtype)], 1))
        under = F.adaptive_avg_pool2d(masks_RSS[:, None].float(), maps.shape[-2:]).to(maps.dtype)
        inside = (maps * under).sum((2, 3)) / under.sum((2, 3)).clamp(min=1e-6)
        total = total + self.shape(torch.cat([inside, maps.mean((2, 3))], 1))
        return total + self.mix(total)


def _waves(boxes_R4: Tensor) -> Tensor:
    """Sines and cosines of every number, the slowest of half a period over the picture."""
    steps = math.pi * 2.0 ** torch.arange(_WAVES, device=boxes_R4.device)
    angle = boxes_R4[..., None].float() * steps
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)
