"""Greedy generation as an iterator: batched, cached, with banned ids; whoever iterates may stop it at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionllm.routing.quoting import Quoting
from visionllm.routing.readout import LanguageModel, Text, run_prompt


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Step:
    """The state after one more token.

    Args:
        text: prompt and reply so far; finished rows hold padding.
        tokens: (B,) ids just written.
        alive: (B,) bool, rows that go on.
        model: whose keys and values ``parts`` are, of some rows each.
    """

    text: Text
    tokens: Tensor
    alive: Tensor
    model: LanguageModel
    parts: Sequence[tuple[Tensor, Any]]

    @property
    def cache(self) -> Any:
        """Keys and values of all columns but the last; of a row that is done at least up to its end."""
        return self.parts[0][1] if len(self.parts) == 1 else self.model.joined(self.parts, len(self.tokens))


@torch.no_grad()
def generate(model: LanguageModel, text: Text, vision: Tensor | None, *, end: int, banned: Sequence[int],
             limits: Sequence[int], quoting: Sequence[Quoting] = ()) -> Iterator[Step]:  # fmt: skip
    """Write replies until every row has written ``end`` or as many tokens as its own of the ``limits``.

    Rows that are done are set aside as soon as they are half of those that run, so that a long reply does not carry
    short ones along.

    Args:
        quoting: of each row what may follow; empty where all may.
    """
    device = text.ids.device
    out = run_prompt(model, text, vision)
    shut = torch.tensor(sorted(banned), dtype=torch.long, device=device)
    alive = torch.ones(len(text.ids), dtype=torch.bool, device=device)
    room = torch.tensor(limits, device=device)
    rows = torch.arange(len(text.ids), device=device)
    aside: list[tuple[Tensor, Any]] = []
    for count in range(1, max(limits) + 1):
        logits = model.logits(out.hidden_BTD[:, -1]).float()
        logits[:, shut] = float("-inf")
        rules = [quoting[row] for row in rows.tolist()] if quoting else []
        for own, rule in zip(logits, rules, strict=False):
            restrict(own, rule)
        tokens = torch.full_like(alive, end, dtype=torch.long)
        tokens[rows] = logits.argmax(-1)
        for rule, token in zip(rules, tokens[rows].tolist(), strict=False):
            rule.wrote(token)
        text, went_on = text.append(tokens, alive), alive
        alive = alive & (tokens != end) & (room > count)
        yield Step(text=text, tokens=tokens, alive=alive, model=model, parts=[*aside, (rows, out.cache)])
        if not bool(alive.any()):
            return
        # What a row wrote last has not run yet: only those that were done before it are whole.
        runs = went_on[rows]
        if 2 * int(runs.sum()) <= len(rows):
            aside.append((rows[~runs], model.rows(out.cache, ~runs)))
            out.cache.batch_select_indices(torch.nonzero(runs)[:, 0])
            rows = rows[runs]
        mask = (text.owner[rows] >= 0).long()
        out = model.text(model.embed(text.ids[rows, -1:], None), mask, text.position[rows, -1:], out.cache)


def restrict(logits_V: Tensor, rule: Quoting) -> None:
    """Shut all ids that may not follow, in place; what only leads to a phrase speaks for the phrase."""
    allowed = rule.allowed()
    if allowed is not None:
        spoken = [(int(ids[int(logits_V[ids].argmax())]), logits_V[lead].clone()) for lead, ids in rule.led() if ids]
        for one, value in spoken:
            logits_V[one] = torch.maximum(logits_V[one], value)
        kept = logits_V[allowed].clone()
        logits_V.fill_(float("-inf"))
        logits_V[allowed] = kept
