"""Heads of transformers learn eight scenes by heart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn

from visionllm.testing import Case
from visionllm.testing.bench import Bench
from visionllm.testing.small import tiny_detr, tiny_mask2former, tiny_owlv2, tiny_rf_detr, tiny_rt_detr, tiny_vitpose


def owlv2() -> dict[str, Any]:
    """Wider; and its heads begin small: at transformers' own 1.0 every box lies where a sigmoid is flat."""
    made = {**tiny_owlv2(), "initializer_factor": 0.1}
    for part in ("text_config", "vision_config"):
        made[part] = {**made[part], "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    return made


def deformable_detr() -> dict[str, Any]:
    return {**tiny_detr("deformable_detr"), "d_model": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}


_transformers = partial(dict, decoder="transformers")
KINDS: dict[str, dict[str, Any]] = {
    "Mask2Former": _transformers(network=tiny_mask2former, task="segmentation", settled=True),
    "Deformable DETR": _transformers(network=deformable_detr, settled=True),
    "OWLv2": _transformers(network=owlv2),
    "RF-DETR": _transformers(network=tiny_rf_detr, steps=450, lr=3e-3),
    "ViTPose": {
        "decoder": "vitpose",
        "network": tiny_vitpose,
        "task": "pose",
        "steps": 600,
        "lr": 3e-3,
        "finder": {"transformers": owlv2},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_eight_scenes_by_heart(check_by_heart: Callable[..., None], name: str) -> None:
    check_by_heart(**KINDS[name])


def test_from_scratch_normalisation_passes_a_signal() -> None:
    """transformers begins those of RT-DETR near nought; neither signal nor gradient comes through a dozen of them."""
    case = Case(config={"network": tiny_rt_detr(), "longest": 96, "width": 8}, sample=lambda *_, **__: None)
    held = Bench("transformers", case).built(stirred=0.0)
    layers = [layer for layer in held.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert layers
    assert all(bool((layer.weight == 1).all()) for layer in layers)
