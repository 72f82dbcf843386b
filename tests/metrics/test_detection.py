"""Detection figures: a case worked by hand, agreement with the COCO protocol, the operating point."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.detections import Detections
from visionllm.core.sample import BoxTarget, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS
from visionllm.metrics.detection import DetectionMetric, auroc, box_overlaps
from visionllm.metrics.precision import LEVELS, greedy_match

FAR = (500.0, 500.0, 520.0, 520.0)


def target(rows: list[tuple[float, ...]], ignore: list[bool] | None = None) -> BoxTarget:
    """Rows are (phrase, x1, y1, x2, y2)."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return BoxTarget(
        boxes_xyxy=table[:, 1:],
        phrase=table[:, 0].astype(np.int64),
        ignore=None if ignore is None else np.array(ignore, bool),
    )


def update(
    metric: DetectionMetric,
    key: int,
    phrases: tuple[str, ...],
    found: list[tuple[float, ...]],
    truth: BoxTarget,
    presence: tuple[float, ...] | None = None,
) -> None:
    """``found`` rows are (phrase, score, x1, y1, x2, y2)."""
    table = np.array(found, np.float32).reshape(-1, 6)
    metric.update(
        phrases,
        table[:, 2:],
        table[:, 1],
        table[:, 0].astype(np.int64),
        np.array(presence if presence is not None else [0.0] * len(phrases), np.float32),
        truth,
        key=key,
    )


def test_worked_by_hand() -> None:
    """Two objects, three boxes: hit, false, hit.

    Precision falls 1, 1/2, 2/3 while recall climbs .5, .5, 1. Interpolated: 1 up to recall .5 (51 of 101 points), 2/3
    beyond (50 points): (51 + 50 * 2/3) / 101.
    """
    metric = DetectionMetric(("car",))
    update(metric, 0, ("car",), [(0, 0.9, 0, 0, 10, 10), (0, 0.8, *FAR)], target([(0, 0, 0, 10, 10)]))
    update(metric, 1, ("car",), [(0, 0.7, 0, 0, 10, 10)], target([(0, 0, 0, 10, 10)]))
    expected = (51 + 50 * 2 / 3) / 101
    figures = metric.compute()
    assert figures["AP50"] == pytest.approx(expected, abs=1e-9)
    assert figures["AP"] == pytest.approx(expected, abs=1e-9)
    assert metric.own_precision()["AP50"] == pytest.approx(expected, abs=1e-9)
    assert figures["categories"]["car"]["objects"] == 2


