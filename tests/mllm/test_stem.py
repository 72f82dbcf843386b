"""A convolutional stem before the vision tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from visionllm.core.errors import ConfigError
from visionllm.mllm.internvl import InternVL
from visionllm.mllm.stem import Stem
from visionllm.model import VisionLLM
from visionllm.runs import ModelConfig, build_model

Make = Callable[..., Any]

STEM = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "depths": [1, 1], "hidden_sizes": [8, 16],
        "out_features": ["stage1", "stage2"], "group_norm": 4}  # fmt: skip
PATCHES = "mllm.net.model.vision_tower.embeddings.patch_embeddings"


def test_a_patch_is_where_it_is_in_the_picture() -> None:
    """A change of one pixel changes most the patch it lies in: rows and columns are not swapped, nothing is shifted."""
    torch.manual_seed(0)
    stem = Stem(STEM, patch=16, width=12).eval()
    tiles = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = stem(tiles)
        for patch, (y, x) in {0: (8, 8), 3: (8, 56), 6: (24, 40), 12: (56, 8)}.items():
            changed = tiles.clone()
            changed[..., y, x] += 10
            moved = (stem(changed) - before).norm(dim=-1)[0]
            assert moved.shape == (16,)
            assert moved.argmax() == patch


def test_levels_are_added() -> None:
    """What one level says is in the sum with a weight of one."""
    torch.manual_seed(0)
    stem = Stem(STEM, patch=16, width=12).eval()
    tiles = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        maps = stem.backbone(tiles).feature_maps
        assert [found.shape[-1] for found in maps] == [12, 6]
        expected = [project(found) for project, found in zip(stem.projections, maps, strict=True)]
        assert [found.shape for found in expected] == [(2, 12, 2, 3)] * 2
        torch.testing.assert_close(stem(tiles), (expected[0] + expected[1]).flatten(2).transpose(1, 2))


def test_a_picture_alone_is_a_picture_of_a_batch() -> None:
    torch.manual_seed(0)
    stem = Stem(STEM, patch=16, width=12).train()
    tiles = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(stem(tiles)[1:2], stem(tiles[1:2]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_is_chosen_beside_a_backbone_without_any(tiny_settings: Make) -> None:
    torch.manual_seed(0)
    keys = tiny_settings()["mllm"]
    keys["vision_config"] |= {"patch_size": [16, 16], "stem": STEM}
    model = InternVL(keys).eval()
    tiles, seen = torch.randn(2, 3, model.tile_size, model.tile_size), []
    for kind in ("eager", "sdpa", "matmul"):
        model.attend(kind)
        assert model.config.vision_config._attn_implementation == kind == model.config.text_config._attn_implementation
        seen.append(model.vision(tiles))
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], atol=1e-5, rtol=1e-5)


def test_a_trained_tower_gets_one(tiny_settings: Make, tmp_path: Path) -> None:
    """It begins as the backbone it is a copy of, and is there again when the model is loaded."""
    settings = tiny_settings()
    build_model(ModelConfig(**settings)).save_pretrained(tmp_path / "without")
    backbone = settings["decoders"]["objects"]["network"]["backbone_config"]
    first = {key: backbone[key][:3] for key in ("depths", "hidden_sizes")}
    stem = {**backbone, **first, "out_features": ["stage2", "stage3"], "group_norm": 4}
    source = "decoders.objects.detector.net.backbone.conv_encoder.model"
    grown = build_model(ModelConfig(
        start=str(tmp_path / "without"), mllm={"vision_config": {"stem": stem}}, fresh=[PATCHES],
        copies={f"{PATCHES}.backbone": source},
    ))  # fmt: skip
    state = grown.state_dict()
    copied = [name for name in state if name.startswith(f"{PATCHES}.backbone.")]
    assert copied
    for name in copied:
        assert torch.equal(state[name], state[source + name.removeprefix(f"{PATCHES}.backbone")]), name
    tiles = torch.randn(2, 3, 64, 64, requires_grad=True)
    seen = grown.mllm.vision(tiles)
    assert seen.shape == (2, grown.mllm.tokens_per_tile, grown.mllm.hidden_size)
    seen.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in grown.named_parameters()
               if n.startswith(PATCHES) and p.requires_grad and "projections" in n)  # fmt: skip
    grown.save_pretrained(tmp_path / "with")
    again = VisionLLM.from_pretrained(tmp_path / "with")
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen2"}, "stem"),
        ({"depth": [1]}, "stem.depth"),
        ({"out_features": ["stage9"]}, "stem"),
        ({"out_features": ["stage2"], "patch": 4}, "stage2 has stride 8"),
        ({"model_type": None}, "stem.model_type"),
    ],
)
def test_a_stem_that_makes_no_network(tiny_settings: Make, change: dict[str, Any], said: str) -> None:
    keys = tiny_settings()["mllm"]
    patch = change.pop("patch", 16)
    keys["vision_config"] |= {"patch_size": [patch, patch], "stem": {**STEM, **change}}
    with pytest.raises(ConfigError, match=said) as caught:
        InternVL(keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("copies", "said"),
    [
        ({"nothing": "mllm"}, "no parameter starts with 'nothing'"),
        ({"link_queries": "nothing"}, "copies.link_queries: nothing"),
        ({"mllm.net.model.vision_tower.encoder.layer.0": "link_queries"}, "is not there in this shape"),
    ],
)
def test_copies_of_what_is_not_there(tiny_settings: Make, copies: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_model(ModelConfig(**tiny_settings(), copies=copies))
