"""What the positions of a picture and its regions show, in the words of the language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch

from visionllm.core.batch import Sights
from visionllm.core.boxes import box_iou
from visionllm.core.masks import Mask
from visionllm.core.sample import Sample, Things
from visionllm.routing.vocabulary import Vocabulary

# Said of a position without any thing; part of a position below which a thing is not said to be there, and that which
# the smallest thing is taken to fill: one of the four patches.
NOTHING, LEAST, PATCH = "no", 0.02, 0.25
# Overlap of boxes from which a region frames a thing; part of a region that lies on the mask of a thing it means.
FRAMED, LIES_ON = 0.7, 0.8


def sights_of(samples: Sequence[Sample], whole: Mapping[int, int], vocabulary: Vocabulary, per_tile: int, tiles: int
              ) -> Sights:  # fmt: skip
    """The words of what is where in the pictures of which that is known, and of what their regions show.

    Args:
        whole: id of a picture object -> the tile that shows all of it.
        per_tile: positions of a tile, which lie in a square.
        tiles: number of all tiles.
    """
    known = {
        id(picture): (picture.size, things.placed())
        for sample in samples if len(sample.things) == len(sample.pictures)
        for picture, things in zip(sample.pictures, sample.things, strict=True)
    }  # fmt: skip
    side = math.isqrt(per_tile)
    rows: list[tuple[int, int]] = []
    weights: list[tuple[float, float]] = []

    def say(slot: int, share: float, part: float, own: list[tuple[int, bool]], further: list[tuple[int, bool]]) -> None:
        rows.extend((slot, token) for token, _ in (*own, *further))
        weights.extend((share / len(own), part * alone) for _, alone in own)
        weights.extend((0.0, part * alone) for _, alone in further)

    said = {name: _said(things, vocabulary) for name, (_, things) in known.items()}
    nothing = _tokens(NOTHING, vocabulary)
    for name, (size, things) in known.items():
        for cell, shares in enumerate(shares_of(things, size, side)):
            for number, share in enumerate(shares.tolist()):
                slot = whole[name] * per_tile + cell
                if share > 0 and number < len(things.names):
                    say(slot, share, share, *said[name][number])
                elif share > 0:
                    say(slot, share, 0.0, nothing, [])
    pointed = [(sample, region) for sample in samples for region in sample.regions]
    for number, (sample, region) in enumerate(pointed):
        picture = sample.pictures[region.picture]
        if id(picture) in known:
            meant = meant_by(region.mask(picture.size), known[id(picture)][1])
            if meant is not None:
                say(tiles * per_tile + number, 1.0, 1.0, *said[id(picture)][meant])
    table = torch.tensor(rows, dtype=torch.long).reshape(-1, 2)
    weight, part = torch.tensor(weights).reshape(-1, 2).unbind(1)
    return Sights(slot=table[:, 0], token=table[:, 1], weight=weight, part=part)


def meant_by(region: Mask, things: Things) -> int | None:
    """The thing that a region shows, if it is plain: the one whose box it frames, or the smallest one it lies on."""
    if not things.names:
        return None
    overlap = box_iou(region.box_xyxy[None].astype(np.float64), things.boxes_xyxy.astype(np.float64))[0]
    if overlap.max() >= FRAMED:
        return int(overlap.argmax())
    under = [
        (mask.area, number) for number, mask in enumerate(() if things.masks is None else things.masks)
        if mask is not None and mask.intersection(region) >= LIES_ON * region.area
    ]  # fmt: skip
    return min(under)[1] if under else None


def _said(things: Things, vocabulary: Vocabulary) -> list[tuple[list[tuple[int, bool]], list[tuple[int, bool]]]]:
    """The tokens of each thing's name, and of its further words."""
    other = things.other or ((),) * len(things.names)
    return [(_tokens(name, vocabulary), _tokens(" ".join(more), vocabulary))
            for name, more in zip(things.names, other, strict=True)]  # fmt: skip


def _tokens(phrase: str, vocabulary: Vocabulary) -> list[tuple[int, bool]]:
    """Tokens of a phrase, and whether each is a word by itself: pieces stand in many words."""
    words = [vocabulary.plain(word) for word in phrase.split()]
    return [(token, len(tokens) == 1) for tokens in words for token in tokens]


def shares_of(things: Things, size: tuple[int, int], side: int) -> np.ndarray:
    """(side * side, N + 1) how much of each cell is said to be each thing, and nothing; rows add up to one, or to zero
    where nobody knows.

    Things go by the root of that part of them which lies in the cell: of a bird it is all, of the sky behind it little,
    and the bird is what the cell is about. A mask says better than a box what is covered: the box of a road holds all
    that stands on it.
    """
    assert not things.moves, "where they are now is asked of placed things"
    edges = np.linspace(0.0, 1.0, side + 1)
    scaled = things.boxes_xyxy.reshape(-1, 4) / np.tile(np.array(size, np.float64), 2)
    part_x, part_y = (
        np.clip(np.minimum(high[:, None], edges[None, 1:]) - np.maximum(low[:, None], edges[None, :-1]), 0, None) * side
        for low, high in ((scaled[:, 0], scaled[:, 2]), (scaled[:, 1], scaled[:, 3]))
    )
    covered = (part_y[:, :, None] * part_x[:, None, :]).reshape(len(scaled), side * side).T
    for row, mask in enumerate(() if things.masks is None else things.masks):
        if mask is not None:
            dense = mask.dense().astype(np.float32)
            covered[:, row] = cv2.resize(dense, (side, side), interpolation=cv2.INTER_AREA).flatten()
    covered = np.where(covered >= LEAST, covered, 0.0)
    free = np.clip(1.0 - covered.sum(1, keepdims=True), 0.0, None) * things.complete
    held = np.concatenate([covered, free], axis=1)
    roots = np.sqrt(held / np.maximum(held.sum(0), PATCH))
    return roots / np.maximum(roots.sum(1, keepdims=True), 1e-9)
