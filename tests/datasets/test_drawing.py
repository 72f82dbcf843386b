"""Captions become requests for the pictures they are of."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm.core.errors import AnnotationError
from visionllm.core.sample import PictureTarget, Record, Source
from visionllm.datasets.asking import ASKERS
from visionllm.datasets.catalog import open_dataset
from visionllm.datasets.drawing import _phrase
from visionllm.datasets.plan import item_rng


def test_a_scene_is_asked_for_by_its_caption() -> None:
    dataset = open_dataset("scenes", "train", task="generation")
    assert dataset.tasks == {"generation"}
    phrases = set()
    for position in range(6):
        record = dataset.read(3)
        sample = dataset.ask_about(record, item_rng(0, position))
        (turn,) = sample.turns
        assert sample.pictures == ()  # what is to be made is not shown
        assert isinstance(turn.target, PictureTarget)
        assert np.array_equal(turn.target.pictures[0].pixels, record.picture.pixels)
        (phrase,) = turn.phrases
        assert phrase in {_phrase(caption) for caption in record.captions}
        assert not phrase.endswith(".")
        phrases.add(phrase)
    (first,) = dataset.ask_all(3)
    assert first.turns[0].phrases == (_phrase(dataset.read(3).captions[0]),)


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [("A red car.", "a red car"), ("Two dogs", "two dogs"), ("TV on a table.", "TV on a table"), (" x ", "x")],
)
def test_captions_stand_within_a_question(caption: str, phrase: str) -> None:
    assert _phrase(caption) == phrase


def test_a_picture_without_captions_is_named() -> None:
    record = Record(
        picture=open_dataset("scenes", "train").read(0).picture, names=(), boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64), crowd=np.zeros(0, bool), source=Source(dataset="d", index=7),
    )  # fmt: skip
    asker = ASKERS["generation"]
    for ask in (lambda: asker.draw(record, None, item_rng(0, 0)), lambda: asker.every(record, None)):
        with pytest.raises(AnnotationError, match=r"d\[7\].*no caption"):
            ask()
