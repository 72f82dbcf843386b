"""Link queries: learned inputs read out behind routing tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from visionllm.core.batch import LinkLayout
from visionllm.core.superlink import SuperLinks
from visionllm.core.task import Token
from visionllm.routing.masks import QueryLayout
from visionllm.routing.vocabulary import REF_END, Vocabulary


class LinkQueries(nn.Module):
    """A table of input embeddings a routing token (VisionLLM v2, section 3.2: separate tables beat shared ones)."""

    def __init__(self, tokens: Iterable[Token], width: int) -> None:
        super().__init__()
        self.tables = nn.ParameterDict({_key(token.text): nn.Parameter(_start(token, width)) for token in tokens})

    def copy(self, source: str, token: str) -> None:
        """Give ``token`` the table of another token of as many queries."""
        with torch.no_grad():
            self.tables[_key(token)].copy_(self.tables[_key(source)])

    def inputs(self, links: LinkLayout, layout: QueryLayout) -> Tensor:
        """(B, G, D) query embeddings in their places, zeros on padding."""
        flat = torch.cat([self.tables[_key(meta.token)] for meta in links.meta])
        starts = torch.tensor([0, *links.queries], device=flat.device).cumsum(0)
        row = starts[layout.link_BG.clamp(min=0)] + layout.step_BG.clamp(min=0)
        return torch.where(
            (layout.link_BG >= 0)[..., None], flat[row], torch.zeros((), dtype=flat.dtype, device=flat.device)
        )


def gather(hidden_BGD: Tensor, links: LinkLayout, layout: QueryLayout) -> SuperLinks:
    """Take the super links out of the last hidden states of the queries, in reading order."""
    real = layout.link_BG >= 0
    states = hidden_BGD[real]
    # Rows are filled link by link, but links of one batch need not be sorted by row.
    order = (layout.link_BG[real] * (1 + max(links.queries, default=0)) + layout.step_BG[real]).argsort()
    return SuperLinks(states=states[order], queries=links.queries, meta=links.meta)


def spelling(links: LinkLayout, vocabulary: Vocabulary) -> Tensor:
    """(sum of queries,) token ids that the queries of each link should name: those of its phrase, in order.

    Where the phrase is shorter, one query names the mark that ends it and the rest are left out (-100). A link that can
    name its phrase tells it from every other. Without this, all links of an untrained model are nearly one vector, and
    the decoder's gradient alone takes thousands of steps to part them.
    """
    labels: list[int] = []
    for meta, count in zip(links.meta, links.queries, strict=True):
        ids = [*vocabulary.plain(meta.phrase), vocabulary.control(REF_END)][:count]
        labels += ids + [-100] * (count - len(ids))
    return torch.tensor(labels, dtype=torch.long)


def _start(token: Token, width: int) -> Tensor:
    """(Q, D); queries that echo a phrase differ in what they read, and begin as one."""
    alike = torch.randn(1, width).expand(token.queries, -1) if token.echo else torch.randn(token.queries, width)
    return alike * 0.02


def _key(token: str) -> str:
    """A parameter name may not hold a dot; routing tokens have brackets, which state dicts bear."""
    return token.replace(".", "_")
