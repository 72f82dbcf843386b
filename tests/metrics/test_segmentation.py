"""Mask figures: a case worked by hand, agreement with the COCO protocol, masks that are missing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.arrays import object_array
from visionllm.core.errors import DatasetError
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask, SoftMask
from visionllm.core.sample import BoxTarget, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS
from visionllm.metrics.segmentation import SegmentationMetric

SIZE = (40, 30)


def block(x1: int, y1: int, x2: int, y2: int) -> Mask:
    whole = np.zeros(SIZE[::-1], bool)
    whole[y1:y2, x1:x2] = True
    return Mask.of(whole)


def target(rows: list[tuple[int, Mask | None]]) -> BoxTarget:
    boxes = [np.array([0, 0, 5, 5], np.float32) if mask is None else mask.box_xyxy for _, mask in rows]
    return BoxTarget(
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4), phrase=np.array([p for p, _ in rows], np.int64),
        masks=object_array([mask for _, mask in rows]),
    )  # fmt: skip


def asked(phrases: tuple[str, ...], truth: BoxTarget) -> Turn:
    return Turn(task="segmentation", phrases=phrases, target=truth)


def answer(*, level: float = 0.5, **found: list[tuple[float, Mask]]) -> Answer:
    links = []
    for phrase, rows in found.items():
        area = SoftMask.any_of([mask for _, mask in rows], [score for score, _ in rows], SIZE, level)
        result = Masks(
            boxes_xyxy=np.array([mask.box_xyxy for _, mask in rows], np.float32).reshape(-1, 4),
            scores=np.array([score for score, _ in rows], np.float32), labels=np.zeros(len(rows), np.int64),
            phrases=(phrase,), presence=np.ones(1, np.float32), size=SIZE, masks=object_array([m for _, m in rows]),
            areas=object_array([area]),
        )  # fmt: skip
        meta = LinkMeta(sample=0, turn=0, task="segmentation", token="[SEG]", phrase=phrase)
        links.append(LinkResult(meta=meta, decoder="objects", result=result))
    return Answer(text="", links=tuple(links))


def test_worked_by_hand() -> None:
    """A car found with IoU 2/3, another missed; the road found exactly, and half of it again, which is false."""
    metric = METRICS["segmentation"](("car", "road", "dog"), threshold=0.5)
    truth = target([(0, block(0, 0, 10, 10)), (0, block(20, 0, 30, 10)), (1, block(0, 20, 40, 30))])
    found = answer(
        car=[(0.9, block(0, 0, 10, 8)), (0.3, block(0, 12, 5, 15))],
        road=[(0.8, block(0, 20, 40, 30)), (0.6, block(0, 20, 20, 30))],
        dog=[(0.4, block(0, 0, 4, 4))],
    )  # fmt: skip
    metric.add(asked(("car", "road", "dog"), truth), found, key=0)
    report = metric.compute()
    # One of two cars at precision one: recall up to .5 counts, 51 of 101 points.
    assert report["categories"]["car"]["AP50"] == pytest.approx(51 / 101)
    assert report["categories"]["road"]["AP50"] == 1.0
    assert report["AP50"] == pytest.approx((51 / 101 + 1) / 2)
    assert report["AP50"] == pytest.approx(metric.own_precision()["AP50"])
    assert report["categories"]["car"]["IoU"] == pytest.approx(80 / 200)
    assert report["categories"]["road"]["IoU"] == 1.0
    assert report["mIoU"] == report["mIoU_alone"] == pytest.approx((0.4 + 1) / 2)
    assert metric.at(0.4)["false_alarm_phrases"] == 1.0
    # At .3 the false car counts, where it is likelier than the dog; half of the road is .8 likely, half .92. The dog,
    # which is where the car is, takes nothing from it, and is not there.
    semantic = {point["threshold"]: point for point in report["semantic"]}
    assert semantic[0.3]["mIoU"] == pytest.approx((80 / 215 + 1) / 2)
    assert semantic[0.65]["mIoU"] == pytest.approx((0.4 + 1) / 2)
    assert semantic[0.85]["mIoU"] == pytest.approx((0.4 + 0.5) / 2)
    assert semantic[0.95] == {"threshold": 0.95, "mIoU": 0.0, "mIoU_alone": 0.0}
    json.dumps(report)


def test_phrases_of_one_place_take_pixels_from_each_other() -> None:
    """The van is seen where the car is, less likely: among all it has nothing, by itself half of its union is right."""
    metric = SegmentationMetric(("car", "van"))
    truth = target([(0, block(0, 0, 10, 10)), (1, block(0, 0, 5, 10))])
    found = answer(car=[(0.9, block(0, 0, 10, 10))], van=[(0.8, block(0, 0, 10, 10))])
    metric.add(asked(("car", "van"), truth), found, key=0)
    report = metric.compute()
    assert report["mIoU"] == pytest.approx((1 + 0) / 2)
    assert report["mIoU_alone"] == pytest.approx((1 + 0.5) / 2)


def test_the_level_of_an_area_is_its_own() -> None:
    """A pixel among all belongs to its likeliest phrase where that is likelier than not, whatever an area asks for."""
    metric = SegmentationMetric(("car",))
    found = answer(level=0.7, car=[(0.9, block(0, 0, 5, 10)), (0.6, block(5, 0, 10, 10))])
    metric.add(asked(("car",), target([(0, block(0, 0, 10, 10))])), found, key=0)
    report = metric.compute()
    assert (report["mIoU"], report["mIoU_alone"]) == (1.0, 0.5)
    assert (report["mIoU_interval"], report["mIoU_alone_interval"]) == ([1.0, 1.0], [0.5, 0.5])


def test_intervals_are_those_of_the_pictures_drawn() -> None:
    """A car is found wholly in half of the pictures and not at all in the others; the dog is there once."""
    metric = SegmentationMetric(("car", "dog"), threshold=0.5)
    car, dog = block(0, 0, 10, 10), block(20, 20, 24, 24)
    for key in range(20):
        truth = target([(0, car), *([(1, dog)] if key == 0 else [])])
        metric.add(asked(("car", "dog"), truth), answer(car=[] if key % 2 else [(0.9, car)], dog=[(0.9, dog)]), key=key)
    report = metric.compute()
    cars, dogs = (report["categories"][name] for name in ("car", "dog"))
    assert (cars["IoU"], dogs["IoU"]) == (0.5, pytest.approx(1 / 20))
    assert cars["IoU_interval"] == pytest.approx(
        [0.5 - 1.96 * (0.25 / 20) ** 0.5, 0.5 + 1.96 * (0.25 / 20) ** 0.5], abs=0.06
    )
    # Where it is not drawn, it is not there.
    assert dogs["IoU_interval"][0] == pytest.approx(1 / 20)
    for name in ("mIoU", "mIoU_alone"):
        low, high = report[f"{name}_interval"]
        assert low < report[name] < high
    assert SegmentationMetric(("car",)).compute()["mIoU_interval"] is None


def test_shape_counts_and_not_the_box() -> None:
    """Two triangles that fill one box are strangers."""
    upper = np.tri(20, dtype=bool)
    truth, found = np.zeros(SIZE[::-1], bool), np.zeros(SIZE[::-1], bool)
    truth[:20, :20], found[:20, :20] = upper, ~upper
    metric = SegmentationMetric(("car",))
    metric.add(asked(("car",), target([(0, Mask.of(truth))])), answer(car=[(0.9, Mask.of(found))]), key=0)
    assert metric.compute()["AP50"] == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_own_precision_is_cocos(seed: int) -> None:
    rng = np.random.default_rng(seed)
    metric = SegmentationMetric(("a", "b"))

    def some(count: int) -> list[Mask]:
        low = rng.integers(0, 20, (count, 2))
        return [block(x, y, x + int(w), y + int(h)) for (x, y), (w, h) in zip(low, rng.integers(3, 10, (count, 2)),
                                                                           strict=True)]  # fmt: skip

    for key in range(8):
        truth = [(int(rng.integers(2)), mask) for mask in some(int(rng.integers(0, 5)))]
        near = [m for _, m in truth for _ in range(2)] + some(3)
        found: dict[str, Any] = {
            name: [(float(rng.random()), m) for m in near if rng.random() < 0.6] for name in ("a", "b")
        }
        metric.add(asked(("a", "b"), target(truth)), answer(**found), key=key)
    report = metric.compute()
    for name, value in metric.own_precision().items():
        assert report[name] == pytest.approx(value, abs=1e-6), name


def test_an_object_without_a_mask_is_no_mistake() -> None:
    metric = SegmentationMetric(("car",))
    truth = target([(0, block(10, 10, 20, 20)), (0, None)])
    metric.add(asked(("car",), truth), answer(car=[(0.9, block(1, 1, 4, 4)), (0.8, block(10, 10, 20, 20))]), key=0)
    assert metric.compute()["AP50"] == 1.0


def test_a_data_set_without_masks_is_refused_in_one_line() -> None:
    truth = BoxTarget(boxes_xyxy=np.array([[0, 0, 5, 5]], np.float32), phrase=np.zeros(1, np.int64))
    with pytest.raises(DatasetError, match="sample 7: the data set has no masks") as caught:
        SegmentationMetric(("car",)).add(asked(("car",), truth), answer(car=[]), key=7)
    assert "\n" not in str(caught.value)


def test_a_phrase_that_was_not_routed_found_nothing() -> None:
    metric = SegmentationMetric(("car", "dog"))
    metric.add(asked(("car", "dog"), target([(0, block(0, 0, 4, 4))])), answer(dog=[]), key=0)
    report = metric.compute()
    assert (report["AP50"], report["mIoU"]) == (0.0, 0.0)
