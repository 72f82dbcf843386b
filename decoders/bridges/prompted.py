"""Networks of transformers that are asked by an embedding: a link's phrase stands where a text or a point stood.

P = phrases, E = width of a phrase, C = width of the network's own prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionllm.core.errors import ConfigError
from visionllm.core.pixels import IMAGENET_MEAN, IMAGENET_STD
from visionllm.decoders.bridges.base import Network, Things, around

# Phrases in one pass; no layer of such a network says how many there may be.
TOGETHER = 128
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Weights of matching and losses of Minderer et al. 2022 (OWL-ViT, section 3), which are DETR's with focal loss.
_SET_LOSS = {"class_cost": 2.0, "bbox_cost": 5.0, "giou_cost": 2.0, "bbox_loss_coefficient": 5.0,
             "giou_loss_coefficient": 2.0, "focal_alpha": 0.25, "auxiliary_loss": False}  # fmt: skip


class Prompted(Network):
    """A network that phrases are projected into; it has nothing to say without one."""

    def __init__(self, net: Any, settings: dict[str, Any], prompts: int) -> None:
        super().__init__(net, TOGETHER, settings)
        self._prompts = prompts

    def learn(self, width: int, names: list[str]) -> None:
        self.prompt = nn.Linear(width, self._prompts)

    def _asked(self) -> Tensor:
        """(P, C)."""
        if self.spoken.words_PE is None:
            raise ConfigError(
                f"decoders.transformers: {type(self.net).__name__} has no classes of its own; ask it phrases"
            )
        return self.prompt(self.spoken.words_PE)


class OwlNetwork(Prompted):
    """OWL-ViT and OWLv2: image tokens are compared with phrases in the place of texts (Minderer et al. 2022, 2023). The
    text encoder is left out."""

    mean, std = _CLIP_MEAN, _CLIP_STD

    def __init__(self, net: Any, settings: dict[str, Any]) -> None:
        super().__init__(net, settings, int(net.config.text_config.hidden_size))
        self.multiple = int(net.config.vision_config.patch_size)
        held = net.owlv2 if hasattr(net, "owlv2") else net.owlvit
        for name in ("text_model", "text_projection", "visual_projection"):
            setattr(held, name, None)
        held.logit_scale.requires_grad_(False)
        for part in (getattr(net, "objectness_head", None), held.vision_model.embeddings):
            for parameter in part.parameters() if part is not None else ():
                parameter.requires_grad_(part is held.vision_model.embeddings)

    def loss(self, pixels_3HW: Tensor, truth: Things) -> Tensor:
        from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

        logits, boxes = self._seen(pixels_3HW)
        height, width = pixels_3HW.shape[1:]
        known = (truth.boxes_xyxy / truth.boxes_xyxy.new_tensor([width, height, width, height])).clamp(0, 1)
        centred = torch.cat([(known[:, :2] + known[:, 2:]) / 2, known[:, 2:] - known[:, :2]], 1)
        how = SimpleNamespace(num_labels=logits.shape[-1], **_SET_LOSS)
        labels = [{"class_labels": truth.labels, "boxes": centred}]
        return DeformableDetrForObjectDetectionLoss(logits, labels, logits.device, boxes, how)[0]

    def find(self, pixels_3HW: Tensor) -> Things:
        logits, boxes = self._seen(pixels_3HW)
        height, width = pixels_3HW.shape[1:]
        x, y, w, h = (boxes[0] * boxes.new_tensor([width, height, width, height])).unbind(-1)
        xyxy, count = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1), logits.shape[-1]
        labels = torch.arange(count, device=logits.device).repeat_interleave(len(xyxy))
        return Things(boxes_xyxy=xyxy.repeat(count, 1), labels=labels, scores=logits[0].sigmoid().T.flatten())

    def _seen(self, pixels_3HW: Tensor) -> tuple[Tensor, Tensor]:
        """(1, N, P) logits, and (1, N, 4) boxes, cxcywh_norm."""
        asked = self._asked()
        features = self.net.image_embedder(pixels_3HW[None], interpolate_pos_encoding=True)[0]
        tokens = features.flatten(1, 2)
        boxes = self.net.box_predictor(tokens, features, interpolate_pos_encoding=True)
        logits, _ = self.net.class_predictor(tokens, asked[None])
        return logits.float(), boxes.float()


class SamNetwork(Prompted):
    """SAM 2, and the tracker of SAM 3, as LISA and Sa2VA use it (Lai et al. 2024; Yuan et al. 2025): the phrase is a
    prompt of the mask decoder, and one mask shows all that it means. The picture's encoder stands still."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    masks = True

    def __init__(self, net: Any, settings: dict[str, Any]) -> None:
        super().__init__(net, settings, int(net.config.mask_decoder_config.hidden_size))
        decoder = net.mask_decoder
        decoder.dynamic_multimask_via_stability = False  # masks of other tokens are for clicks
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        for parameter in decoder.parameters():
            parameter.requires_grad_(True)
        for part in (decoder.conv_s0, decoder.conv_s1):
            part.requires_grad_(False)

    def loss(self, pixels_3HW: Tensor, truth: Things) -> Tensor:
        logits, sure, there = self._seen(pixels_3HW)
        assert truth.masks is not None, "a network of masks learns masks"
        whole = [truth.masks[truth.labels == p].any(0) for p in range(len(logits))]
        wanted = torch.stack(whole).to(logits)
        present = wanted.flatten(1).amax(1)
        pixels = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").flatten(1).mean(1)
        chance = logits.sigmoid().flatten(1)
        flat = wanted.flatten(1)
        dice = 1 - (2 * (chance * flat).sum(1) + 1) / (chance.sum(1) + flat.sum(1) + 1)
        hard = (logits > 0).flatten(1)
        iou = (hard & (flat > 0)).sum(1) / (hard | (flat > 0)).sum(1).clamp(min=1)
        quality = (sure - iou.detach().to(sure)).square()
        # Ravi et al. 2024 (SAM 2, appendix D.2): 20 : 1 : 1 : 1; what is not there has no mask to be good at.
        each = 20 * pixels + present * dice + present * quality
        return each.sum() + F.binary_cross_entropy_with_logits(there, present, reduction="sum")

    def find(self, pixels_3HW: Tensor) -> Things:
        logits, _, there = self._seen(pixels_3HW)
        masks = logits.sigmoid()
        return Things(
            boxes_xyxy=torch.stack([around(mask > 0.5) for mask in masks]), scores=there.sigmoid(), masks=masks,
            labels=torch.arange(len(masks), device=masks.device),
        )  # fmt: skip

    def _seen(self, pixels_3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(P, H, W) logits, (P,) expected IoU, and (P,) logits of there being anything."""
        side = int(self.net.prompt_encoder.image_embedding_size[0]) * int(
            self.net.config.prompt_encoder_config.patch_size
        )
        # Its places are those of a square of one size, into which every picture is stretched.
        square = F.interpolate(pixels_3HW[None], (side, side), mode="bilinear", align_corners=False, antialias=True)
        features = self.net.get_image_embeddings(square)
        asked = self._asked()[None, :, None]
        size = features[-1].shape[-2:]
        dense = self.net.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, *size)
        masks, sure, _, there = self.net.mask_decoder(
            image_embeddings=features[-1], image_positional_embeddings=self.net.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=asked, dense_prompt_embeddings=dense, multimask_output=False,
            high_resolution_features=features[:-1],
        )  # fmt: skip
        logits = F.interpolate(masks[0].float(), pixels_3HW.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        return logits, sure[0, :, 0].float(), there[0, :, 0].float()


# Kind of network -> how it is asked.
KINDS: dict[str, Callable[[Any, dict[str, Any]], Prompted]] = {
    "owlvit": OwlNetwork,
    "owlv2": OwlNetwork,
    "sam2": SamNetwork,
    "sam3_tracker": SamNetwork,
}
