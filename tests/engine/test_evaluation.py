"""An evaluation asks what it says, and scores what comes back: a model that knows everything gets 1, one that mixes up
phrases does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from visionllm.core.answer import Answer, LinkResult, Trace
from visionllm.core.detections import Detections
from visionllm.core.errors import ConfigError, DatasetError
from visionllm.core.superlink import LinkMeta
from visionllm.core.task import TASKS
from visionllm.datasets.catalog import Dataset, open_dataset
from visionllm.evaluation import evaluate

PICTURES = 4


@pytest.fixture(scope="module")
def scenes() -> Dataset:
    return open_dataset("scenes", "val")


@pytest.fixture
def oracle(model: Any, scenes: Dataset, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the model answer the truth about each picture; names that no scene holds get a sure, false box."""

    def build(shift: int = 0) -> tuple[Any, list[tuple[str, ...]]]:
        asked: list[tuple[str, ...]] = []
        records = {scenes.read(i).picture.pixels.tobytes(): scenes.read(i) for i in range(PICTURES)}

        def known(task: str, pictures: Sequence[Any], phrases: Sequence[str], **_: Any) -> Answer:
            asked.append(tuple(phrases))
            record = records[pictures[0].pixels.tobytes()]
            links = []
            for phrase in phrases:
                boxes, sure = np.array([[0, 0, 9, 9]], np.float32), 1.0
                if phrase in record.names:
                    label = (record.names.index(phrase) + shift) % len(record.names)
                    boxes = record.boxes_xyxy[(record.labels == label) & ~record.crowd].astype(np.float32)
                    sure = 0.8
                found = Detections(
                    boxes_xyxy=boxes, scores=np.full(len(boxes), sure, np.float32),
                    labels=np.zeros(len(boxes), np.int64), phrases=(phrase,),
                    presence=np.array([float(len(boxes) > 0)], np.float32), size=record.picture.size,
                )  # fmt: skip
                meta = LinkMeta(sample=0, turn=0, task=task, token="[DET]", phrase=phrase)
                links.append(LinkResult(meta=meta, decoder="objects", result=found))
            routed = tuple(("[DET]", phrase) for phrase in phrases)
            return Answer(text="", links=tuple(links), trace=Trace(routed=routed))

        monkeypatch.setattr(model, "known", known)
        return model, asked

    return build


def test_the_truth_scores_one(oracle: Any, scenes: Dataset) -> None:
    truthful, asked = oracle()
    report = evaluate(truthful, scenes, known=True, limit=PICTURES)
    assert report["detection"]["AP50"] == pytest.approx(1)
    assert report["detection"]["presence"]["accuracy"] == 1
    assert (report["samples"], report["questions"], report["path"]) == (PICTURES, PICTURES, "known task")
    assert asked == [scenes.names] * PICTURES


def test_phrases_mixed_up_score_nothing(oracle: Any, scenes: Dataset) -> None:
    assert evaluate(oracle(shift=1)[0], scenes, known=True, limit=PICTURES)["detection"]["AP50"] < 0.1


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_names_in_several_questions_are_scored_as_one_picture(oracle: Any, scenes: Dataset, chunk: int | None) -> None:
    truthful, asked = oracle()
    report = evaluate(truthful, scenes, known=True, limit=2, chunk=chunk)
    assert report["detection"]["AP50"] == pytest.approx(1)
    assert report["detection"]["pictures"] == 2
    assert sum(asked, ()) == scenes.names * 2
    assert max(map(len, asked)) == (chunk or len(scenes.names))


@pytest.mark.parametrize("chunk", [1, None])
def test_invented_names_are_asked_but_their_boxes_are_not_scored(
    oracle: Any, scenes: Dataset, chunk: int | None
) -> None:
    truthful, asked = oracle()
    report = evaluate(truthful, scenes, known=True, limit=2, chunk=chunk, among=60)
    assert report["detection"]["AP50"] == pytest.approx(1)
    assert set(report["detection"]["categories"]) <= set(scenes.names)
    for phrases in asked:
        assert len(phrases) == len({phrase.casefold() for phrase in phrases}) == 60
    own = [phrase for phrases in asked for phrase in phrases if phrase in scenes.names]
    assert own == [*scenes.names] * 2
    again = oracle()
    evaluate(again[0], scenes, known=True, limit=2, chunk=chunk, among=60)
    assert again[1] == asked


