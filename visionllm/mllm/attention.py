"""Attention as two matrix products in the type of its inputs, under the name ``matmul`` in transformers.

In bf16 on a CPU with matrix units, at a few hundred positions, what stands between the products costs more than they
do. ``tools/bench/attention.py`` has the ratios to torch's fused kernel and to transformers' own eager way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

MATMUL = "matmul"
# Layers whose attention somebody wants, and what they gave.
_WATCHED: ContextVar[tuple[set[int], dict[int, Tensor]] | None] = ContextVar("watched", default=None)


@contextmanager
def watching(layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Gather the (B, H, T, K) attention of some layers of the language model in the passes within.

    It stays empty where attention is not computed as ``matmul``.
    """
    seen: dict[int, Tensor] = {}
    token = _WATCHED.set((set(layers), seen))
    try:
        yield seen
    finally:
        _WATCHED.reset(token)


def matmul_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                     scaling: float | None = None, dropout: float = 0.0, **_: Any) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of (B, H, T, D) queries over (B, H / groups, K, D) keys and values; (B, T, H, D) comes back.

    Args:
        attention_mask: additive (B, 1, T, K), or None where all is open.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    query, key, value = (states.to(dtype) for states in (query * (scaling or query.shape[-1] ** -0.5), key, value))
    # Autocast would take the softmax to float32 and back, two copies of the largest tensor there is.
    with torch.autocast(device, enabled=False):
        scores = query @ key.transpose(-1, -2)
        if attention_mask is not None:
            # A row of padding sees nothing: infinities would make it nan.
            scores += attention_mask.clamp(min=torch.finfo(dtype).min).to(dtype)
        weights = nn.functional.dropout(scores.softmax(-1), dropout, module.training)
        watched = _WATCHED.get()
        if watched is not None and getattr(module, "layer_idx", None) in watched[0]:
            watched[1][int(module.layer_idx)] = weights  # type: ignore[arg-type]
        return (weights @ value).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make it known to transformers."""
    AttentionInterface.register(MATMUL, matmul_attention)
    AttentionMaskInterface.register(MATMUL, eager_mask)
