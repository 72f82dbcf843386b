"""The shell around transformers' InternVL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from visionllm.core.errors import ConfigError
from visionllm.core.sample import Sample, Turn
from visionllm.mllm.internvl import InternVL
from visionllm.routing.readout import Text, run_text

Make = Callable[..., Any]


@torch.no_grad()
def test_equals_transformers_own_forward(model: Any, picture: Make) -> None:
    sample = Sample(pictures=(picture(150, 60),), turns=(Turn(question="what is this?"),))
    batch = model.processor.encode([sample], reply=False)
    theirs = model.mllm.net(input_ids=batch.input_ids, pixel_values=batch.tiles, use_cache=False).logits
    ours = model.mllm.logits(run_text(model.mllm, Text.of(batch), model.mllm.vision(batch.tiles)).hidden_BTD)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_sizes(model: Any) -> None:
    assert (model.mllm.tile_size, model.mllm.tokens_per_tile) == (64, 4)
    assert (model.mllm.hidden_size, model.mllm.context_length) == (32, 1024)


def test_tokens_of_a_published_tile(tiny_settings: Make) -> None:
    """448 pixels, patches of 14, pixel shuffle by two: 256 tokens."""
    keys = tiny_settings()["mllm"]
    keys["vision_config"] |= {"image_size": [448, 448], "patch_size": [14, 14], "num_hidden_layers": 1}
    assert InternVL(keys).tokens_per_tile == 256


def test_spare_rows_are_used_before_any_is_added(tiny_settings: Make) -> None:
    mllm = InternVL(tiny_settings()["mllm"])
    before = mllm.net.get_input_embeddings().weight.detach().clone()
    mllm.resize_vocabulary(2000)
    assert mllm.vocabulary_size == 2048
    mllm.resize_vocabulary(2050)
    assert mllm.vocabulary_size == 2050
    assert torch.equal(mllm.net.get_input_embeddings().weight[:2048], before)
    assert mllm.net.lm_head.weight is mllm.net.get_input_embeddings().weight


@pytest.mark.parametrize("keys", [None, [], {"text_config": {"model_type": "no such model"}}, {"text_config": 3}])
def test_keys_that_make_no_model(keys: Any) -> None:
    with pytest.raises(ConfigError, match="mllm") as caught:
        InternVL(keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "key", "words"),
    [
        (None, "downsample_ration", r"mllm\.downsample_ration: .*did you mean downsample_ratio\?"),
        ("text_config", "hidden_sise", r"mllm\.text_config\.hidden_sise: .*did you mean hidden_size\?"),
        ("vision_config", "num_layer", r"mllm\.vision_config\.num_layer: not a field of InternVLVisionConfig"),
    ],
)
def test_a_key_that_nobody_reads(tiny_settings: Make, part: str | None, key: str, words: str) -> None:
    keys = tiny_settings()["mllm"]
    (keys if part is None else keys[part])[key] = 2
    with pytest.raises(ConfigError, match=words):
        InternVL(keys)


def test_keys_of_older_files_are_read(tiny_settings: Make) -> None:
    keys = tiny_settings()["mllm"]
    keys["text_config"] = {k: v for k, v in keys["text_config"].items() if k != "rope_parameters"} | {"rope_theta": 7.0}
    assert InternVL(keys).config.text_config.rope_parameters["rope_theta"] == 7.0


def test_boolean_masks_are_refused(model: Any) -> None:
    embeds = torch.zeros(1, 3, 32)
    with pytest.raises(AssertionError):
        model.mllm.text(embeds, torch.ones(1, 1, 3, 3, dtype=torch.bool), torch.arange(3)[None])
