"""A batch: what the model reads, and where in it the links are.

B = rows, T = text positions (padded left, behind what all rows share), N = links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from visionllm.core.pixels import Pixels
from visionllm.core.sample import Sample
from visionllm.core.superlink import LinkMeta


def on_pictures(links: Sequence[LinkMeta], samples: Sequence[Sample]) -> tuple[LinkMeta, ...]:
    """Links, each on the picture it speaks of."""
    return tuple(replace(meta, media=(samples[meta.sample].picture_of(meta.phrase),)) for meta in links)


@dataclass(kw_only=True, slots=True, frozen=True)
class LinkLayout:
    """Where the links of a batch hang: row and column of each routing token, in reading order.

    ``echo`` of a link is the number of columns before its token in which its phrase stands between its marks, if its
    queries are to read that again; 0 if not, and empty is 0 for all.
    """

    row: tuple[int, ...]
    column: tuple[int, ...]
    queries: tuple[int, ...]
    meta: tuple[LinkMeta, ...]
    echo: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.meta)

    def select(self, indices: Sequence[int]) -> LinkLayout:
        """The links at ``indices``; a parent outside the selection becomes -1."""
        place = {old: new for new, old in enumerate(indices)}
        return LinkLayout(
            row=tuple(self.row[i] for i in indices),
            column=tuple(self.column[i] for i in indices),
            queries=tuple(self.queries[i] for i in indices),
            meta=tuple(replace(self.meta[i], parent=place.get(self.meta[i].parent, -1)) for i in indices),
            echo=tuple(self.echo[i] for i in indices) if self.echo else (),
        )


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Marks:
    """The regions of a batch, in reading order, on the tiles that show their pictures whole.

    Args:
        tile: (R,) int64, index of that tile.
        masks: (R, S, S) float32, part of each pixel that is covered.
        boxes: (R, 4) float32, cxcywh_norm.
    """

    tile: Tensor
    masks: Tensor
    boxes: Tensor

    def to(self, device: torch.device | str) -> Marks:
        return Marks(tile=self.tile.to(device), masks=self.masks.to(device), boxes=self.boxes.to(device))


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Sights:
    """What the positions of pictures and the regions show, by the words of their names; K entries.

    Args:
        slot: (K,) int64, which of what is seen, as ``Batch.order`` counts: positions of all tiles, then regions.
        token: (K,) int64, a word of what is there.
        weight: (K,) float32; those of a position add up to one. Zero for other words of the same (its plural).
        part: (K,) float32, how much of the position is what this word says; zero of pieces of words.
    """

    slot: Tensor
    token: Tensor
    weight: Tensor
    part: Tensor

    def to(self, device: torch.device | str) -> Sights:
        return Sights(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Gazes:
    """Where positions of the text are to look; N gazes at K places.

    Args:
        kind: (N,) int64, index into ``routing.gazes.KINDS``.
        row: (N,) int64.
        column: (N,) int64, the position that looks.
        gaze: (K,) int64, index of the gaze.
        place: (K,) int64, column of a picture position of the same row, before the one that looks.
        part: (K,) float32 in (0, 1], how much this place is what is looked for; 1 for the best of a gaze.
    """

    kind: Tensor
    row: Tensor
    column: Tensor
    gaze: Tensor
    place: Tensor
    part: Tensor

    def to(self, device: torch.device | str) -> Gazes:
        return Gazes(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Batch:
    """Samples made ready for the model.

    Args:
        input_ids: (B, T) int64, padded left, or behind the columns that are shared.
        owner: (B, T) int64, index of the sample a position belongs to, -1 on padding.
        branch: (B, T) int64, 0 on the trunk, k on the k-th branch of the tree layout.
        position_ids: (B, T) int64; a branch continues from the end of its trunk.
        labels: (B, T) int64, the token itself where it is supervised, else -100 (not shifted).
        free: (B, T) bool, supervised tokens of replies in free words.
        tiles: (number of tiles, 3, S, S) of all pictures, or None; a picture that several samples ask about comes once.
        order: what stands in each picture position, in reading order: rows of the tiles' features, and behind them of
            the regions' embeddings.
        marks: the regions that the text speaks of, or None.
        links: where the routing tokens stand.
        pixels: prepared pictures by ``decoder/role``, in buckets of one padded size each: pictures of different sizes
            never share padding, so a picture's result does not depend on its company.
        samples: what the batch was made of; targets are read from its turns.
        sights: what the pictures show where, or None where nobody learns from it.
        gazes: where the text is to look, or None with them.
        shared: of a prompt, the columns at its start that say the same in every row and show the same pictures.
        plain: those of the samples whose phrases mean others, asked for by these (``Sample.plain``), in their order and
            without decoders' pictures; None where there is none, or nobody learns from it.
    """

    input_ids: Tensor
    owner: Tensor
    branch: Tensor
    position_ids: Tensor
    labels: Tensor
    free: Tensor
    tiles: Tensor | None
    order: Tensor
    links: LinkLayout
    pixels: Mapping[str, tuple[Pixels, ...]]
    samples: tuple[Sample, ...]
    marks: Marks | None = None
    sights: Sights | None = None
    gazes: Gazes | None = None
    shared: int = 0
    plain: Batch | None = None

    @property
    def device(self) -> torch.device:
        return self.input_ids.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """On a device; tiles in the type of the vision tower that reads them."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            owner=self.owner.to(device),
            branch=self.branch.to(device),
            position_ids=self.position_ids.to(device),
            labels=self.labels.to(device),
            free=self.free.to(device),
            tiles=None if self.tiles is None else self.tiles.to(device, dtype),
            order=self.order.to(device),
            marks=None if self.marks is None else self.marks.to(device),
            sights=None if self.sights is None else self.sights.to(device),
            gazes=None if self.gazes is None else self.gazes.to(device),
            plain=None if self.plain is None else self.plain.to(device, dtype),
            pixels={name: tuple(p.to(device) for p in buckets) for name, buckets in self.pixels.items()},
        )
