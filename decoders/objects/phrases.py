"""From a super link to a phrase embedding.

L = links, Q = queries of a link, D = width of the language model, C = width of the detector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLOWEST = 0.01  # least weight of a batch in the running statistics
FLOOR = 1e-3  # least variance: a feature that never varies says nothing and must not be blown up


class Standardise(nn.Module):
    """Subtract the running mean and divide by the running deviation of every feature, over all links seen in training.

    Links of different phrases share most of what they are: at nano size the cosine between the class names of a data
    set is 0.6 to 0.9. Scores are dot products with phrase embeddings, so that what is common drowns what differs, and a
    detector learns its classes one after the other. Batch normalisation (Ioffe and Szegedy 2015) by its running
    statistics in training too: a batch moves them by a hundredth. In use a link alone is treated as one among others.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, states_LF: Tensor, *, observe: bool = True) -> Tensor:
        states_LF = states_LF.float()
        if observe and self.training and len(states_LF):
            self._observe(states_LF.detach())
        return (states_LF - self.mean) * (self.variance + FLOOR).rsqrt()

    @torch.no_grad()
    def _observe(self, states_LF: Tensor) -> None:
        share = max(SLOWEST, 1.0 / (1.0 + float(self.batches)))
        mean = states_LF.mean(0)
        # Around the running mean, not the batch's own: a batch of one link also tells how far links lie apart.
        self.mean.lerp_(mean.to(self.mean.dtype), share)
        self.variance.lerp_((states_LF - self.mean).square().mean(0).to(self.variance.dtype), share)
        self.batches += 1


class PhraseHead(nn.Module):
    """The states of a link's queries, side by side and standardised, through a perceptron with a shortcut.

    VisionLLM v2 (section 3.3) averages a perceptron over the queries; side by side, the queries keep their order, which
    tells "dog house" from "house dog".
    """

    def __init__(self, queries: int, link_width: int, width: int) -> None:
        super().__init__()
        self.queries = queries
        self.standardise = Standardise(queries * link_width)
        self.project = nn.Linear(queries * link_width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        for layer in (self.project, self.mlp[0], self.mlp[2]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, *, observe: bool = True) -> Tensor:
        """(L * Q, D) states of links in order -> (L, C) phrase embeddings.

        Args:
            observe: in training, count these links in the running statistics; frozen weights keep theirs.
        """
        # What stands still does so whole: links of one task alone would shift what the weights were learned under.
        observe = observe and self.project.weight.requires_grad
        joined = self.standardise(states.reshape(-1, self.project.in_features), observe=observe)
        phrases = self.project(joined.to(self.project.weight.dtype))
        return self.norm(phrases + self.mlp(phrases))
