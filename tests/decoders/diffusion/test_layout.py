"""Places planned before a picture is drawn: learned, drawn one number after another, and shown where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from visionllm import Sample, VisionLLM
from visionllm.core.errors import ConfigError
from visionllm.core.sample import Picture, PictureTarget, Shows, Turn
from visionllm.decoders.diffusion.layout import Layout
from visionllm.runs import ModelConfig, build_model

LEFT, RIGHT = (0.05, 0.4, 0.35, 0.8), (0.6, 0.3, 0.95, 0.85)
LEVELS = ((8, 1), (12, 2))


def layout_of(things: int = 2, **changes: Any) -> Layout:
    torch.manual_seed(0)
    return Layout(**({"things": things, "width": 16, "levels": LEVELS, "hidden": 16} | changes))


def seeds(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def learned(states: torch.Tensor, boxes: Sequence[Sequence[Sequence[float]]], steps: int = 250) -> Layout:
    layout = layout_of()
    optimizer = torch.optim.Adam(layout.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        layout.loss(states, boxes).backward()
        optimizer.step()
    return layout


def test_what_was_learned_is_planned() -> None:
    """As many things as there were, where they were, up to the width of a number."""
    states = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    boxes = [[LEFT, RIGHT], [RIGHT], [RIGHT, LEFT]]
    layout = learned(states, boxes)
    assert layout.loss(states, boxes) < 0.05 * layout.count(boxes)
    for found, wanted in zip(layout.plan(states, seeds(3)), boxes, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1 / 16)
    assert layout.count(boxes) == 10 + 6 + 10
    assert layout.count([[]]) == 2


def test_a_place_is_drawn_under_those_before_it() -> None:
    """Words that leave open which of two is left: each is drawn at either side, and both never at one."""
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1)
    layout = learned(states, [[LEFT, RIGHT], [RIGHT, LEFT]])
    plans = layout.plan(states[:1].expand(64, -1, -1), seeds(64))
    sides = [tuple("left" if (x0 + x1) / 2 < 0.5 else "right" for x0, _, x1, _ in plan) for plan in plans]
    assert set(sides) == {("left", "right"), ("right", "left")}
    assert 16 < sides.count(("left", "right")) < 48
    # A plan hangs on its own seed and words alone.
    assert layout.plan(states[:1], seeds(1, 5)) == plans[5:6]


def test_it_begins_by_adding_nothing() -> None:
    states = torch.randn(2, 5, 16)
    shown = layout_of()(states, [[LEFT, RIGHT], []], (8, 12))
    assert [tuple(level.shape) for level in shown] == [(2, 8, 8, 12), (2, 12, 4, 6)]
    assert not any(level.any() for level in shown)


def opened(layout: Layout) -> Layout:
    with torch.no_grad():
        for level in layout.levels:
            level.weight.normal_(generator=torch.Generator().manual_seed(3))
            level.bias.normal_(generator=torch.Generator().manual_seed(4))
    return layout


def test_a_thing_is_shown_where_it_stands() -> None:
    """What a state says is at its box and nowhere else; where nothing is planned, nothing is added."""
    layout, states = opened(layout_of()), torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    other = states.clone()
    other[:, 2:4] = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(2))
    plan = [[LEFT, RIGHT]]
    fine, _ = layout(states, plan, (32, 32))
    moved = (layout(other, plan, (32, 32))[0] - fine).abs().amax((0, 1))
    assert moved[12:25, 21:29].min() > 1e-3  # in the box of the second thing
    assert moved[:, :11].max() < 1e-2 * moved.max()  # far from it
    unseen = states.clone()
    unseen[:, 4:] += 1
    torch.testing.assert_close(layout(unseen, plan, (32, 32))[0], fine)
    assert not layout(states, [[]], (32, 32))[0].any()


def test_batched_is_single() -> None:
    layout, states = opened(layout_of()), torch.randn(3, 5, 16)
    boxes = [[LEFT, RIGHT], [], [RIGHT]]
    together = layout(states, boxes, (8, 8))
    for i in range(3):
        for level, own in zip(together, layout(states[i : i + 1], boxes[i : i + 1], (8, 8)), strict=True):
            torch.testing.assert_close(level[i : i + 1], own)
    alone = sum(layout.loss(states[i : i + 1], boxes[i : i + 1]) for i in range(3))
    torch.testing.assert_close(layout.loss(states, boxes), torch.as_tensor(alone))


@pytest.fixture(scope="module")
def planner(tiny_settings: Callable[..., Any], tiny_diffusion: Callable[..., Any]) -> VisionLLM:
    keys = tiny_settings()
    keys["decoders"]["generation"] = {"network": tiny_diffusion(), "size": 16, "outputs": 5, "mapper_heads": 4,
                                      "layout": 2}  # fmt: skip
    torch.manual_seed(0)
    return build_model(ModelConfig(**keys))


def sketch(phrase: str, shows: Shows) -> Sample:
    pixels = np.full((16, 16, 3), (200, 30, 30), np.uint8)
    target = PictureTarget(pictures=(Picture(pixels=pixels),), shows=(shows,))
    return Sample(turns=(Turn(task="generation", phrases=(phrase,), target=target),))


def test_places_are_learned_with_the_rest(planner: VisionLLM) -> None:
    """The loss counts what is known; what is shown takes the noise's gradient back to the words."""
    car = Shows(things=(("car", "red"), ("tree", None)), boxes=(LEFT, RIGHT))
    batch = planner.processor.encode([sketch("a car and a tree", car), sketch("cup", Shows(things=(("cup", None),)))])
    decoder = planner.decoders["generation"]
    planner.train()
    decoder.drop, drop = 0.0, decoder.drop
    try:
        losses = planner(batch)
        assert planner.counts(batch)["generation/places"] == 10
        layout, read = decoder.layout, decoder.mapper.read[1].weight
        grads = torch.autograd.grad(losses.sums["generation/noise"], [layout.levels[0].weight, read], retain_graph=True)
        assert all(grad.abs().sum() > 0 for grad in grads)
        grads = torch.autograd.grad(losses.sums["generation/places"], [layout.say.weight, read])
        assert all(grad.abs().sum() > 0 for grad in grads)
    finally:
        decoder.drop = drop
        planner.eval()


