"""Our own decoders made small, in all their variants: what the kit runs on where a decoder of ours is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from visionllm.core.arrays import object_array
from visionllm.core.masks import Mask
from visionllm.core.poses import Pose, Skeleton
from visionllm.core.sample import Picture, PictureTarget, Sample
from visionllm.testing import toolboxes
from visionllm.testing.bench import Case
from visionllm.testing.small import (
    boxed,
    tiny_d_fine,
    tiny_detr,
    tiny_diffusion,
    tiny_mask2former,
    tiny_network,
    tiny_owlv2,
    tiny_rf_detr,
    tiny_rt_detr,
    tiny_sam2,
    tiny_sam3,
    tiny_vitpose,
)  # fmt: skip

_POINTS = ("nose", "left paw", "tail")


def _objects(*, masks: bool = False, poses: bool = False, **network: Any) -> Case:
    def sample(
        phrases: tuple[str, ...], size: tuple[int, int] = (80, 60), seed: int = 0, empty: bool = False
    ) -> Sample:
        rng = np.random.default_rng(seed)
        low = rng.random((3, 2)) * np.array(size) * 0.5
        boxes = np.concatenate([low, low + np.array(size) * (0.2 + 0.25 * rng.random((3, 2)))], 1)
        named = rng.integers(len(phrases), size=3)
        table = () if empty else tuple((int(p), *box) for p, box in zip(named, boxes, strict=True))
        made = boxed(phrases=phrases, boxes=table, size=size, seed=seed)
        # Every other picture is asked for boxes only: all tasks meet in a batch.
        makers = [_posed] * poses + [_outlined] * masks
        return makers[seed // 2 % len(makers)](made) if makers and seed % 2 == 0 else made

    config: dict[str, Any] = {"network": tiny_network(**network), "longest": 96, "group_norm": 4, "denoising": 12}
    if masks:
        config |= {"mask_width": 16, "mask_cells": 8 if poses else None}
    if poses:
        config |= {"pose_layers": 2, "choice_width": 8}
    return Case(config=config, sample=sample, options={"threshold": 0.0})


def _diffusion(task: str, reads: int, vae: bool = True) -> Case:
    # Nothing is left out: a phrase that is has nothing to learn.
    config = {"network": tiny_diffusion(reads, vae=vae), "size": 16, "outputs": 5, "mapper_heads": 4, "drop": 0.0}
    return Case(config=config, sample=partial(_drawn, task), options={"steps": 2})


def _bridged(network: Callable[[], dict[str, Any]], *, masks: bool = False) -> Case:
    made = _objects()

    def sample(phrases: tuple[str, ...], **how: Any) -> Sample:
        plain = made.sample(phrases, **how)
        return _outlined(plain) if masks else plain

    return Case(config={"network": network(), "longest": 96, "width": 8}, sample=sample, options={"threshold": 0.0})


def _topdown(network: Callable[[], dict[str, Any]]) -> Case:
    made = _bridged(tiny_rt_detr)
    config = {"network": network(), "width": 8, "threshold": 0.0, "boxes": {"transformers": made.config}}
    return Case(
        config=config, sample=lambda phrases, **how: _posed(made.sample(phrases, **how)), options={"threshold": 0.0}
    )


def _restoration() -> Case:
    config = {"width": 8, "blocks": 2, "packing": 2, "condition": 4}
    return Case(config=config, sample=partial(_drawn, "super_resolution", times=2), options={})


# Decoder, and words that tell its variants apart -> its case; a decoder's first is the one it is checked by.
VARIANTS: dict[str, Callable[[], Case]] = {
    "objects": partial(_objects, masks=True, poses=True),
    "objects with boxes alone": _objects,
    "objects of grounding-dino": partial(_objects, kind="grounding-dino"),
    "objects with heads of their own": partial(_objects, decoder_bbox_embed_share=False, decoder_cls_embed_share=False),
    "objects with masks": partial(_objects, masks=True),
    "objects with poses": partial(_objects, poses=True),
    "generation": partial(_diffusion, "generation", 1),
    "generation of pixels": partial(_diffusion, "generation", 1, vae=False),
    "editing": partial(_diffusion, "editing", 2),
    "restoration": _restoration,
    "transformers": partial(_bridged, tiny_rt_detr),
    "transformers of d-fine": partial(_bridged, tiny_d_fine),
    "transformers of detr": partial(_bridged, tiny_detr),
    "transformers of deformable detr": partial(_bridged, partial(tiny_detr, "deformable_detr")),
    "transformers of rf-detr": partial(_bridged, tiny_rf_detr),
    "transformers of masks": partial(_bridged, tiny_mask2former, masks=True),
    "transformers of owlv2": partial(_bridged, tiny_owlv2),
    "transformers of sam2": partial(_bridged, tiny_sam2, masks=True),
    "transformers of sam3": partial(_bridged, tiny_sam3, masks=True),
    "mmdet": partial(_bridged, toolboxes.mmdet_dino),
    "mmdet of grounding-dino": partial(_bridged, toolboxes.mmdet_grounding),
    "mmdet of one stage": partial(_bridged, toolboxes.mmdet_retinanet),
    "mmdet of two stages": partial(_bridged, toolboxes.mmdet_rcnn),
    "mmdet of mask r-cnn": partial(_bridged, partial(toolboxes.mmdet_rcnn, masks=True), masks=True),
    "mmdet of mask2former": partial(_bridged, toolboxes.mmdet_mask2former, masks=True),
    "detectron2": partial(_bridged, toolboxes.detectron2_retinanet),
    "detectron2 of two stages": partial(_bridged, toolboxes.detectron2_rcnn),
    "detectron2 of mask r-cnn": partial(_bridged, partial(toolboxes.detectron2_rcnn, masks=True), masks=True),
    "detectron2 of panoptic fpn": partial(
        _bridged, partial(toolboxes.detectron2_rcnn, masks=True, stuff=True), masks=True
    ),
    "mmpose": partial(_topdown, toolboxes.mmpose_heatmap),
    "mmpose of simcc": partial(_topdown, toolboxes.mmpose_simcc),
    "vitpose": partial(_topdown, tiny_vitpose),
}


def _drawn(
    task: str, phrases: tuple[str, ...], size: tuple[int, int] = (80, 60), seed: int = 0, empty: bool = False,
    times: int = 1,
) -> Sample:  # fmt: skip
    """A sample asked for pictures: its own with every colour shifted, by another amount for each phrase, and so many
    times as large."""
    sample = boxed(phrases=phrases, boxes=(), size=size, seed=seed)
    pixels = sample.pictures[0].pixels.repeat(times, 0).repeat(times, 1)
    made = tuple(
        Picture(pixels=np.zeros_like(pixels) if empty else pixels + np.uint8(16 * i % 256)) for i in range(len(phrases))
    )
    return sample.with_turns(replace(sample.turns[0], task=task, target=PictureTarget(pictures=made)))


def _outlined(sample: Sample) -> Sample:
    """The sample asked for masks: the ellipse in each box."""
    turn, size = sample.turns[0], sample.pictures[0].size
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    masks = [
        Mask.of(((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1)
        for x1, y1, x2, y2 in turn.target.boxes_xyxy
    ]
    target = replace(turn.target, masks=object_array(masks))
    return sample.with_turns(replace(turn, task="segmentation", target=target))


def _posed(sample: Sample) -> Sample:
    """The sample asked for keypoints: three on the diagonal of each box, and one that its things do not have."""
    turn = sample.turns[0]
    skeleton = Skeleton(name="stick", keypoints=_POINTS)
    share = np.array([0.2, 0.5, 0.9], np.float32)[:, None]
    poses = [
        Pose(
            points_xy=box[:2] + share * (box[2:] - box[:2]), visibility=np.array([2, 1, 0], np.int8), skeleton=skeleton
        )
        for box in turn.target.boxes_xyxy
    ]
    target = replace(turn.target, poses=object_array(poses))
    parts = tuple((*_POINTS, "wing")[: 1 + i % 4] for i in range(len(turn.phrases)))
    return sample.with_turns(replace(turn, task="pose", parts=parts, target=target))
