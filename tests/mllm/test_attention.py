"""Attention by matrix products against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from visionllm.mllm.attention import matmul_attention


def states(heads: int, keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, and a mask of transformers whose first row has two positions of padding on the left."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 6, 8, generator=generator)
    key, value = (torch.randn(2, keys, 6, 8, generator=generator) for _ in range(2))
    open_ = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6).clone()
    open_[0, :, :, :2] = False
    return query, key, value, torch.zeros(open_.shape).masked_fill(~open_, torch.finfo(torch.float32).min)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: float) -> Tensor:
    return matmul_attention(nn.Module(), query, key, value, mask, **settings)[0]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("keys", [4, 2])
def test_equal_to_torch(keys: int, masked: bool) -> None:
    query, key, value, mask = states(4, keys)
    given = mask if masked else None
    theirs = nn.functional.scaled_dot_product_attention(query, key, value, given, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attend(query, key, value, given, scaling=0.3), theirs.transpose(1, 2))


def test_padding_stays_finite_in_bf16() -> None:
    """The least number of float32 is minus infinity in bf16, and a row of padding sees nothing else."""
    query, key, value, mask = states(4, 4)
    query.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(query, key, value, mask)
    assert found.dtype == torch.bfloat16
    exact = attend(query, key, value, mask)
    torch.testing.assert_close(found[1].float(), exact[1], atol=0.03, rtol=0)
    torch.testing.assert_close(found[0, 2:].float(), exact[0, 2:], atol=0.03, rtol=0)
    found.float().sum().backward()
    assert found.isfinite().all()
    assert query.grad is not None
    assert query.grad.isfinite().all()
