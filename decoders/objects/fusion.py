"""Fusion of one way: phrases look at the picture, and the picture takes no notice of them.

Grounding DINO fuses both ways (Liu et al. 2023, "Grounding DINO", section 3.1; the layer is that of Li et al. 2022,
"GLIP", section 3.2), so a picture is encoded anew for whatever is asked of it. Here the half that tells the picture of
the phrases is left out. One encoding then serves every question about a picture, and no phrase changes what another one
sees.

B = pictures, P = phrases, S = encoder tokens, H = heads, C = model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def close_way_back(layer: nn.Module) -> None:
    """What only the picture's half of an encoder layer's fusion feels: it stays in checkpoints, and learns nothing."""
    fusion: Any = layer.fusion_layer
    fusion.vision_param.requires_grad_(False)
    fusion.attn.vision_proj.bias.requires_grad_(False)
    fusion.attn.values_text_proj.requires_grad_(False)
    fusion.attn.out_vision_proj.requires_grad_(False)


def look(layer: Any, tokens_BSC: Tensor, padding_BS: Tensor, phrases_BPC: Tensor) -> Tensor:
    """(B, P, C) phrases that have looked at the picture in an encoder layer's fusion.

    Phrases are few and tokens thousands, so what would be made of every token, its key and its value, is made of the
    phrases' queries and of what they have gathered instead: q (W x + b) = (q W) x + q b, and the weights of a sum add
    up to one.

    Args:
        tokens_BSC: of the picture, normalised by the same fusion.
    """
    fusion, attn = layer.fusion_layer, layer.fusion_layer.attn
    own = fusion.layer_norm_text(phrases_BPC)
    asked_BPHD = attn.text_proj(own).unflatten(-1, (attn.num_heads, attn.head_dim)) * attn.scale
    key_HDC = attn.vision_proj.weight.unflatten(0, (attn.num_heads, attn.head_dim))
    # The bias of the keys moves all scores of a phrase alike: no weight of a softmax changes.
    asked_BMC = torch.einsum("bphd,hdc->bphc", asked_BPHD, key_HDC.to(asked_BPHD.dtype)).flatten(1, 2)
    scores_BMS = asked_BMC @ tokens_BSC.transpose(1, 2)
    weights_BMS = scores_BMS.float().masked_fill(padding_BS[:, None], float("-inf")).softmax(-1)
    weights_BMS = nn.functional.dropout(weights_BMS, attn.dropout, attn.training).to(tokens_BSC.dtype)
    seen_BPHC = (weights_BMS @ tokens_BSC).unflatten(1, (-1, attn.num_heads))
    value_HDC = attn.values_vision_proj.weight.unflatten(0, (attn.num_heads, attn.head_dim))
    seen_BPE = torch.einsum("bphc,hdc->bphd", seen_BPHC, value_HDC.to(seen_BPHC.dtype)).flatten(2)
    seen_BPE = seen_BPE + attn.values_vision_proj.bias
    return own + fusion.drop_path(fusion.text_param * attn.out_text_proj(seen_BPE))
