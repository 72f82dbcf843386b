"""Any detector of MMDetection as a decoder: one-stage, two-stage, DETR-like, mask networks, and Grounding DINO.

Closed-set heads are asked by re-scoring their features against the links (``words``); Grounding DINO by its text input,
in which each phrase is one token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visionllm.core.errors import ConfigError
from visionllm.decoders.base import register_decoder
from visionllm.decoders.bridges.base import BoxBridge, Network, Things, built_layers, check_classes, serving
from visionllm.decoders.bridges.toolbox import (
    ToolboxConfig,
    build_openmmlab,
    counted,
    first,
    load_checkpoint,
    needed,
    plain,
    read_settings,
)  # fmt: skip
from visionllm.decoders.objects.tasks import DETECTION, SEGMENTATION

KEY = "decoders.mmdet"
# Grounding DINO's language model, and the layer that reads it: in published weights, and not in a network of phrases.
_MAP = "text_feat_map"
_LANGUAGE = ("language_model.", f"{_MAP}.")


class MMDetNetwork(Network):
    """A detector of MMDetection behind ``Network``."""

    precise = True

    def __init__(self, net: Any, settings: dict[str, Any]) -> None:
        super().__init__(net, classes_of(settings), settings)
        self.mean, self.std, self.swapped = normalisation(settings)
        self.masks = bool(getattr(net, "with_mask", False)) or first(settings, "num_things_classes") is not None
        self.multiple = int((settings.get("data_preprocessor") or {}).get("pad_size_divisor", 1)) or 1
        self.multiple = max(self.multiple, 32)
        self.queries = int(settings.get("num_queries") or 0)

    def loss(self, pixels_3HW: Tensor, truth: Things) -> Tensor:
        with self._learning():
            losses = self._losses(pixels_3HW, self._sample(pixels_3HW, truth))
        return self.net.parse_losses(losses)[0]

    def _losses(self, pixels_3HW: Tensor, sample: Any) -> dict[str, Any]:
        return self.net.loss(self._inputs(pixels_3HW), [sample])

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """In training mode: transformers of MMDetection have no losses in any other."""
        training = self.training
        self.train()
        try:
            yield
        finally:
            self.train(training)

    def find(self, pixels_3HW: Tensor) -> Things:
        (found,) = self.net.predict(self._inputs(pixels_3HW), [self._sample(pixels_3HW, None)], rescale=False)
        own = found.pred_instances
        return Things(
            boxes_xyxy=own.bboxes, labels=own.labels, scores=own.scores,
            masks=own.masks.float() if self.masks and "masks" in own else None,
        )  # fmt: skip

    def _inputs(self, pixels_3HW: Tensor) -> Tensor:
        return (pixels_3HW.flip(0) if self.swapped else pixels_3HW)[None]

    def _sample(self, pixels_3HW: Tensor, truth: Things | None) -> Any:
        structures = needed("mmdet.structures", KEY)
        height, width = (int(side) for side in pixels_3HW.shape[1:])
        sample = structures.DetDataSample(metainfo={
            "img_shape": (height, width), "ori_shape": (height, width), "batch_input_shape": (height, width),
            "pad_shape": (height, width), "scale_factor": (1.0, 1.0), "img_id": 0,
        })  # fmt: skip
        if truth is not None:
            instances = needed("mmengine.structures", KEY).InstanceData(bboxes=truth.boxes_xyxy, labels=truth.labels)
            if truth.masks is not None:
                bitmaps = needed("mmdet.structures.mask", KEY).BitmapMasks
                instances.masks = bitmaps(truth.masks.cpu().numpy().astype("uint8"), height, width)
            sample.gt_instances = instances
            sample.ignored_instances = needed("mmengine.structures", KEY).InstanceData(
                bboxes=truth.boxes_xyxy[:0], labels=truth.labels[:0]
            )
        return sample


class GroundingNetwork(MMDetNetwork):
    """Grounding DINO of MMDetection: phrases stand where its language model's words stood.

    A phrase is one token that sees no other; denoising queries begin as phrases too.
    """

    def learn(self, width: int, names: list[str]) -> None:
        # Its only layer of classes is the table of denoising queries.
        if names:
            super().learn(width, names)
        self.net.text_feat_map = nn.Linear(width, self.net.embed_dims)

    def _losses(self, pixels_3HW: Tensor, sample: Any) -> dict[str, Any]:
        text = self._text()
        count, most = text["embedded"].shape[1], self.net.bbox_head.max_text_len
        maps = nn.functional.one_hot(sample.gt_instances.labels, most).float()
        sample.gt_instances.positive_maps = maps
        sample.gt_instances.text_token_mask = torch.arange(count, device=maps.device).ge(0)[None].repeat(len(maps), 1)
        heads = self.net.forward_transformer(self.net.extract_feat(self._inputs(pixels_3HW)), text, [sample])
        return self.net.bbox_head.loss(**heads, batch_data_samples=[sample])

    def find(self, pixels_3HW: Tensor) -> Things:
        sample, text = self._sample(pixels_3HW, None), self._text()
        sample.token_positive_map = {p + 1: [p] for p in range(text["embedded"].shape[1])}
        heads = self.net.forward_transformer(self.net.extract_feat(self._inputs(pixels_3HW)), text, [sample])
        (own,) = self.net.bbox_head.predict(**heads, rescale=False, batch_data_samples=[sample])
        return Things(boxes_xyxy=own.bboxes, labels=own.labels, scores=own.scores)

    def _text(self) -> dict[str, Tensor]:
        words_PE = self.spoken.words_PE
        if words_PE is None:
            raise ConfigError(f"{KEY}: Grounding DINO has no classes of its own; ask it phrases")
        count, device = len(words_PE), words_PE.device
        return {
            "embedded": self.net.text_feat_map(words_PE)[None],
            "text_token_mask": torch.ones(1, count, dtype=torch.bool, device=device),
            "position_ids": torch.zeros(1, count, dtype=torch.long, device=device),
            "masks": torch.eye(count, dtype=torch.bool, device=device)[None],
        }


class _NoLanguage(nn.Module):
    """What Grounding DINO asks of a language model while it is built: the width of its words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.language_backbone = nn.Module()
        self.language_backbone.body = nn.Module()
        self.language_backbone.body.language_dim = width


