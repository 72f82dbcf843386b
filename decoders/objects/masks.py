"""Masks of the boxes: a dot product of what a query says and what a pixel says, inside the query's box, far and near.

Pixel embeddings at a quarter of the picture and a mask embedding a query, their product the mask's logit (Cheng et al.
2022, "Mask2Former", section 3.1; Li et al. 2023, "Mask DINO", section 3.3). Only the box of a query is looked at (Bolya
et al. 2019, "YOLACT", section 3.2: crop), so that a pixel need not know in which of many alike things it lies.

A small thing fills few cells of that map, so its box can be seen close as well (``Crop``; He et al. 2017, "Mask R-CNN",
section 3: a mask is predicted in the frame of its box): what the query says times what a cell of the box says, added.

B = pictures, K = targets, C = width of the detector, M = width of a mask embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionllm.core.masks import Mask
from visionllm.decoders.objects.pixels import Crop, Fine, mlp, read

# Points a mask is trained at; candidates for each; share of them taken where the mask is least certain (Kirillov et
# al. 2020, "PointRend", section 3.2); margin of the box they lie in, of its sides.
SIDE = 14
POINTS, CANDIDATES, UNCERTAIN, MARGIN = SIDE * SIDE, 3, 0.75, 0.1
# Least side of a box that is seen close, of the picture's; boxes at a time, answering.
_LEAST, _AT_ONCE = 1e-3, 64
_GRID = torch.stack(torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE] * 2, indexing="xy"), -1).reshape(1, POINTS, 2)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Close:
    """What close looks add to the masks of K boxes.

    Args:
        logits_KSS: in the frame of each box and its margin.
        boxes_K4: cxcywh_norm.
    """

    logits_KSS: Tensor
    boxes_K4: Tensor

    def at(self, points_KP2: Tensor) -> Tensor:
        """(K, P) logits at places normalised by the picture."""
        frame = (points_KP2.float() - self.boxes_K4[:, None, :2]) / self.boxes_K4[:, None, 2:]
        grid = (frame / (0.5 + MARGIN))[:, None]
        return F.grid_sample(
            self.logits_KSS[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False
        )[:, 0, 0]

    def of(self, rows: slice) -> Close:
        return Close(logits_KSS=self.logits_KSS[rows], boxes_K4=self.boxes_K4[rows])


class MaskHead(nn.Module):
    """Pixel embeddings of pictures, and mask embeddings of queries.

    Args:
        width: of the detector.
        mask_width: M, the width of the pixel map.
        cells: along a side of a box seen close; None leaves that out.
    """

    def __init__(self, width: int, mask_width: int, cells: int | None = None) -> None:
        super().__init__()
        self.pixel = nn.Conv2d(mask_width, mask_width, 1)
        self.query = mlp(width, mask_width)
        self.crop = None if cells is None else Crop(width, mask_width, cells, MARGIN)
        self.close_query = None if cells is None else mlp(width, mask_width)
        if self.close_query is not None:
            # A head that joins a trained model begins with the masks that it has.
            nn.init.zeros_(self.close_query[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.close_query[-1].bias)  # type: ignore[arg-type]

    def pixels(self, map_BMHW: Tensor) -> Tensor:
        """(B, M, H / 4, W / 4) embeddings of the pixels of a map."""
        return self.pixel(map_BMHW)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) decoder states -> (..., M) mask embeddings."""
        return self.query(hidden)

    def close(self, fine: Fine, hidden_BIC: Tensor, boxes_BI4: Tensor, open_BI: Tensor) -> Close | None:
        """A close look at the K open boxes, cxcywh_norm, of decoder states; None where there is none of either."""
        if self.crop is None or self.close_query is None or not bool(open_BI.any()):
            return None
        boxes = boxes_BI4.detach().float()
        boxes = torch.cat([boxes[..., :2], boxes[..., 2:].clamp(min=_LEAST)], -1)
        cells_KMP, _, _ = self.crop(fine, boxes, open_BI)
        said_KM = self.close_query(hidden_BIC[open_BI]).float()
        logits = torch.einsum("kmp,km->kp", cells_KMP.float(), said_KM).unflatten(-1, (self.crop.side, -1))
        return Close(logits_KSS=logits, boxes_K4=boxes[open_BI])

    def close_all(self, fine: Fine, hidden_NC: Tensor, boxes_N4: Tensor) -> Close | None:
        """A close look at N boxes of one picture, a few at a time."""
        parts = [
            self.close(
                fine, hidden[None], boxes[None], torch.ones(1, len(boxes), dtype=torch.bool, device=boxes.device)
            )
            for hidden, boxes in zip(hidden_NC.split(_AT_ONCE), boxes_N4.split(_AT_ONCE), strict=True)
        ]
        looks = [part for part in parts if part is not None]
        if not looks:
            return None
        return Close(
            logits_KSS=torch.cat([look.logits_KSS for look in looks]),
            boxes_K4=torch.cat([look.boxes_K4 for look in looks]),
        )


