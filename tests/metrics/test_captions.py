"""CIDEr by hand, and against the code its authors published."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.detections import Detections
from visionllm.core.sample import BoxTarget, Turn, WordsTarget
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS
from visionllm.metrics.captions import cider

WORDS = ["a", "man", "dog", "rides", "horse", "red", "on", "street", "the", "near", "two", "cars"]


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(1, 12))))


def test_by_hand() -> None:
    """Two pictures; "a" is in both and weighs nothing, every other run is in one: all weigh log 2."""
    references = [["a red dog"], ["a horse"]]
    scores = cider(["a red dog", "a dog"], references)
    # Runs of four words are in neither: a quarter of the cosines is empty.
    assert scores[0] == pytest.approx(10 * 3 / 4)
    assert scores[1] == 0.0
    # "red dog": of single words both (cosine 1), of pairs one of two (1 / sqrt 2), no triples; one pair less.
    assert cider(["red dog"], references[:1])[0] == 0.0  # alone nothing is rare
    shorter = cider(["red dog", "x"], references)[0]
    assert shorter == pytest.approx(10 / 4 * (1 + 1 / math.sqrt(2)) * math.exp(-1 / 72))


@pytest.mark.parametrize("seed", range(5))
def test_against_the_published_code(seed: int) -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    rng = np.random.default_rng(seed)
    references = [[sentence(rng) for _ in range(int(rng.integers(1, 5)))] for _ in range(12)]
    found = [own[0] if rng.random() < 0.3 else sentence(rng) for own in references]
    theirs = scorer.CiderScorer(n=4, sigma=6.0)
    for text, own in zip(found, references, strict=True):
        theirs += (text, own)
    mean, each = theirs.compute_score()
    ours = cider(found, references)
    np.testing.assert_allclose(ours, each, atol=1e-9)
    assert ours.mean() == pytest.approx(mean)


@pytest.mark.parametrize("keys", [(0, 1), (0, 0)], ids=["of two pictures", "of two regions of one picture"])
def test_replies_are_compared_with_all_their_captions(keys: tuple[int, int]) -> None:
    metric = METRICS["captions"]()
    replies = [("The red dog!", ("the red dog", "an animal")), ("nothing", ("two cars",))]
    for key, (text, own) in zip(keys, replies, strict=True):
        turn = Turn(question="?", reply=own[0], target=WordsTarget(references=own))
        metric.add(turn, Answer(text=text), key=key)
    report = metric.compute()
    assert report["exact"] == 0.5
    assert report["captions"] == 2
    assert report["CIDEr"] > 0
    low, high = report["CIDEr_interval"]
    assert low <= report["CIDEr"] <= high
    assert METRICS["captions"]().compute()["CIDEr"] is None


def test_a_grounded_caption_is_read_without_its_marks_and_its_boxes_are_compared() -> None:
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]], np.float32)
    turn = Turn(
        task="detection", phrases=("red dog", "car", "dog"), question="?", reply="A red dog and a car. The dog sleeps.",
        target=BoxTarget(boxes_xyxy=truth, phrase=np.arange(3)),
    )  # fmt: skip
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [20, 0, 30, 9]], np.float32)
    found = Detections(
        boxes_xyxy=boxes, scores=np.array([0.9, 0.8, 0.2], np.float32), labels=np.zeros(3, np.int64),
        phrases=("red dog",), presence=np.ones(1, np.float32), size=(40, 40),
    )  # fmt: skip
    meta = LinkMeta(sample=0, turn=0, task="detection", token="[DET]", phrase="red dog")
    text = "A <ref>red dog</ref>[DET] and a <ref>car</ref>[DET]. The <ref>dog</ref>[DET] sleeps."
    answer = Answer(text=text, links=(LinkResult(meta=meta, decoder="objects", result=found),))
    metric = METRICS["grounded_captions"]([], threshold=0.5)
    metric.add(turn, answer, key=0)
    report = metric.compute()
    assert report["exact"] == 1.0
    # Things meant twice count once; the car's box is below the operating point.
    assert report["box_recall"] == 0.5
    assert report["box_precision"] == 0.5
