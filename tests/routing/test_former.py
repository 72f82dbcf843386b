"""Links that are held where they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from visionllm.core.errors import ShapeError, UnknownNameError
from visionllm.routing.readout import Text, read_out, run_text
from visionllm.routing.render import Style

Make = Callable[..., Any]


@pytest.fixture
def held(make_model: Make, boxed: Make) -> tuple[Any, Any]:
    model = make_model().train()
    model.hold(["objects"])
    samples = [boxed(phrases=("car", "big dog")), boxed(phrases=("cat",))]
    return model, model.processor.encode(samples, [Style(), Style(tree=True)])


def mean(model: Any, batch: Any) -> torch.Tensor:
    """What training makes of the loss."""
    return model(batch).sums["held"] / model.counts(batch)["held"]


def test_nothing_has_moved_at_the_start(held: tuple[Any, Any]) -> None:
    model, batch = held
    assert float(mean(model, batch).detach()) == 0.0
    assert model.counts(batch)["held"] == sum(batch.links.queries)


@torch.no_grad()
def test_how_far_links_have_moved(held: tuple[Any, Any]) -> None:
    """Twice as long is once their length away, whichever their length."""
    model, batch = held
    norm = model.mllm.net.model.language_model.norm
    norm.weight.mul_(2.0)
    assert float(mean(model, batch)) == pytest.approx(1.0, abs=1e-4)
    norm.weight.mul_(1.5)
    assert float(mean(model, batch)) == pytest.approx(4.0, abs=1e-3)


def test_only_what_learns_is_pulled_back(held: tuple[Any, Any]) -> None:
    """A step against the gradient brings links nearer; what is held to gets none, and is no part of the model."""
    model, batch = held
    with torch.no_grad():
        for parameter in model.mllm.net.model.language_model.layers.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    away = mean(model, batch)
    away.backward()
    layers = list(model.mllm.net.model.language_model.layers.parameters())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in layers if p.ndim > 1)
    reader, tower = model._former.mllm, model.mllm.net.model.vision_tower
    assert all(not p.requires_grad and p.grad is None for p in reader.net.model.language_model.parameters())
    # What sees is neither copied nor frozen.
    assert reader.net.model.vision_tower is tower
    assert all(p.requires_grad for p in tower.parameters())
    assert not [name for name in model.state_dict() if "former" in name]
    with torch.no_grad():
        for parameter in layers:
            parameter.sub_(1e-3 * parameter.grad)
    assert 0 < float(mean(model, batch).detach()) < float(away.detach())


def test_links_of_other_decoders_are_free(make_model: Make, boxed: Make) -> None:
    model = make_model().train()
    batch = model.processor.encode([boxed()])
    assert "held" not in model(batch).sums
    model.hold([])
    with torch.no_grad():
        model.mllm.net.model.language_model.norm.weight.mul_(2.0)
    assert float(model(batch).sums["held"].detach()) == 0.0 == model.counts(batch)["held"]


def test_what_is_held_must_be_there(make_model: Make) -> None:
    with pytest.raises(UnknownNameError, match="speech"):
        make_model().hold(["speech"])


def test_a_phrase_is_held_to_what_it_means(make_model: Make, boxed: Make) -> None:
    """Its link is to be that of the plain words; those beside it stay held to their own."""
    model = make_model().train()
    model.hold(["objects"])
    odd = boxed(phrases=("same as that", "big dog"))
    odd = odd.with_turns(replace(odd.turns[0], question="find the same", means=("car", "big dog")))
    samples = [boxed(phrases=("cat",)), odd]
    batch = model.processor.encode(samples, plain=True)
    assert batch.plain is not None
    assert not batch.plain.pixels
    assert [meta.phrase for meta in batch.plain.links.meta] == ["car", "big dog"]
    plain = boxed(phrases=("car", "big dog"))
    own, meant = (links_of(model, model.processor.encode([sample])) for sample in (odd, plain))
    apart = ((own - meant).square().sum(-1) / meant.square().sum(-1)).sum()
    assert float(apart) > 0.1
    sums, counts = model(batch).sums, model.counts(batch)
    assert float(sums["meant"].detach()) == pytest.approx(float(apart), rel=1e-3)
    assert float(sums["held"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert (counts["held"], counts["meant"]) == (batch.links.queries[0], sum(batch.plain.links.queries))
    unsaid = model.processor.encode(samples)
    assert "meant" not in model(unsaid).sums
    assert model.counts(unsaid)["held"] == sum(unsaid.links.queries)
    model.hold([])
    assert [float(model(batch).sums[name].detach()) for name in ("held", "meant")] == [0.0, 0.0]


def test_each_phrase_means_something(boxed: Make) -> None:
    turn = boxed(phrases=("car", "dog")).turns[0]
    assert boxed().plain() is None
    with pytest.raises(ShapeError, match="meanings of 1"):
        replace(turn, means=("cat",))


@torch.no_grad()
def links_of(model: Any, batch: Any) -> torch.Tensor:
    seen = model._see(batch).all
    out = run_text(model.mllm, Text.of(batch), seen)
    return read_out(model.mllm, model.link_queries, Text.of(batch), batch.links, out.cache).states
