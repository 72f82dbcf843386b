"""Networks of mmdet, Detectron2 and mmpose learn eight scenes by heart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from visionllm.testing.toolboxes import (
    detectron2_mask2former,
    detectron2_rcnn,
    detectron2_retinanet,
    mmdet_dino,
    mmdet_grounding,
    mmdet_mask2former,
    mmdet_rcnn,
    mmdet_retinanet,
    mmpose_heatmap,
    mmpose_simcc,
)  # fmt: skip


def heatmap() -> dict[str, Any]:
    """Wider peaks, weighed against the losses of boxes; and begun larger: at MMPose's own spread of 0.001 a step is as
    large as a weight."""
    made = mmpose_heatmap()
    head = made["head"]
    begun = [
        {"type": "Normal", "layer": ["Conv2d", "ConvTranspose2d"], "std": 0.05},
        {"type": "Constant", "layer": "BatchNorm2d", "val": 1},
    ]
    loss, decoder = {**head["loss"], "loss_weight": 1000.0}, {**head["decoder"], "sigma": 1.5}
    return {**made, "head": {**head, "loss": loss, "decoder": decoder, "init_cfg": begun}}


_mmdet = partial(dict, decoder="mmdet", package="mmdet")
_detectron2 = partial(dict, decoder="detectron2", package="detectron2")
KINDS: dict[str, dict[str, Any]] = {
    "RetinaNet": _mmdet(network=mmdet_retinanet, steps=150, lr=1e-3),
    "DINO": _mmdet(network=mmdet_dino, lr=1e-3),
    "Grounding DINO": _mmdet(network=mmdet_grounding, steps=120, lr=1e-3, settled=True),
    "Faster R-CNN": _mmdet(network=mmdet_rcnn, steps=140, settled=True),
    "Mask2Former of mmdet": _mmdet(network=mmdet_mask2former, task="segmentation", settled=True),
    "Mask R-CNN": _mmdet(
        network=partial(mmdet_rcnn, masks=True), task="segmentation", steps=400, lr=2.5e-3, settled=True
    ),
    "RetinaNet of Detectron2": _detectron2(network=detectron2_retinanet, steps=120, lr=1e-3),
    "Faster R-CNN of Detectron2": _detectron2(network=detectron2_rcnn, steps=150),
    "Mask R-CNN of Detectron2": _detectron2(
        network=partial(detectron2_rcnn, masks=True), task="segmentation", steps=220
    ),
    "Panoptic FPN of Detectron2": _detectron2(
        network=partial(detectron2_rcnn, masks=True, stuff=True), task="segmentation", steps=220
    ),
    "Mask2Former of Detectron2": _detectron2(
        network=detectron2_mask2former,
        package="mask2former",
        task="segmentation",
        steps=300,
        batch=4,
        settings={"mask_tensors": True},
    ),
    "Heat maps": {
        "decoder": "mmpose",
        "package": "mmpose",
        "network": heatmap,
        "task": "pose",
        "steps": 600,
        "lr": 1.5e-3,
        "batch": 2,
        "settled": True,
        "finder": {"mmdet": mmdet_retinanet},
    },
    "RTMPose": {
        "decoder": "mmpose",
        "package": "mmpose",
        "network": mmpose_simcc,
        "task": "pose",
        "steps": 140,
        "settled": True,
        "finder": {"mmdet": mmdet_retinanet},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_eight_scenes_by_heart(check_by_heart: Callable[..., None], name: str) -> None:
    check_by_heart(**KINDS[name])
