"""What is where in a picture, as words for its positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from visionllm import open_dataset
from visionllm.core.arrays import object_array
from visionllm.core.batch import Sights
from visionllm.core.geometry import Geometry
from visionllm.core.masks import Mask
from visionllm.core.regions import Box, Point
from visionllm.core.sample import Picture, Sample, Things, Turn
from visionllm.datasets.transforms import transformed
from visionllm.losses import sight_loss
from visionllm.routing.findings import told
from visionllm.routing.sights import NOTHING, meant_by, shares_of

SIZE = (80, 40)


def things(*rows: tuple[str, tuple[float, ...]], whole: bool = True) -> Things:
    boxes = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    return Things(names=tuple(name for name, _ in rows), boxes_xyxy=boxes, complete=whole)


def test_shares_worked_by_hand() -> None:
    """A cat fills the upper left cell, a quarter of it is also dog; the lower right is empty."""
    known = things(("cat", (0, 0, 40, 20)), ("dog", (0, 0, 20, 10)), ("bird", (79, 39, 80, 40)))
    found = shares_of(known, SIZE, 2)
    np.testing.assert_allclose(found[0], [0.5, 0.5, 0, 0])  # both are here as a whole
    np.testing.assert_allclose(found[1], [0, 0, 0, 1])
    np.testing.assert_allclose(found[3], [0, 0, 0, 1])  # the bird is too small to speak of
    assert not shares_of(replace(known, complete=False), SIZE, 2)[1:].any()
    half = shares_of(things(("cat", (40, 20, 80, 30))), SIZE, 2)
    np.testing.assert_allclose(half[3], np.array([1, (0.5 / 3.5) ** 0.5]) / (1 + (0.5 / 3.5) ** 0.5))
    wide = shares_of(things(("sky", (0, 0, 80, 40)), ("dog", (0, 0, 10, 20))), SIZE, 2)
    np.testing.assert_allclose(wide[0], np.array([0.5, 1, 0]) / 1.5)  # a quarter of the sky, all of the dog
    np.testing.assert_allclose(wide[1], [1, 0, 0])


def test_a_mask_says_more_than_a_box() -> None:
    """The box of an L holds a corner that the L leaves free."""
    dense = np.zeros(SIZE[::-1], bool)
    dense[:, :40], dense[20:] = True, True
    known = replace(things(("road", (0, 0, 80, 40)), ("cat", (40, 0, 80, 20))),
                    masks=object_array([Mask.of(dense), None]))  # fmt: skip
    found = shares_of(known, SIZE, 2)
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]])
    moved = known.transform(Geometry.hflip(SIZE)).placed()
    np.testing.assert_allclose(shares_of(moved, SIZE, 2), found[[1, 0, 3, 2]])
    sky = open_dataset("scenes", "train", task="segmentation").ask(3, np.random.default_rng(0)).things[0]
    assert sky.masks is not None
    assert len(sky.masks) == len(sky.names)


def test_a_batch_names_cells_in_reading_order(model: Any) -> None:
    picture = Picture(pixels=np.zeros((40, 80, 3), np.uint8))
    side = int(model.processor.tiling.tokens_per_tile**0.5)
    cell = (80 / side, 40 / side)
    known = things(("wine glass", (0, 40 - cell[1], cell[0], 40)))  # the lower left corner
    sample = Sample(pictures=(picture,), turns=(Turn(question="q", reply="a"),), things=(known,))
    silent = replace(sample, things=(), pictures=(Picture(pixels=np.ones((40, 80, 3), np.uint8)),))
    sights = model.processor.encode([silent, sample], sights=True).sights
    assert model.processor.encode([sample]).sights is None
    last = model.processor.encode([silent, sample]).tiles.shape[0] - 1
    assert set((sights.slot // side**2).tolist()) == {last}
    cells = sights.slot % side**2
    total = torch.zeros(side * side).index_add(0, cells, sights.weight)
    torch.testing.assert_close(total, torch.ones(side * side))
    said: dict[int, set[int]] = {}
    for at, token in zip(cells.tolist(), sights.token.tolist(), strict=True):
        said.setdefault(at, set()).add(token)
    plain = model.vocabulary.plain
    corner = side * (side - 1)
    assert said.pop(corner) == {*plain("wine"), *plain("glass")}
    assert all(tokens == set(plain(NOTHING)) for tokens in said.values())


def test_things_go_through_the_same_geometry() -> None:
    sample = Sample(pictures=(Picture(pixels=np.zeros((40, 80, 3), np.uint8)),),
                    things=(things(("cat", (10, 0, 30, 20)), ("dog", (60, 0, 80, 20))),))  # fmt: skip
    (moved,) = transformed(sample, Geometry.crop(SIZE, (0, 0, 40, 40)).then(Geometry.hflip((40, 40)))).things
    assert moved.placed().names == ("cat",)
    np.testing.assert_allclose(moved.placed().boxes_xyxy, [[10, 0, 30, 20]])


@pytest.mark.parametrize("task", ["questions", "segmentation", "detection", "several"])
def test_samples_of_scenes_know_their_things(task: str) -> None:
    """Only who reads the regions too (road, sky) may say of the rest that there is nothing."""
    data = open_dataset("scenes", "train", task=task)
    sample = data.ask(3, np.random.default_rng(0))
    assert len(sample.things) == len(sample.pictures)
    record = data.read(3)
    known = sample.things[0]
    assert [said.split()[-1] for said in known.names] == [record.names[i].split()[-1] for i in record.labels]
    scene = record.extra["scene"]
    for said, thing in zip(known.names, scene.objects, strict=False):
        colour = thing.attributes.get("colour", thing.attributes.get("state", ""))
        assert said == f"{colour} {thing.category}".strip()
    with_regions = task in ("questions", "segmentation")
    assert known.complete == with_regions == (len(known.names) > len(scene.objects))
    assert all(said in record.names for said in known.names[len(scene.objects) :])


def test_the_thing_a_region_means() -> None:
    """By its box, or by the mask it lies on: the smallest, for the road lies under everything."""
    road, cat = np.zeros(SIZE[::-1], bool), np.zeros(SIZE[::-1], bool)
    road[:], cat[10:20, 40:60] = True, True
    known = replace(things(("road", (0, 0, 80, 40)), ("cat", (40, 10, 60, 20)), ("dog", (0, 0, 20, 20))),
                    masks=object_array([Mask.of(road), Mask.of(cat), None]))  # fmt: skip
    assert meant_by(Box(41, 10, 60, 20).mask(SIZE), known) == 1
    assert meant_by(Box(1, 0, 20, 19).mask(SIZE), known) == 2
    assert meant_by(Point(50, 15).mask(SIZE), known) == 1
    assert meant_by(Point(70, 30).mask(SIZE), known) == 0
    assert meant_by(Box(38, 5, 75, 30).mask(SIZE), known) == 0
    assert meant_by(Point(50, 15).mask(SIZE), replace(known, masks=None)) is None
    assert meant_by(Point(50, 15).mask(SIZE), things()) is None


def test_regions_stand_behind_the_tiles(make_model: Any) -> None:
    """Those of all samples in reading order, also those that were found; of unknown pictures nothing is said."""
    model = make_model(looks=True, regions={"layers": [1, -1], "channels": 16})
    data = {task: open_dataset("scenes", "train", task=task) for task in ("recognition", "looking")}
    samples = [data[task].ask(index, np.random.default_rng(index)) for task in data for index in (3, 4)]
    samples.insert(1, replace(samples[0], things=(), pictures=(replace(samples[0].pictures[0]),)))
    batch = model.processor.encode(samples, sights=True)
    first = len(batch.tiles) * model.processor.tiling.tokens_per_tile
    words: dict[int, str] = {}
    for slot, token, weight in zip(*(getattr(batch.sights, n).tolist() for n in ("slot", "token", "weight")),
                                   strict=True):  # fmt: skip
        if slot >= first and weight:
            words[slot - first] = words.get(slot - first, "") + model.vocabulary.text([token])
    turns = [(sample, turn) for sample in (told(s) for s in samples) for turn in sample.turns]
    regions = [(sample, turn, region) for sample, turn in turns for region in turn.regions]
    assert len(regions) == len(batch.marks.masks)
    silent = {number for number, (sample, _, _) in enumerate(regions) if not sample.things}
    assert silent
    assert not silent & set(words)
    framed = [number for number, (s, _, region) in enumerate(regions) if s.things and isinstance(region, Box)]
    assert len(framed) > 3
    for number in framed:
        sample, _, _ = regions[number]
        names = {name.replace(" ", "") for name in sample.things[0].placed().names}
        assert words[number] in names
    model.train()
    losses = model(batch)
    assert model.counts(batch)["region"] == pytest.approx(len(words))
    losses.sums["region"].backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.region_encoder.parameters())


def test_the_loss_teaches_what_sees(model: Any) -> None:
    data = open_dataset("scenes", "train", task="questions")
    samples = [data.ask(index, np.random.default_rng(index)) for index in range(2)]
    batch = model.processor.encode(samples, sights=True)
    model.train()
    model.zero_grad()
    losses = model(batch)
    assert model.counts(batch)["sight"] == pytest.approx(2 * model.processor.tiling.tokens_per_tile)
    per_cell = float(losses.sums["sight"].detach()) / model.counts(batch)["sight"]
    assert 0 < per_cell < 1000
    losses.sums["sight"].backward()
    net = model.mllm.net.model
    for part in (net.vision_tower, net.multi_modal_projector):
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    # Nothing of the text is read for it.
    assert all(p.grad is None or not bool(p.grad.any()) for p in net.language_model.layers.parameters())
    model.zero_grad()
    assert "sight" not in model(model.processor.encode(samples)).sums
    model.eval()


@torch.no_grad()
def test_a_position_is_to_read_like_the_word_and_as_long(model: Any) -> None:
    side = int(model.processor.tiling.tokens_per_tile**0.5)
    words = model.mllm.words()
    token = model.vocabulary.plain("car")[0]
    length = words.norm(dim=-1).mean()
    cells = torch.arange(side * side)
    sights = Sights(slot=side * side + cells, token=torch.full_like(cells, token), weight=torch.ones(len(cells)),
                    part=torch.ones(len(cells)))  # fmt: skip
    word = words[token] / words[token].norm() * length

    def loss(position: torch.Tensor) -> float:
        tiles = torch.stack([torch.zeros_like(position), position]).unsqueeze(1).expand(2, side * side, -1)
        lost = sight_loss(model.mllm, tiles.flatten(0, 1), sights)
        assert not lost[: side * side].any()
        return float(lost.sum()) / len(cells)

    best = loss(words[token])
    assert best < 0.1
    apart = float((2 * words[token]).square().sum() / words.square().sum(-1).mean())
    assert loss(3 * words[token]) == pytest.approx(best + apart, rel=1e-3)  # the same angle
    shared = torch.randn(word.shape, generator=torch.Generator().manual_seed(0))
    assert loss(word + length * shared / shared.norm()) > best + 0.9  # what all positions have in common
