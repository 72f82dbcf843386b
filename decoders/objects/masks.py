"""Masks of the boxes: a dot product of what a query says and what a pixel says, inside the query's box.

Pixel embeddings at a quarter of the picture and a mask embedding a query, their product the mask's logit (Cheng et al.
2022, "Mask2Former", section 3.1; Li et al. 2023, "Mask DINO", section 3.3). Only the box of a query is looked at (Bolya
et al. 2019, "YOLACT", section 3.2: crop), so that a pixel need not know in which of many alike things it lies.

B = pictures, K = targets, C = width of the detector, M = width of a mask embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionllm.core.masks import Mask
from visionllm.decoders.objects.pixels import read

# Points a mask is trained at; candidates for each; share of them taken where the mask is least certain (Kirillov et
# al. 2020, "PointRend", section 3.2); margin of the box they lie in, of its sides.
SIDE = 14
POINTS, CANDIDATES, UNCERTAIN, MARGIN = SIDE * SIDE, 3, 0.75, 0.1
_GRID = torch.stack(torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE] * 2, indexing="xy"), -1).reshape(1, POINTS, 2)


class MaskHead(nn.Module):
    """Pixel embeddings of pictures, and mask embeddings of queries.

    Args:
        width: of the detector.
        mask_width: M, the width of the pixel map.
    """

    def __init__(self, width: int, mask_width: int) -> None:
        super().__init__()
        self.pixel = nn.Conv2d(mask_width, mask_width, 1)
        self.query = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, mask_width)
        )

    def pixels(self, map_BMHW: Tensor) -> Tensor:
        """(B, M, H / 4, W / 4) embeddings of the pixels of a map."""
        return self.pixel(map_BMHW)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) decoder states -> (..., M) mask embeddings."""
        return self.query(hidden)


def mask_losses(
    maps_BMHW: Tensor, ratios_B2: Tensor, queries: list[Tensor], boxes: list[Tensor], masks: list[list[Mask]], *,
    random: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """Summed cross entropy (mean over a mask's points) and dice loss (Milletari et al. 2016) of one layer's masks.

    Args:
        maps_BMHW: pixel embeddings of padded pictures.
        ratios_B2: part of the (width, height) of a map that its picture covers.
        queries: per picture (K, M) mask embeddings, one a target.
        boxes: per picture (K, 4) boxes of the targets, cxcywh_norm.
        masks: per picture the targets.
        random: draw the points, most of them where a mask is least certain; False takes a grid.
    """
    nothing = maps_BMHW.sum() * 0.0
    bce, dice = nothing, nothing
    for b, (queries_KM, boxes_K4, truth) in enumerate(zip(queries, boxes, masks, strict=True)):
        if not truth:
            continue
        if random:
            candidates = _spread(torch.rand(len(truth), POINTS * CANDIDATES, 2), boxes_K4)
            with torch.no_grad():
                doubt = -_logits(maps_BMHW[b], ratios_B2[b], queries_KM, candidates).abs()
            points = _choose(candidates, doubt)
        else:
            points = _spread(_GRID.expand(len(truth), -1, -1), boxes_K4)
        logits = _logits(maps_BMHW[b], ratios_B2[b], queries_KM, points)
        inside = np.stack([mask.at(place) for mask, place in zip(truth, points.cpu().numpy(), strict=True)])
        target = torch.from_numpy(inside).to(logits)
        bce = bce + F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1).sum()
        score = logits.sigmoid()
        dice = dice + (1 - (2 * (score * target).sum(1) + 1) / (score.sum(1) + target.sum(1) + 1)).sum()
    return {"mask": bce, "dice": dice}


def cutter(
    map_MHW: Tensor, ratio_2: Tensor, queries_NM: Tensor, boxes_xyxy: np.ndarray, size: tuple[int, int]
) -> Callable[[int], Mask]:
    """A function from the number of a query to its mask in the original picture; each is made once.

    Args:
        boxes_xyxy: (N, 4) of the queries, original pixels, inside the picture.
        size: (width, height) of the original picture.
    """
    made: dict[int, Mask] = {}

    def cut(query: int) -> Mask:
        if query not in made:
            made[query] = _cut(map_MHW, ratio_2, queries_NM[query], boxes_xyxy[query], size)
        return made[query]

    return cut


def _cut(map_MHW: Tensor, ratio_2: Tensor, query_M: Tensor, box_xyxy: np.ndarray, size: tuple[int, int]) -> Mask:
    x1, y1 = (int(value) for value in np.floor(box_xyxy[:2]))
    x2, y2 = (int(value) for value in np.ceil(box_xyxy[2:]))
    if x2 <= x1 or y2 <= y1:
        return Mask(patch=np.zeros((0, 0), bool), corner=(0, 0), size=size)
    logits_HW = torch.einsum("mhw,m->hw", map_MHW.float(), query_M.float())
    x = (torch.arange(x1, x2, device=map_MHW.device) + 0.5) / size[0]
    y = (torch.arange(y1, y2, device=map_MHW.device) + 0.5) / size[1]
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    values = read(logits_HW[None, None], ratio_2[None], places[None])
    return Mask(patch=(values[0, 0] > 0).cpu().numpy(), corner=(x1, y1), size=size)


def _spread(places: Tensor, boxes_K4: Tensor) -> Tensor:
    """(K, P, 2) places in [0, 1) -> those places of the boxes and a margin around them, normalised by the picture."""
    side = boxes_K4[:, None, 2:] * (1 + 2 * MARGIN)
    return (boxes_K4[:, None, :2] + (places.to(boxes_K4.device) - 0.5) * side).clamp(0, 1 - 1e-6)


def _choose(candidates: Tensor, doubt: Tensor) -> Tensor:
    """(K, POINTS, 2): the least certain candidates, and some of the rest as they come."""
    hard = round(POINTS * UNCERTAIN)
    order = doubt.argsort(1, descending=True)
    # Places are random, so that any fixed ones among the others are, too.
    kept = torch.cat([order[:, :hard], order[:, hard:].sort(1).values[:, : POINTS - hard]], 1)
    return candidates.gather(1, kept[..., None].expand(-1, -1, 2))


def _logits(map_MHW: Tensor, ratio_2: Tensor, queries_KM: Tensor, points: Tensor) -> Tensor:
    """(K, P) mask logits at (K, P, 2) places normalised by the picture."""
    sampled = read(map_MHW[None], ratio_2[None], points[None])[0]
    return torch.einsum("mkp,km->kp", sampled, queries_KM.float())
