"""Multi-scale deformable attention in plain torch (Zhu et al. 2020, "Deformable DETR", section 4.1), sped up.

The same arithmetic as transformers' module, with the queries innermost: the weighting of the sampled values is then one
contiguous multiply-add instead of a sum over an innermost axis of a few elements (``tools/bench/attention.py``).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class DeformableSampling(nn.Module):
    """Drop-in for transformers' ``MultiScaleDeformableAttention``; no parameters."""

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Values (B, S, heads, C), locations (B, N, heads, levels, points, 2) in [0, 1] -> (B, N, heads * C)."""
        batch, _, heads, width = value.shape
        queries = sampling_locations.shape[1]
        levels = value.split([height * width_ for height, width_ in value_spatial_shapes_list], dim=1)
        # (B * heads, levels, points, N, 2) and (B * heads, levels, points, N): N innermost.
        grid = (2 * sampling_locations - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
        weights = attention_weights.float().permute(0, 2, 3, 4, 1).flatten(0, 1)
        total: Any = 0
        for index, (height, width_) in enumerate(value_spatial_shapes_list):
            level = levels[index].permute(0, 2, 3, 1).reshape(batch * heads, width, height, width_)
            # Never in half precision: bf16 places a point on a grid of 1/256 of the picture.
            sampled = F.grid_sample(
                level.float(), grid[:, index].float(), mode="bilinear", padding_mode="zeros", align_corners=False
            )
            total = total + (sampled * weights[:, index].unsqueeze(1)).sum(2)
        return total.view(batch, heads * width, queries).transpose(1, 2).to(value.dtype)
