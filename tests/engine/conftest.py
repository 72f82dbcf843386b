"""A training at test size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Make = Callable[..., Any]


@pytest.fixture
def write(tmp_path: Path, tiny_settings: Make) -> Callable[..., Path]:
    """Write a training config over two tiny data sets; keys are ``section__key``."""

    def make(name: str = "run", **changes: Any) -> Path:
        cards = {
            "scenes": {"splits": {"train": {"length": 50, "seed": 0, "size": [96, 72]}}},
            "phrases": {"splits": {"train": {"length": 50, "seed": 0, "shortest": 1, "longest": 3}}},
        }
        for card, values in cards.items():
            words = {"name": f"tiny_{card}", "task": "detection", "format": card, "license": "Apache-2.0", **values}
            (tmp_path / f"{card}.yaml").write_text(yaml.safe_dump(words))
        values: dict[str, Any] = {
            "model": tiny_settings(denoising=12),
            "data": [
                {"dataset": str(tmp_path / "scenes.yaml"), "weight": 2.0},
                {"dataset": str(tmp_path / "phrases.yaml")},
            ],
            "train": {
                "out": str(tmp_path / name),
                "steps": 6,
                "batch_size": 4,
                "save_every": 3,
                "log_every": 2,
                "seed": 3,
            },
            "optim": {"lr": 1e-3, "warmup": 2, "ema": 0.9},
            "augment": {"flip": 0.5},
        }
        for key, value in changes.items():
            section, _, rest = key.partition("__")
            if rest:
                values[section][rest] = value
            else:
                values[section] = value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return make
