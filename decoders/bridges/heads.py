"""Networks of transformers as a decoder: RT-DETR, D-FINE, DETR, Mask2Former and their kin, OWLv2, SAM 2 and 3.

Any model that ``AutoModelForObjectDetection`` or ``AutoModelForUniversalSegmentation`` builds, that takes ``labels``,
and that holds its classes in layers of its own; and those that are asked by an embedding (``prompted``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from visionllm.core.errors import CheckpointError, ConfigError
from visionllm.core.networks import use_group_norm
from visionllm.core.pixels import IMAGENET_MEAN, IMAGENET_STD
from visionllm.decoders.base import register_decoder
from visionllm.decoders.bridges.base import (
    BoxBridge,
    BridgeConfig,
    Network,
    Things,
    around,
    built_layers,
    check_classes,
    serving,
)  # fmt: skip
from visionllm.decoders.bridges.prompted import KINDS
from visionllm.decoders.bridges.toolbox import Published
from visionllm.decoders.objects.tasks import DETECTION, SEGMENTATION


class HeadConfig(Published, BridgeConfig):
    """A network of transformers, and how it is asked."""

    group_norm: PositiveInt | None = Field(
        None, description="groups of the normalisation in the place of batch normalisation, for a network from scratch"
    )


class HeadNetwork(Network):
    """A model of transformers behind ``Network``."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, net: Any, settings: dict[str, Any]) -> None:
        super().__init__(net, int(net.config.num_labels), settings)
        self.masks = hasattr(net, "class_predictor")
        # Patches, and windows of them, are cut without remainder.
        seeing = getattr(net.config, "backbone_config", None) or net.config
        patch = getattr(seeing, "patch_size", None)
        if isinstance(patch, int) and self.multiple % (cut := patch * getattr(seeing, "num_windows", 1)):
            self.multiple = cut
        counts = (getattr(net.config, key, None) or 0 for key in ("num_queries", "two_stage_num_proposals"))
        self.queries = max(counts)
        for name, parameter in net.named_parameters():
            # Stands for patches that are hidden when a backbone is trained alone.
            parameter.requires_grad_(parameter.requires_grad and not name.endswith("mask_token"))

    def loss(self, pixels_3HW: Tensor, truth: Things) -> Tensor:
        height, width = pixels_3HW.shape[1:]
        if self.masks:
            assert truth.masks is not None, "a network of masks learns masks"
            own = {"mask_labels": [truth.masks.float()], "class_labels": [truth.labels]}
            return self.net(pixel_values=pixels_3HW[None], **own).loss.sum()
        scale = truth.boxes_xyxy.new_tensor([width, height, width, height])
        boxes = (truth.boxes_xyxy / scale).clamp(0, 1)
        centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        labels = [{"class_labels": truth.labels, "boxes": centred}]
        return self.net(pixel_values=pixels_3HW[None], labels=labels).loss

    def find(self, pixels_3HW: Tensor) -> Things:
        out = self.net(pixel_values=pixels_3HW[None])
        logits_NK = out.class_queries_logits[0] if self.masks else out.logits[0]
        # With a class more than there are, the last is nothing at all, and classes share one probability.
        single = logits_NK.shape[1] > self.classes
        scores_NK = logits_NK.softmax(-1)[:, :-1] if single else logits_NK.sigmoid()
        scores, labels = scores_NK.T.flatten(), torch.arange(self.classes, device=scores_NK.device)
        labels = labels.repeat_interleave(len(scores_NK))
        height, width = pixels_3HW.shape[1:]
        if not self.masks:
            x, y, w, h = (out.pred_boxes[0] * out.pred_boxes.new_tensor([width, height, width, height])).unbind(-1)
            boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
            return Things(boxes_xyxy=boxes.repeat(self.classes, 1), labels=labels, scores=scores)
        logits = nn.functional.interpolate(
            out.masks_queries_logits, (height, width), mode="bilinear", align_corners=False
        )[0]
        masks = logits.sigmoid()
        # How sure the pixels are of a mask counts too (Cheng et al. 2022, Mask2Former, appendix).
        inside = (masks > 0.5).float()
        sure = (masks * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
        boxes = torch.stack([around(mask) for mask in inside > 0])
        return Things(
            boxes_xyxy=boxes.repeat(self.classes, 1), labels=labels, scores=scores * sure.repeat(self.classes),
            masks=masks[torch.arange(len(masks), device=masks.device).repeat(self.classes)],
        )  # fmt: skip


@register_decoder("transformers")
class TransformersDecoder(BoxBridge):
    """A detector or mask network of transformers under super links."""

    tasks = serving("transformers", DETECTION, SEGMENTATION)
    Config = HeadConfig

    @classmethod
    def from_config(cls, config: HeadConfig, link_width: int) -> TransformersDecoder:
        if config.pretrained is not None:
            if config.group_norm:
                raise ConfigError(
                    "decoders.transformers.group_norm: is for a network from scratch, and published weights hold "
                    "their batch normalisation; leave it out"
                )
            net = _load(config.pretrained)
        else:
            net = _build(config.network or {})
            if config.group_norm:
                use_group_norm(net, config.group_norm, path="decoders.transformers.group_norm")
        settings = net.config.to_diff_dict() | _kept(net.config)
        network: Network
        if net.config.model_type in KINDS:
            network, layers = KINDS[net.config.model_type](net, settings), []
        else:
            network = HeadNetwork(net, settings)
            check_classes(network.classes, "decoders.transformers.network.num_labels")
            layers = built_layers(partial(_with_labels, settings), network.classes)
        return cls(
            network, layers=layers,
            link_width=link_width, longest=config.longest, enlarge=config.enlarge, width=config.width,
            threshold=config.threshold,
        )  # fmt: skip


def _auto() -> list[Any]:
    from transformers import (
        AutoModelForMaskGeneration,
        AutoModelForObjectDetection,
        AutoModelForUniversalSegmentation,
        AutoModelForZeroShotObjectDetection,
    )  # fmt: skip

    return [
        AutoModelForObjectDetection, AutoModelForUniversalSegmentation, AutoModelForZeroShotObjectDetection,
        AutoModelForMaskGeneration,
    ]  # fmt: skip


def _build(settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    values = dict(settings)
    kind = values.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **values)
        auto = next(one for one in _auto() if type(config) in one._model_mapping)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"decoders.transformers.network: {str(error).splitlines()[0]}") from None
    except StopIteration:
        raise ConfigError(
            f"decoders.transformers.network.model_type: {kind!r} is no detector or mask network of transformers"
        ) from None
    net = auto.from_config(config)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            # transformers begins those of RT-DETR near nought, where no signal passes: it never learns from scratch.
            layer.reset_parameters()
    return net


def _with_labels(settings: dict[str, Any], count: int) -> nn.Module:
    kept = {key: value for key, value in settings.items() if key not in ("id2label", "label2id")}
    return _build({**kept, "num_labels": count})


def _load(name: str) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
        auto = next(one for one in _auto() if type(config) in one._model_mapping)
        return auto.from_pretrained(name, use_safetensors=True, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"decoders.transformers.pretrained: {name}: {str(error).splitlines()[0]}") from None
    except StopIteration:
        raise ConfigError(
            f"decoders.transformers.pretrained: {name} holds no detector or mask network of transformers"
        ) from None


def _kept(config: Any) -> dict[str, Any]:
    """What the difference from a default leaves out and a network cannot be built without."""
    return {"model_type": config.model_type, "num_labels": int(config.num_labels)}
