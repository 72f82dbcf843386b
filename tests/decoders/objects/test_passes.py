"""Long lists, answered in passes over one set of features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from visionllm.decoders.objects.layout import Group, passes

Make = Callable[..., Any]
PHRASES = ["car", "dog", "red bus", "tree", "old house"]
EVERYTHING = {"objects": {"threshold": 0.0}}


@pytest.mark.parametrize(
    ("counts", "most", "sizes"),
    [
        ((5,), 2, [2, 2, 1]),
        ((80,), 16, [16] * 5),
        ((17,), 16, [9, 8]),
        ((16, 1), 16, [16, 1]),
        ((40,), 16, [14, 14, 12]),
    ],
)
def test_passes_are_of_nearly_one_size_and_lose_nothing(counts: tuple[int, ...], most: int, sizes: list[int]) -> None:
    pictures = [Group(owner=(row, 0), links=list(range(100 * row, 100 * row + n))) for row, n in enumerate(counts)]
    rows, groups = passes(pictures, range(len(pictures)), most)
    assert [len(group.links) for group in groups] == sizes
    for row, picture in enumerate(pictures):
        own = [group for at, group in zip(rows, groups, strict=True) if at == row]
        assert [link for group in own for link in group.links] == picture.links
        assert {group.owner for group in own} == {picture.owner}


def test_a_phrase_of_a_long_list_is_answered_as_its_pass_alone(make_model: Make, picture: Make) -> None:
    model = make_model(phrases_per_pass=2)
    seen: list[int] = []
    model.decoders["objects"].detector.net.backbone.register_forward_hook(lambda *_: seen.append(1))
    whole = model.detect(picture(), PHRASES, options=EVERYTHING)
    assert len(seen) == 1  # one look at the picture
    found = [link for start in (0, 2, 4) for link in model.detect(picture(), PHRASES[start : start + 2],
                                                                  options=EVERYTHING).links]  # fmt: skip
    for one, other in zip(whole.links, found, strict=True):
        assert one.meta.phrase == other.meta.phrase
        assert len(one.result) == len(other.result) > 0
        np.testing.assert_allclose(one.result.scores, other.result.scores, atol=1e-4)
        np.testing.assert_allclose(one.result.boxes_xyxy, other.result.boxes_xyxy, atol=1e-2)


def test_one_encoding_serves_all_passes(make_model: Make, picture: Make) -> None:
    """Fused one way, boxes and masks of several passes over two pictures come from one encoding of each, and of the
    pixels for what is close: those of each pass alone."""
    model = make_model(one_way=True, mask_width=16, phrases_per_pass=2)
    decoder = model.decoders["objects"]
    encoded: list[int] = []
    pixels: list[int] = []
    for layer in decoder.detector.net.encoder.layers[:1]:
        layer.deformable_layer.register_forward_hook(lambda _, args, kwargs, out: encoded.append(len(out[0])),
                                                     with_kwargs=True)  # fmt: skip
    decoder.pixel_map.register_forward_hook(lambda *_: pixels.append(1))
    shown = [picture(), picture(seed=3)]
    asked = [f"{phrase} in picture {number}" for phrase in PHRASES[:3] for number in (1, 2)]
    whole = model.segment(shown, asked, options=EVERYTHING)
    assert (sum(encoded), len(pixels)) == (2, 2)
    order = [phrase for number in (0, 1) for phrase in asked[number::2]]
    alone = {}
    for part in (order[0:2], order[2:3], order[3:5], order[5:6]):
        alone |= {link.meta.phrase: link.result for link in model.segment(shown, part, options=EVERYTHING).links}
    for link in whole.links:
        other = alone[link.meta.phrase]
        assert len(link.result) == len(other) > 0
        np.testing.assert_allclose(link.result.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(link.result.boxes_xyxy, other.boxes_xyxy, atol=1e-2)
        assert [mask.area for mask in link.result.masks] == pytest.approx([mask.area for mask in other.masks], abs=2)


def test_one_pass_of_all_is_another_answer(make_model: Make, picture: Make) -> None:
    """Otherwise the test above would hold of anything."""
    together, apart = (
        make_model(phrases_per_pass=most).detect(picture(), PHRASES, options=EVERYTHING) for most in (5, 1)
    )
    differences = [
        np.abs(one.result.scores - other.result.scores).max()
        for one, other in zip(together.links, apart.links, strict=True)
    ]
    assert max(differences) > 1e-3
