"""What the tests of diffusion share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from visionllm import VisionLLM
from visionllm.core.batch import Batch
from visionllm.runs import ModelConfig, build_model

Make = Callable[..., Any]


@pytest.fixture(scope="session")
def learn() -> Callable[[VisionLLM, Batch, str], list[float]]:
    """One loss of a model after each of 60 steps down it."""

    def run(model: VisionLLM, batch: Batch, name: str) -> list[float]:
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        lost = []
        model.train()
        for _ in range(60):
            loss = model(batch).sums[name]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lost.append(float(loss.detach()))
        return lost

    return run


@pytest.fixture(scope="module")
def settings(tiny_settings: Make, tiny_diffusion: Make) -> dict[str, Any]:
    keys = tiny_settings()
    common = {"size": 16, "outputs": 5, "mapper_heads": 4}
    keys["decoders"] |= {
        # Clipped: an untrained UNet goes far beyond what a picture can show, and there roundings count.
        "generation": {"network": tiny_diffusion(vae=False, clip_sample=True), "layout": 2, **common},
        "editing": {"network": tiny_diffusion(2), **common},
    }
    return keys


@pytest.fixture(scope="module")
def drawer(settings: dict[str, Any]) -> VisionLLM:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
