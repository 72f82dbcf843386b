"""Every bridge learns eight scenes by heart through its links, with the toolbox's own losses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from tests.bridges.learning import learn, scenes, score
from visionllm.testing import Case
from visionllm.testing.bench import Bench
from visionllm.testing.small import tiny_mask2former, tiny_rt_detr
from visionllm.testing.toolboxes import (
    mmdet_dino,
    mmdet_grounding,
    mmdet_mask2former,
    mmdet_rcnn,
    mmdet_retinanet,
    mmpose_heatmap,
    mmpose_simcc,
)

LONGEST = 192

# Decoder, task, keys of the network, steps.
KINDS: dict[str, tuple[str, str, Callable[[], dict[str, Any]], int]] = {
    "rt-detr": ("transformers", "detection", tiny_rt_detr, 300),
    "mask2former of transformers": ("transformers", "segmentation", tiny_mask2former, 300),
    "dino": ("mmdet", "detection", mmdet_dino, 200),
    "grounding dino": ("mmdet", "detection", mmdet_grounding, 200),
    "retinanet": ("mmdet", "detection", mmdet_retinanet, 300),
    "mask r-cnn": ("mmdet", "segmentation", lambda: mmdet_rcnn(masks=True), 300),
    "mask2former": ("mmdet", "segmentation", mmdet_mask2former, 300),
    "heat maps": ("mmpose", "pose", mmpose_heatmap, 300),
    "simcc": ("mmpose", "pose", mmpose_simcc, 300),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_eight_scenes_by_heart(kind: str) -> None:
    name, task, network, steps = KINDS[kind]
    if name != "transformers" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    config: dict[str, Any] = {"network": network(), "longest": LONGEST, "width": 32}
    if task == "pose":
        config = {
            "network": network(),
            "width": 32,
            "boxes": {"transformers": {"network": tiny_rt_detr(), "longest": LONGEST}},
        }
    samples = scenes(task)
    bench = Bench(name, Case(config=config, sample=lambda *_, **__: samples[0], options={"threshold": 0.0}))
    decoder, words, first = learn(bench, samples, steps=steps)
    assert first > 0, "the words have no gradient"
    told = score(decoder, words)
    assert (told["OKS_AP50"] if task == "pose" else told["AP50"]) > 0.9, told
