"""The public names of Detectron2 that its bridge speaks to, with one small dense detector behind them.

Detectron2 publishes no package for current versions of torch. Where it is missing, this shows that the bridge keeps to
the calls it is written against; where it is installed, the real one is tested in its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class CfgNode(dict):
    """Nested settings by attribute."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in (values or {}).items()})
        self.__dict__["new_allowed"] = False

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def set_new_allowed(self, allowed: bool) -> None:
        self.__dict__["new_allowed"] = allowed
        for value in self.values():
            if isinstance(value, CfgNode):
                value.set_new_allowed(allowed)

    def merge_from_other_cfg(self, other: CfgNode) -> None:
        for key, value in other.items():
            if key not in self and not self.new_allowed:
                raise KeyError(f"Non-existent config key: {key}")
            if key in self and isinstance(value, CfgNode):
                self[key].merge_from_other_cfg(value)
            else:
                self[key] = value


def get_cfg() -> CfgNode:
    return CfgNode({
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN", "MASK_ON": False, "WEIGHTS": "x", "DEVICE": "cuda", "WIDTH": 16,
            "ROI_HEADS": {"NUM_CLASSES": 80}, "RETINANET": {"NUM_CLASSES": 80}, "SEM_SEG_HEAD": {"NUM_CLASSES": 54},
            "PIXEL_MEAN": [103.53, 116.28, 123.675], "PIXEL_STD": [57.0, 57.0, 58.0],
        },
        "INPUT": {"FORMAT": "BGR"},
    })  # fmt: skip


class Boxes:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Instances:
    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self.image_size = image_size
        self.__dict__.update(fields)

    def has(self, name: str) -> bool:
        return name in self.__dict__


_STORAGES: list[int] = []


class EventStorage:
    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter

    def __enter__(self) -> EventStorage:
        _STORAGES.append(self.iter)
        return self

    def __exit__(self, *error: Any) -> None:
        _STORAGES.pop()


class Registry(dict[str, Any]):
    def register(self, made: Any) -> Any:
        self[made.__name__] = made
        return made

    def get(self, name: str, *_: Any) -> Any:
        if name not in self:
            raise KeyError(f"No object named '{name}' found in 'META_ARCH' registry!")
        return self[name]


META_ARCH_REGISTRY = Registry()


def build_model(cfg: CfgNode) -> nn.Module:
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


