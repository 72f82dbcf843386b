"""Which of what was found a phrase means: the candidates of each phrase, compared with each other.

L = links, Q = queries of a link, D = width of the language model, B = pictures, P = phrases, N = decoder queries,
K = candidates, M = phrases of all pictures, C = width of the detector, R = width of what is compared.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from visionllm.core.boxes import box_iou, cxcywh_to_xyxy
from visionllm.decoders.objects.detector import LayerOutput
from visionllm.decoders.objects.phrases import PhraseHead

CANDIDATES = 24
# Cells along a side of a box that a candidate is seen by, as colours.
_CELLS = 4
# How many times as small the picture is from which the colours are read.
_SHRUNK = 4
# Sides of boxes below this are alike.
_LEAST_SIDE = 1e-3
# Shares of the picture, and logarithms of areas, within which two candidates are hardly apart.
_NEAR, _ALIKE = 0.05, 1 / 3
_PAIR, _OWN = 12, 7
# How many times as steep the gate of a phrase is in an answer as it is while it learns.
_STEEP = 4.0


class _Likeness(nn.Module):
    """(M, K) how well candidates fit their phrase, a scaled product of two projections; nothing at first."""

    def __init__(self, phrase_width: int, width: int, common: int) -> None:
        super().__init__()
        self.asked, self.own = nn.Linear(phrase_width, common), nn.Linear(width, common)
        nn.init.zeros_(self.asked.weight)
        nn.init.zeros_(self.asked.bias)

    def forward(self, asked_MC: Tensor, own_MKF: Tensor) -> Tensor:
        fit_MK = torch.einsum("mr,mkr->mk", self.asked(asked_MC), self.own(own_MKF))
        return fit_MK * self.own.out_features**-0.5


class ChoiceHead(nn.Module):
    """Scores of the candidates of a phrase, once more, each seen beside the others.

    The score of a query is a dot product with the phrase, whatever else was found: "the leftmost tree" is as like every
    tree, and which of them is leftmost is a matter of all. Here every candidate meets every other: where they lie to
    each other, which is larger, how much of each other they cover, and how likely each is of the kind that is asked
    for. What pairs say is summed by that likelihood, and the largest of it kept, as in a relation module (Hu et al.
    2018, "Relation networks for object detection", section 3), whose geometry is learned here under the phrase. Beside
    it a candidate is looked at again, by its state and by the colours in its box. Phrases do not see each other.

    A gate that is read off the phrase says how much of all this counts, since of a name nothing is to be chosen. It is
    steeper in answers than in training, so that what leans to silence is silent.

    Attention between candidates in its place learned nothing that held of other pictures; docs/architecture.md has
    figures.

    Args:
        queries: Q; the link is read anew, since what tells one of a kind from another is little of what tells kinds.
        link_width: D.
        width: C.
        common: R.
        threshold: the gate in training, from which on it is more open than shut in answers.
    """

    def __init__(self, *, queries: int, link_width: int, width: int, common: int, threshold: float = 0.5) -> None:
        super().__init__()
        self.even = math.log(threshold / (1 - threshold))
        self.asked = PhraseHead(queries, link_width, width)
        self.kind, self.state = (_Likeness(width, width, common) for _ in range(2))
        self.colour = nn.Sequential(nn.Linear(3 * _CELLS**2, 2 * common), nn.GELU())
        self.coloured = _Likeness(width, 2 * common, common)
        self.code = nn.Linear(width, common)
        self.pair, self.own = nn.Linear(_PAIR, common), nn.Linear(_OWN, common)
        self.pair_by, self.own_by = nn.Linear(common, common, bias=False), nn.Linear(common, common, bias=False)
        self.said = nn.Linear(common, common)
        self.more = nn.Sequential(nn.Linear(3 * common + 2, common), nn.GELU(), nn.Linear(common, 1))
        # How much of it a phrase wants; a name wants little.
        self.open = nn.Linear(width, 1)
        # How the first score says that a candidate is of the kind.
        self.of_kind = nn.Parameter(torch.tensor([1.0, 1.0]))
        # It begins by changing nothing.
        nn.init.zeros_(self.more[2].weight)
        nn.init.zeros_(self.more[2].bias)
        nn.init.zeros_(self.open.weight)
        nn.init.ones_(self.open.bias)

    def forward(
        self, layer: LayerOutput, pixels_B3HW: Tensor, ratios_B2: Tensor, asked_BPC: Tensor, padding_BP: Tensor,
        start: int, *, answering: bool = False,
    ) -> LayerOutput:  # fmt: skip
        """A layer whose queries from ``start`` on are scored once more.

        Args:
            pixels_B3HW: the pictures, padded.
            ratios_B2: valid (width, height) ratio of each.
            asked_BPC: what ``asked`` reads off their links.
            padding_BP: True where a picture has fewer phrases.
            answering: the gate is steep; else as it is learned.
        """
        picture, phrase = torch.nonzero(~padding_BP, as_tuple=True)
        if not len(picture):
            return layer
        own, rows = layer.queries(start), picture[:, None]
        scores_MN = own.logits_BNP.transpose(1, 2)[picture, phrase].detach()
        first_MK, best_MK = scores_MN.topk(min(CANDIDATES, scores_MN.shape[1]), dim=1)
        boxes_MK4, hidden_MKC = own.boxes_BN4[rows, best_MK].detach(), own.hidden_BNC[rows, best_MK]
        colours_MKF = _colours(pixels_B3HW, ratios_B2, own.boxes_BN4)[rows, best_MK].to(hidden_MKC.dtype)
        asked_MC = asked_BPC[picture, phrase]
        more_MK = self._compare(asked_MC, first_MK, boxes_MK4, hidden_MKC, colours_MKF)
        more_MK = (self._gate(asked_MC, answering=answering) * more_MK).float()
        logits_BPN = layer.logits_BNP.transpose(1, 2).clone()
        logits_BPN[rows, phrase[:, None], start + best_MK] += more_MK
        return replace(layer, logits_BNP=logits_BPN.transpose(1, 2))

    def _compare(
        self, asked_MC: Tensor, first_MK: Tensor, boxes_MK4: Tensor, hidden_MKC: Tensor, colours_MKF: Tensor
    ) -> Tensor:
        kind_MK = self.of_kind[0] * first_MK + self.of_kind[1] + self.kind(asked_MC, hidden_MKC).float()
        code_MR = self.code(asked_MC).tanh()
        pairs = _pairs(boxes_MK4, kind_MK).to(hidden_MKC.dtype)
        said_MKKR = F.gelu(self.said(F.gelu(self.pair(pairs) + self.pair_by(code_MR)[:, None, None])))
        others_KK = 1 - torch.eye(kind_MK.shape[1], device=kind_MK.device)
        weighed_MKKR = said_MKKR * (kind_MK.sigmoid()[:, None] * others_KK)[..., None]
        places = torch.cat([boxes_MK4, _sides(boxes_MK4), kind_MK[..., None]], -1).to(hidden_MKC.dtype)
        own_MKR = F.gelu(self.own(places) + self.own_by(code_MR)[:, None])
        scores_MK2 = torch.stack([first_MK, kind_MK], -1)
        all_ = torch.cat([weighed_MKKR.sum(2), weighed_MKKR.amax(2), own_MKR.to(weighed_MKKR.dtype), scores_MK2], -1)
        looked_MK = self.state(asked_MC, hidden_MKC) + self.coloured(asked_MC, self.colour(colours_MKF))
        return self.more(all_.to(hidden_MKC.dtype))[..., 0] + looked_MK

    def _gate(self, asked_MC: Tensor, *, answering: bool) -> Tensor:
        """(M, 1) from 0, nothing is to be chosen, to 1."""
        leaning = self.open(asked_MC)
        return (_STEEP * (leaning - self.even) if answering else leaning).sigmoid()


def _sides(boxes_MK4: Tensor) -> Tensor:
    return boxes_MK4[..., 2:].clamp(min=_LEAST_SIDE).log()


def _pairs(boxes_MK4: Tensor, kind_MK: Tensor) -> Tensor:
    """(M, K, K, 12) what a candidate (row) is to another (column)."""
    apart_MKK2 = boxes_MK4[:, :, None, :2] - boxes_MK4[:, None, :, :2]
    larger_MKK2 = _sides(boxes_MK4)[:, :, None] - _sides(boxes_MK4)[:, None]
    area_MKK1 = larger_MKK2.sum(-1, keepdim=True)
    corners = cxcywh_to_xyxy(boxes_MK4)
    cover_MKK1 = box_iou(corners, corners)[..., None]
    surer_MKK1 = (kind_MK[:, None] - kind_MK[:, :, None])[..., None]
    both = torch.stack(torch.broadcast_tensors(kind_MK[:, None], kind_MK[:, :, None]), -1).sigmoid()
    return torch.cat(
        [apart_MKK2, (apart_MKK2 / _NEAR).tanh(), larger_MKK2, area_MKK1, (area_MKK1 / _ALIKE).tanh(), cover_MKK1, both,
         surer_MKK1], -1,
    )  # fmt: skip


def _colours(pixels_B3HW: Tensor, ratios_B2: Tensor, boxes_BN4: Tensor) -> Tensor:
    """(B, N, 48) the colours in boxes, cell by cell."""
    pixels = pixels_B3HW.float()  # roi_align knows no bf16 on a CPU
    size = pixels.new_tensor([pixels.shape[-1], pixels.shape[-2]])
    scale_B14 = (ratios_B2.to(size) * size).repeat(1, 2)[:, None]
    corners = list(cxcywh_to_xyxy(boxes_BN4.detach()).to(size) * scale_B14)
    # Of all pixels of a large box, colours need few.
    small = F.avg_pool2d(pixels, _SHRUNK, ceil_mode=True)
    cells = roi_align(small, corners, _CELLS, spatial_scale=1 / _SHRUNK, sampling_ratio=2, aligned=True)
    return cells.flatten(1).reshape(*boxes_BN4.shape[:2], -1)
