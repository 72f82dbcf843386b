"""What every test runs under: offline, on the CPU, few threads, the same examples each time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before any test imports torch or transformers: both read these once.
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A slow machine is not a failure, and a failure on one machine must be found again on the next.
settings.register_profile("house", deadline=None, derandomize=True, print_blob=True, database=None)
settings.load_profile("house")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="needs a GPU"))


# --- the real model, made small -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_network() -> Callable[..., dict[str, Any]]:
    """Keys of the smallest (MM) Grounding DINO, some of them replaced."""
    from visionllm.testing.small import tiny_network

    return tiny_network


@pytest.fixture(scope="session")
def tiny_diffusion() -> Callable[..., dict[str, Any]]:
    """Keys of the smallest UNet and autoencoder: latents half as large as pictures."""
    from visionllm.testing.small import tiny_diffusion

    return tiny_diffusion


@pytest.fixture(scope="session")
def tiny_settings() -> Callable[..., dict[str, Any]]:
    """The model section of a training config at test size: 0.2 M parameters, tiles of 64 pixels, four tokens a tile."""
    from visionllm.testing.small import tiny_settings

    return tiny_settings


@pytest.fixture(scope="session")
def make_model(tiny_settings: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Build the tiny model, in evaluation mode. Weights are large, so that whoever is seen is felt."""

    def make(seed: int = 0, **settings: Any) -> Any:
        import torch

        from visionllm.runs import ModelConfig, build_model

        torch.manual_seed(seed)
        model = build_model(ModelConfig(**tiny_settings(**settings)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Any]) -> Any:
    """A tiny model that nobody may change; what needs its own builds one."""
    return make_model()


@pytest.fixture(scope="session")
def picture() -> Callable[..., Any]:
    """A picture of smooth noise, (width, height) pixels."""
    from visionllm.testing.small import noise

    return noise


@pytest.fixture(scope="session")
def boxed() -> Callable[..., Any]:
    """A training sample of the detection task; ``boxes`` are (phrase, x1, y1, x2, y2)."""
    from visionllm.testing.small import boxed

    return boxed


@pytest.fixture
def dictate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a model write given ids: one list for each row of the next batch, then the end of the reply; a batch that
    follows goes on in the lists of its rows."""

    def patch(model: Any, *scripts: list[int]) -> None:
        import torch

        step, rows = iter(range(10_000)), list(range(len(scripts)))
        run, part = model.mllm.text, model.mllm.rows

        def text(embeds: Any, *rest: Any, **more: Any) -> Any:
            if embeds.shape[1] > 1:
                rows[:] = range(len(embeds))
            return run(embeds, *rest, **more)

        def set_aside(cache: Any, gone: Any) -> Any:
            rows[:] = [row for row, out in zip(rows, gone.tolist(), strict=True) if not out]
            return part(cache, gone)

        def logits(hidden: Any) -> Any:
            now = next(step)
            table = torch.zeros(len(hidden), model.mllm.vocabulary_size)
            for place, row in enumerate(rows):
                script = scripts[row] if row < len(scripts) else []
                table[place, script[now] if now < len(script) else model.vocabulary.end] = 50.0
            return table

        for name, made in (("logits", logits), ("text", text), ("rows", set_aside)):
            monkeypatch.setattr(model.mllm, name, made)
        monkeypatch.setattr(model.config, "quote", False)  # a script may hold what no prompt says

    return patch


@pytest.fixture(scope="session")
def reply_ids() -> Callable[..., list[int]]:
    """Ids of the canonical routed reply to some phrases, the end mark included."""

    def make(model: Any, phrases: tuple[str, ...]) -> list[int]:
        from visionllm.core.sample import Sample, Turn

        batch = model.processor.encode([Sample(turns=(Turn(task="detection", phrases=phrases),))])
        return [token for token in batch.labels[0].tolist() if token != -100]

    return make