class Dense(nn.Module):
    """Each cell of 16 pixels scores classes and a background, and has a box of each class."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        assert cfg.MODEL.DEVICE == "cpu"
        width, self.classes = cfg.MODEL.WIDTH, cfg.MODEL.ROI_HEADS.NUM_CLASSES
        self.register_buffer("mean", torch.tensor(cfg.MODEL.PIXEL_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(cfg.MODEL.PIXEL_STD)[:, None, None])
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=4), nn.GELU(), nn.Conv2d(width, width, 4, stride=4), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
        )  # fmt: skip
        self.cls_score, self.bbox_pred = nn.Linear(width, self.classes + 1), nn.Linear(width, 4 * self.classes)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        (given,) = batched_inputs
        image = given["image"]
        assert image.max() > 2 or not image.any(), "pixels are expected in 0..255"
        values = self.body(((image - self.mean) / self.std)[None])[0]
        height, width = values.shape[1:]
        cells = values.flatten(1).T
        logits, boxes = self.cls_score(cells), self.bbox_pred(cells).unflatten(-1, (self.classes, 4))
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        middle = torch.stack([x.flatten(), y.flatten()], -1).to(cells)[:, None] * 16
        xyxy = torch.cat([middle - 16 * boxes[..., :2].exp(), middle + 16 * boxes[..., 2:].exp()], -1)
        if self.training:
            assert _STORAGES, "Detectron2 wants an EventStorage"
            return self._losses(logits, xyxy, middle[:, 0], given["instances"])
        limit = xyxy.new_tensor([given["width"], given["height"]]).repeat(2)
        scores, classes = logits.softmax(-1)[:, :-1].max(-1)
        own = xyxy[torch.arange(len(xyxy)), classes].clamp(min=0).minimum(limit)
        fields = {"pred_boxes": Boxes(own), "scores": scores, "pred_classes": classes}
        return [{"instances": Instances((given["height"], given["width"]), **fields)}]

    def _losses(self, logits: Tensor, xyxy: Tensor, middle: Tensor, true: Instances) -> dict[str, Tensor]:
        labels = torch.full((len(logits),), self.classes, device=logits.device)
        far = logits.sum() * 0 + xyxy.sum() * 0
        for box, name in zip(true.gt_boxes.tensor, true.gt_classes, strict=True):
            cell = (middle - (box[:2] + box[2:]) / 2).square().sum(1).argmin()
            labels[cell] = name
            far = far + (xyxy[cell, name] - box).abs().mean() / 16
        return {"loss_cls": nn.functional.cross_entropy(logits, labels), "loss_box_reg": far}


META_ARCH_REGISTRY["GeneralizedRCNN"] = Dense


class Queries(nn.Module):
    """An architecture of another package, after Mask2Former's manner: queries that score classes and a background, keys
    of its own, masks as one tensor, no boxes, and another name for its scores in its first version."""

    _version = 2

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        width, self.classes = 16, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.instances = cfg.MODEL.QUERIES.INSTANCE_ON
        self.body = nn.Sequential(nn.Conv2d(3, width, 4, stride=4), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))
        self.queries = nn.Embedding(cfg.MODEL.QUERIES.COUNT, width)
        self.class_embed = nn.Linear(width, self.classes + 1)

    def _load_from_state_dict(self, held: dict[str, Tensor], prefix: str, told: dict[str, Any], *rest: Any) -> None:
        if told.get("version", 1) < 2:
            for name in [name for name in held if name.startswith(f"{prefix}class_embed")]:
                held[name.replace("class_embed", "scores")] = held.pop(name)
        super()._load_from_state_dict(held, prefix, told, *rest)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        (given,) = batched_inputs
        cells = self.body((given["image"][None] - 128) / 57)[0]
        masks = torch.einsum("qc,chw->qhw", self.queries.weight, cells)
        seen = masks.flatten(1).softmax(1) @ cells.flatten(1).T
        logits = self.class_embed(self.queries.weight + seen)
        if self.training:
            return self._losses(logits, masks, given["instances"])
        if not self.instances:
            return [{"sem_seg": masks}]
        structures = importlib.import_module("detectron2.structures")
        size = (given["height"], given["width"])
        whole = nn.functional.interpolate(masks[None], size, mode="bilinear")[0]
        scores, places = logits.softmax(-1)[:, :-1].flatten().topk(20)
        whole = whole[places // self.classes]
        fields = {"scores": scores, "pred_classes": places % self.classes, "pred_masks": (whole > 0).float(),
                  "pred_boxes": structures.Boxes(torch.zeros(len(whole), 4))}  # fmt: skip
        return [{"instances": structures.Instances(size, **fields)}]

    def _losses(self, logits: Tensor, masks: Tensor, true: Any) -> dict[str, Tensor]:
        labels = torch.full((len(logits),), self.classes)
        count = min(len(true.gt_classes), len(labels))
        labels[:count] = true.gt_classes[:count]
        losses = {"loss_ce": nn.functional.cross_entropy(logits, labels), "loss_mask": masks.sum() * 0}
        if count:
            wanted = nn.functional.interpolate(true.gt_masks[None, :count].float(), masks.shape[1:])[0]
            losses["loss_mask"] = nn.functional.binary_cross_entropy_with_logits(masks[:count], wanted)
        return losses


def modules() -> dict[str, ModuleType]:
    """What ``sys.modules`` holds while it stands in."""
    parts: dict[str, Any] = {
        "detectron2": {},
        "detectron2.config": {"get_cfg": get_cfg, "CfgNode": CfgNode},
        "detectron2.modeling": {"build_model": build_model, "META_ARCH_REGISTRY": META_ARCH_REGISTRY},
        "detectron2.structures": {"Boxes": Boxes, "Instances": Instances, "BitMasks": torch.as_tensor},
        "detectron2.utils": {},
        "detectron2.utils.events": {"EventStorage": EventStorage},
    }
    made = {}
    for name, held in parts.items():
        made[name] = ModuleType(name)
        made[name].__dict__.update(held)
    return made


@pytest.fixture
def detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2, or what stands in for it."""
    if importlib.util.find_spec("detectron2") is None:
        for name, module in modules().items():
            monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def queries(detectron2: None) -> None:
    """What a package registers that builds on Detectron2."""
    registry = importlib.import_module("detectron2.modeling").META_ARCH_REGISTRY
    if "Queries" not in registry:
        registry.register(Queries)
