"""Questions: which categories, by which words, and that the truth follows them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from visionllm.core.errors import AnnotationError
from visionllm.core.sample import Picture, Record, Source
from visionllm.datasets.asking import (
    ASKERS,
    FEW,
    MOST_PHRASES,
    MOST_STRANGERS,
    STRANGERS,
    STRANGERS_OF_FEW,
    choose,
    contents,
    plural_of,
    words_for,
)
from visionllm.datasets.formats import Wording
from visionllm.datasets.plan import item_rng

NAMES = ("person", "car", "traffic light", "RBC", "sheep")
WORDING = Wording(synonyms={"car": ("automobile", "vehicle"), "RBC": ("red blood cell",)}, plurals={"person": "people"})


def record(labels: list[int], crowd: list[bool] | None = None, names: tuple[str, ...] = NAMES) -> Record:
    boxes_xyxy = np.array([[i, i, i + 5, i + 5] for i in range(len(labels))], np.float32).reshape(-1, 4)
    return Record(
        picture=Picture(pixels=np.zeros((30, 40, 3), np.uint8)),
        names=names,
        boxes_xyxy=boxes_xyxy,
        labels=np.array(labels, np.int64),
        crowd=np.array(crowd or [False] * len(labels), bool),
        source=Source(dataset="tiny", index=0),
    )


def meaning(phrase: str) -> str:
    """The name behind a wording of the tests."""
    for name in NAMES:
        for word in (name, *WORDING.synonyms.get(name, ())):
            if phrase.casefold() in (word.casefold(), plural_of(word, WORDING).casefold()):
                return name
    raise AssertionError(phrase)


def stranger(phrase: str) -> bool:
    """Whether a phrase is none of the names and their wordings."""
    try:
        meaning(phrase)
    except AssertionError:
        return True
    return False


def test_every_box_of_an_asked_category_and_no_other_is_the_truth() -> None:
    shown = record([1, 0, 1, 4])
    for position in range(300):
        turn = ASKERS["detection"].draw(shown, WORDING, item_rng(0, position)).turns[0]
        asked = [-1 if stranger(phrase) else NAMES.index(meaning(phrase)) for phrase in turn.phrases]
        known = [category for category in asked if category >= 0]
        assert len(set(known)) == len(known)
        expected = {(int(label), tuple(box)) for label, box in zip(shown.labels, shown.boxes_xyxy, strict=True)}
        expected = {pair for pair in expected if pair[0] in asked}
        got = {(asked[p], tuple(box)) for p, box in zip(turn.target.phrase, turn.target.boxes_xyxy, strict=True)}
        assert got == expected


def test_words_without_a_meaning_are_strewn_in_and_nothing_is_called_so() -> None:
    shown, places, questions, most = record([1, 0]), Counter[float](), 0, 0
    for position in range(1000):
        turn = ASKERS["detection"].draw(shown, WORDING, item_rng(5, position)).turns[0]
        strange = [i for i, phrase in enumerate(turn.phrases) if stranger(phrase)]
        questions += bool(strange)
        assert len(turn.phrases) <= MOST_PHRASES
        most = max(most, len(strange))
        assert not set(strange) & set(turn.target.phrase.tolist())
        assert len({phrase.casefold() for phrase in turn.phrases}) == len(turn.phrases)
        places.update(i / len(turn.phrases) // 0.5 for i in strange)
    assert abs(questions / 1000 - STRANGERS_OF_FEW) < 0.04
    assert most > 3 * MOST_STRANGERS, "no list is crowded"
    assert abs(places[0] / sum(places.values()) - 0.5) < 0.1
    # A data set with names enough for long lists has fewer questions like that.
    extra = {word for i in range(FEW) for word in (f"thing{i}", f"thing{i}s")}
    many = record([1, 0], names=(*NAMES, *(f"thing{i}" for i in range(FEW))))
    turns = [ASKERS["detection"].draw(many, WORDING, item_rng(5, position)).turns[0] for position in range(1000)]
    asked = sum(any(stranger(p) and p.casefold() not in extra for p in turn.phrases) for turn in turns)
    assert abs(asked / 1000 - STRANGERS) < 0.04
    # Where not all objects are annotated, such a word is absent all the same.
    forbidden = Wording(negatives=False)
    turns = [ASKERS["detection"].draw(shown, forbidden, item_rng(5, position)).turns[0] for position in range(200)]
    assert any(any(map(stranger, turn.phrases)) for turn in turns)


def test_a_draw_is_pure() -> None:
    asker = ASKERS["detection"]
    one, other = (asker.draw(record([1, 0]), WORDING, item_rng(3, 7)).turns[0] for _ in range(2))
    assert one.phrases == other.phrases


def test_all_kinds_of_questions_occur() -> None:
    shown = record([1, 0])
    kinds: Counter[str] = Counter()
    for position in range(500):
        turn = ASKERS["detection"].draw(shown, WORDING, item_rng(0, position)).turns[0]
        present = len(set(turn.target.phrase.tolist()))
        kinds["single"] += len(turn.phrases) == 1
        kinds["all"] += len(turn.phrases) == len(NAMES)
        kinds["only absent"] += present == 0
        kinds["only present"] += present == len(turn.phrases)
        kinds["mixed"] += 0 < present < len(turn.phrases)
        kinds["plural"] += "cars" in turn.phrases
        kinds["synonym"] += any(phrase.startswith("automobile") for phrase in turn.phrases)
        kinds["capital"] += "CAR" in turn.phrases or "Car" in turn.phrases
    assert min(kinds[kind] for kind in ("single", "all", "only absent", "only present", "mixed")) > 30
    assert kinds["plural"] > 20
    assert kinds["synonym"] > 20
    assert 0 < kinds["capital"] < 40


def test_long_lists_are_cut_but_rarely_whole() -> None:
    names = tuple(f"thing {i}" for i in range(60))
    lengths = Counter(
        len(choose(*contents(record([0, 1, 2], names=names)), item_rng(0, position))) for position in range(2000)
    )
    assert lengths[MOST_PHRASES] > 0
    assert 0 < sum(count for length, count in lengths.items() if length > MOST_PHRASES) < 40


def test_long_lists_are_of_many_lengths_and_hold_all_that_is_there() -> None:
    names = tuple(f"thing {i}" for i in range(MOST_PHRASES))
    asked = [choose(*contents(record([3, 8, 9], names=names)), item_rng(0, position)) for position in range(2000)]
    lengths = Counter(map(len, asked))
    long = [count for length, count in lengths.items() if length > MOST_PHRASES // 2]
    assert len(long) == MOST_PHRASES // 2
    assert max(long) < 3 * sum(long) / len(long)
    assert sum({3, 8, 9} <= set(one) for one in asked) > 0.32 * len(asked)


@pytest.mark.parametrize("count", [1_203, 20_000])
def test_very_long_class_lists_stay_bounded(count: int) -> None:
    names = tuple(f"thing {i}" for i in range(count))
    for position in range(40):
        assert len(choose(*contents(record([0, 5], names=names)), item_rng(0, position))) <= 4 * MOST_PHRASES


def test_without_negatives_only_what_is_there_is_asked() -> None:
    wording = Wording(negatives=False)
    for position in range(100):
        turn = ASKERS["detection"].draw(record([1, 4]), wording, item_rng(0, position)).turns[0]
        named = {i for i, phrase in enumerate(turn.phrases) if not stranger(phrase)}
        assert set(turn.target.phrase.tolist()) == named
    with pytest.raises(AnnotationError, match=r"tiny\[0\]: holds no object to ask for.*negatives: true"):
        ASKERS["detection"].draw(record([]), wording, item_rng(0, 0))


def test_an_empty_picture_is_asked_about_absent_things() -> None:
    for position in range(50):
        turn = ASKERS["detection"].draw(record([]), WORDING, item_rng(0, position)).turns[0]
        assert turn.phrases
        assert turn.target.boxes_xyxy.shape == (0, 4)


def test_a_crowd_alone_is_neither_present_nor_absent_and_is_ignored() -> None:
    shown = record([1, 0, 1], crowd=[True, False, True])
    assert contents(shown) == ([0], [2, 3, 4])
    (sample,) = ASKERS["detection"].every(shown, WORDING)
    assert sample.turns[0].target.ignored.tolist() == [True, False, True]


def test_evaluation_asks_all_names_in_order() -> None:
    (sample,) = ASKERS["detection"].every(record([1, 0, 1]), WORDING)
    assert sample.turns[0].phrases == NAMES
    assert sample.turns[0].target.phrase.tolist() == [1, 0, 1]


def test_chunks_hold_all_names_and_boxes_once() -> None:
    samples = ASKERS["detection"].every(record([1, 0, 1, 4]), WORDING, chunk=2)
    assert [sample.turns[0].phrases for sample in samples] == [NAMES[:2], NAMES[2:4], NAMES[4:]]
    assert [sample.turns[0].target.phrase.tolist() for sample in samples] == [[1, 0, 1], [], [0]]


def test_no_two_phrases_of_a_question_are_alike() -> None:
    wording = Wording(synonyms={"fish": ("animal",), "animals": ()}, plurals={"animal": "animals"})
    for position in range(200):
        phrases = words_for(["fish", "animals"], wording, item_rng(0, position))
        assert len({phrase.casefold() for phrase in phrases}) == 2


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("car", "cars"), ("bus", "buses"),
        ("box", "boxes"), ("bench", "benches"), ("lorry", "lorries"), ("key", "keys"),
        ("person", "people"), ("policeman", "policemen"), ("human", "humans"), ("knife", "knives"), ("sheep", "sheep"),
        ("traffic light", "traffic lights"), ("glass of water", "glasses of water"), ("RBC", "RBCs"),
        ("scissors", "scissors"), ("erythrocyte", "erythrocytes"), ("3", "3"), ("车", "车"), ("child", "children"),
    ],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert plural_of(one, Wording()) == many


def test_the_card_knows_plurals_better() -> None:
    assert plural_of("ox", Wording(plurals={"ox": "oxes"})) == "oxes"
