"""Results and samples in the types of other toolboxes, for their metrics, drawings and training.

A toolbox is imported when it is asked for. Boxes are xyxy in pixels of the picture, as everywhere here; keypoints go
from pixel edges to the middles of pixels that those toolboxes count from.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from visionllm.core.errors import ConfigError
from visionllm.core.sample import Sample

if TYPE_CHECKING:
    from visionllm.core.detections import Detections


def result_to_mmdet(found: Detections) -> Any:
    """``mmdet.structures.DetDataSample`` with ``pred_instances``; masks come with boxes that have some."""
    sample = _of("mmdet.structures", "DetDataSample")(metainfo=_meta(found.size))
    sample.pred_instances = _instances(found.boxes_xyxy, found.labels, _masks(found), scores=found.scores)
    return sample


def result_to_mmpose(found: Any) -> Any:
    """``mmpose.structures.PoseDataSample`` with ``pred_instances``: poses of one skeleton.

    Raises:
        ConfigError: the poses have different numbers of points.
    """
    sample = _of("mmpose.structures", "PoseDataSample")(metainfo=_meta(found.size))
    sample.pred_instances = _posed(found.poses.tolist(), found.boxes_xyxy, keypoint_scores=found.likeness)
    sample.pred_instances.bbox_scores = found.scores
    return sample


def result_to_detectron2(found: Detections) -> Any:
    """``detectron2.structures.Instances`` with ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_masks``."""
    made = _of("detectron2.structures", "Instances")(found.size[::-1])
    made.pred_boxes = _of("detectron2.structures", "Boxes")(torch.from_numpy(found.boxes_xyxy.copy()))
    made.scores, made.pred_classes = torch.from_numpy(found.scores.copy()), torch.from_numpy(found.labels.copy())
    masks = _masks(found)
    if masks is not None:
        made.pred_masks = torch.from_numpy(masks)
    return made


def sample_to_mmdet(sample: Sample, turn: int = 0) -> dict[str, Any]:
    """``inputs``, (3, H, W) uint8 BGR, and ``data_samples`` with ``gt_instances``; labels are places among the turn's
    phrases, and crowds are ``ignored_instances``."""
    target, size = sample.turns[turn].target, sample.pictures[0].size
    made = _of("mmdet.structures", "DetDataSample")(metainfo=_meta(size))
    masks = None if target.masks is None else target.masks
    for name, rows in (("gt_instances", ~target.ignored), ("ignored_instances", target.ignored)):
        own = _instances(target.boxes_xyxy[rows], target.phrase[rows], None)
        if masks is not None and all(mask is not None for mask in masks[rows]):
            held = np.stack([mask.dense() for mask in masks[rows]] or [np.zeros(size[::-1], bool)])[: int(rows.sum())]
            own.masks = _of("mmdet.structures.mask", "BitmapMasks")(held.astype(np.uint8), *size[::-1])
        setattr(made, name, own)
    return {"inputs": _bgr(sample), "data_samples": made}


def sample_to_mmpose(sample: Sample, turn: int = 0) -> dict[str, Any]:
    """``inputs``, (3, H, W) uint8 BGR, and ``data_samples`` with the poses of the turn under ``gt_instances``."""
    target, size = sample.turns[turn].target, sample.pictures[0].size
    made = _of("mmpose.structures", "PoseDataSample")(metainfo=_meta(size))
    held = [None] * len(target.boxes_xyxy) if target.poses is None else target.poses.tolist()
    rows = [i for i, pose in enumerate(held) if pose is not None]
    made.gt_instances = _posed([held[i] for i in rows], target.boxes_xyxy[rows])
    return {"inputs": _bgr(sample), "data_samples": made}


def sample_to_detectron2(sample: Sample, turn: int = 0) -> dict[str, Any]:
    """The dict that models of Detectron2 train on: ``image``, (3, H, W) uint8 BGR, and ``instances``; crowds are left
    out."""
    target, (width, height) = sample.turns[turn].target, sample.pictures[0].size
    rows = ~target.ignored
    made = _of("detectron2.structures", "Instances")((height, width))
    made.gt_boxes = _of("detectron2.structures", "Boxes")(torch.from_numpy(target.boxes_xyxy[rows]))
    made.gt_classes = torch.from_numpy(target.phrase[rows])
    if target.masks is not None and rows.any() and all(mask is not None for mask in target.masks[rows]):
        held = np.stack([mask.dense() for mask in target.masks[rows]])
        made.gt_masks = _of("detectron2.structures", "BitMasks")(torch.from_numpy(held))
    return {"image": _bgr(sample), "height": height, "width": width, "instances": made}


def _of(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{package} cannot be imported ({error}); docs/bridges.md says how to install it") from None


def _meta(size: tuple[int, int]) -> dict[str, Any]:
    return {"img_shape": size[::-1], "ori_shape": size[::-1], "scale_factor": (1.0, 1.0)}


def _bgr(sample: Sample) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(sample.pictures[0].pixels[..., ::-1].transpose(2, 0, 1)))


def _masks(found: Any) -> np.ndarray | None:
    """(N, H, W) bool of results that have masks."""
    if not hasattr(found, "masks"):
        return None
    width, height = found.size
    return np.stack([mask.dense() for mask in found.masks]) if len(found) else np.zeros((0, height, width), bool)


def _instances(boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray | None, **more: np.ndarray) -> Any:
    own = {"bboxes": boxes.astype(np.float32), "labels": labels, **more} | ({} if masks is None else {"masks": masks})
    return _of("mmengine.structures", "InstanceData")(
        **{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in own.items()}
    )


def _posed(poses: list[Any], boxes: np.ndarray, keypoint_scores: np.ndarray | None = None) -> Any:
    counts = {len(pose.skeleton) for pose in poses}
    if len(counts) > 1:
        raise ConfigError(f"poses of {sorted(counts)} points: MMPose holds one skeleton at a time; take one phrase")
    joints = next(iter(counts), 0)
    points = np.stack([pose.points_xy - 0.5 for pose in poses]) if poses else np.zeros((0, joints, 2), np.float32)
    seen = np.stack([pose.known for pose in poses]) if poses else np.zeros((0, joints), bool)
    made = _of("mmengine.structures", "InstanceData")(
        bboxes=boxes.astype(np.float32), keypoints=points.astype(np.float32), keypoints_visible=seen.astype(np.float32)
    )
    if keypoint_scores is not None:
        made.keypoint_scores = np.repeat(keypoint_scores[:, None], joints, 1) * seen
    return made
