"""Between links and the states a UNet attends to: where these begin, and what they learn to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionllm import Sample, VisionLLM
from visionllm.config import FORMAT_VERSION
from visionllm.core.errors import ConfigError
from visionllm.core.sample import Picture, PictureTarget, Shows, Turn
from visionllm.decoders.diffusion.mapper import LinkMapper
from visionllm.decoders.diffusion.teacher import names, told
from visionllm.runs import ModelConfig, build_model

Make = Callable[..., Any]
CAR = Shows(things=(("car", "red"), ("tree", None)), relations=((0, "left of", 1),))
CUP = Shows(things=(("cup", "blue"),))


def moved_by(query: int, outputs: int, places: bool) -> torch.Tensor:
    """How far each placed state goes when one query of a link says something else; mean over new mappers."""
    far = []
    for seed in range(8):
        torch.manual_seed(seed)
        one = LinkMapper(queries=6, link_width=8, outputs=outputs, width=16, layers=2, heads=4, places=places)
        states, other = torch.randn(2, 1, 6, 8)
        changed = torch.where(torch.arange(6)[:, None] == query, other, states)
        far.append((one(states) - one(changed)).detach().norm(dim=-1)[0, :6])
    return torch.stack(far).mean(0)


@pytest.mark.parametrize("outputs", [4, 6, 9])
def test_a_state_begins_at_the_query_of_its_place(outputs: int) -> None:
    for query in range(min(6, outputs)):
        for places in (True, False):
            far = moved_by(query, outputs, places)
            others = torch.cat([far[:query], far[query + 1 :]])
            assert (far[query] > 1.2 * others.max()) == places


def test_what_is_to_be_said() -> None:
    assert names(CAR, 2) == [(0, "car"), (1, "red"), (2, "tree"), (4, "left of")]
    assert names(CAR, 1) == [(0, "car"), (1, "red"), (2, "left of")]
    assert names(CUP, 2) == [(0, "cup"), (1, "blue")]
    assert names(Shows(things=CAR.things, relations=((1, "left of", 0),)), 2)[-1] == (2, "tree")


def test_told_by_hand() -> None:
    states = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    shows = [CAR, Shows(), CUP]
    loss = told(shows, states, 2)
    # Nothing hangs on a phrase of which nobody knows, nor on a state that has nothing to say.
    (grad,) = torch.autograd.grad(loss, states)
    said = {(0, 0), (0, 1), (0, 2), (0, 4), (2, 0), (2, 1)}
    assert {(row, state) for row in range(3) for state in range(5) if grad[row, state].abs().sum() > 0} == said
    torch.testing.assert_close(told(shows[::-1], states.flip(0), 2), loss)
    assert told([Shows()], states[:1], 2) == 0
    # States that are the names themselves say them.
    learned = torch.zeros(3, 5, 16, requires_grad=True)
    optimizer = torch.optim.Adam([learned], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        told(shows, learned, 2).backward()
        optimizer.step()
    assert told(shows, learned, 2) < 0.01
    # And mean them in any company.
    assert told([CAR], learned[:1], 2) < 0.01


def sample_of(phrase: str, *shows: Shows) -> Sample:
    pixels = np.full((16, 16, 3), (200, 30, 30), np.uint8)
    target = PictureTarget(pictures=(Picture(pixels=pixels),), shows=shows)
    return Sample(turns=(Turn(task="generation", phrases=(phrase,), target=target),))


@pytest.fixture(scope="module")
def settings(tiny_settings: Make, tiny_diffusion: Make) -> dict[str, Any]:
    keys = tiny_settings()
    keys["decoders"] = {"generation": {"network": tiny_diffusion(vae=False), "size": 16, "outputs": 5,
                                       "mapper_heads": 4, "drop": 0.0, "tell": 2}}  # fmt: skip
    return keys


def test_states_learn_to_say_what_is_to_be_seen(settings: dict[str, Any], learn: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings))
    samples = [sample_of("a red car left of a tree", CAR), sample_of("blue cup", CUP), sample_of("anything")]
    batch = model.processor.encode(samples)
    assert model.loss_weights()["generation/told"] == 0.1
    assert model.counts(batch)["generation/told"] == 6.0
    assert model.counts(batch)["generation/noise"] == 3.0
    lost = learn(model, batch, "generation/told")
    assert lost[-1] < 0.1 * lost[0], (lost[0], lost[-1])
    model.eval().save_pretrained(tmp_path / "model")
    assert "tell" not in json.loads((tmp_path / "model" / "config.json").read_text())["decoders"]["generation"]
    assert VisionLLM.from_pretrained(tmp_path / "model").fingerprint == model.fingerprint
    # What is left out has nothing to say.
    decoder = model.decoders["generation"]
    decoder.drop = 0.999
    assert float(model.train()(batch).sums["generation/told"].detach()) == 0
    decoder.drop = 0.0
    wrong = {**settings["decoders"]["generation"], "tell": 3}
    with pytest.raises(ConfigError, match="3 things take 7 states; set outputs to so many, or tell to 2"):
        build_model(ModelConfig(**settings | {"decoders": {"generation": wrong}}))


def test_attention_is_the_same_however_it_is_computed(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings)).eval()
    batch = model.processor.encode([sample_of("a red car", CAR)])
    lost = []
    for kind in ("sdpa", "matmul"):
        model.decoders["generation"].attend(kind)
        lost.append(float(model(batch).sums["generation/noise"].detach()))
    assert lost[0] == pytest.approx(lost[1], rel=1e-5)


def test_a_checkpoint_of_the_first_format_draws_as_before(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = {"generation": {**settings["decoders"]["generation"], "places": False}}
    model = build_model(ModelConfig(**settings | {"decoders": own})).eval()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert values["format_version"] == FORMAT_VERSION
    # As it was written before there was a choice.
    del values["decoders"]["generation"]["places"]
    path.write_text(json.dumps(values | {"format_version": 1}))
    batch = model.processor.encode([sample_of("a red car", CAR)])
    before = model(batch).sums["generation/noise"]
    old = VisionLLM.from_pretrained(tmp_path)
    torch.testing.assert_close(old(batch).sums["generation/noise"], before)
    path.write_text(json.dumps(values))
    new = VisionLLM.from_pretrained(tmp_path)
    assert not torch.allclose(new(batch).sums["generation/noise"], before)
