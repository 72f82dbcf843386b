"""Links laid out by picture, and what is true of each: what stands between the contract and the detector.

L = links, P = phrases of a picture, B = pictures (or passes over one), C = width of the detector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from visionllm.core.masks import Mask
from visionllm.core.regions import named_region
from visionllm.core.superlink import SuperLinks
from visionllm.decoders.base import Context
from visionllm.decoders.objects.criterion import Pairs, Truth
from visionllm.decoders.objects.detector import Encoded, LayerOutput
from visionllm.decoders.objects.poses import PoseTruth
from visionllm.decoders.objects.tasks import MASKED, POINT

PHRASE_MULTIPLE = 8
# Least side of the frame that a region gives the detector, of the picture's: a point has none of its own.
LEAST_FRAME = 0.12


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Group:
    """The links of one picture: indices into the links, and the picture."""

    owner: tuple[int, int]
    links: list[int]


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Bucket:
    """Pictures of one padded size: (B, 3, H, W) values and (B, H, W) mask of those in use; the groups that ask about
    them, and the row of each group's picture, which several may share."""

    values: Tensor
    mask: Tensor
    groups: list[Group]
    row_of: list[int]


def buckets(links: SuperLinks, ctx: Context) -> list[Bucket]:
    """Links grouped by sample and picture, pictures by padded size."""
    of_picture: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, meta in enumerate(links.meta):
        of_picture[(meta.sample, meta.media[0])].append(i)
    found = []
    for bucket in ctx.batch.pixels["objects/source"]:
        asking = [[owner for owner in owners if owner in of_picture] for owners in bucket.owners]
        rows = [row for row, owners in enumerate(asking) if owners]
        if not rows:
            continue
        pairs = [(place, owner) for place, row in enumerate(rows) for owner in asking[row]]
        index = torch.tensor(rows, device=bucket.values.device)
        found.append(Bucket(
            values=bucket.values[index], mask=bucket.mask[index], row_of=[place for place, _ in pairs],
            groups=[Group(owner=owner, links=of_picture[owner]) for _, owner in pairs],
        ))  # fmt: skip
    return found


