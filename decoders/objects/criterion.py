"""What trains the detector: set matching, dense supervision of the encoder, denoising, presence.

Every part names its source:

- set loss on each decoder layer, bipartite matching (Carion et al. 2020, "End-to-End Object Detection with
  Transformers", section 3.1; auxiliary layers section 3.2), L1 5 and GIoU 2 as there;
- classification by the matchability-aware loss (Huang et al. 2024, "DEIM", section 3.3): the target of a positive is
  its IoU raised to gamma, so that scores rank boxes, and low-IoU positives still get a gradient, which a model from
  scratch needs and varifocal loss denies it;
- a choice between the asked phrases at every positive (soft-token contrast of Kamath et al. 2021, "MDETR",
  section 2.2.2): sigmoid scores that are all low leave classes mixed;
- a thing is one target however many of the phrases are true of it ("the cars", "the leftmost car"), and its query is
  right for each of them: as many targets as phrases would have two queries for one thing and teach each that what the
  other says is wrong;
- dense one-to-many supervision of the encoder tokens (Zong et al. 2022, "Co-DETR"; positives by centre and scale as in
  Tian et al. 2019, "FCOS", section 3.2): transformers' own loss never trains the two-stage proposal head;
- contrastive denoising (Zhang et al. 2022, "DINO", section 3.3), its label embedding being the phrase embedding itself,
  so that denoising trains the links (VisionLLM v2);
- a choice between all queries for every phrase that is true of something, where candidates are compared
  (``choice.ChoiceHead``): what a phrase means is the best of all, not whatever is good enough; and silence where the
  first scores told it already;
- presence: one binary question a phrase (Carion et al. 2025, "SAM 3", presence head, here per phrase).

What each part gives is measured by tools/bench/parts.py; the figures stand in docs/architecture.md.

All losses are sums; B = pictures, N = queries, P = phrases, M = targets. Boxes are cxcywh_norm, fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from visionllm.core.boxes import (
    cxcywh_to_xyxy,
    elementwise_generalized_iou,
    elementwise_iou,
    generalized_box_iou,
    xyxy_to_cxcywh,
)
from visionllm.core.masks import Mask
from visionllm.decoders.objects.detector import Encoded, LayerOutput
from visionllm.decoders.objects.poses import PoseTruth

# Per picture (query rows, target rows).
Pairs = list[tuple[Tensor, Tensor]]
PARTS = ("class", "contrast", "l1", "giou")
# Exponent of the weight of negatives, and of the IoU in the target of positives. DEIM takes 1.5 for both; boxes of a
# detector from scratch overlap by 0.4 for most of a training, and a target of 0.25 gives classes no reason to part.
GAMMA, QUALITY = 1.5, 0.5
QUERY_MULTIPLE = 20
MATCH_CLASS, MATCH_L1, MATCH_GIOU = 2.0, 5.0, 2.0
# A logit that is never chosen; finite, since the gradient of nothing but infinities is undefined.
_SHUT = -1e4


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Truth:
    """Targets of a batch: per picture (M, 4) cxcywh_norm boxes, (M, P) True for the phrases that are true of each, M
    masks and M poses, None where there is none to learn; (B, P) presence in {0, 1}."""

    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[list[Mask | None]]
    poses: list[list[PoseTruth | None]]
    present_BP: Tensor


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Denoising:
    """Noised queries of a batch.

    Args:
        content_BNC: phrase embeddings of the (noised) labels, one of those of the target.
        reference_BN4: noised box logits.
        closed_NN: (N + queries, N + queries) bool for the decoder's self attention, True where shut.
        positive: per picture (rows, targets) index pairs of the queries that must recover a box.
        count: number of denoising queries.
        groups: copies of each target, the divisor of the denoising losses.
    """

    content_BNC: Tensor
    reference_BN4: Tensor
    closed_NN: Tensor
    positive: Pairs
    count: int
    groups: int


def match(layer: LayerOutput, truth: Truth) -> Pairs:
    """The queries of one layer matched to the targets."""
    return [
        _match(layer.logits_BNP[b].detach(), layer.boxes_BN4[b].detach(), truth.boxes[b], truth.labels[b])
        for b in range(len(truth.boxes))
    ]


def paired_loss(layer: LayerOutput, truth: Truth, pairs: Pairs, padding_BP: Tensor) -> dict[str, Tensor]:
    """Losses of queries whose targets are known: classification, contrast, L1 and GIoU, summed."""
    batch = torch.cat([torch.full_like(rows, b) for b, (rows, _) in enumerate(pairs)])
    rows = torch.cat([rows for rows, _ in pairs])
    boxes = torch.cat([truth.boxes[b][cols] for b, (_, cols) in enumerate(pairs)])
    labels = torch.cat([truth.labels[b][cols] for b, (_, cols) in enumerate(pairs)])
    predicted = layer.boxes_BN4[batch, rows]
    l1, giou, iou = box_losses(predicted, boxes)
    quality = _quality(layer.logits_BNP, batch, rows, labels, iou)
    return {
        "class": matchability_loss(layer.logits_BNP, quality, padding_BP),
        "contrast": contrast_loss(layer.logits_BNP[batch, rows], labels, padding_BP[batch]), "l1": l1, "giou": giou,
    }  # fmt: skip


def box_losses(predicted: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Summed L1, summed 1 - GIoU, and the detached IoU of (M, 4) pairs."""
    a, b = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(boxes)
    giou = elementwise_generalized_iou(a, b)
    return (predicted - boxes).abs().sum(), (1 - giou).sum(), elementwise_iou(a, b).detach()


