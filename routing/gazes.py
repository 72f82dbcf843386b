"""Where a position of the text is to look: at the positions of a picture that show what it speaks of.

A small language model that begins with nothing does not find out from replies that the word of a question and a place
of a picture belong together: two steps (which place, then what is there) must be right before either helps. Attention
that is told where to look (Liu et al. 2017, "Attention Correctness in Neural Image Captioning"; Qiao et al. 2018,
"Exploring Human-like Attention Supervision in Visual Question Answering") takes the first of them away.

Off by default. It helps where what is looked at can be read: asked for colours of things it was shown as regions, the
embedded model's loss of its answers came to 0.75 in 220 steps, and to 0.85 without a gaze at the regions. Places of a
picture helped nothing while the vision tower told things apart poorly (the place of a thing outranked another place of
the picture in 0.78 of the pairs, by the angle to its word).
"""

from __future__ import annotations

import torch
from torch import Tensor

from visionllm.core.batch import Gazes, Sights

# The kinds of gaze, each with the head that learns it: part of the depth at which its layer lies, and its number.
# A word that is read looks at what it means; a position about to say a word of a reply, at what this word means;
# one about to begin a reply, at all that its question means, or at the regions in it where it has some.
READING, SAYING, ASKED = (0.25, 0), (0.625, 0), (0.625, 1)
KINDS = (READING, SAYING, ASKED)
_FLOOR = 1e-4  # of attention, below which its logarithm would be all there is


def gazes_of(input_ids: Tensor, labels: Tensor, order: Tensor, sights: Sights, *, picture_id: int, tiled: int) -> Gazes:
    """The gazes of a batch, from its (B, T) ids and labels.

    Args:
        order: what stands in the picture positions, see ``Batch.order``.
        picture_id: token of a picture position.
        tiled: slots of tiles; those of regions stand behind them.
    """
    tokens, word = sights.token.unique(return_inverse=True)
    # Words at a place of any picture, of which one place may show several.
    parts: dict[int, dict[int, float]] = {}
    for slot, at, part in zip(sights.slot.tolist(), word.tolist(), sights.part.tolist(), strict=True):
        if part > 0:
            held = parts.setdefault(slot, {})
            held[at] = max(held.get(at, 0.0), part)
    number = {token: at for at, token in enumerate(tokens.tolist())}
    shown: list[dict[int, list[tuple[int, float]]]] = [{} for _ in range(len(input_ids))]
    framed: list[set[int]] = [set() for _ in range(len(input_ids))]
    for (row, column), slot in zip((input_ids == picture_id).nonzero().tolist(), order.tolist(), strict=True):
        if slot >= tiled:
            framed[row].add(column)
        for at, part in parts.get(slot, {}).items():
            shown[row].setdefault(at, []).append((column, part))
    found: list[tuple[int, int, int]] = []
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    for row, places in enumerate(shown):
        if places:
            for kind, column, words, regions in _glances(
                input_ids[row].tolist(), labels[row].tolist(), number, framed[row]
            ):
                there = [pair for at in words for pair in places.get(at, ()) if pair[0] < column]
                there = [(where, 1.0) for where in regions] or there
                top = max((part for _, part in there), default=0.0)
                if there:
                    pairs += [(len(found), where) for where, _ in there]
                    weights += [part / top for _, part in there]
                    found.append((kind, row, column))
    table = torch.tensor(found, dtype=torch.long).reshape(-1, 3)
    ends = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return Gazes(kind=table[:, 0], row=table[:, 1], column=table[:, 2], gaze=ends[:, 0], place=ends[:, 1],
                 part=torch.tensor(weights))  # fmt: skip


def _glances(
    ids: list[int], labels: list[int], number: dict[int, int], framed: set[int]
) -> list[tuple[int, int, set[int], list[int]]]:
    """Kind and column of each gaze of a row, the words it goes by, whether a picture shows them or not, and the columns
    of regions it goes to instead."""
    found: list[tuple[int, int, set[int], list[int]]] = []
    asked: set[int] = set()
    regions: list[int] = []
    for column in range(len(ids) - 1):
        if labels[column] == -100:
            if ids[column] in number:
                asked = asked | {number[ids[column]]}
                found.append((KINDS.index(READING), column, {number[ids[column]]}, []))
            if column in framed:
                regions = [*regions, column]
            if labels[column + 1] != -100 and (asked or regions):
                found.append((KINDS.index(ASKED), column, asked, regions))
        else:
            asked, regions = set(), []
        if labels[column + 1] != -100 and ids[column + 1] in number:
            found.append((KINDS.index(SAYING), column, {number[ids[column + 1]]}, []))
    return found


def layers_of(depth: int) -> tuple[int, ...]:
    """Layer of each kind in a language model of ``depth`` layers."""
    return tuple(int(part * depth) for part, _ in KINDS)


def gaze_loss(gazes: Gazes, attention: dict[int, Tensor], depth: int) -> Tensor:
    """Sum of -log of the attention that falls on what is meant.

    Args:
        attention: layer -> (B, heads, T, T) weights.
    """
    layers = layers_of(depth)
    landed = next(iter(attention.values())).new_zeros(len(gazes.kind), dtype=torch.float32)
    for kind, (_, head) in enumerate(KINDS):
        own = gazes.kind[gazes.gaze] == kind
        gaze = gazes.gaze[own]
        weights = attention[layers[kind]][gazes.row[gaze], head, gazes.column[gaze], gazes.place[own]].float()
        landed = landed.index_add(0, gaze, weights * gazes.part[own])
    return -(landed + _FLOOR).log().sum()