def random_metric(seed: int, crowds: bool = True, pictures: int = 12) -> DetectionMetric:
    rng = np.random.default_rng(seed)
    metric = DetectionMetric(("a", "b", "c"))
    for key in range(pictures):
        objects, boxes = int(rng.integers(0, 6)), int(rng.integers(0, 14))
        low = rng.integers(0, 50, (objects, 2))
        truth = np.concatenate([low, low + rng.integers(5, 40, (objects, 2))], 1).astype(np.float32)
        near = truth[rng.integers(0, objects, boxes)] if objects else np.tile([0.0, 0, 9, 9], (boxes, 1))
        near = near + rng.normal(0, 2, near.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        metric.update(
            ("a", "b", "c"),
            near.astype(np.float32),
            # Half of the pictures have many equal scores.
            rng.random(boxes).round(1 if key % 2 else 6).astype(np.float32),
            rng.integers(0, 3, boxes),
            rng.random(3).astype(np.float32),
            BoxTarget(
                boxes_xyxy=truth,
                phrase=rng.integers(0, 3, objects),
                ignore=rng.random(objects) < 0.2 if crowds else None,
            ),
            key=key,
        )
    return metric


@pytest.mark.parametrize("seed", range(30))
def test_own_precision_is_cocos(seed: int) -> None:
    metric = random_metric(seed, crowds=seed % 2 == 0)
    report = metric.average_precision()
    for name, value in metric.own_precision().items():
        assert value == pytest.approx(report[name], abs=1e-9), name


def test_more_than_a_hundred_boxes() -> None:
    metric = DetectionMetric(("car",))
    found = [(0, 0.9 - i / 1000, *FAR) for i in range(100)] + [(0, 0.1, 0, 0, 10, 10)]
    update(metric, 0, ("car",), found, target([(0, 0, 0, 10, 10)]))
    assert metric.own_precision()["AP50"] == metric.average_precision()["AP50"] == 0


def test_extremes() -> None:
    perfect, blind = DetectionMetric(("car", "bus")), DetectionMetric(("car", "bus"))
    for key in range(4):
        update(perfect, key, ("car", "bus"), [(0, 0.9, 0, 0, 10, 10)], target([(0, 0, 0, 10, 10)]), (0.9, 0.1))
        update(blind, key, ("car", "bus"), [], target([(0, 0, 0, 10, 10)]))
    figures = perfect.compute()
    # The bus is nowhere: it does not enter the mean.
    assert figures["AP"] == figures["AP50"] == figures["AP75"] == 1
    assert figures["categories"]["bus"]["AP50"] is None
    assert figures["AP_interval"] == figures["AP50_interval"] == figures["AP75_interval"] == [1, 1]
    assert figures["categories"]["car"]["AP50_interval"] == [1, 1]
    assert figures["categories"]["bus"]["AP50_interval"] is None
    assert figures["presence"] == {"accuracy": 1, "auroc": 1}
    assert blind.compute()["AP50"] == 0
    assert blind.compute()["operating"][0]["recall"] == 0


def test_nothing_seen_and_nothing_there() -> None:
    json.dumps(DetectionMetric().compute(), allow_nan=False)
    metric = DetectionMetric(("car",))
    update(metric, 0, ("car",), [(0, 0.9, *FAR)], target([]))
    figures = metric.compute()
    json.dumps(figures, allow_nan=False)
    assert figures["AP50"] is None
    assert figures["operating"][4]["false_alarm_pictures"] == 1


MATCHES = [
    # boxes best first, truth, crowd, expected
    ([(0, 0, 10, 10)], [(0, 0, 10, 10)], [False], [1]),
    ([(0, 0, 10, 5)], [(0, 0, 10, 10)], [False], [1]),  # exactly a half counts
    ([(0, 0, 10, 4.9)], [(0, 0, 10, 10)], [False], [0]),
    ([(0, 0, 10, 10), (0, 0, 10, 10)], [(0, 0, 10, 10)], [False], [1, 0]),  # one object, one hit
    ([(0, 0, 10, 8), (0, 0, 10, 10)], [(0, 0, 10, 10)], [False], [1, 0]),  # the better score takes it
    ([(0, 0, 10, 10), (1, 1, 9, 9)], [(0, 0, 100, 100)], [True], [-1, -1]),  # a crowd swallows any number
    ([(95, 0, 110, 10)], [(0, 0, 100, 100)], [True], [0]),  # a third of it inside the crowd
    ([(0, 0, 10, 10)], [(0, 0, 100, 100), (0, 0, 10, 9)], [True, False], [1]),  # an object comes before a crowd
    ([(0, 0, 10, 10)], [], [], [0]),
    ([], [(0, 0, 10, 10)], [False], []),
]


@pytest.mark.parametrize(("boxes", "truth", "crowd", "expected"), MATCHES)
def test_matching(boxes: list, truth: list, crowd: list[bool], expected: list[int]) -> None:
    arrays = (np.array(rows, float).reshape(-1, 4) for rows in (boxes, truth))
    assert greedy_match(*box_overlaps(*arrays), np.array(crowd, bool))[0].tolist() == expected


def test_matching_at_every_level_is_matching_at_each() -> None:
    rng = np.random.default_rng(2)
    overlap, inside, crowd = rng.random((30, 6)), rng.random((30, 6)), np.array([False] * 4 + [True] * 2)
    for once in (False, True):
        whole = greedy_match(overlap, inside, crowd, once=once)
        for level, row in zip(LEVELS, whole, strict=True):
            assert (greedy_match(overlap, inside, crowd, np.array([level]), once=once) == row).all()
        assert ((whole == 1).sum(1) <= 4).all()
        assert ((whole == -1).sum(1) <= 2).all() == once  # what takes one takes no more


def test_operating_point() -> None:
    metric = DetectionMetric(("car", "bus", "dog"), threshold=0.65)
    # Picture 0: two cars, one found; a bus is claimed at 0.6; the dog is only a crowd, neither there nor absent.
    truth = target([(0, 0, 0, 10, 10), (0, 20, 0, 30, 10), (2, 0, 0, 90, 90)], [False, False, True])
    found = [(0, 0.9, 0, 0, 10, 10), (0, 0.7, *FAR), (1, 0.6, 0, 0, 9, 9), (2, 0.8, 1, 1, 9, 9)]
    update(metric, 0, ("car", "bus", "dog"), found, truth, (0.9, 0.6, 0.5))
    # Picture 1: nothing but a claimed dog.
    update(metric, 1, ("car", "bus", "dog"), [(2, 0.3, 0, 0, 9, 9)], target([]), (0.2, 0.1, 0.4))
    low, mid, high = metric.at(0.25), metric.at(0.5), metric.at(0.65)
    assert low["recall"] == 0.5
    assert low["phrase_recall"] == 1
    assert low["false_alarm_pictures"] == 1
    assert low["false_alarm_phrases"] == 2 / 4
    assert mid["false_alarm_pictures"] == 0.5
    assert mid["precision"] == 1 / 3
    assert high["precision"] == 1 / 2
    assert high["false_alarm_pictures"] == 0
    assert metric.presence() == {"accuracy": 4 / 5, "auroc": 1}
    report = metric.compute()
    assert [point["threshold"] for point in report["operating"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert report["default"] == high
    # Two cars, none of the rest: right from 0.61 to 0.69 (0.7 is a float32); a crowd has no number.
    assert report["counting"] == {"threshold": 0.65, "exact": 1.0}
    assert DetectionMetric().counting() == {"threshold": None, "exact": None}


@given(st.integers(0, 1000), st.floats(0, 1))
def test_best_threshold_is_the_lowest_that_keeps_its_word(seed: int, share: float) -> None:
    metric = random_metric(seed, pictures=6)
    threshold = metric.best_threshold(share)
    alarms = metric.at(threshold)["false_alarm_phrases"]
    assert alarms is None or alarms <= share + 1e-9
    # A float32 score that is any lower would let one more picture through.
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))
    assert threshold == 0 or metric.at(below)["false_alarm_phrases"] > share - 1e-9
    # Decoders compare in float32.
    assert float(np.float32(threshold)) == threshold


def test_interval_holds_the_estimate_and_repeats() -> None:
    metric = random_metric(3, pictures=40)
    report, own = metric.compute(), metric.own_precision()
    for name in ("AP", "AP50", "AP75"):
        low, high = report[f"{name}_interval"]
        assert low < own[name] < high
        assert all(one[f"{name}_interval"] is not None for one in report["categories"].values())
    assert metric.compute() == report
    assert metric._with_intervals(report, seed=1)["AP_interval"] != report["AP_interval"]
    point = metric.at(0.5)
    for name in ("false_alarm_phrases", "false_alarm_pictures"):
        low, high = point[f"{name}_interval"]
        assert low < point[name] < high
    without = DetectionMetric(resamples=0)
    without._pictures, without._labels = metric._pictures, metric._labels
    assert without.compute()["AP_interval"] is without.at(0.5)["false_alarm_phrases_interval"] is None


def test_resampling_is_repeating_pictures() -> None:
    metric = random_metric(5, crowds=False, pictures=4)
    weights = np.array([[2, 0, 1, 1]])
    repeated = DetectionMetric(("a", "b", "c"))
    for key, source in enumerate([0, 0, 2, 3]):
        repeated._pictures[key] = metric._pictures[source]
    values, expected = metric._resampled(weights)[:, 0], repeated.average_precision()
    assert [values.mean(), values[0]] == pytest.approx([expected["AP"], expected["AP50"]], abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.1, 0.9], [False, True], 1.0),
        ([0.9, 0.1], [False, True], 0.0),
        ([0.5, 0.5], [False, True], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [False, False, True, True], 0.75),
        ([0.1, 0.4], [True, True], None),
    ],
)
def test_auroc(scores: list[float], truth: list[bool], expected: float | None) -> None:
    assert auroc(np.array(scores), np.array(truth)) == expected


