"""Any meta-architecture of Detectron2 as a decoder: Faster and Mask R-CNN, RetinaNet, panoptic FPN's instances and what
packages have registered (Mask2Former and its kin), through its public API alone (``build_model``, ``Instances``,
``EventStorage``).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field
from torch import Tensor, nn

from visionllm.core.errors import ConfigError
from visionllm.decoders.base import register_decoder
from visionllm.decoders.bridges.base import BoxBridge, Network, Things, around, built_layers, check_classes, serving
from visionllm.decoders.bridges.toolbox import ToolboxConfig, load_checkpoint, needed, plain
from visionllm.decoders.objects.tasks import DETECTION, SEGMENTATION

KEY = "decoders.detectron2"
# Parts that may say how many classes there are; of Detectron2's own architectures it is one, whatever the others say.
_PARTS = ("ROI_HEADS", "RETINANET", "SEM_SEG_HEAD")
_PART = {"GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS", "RetinaNet": "RETINANET"}


class Detectron2Config(ToolboxConfig):
    """A network of Detectron2, or of a package that builds on it."""

    mask_tensors: bool = Field(
        False, description="whether it learns from masks as one tensor (Mask2Former, MaskDINO), not as BitMasks"
    )


class Detectron2Network(Network):
    """A model of Detectron2 behind ``Network``. It normalises for itself: it gets pixels in 0..255."""

    precise = True
    std = (1 / 255, 1 / 255, 1 / 255)

    def __init__(self, net: Any, classes: int, settings: dict[str, Any], *, mask_tensors: bool = False) -> None:
        super().__init__(net, classes, settings)
        config, self.mask_tensors = configuration(settings, classes), mask_tensors
        self.masks = bool(config.MODEL.MASK_ON)
        self.swapped = config.INPUT.FORMAT == "BGR"

    def loss(self, pixels_3HW: Tensor, truth: Things) -> Tensor:
        structures = needed("detectron2.structures", KEY)
        size = tuple(int(side) for side in pixels_3HW.shape[1:])
        own = structures.Instances(size)
        own.gt_boxes, own.gt_classes = structures.Boxes(truth.boxes_xyxy), truth.labels
        if truth.masks is not None:
            own.gt_masks = truth.masks if self.mask_tensors else structures.BitMasks(truth.masks)
        training = self.training
        self.train()
        try:
            # Its parts report into a storage, and fail where there is none.
            with needed("detectron2.utils.events", KEY).EventStorage(0):
                losses = self.net([{"image": self._inputs(pixels_3HW), "instances": own}])
        finally:
            self.train(training)
            # RetinaNet divides by a moving average of its matches; a picture does not hang on those before it.
            vars(self.net).pop("loss_normalizer", None)
        return torch.stack(list(losses.values())).sum()

    def find(self, pixels_3HW: Tensor) -> Things:
        height, width = (int(side) for side in pixels_3HW.shape[1:])
        (found,) = self.net([{"image": self._inputs(pixels_3HW), "height": height, "width": width}])
        if "instances" not in found:
            raise ConfigError(
                f"{KEY}.network: it gives {', '.join(found) or 'nothing'}, and no instances; a key of its own says so "
                "(in Mask2Former MODEL.MASK_FORMER.TEST.INSTANCE_ON)"
            )
        own = found["instances"]
        masks = own.pred_masks.float() if self.masks and own.has("pred_masks") else None
        boxes_xyxy = own.pred_boxes.tensor
        if masks is not None and len(masks) and not boxes_xyxy.any():
            # Mask2Former leaves them out.
            boxes_xyxy = torch.stack([around(mask > 0.5) for mask in masks])
        return Things(boxes_xyxy=boxes_xyxy, labels=own.pred_classes, scores=own.scores, masks=masks)

    def _inputs(self, pixels_3HW: Tensor) -> Tensor:
        return pixels_3HW.flip(0) if self.swapped else pixels_3HW


@register_decoder("detectron2")
class Detectron2Decoder(BoxBridge):
    """A model of Detectron2 under super links."""

    tasks = serving("detectron2", DETECTION, SEGMENTATION)
    Config = Detectron2Config

    @classmethod
    def from_config(cls, config: Detectron2Config, link_width: int) -> Detectron2Decoder:
        settings = config.network if config.network is not None else read(config.config or "")
        classes = classes_of(settings)
        check_classes(classes, f"{KEY}.network")
        net = build(settings, classes)
        if config.checkpoint is not None:
            load_checkpoint(net, config.checkpoint, KEY, without=("sem_seg_head.",) if _panoptic(settings) else ())
        return cls(
            Detectron2Network(net, classes, settings, mask_tensors=config.mask_tensors),
            layers=built_layers(partial(build, settings), classes),
            link_width=link_width, longest=config.longest, enlarge=config.enlarge, width=config.width,
            threshold=config.threshold,
        )  # fmt: skip


def read(name: str) -> dict[str, Any]:
    """Keys of a YAML configuration of Detectron2, read as plain values.

    Raises:
        ConfigError: the file is not there, is no YAML, is code, or builds on another file.
    """
    path = Path(name)
    if path.suffix == ".py":
        raise ConfigError(f"{KEY}.config: {path} is a lazy configuration, which is code; give its keys in network")
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{KEY}.config: {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(held, dict) or "_BASE_" in held:
        raise ConfigError(f"{KEY}.config: {path}: write its base into it; one file holds all keys")
    return plain(held)


def configuration(settings: dict[str, Any], classes: int) -> Any:
    """The settings over Detectron2's defaults, for so many classes."""
    config = needed("detectron2.config", KEY)
    own = config.get_cfg()
    if _kind(settings) not in _PART:
        # Its package has keys of its own; in a complete configuration they stand with all their values.
        own.set_new_allowed(True)
    try:
        own.merge_from_other_cfg(config.CfgNode(settings))
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"{KEY}.network: {' '.join(str(error).split())[:300]}") from None
    own.MODEL.WEIGHTS, own.MODEL.DEVICE, own.VIS_PERIOD = "", "cpu", 0
    if _panoptic(settings):
        # It is an R-CNN with a head for stuff, and no link asks for stuff.
        own.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    for part in _PARTS:
        own.MODEL[part].NUM_CLASSES = classes
    return own


def classes_of(settings: dict[str, Any]) -> int:
    """How many classes a network has by its keys; Detectron2's default where they do not say."""
    model, kind = settings.get("MODEL") or {}, _kind(settings)
    stated = {part: (model.get(part) or {}).get("NUM_CLASSES") for part in _PARTS}
    held = {int(count) for part, count in stated.items() if count is not None and _PART.get(kind, part) == part}
    if len(held) > 1:
        raise ConfigError(f"{KEY}.network: NUM_CLASSES is {sorted(held)} in different parts; make them one")
    return next(iter(held), 80)


def _kind(settings: dict[str, Any]) -> str:
    return str((settings.get("MODEL") or {}).get("META_ARCHITECTURE", "GeneralizedRCNN"))


def _panoptic(settings: dict[str, Any]) -> bool:
    return _kind(settings) == "PanopticFPN"


def build(settings: dict[str, Any], classes: int) -> nn.Module:
    """A model from its keys, without weights.

    Raises:
        ConfigError: no such part is registered, or a key of its own is missing.
    """
    try:
        return needed("detectron2.modeling", KEY).build_model(configuration(settings, classes))
    except (KeyError, AttributeError) as error:
        raise ConfigError(
            f"{KEY}.network: {' '.join(str(error).split())[:300]}; if it is of another package, import that first, and "
            "give all keys, as cfg.dump() writes them"
        ) from None