def test_a_reply_is_compared_with_all_that_was_asked(
    model: Any, scenes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free-running: the filled names belong to what must be routed, and the question holds them."""
    seen = []

    def ask_many(requests: Sequence[tuple[Any, str, Any]], **_: Any) -> list[Answer]:
        seen.extend(question for _, question, _ in requests)
        return [Answer(text="", trace=Trace(routed=tuple(("[DET]", name) for name in scenes.names))) for _ in requests]

    monkeypatch.setattr(model, "ask_many", ask_many)
    assert evaluate(model, scenes, limit=2, canonical=True)["routing"]["exact"] == 1
    report = evaluate(model, scenes, limit=2, canonical=True, among=50)
    assert report["routing"]["failures"] == {"missing": 2}
    assert all(name in question for name in scenes.names for question in seen)
    assert len(seen[-1]) > len(seen[0])


@pytest.mark.parametrize("name", ["batch_size", "limit", "chunk", "among"])
def test_numbers_start_at_one(model: Any, scenes: Dataset, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected at least 1, got 0"):
        evaluate(model, scenes, **{name: 0})


def test_a_data_set_that_cannot_answer_is_refused(model: Any, scenes: Dataset) -> None:
    """The scenes opened for boxes hold no captions; a report of nothing would look like a score."""
    with pytest.raises(DatasetError, match=r"scenes/val \(captions\): nothing to ask of 2 samples; .* no captions"):
        evaluate(model, replace(scenes, task="captions"), limit=2)


def test_plain_words_are_asked_and_compared(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset("scenes", "val", task="questions")
    truth = {question: reply for i in range(2) for question, reply, *_ in data.read(i).questions}  # type: ignore[union-attr]

    def ask_many(requests: Sequence[tuple[Any, str, Any]], **_: Any) -> list[Answer]:
        return [Answer(text=truth[question]) for _, question, _ in requests]

    monkeypatch.setattr(model, "ask_many", ask_many)
    report = evaluate(model, data, limit=1)
    assert report["words"]["exact"] > 0.7  # the same question may have another answer in the other picture
    assert report["routing"]["exact"] == 1.0
    assert report["task"] == "questions"
    with pytest.raises(ConfigError, match="no known-task path to plain words"):
        evaluate(model, data, known=True)


def test_a_conversation_is_asked_turn_by_turn(make_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All questions of a sample in one chat, and each reply counts."""
    model = make_model(mask_width=16)
    card = {
        "name": "mine", "task": "detection", "format": "phrases", "license": "Apache-2.0",
        "splits": {"val": {"length": 4, "longest": 5, "talk": 1.0, "tasks": {"detection": 1, "segmentation": 1}}},
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(card))
    data = open_dataset(tmp_path / "mine.yaml", "val")
    samples = [data.ask_all(i)[0] for i in range(4)]
    asked: list[list[str]] = []

    class Chat:
        def __init__(self, turns: Sequence[Any]) -> None:
            self.turns = list(turns)
            asked.append([])

        def ask(self, words: str, regions: Sequence[Any]) -> Answer:
            asked[-1].append(words)
            turn = self.turns[len(asked[-1]) - 1]
            token = TASKS[turn.task].tokens[0].text
            wrong = len(asked) == 1 and len(asked[-1]) == 2
            return Answer(text="", trace=Trace(routed=() if wrong else tuple((token, one) for one in turn.phrases)))

    waiting = iter(samples)
    monkeypatch.setattr(model, "chat", lambda pictures, options: Chat(next(waiting).turns))
    report = evaluate(model, data, limit=4, canonical=True)
    count = sum(len(sample.turns) for sample in samples)
    assert [len(words) for words in asked] == [len(sample.turns) for sample in samples]
    assert report["questions"] == report["routing"]["replies"] == count
    assert report["routing"]["failures"] == {"missing": 1}


def test_several_pictures_are_scored_one_by_one(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth in its own picture scores one; the same boxes answered in the other picture score little."""
    data = open_dataset("scenes", "val", task="several")
    samples = {sample.pictures[0].pixels.tobytes(): sample for i in range(3) for sample in data.ask_all(i)}

    def answering(swap: bool) -> Any:
        def ask_many(requests: Sequence[tuple[Any, str, Any]], **_: Any) -> list[Answer]:
            answers = []
            for pictures, _question, _regions in requests:
                sample = samples[pictures[0].pixels.tobytes()]
                turn, links = sample.turns[0], []
                for place, phrase in enumerate(turn.phrases):
                    number = sample.picture_of(phrase)
                    boxes = turn.target.boxes_xyxy[turn.target.phrase == place]
                    found = Detections(
                        boxes_xyxy=boxes, scores=np.full(len(boxes), 0.9, np.float32),
                        labels=np.zeros(len(boxes), np.int64), phrases=(phrase,),
                        presence=np.array([float(len(boxes) > 0)], np.float32), size=sample.pictures[number].size,
                    )  # fmt: skip
                    meta = LinkMeta(sample=0, turn=0, task="detection", token="[DET]", phrase=phrase, group=place,
                                    media=(1 - number if swap else number,))  # fmt: skip
                    links.append(LinkResult(meta=meta, decoder="objects", result=found))
                answers.append(Answer(text="", links=tuple(links), pictures=sample.pictures))
            return answers

        return ask_many

    for swap in (False, True):
        monkeypatch.setattr(model, "ask_many", answering(swap))
        report = evaluate(model, data, limit=3)["detection"]
        assert (report["AP50"] == 1.0) == (not swap)
        assert not swap or report["AP50"] == 0.0


@pytest.mark.parametrize(("task", "metric"), [("in_context", "segmentation"), ("in_context_boxes", "detection")])
def test_one_phrase_means_something_else_in_each_question(make_model: Any, task: str, metric: str) -> None:
    """A picture with things of two kinds is an example twice, of other things under the same words."""
    data = open_dataset("scenes", "val", task=task)
    questions = [sample for index in range(3) for sample in data.ask_all(index)]
    phrases = [(sample.source.index, sample.turns[0].phrases) for sample in questions]
    assert len(set(phrases)) < len(phrases)
    report = evaluate(make_model(mask_width=16, regions={}), data, limit=3)
    assert report[metric]["pictures"] == report["questions"] == len(questions)


def test_regions_have_a_known_path_where_nothing_is_compared(make_model: Any) -> None:
    model = make_model(mask_width=16, regions={})
    report = evaluate(model, open_dataset("scenes", "val", task="interactive"), known=True, limit=1)
    assert report["interactive"]["box"]["regions"] > 0
    with pytest.raises(ConfigError, match="no known-task path to 'same as region 1 in picture 2'"):
        evaluate(model, open_dataset("scenes", "val", task="in_context"), known=True, limit=1)
