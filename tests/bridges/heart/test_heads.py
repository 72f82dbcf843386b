"""Heads of transformers learn eight scenes by heart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn

from visionllm.core.errors import ConfigError
from visionllm.testing import Case
from visionllm.testing.bench import Bench
from visionllm.testing.small import (
    tiny_d_fine,
    tiny_detr,
    tiny_mask2former,
    tiny_owlv2,
    tiny_rf_detr,
    tiny_rt_detr,
    tiny_sam2,
    tiny_sam3,
    tiny_vitpose,
)  # fmt: skip


def owlv2() -> dict[str, Any]:
    """Wider; and its heads begin small: at transformers' own 1.0 every box lies where a sigmoid is flat."""
    made = {**tiny_owlv2(), "initializer_factor": 0.1}
    for part in ("text_config", "vision_config"):
        made[part] = {**made[part], "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    return made


def detr() -> dict[str, Any]:
    """Wider, and begun larger: at transformers' own spread of 0.02 such layers pass little on."""
    return {**tiny_detr(), "d_model": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "init_std": 0.1}


def sam2() -> dict[str, Any]:
    """Wider, with cells of four pixels, and begun larger: its encoder stands still, and is new."""
    made, side, widths = tiny_sam2(), 192, [16, 32, 64, 128]
    backbone = {
        **made["vision_config"]["backbone_config"],
        "hidden_size": 16,
        "image_size": [side, side],
        "embed_dim_per_stage": widths,
    }
    return {
        "model_type": "sam2",
        "initializer_range": 0.1,
        "vision_config": {
            **made["vision_config"],
            "backbone_config": backbone,
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
            "fpn_hidden_size": 64,
        },
        "prompt_encoder_config": {**made["prompt_encoder_config"], "hidden_size": 64, "image_size": side},
        "mask_decoder_config": {
            **made["mask_decoder_config"],
            "hidden_size": 64,
            "mlp_dim": 64,
            "num_attention_heads": 4,
        },
    }


def sam3() -> dict[str, Any]:
    """As SAM 2; its encoder is a plain transformer, whose patches are as large as the cells of its coarsest map."""
    made, patch = tiny_sam3(), 8
    side = 12 * patch
    backbone = {
        **made["vision_config"]["backbone_config"],
        "hidden_size": 64,
        "intermediate_size": 64,
        "image_size": side,
        "pretrain_image_size": side,
        "patch_size": patch,
        "window_size": 4,
        "initializer_range": 0.1,
    }
    return {
        "model_type": "sam3_tracker",
        "initializer_range": 0.1,
        "vision_config": {
            **made["vision_config"],
            "backbone_config": backbone,
            "backbone_feature_sizes": [[48, 48], [24, 24], [12, 12]],
            "fpn_hidden_size": 64,
            "initializer_range": 0.1,
        },
        "prompt_encoder_config": {**sam2()["prompt_encoder_config"], "image_size": side, "patch_size": patch},
        "mask_decoder_config": sam2()["mask_decoder_config"],
    }


def deformable_detr() -> dict[str, Any]:
    return {**tiny_detr("deformable_detr"), "d_model": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}


def rt_detr(made: dict[str, Any]) -> dict[str, Any]:
    """Wider."""
    width, maps = 64, [32, 64, 128]
    backbone = {**made["backbone_config"], "embedding_size": 16, "hidden_sizes": [16, *maps]}
    return {
        **made,
        "backbone_config": backbone,
        "encoder_in_channels": maps,
        "decoder_in_channels": [width] * 3,
        "encoder_hidden_dim": width,
        "d_model": width,
        "encoder_ffn_dim": 2 * width,
        "decoder_ffn_dim": 2 * width,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 40,
    }


def rt_detr_v2() -> dict[str, Any]:
    """Begun at transformers' own spread: at 0.2 such layers pass on too much, and learn slowly."""
    return rt_detr(tiny_rt_detr(model_type="rt_detr_v2", initializer_range=0.01))


_transformers = partial(dict, decoder="transformers")
KINDS: dict[str, dict[str, Any]] = {
    "Mask2Former": _transformers(network=tiny_mask2former, task="segmentation", settled=True),
    "SAM 2": _transformers(network=sam2, task="segmentation", steps=900, batch=2, single=True),
    "SAM 3": _transformers(network=sam3, task="segmentation", steps=900, batch=2, single=True),
    "DETR": _transformers(network=detr, steps=2000, lr=7e-4, batch=2, settled=True),
    "Deformable DETR": _transformers(network=deformable_detr, settled=True),
    "RT-DETR": _transformers(network=lambda: rt_detr(tiny_rt_detr()), group_norm=8, steps=150),
    "RT-DETRv2": _transformers(network=rt_detr_v2, group_norm=8, steps=300, batch=4),
    "D-FINE": _transformers(network=lambda: rt_detr(tiny_d_fine()), group_norm=8, steps=150),
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


def test_groups_take_the_place_of_batches() -> None:
    """No layer of a network from scratch keeps the statistics of a batch, saved and loaded too, and all learn."""
    config = {"network": tiny_rt_detr(), "longest": 96, "width": 8, "group_norm": 4}
    bench = Bench("transformers", Case(config=config, sample=lambda *_, **__: None))
    held = bench.built(stirred=0.0)
    assert not any(hasattr(layer, "running_mean") for layer in held.modules())
    layers = [layer for layer in held.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(layers) > 12
    assert all(layer.weight.requires_grad for layer in layers)
    assert held.described(config)["group_norm"] == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group_norm": 5}, r"decoders\.transformers\.group_norm: 5 groups do not divide the \d+ channels"),
        ({"network": None, "pretrained": "x", "group_norm": 4}, r"group_norm: is for a network from scratch"),
    ],
)
def test_wrong_groups_are_one_line(changes: dict[str, Any], words: str) -> None:
    config = {"network": tiny_rt_detr(), "longest": 96, "width": 8, **changes}
    with pytest.raises(ConfigError, match=words):
        Bench("transformers", Case(config=config, sample=lambda *_, **__: None)).built(stirred=0.0)
