"""Who fights whom: by hand, and in a run that it does not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visionllm.conflict import conflicts


def test_by_hand() -> None:
    """Losses that are linear in two parameters: their gradients are the directions themselves."""
    weight, bias = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    other = nn.Parameter(torch.ones(1))
    directions = {
        "east": torch.tensor([3.0, 0.0, 0.0]), "west": torch.tensor([-2.0, 0.0, 0.0]),
        "up": torch.tensor([0.0, 0.0, 4.0]), "away": torch.tensor([1.0, 0.0, 1.0]),
    }  # fmt: skip

    def loss_of(direction: torch.Tensor) -> torch.Tensor:
        return (torch.cat([weight, bias]) * direction).sum() * other[0]

    report = conflicts(directions, [weight, bias], loss_of)
    assert [report[f"pull/{name}"] for name in directions] == pytest.approx([3, 2, 4, 2**0.5])
    assert report["cos/east|west"] == pytest.approx(-1)
    assert report["cos/east|up"] == pytest.approx(0)
    assert report["cos/east|away"] == pytest.approx(0.5**0.5)
    assert report["cos/west|away"] == pytest.approx(-(0.5**0.5))
    assert len(report) == 4 + 6
    assert weight.grad is None
    assert other.grad is None


def test_a_group_that_pulls_nowhere_fights_nobody() -> None:
    weight = nn.Parameter(torch.ones(2))
    unused = nn.Parameter(torch.ones(2))
    losses = {"still": lambda: unused.sum(), "constant": lambda: torch.tensor(1.0), "moves": lambda: weight.sum()}
    report = conflicts(losses, [weight], lambda loss: loss())
    assert report["pull/still"] == report["pull/constant"] == report["cos/still|moves"] == 0
    assert report["pull/moves"] == pytest.approx(2**0.5)
