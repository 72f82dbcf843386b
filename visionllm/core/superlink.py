"""Super links: what the language model hands to the decoders.

N = links, Q = queries of a token, D = width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visionllm.core.errors import ShapeError


@dataclass(kw_only=True, slots=True, frozen=True)
class LinkMeta:
    """Everything about one link that is not a vector.

    Args:
        sample: index of the sample in the batch (never a row: rows may be packed).
        turn: turn of the conversation.
        task: task name.
        token: text of the routing token.
        phrase: the phrase the token speaks of; may be empty.
        parent: index of the owning link in the same ``SuperLinks``, or -1.
        group: index of the phrase within its turn; a part has that of the phrase that owns it.
        media: indices of the sample's pictures the link speaks of.
    """

    sample: int
    turn: int
    task: str
    token: str
    phrase: str
    parent: int = -1
    group: int = 0
    media: tuple[int, ...] = (0,)


def owned(links: Sequence[LinkMeta], tokens: Sequence[str | None]) -> tuple[LinkMeta, ...]:
    """Links in reading order with their parents.

    Args:
        tokens: of each link the token that its owner has; None for a root. A part belongs to the root before it, if
            that is of the same sample and has this token. Otherwise nobody owns it.
    """
    found: list[LinkMeta] = []
    root = -1
    for place, (meta, token) in enumerate(zip(links, tokens, strict=True)):
        fits = root >= 0 and found[root].sample == meta.sample and found[root].token == token
        found.append(replace(meta, parent=root if fits else -1))
        root = place if token is None else root
    return tuple(found)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class SuperLinks:
    """Links in reading order. Storage is flat, so links of different tokens may have different numbers of queries.

    Args:
        states: (sum of queries, D) last-layer hidden states of all queries.
        queries: number of queries of each link.
        meta: one entry a link.
    """

    states: Tensor
    queries: tuple[int, ...]
    meta: tuple[LinkMeta, ...]

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.meta) or sum(self.queries) != len(self.states):
            raise ShapeError(
                f"{len(self.meta)} links with {sum(self.queries)} queries do not fit "
                f"states of {tuple(self.states.shape)}"
            )

    def __len__(self) -> int:
        return len(self.meta)

    def select(self, indices: Sequence[int]) -> SuperLinks:
        """The links at ``indices``, parents re-numbered; a parent outside the selection becomes -1."""
        starts = [0]
        for count in self.queries:
            starts.append(starts[-1] + count)
        rows = [row for i in indices for row in range(starts[i], starts[i + 1])]
        place = {old: new for new, old in enumerate(indices)}
        return SuperLinks(
            states=self.states[torch.tensor(rows, dtype=torch.long, device=self.states.device)],
            queries=tuple(self.queries[i] for i in indices),
            meta=tuple(replace(self.meta[i], parent=place.get(self.meta[i].parent, -1)) for i in indices),
        )

    def of_tasks(self, names: Sequence[str]) -> SuperLinks:
        """Links whose task is among ``names``."""
        return self.select([i for i, meta in enumerate(self.meta) if meta.task in names])

    def of_token(self, token: str) -> tuple[Tensor, tuple[LinkMeta, ...]]:
        """Dense (L, Q, D) states of one token's links, and their entries."""
        links = self.select([i for i, meta in enumerate(self.meta) if meta.token == token])
        queries = links.queries[0] if len(links) else 1
        return links.states.reshape(len(links), queries, self.states.shape[-1]), links.meta