def answer(*links: tuple[str, float, list[tuple[float, ...]]]) -> Answer:
    """Each link: phrase, presence, rows of (score, x1, y1, x2, y2)."""
    results = []
    for phrase, presence, rows in links:
        table = np.array(rows, np.float32).reshape(-1, 5)
        found = Detections(
            boxes_xyxy=table[:, 1:], scores=table[:, 0], labels=np.zeros(len(table), np.int64), phrases=(phrase,),
            presence=np.array([presence], np.float32), size=(640, 480),
        )  # fmt: skip
        meta = LinkMeta(sample=0, turn=0, task="detection", token="[DET]", phrase=phrase)
        results.append(LinkResult(meta=meta, decoder="objects", result=found))
    return Answer(text="", links=tuple(results))


@pytest.fixture
def detection_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionllm.core import answer as module
    from visionllm.core.registry import Registry
    from visionllm.core.task import Task

    tasks: Registry[Task] = Registry("task")
    tasks.add("detection", Task(name="detection", tokens=(), decoder="", result="detections", verb=None, templates="",
                                metric="detection", loss_weights={}))  # fmt: skip
    monkeypatch.setattr(module, "TASKS", tasks)


@pytest.mark.usefixtures("detection_task")
def test_answers_are_matched_by_phrase() -> None:
    """Another order, a repeated phrase, one nobody asked for, one left out."""
    metric = METRICS["detection"](("car", "bus", "dog"))
    reply = answer(
        ("bus", 0.7, [(0.8, 0, 0, 10, 10)]),
        ("cat", 0.9, [(0.9, *FAR)]),
        ("car", 0.9, [(0.9, 20, 20, 40, 40)]),
        ("car", 0.1, [(0.5, *FAR)]),
    )
    truth = target([(0, 20, 20, 40, 40), (1, 0, 0, 10, 10), (2, 0, 0, 30, 30)])
    metric.add(Turn(phrases=("car", "bus", "dog"), target=truth), reply, key=0)
    figures = metric.compute()
    assert {name: c["AP50"] for name, c in figures["categories"].items()} == {"car": 1, "bus": 1, "dog": 0}
    assert figures["presence"]["accuracy"] == pytest.approx(2 / 3)
    assert figures["operating"][0]["precision"] == 1


@pytest.mark.usefixtures("detection_task")
def test_questions_in_chunks_are_one_picture() -> None:
    whole, chunks = DetectionMetric(("car", "bus")), DetectionMetric(("car", "bus"))
    car, bus = ("car", 0.9, [(0.9, 20, 20, 40, 40)]), ("bus", 0.2, [(0.3, 0, 0, 10, 10)])
    whole.add(Turn(phrases=("car", "bus"), target=target([(0, 20, 20, 40, 40)])), answer(car, bus), key=7)
    chunks.add(Turn(phrases=("bus",), target=target([])), answer(bus), key=7)
    chunks.add(Turn(phrases=("car",), target=target([(0, 20, 20, 40, 40)])), answer(car), key=7)
    assert whole.compute() == chunks.compute()
    assert chunks.compute()["pictures"] == 1
    with pytest.raises(AssertionError, match="asked twice"):
        chunks.add(Turn(phrases=("car",), target=target([])), answer(car), key=7)
