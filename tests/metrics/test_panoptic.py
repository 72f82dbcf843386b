"""Answers against a panoptic truth; the quality itself is worked by hand in tests/core/test_panoptic.py."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.arrays import object_array
from visionllm.core.errors import ShapeError
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask
from visionllm.core.panoptic import PanopticTruth, owned
from visionllm.core.sample import Picture, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS

SIZE = (40, 30)


def block(x1: int, y1: int, x2: int, y2: int) -> Mask:
    whole = np.zeros(SIZE[::-1], bool)
    whole[y1:y2, x1:x2] = True
    return Mask.of(whole)


def answer(**found: list[tuple[float, Mask]]) -> Answer:
    links = []
    for phrase, rows in found.items():
        result = Masks(
            boxes_xyxy=np.array([mask.box_xyxy for _, mask in rows], np.float32).reshape(-1, 4),
            scores=np.array([score for score, _ in rows], np.float32), labels=np.zeros(len(rows), np.int64),
            phrases=(phrase,), presence=np.ones(1, np.float32), size=SIZE, masks=object_array([m for _, m in rows]),
        )  # fmt: skip
        meta = LinkMeta(sample=0, turn=0, task="segmentation", token="[SEG]", phrase=phrase)
        links.append(LinkResult(meta=meta, decoder="objects", result=result))
    return Answer(text="", links=tuple(links), pictures=(Picture(pixels=np.zeros((*SIZE[::-1], 3), np.uint8)),))


def turn() -> Turn:
    masks = [block(0, 0, 10, 10), block(20, 0, 30, 10), block(0, 20, 20, 30), block(20, 20, 40, 30)]
    whole = owned(masks, ["car", "car", "road", "road"], {"road"}, size=SIZE)
    assert [(s.phrase, s.thing, s.area) for s in whole.segments] == [
        ("car", True, 100), ("car", True, 100), ("road", False, 400)
    ]  # fmt: skip
    return Turn(phrases=("car", "road"), target=PanopticTruth(whole=whole, stuff=frozenset({"road"})))


def test_masks_are_merged_before_they_are_compared() -> None:
    """The surer car is on the road's pixels too; one that is not sure enough owns nothing."""
    metric = METRICS["panoptic"](threshold=0.5)
    found = answer(
        car=[(0.9, block(0, 0, 10, 10)), (0.8, block(20, 0, 30, 8)), (0.4, block(0, 10, 10, 20))],
        road=[(0.7, block(0, 18, 40, 30))],
    )
    metric.add(turn(), found, key=0)
    report = metric.compute()
    # What the road has too much is nobody's.
    assert report["categories"]["car"] == {"PQ": pytest.approx(0.9), "SQ": pytest.approx(0.9), "RQ": 1, "segments": 2}
    assert (report["PQ_things"], report["PQ_stuff"]) == (pytest.approx(0.9), 1)
    assert report["PQ_interval"] == pytest.approx([0.95, 0.95])


def test_nothing_routed_owns_nothing() -> None:
    metric = METRICS["panoptic"]()
    metric.add(turn(), answer(), key=0)
    assert metric.compute()["PQ"] == 0
    assert METRICS["panoptic"]().compute()["PQ"] is None


def test_a_pixel_has_one_owner() -> None:
    with pytest.raises(ShapeError, match=r"'bus' \(mask 1\) and 'car' claim the same pixels"):
        owned([block(0, 0, 9, 9), block(8, 8, 12, 12)], ["car", "bus"], size=SIZE)
    assert owned([], [], size=SIZE).ids.shape == (30, 40)
