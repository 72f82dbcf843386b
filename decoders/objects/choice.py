"""Which of what was found a phrase means: the candidates of each phrase, compared with each other.

L = links, Q = queries of a link, D = width of the language model, B = pictures, P = phrases, N = decoder queries,
K = candidates, M = phrases of all pictures, C = width of the detector.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from visionllm.decoders.objects.detector import LayerOutput
from visionllm.decoders.objects.phrases import PhraseHead

CANDIDATES = 24
_FEATURES = 8
# Sides of boxes below this are alike.
_LEAST_SIDE = 1e-3


class ChoiceHead(nn.Module):
    """Scores of the candidates of a phrase, once more, each seen beside the others.

    The score of a query is a dot product with the phrase, whatever else was found: "the leftmost tree" is as like every
    tree, and which of them is leftmost is a matter of all. Here the best queries of each phrase attend to each other
    and to the phrase, with their boxes and first scores, as objects do in a relation module (Hu et al. 2018, "Relation
    networks for object detection", section 3), and what comes out is added to the score. Phrases do not see each
    other.

    Args:
        queries: Q; the link is read anew, since what tells one of a kind from another is little of what tells kinds.
        link_width: D.
        width: C.
        layers, heads: of the transformer.
    """

    def __init__(self, *, queries: int, link_width: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.asked = PhraseHead(queries, link_width, width)
        self.fused = nn.Linear(width, width)
        self.seen = nn.Linear(width, width)
        self.box = nn.Sequential(nn.Linear(_FEATURES, width), nn.GELU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.more = nn.Linear(width, 1)
        # It begins by changing nothing.
        nn.init.zeros_(self.more.weight)
        nn.init.zeros_(self.more.bias)

    def forward(
        self, layer: LayerOutput, phrases_BPC: Tensor, asked_BPC: Tensor, padding_BP: Tensor, start: int
    ) -> LayerOutput:
        """A layer whose queries from ``start`` on are scored once more.

        Args:
            phrases_BPC: as the encoder fused them with the picture.
            asked_BPC: what ``asked`` reads off their links.
            padding_BP: True where a picture has fewer phrases.
        """
        picture, phrase = torch.nonzero(~padding_BP, as_tuple=True)
        if not len(picture):
            return layer
        own = layer.queries(start)
        scores_MN = own.logits_BNP.transpose(1, 2)[picture, phrase]
        best_MK = scores_MN.detach().topk(min(CANDIDATES, scores_MN.shape[1]), dim=1).indices
        rows = picture[:, None]
        boxes_MK4 = own.boxes_BN4[rows, best_MK].detach()
        first_MK1 = scores_MN.detach().gather(1, best_MK)[..., None]
        sides = boxes_MK4[..., 2:].clamp(min=_LEAST_SIDE).log()
        features = torch.cat([boxes_MK4, sides, first_MK1, first_MK1.sigmoid()], -1)
        asked_M1C = (asked_BPC + self.fused(phrases_BPC))[picture, phrase][:, None]
        tokens = self.seen(own.hidden_BNC)[rows, best_MK] + self.box(features.to(own.hidden_BNC.dtype)) + asked_M1C
        told = self.layers(torch.cat([asked_M1C, tokens], 1))[:, 1:]
        more_MK = self.more(self.norm(told))[..., 0].float()
        logits_BPN = layer.logits_BNP.transpose(1, 2).clone()
        logits_BPN[rows, phrase[:, None], start + best_MK] += more_MK
        return replace(layer, logits_BNP=logits_BPN.transpose(1, 2))
