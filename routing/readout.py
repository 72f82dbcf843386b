"""Read-out: one pass of the link queries over the keys and values of a text, after training's text pass or generation.

B = rows, T = text positions, G = query positions of a row, D = width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from visionllm.core.batch import Batch, LinkLayout
from visionllm.core.superlink import LinkMeta, SuperLinks, owned
from visionllm.core.task import Token
from visionllm.routing.masks import QueryLayout, additive_mask, needs_mask
from visionllm.routing.queries import LinkQueries, gather
from visionllm.routing.vocabulary import REF, REF_END, Vocabulary


class LanguageModel(Protocol):
    """What routing needs of a multimodal language model (``mllm.internvl.InternVL``)."""

    def vision(self, tiles: Tensor) -> Tensor: ...
    def embed(self, input_ids: Tensor, vision: Tensor | None) -> Tensor: ...
    def text(self, embeds_BTD: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Any = None,
             keep_cache: bool = True) -> Any: ...  # fmt: skip
    def rows(self, cache: Any, rows: Tensor) -> Any: ...
    def joined(self, parts: Sequence[tuple[Tensor, Any]], count: int) -> Any: ...
    def logits(self, hidden: Tensor) -> Tensor: ...
    def reader(self) -> LanguageModel: ...
    def attend(self, kind: str) -> None: ...


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Text:
    """The text of a batch as far as it stands: (B, T) ids, owner (-1 on padding), branch and position ids; ``shared``
    columns at its start are the same in all rows."""

    ids: Tensor
    owner: Tensor
    branch: Tensor
    position: Tensor
    shared: int = 0

    @classmethod
    def of(cls, batch: Batch) -> Text:
        return cls(ids=batch.input_ids, owner=batch.owner, branch=batch.branch, position=batch.position_ids,
                   shared=batch.shared)  # fmt: skip

    def append(self, ids_B: Tensor, alive_B: Tensor) -> Text:
        """One more column; rows that are not alive get padding."""
        last_owner = self.owner.max(1).values
        column = (
            ids_B,
            last_owner.masked_fill(~alive_B, -1),
            torch.zeros_like(ids_B),
            self.position[:, -1] + alive_B.long(),
        )
        parts = (self.ids, self.owner, self.branch, self.position)
        return Text(shared=self.shared, **{
            name: torch.cat([part, new[:, None]], 1)
            for name, part, new in zip(("ids", "owner", "branch", "position"), parts, column, strict=True)
        })  # fmt: skip


def run_text(model: LanguageModel, text: Text, vision: Tensor | None, *, keep_cache: bool = True) -> Any:
    """The whole text in one pass; plain causal attention wherever that is enough."""
    embeds = model.embed(text.ids, vision)
    if needs_mask(text.owner, text.branch):
        mask = additive_mask(
            text.owner, text.branch, None, text_rows=slice(None), query_rows=False, dtype=mask_dtype(embeds)
        )
    else:
        mask = (text.owner >= 0).long()
    return model.text(embeds, mask, text.position, keep_cache=keep_cache)


def run_prompt(model: LanguageModel, text: Text, vision: Tensor | None) -> Any:
    """The text up to where replies begin: what all rows share runs once, and its hidden states are left out."""
    if not text.shared:
        return run_text(model, text, vision)
    embeds, real = model.embed(text.ids, vision), (text.owner >= 0).long()
    cache = model.text(embeds[:1, : text.shared], real[:1, : text.shared], text.position[:1, : text.shared]).cache
    cache.batch_repeat_interleave(len(embeds))
    return model.text(embeds[:, text.shared :], real, text.position[:, text.shared :], cache)


def read_out(model: LanguageModel, queries: LinkQueries, text: Text, links: LinkLayout, cache: Any) -> SuperLinks:
    """Super links of a text whose first positions are in ``cache``; the rest (generation's last token) is fed too.

    The cache is cropped back, so generation could go on.
    """
    rows, width = text.ids.shape
    cached = cache.get_seq_length()
    layout = QueryLayout.of(links, rows, text.ids.device)
    none_BG = layout.again_BG < 0
    again_BG = text.ids.gather(1, layout.again_BG.clamp(min=0)).masked_fill(none_BG, 0)
    asked = queries.inputs(links, layout) + model.embed(again_BG, None).masked_fill(none_BG[..., None], 0)
    inputs = torch.cat([model.embed(text.ids[:, cached:], None), asked], 1)
    mask = additive_mask(
        text.owner, text.branch, layout, text_rows=slice(cached, width), query_rows=True, dtype=mask_dtype(inputs)
    )
    position = torch.cat([text.position[:, cached:], layout.positions(text.position)], 1)
    hidden = model.text(inputs, mask, position, cache).hidden_BTD
    cache.crop(-inputs.shape[1])
    return gather(hidden[:, width - cached :], links, layout)


def find_links(text: Text, start: int, vocabulary: Vocabulary) -> LinkLayout:
    """Links of a generated text: every routing token from column ``start`` on, with the phrase before it."""
    rows, columns, counts, metas, owners, echoes = [], [], [], [], [], []
    for row in range(len(text.ids)):
        group = -1
        ids, owner = text.ids[row].tolist(), text.owner[row].tolist()
        for column in range(start, len(ids)):
            token = vocabulary.routing.get(ids[column])
            if token is None or owner[column] < 0:
                continue
            task = vocabulary.tokens[token.text][0]
            phrase = _phrase_before(ids[start:column], vocabulary)
            group += token.parent is None
            metas.append(
                LinkMeta(
                    sample=owner[column], turn=0, task=task.name, token=token.text, phrase=phrase, group=max(0, group)
                )
            )
            owners.append(token.parent)
            rows.append(row)
            columns.append(column)
            counts.append(token.queries)
            echoes.append(echo(ids[:column], token, vocabulary))
    return LinkLayout(
        row=tuple(rows), column=tuple(columns), queries=tuple(counts), meta=owned(metas, owners), echo=tuple(echoes)
    )


def echo(ids: Sequence[int], token: Token, vocabulary: Vocabulary) -> int:
    """``LinkLayout.echo`` of a routing token that stands behind ``ids``: its phrase with both marks."""
    if not token.echo or not ids or ids[-1] != vocabulary.control(REF_END):
        return 0
    ref = vocabulary.control(REF)
    return next((count for count, one in enumerate(reversed(ids), 1) if one == ref), 0)


def mask_dtype(inputs: Tensor) -> torch.dtype:
    """Attention wants the mask in the type it computes in."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype


def _phrase_before(ids: list[int], vocabulary: Vocabulary) -> str:
    """The words between the last ``<ref>`` and its ``</ref>``, if the routing token follows them directly."""
    if not ids or ids[-1] != vocabulary.control(REF_END):
        return ""
    ref = vocabulary.control(REF)
    starts = [i for i, token in enumerate(ids) if token == ref]
    return vocabulary.text(ids[starts[-1] + 1 : -1], control=False) if starts else ""