@register_decoder("mmdet")
class MMDetDecoder(BoxBridge):
    """A detector of MMDetection under super links."""

    tasks = serving("mmdet", DETECTION, SEGMENTATION)
    Config = ToolboxConfig

    @classmethod
    def from_config(cls, config: ToolboxConfig, link_width: int) -> MMDetDecoder:
        settings = read_settings(config, KEY)
        check_classes(classes_of(settings), f"{KEY}.network")
        net = build(settings)
        if config.checkpoint is not None:
            load_checkpoint(net, config.checkpoint, KEY, without=_LANGUAGE if hasattr(net, _MAP) else ())
        kind = GroundingNetwork if hasattr(net, _MAP) else MMDetNetwork
        network = kind(net, settings)
        layers = built_layers(partial(_with_classes, settings), network.classes)
        return cls(
            network, layers=layers, link_width=link_width, longest=config.longest, enlarge=config.enlarge,
            width=config.width, threshold=config.threshold,
        )  # fmt: skip


def build(settings: dict[str, Any]) -> Any:
    """A detector from its keys, without a download.

    Raises:
        ConfigError: a key is wrong.
    """
    own = dict(settings)
    if "language_model" in own:
        models = needed("mmdet.registry", KEY).MODELS
        models.register_module("VisionLLMNoLanguage", force=True, module=_NoLanguage)
        own["language_model"] = {"type": "VisionLLMNoLanguage", "width": 1}
    net = build_openmmlab("mmdet", own, KEY)
    if hasattr(net, _MAP):
        # Until it learns phrases it has nothing to read.
        setattr(net, _MAP, nn.Identity())
    return net


def classes_of(settings: dict[str, Any]) -> int:
    """How many classes a network has by its keys."""
    things = first(settings, "num_things_classes")
    count = things if things is not None else first(settings, "num_classes")
    if not isinstance(count, int):
        raise ConfigError(f"{KEY}.network: no num_classes in it")
    if first(settings, "num_stuff_classes"):
        raise ConfigError(f"{KEY}.network: num_stuff_classes must be 0: phrases are things, and stuff is one of them")
    return count


def normalisation(settings: dict[str, Any]) -> tuple[Any, Any, bool]:
    """Mean and deviation on RGB in [0, 1], and whether the network reads BGR."""
    own = settings.get("data_preprocessor") or {}
    mean, std = own.get("mean") or [0.0] * 3, own.get("std") or [255.0] * 3
    swapped = not own.get("bgr_to_rgb", False)
    order = slice(None, None, -1) if swapped else slice(None)
    return tuple(v / 255 for v in mean[order]), tuple(v / 255 for v in std[order]), swapped


def _with_classes(settings: dict[str, Any], count: int) -> nn.Module:
    return build(plain(counted(settings, {"num_classes": count, "num_things_classes": count})))
