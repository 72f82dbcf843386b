"""What every decoder owes: the conformance kit on our own in all their variants, and on installed plugins."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from visionllm.decoders import DECODERS
from visionllm.testing import CHECKS, Bench
from visionllm.testing.bench import case_of
from visionllm.testing.own import VARIANTS
from visionllm.testing.report import run

# Decoders that are bridges to packages which need not be installed.
BRIDGES = ("mmdet", "mmpose", "detectron2")


def cases() -> list[str]:
    return [*VARIANTS, *(name for name in DECODERS if name not in VARIANTS)]


@pytest.fixture(params=cases(), scope="module")
def bench(request: pytest.FixtureRequest) -> Bench:
    name = request.param.partition(" ")[0]
    if name in BRIDGES and find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return Bench(name, VARIANTS[request.param]() if request.param in VARIANTS else case_of(name))


@pytest.mark.parametrize("check", CHECKS)
def test_contract(bench: Bench, check: str) -> None:
    outcome = run(check, bench)
    assert outcome.error is None, f"{outcome.what}: {outcome.error}"


def test_two_hundred_phrases(bench: Bench) -> None:
    made = bench.stage([bench.case.sample(tuple(f"thing {i}" for i in range(200)), seed=2)])
    made.decoder.train()
    assert all(bool(torch.isfinite(value)) for value in made.loss().values())
    made.decoder.eval()
    assert len(made.predict()) == 200


def test_normalised_boxes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that the kit must find; those of a decoder without boxes are planted in tests/testing."""
    bench = Bench("objects", VARIANTS["objects with boxes alone"]())
    assert run("original-pixels", bench).error is None
    whole = DECODERS["objects"].predict

    def normalised(self: Any, *arguments: Any) -> list[Any]:
        return [
            replace(found, boxes_xyxy=(found.boxes_xyxy / (*found.size, *found.size)).astype(np.float32))
            for found in whole(self, *arguments)
        ]

    monkeypatch.setattr(DECODERS["objects"], "predict", normalised)
    assert "normalised" in (run("original-pixels", bench).error or "")
