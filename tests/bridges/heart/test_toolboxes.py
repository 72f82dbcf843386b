"""Networks of mmdet and mmpose learn eight scenes by heart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from visionllm.testing.toolboxes import (
    mmdet_dino,
    mmdet_grounding,
    mmdet_mask2former,
    mmdet_rcnn,
    mmdet_retinanet,
    mmpose_simcc,
)  # fmt: skip

_mmdet = partial(dict, decoder="mmdet", package="mmdet")
KINDS: dict[str, dict[str, Any]] = {
    "RetinaNet": _mmdet(network=mmdet_retinanet, steps=150, lr=1e-3),
    "DINO": _mmdet(network=mmdet_dino, lr=1e-3),
    "Grounding DINO": _mmdet(network=mmdet_grounding, steps=120, lr=1e-3, settled=True),
    "Faster R-CNN": _mmdet(network=mmdet_rcnn, steps=140, settled=True),
    "Mask2Former of mmdet": _mmdet(network=mmdet_mask2former, task="segmentation", settled=True),
    "Mask R-CNN": _mmdet(
        network=partial(mmdet_rcnn, masks=True), task="segmentation", steps=300, lr=2.5e-3, settled=True
    ),
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