def matchability_loss(logits: Tensor, quality: Tensor, padding_BP: Tensor) -> Tensor:
    """DEIM's matchability-aware loss, summed; ``quality`` is 0 on negatives. Padded phrases and tokens do not count."""
    open_ = torch.isfinite(logits) & ~padding_BP[:, None, :]
    logits = torch.where(open_, logits, torch.zeros_like(logits))
    score = logits.detach().sigmoid()
    weight = torch.where(quality > 0, torch.ones_like(score), score**GAMMA) * open_
    return (F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * weight).sum()


def dense_loss(encoded: Encoded, truth: Truth) -> dict[str, Tensor]:
    """One-to-many loss of the encoder tokens near the centre of a box on the level of its size."""
    centre, level_scale = _token_grid(encoded)
    batch, rows, boxes, labels = [], [], [], []
    for b, (target, label) in enumerate(zip(truth.boxes, truth.labels, strict=True)):
        token, index = _assign(centre, level_scale, encoded, b, target)
        batch.append(torch.full_like(token, b))
        rows.append(token)
        boxes.append(target[index])
        labels.append(label[index])
    b_all, r_all, labels_all = torch.cat(batch), torch.cat(rows), torch.cat(labels)
    l1, giou, iou = box_losses(encoded.box_logits_BS4[b_all, r_all].sigmoid(), torch.cat(boxes))
    quality = _quality(encoded.logits_BSP, b_all, r_all, labels_all, iou)
    return {
        "class": matchability_loss(encoded.logits_BSP, quality, encoded.phrase_padding_BP),
        "contrast": contrast_loss(encoded.logits_BSP[b_all, r_all], labels_all, encoded.phrase_padding_BP[b_all]),
        "l1": l1, "giou": giou,
    }  # fmt: skip


def contrast_loss(logits_MP: Tensor, labels_MP: Tensor, padding_MP: Tensor) -> Tensor:
    """Summed cross entropy of choosing the right one of the asked phrases; where several are right, the mean of
    choosing each among itself and the wrong ones.

    A score near 0 for every phrase costs a sigmoid loss little, whichever of them is highest: classes then part slowly.
    """
    logits = logits_MP.float()
    wrong = logits.masked_fill(labels_MP | padding_MP, _SHUT).logsumexp(-1, keepdim=True)
    each = F.softplus(wrong - logits.masked_fill(~labels_MP, 0.0)) * labels_MP
    return (each.sum(-1) / labels_MP.sum(-1)).sum()


def choice_loss(layer: LayerOutput, truth: Truth, pairs: Pairs) -> Tensor:
    """Summed cross entropy of choosing the right ones of all queries, of every phrase that is true of something."""
    total = layer.logits_BNP.new_zeros(())
    for b, (rows, targets) in enumerate(pairs):
        right_NP = torch.zeros(layer.logits_BNP.shape[1:], dtype=torch.bool, device=total.device)
        right_NP[rows] = truth.labels[b][targets]
        asked = right_NP.any(0)
        right_PN = right_NP[:, asked].T
        total = total + contrast_loss(layer.logits_BNP[b][:, asked].T, right_PN, torch.zeros_like(right_PN))
    return total


