"""Questions about several pictures: each phrase says which, and its truth is of that one."""

from __future__ import annotations

from collections import Counter

import numpy as np

from visionllm.core.sample import Record, Sample
from visionllm.datasets.catalog import Dataset, open_dataset
from visionllm.datasets.loader import Loader
from visionllm.datasets.plan import item_rng


def opened(task: str) -> Dataset:
    return open_dataset("scenes", "val", task=task)


def records(dataset: Dataset, *indices: int) -> list[Record]:
    found = [dataset.read(index) for index in indices]
    assert all(isinstance(record, Record) for record in found)
    return found  # type: ignore[return-value]


def test_every_phrase_is_about_one_picture_and_its_boxes_are_of_it() -> None:
    dataset, counts = opened("several"), Counter[int]()
    for position in range(60):
        first, second = records(dataset, position % 10, 10 + position % 7)
        sample = dataset.ask_about(first, item_rng(0, position), [second])
        (turn,) = sample.turns
        assert sample.pictures == (first.picture, second.picture)
        for place, phrase in enumerate(turn.phrases):
            number = sample.picture_of(phrase)
            assert phrase.endswith(f" in picture {number + 1}")
            counts[number] += 1
            own = turn.target.boxes_xyxy[turn.target.phrase == place].tolist()
            of_picture = (first, second)[number]
            rows = {int(of_picture.labels[of_picture.boxes_xyxy.tolist().index(box)]) for box in own}
            assert len(rows) <= 1  # one category, and every box stands in that picture's record
            if own:
                (label,) = rows
                assert len(own) == int((of_picture.labels == label).sum())
    assert min(counts[0], counts[1]) > 40


def test_evaluation_asks_the_same_of_both() -> None:
    dataset = opened("several")
    (sample,) = dataset.ask_all(3)
    turn = sample.turns[0]
    half = len(turn.phrases) // 2
    assert [phrase[: -len(" in picture 1")] for phrase in turn.phrases[:half]] == [
        phrase[: -len(" in picture 2")] for phrase in turn.phrases[half:]
    ]
    first, second = records(dataset, 3, 4)
    assert len(turn.target.boxes_xyxy) == len(first.boxes_xyxy) + len(second.boxes_xyxy)


def test_what_was_shown_is_sought_in_the_other_picture() -> None:
    dataset, found = opened("in_context"), 0
    for position in range(40):
        first, second = records(dataset, position % 10, 10 + position % 7)
        sample = dataset.ask_about(first, item_rng(0, position), [second])
        (turn,) = sample.turns
        assert turn.phrases == ("the same as region 1 in picture 2",)
        assert sample.picture_of(turn.phrases[0]) == 1
        assert turn.regions[0].picture == 0
        found += len(turn.target.boxes_xyxy) > 0
        labels = {int(second.labels[second.boxes_xyxy.tolist().index(b)]) for b in turn.target.boxes_xyxy.tolist()}
        assert len(labels) <= 1
        assert all(mask.size == second.picture.size for mask in turn.target.masks)
    assert 15 < found < 40


def test_the_truth_of_some_phrases() -> None:
    target = opened("several").ask_all(0)[0].turns[0].target
    part = target.of([2, 0])
    assert part.boxes_xyxy.tolist() == [
        box for box, phrase in zip(target.boxes_xyxy.tolist(), target.phrase, strict=True) if phrase in (0, 2)
    ]
    assert np.array_equal(part.phrase == 0, target.phrase[np.isin(target.phrase, [0, 2])] == 2)


def test_a_loader_reads_the_partners_as_a_pure_function_of_the_position() -> None:
    def loaded() -> list[Sample]:
        loader = Loader([open_dataset("scenes", "train", task="in_context")], [1.0], batch_size=4, seed=3)
        return loader.batch(0) + loader.batch(5)

    one, other = loaded(), loaded()
    for a, b in zip(one, other, strict=True):
        assert len(a.pictures) == 2
        assert all(np.array_equal(p.pixels, q.pixels) for p, q in zip(a.pictures, b.pictures, strict=True))
        assert a.turns[0].question == b.turns[0].question
    assert len({sample.pictures[1].pixels.tobytes() for sample in one}) == len(one)
