"""Questions about several pictures: each phrase says which, and its truth is of that one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from visionllm.core.arrays import object_array
from visionllm.core.regions import check_regions
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
        assert turn.phrases[0] in turn.question.replace("<region>", "region 1"), "the reply would not quote"
        assert sample.picture_of(turn.phrases[0]) == 1
        assert turn.regions[0].picture == 0
        plain = sample.plain()
        assert plain is not None
        assert not plain.regions
        assert plain.picture_of(plain.turns[0].phrases[0]) == 1
        assert plain.turns[0].target is turn.target
        found += len(turn.target.boxes_xyxy) > 0
        labels = {int(second.labels[second.boxes_xyxy.tolist().index(b)]) for b in turn.target.boxes_xyxy.tolist()}
        assert len(labels) <= 1
        assert all(plain.turns[0].phrases == (f"{second.names[label]} in picture 2",) for label in labels)
        assert all(mask.size == second.picture.size for mask in turn.target.masks)
    assert 15 < found < 40


def test_further_examples_are_of_the_same_kind_in_pictures_of_their_own() -> None:
    for task, kind in (("in_context_masks", "segmentation"), ("in_context_boxes", "detection")):
        dataset, lengths = opened(task), Counter[int]()
        for position in range(25):
            first, second, last = records(dataset, position % 10, 10 + position % 7, 20 + position % 9)
            sample = dataset.ask_about(first, item_rng(0, position), [second, last])
            (turn,) = sample.turns
            count = len(turn.regions)
            lengths[count] += 1
            assert (turn.task, len(sample.pictures)) == (kind, count + 1)
            assert turn.question.count("<region>") == count
            assert [region.picture for region in turn.regions] == list(range(count))
            assert sample.picture_of(turn.phrases[0]) == count
            named = turn.question
            for number in range(count):
                named = named.replace("<region>", f"region {number + 1}", 1)
            assert turn.phrases[0] in named, "the reply would not quote"
            check_regions(turn.regions, [picture.size for picture in sample.pictures], turn.question)
            labels = {int(last.labels[last.boxes_xyxy.tolist().index(b)]) for b in turn.target.boxes_xyxy.tolist()}
            assert len(labels) <= 1
        assert min(lengths[1], lengths[2]) > 0
        assert all(len(sample.turns[0].regions) in (1, 2) for sample in dataset.ask_all(1))


def test_names_of_examples_are_those_of_their_kinds() -> None:
    """The new region is called what the example of its kind is called, whatever the kind is called elsewhere."""
    dataset, invented = opened("in_context_names"), 0
    for position in range(40):
        several = records(dataset, position % 10, 10 + position % 7, 20 + position % 9)
        sample = dataset.ask_about(several[0], item_rng(0, position), several[1:])
        (turn,) = sample.turns
        check_regions(turn.regions, [picture.size for picture in sample.pictures], turn.question)
        assert len(sample.pictures) == len(turn.regions) == 3
        assert turn.task is None
        assert turn.question.count(turn.reply) == 1
        invented += turn.reply not in several[0].names
    assert 15 < invented < 38
    # Where the others have nothing to show, a thing of the first is asked for again.
    bare = [replace(one, masks=object_array([None] * len(one.masks))) for one in several[1:]]
    sample = dataset.ask_about(several[0], item_rng(0, 0), bare)
    assert sample.pictures == (several[0].picture, several[0].picture)
    assert sample.turns[0].reply in sample.turns[0].question
    asked = [sample for index in range(12) for sample in dataset.ask_all(index)]
    assert asked
    for sample in asked:
        (turn,) = sample.turns
        assert turn.question.startswith("<region> is a ")
        assert turn.question.endswith("what is <region>?")
        assert turn.question.split(" is a ")[1].startswith(f"{turn.reply}. ")
        assert len(sample.pictures) == len(turn.regions) == 3
    assert [s.turns[0].question for s in dataset.ask_all(3)] == [s.turns[0].question for s in dataset.ask_all(3)]


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