def silence_loss(found: LayerOutput, chosen: LayerOutput, truth: Truth, pairs: Pairs, padding_BP: Tensor) -> Tensor:
    """Summed over phrases: the squared length of what choosing added to the scores of a phrase, as far as they were
    right without it (the share of the right queries in a softmax over all; all of it where nothing is right).

    Most phrases are names, of which the detector knows who bears them. What is added there is noise.
    """
    total = chosen.logits_BNP.new_zeros(())
    for b, (rows, targets) in enumerate(pairs):
        right_NP = torch.zeros(found.logits_BNP.shape[1:], dtype=torch.bool, device=total.device)
        right_NP[rows] = truth.labels[b][targets]
        asked_P = ~padding_BP[b]
        first_NP, right_NP = found.logits_BNP[b][:, asked_P].float().detach(), right_NP[:, asked_P]
        known_P = torch.where(right_NP.any(0), (first_NP.softmax(0) * right_NP).sum(0), 1.0)
        added_NP = chosen.logits_BNP[b][:, asked_P].float() - first_NP
        total = total + (known_P * added_NP.square().sum(0)).sum()
    return total


def _quality(logits: Tensor, batch: Tensor, rows: Tensor, labels_MP: Tensor, iou_M: Tensor) -> Tensor:
    """Classification targets of the shape of ``logits``: a power of the IoU at positives, 0 elsewhere."""
    quality = torch.zeros_like(logits)
    target, phrase = torch.where(labels_MP)
    quality[batch[target], rows[target], phrase] = iou_M[target].clamp(min=1e-2).to(quality.dtype) ** QUALITY
    return quality


def denoise(encoded: Encoded, truth: Truth, *, groups_of: int, label_noise: float, box_noise: float, queries: int,
            generator: torch.Generator | None = None) -> Denoising | None:  # fmt: skip
    """Noised targets as extra queries: a positive and a harder negative of each target in every group.

    Args:
        groups_of: about how many denoising queries a picture gets; the number of groups follows from the targets.
        label_noise: probability that a query carries the embedding of another phrase.
        box_noise: corners move by up to ``box_noise / 2`` of the box (positives), twice that (negatives).
    """
    longest = max((len(boxes) for boxes in truth.boxes), default=0)
    if longest == 0:
        return None
    groups = max(1, groups_of // (2 * longest))
    # Rounded up, unused rows left: few distinct shapes.
    count = -(-2 * longest * groups // QUERY_MULTIPLE) * QUERY_MULTIPLE
    device = encoded.memory_BSC.device
    batch = len(truth.boxes)
    content = encoded.phrases_BPC.new_zeros(batch, count, encoded.phrases_BPC.shape[-1])
    reference = torch.full((batch, count, 4), 0.5, device=device)
    positive = []
    for b, (boxes, labels) in enumerate(zip(truth.boxes, truth.labels, strict=True)):
        number = len(boxes)
        slot = torch.arange(groups, device=device)[:, None] * 2 * longest + torch.arange(number, device=device)[None]
        rows = torch.cat([slot, slot + longest], 1).flatten()
        tiled, tiled_labels = boxes.repeat(2 * groups, 1), labels.repeat(2 * groups, 1)
        hard = torch.cat([torch.zeros_like(slot), torch.ones_like(slot)], 1).flatten().float()[:, None]
        phrases = int((~encoded.phrase_padding_BP[b]).sum())
        if number:
            swap = torch.rand(len(rows), generator=generator).to(device) < label_noise * 0.5
            other = torch.randint(phrases, (len(rows),), generator=generator).to(device)
            # Any of the phrases that are true of the target, each as likely.
            chance = torch.rand(tiled_labels.shape, generator=generator).to(device) * tiled_labels
            content[b, rows] = encoded.phrases_BPC[b, torch.where(swap, other, chance.argmax(-1))]
            reference[b, rows] = _noised(tiled, hard, box_noise, generator)
        recover = slot.flatten()
        positive.append((recover, torch.arange(number, device=device).repeat(groups)))
    return Denoising(
        content_BNC=content, reference_BN4=torch.special.logit(reference, eps=1e-4),
        closed_NN=_denoising_mask(count, 2 * longest, queries, device), positive=positive, count=count, groups=groups,
    )  # fmt: skip


def presence_loss(logits_BP: Tensor, truth: Truth, padding_BP: Tensor) -> Tensor:
    """Summed binary cross entropy of the presence logits."""
    loss = F.binary_cross_entropy_with_logits(logits_BP, truth.present_BP, reduction="none")
    return (loss * ~padding_BP).sum()


def _match(logits_NP: Tensor, boxes_N4: Tensor, target_M4: Tensor, labels_MP: Tensor) -> tuple[Tensor, Tensor]:
    device = logits_NP.device
    if not len(target_M4):
        none = torch.zeros(0, dtype=torch.long, device=device)
        return none, none
    score = logits_NP.sigmoid()
    # Focal matching cost (Zhu et al. 2020, Deformable DETR), the mean over the phrases of a target.
    gain_NP = 0.25 * (1 - score) ** 2 * -(score + 1e-8).log() - 0.75 * score**2 * -(1 - score + 1e-8).log()
    giou = generalized_box_iou(cxcywh_to_xyxy(boxes_N4), cxcywh_to_xyxy(target_M4))
    share_MP = labels_MP.to(gain_NP) / labels_MP.sum(-1, keepdim=True)
    cost = MATCH_CLASS * gain_NP @ share_MP.T + MATCH_L1 * torch.cdist(boxes_N4, target_M4, p=1) - MATCH_GIOU * giou
    rows, cols = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(rows, device=device), torch.as_tensor(cols, device=device)


def _token_grid(encoded: Encoded) -> tuple[Tensor, Tensor]:
    """(S, 2) token centres in cells of the finest padded map, scaled to [0, 1] of the padded picture; (S,) levels."""
    device = encoded.memory_BSC.device
    centres, levels = [], []
    for level, (height, width) in enumerate(encoded.shapes):
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        centres.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).reshape(-1, 2))
        levels.append(torch.full((height * width,), level, device=device))
    return torch.cat(centres), torch.cat(levels)


