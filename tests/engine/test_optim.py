"""Schedule, parameter groups, running average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visionllm.core.errors import ConfigError
from visionllm.optim import Average, OptimConfig, make_optimizer, set_rate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.head.weight
        self.count = nn.Buffer(torch.tensor(0))


def rates(config: OptimConfig, steps: int) -> list[float]:
    optimizer = make_optimizer(Net(), config)
    return [set_rate(optimizer, config, step, steps) for step in range(steps)]


def test_the_rate_warms_up_stays_and_falls_to_nearly_nothing() -> None:
    found = rates(OptimConfig(lr=1.0, warmup=10, cooldown=0.2), 100)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert found[10:81] == pytest.approx([1.0] * 71)
    assert found[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])
    assert found[-1] > 0, "the last step must still learn"


@pytest.mark.parametrize(("warmup", "cooldown"), [(0, 0.0), (0, 1.0), (50, 1.0), (1000, 0.3), (1, 0.001)])
def test_the_rate_is_always_above_zero_and_never_above_its_own(warmup: int, cooldown: float) -> None:
    found = rates(OptimConfig(lr=2.0, warmup=warmup, cooldown=cooldown), 20)
    assert all(0 < rate <= 2.0 for rate in found)
    if warmup == 0 and cooldown == 0:
        assert found == [2.0] * 20


def test_groups() -> None:
    net = Net()
    config = OptimConfig(
        lr=1.0, weight_decay=0.1, warmup=0, cooldown=0, lr_scale={"body": 0.1, "body.1": 0.0, "head.bias": 2.0}
    )
    optimizer = make_optimizer(net, config)
    set_rate(optimizer, config, 0, 10)
    named = {id(p): n for n, p in net.named_parameters()}
    found = {
        named[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert found == {
        "body.0.weight": (0.1, 0.1), "body.0.bias": (0.1, 0.0), "head.weight": (1.0, 0.1), "head.bias": (2.0, 0.0),
    }  # fmt: skip
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["body.1.weight", "body.1.bias"]


def test_a_prefix_that_matches_nothing() -> None:
    with pytest.raises(ConfigError, match=r"lr_scale\.hed: no parameter starts so; try .*head") as caught:
        make_optimizer(Net(), OptimConfig(lr_scale={"hed": 0.1}))
    assert "\n" not in str(caught.value)


def test_average_follows_and_forgets_its_start() -> None:
    net = Net()
    average = Average(net, 0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(5.0)
    net.count += 7
    for step in range(300):
        average.update(net, step)
    assert all(bool((value - 5).abs().max() < 1e-3) for name, value in average.state.items() if name != "count")
    assert int(average.state["count"]) == 7
    early = Average(net, 0.999)
    with torch.no_grad():
        net.head.bias.fill_(9.0)
    early.update(net, 0)
    assert bool((early.state["head.bias"] - 5 > 3).all()), "the first steps must count for more than 1 - decay"


def test_rows_before_the_first_stand_still() -> None:
    torch.manual_seed(0)
    table = nn.Module()
    table.words = nn.Embedding(6, 3)
    table.other = nn.Linear(3, 2)
    before = table.words.weight.detach().clone()
    optimizer = make_optimizer(table, OptimConfig(lr=0.1, weight_decay=0.5, from_row={"words.weight": 4}))
    for _ in range(3):
        table.other(table.words.weight).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(table.words.weight[:4], before[:4])
    assert (table.words.weight[4:] != before[4:]).all()
    for name, row in (("words", 2), ("words.weight", 6)):
        with pytest.raises(ConfigError, match=f"optim.from_row.{name}"):
            make_optimizer(table, OptimConfig(from_row={name: row}))
