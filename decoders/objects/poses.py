"""Keypoints of the boxes: every named point of every object is a query of its own.

Object queries first, then keypoint queries in groups (Yang et al. 2023, "UniPose", sections 3.2 and 3.3; Yang et al.
2023, "ED-Pose", section 3.2): the query of a keypoint is what its object says and what its name says.

First each is found on a heatmap over the box of its object, whose cells it is classified into: what its query says
times what a cell says of what the box shows (``Crop``). Regression alone cannot begin: of a person that may face either
way the left shoulder is as often here as there, the best single guess is half way between the two, and there it stays.
A heatmap may believe both (Tompson et al. 2014, section 3), and its place is the mean around its peak alone (after Sun
et al. 2018, "Integral human pose regression", who take that of the whole), so that it is never half way.

Then rounds of looking correct it: queries of one object see each other and their object, those of another do not, and
each looks at the picture around the place it is believed at.

Which names there are is the caller's affair: they come as links. A name that the object does not have is a question
too: each point carries two flags, whether it can be placed at all and whether it is seen (COCO's visibility).

B = pictures, I = objects of a picture, J = keypoints of an object (padded), P = cells of a heatmap, C = width of the
detector, M = width of the pixel map.
Points are normalised by the picture without its padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionllm.core.poses import BODY, HIDDEN, UNKNOWN, VISIBLE, Pose, Skeleton
from visionllm.decoders.objects.attention import DeformableSampling
from visionllm.decoders.objects.detector import Encoded
from visionllm.decoders.objects.phrases import PhraseHead
from visionllm.decoders.objects.pixels import Crop, Fine, mlp

POINTS = 4  # looked at on each level, by each head
# Cells along a side of a heatmap; margin of the box it covers, of its sides; cells around its peak whose mean is meant.
GRID, MARGIN, AROUND = 24, 0.15, 2
# Least part of a box that a side counts as: a box of no height has a frame all the same.
_LEAST = 1e-3
# Half turns over a box, of the waves that tell where in it a cell lies.
_WAVES = (1.0, 2.0, 4.0, 8.0)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Points:
    """Keypoints of objects: (B, I, J, 2) places and (B, I, J, 2) logits of being there and of being seen."""

    places: Tensor
    flags: Tensor


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Heat:
    """Where keypoints are believed: (B, I, J, P) logits of the cells, and the (B, I, P, 2) places of these."""

    logits: Tensor
    places: Tensor


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class PoseTruth:
    """The points one object is asked for.

    Args:
        places_J2: normalised by the picture.
        flags_J: COCO's; a name the object does not have is unknown.
        spread_J: object keypoint similarity's constants.
        aspect: width of the picture by its height.
        start: place of the first of their names among those of the batch.
    """

    places_J2: np.ndarray
    flags_J: np.ndarray
    spread_J: np.ndarray
    aspect: float
    start: int

    @classmethod
    def of(cls, pose: Pose, names: Sequence[str], start: int, size: np.ndarray) -> PoseTruth:
        """The points of a pose by name; ``size`` is its picture's (width, height)."""
        own = pose.named(names)
        places = np.where(own.known[:, None], own.points_xy / size, 0)
        return cls(
            places_J2=places.astype(np.float32), flags_J=own.visibility.astype(np.int64),
            spread_J=own.skeleton.spread.astype(np.float32), aspect=float(size[0] / size[1]), start=start,
        )  # fmt: skip


