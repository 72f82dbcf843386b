"""Interactive figures by hand, and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.arrays import object_array
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask
from visionllm.core.regions import Box, Point
from visionllm.core.sample import BoxTarget, Picture, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval

SIZE = (40, 30)


def block(x1: int, y1: int, x2: int, y2: int) -> Mask:
    whole = np.zeros(SIZE[::-1], bool)
    whole[y1:y2, x1:x2] = True
    return Mask.of(whole)


def answered(**found: Mask) -> Answer:
    links = []
    for name, mask in found.items():
        phrase = name.replace("_", " ")
        result = Masks(
            boxes_xyxy=mask.box_xyxy[None], scores=np.ones(1, np.float32), labels=np.zeros(1, np.int64),
            phrases=(phrase,), presence=np.ones(1, np.float32), size=SIZE, masks=object_array([mask]),
        )  # fmt: skip
        meta = LinkMeta(sample=0, turn=0, task="segmentation", token="[SEG]", phrase=phrase)
        links.append(LinkResult(meta=meta, decoder="objects", result=result))
    picture = Picture(pixels=np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    return Answer(text="", links=tuple(links), pictures=(picture,))


def test_each_region_is_compared_with_its_thing() -> None:
    first, second = block(0, 0, 10, 10), block(20, 10, 30, 20)
    target = BoxTarget(boxes_xyxy=np.array([first.box_xyxy, second.box_xyxy]), phrase=np.arange(2),
                       masks=object_array([first, second]))  # fmt: skip
    turn = Turn(task="segmentation", phrases=("region 1", "region 2"), target=target,
                question="segment <region>, <region>", regions=(Box(0, 0, 10, 10), Point(25, 15)))  # fmt: skip
    metric = METRICS["interactive"]([])
    metric.add(turn, answered(region_2=block(20, 10, 30, 15), region_1=first), key=0)
    metric.add(turn, answered(region_1=second), key=1)
    report = metric.compute()
    assert report["box"]["IoU"] == pytest.approx(0.5)
    assert report["point"]["IoU"] == pytest.approx(0.25)
    assert (report["box"]["IoU50"], report["point"]["IoU50"], report["box"]["regions"]) == (0.5, 0.5, 2)
    assert report["box"]["IoU_interval"] == [0.0, 1.0]


def test_intervals_hold_the_mean_and_shrink_with_pictures() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (10, 1000):
        groups = [rng.random(3).tolist() for _ in range(count)]
        low, high = interval(groups)  # type: ignore[misc]
        assert low < np.mean([value for own in groups for value in own]) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    # Values of one picture go together: three alike are no surer than one.
    once = [[float(value)] for value in rng.integers(0, 2, 50)]
    assert interval([own * 3 for own in once]) == pytest.approx(interval(once))
    assert interval([]) is None
