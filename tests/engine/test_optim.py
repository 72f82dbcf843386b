"""Schedule, parameter groups, running average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visionllm.core.errors import ConfigError
from visionllm.optim import Average, OptimConfig, make_optimizer, orthogonal, set_rate


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


class Deep(nn.Module):
    """A kernel, matrices lying and standing, and what is no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(3, 8, 3)
        self.layers = nn.Sequential(nn.Linear(8, 20), nn.LayerNorm(20), nn.Linear(20, 5))

    def lost(self, seed: int) -> torch.Tensor:
        pixels = torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        return self.layers(self.kernel(pixels).mean((2, 3))).square().sum()


def stepped(net: Deep, optimizers: list[torch.optim.Optimizer], steps: int = 4) -> dict[str, torch.Tensor]:
    for step in range(steps):
        net.lost(step).backward()
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad()
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def twins() -> tuple[Deep, Deep]:
    torch.manual_seed(0)
    net, other = Deep(), Deep()
    other.load_state_dict(net.state_dict())
    return net, other


@pytest.mark.parametrize("shape", [(12, 12), (30, 7), (7, 30), (1, 9)])
def test_singular_values_become_alike_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonal(matrix)
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ found @ right.T
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-3, "other directions than the matrix has"


def test_matrices_take_the_steps_of_torchs_muon_and_the_rest_those_of_adamw() -> None:
    net, other = twins()
    config = OptimConfig(lr=0.02, weight_decay=0.1, warmup=0, cooldown=0, muon=["layers"])
    ours = make_optimizer(net, config)
    set_rate(ours, config, 0, 10)
    named = dict(other.named_parameters())
    matrices = [p for n, p in named.items() if n.startswith("layers") and p.ndim > 1]
    plain = [p for p in named.values() if p.ndim == 1]
    theirs: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": [other.kernel.weight], "weight_decay": 0.1},
                           {"params": plain, "weight_decay": 0.0}], lr=0.02, betas=config.betas),
    ]  # fmt: skip
    for _ in range(3):
        for name, parameter in net.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            named[name].grad = parameter.grad.clone()
        for optimizer in (ours, *theirs):
            optimizer.step()
    for name, parameter in net.named_parameters():
        # Torch's makes singular values alike in bf16; three steps move the numbers by 0.008 on average.
        assert torch.allclose(parameter, named[name], atol=5e-4 if named[name] in set(matrices) else 0), name


def test_without_muon_it_is_adamw() -> None:
    net, other = twins()
    config = OptimConfig(lr=0.02, weight_decay=0.1, warmup=0, cooldown=0)
    ours = make_optimizer(net, config)
    set_rate(ours, config, 0, 10)
    decayed = [p for p in other.parameters() if p.ndim > 1]
    theirs = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1},
                                {"params": [p for p in other.parameters() if p.ndim == 1], "weight_decay": 0.0}],
                               lr=0.02, betas=config.betas)  # fmt: skip
    wanted = stepped(other, [theirs])
    assert all(torch.equal(value, wanted[name]) for name, value in stepped(net, [ours]).items())


def test_a_kernel_is_the_matrix_of_its_output_channels() -> None:
    net, _ = twins()
    config = OptimConfig(lr=0.01, weight_decay=0, warmup=0, cooldown=0, muon=["kernel"])
    optimizer = make_optimizer(net, config)
    set_rate(optimizer, config, 0, 10)
    net.lost(0).backward()
    assert net.kernel.weight.grad is not None
    wanted = net.kernel.weight.detach() - 0.01 * 0.2 * 27**0.5 * orthogonal(net.kernel.weight.grad.flatten(1)).view_as(
        net.kernel.weight
    )
    optimizer.step()
    assert torch.allclose(net.kernel.weight, wanted, atol=1e-6)


def test_muon_wants_whole_matrices_and_prefixes_that_are_there() -> None:
    net, _ = twins()
    with pytest.raises(ConfigError, match=r"optim\.muon\.layer5: no parameter starts so"):
        make_optimizer(net, OptimConfig(muon=["layer5"]))
    optimizer = make_optimizer(net, OptimConfig(muon=["layers"]))
    piece = nn.Parameter(torch.ones(4))
    piece.grad = torch.ones(4)
    next(group for group in optimizer.param_groups if group["muon"])["params"].append(piece)
    with pytest.raises(ConfigError, match=r"optim\.muon: needs whole matrices"):
        optimizer.step()
