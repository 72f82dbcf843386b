"""Results and samples in other toolboxes' types."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import torch

from visionllm import open_dataset
from visionllm.core import exchange
from visionllm.core.arrays import object_array
from visionllm.core.errors import ConfigError
from visionllm.core.instances import Masks, Poses
from visionllm.core.masks import Mask
from visionllm.core.poses import Pose, Skeleton
from visionllm.testing import toolboxes

WITH_MM = pytest.mark.skipif(importlib.util.find_spec("mmpose") is None, reason="mmdet and mmpose are not installed")
BOXES = np.float32([[1, 2, 9, 8], [0, 0, 5, 5]])
FIELDS: dict[str, Any] = {
    "boxes_xyxy": BOXES, "scores": np.float32([0.9, 0.4]), "labels": np.array([1, 0]), "phrases": ("car", "dog"),
    "presence": np.float32([0.4, 0.9]), "size": (12, 10),
}  # fmt: skip


def masks() -> Masks:
    held = [np.zeros((10, 12), bool), np.zeros((10, 12), bool)]
    held[0][2:8, 1:9] = held[1][:5, :5] = True
    return Masks(masks=object_array([Mask.of(one) for one in held]), **FIELDS)


def poses() -> Poses:
    skeleton = Skeleton(name="stick", keypoints=("a", "b"))
    made = [Pose(points_xy=np.float32([[2, 3], [4, 5]]), visibility=np.int8([2, 0]), skeleton=skeleton)] * 2
    return Poses(poses=object_array(made), likeness=np.float32([0.5, 0.25]), **FIELDS)


@WITH_MM
def test_results_of_mmdet() -> None:
    own = masks().to_mmdet()
    assert own.img_shape == (10, 12)
    assert torch.equal(own.pred_instances.bboxes, torch.from_numpy(BOXES))
    assert own.pred_instances.labels.tolist() == [1, 0]
    assert own.pred_instances.masks.sum((1, 2)).tolist() == [48, 25]
    assert "masks" not in poses().to_mmdet().pred_instances


@WITH_MM
def test_results_of_mmpose() -> None:
    own = poses().to_mmpose().pred_instances
    # The middle of the first pixel is 0.5 here and 0 there.
    assert own.keypoints[0, 0].tolist() == [1.5, 2.5]
    assert own.keypoints_visible.tolist() == [[1, 0], [1, 0]]
    assert own.keypoint_scores.tolist() == [[0.5, 0], [0.25, 0]]


@WITH_MM
def test_samples() -> None:
    (sample, *_) = open_dataset("scenes", "train", task="segmentation").ask_all(0)
    target = sample.turns[0].target
    made = exchange.sample_to_mmdet(sample)
    assert made["inputs"].shape == (3, *sample.pictures[0].size[::-1])
    assert np.array_equal(made["inputs"][0].numpy(), sample.pictures[0].pixels[..., 2])
    own = made["data_samples"].gt_instances
    assert len(own) + len(made["data_samples"].ignored_instances) == len(target.boxes_xyxy)
    assert own.masks.masks.sum() == sum(mask.area for mask in target.masks[~target.ignored])
    (posed, *_) = open_dataset("scenes", "train", task="pose").ask_all(0)
    got = exchange.sample_to_mmpose(posed)["data_samples"].gt_instances
    assert len(got.keypoints) == sum(pose is not None for pose in posed.turns[0].target.poses)


@pytest.mark.usefixtures("detectron2")
def test_detectron2() -> None:
    own = masks().to_detectron2()
    assert own.image_size == (10, 12)
    assert torch.equal(own.pred_boxes.tensor, torch.from_numpy(BOXES))
    assert own.pred_masks.sum((1, 2)).tolist() == [48, 25]
    (sample, *_) = open_dataset("scenes", "train", task="segmentation").ask_all(0)
    made = exchange.sample_to_detectron2(sample)
    assert made["image"].shape[1:] == made["instances"].image_size
    assert len(made["instances"].gt_classes) == int((~sample.turns[0].target.ignored).sum())


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed")
def test_detectron2_trains_on_samples() -> None:
    from detectron2.utils.events import EventStorage

    from visionllm.decoders.bridges.detectron2 import build

    torch.manual_seed(0)
    net = build(toolboxes.detectron2_rcnn(masks=True), toolboxes.CLASSES).train()
    (sample, *_) = open_dataset("scenes", "train", task="segmentation").ask_all(0)
    with EventStorage(0):
        losses = net([exchange.sample_to_detectron2(sample)])
    assert float(losses["loss_mask"].detach()) > 0
    assert all(bool(torch.isfinite(value)) for value in losses.values())


def test_a_missing_toolbox_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet.structures", None)
    with pytest.raises(ConfigError, match="mmdet cannot be imported"):
        masks().to_mmdet()
