"""Optimiser, schedule and the running average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from visionllm.core.config import Config
from visionllm.core.errors import ConfigError


class OptimConfig(Config):
    """AdamW with warm-up, a flat stretch and a linear cool-down (Hägele et al. 2024, arXiv 2405.18392)."""

    lr: PositiveFloat = 4e-4
    weight_decay: NonNegativeFloat = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: PositiveFloat = Field(default=1.0, description="largest norm of the gradient")
    warmup: NonNegativeInt = Field(default=100, description="steps")
    cooldown: float = Field(default=0.3, ge=0, le=1, description="share of the steps in which the rate falls to 0")
    lr_scale: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="prefix of parameter names -> factor; 0 freezes; the longest prefix counts"
    )
    from_row: dict[str, PositiveInt] = Field(
        default_factory=dict,
        description="name of a table -> first row that learns; those before it stand still, as tokens learned before "
        "others join them do",
    )
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of the running average of weights; 0 turns it off")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Parameters in groups by factor and decay; frozen ones stop asking for gradients.

    Raises:
        ConfigError: a prefix matches no parameter.
    """
    named = dict(model.named_parameters())
    for prefix in config.lr_scale:
        if not any(name.startswith(prefix) for name in named):
            raise ConfigError(f"optim.lr_scale.{prefix}: no parameter starts so; try {', '.join(_heads(named))}")
    for name, row in config.from_row.items():
        if name not in named or row >= len(named[name]):
            what = f"it has {len(named[name])} rows" if name in named else "no parameter has this name"
            raise ConfigError(f"optim.from_row.{name}: {what}; give a whole name, and a row it has")
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in named.items():
        matching = [prefix for prefix in config.lr_scale if name.startswith(prefix)]
        factor = config.lr_scale[max(matching, key=len)] if matching else 1.0
        if factor == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            # Norms, biases and single numbers are not decayed, nor are rows that stand still.
            decay = config.weight_decay if parameter.ndim > 1 and name not in config.from_row else 0.0
            if name in config.from_row:
                parameter.register_hook(partial(_below, config.from_row[name]))
            groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[key], "factor": key[0], "weight_decay": key[1]} for key in sorted(groups)],
        lr=config.lr, betas=config.betas,
    )  # fmt: skip


def set_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int) -> float:
    """Set the learning rate of every group for ``step`` (from 0) and return the base rate."""
    tail = max(1, round(steps * config.cooldown)) if config.cooldown else 0
    factor = min(1.0, (step + 1) / max(1, config.warmup))
    if tail:
        factor *= min(1.0, (steps - step) / tail)
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor * group["factor"]
    return config.lr * factor


class Average:
    """Exponential running average of a model's floating-point state, with the bias of the first steps taken out."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in model.state_dict().items():
            own = self.state[name]
            if own.is_floating_point():
                own.lerp_(value.to(own.dtype), 1 - decay)
            else:
                own.copy_(value)

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            self.state[name].copy_(value)


def _below(row: int, gradient: Tensor) -> Tensor:
    """The gradient without that of the rows before one."""
    return torch.cat([torch.zeros_like(gradient[:row]), gradient[row:]])


def _heads(names: Iterable[str]) -> list[str]:
    return sorted({".".join(name.split(".")[:2]) for name in names})[:8]