def mask_losses(
    maps_BMHW: Tensor, ratios_B2: Tensor, queries: list[Tensor], boxes: list[Tensor], masks: list[list[Mask]], *,
    close: Close | None = None, random: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """Summed cross entropy (mean over a mask's points) and dice loss (Milletari et al. 2016) of one layer's masks.

    Args:
        maps_BMHW: pixel embeddings of padded pictures.
        ratios_B2: part of the (width, height) of a map that its picture covers.
        queries: per picture (K, M) mask embeddings, one a target.
        boxes: per picture (K, 4) boxes of the targets, cxcywh_norm.
        masks: per picture the targets.
        close: close looks at all of them, picture after picture.
        random: draw the points, most of them where a mask is least certain; False takes a grid.
    """
    nothing = maps_BMHW.sum() * 0.0
    bce, dice, done = nothing, nothing, 0
    for b, (queries_KM, boxes_K4, truth) in enumerate(zip(queries, boxes, masks, strict=True)):
        if not truth:
            continue
        look = None if close is None else close.of(slice(done, done + len(truth)))
        done += len(truth)
        if random:
            candidates = _spread(torch.rand(len(truth), POINTS * CANDIDATES, 2), boxes_K4)
            with torch.no_grad():
                doubt = -_logits(maps_BMHW[b], ratios_B2[b], queries_KM, candidates, look).abs()
            points = _choose(candidates, doubt)
        else:
            points = _spread(_GRID.expand(len(truth), -1, -1), boxes_K4)
        logits = _logits(maps_BMHW[b], ratios_B2[b], queries_KM, points, look)
        inside = np.stack([mask.at(place) for mask, place in zip(truth, points.cpu().numpy(), strict=True)])
        target = torch.from_numpy(inside).to(logits)
        bce = bce + F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1).sum()
        score = logits.sigmoid()
        dice = dice + (1 - (2 * (score * target).sum(1) + 1) / (score.sum(1) + target.sum(1) + 1)).sum()
    return {"mask": bce, "dice": dice}


def cut(
    map_MHW: Tensor, ratio_2: Tensor, queries_NM: Tensor, boxes_xyxy: np.ndarray, size: tuple[int, int],
    close: Close | None = None,
) -> list[Mask]:  # fmt: skip
    """The masks of queries in the original picture.

    Args:
        boxes_xyxy: (N, 4) of the queries, original pixels, inside the picture.
        size: (width, height) of the original picture.
        close: close looks at all of them.
    """
    return [
        _cut(map_MHW, ratio_2, query, box, size, None if close is None else close.of(slice(row, row + 1)))
        for row, (query, box) in enumerate(zip(queries_NM, boxes_xyxy, strict=True))
    ]


def _cut(
    map_MHW: Tensor, ratio_2: Tensor, query_M: Tensor, box_xyxy: np.ndarray, size: tuple[int, int], close: Close | None
) -> Mask:
    x1, y1 = (int(value) for value in np.floor(box_xyxy[:2]))
    x2, y2 = (int(value) for value in np.ceil(box_xyxy[2:]))
    if x2 <= x1 or y2 <= y1:
        return Mask(patch=np.zeros((0, 0), bool), corner=(0, 0), size=size)
    logits_HW = torch.einsum("mhw,m->hw", map_MHW.float(), query_M.float())
    x = (torch.arange(x1, x2, device=map_MHW.device) + 0.5) / size[0]
    y = (torch.arange(y1, y2, device=map_MHW.device) + 0.5) / size[1]
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    values = read(logits_HW[None, None], ratio_2[None], places[None])[0, 0]
    if close is not None:
        values = values + close.at(places.flatten(0, 1)[None])[0].view_as(values)
    return Mask(patch=(values > 0).cpu().numpy(), corner=(x1, y1), size=size)


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


def _logits(map_MHW: Tensor, ratio_2: Tensor, queries_KM: Tensor, points: Tensor, close: Close | None) -> Tensor:
    """(K, P) mask logits at (K, P, 2) places normalised by the picture."""
    sampled = read(map_MHW[None], ratio_2[None], points[None])[0]
    logits = torch.einsum("mkp,km->kp", sampled, queries_KM.float())
    return logits if close is None else logits + close.at(points)
