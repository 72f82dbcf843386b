"""Links to the states that a UNet attends to.

L = links, Q = queries of a link, D = width of the language model, O = output states, C = width of these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinkMapper(nn.Module):
    """A small transformer whose learned queries read a link (Wu et al. 2024, "VisionLLM v2": 64 link queries to the 77
    states that stand in for a text encoder's).

    Each begins beside the link query of its own place, as the states of a text encoder stand at their words. Learned
    queries alone begin with one average of the whole link, and the noise of a UNet's loss is slow to part them:
    docs/pictures.md has figures.

    Args:
        queries: Q.
        link_width: D.
        outputs: O.
        width: C, ``cross_attention_dim`` of the UNet.
        layers, heads: of the transformer, as wide as its output.
        places: begin as above; False for learned queries alone.
    """

    def __init__(
        self, *, queries: int, link_width: int, outputs: int, width: int, layers: int = 2, heads: int = 8,
        places: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.queries = queries
        self._placed = min(queries, outputs) if places else 0
        self.read = nn.Sequential(
            nn.LayerNorm(link_width), nn.Linear(link_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.place = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.wanted = nn.Parameter(torch.randn(outputs, width) * 0.02)
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        self.out = nn.Linear(width, width)

    def forward(self, states_LQD: Tensor) -> Tensor:
        """(L, Q, D) link states -> (L, O, C)."""
        memory = self.read(states_LQD) + self.place
        wanted = self.wanted.expand(len(states_LQD), -1, -1)
        if self._placed:
            own = memory[:, : self._placed]
            wanted = wanted + nn.functional.pad(own, (0, 0, 0, wanted.shape[1] - self._placed))
        return self.out(self.layers(wanted, memory))