class PoseHead(nn.Module):
    """Keypoint links, states and boxes of objects, and the encoded picture, to keypoints.

    Args:
        link_width: of the language model.
        queries: of a keypoint link.
        width, heads, levels: of the detector.
        map_width: M.
        layers: rounds of looking.
    """

    def __init__(
        self, *, link_width: int, queries: int, width: int, heads: int, levels: int, map_width: int, layers: int
    ) -> None:
        super().__init__()
        self.names = PhraseHead(queries, link_width, width)
        self.owner, self.of_name, self.of_owner = (nn.Linear(width, width) for _ in range(3))
        self.layers = nn.ModuleList(_Layer(width, heads, levels) for _ in range(layers))
        self.moves = nn.ModuleList(mlp(width, 2) for _ in range(layers))
        self.query, self.crop = mlp(width, map_width), Crop(width, map_width, GRID, MARGIN)
        self.where = nn.Sequential(nn.Linear(4 * len(_WAVES), width), nn.GELU(), nn.Linear(width, map_width))
        self.norm = nn.LayerNorm(width)
        self.flags = nn.Linear(width, 2)
        for head in self.moves:
            nn.init.zeros_(head[-1].weight)  # type: ignore[index, arg-type]
            nn.init.zeros_(head[-1].bias)  # type: ignore[index, arg-type]

    def forward(
        self, encoded: Encoded, fine: Fine, hidden_BIC: Tensor, boxes_BI4: Tensor, names_BIJC: Tensor,
        open_BIJ: Tensor,
    ) -> tuple[list[Points], Heat]:  # fmt: skip
        """Points as the heatmaps have them and after every round, and the heatmaps.

        Args:
            fine: the pictures close up.
            hidden_BIC: decoder states of the objects.
            boxes_BI4: their boxes, cxcywh_norm; taken as they are.
            names_BIJC: embeddings of the asked keypoints.
            open_BIJ: False on padding.
        """
        boxes = boxes_BI4.detach().float()
        boxes = torch.cat([boxes[..., :2], boxes[..., 2:].clamp(min=_LEAST)], -1)
        sides, wanted = boxes[..., None, 2:], open_BIJ.any(-1)
        cells_NMP, whole_NC, places_BIP2 = self.crop(fine, boxes, wanted)
        owner = self.owner(hidden_BIC)
        owner = owner.index_put(torch.where(wanted), whole_NC.to(owner.dtype), accumulate=True)[:, :, None]
        # The product as well: where the left hand is hangs on which way the body faces, a matter of both at once.
        states = names_BIJC + owner + self.of_name(names_BIJC) * self.of_owner(owner)
        heat = Heat(logits=self._heat(states, cells_NMP, wanted), places=places_BIP2)
        states = torch.cat([owner, states], 2)
        open_ = torch.cat([torch.ones_like(open_BIJ[..., :1]), open_BIJ], 2)
        # In the frame of the box: its middle is 0, its sides are 1. Detached from what found it: the heatmap learns
        # from its own loss, each round its own step.
        frame = self._peak(heat.logits).detach()
        found = [self._points(boxes, sides, frame, states)]
        for layer, move in zip(self.layers, self.moves, strict=True):
            looking = torch.cat([boxes[..., None, :2], found[-1].places.detach()], 2)
            reference = torch.cat([looking, sides.expand_as(looking) / 2], -1)
            states = layer(states, open_, reference, encoded)
            frame = frame.detach() + move(self.norm(states[:, :, 1:])).float()
            found.append(self._points(boxes, sides, frame, states))
        return found, heat

    def _points(self, boxes: Tensor, sides: Tensor, frame: Tensor, states: Tensor) -> Points:
        flags = self.flags(self.norm(states[:, :, 1:])).float()
        return Points(places=boxes[..., None, :2] + frame * sides, flags=flags)

    def _heat(self, states_BIJC: Tensor, cells_NMP: Tensor, wanted_BI: Tensor) -> Tensor:
        """(B, I, J, P) what a query says times what a cell says and where in the box it lies; zeros of other boxes."""
        waves = torch.tensor(_WAVES, device=cells_NMP.device) * math.pi * self.crop.cells_P2[..., None]
        where_PM = self.where(torch.cat([waves.sin(), waves.cos()], -1).flatten(1)).float()
        said = self.query(self.norm(states_BIJC)).float() / math.sqrt(where_PM.shape[-1])
        own = torch.einsum("njm,nmp->njp", said[wanted_BI], cells_NMP.float() + where_PM.T)
        return own.new_zeros(*said.shape[:3], len(where_PM)).index_put(torch.where(wanted_BI), own)

    def _peak(self, logits_BIJP: Tensor) -> Tensor:
        """(B, I, J, 2) mean around the peak of each heatmap, in the frame of the box."""
        top = logits_BIJP.argmax(-1, keepdim=True)
        cell = torch.arange(logits_BIJP.shape[-1], device=top.device)
        across = (top % GRID - cell % GRID).abs() <= AROUND
        down = (top // GRID - cell // GRID).abs() <= AROUND
        return logits_BIJP.masked_fill(~(across & down), -torch.inf).softmax(-1) @ self.crop.cells_P2


def pose_losses(
    rounds: Sequence[Points], heat: Heat, boxes: list[Tensor], truth: list[list[PoseTruth]]
) -> dict[str, Tensor]:
    """Summed over objects, the mean over rounds and over an object's points.

    ``points`` is L1 in units of the root of the object's area, ``oks`` one minus object keypoint similarity (Maji et
    al. 2022, "YOLO-Pose", section 3.3), ``flags`` the cross entropy of both flags, ``heat`` the divergence of the
    heatmap from that similarity as a distribution, no narrower than a cell.

    Args:
        boxes: per picture (K, 4) true boxes of the first K objects, cxcywh_norm.
        truth: per picture what is true of these.
    """
    device = rounds[0].places.device
    nothing = rounds[0].places.sum() * 0 + rounds[0].flags.sum() * 0 + heat.logits.sum() * 0
    total = dict.fromkeys(("points", "oks", "flags"), nothing)
    rows = [(b, k) for b, objects in enumerate(truth) for k in range(len(objects)) if len(objects[k].flags_J)]
    if not rows:
        return total | {"heat": nothing}
    b, k = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    asked = [truth[i][j] for i, j in rows]
    width = rounds[0].places.shape[2]
    places = _padded([one.places_J2 for one in asked], width, device)
    flags = _padded([one.flags_J for one in asked], width, device, fill=-1)
    spread = _padded([one.spread_J for one in asked], width, device, fill=1)
    area = torch.stack([boxes[i][j, 2:].prod() for i, j in rows]).float().clamp(min=_LEAST**2)[:, None]
    # Both axes in one unit, that of a square picture of the same area.
    aspect = torch.tensor([one.aspect for one in asked], device=device)
    unit = torch.stack([aspect.sqrt(), aspect.rsqrt()], -1)[:, None]
    known, is_open = flags > UNKNOWN, flags >= 0
    for points in rounds:
        apart = (points.places[b, k] - places) * unit
        near = (apart.abs().sum(-1) / area.sqrt() * known).sum(1) / known.sum(1).clamp(min=1)
        like = (-apart.square().sum(-1) / (2 * BODY * area * (2 * spread).square())).exp()
        unlike = ((1 - like) * known).sum(1) / known.sum(1).clamp(min=1)
        logits = points.flags[b, k]
        there = F.binary_cross_entropy_with_logits(logits[..., 0], known.float(), reduction="none") * is_open
        seen = F.binary_cross_entropy_with_logits(logits[..., 1], (flags == VISIBLE).float(), reduction="none") * known
        total["points"] = total["points"] + near.sum()
        total["oks"] = total["oks"] + unlike.sum()
        total["flags"] = total["flags"] + (there.sum(1) / is_open.sum(1) + seen.sum(1) / is_open.sum(1)).sum()
    wanted = _wanted(heat.places[b, k] * unit, places * unit, BODY * area * (2 * spread).square())
    missed = (wanted.exp() * (wanted - heat.logits[b, k].log_softmax(-1))).sum(-1)
    return {name: value / len(rounds) for name, value in total.items()} | {
        "heat": ((missed * known).sum(1) / known.sum(1).clamp(min=1)).sum()
    }


def _wanted(cells_KP2: Tensor, places_KJ2: Tensor, variance_KJ: Tensor) -> Tensor:
    """(K, J, P) log probabilities of cells: a bell around the place, on each axis at least one cell wide."""
    side = (cells_KP2.amax(1) - cells_KP2.amin(1)) / (GRID - 1)
    apart = (cells_KP2[:, None] - places_KJ2[:, :, None]).square()
    least = torch.maximum(variance_KJ[..., None], side.square()[:, None])
    return (-apart / (2 * least[:, :, None])).sum(-1).log_softmax(-1)


def likeness(points: Points, heat: Heat, boxes_BI4: Tensor, skeleton: Skeleton, size: tuple[int, int]) -> np.ndarray:
    """(I,) object keypoint similarity that the heatmaps expect of the places found, of the objects of one picture.

    The mean over the points that are taken to be there, as the truth would have it; 0 where none is.

    Args:
        points: (1, I, J', 2), of which the first J are the skeleton's.
        boxes_BI4: what stands for the size of the objects, cxcywh_norm.
        size: (width, height) of the picture.
    """
    count, aspect = len(skeleton), size[0] / size[1]
    unit = torch.tensor([aspect**0.5, aspect**-0.5], device=boxes_BI4.device)
    area = boxes_BI4[0, :, 2:].prod(-1).float().clamp(min=_LEAST**2)
    spread = torch.from_numpy(skeleton.spread).to(area)
    apart = ((heat.places[0, :, None] - points.places[0, :, :count, None]) * unit).square().sum(-1)
    like = (-apart / (2 * BODY * area[:, None, None] * (2 * spread[:, None]).square())).exp()
    expected = (heat.logits[0, :, :count].float().softmax(-1) * like).sum(-1)
    there = points.flags[0, :, :count, 0] > 0
    mean = (expected * there).sum(1) / there.sum(1).clamp(min=1)
    return mean.clamp(0, 1).cpu().numpy().astype(np.float32)


def to_poses(points: Points, skeleton: Skeleton, size: tuple[int, int]) -> list[Pose]:
    """The objects of one picture, each with the points of ``skeleton`` in its order.

    Args:
        points: (1, I, J', 2), of which the first J count.
        size: (width, height) of the original picture.
    """
    count = len(skeleton)
    places = points.places[0, :, :count].cpu().numpy() * np.array(size, np.float32)
    there, seen = (points.flags[0, :, :count] > 0).cpu().numpy().transpose(2, 0, 1)
    flags = np.where(there, np.where(seen, VISIBLE, HIDDEN), UNKNOWN).astype(np.int8)
    return [
        Pose(points_xy=place.astype(np.float32), visibility=flag, skeleton=skeleton)
        for place, flag in zip(places, flags, strict=True)
    ]


class _Layer(nn.Module):
    """Queries of an object look at each other, then each at the picture around its place."""

    def __init__(self, width: int, heads: int, levels: int) -> None:
        super().__init__()
        self.heads, self.levels = heads, levels
        self.mix = nn.MultiheadAttention(width, heads, batch_first=True)
        self.offsets = nn.Linear(width, heads * levels * POINTS * 2)
        self.shares = nn.Linear(width, heads * levels * POINTS)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.sample = DeformableSampling()
        self.widen = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.place = nn.Linear(4, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        # As Deformable DETR starts: every head looks its own way, further with each point.
        nn.init.zeros_(self.offsets.weight)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        way = torch.stack([angle.cos(), angle.sin()], -1)
        way = (way / way.abs().max(-1, keepdim=True).values)[:, None, None] * (torch.arange(POINTS)[:, None] + 1)
        self.offsets.bias.data = way.expand(heads, levels, POINTS, 2).flatten().clone()
        nn.init.zeros_(self.shares.weight)
        nn.init.zeros_(self.shares.bias)

    def forward(self, states: Tensor, open_: Tensor, reference: Tensor, encoded: Encoded) -> Tensor:
        batch, objects, count, width = states.shape
        flat = states.flatten(0, 1)
        mixed, _ = self.mix(flat, flat, flat, key_padding_mask=~open_.flatten(0, 1), need_weights=False)
        flat = self.norms[0](flat + mixed)
        looked = self._look(flat.view(batch, objects * count, width), reference.flatten(1, 2), encoded)
        flat = self.norms[1](flat + looked.reshape(flat.shape))
        return self.norms[2](flat + self.widen(flat)).view(states.shape)

    def _look(self, queries: Tensor, reference: Tensor, encoded: Encoded) -> Tensor:
        batch, count, width = queries.shape
        queries = queries + self.place(reference.to(queries.dtype))
        values = self.value(encoded.memory_BSC).masked_fill(encoded.padding_BS[..., None], 0.0)
        shape = (batch, count, self.heads, self.levels, POINTS)
        offsets = self.offsets(queries).view(*shape, 2).float() / POINTS
        shares = self.shares(queries).view(*shape[:3], -1).float().softmax(-1).view(shape)
        ratios = encoded.ratios_BL2[:, None, None, :, None]
        middle, sides = reference[:, :, None, None, None, :2], reference[:, :, None, None, None, 2:]
        places = (middle + offsets * sides * 0.5) * ratios
        levels = torch.tensor(encoded.shapes, device=queries.device)
        starts = torch.cat((levels.new_zeros(1), levels.prod(1).cumsum(0)[:-1]))
        sampled = self.sample(
            values.view(batch, -1, self.heads, width // self.heads), levels, encoded.shapes, starts, places, shares, 64
        )
        return self.out(sampled.to(queries.dtype))


def _padded(arrays: Sequence[np.ndarray], width: int, device: torch.device, fill: int = 0) -> Tensor:
    """(K, J, ...) of K arrays of up to J rows."""
    whole = np.full((len(arrays), width, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, values in zip(whole, arrays, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(whole).to(device)
