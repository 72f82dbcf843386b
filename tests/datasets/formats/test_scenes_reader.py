"""Scenes as a data set: a seed range, boxes as drawn, splits that do not meet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from visionllm.datasets.catalog import load_card, open_dataset
from visionllm.datasets.formats import Place, ScenesReader
from visionllm.datasets.formats.scenes import ScenesSplit
from visionllm.datasets.scenes import CATEGORIES


def open_scenes(**values: object) -> ScenesReader:
    split = ScenesSplit(**{"length": 10, "seed": 5, "size": (96, 72), **values})  # type: ignore[arg-type]
    return ScenesReader.open(split, Place(dataset="scenes"))


def test_a_record_is_the_scene_of_its_seed() -> None:
    record = open_scenes().read(2)
    scene = record.extra["scene"]
    assert record.picture.size == (96, 72)
    assert (record.picture.pixels == scene.image).all()
    assert record.boxes_xyxy.tolist() == np.array([thing.box_xyxy for thing in scene.objects], np.float32).tolist()
    assert [record.names[label] for label in record.labels] == [thing.category for thing in scene.objects]
    assert str(record.source) == "scenes[2] (scene 7)"
    assert (open_scenes(seed=7).read(0).picture.pixels == record.picture.pixels).all()


def test_names_and_words_are_those_of_the_categories() -> None:
    reader = open_scenes()
    assert reader.names == tuple(category.name for category in CATEGORIES)
    assert reader.wording.plurals["person"] == "people"


def test_digest_tells_seed_and_length() -> None:
    assert open_scenes().digest() == open_scenes().digest()
    others = (
        open_scenes(seed=6),
        open_scenes(length=11),
        open_scenes(questions=("side",)),
        open_scenes(questions=("colour",)),
    )
    assert len({open_scenes().digest(), *(other.digest() for other in others)}) == 5


def test_the_end_is_the_end() -> None:
    with pytest.raises(IndexError):
        open_scenes().read(10)


def test_the_splits_of_the_card_do_not_meet() -> None:
    card = load_card("scenes")
    ranges = [(values["seed"], values["seed"] + values["length"]) for values in card.splits.values()]
    ranges.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert len(open_dataset("scenes", "val")) == 500


def test_masks_come_where_the_task_needs_them() -> None:
    split = ScenesSplit(length=10, seed=5, size=(96, 72))
    assert open_scenes().read(0).masks is None
    for index in range(3):
        record = ScenesReader.open(split, Place(dataset="scenes", needs=frozenset({"masks"}))).read(index)
        scene = record.extra["scene"]
        for number, (mask, box) in enumerate(zip(record.masks, record.boxes_xyxy, strict=True)):
            assert (mask.dense() == scene.mask(number)).all()
            assert np.abs(mask.box_xyxy - box).max() <= 1


def test_a_card_serves_another_task() -> None:
    boxes, masks = open_dataset("scenes", "val"), open_dataset("scenes", "val", task="segmentation")
    assert (boxes.key, masks.key) == ("scenes/val", "scenes/val (segmentation)")
    assert boxes.digest() != masks.digest()
    one, other = (dataset.ask_all(0)[0].turns[0] for dataset in (boxes, masks))
    assert (one.task, other.task) == ("detection", "segmentation")
    assert one.target.masks is None
    assert {tuple(box) for box in one.target.boxes_xyxy} < {tuple(box) for box in other.target.boxes_xyxy}
    assert len(other.target.masks) == len(other.target.boxes_xyxy) > 0


def test_stuff_joins_the_objects_where_it_is_needed() -> None:
    """Every pixel has one owner at most, and nearly every pixel has one."""
    split = ScenesSplit(length=20, seed=5, size=(96, 72))
    reader = ScenesReader.open(split, Place(dataset="scenes", needs=frozenset({"masks", "stuff"})))
    assert reader.names[: len(open_scenes().names)] == open_scenes().names
    seen = set()
    for index in range(20):
        record = reader.read(index)
        owners = sum(mask.dense().astype(int) for mask in record.masks)
        assert owners.max() == 1
        assert (owners > 0).mean() > 0.95
        stuff = record.labels >= len(CATEGORIES)
        assert stuff.any()
        assert len(set(record.labels[stuff].tolist())) == stuff.sum()
        seen |= {record.names[label] for label in record.labels[stuff]}
    assert {"sky", "road", "grass", "table"} <= seen
    assert reader.wording.plurals["sky"] == "sky"


def test_a_split_may_ask_some_kinds_of_question() -> None:
    def kinds(index: int, *asked: str) -> list[str]:
        split = ScenesSplit(length=40, seed=5, size=(160, 120), **({"questions": asked} if asked else {}))  # type: ignore[arg-type]
        reader = ScenesReader.open(split, Place(dataset="scenes", needs=frozenset({"questions"})))
        return [one.kind for one in reader.read(index).questions]

    silent = 0
    for index in range(40):
        everything = kinds(index)
        assert kinds(index, "side", "colour") == ([k for k in everything if k in ("side", "colour")] or everything)
        silent += "side" not in everything
        assert "direction" not in everything
        assert set(kinds(index, "direction")) <= {"direction", *everything}
        assert kinds(index, "side") == (["side"] * everything.count("side") or everything)
    assert 0 < silent < 40, "both ways are tried"
    with pytest.raises(ValidationError):
        ScenesSplit(length=1, seed=0, questions=("shape",))  # type: ignore[arg-type]