def test_pictures_of_which_nobody_knows_are_drawn_without(planner: VisionLLM) -> None:
    batch = planner.processor.encode([sketch("cup", Shows(things=(("cup", None),)))])
    sums = planner(batch).sums
    assert sums["generation/places"] == 0
    assert sums["generation/noise"].isfinite()
    assert planner.counts(batch)["generation/places"] == 0


def drawn(model: VisionLLM, **options: Any) -> np.ndarray:
    answer = model.generate(None, ["a car and a tree"], options={"generation": {"steps": 2, **options}})
    return answer.images.pictures[0].pixels


def test_who_asks_may_say_where(planner: VisionLLM) -> None:
    """The boxes of a call stand in the place of the plan, and in the recipe; what cannot be is refused in one line."""
    decoder = planner.decoders["generation"]
    before = {name: value.clone() for name, value in decoder.layout.state_dict().items()}
    try:
        opened(decoder.layout)
        here, there = drawn(planner, boxes=[LEFT, RIGHT]), drawn(planner, boxes=[RIGHT, LEFT])
        assert not np.array_equal(here, there)
        np.testing.assert_array_equal(here, drawn(planner, boxes=[LEFT, RIGHT]))
        made = planner.generate(None, ["a car"], options={"generation": {"steps": 2, "boxes": [LEFT]}}).images
        np.testing.assert_array_equal(planner.replay(made.recipes[0]).pictures[0].pixels, made.pictures[0].pixels)
    finally:
        decoder.layout.load_state_dict(before)
    for boxes, wrong in (([LEFT] * 3, "3 boxes, but this model knows places of 2 things; give fewer"),
                         ([(0.5, 0, 0.4, 1)], r"\[0.5, 0.0, 0.4, 1.0\] is no"), ([], "at least 1 item")):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"options\.generation(\.|: )boxes: .*{wrong}"):
            drawn(planner, boxes=boxes)


def test_more_things_than_states_are_refused(
    tiny_diffusion: Callable[..., Any], tiny_settings: Callable[..., Any]
) -> None:
    keys = tiny_settings()
    keys["decoders"]["generation"] = {"network": tiny_diffusion(), "size": 16, "outputs": 5, "mapper_heads": 4,
                                      "layout": 3}  # fmt: skip
    with pytest.raises(ConfigError, match=r"decoders\.generation\.layout: 3 things take 6 states; set outputs to so "
                                          r"many, or layout to 2"):  # fmt: skip
        build_model(ModelConfig(**keys))
