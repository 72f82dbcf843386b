"""Greedy generation as an iterator: batched, cached, with banned ids; whoever iterates may stop it at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionllm.routing.quoting import Quoting
from visionllm.routing.readout import LanguageModel, Text, run_text


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Step:
    """The state after one more token.

    Args:
        text: prompt and reply so far; finished rows hold padding.
        cache: keys and values of all columns but the last.
        tokens: (B,) ids just written.
        alive: (B,) bool, rows that go on.
    """

    text: Text
    cache: Any
    tokens: Tensor
    alive: Tensor


@torch.no_grad()
def generate(model: LanguageModel, text: Text, vision: Tensor | None, *, end: int, banned: Sequence[int],
             limits: Sequence[int], quoting: Sequence[Quoting] = ()) -> Iterator[Step]:  # fmt: skip
    """Write replies until every row has written ``end`` or as many tokens as its own of the ``limits``.

    Args:
        quoting: of each row what may follow; empty where all may.
    """
    out = run_text(model, text, vision)
    shut = torch.tensor(sorted(banned), dtype=torch.long, device=text.ids.device)
    alive = torch.ones(len(text.ids), dtype=torch.bool, device=text.ids.device)
    room = torch.tensor(limits, device=text.ids.device)
    for count in range(1, max(limits) + 1):
        logits = model.logits(out.hidden_BTD[:, -1]).float()
        logits[:, shut] = float("-inf")
        for row, rule in enumerate(quoting):
            restrict(logits[row], rule)
        tokens = logits.argmax(-1)
        for rule, token in zip(quoting, tokens.tolist() if quoting else (), strict=True):
            rule.wrote(token)
        text = text.append(tokens, alive)
        alive = alive & (tokens != end) & (room > count)
        yield Step(text=text, cache=out.cache, tokens=tokens, alive=alive)
        if not bool(alive.any()):
            return
        mask = (text.owner >= 0).long()
        out = model.text(model.embed(text.ids[:, -1:], None), mask, text.position[:, -1:], out.cache)


def restrict(logits_V: Tensor, rule: Quoting) -> None:
    """Shut all ids that may not follow, in place."""
    allowed = rule.allowed()
    if allowed is not None:
        kept = logits_V[allowed].clone()
        logits_V.fill_(float("-inf"))
        logits_V[allowed] = kept
