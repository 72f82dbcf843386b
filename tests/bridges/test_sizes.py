"""How small a picture a network can take, and what its sides are multiples of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from visionllm.decoders import DECODERS
from visionllm.testing.small import tiny_detr, tiny_rf_detr, tiny_rt_detr


def built(network: dict[str, Any]) -> Any:
    kind = DECODERS["transformers"]
    return kind.from_config(kind.Config(network=network, longest=96, width=8), 24)


@pytest.mark.parametrize("network", [tiny_rt_detr(num_queries=300), {**tiny_rf_detr(), "num_queries": 100}])
def test_an_idle_process_has_places_for_all_queries(network: dict[str, Any]) -> None:
    decoder = built(network).train()
    assert decoder.network.least >= 32 * network["num_queries"] ** 0.5
    assert bool(torch.isfinite(decoder.idle()))


@pytest.mark.parametrize(("patch", "windows", "multiple"), [(14, 4, 56), (16, 4, 64), (16, 2, 32), (8, 2, 32)])
def test_windows_of_patches_have_no_remainder(patch: int, windows: int, multiple: int) -> None:
    network = tiny_rf_detr()
    network["backbone_config"] |= {"patch_size": patch, "num_windows": windows, "image_size": 2 * multiple}
    decoder = built(network)
    assert decoder.network.multiple == decoder.pixels["source"].multiple == multiple
    assert bool(torch.isfinite(decoder.train().idle()))


def test_others_keep_their_multiple() -> None:
    assert built(tiny_detr()).network.multiple == 32
