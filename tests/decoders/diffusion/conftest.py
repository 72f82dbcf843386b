"""What the tests of diffusion share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from visionllm import VisionLLM
from visionllm.core.batch import Batch


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
