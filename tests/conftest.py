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

    def make(reads: int = 1, vae: bool = True, **scheduler: Any) -> dict[str, Any]:
        channels = 4 if vae else 3
        unet = {
            "sample_size": 8, "in_channels": reads * channels, "out_channels": channels, "block_out_channels": [8, 16],
            "norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 4,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        }  # fmt: skip
        made = {
            "block_out_channels": [8, 8], "latent_channels": 4, "norm_num_groups": 4, "layers_per_block": 1,
            "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
            "sample_size": 16,
        }  # fmt: skip
        return {"unet": unet, "vae": made if vae else None, "scheduler": scheduler}

    return make


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

        from visionllm.engine import ModelConfig, build_model

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
def boxed(picture: Callable[..., Any]) -> Callable[..., Any]:
    """A training sample of the detection task; ``boxes`` are (phrase, x1, y1, x2, y2)."""

    def make(
        phrases: tuple[str, ...] = ("car", "dog"),
        boxes: tuple[tuple[float, ...], ...] = ((0, 5, 5, 40, 30), (0, 30, 20, 70, 55), (1, 10, 30, 30, 50)),
        size: tuple[int, int] = (80, 60),
        seed: int = 0,
        question: str | None = None,
    ) -> Any:
        import numpy as np

        from visionllm.core.sample import BoxTarget, Sample, Turn

        table = np.array(boxes, np.float32).reshape(-1, 5)
        target = BoxTarget(boxes_xyxy=table[:, 1:], phrase=table[:, 0].astype(np.int64))
        turn = Turn(task="detection", phrases=phrases, target=target, question=question)
        return Sample(pictures=(picture(*size, seed=seed),), turns=(turn,))

    return make


@pytest.fixture
def dictate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a model write given ids: one list for each row of the next batch, then the end of the reply; a batch that
    follows goes on in the lists of its rows."""

    def patch(model: Any, *scripts: list[int]) -> None:
        import torch

        step = iter(range(10_000))

        def logits(hidden: Any) -> Any:
            now = next(step)
            table = torch.zeros(len(hidden), model.mllm.vocabulary_size)
            for row, script in enumerate(scripts[: len(hidden)]):
                table[row, script[now] if now < len(script) else model.vocabulary.end] = 50.0
            return table

        monkeypatch.setattr(model.mllm, "logits", logits)

    return patch


@pytest.fixture(scope="session")
def reply_ids() -> Callable[..., list[int]]:
    """Ids of the canonical routed reply to some phrases, the end mark included."""

    def make(model: Any, phrases: tuple[str, ...]) -> list[int]:
        from visionllm.core.sample import Sample, Turn

        batch = model.processor.encode([Sample(turns=(Turn(task="detection", phrases=phrases),))])
        return [token for token in batch.labels[0].tolist() if token != -100]

    return make
