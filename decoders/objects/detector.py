"""Grounding DINO whose text side is replaced by phrase embeddings.

The network is transformers' ``GroundingDinoModel`` or ``MMGroundingDinoModel`` (Liu et al. 2023, "Grounding DINO";
Zhao et al. 2024, "An Open and Comprehensive Pipeline for Unified Object Grounding and Detection") without the BERT
tower and its projection: one phrase is one text token. Two-way fusion, text enhancer, deformable encoder,
language-guided query selection and the deformable decoder are theirs. The forward pass is ours because theirs detaches
the proposals before any loss reads them, fixes the number of decoder queries in a mask, and offers no place for
denoising queries.

B = pictures, P = phrases, S = encoder tokens over all levels, N = decoder queries, C = model width.
Boxes are cxcywh_norm: normalised by the picture without its padding; the valid ratios carry them onto padded maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
)
from transformers.models.grounding_dino import modeling_grounding_dino as gdino
from transformers.models.mm_grounding_dino import modeling_mm_grounding_dino as mm_gdino

from visionllm.core.errors import ConfigError
from visionllm.core.networks import known_config, use_group_norm
from visionllm.decoders.objects.attention import DeformableSampling, read_once
from visionllm.decoders.objects.fusion import close_way_back, look

_CLASSES: dict[str, Any] = {
    "grounding-dino": GroundingDinoForObjectDetection,
    "mm-grounding-dino": MMGroundingDinoForObjectDetection,
}
_SAMPLERS = (gdino.MultiScaleDeformableAttention, mm_gdino.MultiScaleDeformableAttention)
# The text tower is thrown away; building the smallest one saves the seconds a BERT takes.
_NO_TEXT = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 8, "vocab_size": 8}  # fmt: skip


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Memory:
    """What the encoder makes of pictures.

    Args:
        memory_BSC: encoded picture tokens.
        queries_BSC: what phrases score as proposals.
        box_logits_BS4: these proposals, cxcywh_norm through the logit; ``valid_BS`` says where they mean something.
    """

    memory_BSC: Tensor
    queries_BSC: Tensor
    box_logits_BS4: Tensor
    valid_BS: Tensor


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Features:
    """What the backbone says of pictures, whatever is asked of them: tokens of all levels in one row.

    Args:
        tokens_BSC: projected feature maps.
        places_BSC: their position embeddings.
        padding_BS: True on padding.
        shapes: (height, width) of each level.
        ratios_BL2: valid (width, height) ratio of each level.
        looked_at: where no phrase tells the picture anything, the tokens that phrases see in each layer of the encoder;
        encoded: and what it makes of the pictures; None where that hangs on what is asked.
    """

    tokens_BSC: Tensor
    places_BSC: Tensor
    padding_BS: Tensor
    shapes: list[tuple[int, int]]
    ratios_BL2: Tensor
    looked_at: tuple[Tensor, ...] = ()
    encoded: Memory | None = None

    def take(self, rows: list[int]) -> Features:
        """The features of these rows; a row may come several times."""
        count = len(self.tokens_BSC)
        if rows == list(range(count)):
            return self
        index = torch.tensor(rows, device=self.tokens_BSC.device)

        def taken(values: Tensor) -> Tensor:
            return values.expand(len(rows), *values.shape[1:]) if count == 1 else values[index]

        held = None if self.encoded is None else Memory(**{
            name: taken(getattr(self.encoded, name)) for name in Memory.__slots__
        })  # fmt: skip
        return Features(
            tokens_BSC=taken(self.tokens_BSC), places_BSC=taken(self.places_BSC), padding_BS=taken(self.padding_BS),
            shapes=self.shapes, ratios_BL2=taken(self.ratios_BL2), looked_at=tuple(map(taken, self.looked_at)),
            encoded=held,
        )  # fmt: skip


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Encoded:
    """Everything the decoder stage needs of one batch of pictures.

    Args:
        memory_BSC: fused picture tokens.
        padding_BS: True on padding.
        phrases_BPC: enhanced phrase embeddings.
        phrase_padding_BP: True where a picture has fewer phrases.
        logits_BSP: phrase scores of the tokens (-inf at padded phrases and invalid tokens).
        boxes_BS4: proposals, cxcywh_norm; ``valid_BS`` says where they mean something.
        shapes: (height, width) of each level.
        ratios_BL2: valid (width, height) ratio of each level.
    """

    memory_BSC: Tensor
    padding_BS: Tensor
    phrases_BPC: Tensor
    phrase_padding_BP: Tensor
    logits_BSP: Tensor
    box_logits_BS4: Tensor
    valid_BS: Tensor
    shapes: list[tuple[int, int]]
    ratios_BL2: Tensor

    def of(self, rows: list[int]) -> Encoded:
        """Some pictures of the batch."""
        own = {name: getattr(self, name)[rows] for name in self.__slots__ if name != "shapes"}
        return replace(self, **own)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class LayerOutput:
    """One decoder layer: (B, N, P) phrase logits, (B, N, 4) boxes, cxcywh_norm, and (B, N, C) states behind both."""

    logits_BNP: Tensor
    boxes_BN4: Tensor
    hidden_BNC: Tensor

    def queries(self, start: int | None = None, stop: int | None = None) -> LayerOutput:
        """Some of the queries."""
        return LayerOutput(
            logits_BNP=self.logits_BNP[:, start:stop], boxes_BN4=self.boxes_BN4[:, start:stop],
            hidden_BNC=self.hidden_BNC[:, start:stop],
        )  # fmt: skip

    def of(self, rows: list[int]) -> LayerOutput:
        """Some pictures of the batch."""
        return LayerOutput(
            logits_BNP=self.logits_BNP[rows], boxes_BN4=self.boxes_BN4[rows], hidden_BNC=self.hidden_BNC[rows]
        )


class LinkDetector(nn.Module):
    """Pictures and phrase embeddings to phrase scores and boxes.

    Args:
        network: keys of a ``GroundingDinoConfig`` or ``MMGroundingDinoConfig``, with ``model_type``.
        group_norm: replace the backbone's frozen batch norm by group norm of so many groups, for one from scratch.
        queries: of a pass; None takes the learned ones.
        one_way: phrases look at the picture, and it takes no notice of them (``fusion``).
    """

    def __init__(
        self, network: dict[str, Any], group_norm: int | None = None, queries: int | None = None,
        one_way: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.one_way = one_way
        self.config = detector_config(network)
        self.queries = queries or int(self.config.num_queries)
        full = _CLASSES[self.config.model_type](self.config)
        self.net = full.model
        del self.net.text_backbone, self.net.text_projection
        shared = getattr(self.config, "decoder_bbox_embed_share", True)
        # Tied heads are held once: nothing is left to be tied again after loading.
        self.box_heads = nn.ModuleList(list(full.bbox_embed)[: 1 if shared else None])
        classes = full.class_embed if hasattr(full, "class_embed") else [self.net.encoder_output_class_embed]
        one_class_head = getattr(self.config, "decoder_cls_embed_share", True)
        self.class_biases = nn.ParameterList(
            nn.Parameter(torch.full((), -math.log(99.0))) for _ in range(1 if one_class_head else len(classes))
        )
        self.encoder_bias = nn.Parameter(torch.full((), -math.log(99.0)))
        # MM-Grounding DINO divides its scores by the root of the width, Grounding DINO does not.
        self.scale = self.width**-0.5 if self.config.model_type == MMGroundingDinoConfig.model_type else 1.0
        for name in ("bbox_embed", "class_embed"):
            setattr(self.net.decoder, name, None)
        del self.net.encoder_output_class_embed
        for module in self.net.modules():
            if isinstance(getattr(module, "attn", None), _SAMPLERS):
                module.attn = DeformableSampling()
        for layer in self.net.decoder.layers:
            read_once(layer.encoder_attn)
        if group_norm:
            use_group_norm(self.net.backbone, group_norm, path="decoders.objects.group_norm")
        self._initialise()
        if one_way:
            for layer in self.net.encoder.layers:
                close_way_back(layer)

    @property
    def width(self) -> int:
        return int(self.config.d_model)

    def _initialise(self) -> None:
        """Xavier weights for all that reads features, as Deformable DETR and DINO have it.

        transformers draws every matrix with a standard deviation of 0.02, meant for loading weights over it: at a width
        of 128 a decoder query then carries so little of what it sampled that its box head learns nothing for hundreds
        of steps.
        """
        parts = [self.net.input_proj_vision, self.net.encoder, self.net.decoder, self.net.enc_output]
        for name, parameter in (item for part in parts for item in part.named_parameters()):
            if parameter.dim() > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                nn.init.xavier_uniform_(parameter)
        for head in [*self.box_heads, self.net.encoder_output_bbox_embed]:
            for layer in head.layers[:-1]:
                nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.net.query_position_embeddings.weight)

    def features(self, pixels_B3HW: Tensor, mask_BHW: Tensor) -> Features:
        """Backbone and projections; ``mask_BHW`` is True on the picture."""
        maps, masks, positions = self._levels(pixels_B3HW, mask_BHW)
        places = [p.flatten(2).transpose(1, 2) + self.net.level_embed[i] for i, p in enumerate(positions)]
        features = Features(
            tokens_BSC=torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1),
            places_BSC=torch.cat(places, 1),
            padding_BS=~torch.cat([m.flatten(1) for m in masks], 1),
            shapes=[(int(m.shape[-2]), int(m.shape[-1])) for m in maps],
            ratios_BL2=torch.stack([self.net.get_valid_ratio(m, dtype=torch.float32) for m in masks], 1),
        )
        return self._encoded_alone(features) if self.one_way else features

    def encode(self, features: Features, phrases_BPC: Tensor, phrase_padding_BP: Tensor) -> Encoded:
        """Fusion encoder and proposals; of the pictures' half no more than what hangs on the phrases."""
        count = phrases_BPC.shape[1]
        # Phrases are independent in the text enhancer: each sees itself only, and all share position 0,
        # so neither their number nor their order changes one of them there.
        closed = ~torch.eye(count, dtype=torch.bool, device=phrases_BPC.device).expand(len(phrases_BPC), count, count)
        place = torch.zeros(phrases_BPC.shape[:2], dtype=torch.long, device=phrases_BPC.device)
        if features.encoded is None:
            out = self.net.encoder(
                vision_features=features.tokens_BSC,
                vision_attention_mask=features.padding_BS,
                vision_position_embedding=features.places_BSC,
                valid_ratios=features.ratios_BL2,
                text_features=phrases_BPC,
                text_attention_mask=phrase_padding_BP,
                text_self_attention_masks=closed,
                text_position_ids=place,
                return_dict=True,
                **_levels_of(features),
            )
            made, phrases = self._proposed(features, out.last_hidden_state_vision), out.last_hidden_state_text
        else:
            made, phrases = features.encoded, phrases_BPC
            for layer, tokens_BSC in zip(self.net.encoder.layers, features.looked_at, strict=True):
                where = layer.get_text_position_embeddings(phrases, None, place)
                seen = look(layer, tokens_BSC, features.padding_BS, phrases)
                phrases = layer.text_enhancer_layer(seen, attention_masks=~closed, position_embeddings=where)[0]
        logits = self._score(made.queries_BSC, phrases, phrase_padding_BP, self.encoder_bias)
        return Encoded(
            memory_BSC=made.memory_BSC, padding_BS=features.padding_BS, phrases_BPC=phrases,
            phrase_padding_BP=phrase_padding_BP,
            logits_BSP=logits.masked_fill(~made.valid_BS[..., None], float("-inf")),
            box_logits_BS4=made.box_logits_BS4, valid_BS=made.valid_BS, shapes=features.shapes,
            ratios_BL2=features.ratios_BL2,
        )  # fmt: skip

    def _encoded_alone(self, features: Features) -> Features:
        """Pictures that no phrase tells anything, through all layers."""
        encoder, tokens_BSC = self.net.encoder, features.tokens_BSC
        reference = encoder.get_reference_points(features.shapes, features.ratios_BL2, device=tokens_BSC.device)
        looked_at = []
        for layer in encoder.layers:
            looked_at.append(layer.fusion_layer.layer_norm_vision(tokens_BSC))
            tokens_BSC = layer.deformable_layer(
                hidden_states=looked_at[-1], attention_mask=~features.padding_BS,
                position_embeddings=features.places_BSC, reference_points=reference, **_levels_of(features),
            )[0]  # fmt: skip
        return replace(features, looked_at=tuple(looked_at), encoded=self._proposed(features, tokens_BSC))

    def _proposed(self, features: Features, memory_BSC: Tensor) -> Memory:
        queries, proposals = self.net.generate_encoder_output_proposals(
            memory_BSC.float(), features.padding_BS, features.shapes
        )
        valid = torch.isfinite(proposals).all(-1)
        # Padded and border tokens carry infinities through the logit: they must never meet an L1 or a GIoU.
        base = torch.where(valid[..., None], proposals, torch.zeros_like(proposals))
        boxes = self.net.encoder_output_bbox_embed(queries).float() + base
        return Memory(memory_BSC=memory_BSC, queries_BSC=queries, box_logits_BS4=boxes, valid_BS=valid)

    def select(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Language-guided query selection: (B, N, C) contents and (B, N, 4) reference box logits, detached.

        A query's content is learned for its rank among the proposals; where there are more queries than were learned,
        neighbours in rank have one.
        """
        best = encoded.logits_BSP.detach().max(-1).values
        top = best.topk(min(self.queries, best.shape[1]), dim=1).indices
        reference = encoded.box_logits_BS4.detach().gather(1, top[..., None].expand(-1, -1, 4))
        learned = self.net.query_position_embeddings.weight
        rank = torch.arange(top.shape[1], device=top.device)
        content = learned[rank * len(learned) // max(self.queries, len(learned))]
        return content.expand(len(top), -1, -1), reference

    def decode(self, encoded: Encoded, content_BNC: Tensor, reference_BN4: Tensor, closed_NN: Tensor | None
               ) -> list[LayerOutput]:  # fmt: skip
        """Run the decoder layers on queries with reference box logits; ``closed_NN`` is True where attention is cut."""
        decoder = self.net.decoder
        hidden = content_BNC
        heads, levels = self.config.decoder_attention_heads, _levels_of(encoded)
        low = torch.finfo(torch.float32).min
        text_mask = (encoded.phrase_padding_BP.float() * low)[:, None, None, :]
        text_mask = text_mask.expand(-1, heads, hidden.shape[1], -1)
        self_mask = None if closed_NN is None else (closed_NN.float() * low).expand(len(hidden), heads, -1, -1)
        ratios = torch.cat([encoded.ratios_BL2, encoded.ratios_BL2], -1)[:, None]
        outputs = []
        for index, layer in enumerate(decoder.layers):
            boxes = reference_BN4.detach().sigmoid()
            scaled = boxes[:, :, None] * ratios
            place = gdino.encode_sinusoidal_position_embedding(scaled[:, :, 0], num_pos_feats=self.width // 2)
            hidden = layer(
                hidden_states=hidden,
                position_embeddings=decoder.reference_points_head(place),
                reference_points=scaled,
                vision_encoder_hidden_states=encoded.memory_BSC,
                vision_encoder_attention_mask=~encoded.padding_BS,
                text_encoder_hidden_states=encoded.phrases_BPC,
                text_encoder_attention_mask=text_mask,
                self_attn_mask=self_mask,
                **levels,
            )[0]
            normed = decoder.layer_norm(hidden)
            head = self.box_heads[min(index, len(self.box_heads) - 1)]
            bias = self.class_biases[min(index, len(self.class_biases) - 1)]
            # Look forward twice (Zhang et al. 2022, DINO): the loss of a layer also trains the refinement before it.
            box_logits = head(normed).float() + reference_BN4
            logits = self._score(normed, encoded.phrases_BPC, encoded.phrase_padding_BP, bias)
            outputs.append(LayerOutput(logits_BNP=logits, boxes_BN4=box_logits.sigmoid(), hidden_BNC=normed))
            reference_BN4 = head(hidden).float() + reference_BN4.detach()
        return outputs

    def _score(self, tokens: Tensor, phrases: Tensor, phrase_padding_BP: Tensor, bias: Tensor) -> Tensor:
        # Scores are compared and ranked: bf16 has 3 digits, too few for either.
        with torch.autocast(tokens.device.type, enabled=False):
            scores = tokens.float() @ phrases.float().transpose(1, 2) * self.scale + bias
        return scores.masked_fill(phrase_padding_BP[:, None, :], float("-inf"))

    def _levels(self, pixels: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        features, positions = self.net.backbone(pixels, mask)
        maps, masks = [], []
        for project, (feature, feature_mask) in zip(self.net.input_proj_vision, features, strict=False):
            maps.append(project(feature))
            masks.append(feature_mask)
        for level in range(len(features), self.config.num_feature_levels):
            source = features[-1][0] if level == len(features) else maps[-1]
            maps.append(self.net.input_proj_vision[level](source))
            small = F.interpolate(mask[None].float(), size=maps[-1].shape[-2:]).to(torch.bool)[0]
            masks.append(small)
            positions.append(self.net.backbone.position_embedding(maps[-1], small).to(maps[-1].dtype))
        return maps, masks, positions


def _levels_of(pictures: Features | Encoded) -> dict[str, Any]:
    """Sizes and beginnings of the levels, as deformable attention is told of them."""
    shapes = torch.tensor(pictures.shapes, dtype=torch.long, device=pictures.padding_BS.device)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    return {"spatial_shapes": shapes, "spatial_shapes_list": pictures.shapes, "level_start_index": starts}


def detector_config(network: dict[str, Any]) -> Any:
    """A Grounding DINO configuration from plain keys.

    Raises:
        ConfigError: ``model_type`` is not one of the Grounding DINO family, or a key is not one of its fields.
    """
    keys = dict(network)
    kind = keys.pop("model_type", None)
    if kind not in _CLASSES:
        raise ConfigError(f"objects.network.model_type: expected one of {', '.join(_CLASSES)}, got {kind!r}")
    for key in ("two_stage", "embedding_init_target"):
        if not keys.setdefault(key, True):
            raise ConfigError(f"objects.network.{key}: only true is supported")
    keys["text_config"] = dict(_NO_TEXT)
    if keys.get("backbone_config") is not None:
        keys["backbone_config"] = known_config("objects.network.backbone_config", keys["backbone_config"])
    return known_config("objects.network", {"model_type": kind, **keys})
