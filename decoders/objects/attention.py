"""Multi-scale deformable attention in plain torch (Zhu et al. 2020, "Deformable DETR", section 4.1), sped up.

The same arithmetic as transformers' module, ordered for the machine (``tools/bench/attention.py``).

B = rows, S = cells of all levels, N = queries, H = heads, C = width of a head, L = levels, P = points of a level.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.grounding_dino import modeling_grounding_dino as gdino
from transformers.models.mm_grounding_dino import modeling_mm_grounding_dino as mm_gdino

# Empty cells around a level: a point beyond an edge is moved to the first of them, where there is nothing to read.
_LEFT, _RIGHT, _TOP, _BOTTOM = 1, 1, 1, 3


def read_once(attention: nn.Module) -> None:
    """Rows that look at one picture, which several things are asked of, have its values made once.

    Args:
        attention: of transformers; rows are alike where the picture's tokens were expanded to them.
    """
    attention.__class__ = _READING_ONCE[type(attention)]


def _reading_once(kind: type[nn.Module]) -> type[nn.Module]:
    class ReadingOnce(kind):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: Tensor, **given: Any) -> Any:
            rows, seen = len(hidden_states), given["encoder_hidden_states"]
            if rows == 1 or seen.stride(0) != 0:
                return super().forward(hidden_states, **given)
            # The queries of all rows as those of one.
            for name in ("position_embeddings", "reference_points"):
                given[name] = given[name].flatten(0, 1)[None]
            for name in ("encoder_hidden_states", "attention_mask", "encoder_attention_mask"):
                given[name] = given[name][:1]
            out, weights = super().forward(hidden_states.flatten(0, 1)[None], **given)
            return out[0].unflatten(0, (rows, -1)), weights[0].unflatten(0, (rows, -1))

    return ReadingOnce


_OF_TRANSFORMERS = (
    gdino.GroundingDinoMultiscaleDeformableAttention, mm_gdino.MMGroundingDinoMultiscaleDeformableAttention
)  # fmt: skip
_READING_ONCE = {kind: _reading_once(kind) for kind in _OF_TRANSFORMERS}


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
        """Values (B, S, H, C), locations (B, N, H, L, P, 2) in [0, 1] and weights (B, N, H, L, P) -> (B, N, H * C)."""
        # Never in half precision: bf16 places a point on a grid of 1/256 of the picture.
        given = (value.float(), value_spatial_shapes_list, sampling_locations.float(), attention_weights.float())
        # Answering on a CPU. The gradient of such a sum costs more than it saves, and other devices were not measured.
        rows = value.device.type == "cpu" and not torch.is_grad_enabled()
        return (sum_of_rows if rows else sum_of_samples)(*given).to(value.dtype)


def sum_of_rows(value: Tensor, shapes: list[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """What a head reads for a query is a weighted sum of rows of one table, four rows a point, which torch adds up
    without writing a row down (``embedding_bag``). On a CPU, and without a gradient."""
    batch, _, heads, width = value.shape
    queries, points = places.shape[1], places.shape[4]
    padded = [
        F.pad(level.reshape(batch, height, wide, -1), (0, 0, _LEFT, _RIGHT, _TOP, _BOTTOM)).flatten(1, 2)
        for level, (height, wide) in zip(value.split([h * w for h, w in shapes], 1), shapes, strict=True)
    ]
    table = torch.cat(padded, 1)
    first = torch.tensor([0, *(level.shape[1] for level in padded[:-1])]).cumsum(0)
    # In cells of the point's own level, (B, N, H, L * P * 2): x and y by turns.
    size = torch.tensor([[wide, height] for height, wide in shapes], dtype=torch.float32)
    size = size.repeat_interleave(points, 0).flatten()
    at = torch.minimum((places.flatten(3) * size - 0.5).clamp_min(-1), size)
    low = at.floor()
    right, down = (at - low)[..., 0::2], (at - low)[..., 1::2]
    # Cells are counted in a row; a place that is no number is so in its weights.
    row = torch.tensor([wide + _LEFT + _RIGHT for _, wide in shapes]).repeat_interleave(points)
    start = (first.repeat_interleave(points) + _TOP * row + _LEFT).float()
    low = low.nan_to_num(nan=-1.0)
    cell = ((low[..., 1::2] * row + (low[..., 0::2] + start)) * heads).int()
    corners = torch.stack((torch.zeros_like(row), torch.ones_like(row), row, row + 1)).flatten() * heads
    own = torch.arange(batch)[:, None] * (table.shape[1] * heads) + torch.arange(heads)
    rows = cell.repeat(1, 1, 1, 4) + (own[..., None] + corners)[:, None].int()
    weights = weights.flatten(3)
    below = weights * down
    above = weights - below
    shares = torch.cat((above - above * right, above * right, below - below * right, below * right), -1)
    total = F.embedding_bag(
        rows.view(batch * queries * heads, -1), table.view(-1, width), mode="sum",
        per_sample_weights=shares.view(batch * queries * heads, -1),
    )  # fmt: skip
    return total.view(batch, queries, heads * width)


def sum_of_samples(value: Tensor, shapes: list[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """Levels are sampled as pictures, with the queries innermost, so that the weighting is one contiguous multiply-add
    instead of a sum over an innermost axis of a few elements."""
    batch, _, heads, width = value.shape
    queries = places.shape[1]
    levels = value.split([height * wide for height, wide in shapes], dim=1)
    # (B * H, L, P, N, 2) and (B * H, L, P, N): N innermost.
    grid = (2 * places - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
    weights = weights.permute(0, 2, 3, 4, 1).flatten(0, 1)
    total: Any = 0
    for index, (height, wide) in enumerate(shapes):
        level = levels[index].permute(0, 2, 3, 1).reshape(batch * heads, width, height, wide)
        sampled = F.grid_sample(level, grid[:, index], mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (sampled * weights[:, index].unsqueeze(1)).sum(2)
    return total.view(batch, heads * width, queries).transpose(1, 2)
