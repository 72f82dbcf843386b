"""Detectors of a toolbox learn eight scenes by heart through their links, with its own losses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from tests.bridges.learning import learn, scenes, score
from visionllm.testing import Case
from visionllm.testing.bench import Bench
from visionllm.testing.toolboxes import mmdet_dino, mmdet_retinanet

LONGEST = 192

# Keys of the network, steps.
KINDS: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {
    "retinanet": (mmdet_retinanet, 150),
    "dino": (mmdet_dino, 200),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_eight_scenes_by_heart(kind: str) -> None:
    if importlib.util.find_spec("mmdet") is None:
        pytest.skip("mmdet is not installed")
    network, steps = KINDS[kind]
    samples = scenes("detection")
    config = {"network": network(), "longest": LONGEST, "width": 32}
    bench = Bench("mmdet", Case(config=config, sample=lambda *_, **__: samples[0], options={"threshold": 0.0}))
    decoder, words, first = learn(bench, samples, steps=steps)
    assert first > 0, "the words have no gradient"
    assert score(decoder, words)["AP50"] > 0.9
