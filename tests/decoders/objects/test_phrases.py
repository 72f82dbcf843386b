"""From links to phrase embeddings: alike alone and among others, apart where links are nearly alike."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from visionllm.decoders.objects.phrases import FLOOR, PhraseHead, Standardise

QUERIES, WIDTH = 4, 16


def links(count: int, spread: float = 0.1) -> torch.Tensor:
    """Links that share most of what they are: (count * QUERIES, WIDTH)."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(1, QUERIES, WIDTH, generator=generator)
    own = spread * torch.randn(count, QUERIES, WIDTH, generator=generator)
    return (common + own).reshape(count * QUERIES, WIDTH)


def between(rows: torch.Tensor) -> float:
    """Mean cosine of the first row to the others."""
    return float(cosine_similarity(rows[:1], rows[1:]).mean().detach())


def test_a_first_batch_is_the_statistics() -> None:
    layer = Standardise(QUERIES * WIDTH)
    rows = links(50).reshape(50, -1)
    out = layer(rows)
    assert torch.allclose(out, (rows - rows.mean(0)) / (rows.var(0, correction=0) + FLOOR).sqrt(), atol=1e-5)


def test_statistics_settle_on_those_of_all_batches() -> None:
    layer = Standardise(QUERIES * WIDTH)
    rows = links(600).reshape(600, -1)
    for part in rows.split(6):
        layer(part)
    assert torch.allclose(layer.mean, rows.mean(0), atol=0.03)
    assert float((layer.variance / rows.var(0)).mean()) == pytest.approx(1, abs=0.1)
    assert int(layer.batches) == 100


def test_use_and_idle_runs_leave_the_statistics_alone() -> None:
    head = PhraseHead(QUERIES, WIDTH, 8)
    before = {name: value.clone() for name, value in head.named_buffers()}
    head(links(5), observe=False)
    head.eval()(links(5))
    head.train()(links(0))
    # A stage that trains a head of the decoder on links of its own task must not shift these under what stands still.
    head.requires_grad_(False)(links(5))
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())


def test_links_that_are_nearly_alike_come_apart() -> None:
    torch.manual_seed(0)
    head = PhraseHead(QUERIES, WIDTH, 32)
    for _ in range(20):
        head(links(40))
    states = links(40)
    assert between(states.reshape(40, -1)) > 0.95
    assert abs(between(head.eval()(states))) < 0.2


def test_alone_as_among_others() -> None:
    head = PhraseHead(QUERIES, WIDTH, 8)
    states = links(12)
    head(states)
    head.eval()
    alone = torch.cat([head(part) for part in states.split(QUERIES)])
    assert torch.allclose(alone, head(states), atol=1e-6)


def test_the_order_of_the_queries_counts() -> None:
    head = PhraseHead(QUERIES, WIDTH, 8).eval()
    states = links(1)
    assert not torch.allclose(head(states), head(states.flip(0)), atol=1e-2)
