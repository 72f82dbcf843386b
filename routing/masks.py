"""The one mask builder: who sees whom, for training, read-out and the tree layout.

A text position sees the positions at or before it in its own sample that lie on the trunk or on its own branch; it
never sees a query. A query sees what its routing token sees, the token included, and its own group up to itself.
B = rows, T = text positions, G = query positions of a row (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visionllm.core.batch import LinkLayout


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class QueryLayout:
    """Where the query positions of a batch stand.

    Args:
        anchor_BG: column of the routing token, -1 on padding.
        link_BG: index of the link, -1 on padding.
        step_BG: index of the query in its link.
        again_BG: column of the piece of the phrase that the query reads once more, -1 for none.
    """

    anchor_BG: Tensor
    link_BG: Tensor
    step_BG: Tensor
    again_BG: Tensor

    @classmethod
    def of(cls, links: LinkLayout, rows: int, device: torch.device) -> QueryLayout:
        per_row: list[list[tuple[int, int, int, int]]] = [[] for _ in range(rows)]
        echoes = links.echo or (0,) * len(links)
        for link, (row, column, count, echo) in enumerate(
            zip(links.row, links.column, links.queries, echoes, strict=True)
        ):
            again = [column - echo + step if step < echo else -1 for step in range(count)]
            per_row[row] += [(column, link, step, again[step]) for step in range(count)]
        width = max((len(entries) for entries in per_row), default=0)
        table = torch.full((rows, width, 4), -1, dtype=torch.long)
        for row, entries in enumerate(per_row):
            if entries:
                table[row, : len(entries)] = torch.tensor(entries)
        anchor, link_, step, again_ = table.to(device).unbind(-1)
        return cls(anchor_BG=anchor, link_BG=link_, step_BG=step, again_BG=again_)

    def positions(self, position_ids: Tensor) -> Tensor:
        """(B, G) position ids: they continue from the routing token."""
        return position_ids.gather(1, self.anchor_BG.clamp(min=0)) + 1 + self.step_BG.clamp(min=0)


def needs_mask(owner: Tensor, branch: Tensor) -> bool:
    """Whether the text needs more than causal attention over unpadded positions: branches or packed samples."""
    return bool((branch > 0).any()) or bool(
        (owner.max(1).values > owner.masked_fill(owner < 0, 1 << 30).min(1).values).any()
    )


def additive_mask(owner: Tensor, branch: Tensor, queries: QueryLayout | None, *, text_rows: slice, query_rows: bool,
                  dtype: torch.dtype) -> Tensor:  # fmt: skip
    """Additive float mask (B, 1, rows, T [+ G]): 0 where open, the smallest finite number where shut.

    Args:
        owner, branch: (B, T) of the whole text, as in ``Batch``.
        queries: query positions, standing after the text; None for none.
        text_rows: the text positions that are run.
        query_rows: the queries are run (then their columns are in the mask too).
    """
    width = owner.shape[1]
    index = torch.arange(width, device=owner.device)
    real = owner >= 0
    parts = []
    rows = index[text_rows]
    if len(rows):
        same = (owner[:, rows, None] == owner[:, None, :]) & real[:, None, :]
        trunk = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, rows, None])
        seen = same & trunk & (index[None, None, :] <= rows[None, :, None])
        if query_rows and queries is not None:
            seen = torch.cat([seen, seen.new_zeros(*seen.shape[:2], queries.anchor_BG.shape[1])], -1)
        parts.append(seen)
    if query_rows and queries is not None:
        anchor = queries.anchor_BG.clamp(min=0)
        my_owner, my_branch = owner.gather(1, anchor), branch.gather(1, anchor)
        same = (my_owner[..., None] == owner[:, None, :]) & real[:, None, :]
        trunk = (branch[:, None, :] == 0) | (branch[:, None, :] == my_branch[..., None])
        text = same & trunk & (index[None, None, :] <= anchor[..., None]) & (queries.link_BG >= 0)[..., None]
        group = (queries.link_BG[:, :, None] == queries.link_BG[:, None, :]) & (queries.link_BG >= 0)[:, :, None]
        group &= queries.step_BG[:, None, :] <= queries.step_BG[:, :, None]
        parts.append(torch.cat([text, group], -1))
    seen = torch.cat(parts, 1)
    shut = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=owner.device).masked_fill(~seen, shut)[:, None]
