"""Expressions and plain words: figures worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.arrays import object_array
from visionllm.core.detections import Detections
from visionllm.core.errors import DatasetError
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask
from visionllm.core.sample import BoxTarget, Turn, WordsTarget
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS
from visionllm.metrics.words import consensus, normal

SIZE = (40, 30)


def block(x1: int, y1: int, x2: int, y2: int) -> Mask:
    whole = np.zeros(SIZE[::-1], bool)
    whole[y1:y2, x1:x2] = True
    return Mask.of(whole)


def asked(masks: bool = False, **truth: Mask) -> Turn:
    target = BoxTarget(
        boxes_xyxy=np.array([mask.box_xyxy for mask in truth.values()], np.float32), phrase=np.arange(len(truth)),
        masks=object_array(list(truth.values())) if masks else None,
    )  # fmt: skip
    return Turn(task="segmentation" if masks else "detection", phrases=tuple(truth), target=target)


def answer(kind: type[Detections], **found: list[tuple[float, Mask]]) -> Answer:
    task, token = ("segmentation", "[SEG]") if kind is Masks else ("detection", "[DET]")
    links = []
    for phrase, rows in found.items():
        more = {"masks": object_array([mask for _, mask in rows])} if kind is Masks else {}
        result = kind(
            boxes_xyxy=np.array([mask.box_xyxy for _, mask in rows], np.float32).reshape(-1, 4),
            scores=np.array([score for score, _ in rows], np.float32), labels=np.zeros(len(rows), np.int64),
            phrases=(phrase,), presence=np.ones(1, np.float32), size=SIZE, **more,
        )  # fmt: skip
        meta = LinkMeta(sample=0, turn=0, task=task, token=token, phrase=phrase)
        links.append(LinkResult(meta=meta, decoder="objects", result=result))
    return Answer(text="", links=tuple(links))


def test_the_best_box_decides() -> None:
    """Found; found with the second best box only; IoU just under a half; not routed."""
    metric = METRICS["grounding"]()
    truth = {name: block(10, 10, 20, 20) for name in ("a", "b", "c", "d")}
    right, wrong = block(10, 10, 20, 20), block(30, 20, 35, 25)
    found = {"a": [(0.3, wrong), (0.9, right)], "b": [(0.9, wrong), (0.3, right)], "c": [(0.9, block(10, 10, 14, 20))]}
    metric.add(asked(**truth), answer(Detections, **found), key=0)
    report = metric.compute()
    assert (report["P@0.5"], report["expressions"]) == (0.25, 4)
    assert report["gIoU"] == pytest.approx((1 + 0.4) / 4)
    low, high = report["P@0.5_interval"]
    assert low <= 0.25 <= high
    json.dumps(report)


def test_the_best_mask_decides_and_all_sure_ones_count_together() -> None:
    metric = METRICS["referring"](threshold=0.5)
    truth = {"a": block(0, 0, 10, 10), "b": block(0, 0, 10, 10), "c": block(20, 0, 30, 10)}
    found = {
        "a": [(0.9, block(0, 0, 10, 4)), (0.6, block(0, 4, 10, 10)), (0.4, block(30, 20, 40, 30))],
        "b": [(0.4, block(0, 0, 10, 4)), (0.1, block(0, 0, 10, 10))],  # nothing reaches .5: the best alone
        "c": [],
    }
    metric.add(asked(masks=True, **truth), answer(Masks, **found), key=0)
    report = metric.compute()
    assert report["P@0.5"] == 0
    assert report["gIoU"] == pytest.approx((0.4 + 0.4 + 0) / 3)
    assert report["cIoU"] == pytest.approx((40 + 40) / 300)
    every = report["all"]
    assert [every[name] for name in ("P@0.5", "gIoU", "cIoU")] == pytest.approx([1 / 3, (1 + 0.4 + 0) / 3, 140 / 300])
    # Of one picture there is nothing else to draw.
    assert report["cIoU_interval"] == pytest.approx([80 / 300] * 2)
    assert every["cIoU_interval"] == pytest.approx([140 / 300] * 2)
    assert report["gIoU_interval"] == pytest.approx([0.8 / 3] * 2)
    with pytest.raises(DatasetError, match="no masks to compare"):
        metric.add(asked(a=truth["a"]), answer(Masks, **found), key=1)


def test_words_are_compared_as_words_and_numbers_as_numbers() -> None:
    metric = METRICS["words"]()
    for expected, got in (("yes", "Yes."), ("no", "yes"), ("3", "3"), ("4", "about 6"), ("2", "none"), ("red", "red")):
        metric.add(Turn(question="?", reply=expected), Answer(text=got), key=0)
    report = metric.compute()
    assert report["exact"] == pytest.approx(3 / 6)
    assert report["counting"] == {
        "exact": pytest.approx(1 / 3),
        "error": pytest.approx((0 + 2 + 2) / 3),
        "questions": 3,
        "exact_interval": [pytest.approx(1 / 3)] * 2,  # one picture
        "error_interval": [pytest.approx(4 / 3)] * 2,
    }
    assert [entry["got"] for entry in report["wrong"]] == ["yes", "about 6", "none"]
    assert METRICS["words"]().compute()["exact"] is None
    json.dumps(report)


def test_cumulative_overlap_of_the_pictures_drawn() -> None:
    """Half of the pictures hold a small thing found wholly, half a large one found not at all."""
    metric = METRICS["referring"](threshold=0.5)
    small, large = block(0, 0, 5, 5), block(0, 0, 20, 20)
    for key in range(20):
        metric.add(asked(masks=True, a=large if key % 2 else small), answer(Masks, a=[] if key % 2 else [(0.9, small)]),
                   key=key)  # fmt: skip
    report = metric.compute()
    assert report["cIoU"] == pytest.approx(25 / 425)
    for name in ("cIoU", "gIoU", "P@0.5"):
        low, high = report[f"{name}_interval"]
        assert low < report[name] < high
    assert METRICS["referring"]().compute()["cIoU_interval"] is None


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        ("A cat.", ["cat"] * 10, 1.0),
        ("dog", ["cat"] * 10, 0.0),
        # Of three who said so, their own choices leave two: 7 of 10 see three of three, 3 of 10 two of three.
        ("cat", ["cat"] * 3 + ["dog"] * 7, (7 * 1 + 3 * 2 / 3) / 10),
        ("cat", ["cat"] + ["dog"] * 9, (9 * 1 / 3) / 10),
        ("cat", ["cat"], 1.0),  # one answer is the truth
        ("dog", ["cat"], 0.0),
    ],
)
def test_consensus_by_hand(said: str, answers: list[str], expected: float) -> None:
    assert consensus(said, answers) == pytest.approx(expected)
    metric = METRICS["words"]()
    metric.add(Turn(question="?", reply="cat", target=WordsTarget(references=tuple(answers))), Answer(text=said), key=0)
    told = metric.compute()["consensus"]
    assert (told["VQA"], told["questions"]) == (pytest.approx(expected), 1)
    assert told["VQA_interval"] == pytest.approx([expected] * 2)


def test_what_does_not_change_the_meaning_is_left_out() -> None:
    assert normal("A red  car, left of the BUS.") == normal("red car left of bus")


def test_kinds_of_question_are_told_apart() -> None:
    metric = METRICS["words"]()
    said = ((0, "colour", "red", "red"), (0, "colour", "red", "blue"), (1, "side", "left", "left"), (1, "", "no", "no"))
    for key, kind, expected, got in said:
        metric.add(Turn(question="?", reply=expected, kind=kind), Answer(text=got), key=key)
    report = metric.compute()
    assert report["exact"] == pytest.approx(3 / 4)
    assert {kind: (own["exact"], own["replies"]) for kind, own in report["kinds"].items()} == {
        "colour": (0.5, 2), "side": (1.0, 1),
    }  # fmt: skip