def _assign(centre_S2: Tensor, level_S: Tensor, encoded: Encoded, b: int, target_M4: Tensor) -> tuple[Tensor, Tensor]:
    """(token, target) pairs: tokens within 1.5 strides of the box centre and inside it, on the level of its size."""
    if not len(target_M4):
        none = torch.zeros(0, dtype=torch.long, device=centre_S2.device)
        return none, none
    ratio = encoded.ratios_BL2[b, 0]
    height, width = encoded.shapes[0]
    cells = torch.tensor([width, height], device=centre_S2.device, dtype=torch.float32)
    # Everything in cells of the finest level (one cell = its stride), in the padded frame.
    place = centre_S2 * cells
    middle, size = target_M4[:, :2] * ratio * cells, target_M4[:, 2:] * ratio * cells
    longest = size.max(-1).values
    last = len(encoded.shapes) - 1
    # A box of up to 8 cells belongs to the finest level, each level after it doubles that.
    home = torch.log2(longest.clamp(min=1e-6) / 8).ceil().clamp(0, last).long()
    offset = (place[:, None] - middle[None]).abs()
    reach = (2.0**level_S)[:, None] * 1.5
    near = (offset <= torch.maximum(torch.minimum(reach[..., None], size[None] / 2), reach[..., None] / 3)).all(-1)
    near &= (level_S[:, None] == home[None]) & encoded.valid_BS[b][:, None]
    # A token that lies in several boxes takes the smallest.
    area = torch.where(near, size.prod(-1)[None], torch.full_like(offset[..., 0], float("inf")))
    best, index = area.min(-1)
    token = torch.isfinite(best).nonzero()[:, 0]
    return token, index[token]


def _noised(boxes: Tensor, hard: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    xyxy = cxcywh_to_xyxy(boxes)
    shift = torch.rand(boxes.shape, generator=generator).to(boxes.device) + hard
    sign = torch.randint(0, 2, boxes.shape, generator=generator).to(boxes.device) * 2.0 - 1
    moved = xyxy + shift * sign * boxes[:, 2:].repeat(1, 2) * 0.5 * noise
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    moved = torch.cat([low, high], -1).clamp(0, 1)
    return xyxy_to_cxcywh(moved).clamp(1e-4, 1 - 1e-4)


def _denoising_mask(count: int, group: int, queries: int, device: torch.device) -> Tensor:
    """Ordinary queries never see noised ones, which carry the truth; a group sees itself only."""
    total = count + queries
    closed = torch.ones(total, total, dtype=torch.bool, device=device)
    closed[count:, count:] = False
    for start in range(0, count, group):  # the rows left over form a group of their own
        end = min(start + group, count)
        closed[start:end, start:end] = False
    return closed
