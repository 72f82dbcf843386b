"""Where the text is to look, and how far it does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from visionllm import open_dataset
from visionllm.core.batch import Gazes, Sights
from visionllm.mllm.attention import watching
from visionllm.routing.gazes import ASKED, KINDS, READING, SAYING, gaze_loss, gazes_of, layers_of
from visionllm.routing.readout import Text, run_text

PICTURE, CAR, CARS, RED, ROAD, IS, END = 1, 10, 11, 12, 13, 20, 21


def sights() -> Sights:
    """Four positions: road, a red car on most of one and some of another, road."""
    rows = [(0, 0, ROAD, 1.0), (0, 1, CAR, 0.8), (0, 1, RED, 0.8), (0, 1, CARS, 0.8), (0, 2, CAR, 0.4),
            (0, 2, CARS, 0.4), (0, 2, RED, 0.4), (0, 3, ROAD, 1.0), (0, 3, IS, 0.0)]  # fmt: skip
    _, slot, token, part = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Sights(slot=slot, token=token, weight=part, part=part)


def gazes(tiled: int = 4) -> Gazes:
    text = [PICTURE] * 4 + [IS, CARS, RED, END, IS, ROAD]
    labels = [-100] * 6 + [RED, END] + [-100] * 2
    return gazes_of(torch.tensor([[0, *text]]), torch.tensor([[-100, *labels]]), torch.arange(4), sights(),
                    picture_id=PICTURE, tiled=tiled)  # fmt: skip


def test_gazes_worked_by_hand() -> None:
    found = gazes()
    said = [(KINDS[kind], column) for kind, column in zip(found.kind.tolist(), found.column.tolist(), strict=True)]
    # "cars" is read; before the reply both its own word is said and all that was asked is looked at. The last word is
    # not read: nothing comes behind it. Pieces of words, and words that nobody sees, are no gaze.
    assert said == [(READING, 6), (ASKED, 6), (SAYING, 6)]
    assert found.row.tolist() == [0, 0, 0]
    for gaze in range(3):
        own = found.gaze == gaze
        assert found.place[own].tolist() == [2, 3]
        torch.testing.assert_close(found.part[own], torch.tensor([1.0, 0.5]))


def test_a_reply_about_a_region_begins_with_a_look_at_it() -> None:
    """Slots from 3 on are regions: what was asked is looked at there, whatever its words mean elsewhere."""
    found = gazes(tiled=3)
    own = [found.place[found.gaze == gaze].tolist() for gaze in range(len(found.kind))]
    assert [KINDS[kind] for kind in found.kind.tolist()] == [READING, ASKED, SAYING]
    assert own == [[2, 3], [4], [2, 3]]


def test_the_loss_is_of_what_falls_on_the_places() -> None:
    attention = torch.zeros(1, 2, 11, 11)
    attention[0, 0, 6, 2], attention[0, 0, 6, 3] = 0.5, 0.2  # head of what is read and what is said
    attention[0, 1, 6, 3] = 1.0  # head of what was asked
    layers = layers_of(8)
    assert layers == (2, 5, 5)
    found = float(gaze_loss(gazes(), dict.fromkeys(layers, attention), 8))
    assert found == pytest.approx(-(2 * math.log(0.6) + math.log(0.5)), rel=1e-3)


def test_no_gaze_no_loss(model: Any) -> None:
    none = gazes_of(torch.zeros(2, 5, dtype=torch.long), torch.full((2, 5), -100), torch.zeros(0, dtype=torch.long),
                    sights(), picture_id=PICTURE, tiled=0)  # fmt: skip
    assert not len(none.kind)
    assert float(gaze_loss(none, dict.fromkeys(layers_of(2), torch.rand(2, 2, 5, 5)), 2)) == 0


def test_a_place_is_before_who_looks_and_in_its_row(model: Any) -> None:
    data = open_dataset("scenes", "train", task="questions")
    samples = [data.ask(index, np.random.default_rng(index)) for index in range(3)]
    batch = model.processor.encode(samples, sights=True)
    found = batch.gazes
    assert set(found.kind.tolist()) == {0, 1, 2}
    assert set(found.row.tolist()) == {0, 1, 2}
    ids = batch.input_ids
    assert bool((ids[found.row[found.gaze], found.place] == model.mllm.config.image_token_id).all())
    assert bool((found.place < found.column[found.gaze]).all())
    best = torch.zeros(len(found.kind)).scatter_reduce(0, found.gaze, found.part, "amax")
    torch.testing.assert_close(best, torch.ones_like(best))


def test_attention_is_watched_and_stays_as_it_was(make_model: Any) -> None:
    model = make_model()
    data = open_dataset("scenes", "train", task="questions")
    batch = model.processor.encode([data.ask(3, np.random.default_rng(0))], sights=True)
    model.train()
    assert "gaze" not in model(batch).sums  # torch's kernel keeps its weights to itself
    model.mllm.attend("matmul")
    text, tiles = Text.of(batch), model.mllm.vision(batch.tiles)
    plain = run_text(model.mllm, text, tiles.flatten(0, 1)).hidden_BTD
    with watching([1]) as seen:
        watched = run_text(model.mllm, text, tiles.flatten(0, 1)).hidden_BTD
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert list(seen) == [1]
    torch.testing.assert_close(seen[1].sum(-1), torch.ones_like(seen[1].sum(-1)))
    losses = model(batch)
    assert model.counts(batch)["gaze"] == len(batch.gazes.kind) > 0
    losses.sums["gaze"].backward()
    layers = model.mllm.net.model.language_model.layers
    for index in set(layers_of(model.mllm.depth)):
        assert bool(layers[index].self_attn.q_proj.weight.grad.any())
        assert bool(layers[index].self_attn.k_proj.weight.grad.any())