def passes(pictures: list[Group], rows: Sequence[int], most: int) -> tuple[list[int], list[Group]]:
    """The groups cut into passes of at most ``most`` links, of nearly one size, and the row of features of each."""
    row_of, groups = [], []
    for row, group in zip(rows, pictures, strict=True):
        count = -(-len(group.links) // most)
        size = -(-len(group.links) // count)
        for start in range(0, len(group.links), size):
            row_of.append(row)
            groups.append(Group(owner=group.owner, links=group.links[start : start + size]))
    return row_of, groups


def stack(phrases_LC: Tensor, groups: list[Group]) -> tuple[Tensor, Tensor]:
    """(B, P, C) phrase embeddings, padded with zeros, and (B, P) padding."""
    # Few distinct shapes: kernels compiled per shape (oneDNN in bf16, CUDA autotuning) cost more than the padding.
    longest = -(-max(len(group.links) for group in groups) // PHRASE_MULTIPLE) * PHRASE_MULTIPLE
    index = torch.full((len(groups), longest), len(phrases_LC), device=phrases_LC.device)
    for b, group in enumerate(groups):
        index[b, : len(group.links)] = torch.tensor(group.links, device=phrases_LC.device)
    with_zero = torch.cat([phrases_LC, phrases_LC.new_zeros(1, phrases_LC.shape[1])])
    return with_zero[index], index == len(phrases_LC)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Parts:
    """The keypoints of one root link: their names, states, and the place of the first among those of all links."""

    names: tuple[str, ...]
    states: Tensor
    start: int


def owners(links: SuperLinks) -> tuple[SuperLinks, list[Parts]]:
    """The root links, and the keypoints of each; of two with one name the first stands."""
    own: dict[int, dict[str, int]] = {i: {} for i, meta in enumerate(links.meta) if meta.token != POINT}
    for i, meta in enumerate(links.meta):
        if meta.parent in own:
            own[meta.parent].setdefault(meta.phrase, i)
    parts: list[Parts] = []
    for names in own.values():
        start = parts[-1].start + len(parts[-1].names) if parts else 0
        parts.append(Parts(names=tuple(names), states=links.select(list(names.values())).states, start=start))
    return links.select(list(own)), parts


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class LinkTarget:
    """What is true of one link's phrase: (M, 4) boxes, cxcywh_norm, and what else is to be learned of each."""

    boxes: np.ndarray
    masks: list[Mask | None]
    poses: list[PoseTruth | None]


def target_of(links: SuperLinks, link: int, parts: Sequence[Parts], ctx: Context) -> LinkTarget:
    """Crowds are left out. Masks are learned behind their own token only, and only those that hold a pixel; keypoints
    where some were asked for.
    """
    meta = links.meta[link]
    sample = ctx.batch.samples[meta.sample]
    target = sample.turns[meta.turn].target
    keep = (target.phrase == meta.group) & ~target.ignored
    masks: list[Mask | None] = [None] * int(keep.sum())
    if meta.token in MASKED and target.masks is not None:
        masks = [mask if mask is not None and mask.area else None for mask in target.masks[keep].tolist()]
    poses: list[PoseTruth | None] = [None] * len(masks)
    size = np.array(sample.pictures[meta.media[0]].size, np.float32)
    names, start = parts[link].names, parts[link].start
    if names and target.poses is not None:
        poses = [None if pose is None else PoseTruth.of(pose, names, start, size) for pose in target.poses[keep]]
    norm = target.boxes_xyxy[keep].astype(np.float32) / np.tile(size, 2)
    boxes = np.concatenate([(norm[:, :2] + norm[:, 2:]) / 2, norm[:, 2:] - norm[:, :2]], 1)
    return LinkTarget(boxes=boxes, masks=masks, poses=poses)


def things_of(targets: Sequence[LinkTarget]) -> tuple[LinkTarget, np.ndarray]:
    """The things that some phrases of one picture speak of, each once, and (M, P) True where a phrase is true of one.

    What has the box of another thing, to the last bit, and is true of another phrase is that thing. Two that are to be
    learned in different ways (other keypoints, another mask) stay two.
    """
    things: list[tuple[np.ndarray, Mask | None, PoseTruth | None, list[int]]] = []
    at: dict[bytes, list[int]] = defaultdict(list)
    for p, target in enumerate(targets):
        for box, mask, pose in zip(target.boxes, target.masks, target.poses, strict=True):
            same = at[box.tobytes()]
            for i in same:
                known = things[i]
                if p not in known[3] and _agree(known[1], mask) and (known[2] is None or pose is None):
                    things[i] = (box, known[1] or mask, known[2] or pose, [*known[3], p])
                    break
            else:
                same.append(len(things))
                things.append((box, mask, pose, [p]))
    labels = np.zeros((len(things), len(targets)), bool)
    for i, thing in enumerate(things):
        labels[i, thing[3]] = True
    boxes = np.stack([thing[0] for thing in things]) if things else np.zeros((0, 4), np.float32)
    return LinkTarget(boxes=boxes, masks=[thing[1] for thing in things], poses=[thing[2] for thing in things]), labels


def _agree(one: Mask | None, other: Mask | None) -> bool:
    if one is None or other is None:
        return True
    return one.corner == other.corner and np.array_equal(one.patch, other.patch)


def truth_of(groups: list[Group], links: SuperLinks, parts: Sequence[Parts], ctx: Context, padding_BP: Tensor) -> Truth:
    device = padding_BP.device
    boxes, labels = [], []
    masks: list[list[Mask | None]] = []
    poses: list[list[PoseTruth | None]] = []
    present = torch.zeros(padding_BP.shape, device=device)
    for b, group in enumerate(groups):
        things, of_phrases = things_of([target_of(links, link, parts, ctx) for link in group.links])
        open_ = np.zeros((len(of_phrases), padding_BP.shape[1]), bool)
        open_[:, : len(group.links)] = of_phrases
        labels.append(torch.from_numpy(open_).to(device))
        boxes.append(torch.from_numpy(things.boxes).float().to(device))
        masks.append(things.masks)
        poses.append(things.poses)
        present[b] = labels[-1].any(0)
    return Truth(boxes=boxes, labels=labels, masks=masks, poses=poses, present_BP=present)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Frame:
    """Where a region is: (4,) box of where to look, its own (4,) box, both cxcywh_norm, and whether that is the box of
    the thing, too (``Region.outlines``)."""

    look: np.ndarray
    box: np.ndarray
    outlines: bool


def frame_of(links: SuperLinks, link: int, ctx: Context) -> Frame | None:
    """The frame of the region that a link speaks of; None for words."""
    meta = links.meta[link]
    sample = ctx.batch.samples[meta.sample]
    region = named_region(meta.phrase, sample.named)
    if region is None:
        return None
    size = sample.pictures[region.picture].size
    x1, y1, x2, y2 = region.mask(size).box_xyxy / np.tile(np.array(size, np.float32), 2)
    box = np.array([x1 + x2, y1 + y2, 2 * (x2 - x1), 2 * (y2 - y1)], np.float32) / 2
    look = np.concatenate([box[:2], np.maximum(box[2:], LEAST_FRAME)])
    return Frame(look=np.clip(look, 1e-4, 1 - 1e-4).astype(np.float32), box=box, outlines=region.outlines)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Pointed:
    """Queries of regions: the phrase embedding of the link and the region's frame, as a noised query has those of a
    target (``criterion.denoise``). Training on noise is training to find what a user frames.

    Args:
        content_BRC: phrase embeddings, zeros on padding.
        reference_BR4: box logits.
        phrase: per picture the phrase of each.
        boxes_BR4, outlines_BR: their own boxes, cxcywh_norm, and whether these are the boxes of the things.
    """

    content_BRC: Tensor
    reference_BR4: Tensor
    phrase: list[list[int]]
    boxes_BR4: Tensor
    outlines_BR: Tensor

    @property
    def count(self) -> int:
        return self.content_BRC.shape[1]

    def opened(self, layer: LayerOutput) -> LayerOutput:
        """What a layer says of them, padding shut."""
        logits = layer.logits_BNP.clone()
        for b, own in enumerate(self.phrase):
            logits[b, len(own) :] = float("-inf")
        return LayerOutput(logits_BNP=logits, boxes_BN4=layer.boxes_BN4, hidden_BNC=layer.hidden_BNC)

    def outlined(self, layer: LayerOutput) -> LayerOutput:
        """A layer of these queries, then others, in which a thing lies where it was outlined: whoever frames it knows
        better than a detector where it ends."""
        boxes, count = layer.boxes_BN4, self.count
        own = torch.where(self.outlines_BR[..., None], self.boxes_BR4.to(boxes), boxes[:, :count])
        return replace(layer, boxes_BN4=torch.cat([own, boxes[:, count:]], 1))

    def pairs(self, truth: Truth) -> Pairs:
        """Those that mean one known thing, and it."""
        found = []
        for own, labels in zip(self.phrase, truth.labels, strict=True):
            targets = [torch.nonzero(labels[:, phrase])[:, 0] for phrase in own]
            single = [(row, int(which[0])) for row, which in enumerate(targets) if len(which) == 1]
            table = torch.tensor(single, dtype=torch.long, device=labels.device).reshape(-1, 2)
            found.append((table[:, 0], table[:, 1]))
        return found


def pointed(groups: list[Group], links: SuperLinks, ctx: Context, encoded: Encoded) -> Pointed | None:
    """The queries of all links that speak of a region; None where none does."""
    frames = [[(p, frame_of(links, link, ctx)) for p, link in enumerate(group.links)] for group in groups]
    own = [[(p, frame) for p, frame in row if frame is not None] for row in frames]
    most = max(map(len, own))
    if not most:
        return None
    content = encoded.phrases_BPC.new_zeros(len(own), most, encoded.phrases_BPC.shape[-1])
    reference = torch.full((len(own), most, 4), 0.5, device=content.device)
    boxes, outlines = reference.clone(), torch.zeros(len(own), most, dtype=torch.bool, device=content.device)
    for b, row in enumerate(own):
        for place, (p, frame) in enumerate(row):
            content[b, place] = encoded.phrases_BPC[b, p]
            reference[b, place] = torch.from_numpy(frame.look).to(content.device)
            boxes[b, place] = torch.from_numpy(frame.box).to(content.device)
            outlines[b, place] = frame.outlines
    return Pointed(
        content_BRC=content, reference_BR4=torch.special.logit(reference), phrase=[[p for p, _ in row] for row in own],
        boxes_BR4=boxes, outlines_BR=outlines,
    )  # fmt: skip


def closed_between(noised: Tensor | None, noise: int, regions: int, queries: int, device: torch.device) -> Tensor:
    """(N, N) self attention of noised queries, regions and ordinary queries, True where shut.

    Ordinary queries see each other only, so that what else is asked changes nothing; a region sees itself only, as a
    noised query sees its group only.
    """
    total = noise + regions + queries
    closed = torch.ones(total, total, dtype=torch.bool, device=device)
    if noised is not None:
        closed[:noise, :noise] = noised[:noise, :noise]
    closed[noise : noise + regions, noise : noise + regions] = ~torch.eye(regions, dtype=torch.bool, device=device)
    closed[noise + regions :, noise + regions :] = False
    return closed
