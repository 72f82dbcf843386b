"""Optimiser, schedule and the running average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from visionllm.core.config import Config
from visionllm.core.errors import ConfigError

_MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)


class OptimConfig(Config):
    """AdamW (and Muon) with warm-up, a flat stretch and a linear cool-down (Hägele et al. 2024, arXiv 2405.18392)."""

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
    muon: list[str] = Field(
        default_factory=list,
        description="prefixes of parameter names whose matrices and kernels take Muon's steps; every other parameter, "
        "tables of embeddings among them if they are not named, takes AdamW's",
    )
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of the running average of weights; 0 turns it off")


class Optimizer(torch.optim.AdamW):
    """AdamW, with Muon's steps for the groups that say ``muon``.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix along its momentum with all singular
    values made alike, so that directions in which gradients are small are learned as fast as the others. Each step is
    as long as one of AdamW's (0.2 of the rate a number; Liu et al. 2025, arXiv 2502.16982, section 2.2): one rate
    serves both. A kernel is the matrix of its output channels.
    """

    param_groups: list[dict[str, Any]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step.

        Raises:
            ConfigError: a matrix of Muon's comes in pieces.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        every = self.param_groups
        for group in every:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self._turn(parameter, group)
        self.param_groups = [group for group in every if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = every
        return loss

    def _turn(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        if parameter.ndim < 2:
            raise ConfigError("optim.muon: needs whole matrices, which this run cuts up (ZeRO, FSDP); leave it empty")
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            # AdamW looks for the number of steps in every state it reads back.
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
        state["step"] += 1
        momentum = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        ahead = parameter.grad.lerp(momentum, _MOMENTUM).flatten(1)
        length = 0.2 * max(ahead.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonal(ahead).view_as(parameter).to(parameter.dtype), alpha=-group["lr"] * length)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are all 1: those of the result lie within 0.6 and 1.3.

    Five rounds of the quintic of Jordan et al. (2024), in fp32.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    found = (matrix.T if tall else matrix).float()
    found = found / found.norm().clamp_min(1e-12)
    for _ in range(5):
        square = found @ found.T
        found = _QUINTIC[0] * found + (_QUINTIC[1] * square + _QUINTIC[2] * square @ square) @ found
    return found.T if tall else found


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Parameters in groups by factor, decay and kind of step; frozen ones stop asking for gradients.

    Raises:
        ConfigError: a prefix matches no parameter.
    """
    named = dict(model.named_parameters())
    for key, prefixes in (("lr_scale", config.lr_scale), ("muon", config.muon)):
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in named):
                raise ConfigError(f"optim.{key}.{prefix}: no parameter starts so; try {', '.join(_heads(named))}")
    for name, row in config.from_row.items():
        if name not in named or row >= len(named[name]):
            what = f"it has {len(named[name])} rows" if name in named else "no parameter has this name"
            raise ConfigError(f"optim.from_row.{name}: {what}; give a whole name, and a row it has")
    groups: dict[tuple[float, float, bool], list[Tensor]] = {}
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
            turns = parameter.ndim > 1 and name.startswith(tuple(config.muon))
            groups.setdefault((factor, decay, turns), []).append(parameter)
    return Optimizer(
        [{"params": groups[key], "factor": key[0], "weight_decay": key[1], "muon": key[2]} for key in sorted(groups)],
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


def memory_of(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, as ``<parameter>::<what>``."""
    states = optimizer.state
    return {
        f"{name}::{key}": value.detach().clone().contiguous()
        for name, parameter in model.named_parameters() if parameter in states
        for key, value in states[parameter].items()
    }  # fmt: skip


def remember(model: nn.Module, optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser back what ``memory_of`` told."""
    named = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter, _, key = name.partition("::")
        optimizer.state[named[parameter]][key] = value


def _below(row: int, gradient: Tensor) -> Tensor:
    """The gradient without that of the rows before one."""
    return torch.cat([torch.zeros_like(gradient[:row]), gradient[row:]])


def _heads(names: Iterable[str]) -> list[str]:
    return sorted({".".join(name.split(".")[:2]) for name in names})[:8]
