"""Samples to a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from visionllm.core.errors import PromptError
from visionllm.core.sample import Sample, Turn
from visionllm.routing.render import Style

Make = Callable[..., Any]
SIZES = [(120, 60), (60, 120), (96, 96), (90, 50), (1, 1), (300, 2), (33, 95)]


def test_a_sample_does_not_hang_on_its_company(model: Any, boxed: Make) -> None:
    samples = [boxed(phrases=("x",) * (i + 1), size=size, seed=i) for i, size in enumerate(SIZES)]
    together = model.processor.encode(samples, [Style(tree=i % 2 == 1) for i in range(len(samples))])
    tiles = 0
    for i, sample in enumerate(samples):
        alone = model.processor.encode([sample], [Style(tree=i % 2 == 1)])
        real = together.owner[i] == i
        assert torch.equal(real, together.owner[i] >= 0)
        assert bool((real.long().diff() >= 0).all()), "padding stands left"
        for name in ("input_ids", "branch", "position_ids", "labels"):
            assert torch.equal(getattr(together, name)[i][real], getattr(alone, name)[0]), name
        assert torch.equal(together.tiles[tiles : tiles + len(alone.tiles)], alone.tiles)
        tiles += len(alone.tiles)
        ((bucket, row),) = [
            (bucket, row)
            for bucket in together.pixels["objects/source"]
            for row, owners in enumerate(bucket.owners)
            if owners == ((i, 0),)
        ]
        (own,) = alone.pixels["objects/source"]
        assert torch.equal(bucket.values[row], own.values[0])
        assert torch.equal(bucket.mask[row], own.mask[0])
        links = [k for k, meta in enumerate(together.links.meta) if meta.sample == i]
        assert [together.links.meta[k].phrase for k in links] == [meta.phrase for meta in alone.links.meta]
    assert tiles == len(together.tiles)


@pytest.mark.parametrize("size", SIZES)
def test_decoder_pixels_hold_the_picture_and_its_place(model: Any, boxed: Make, size: tuple[int, int]) -> None:
    (bucket,) = model.processor.encode([boxed(size=size)]).pixels["objects/source"]
    geometry = bucket.geometry[0]
    assert geometry.input_size == size
    width, height = geometry.output_size
    assert max(width, height) == 96
    assert bucket.values.shape[-1] % 32 == bucket.values.shape[-2] % 32 == 0
    assert bucket.mask[0].sum() == width * height
    assert bool(bucket.mask[0, :height, :width].all())
    assert bool((bucket.values[0][:, ~bucket.mask[0]] == 0).all())
    corners = geometry.points(np.array([[0, 0], size], np.float32))
    np.testing.assert_allclose(corners, [[0, 0], [width, height]], atol=1e-4)


def test_pixels_are_normalised(model: Any, picture: Make) -> None:
    from visionllm.core.sample import Picture

    grey = Sample(pictures=(Picture(pixels=np.full((96, 96, 3), 128, np.uint8)),), turns=(Turn(question="x"),))
    batch = model.processor.encode([grey], reply=False)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    for values in (batch.pixels["objects/source"][0].values[0], batch.tiles[0]):
        torch.testing.assert_close(values.mean((1, 2)), expected, atol=1e-5, rtol=1e-5)


def test_picture_positions_are_as_many_as_features(model: Any, picture: Make) -> None:
    sample = Sample(pictures=(picture(200, 60), picture(60, 60)), turns=(Turn(question="x"),))
    batch = model.processor.encode([sample], reply=False)
    marks = int((batch.input_ids == model.vocabulary.image).sum())
    assert (
        marks == len(batch.tiles) * model.mllm.tokens_per_tile == model.mllm.vision(batch.tiles).flatten(0, 1).shape[0]
    )
    with pytest.raises(ValueError, match="picture positions"):
        model.mllm.embed(batch.input_ids, model.mllm.vision(batch.tiles[:-1]))


def test_a_typed_picture_mark_is_no_picture(model: Any) -> None:
    batch = model.processor.encode([Sample(turns=(Turn(question="<IMG_CONTEXT><img></img>"),))], reply=False)
    assert not bool((batch.input_ids == model.vocabulary.image).any())
    assert batch.tiles is None


def test_too_long_counts_positions_of_the_longest_branch(model: Any, picture: Make) -> None:
    """A tree of a thousand phrases fits: no phrase is behind another."""
    phrases = tuple(f"name {i}" for i in range(300))
    sample = Sample(pictures=(picture(),), turns=(Turn(task="detection", phrases=phrases),))
    assert len(model.processor.encode([sample], [Style(tree=True)]).links) == 300
    with pytest.raises(PromptError, match="shorten") as caught:
        model.processor.encode([sample])
    assert "\n" not in str(caught.value)
