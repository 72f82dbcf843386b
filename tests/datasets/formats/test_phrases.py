"""Names without pictures: pure, distinct, never a held-out one, and of many kinds."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visionllm.core.errors import AnnotationError, ConfigError, DatasetError
from visionllm.core.regions import named_picture
from visionllm.datasets.catalog import catalogue, catalogue_folder, load_card, open_dataset
from visionllm.datasets.formats import PhrasesReader, Place
from visionllm.datasets.formats.inventing import common_words, glued, plain
from visionllm.datasets.formats.phrases import PhrasesSplit
from visionllm.datasets.scenes import CATEGORIES
from visionllm.routing.render import Style, render


def open_phrases(folder: Path, **values: Any) -> PhrasesReader:
    split = PhrasesSplit(**{"length": 300, **values})
    return PhrasesReader.open(split, Place(dataset="words", card_folder=folder.resolve()))


def phrases(reader: PhrasesReader, index: int) -> tuple[str, ...]:
    return reader.read(index).turns[0].phrases


def test_a_list_is_a_pure_function_of_seed_and_index(tmp_path: Path) -> None:
    one, other = open_phrases(tmp_path), open_phrases(tmp_path)
    assert [phrases(one, i) for i in (5, 0, 299)] == [phrases(other, i) for i in (5, 0, 299)]
    assert phrases(one, 0) != phrases(one, 1)
    assert phrases(one, 0) != phrases(open_phrases(tmp_path, seed=1), 0)


def test_lists_are_ready_samples_without_pictures_or_truth(tmp_path: Path) -> None:
    sample = open_phrases(tmp_path).read(3)
    assert sample.pictures == ()
    assert sample.turns[0].target is None
    assert str(sample.source) == "words[3]"


def test_lengths_and_kinds(tmp_path: Path) -> None:
    reader = open_phrases(tmp_path, shortest=2, longest=9)
    lists = [phrases(reader, i) for i in range(300)]
    assert {len(names) for names in lists} == set(range(2, 10))
    for names in lists:
        assert len({plain(name) for name in names}) == len(names)
        assert all(name.strip() == name and name for name in names)
    text = "".join(name for names in lists for name in names)
    assert any(c.isdigit() for c in text)
    assert any(c.isupper() for c in text)
    assert "-" in text
    assert any("Ā" > c > "\x7f" for c in text)  # accents
    scripts = {ord(c) >> 8 for c in text}
    assert {0x03, 0x04, 0x05, 0x06, 0x09, 0x30} <= scripts


def test_names_to_avoid_never_appear(tmp_path: Path) -> None:
    free = open_phrases(tmp_path)
    common = Counter(plain(name) for i in range(300) for name in phrases(free, i)).most_common(20)
    (tmp_path / "held.txt").write_text("\n".join(name.upper().replace(" ", "-") for name, _ in common))
    kept = open_phrases(tmp_path, avoid="held.txt")
    seen = {plain(name) for i in range(300) for name in phrases(kept, i)}
    assert not seen & {name for name, _ in common}


def test_names_of_a_file_come_equally_often(tmp_path: Path) -> None:
    names = [f"name {i}" for i in range(50)]
    (tmp_path / "names.txt").write_text("# a comment\n\n" + "\n".join(names) + "\n")
    reader = open_phrases(tmp_path, length=100, longest=5, file="names.txt")
    counts = Counter(name for i in range(100) for name in phrases(reader, i))
    assert set(counts) == set(names)
    assert max(counts.values()) - min(counts.values()) <= 2
    assert all(len(set(phrases(reader, i))) == len(phrases(reader, i)) for i in range(100))


@pytest.mark.parametrize(
    ("text", "values", "error", "words"),
    [
        ("a\nb\na\n", {"longest": 2}, AnnotationError, r"'a' stands on line 1 and on line 3"),
        ("a\nb\n", {"longest": 3}, ConfigError, r"longest 3 is more than the 2 names"),
        ("a\nb\n", {"shortest": 3, "longest": 2}, ConfigError, r"shortest 3 is more than longest 2"),
        (b"\xff", {"longest": 1}, AnnotationError, r"not UTF-8 at byte 0"),
        ("a", {"file": "../names.txt"}, AnnotationError, r"relative path"),
        ("a", {"file": "none.txt"}, DatasetError, r"no file .*none.txt"),
    ],
)
def test_bad_lists_are_one_line(
    tmp_path: Path, text: str | bytes, values: dict[str, Any], error: type[Exception], words: str
) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(error, match=words):
        open_phrases(tmp_path, **{"file": "names.txt", **values})


def test_a_list_knows_its_end(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        open_phrases(tmp_path).read(300)


def held_out() -> list[str]:
    lines = (catalogue_folder() / "unseen_names.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_held_out_names_are_500_and_in_no_training_source() -> None:
    names = held_out()
    assert len(names) == len({plain(name) for name in names}) == 500
    assert all(1 <= len(name.split()) <= 3 and name == name.lower() for name in names)
    known = {word for c in CATEGORIES for word in (c.name, c.plural, *c.synonyms)}
    for card in map(load_card, catalogue()):
        known |= {word for name, words in card.synonyms.items() for word in (name, *words)}
        known |= set(card.names or ())
    assert not {plain(name) for name in names} & {plain(word) for word in known}


def test_the_training_phrases_avoid_them() -> None:
    forbidden = {plain(name) for name in held_out()}
    for split in ("train", "routes", "expressions"):
        dataset = open_dataset("phrases", split)
        seen = {plain(name) for i in range(2000) for turn in dataset.read(i).turns for name in turn.phrases}
        assert not seen & forbidden


def test_the_two_evaluation_splits_ask_for_every_name() -> None:
    for split, lengths in (("short", range(1, 6)), ("long", range(6, 21))):
        dataset = open_dataset("unseen_names", split)
        lists = [dataset.ask_all(i)[0].turns[0].phrases for i in range(len(dataset))]
        assert {len(names) for names in lists} == set(lengths)
        assert {name for names in lists for name in names} == set(held_out())


def routes(folder: Path, **settings: Any) -> PhrasesReader:
    tasks = {"detection": 2, "segmentation": 1, "pose": 1}
    return open_phrases(folder, **{"length": 400, "seed": 3, "longest": 12, "tasks": tasks, **settings})


def test_every_task_is_asked_for_in_its_share(tmp_path: Path) -> None:
    data = routes(tmp_path)
    assert set(data.tasks) == {"detection", "segmentation", "pose"}
    assert open_dataset("phrases", "routes").tasks == {"detection", "segmentation", "pose"}
    assert open_dataset("phrases", "train").tasks == {"detection"}
    turns = [turn for index in range(400) for turn in data.read(index).turns]
    counts = Counter(turn.task for turn in turns)
    assert abs(counts["detection"] / 400 - 0.5) < 0.08
    for turn in turns:
        assert bool(turn.parts) == (turn.task == "pose")
        assert turn.target is None
        assert all(len(set(names)) == len(names) > 0 for names in turn.parts)
    # The same names as without tasks: shares change what is asked of them, not them.
    plain_lists = [phrases(routes(tmp_path, tasks={"detection": 1}), index) for index in range(400)]
    own = [turn.phrases for turn in turns]
    assert sum(a == b for a, b in zip(own, plain_lists, strict=True)) >= counts["detection"] + counts["segmentation"]


def test_expressions_tell_one_thing_from_others(tmp_path: Path) -> None:
    data = routes(tmp_path, tasks={"detection": 1, "segmentation": 1}, expressions=0.5)
    lists = routes(tmp_path, tasks={"detection": 1, "segmentation": 1})
    turns = [data.read(index).turns[0] for index in range(400)]
    changed = [turn for index, turn in enumerate(turns) if turn.phrases != phrases(lists, index)]
    assert 160 < len(changed) < 240
    assert [turn.task for turn in turns] == [lists.read(index).turns[0].task for index in range(400)]
    words = [words for turn in changed for words in turn.phrases]
    assert {len(turn.phrases) for turn in changed} == {1, 2, 3, 4}
    assert all(len({plain(name) for name in turn.phrases}) == len(turn.phrases) for turn in changed)
    for word in ("left of the", "behind the", "leftmost", "largest", " in ", "with"):
        assert any(word in name for name in words), word
    assert not any(name.startswith(("the ", "a ")) for name in words)
    assert len(set(words)) > 0.95 * len(words)
    owners, same = (routes(tmp_path, tasks={"pose": 1}, expressions=share) for share in (0.0, 1.0))
    assert [phrases(owners, index) for index in range(20)] == [phrases(same, index) for index in range(20)]


def test_words_of_a_skeleton_go_without_their_points(tmp_path: Path) -> None:
    data = routes(tmp_path, tasks={"pose": 1}, skeletons={"person": "coco_17", "horse": "horse_22"})
    turns = [data.read(index).turns[0] for index in range(200)]
    usual = [turn for turn in turns if turn.usual]
    assert 60 < len(usual) < 140
    for turn in usual:
        assert set(turn.phrases) <= {"person", "horse"}
        assert [len(names) for names in turn.parts] == [17 if word == "person" else 22 for word in turn.phrases]


def test_a_breath_holds_several_tasks_and_loses_no_name(tmp_path: Path) -> None:
    data = routes(tmp_path, breath=1.0, tasks={"detection": 1, "segmentation": 1})
    single = routes(tmp_path, tasks={"detection": 1})
    tasks, curt = set(), 0
    for index in range(60):
        turns = data.read(index).turns
        assert [turn.joined for turn in turns] == [False] + [True] * (len(turns) - 1)
        assert len(turns) in (2, 3)
        tasks.add(tuple(turn.task for turn in turns))
        named = list(dict.fromkeys(phrase for turn in turns for phrase in turn.phrases))
        whole = list(single.read(index).turns[0].phrases)
        assert named == whole[: len(named)]
        short = max(len(turn.phrases) for turn in turns) <= 2
        assert short or named == whole
        curt += short
    assert len(tasks) > 4
    assert 20 < curt < 50


def test_what_is_told_is_asked_alone_and_of_one_thing(tmp_path: Path) -> None:
    data = routes(tmp_path, breath=0.5, tasks={"detection": 1, "looking": 1})
    looks = [turns for turns in (data.read(index).turns for index in range(80)) if turns[0].task == "looking"]
    assert len(looks) > 10
    for (turn,) in looks:
        assert len(turn.phrases) == 1
        assert turn.then is None
    assert any(len(data.read(index).turns) > 1 for index in range(80))
    with pytest.raises(ConfigError, match="set breath to 0"):
        routes(tmp_path, breath=0.5, tasks={"looking": 1})


def test_turns_of_a_conversation_lean_on_one_another(tmp_path: Path) -> None:
    """Further names are for the task before, and "them" are the names before, for another."""
    data = routes(tmp_path, talk=1.0, tasks={"detection": 1, "segmentation": 1, "editing": 0.5})
    further = again = 0
    for index in range(80):
        turns = data.read(index).turns
        assert 2 <= len(turns) <= 4
        assert not any(turn.joined for turn in turns)
        for before, turn in pairwise(turns):
            if turn.called:
                assert (turn.phrases, turn.question) == (before.phrases, None)
                assert turn.task != before.task
                again += 1
            elif turn.question:
                assert turn.task == before.task != "editing"
                assert all(phrase in turn.question for phrase in turn.phrases)
                further += 1
    assert min(further, again) > 10


def test_what_names_are_called_is_asked_and_the_names_are_said(tmp_path: Path) -> None:
    data = routes(tmp_path, talk=1.0, tasks={"detection": 1, "segmentation": 1})
    rng = np.random.default_rng(0)
    sample = next(sample for sample in map(data.read, range(80)) if sample.turns[1].called)
    turn = sample.turns[1]
    for style in (Style(), Style(rng=rng)):
        asked, said = (
            "".join(piece.text for piece in render(sample, (), style=style)).split("user\n")[2].split("<|im_end|>")[:2]
        )
        assert turn.called in asked
        assert not any(phrase in asked for phrase in turn.phrases)
        assert all(f"<ref>{phrase}</ref>" in said for phrase in turn.phrases)


def test_whole_samples_in_capitals_and_names_in_several_pictures(tmp_path: Path) -> None:
    loud, plain = routes(tmp_path, loud=1.0), routes(tmp_path)
    assert all(
        turn.phrases == tuple(phrase.upper() for phrase in own.phrases) and not turn.means
        for index in range(20) for turn, own in zip(loud.read(index).turns, plain.read(index).turns, strict=True)
    )  # fmt: skip
    talk = routes(tmp_path, loud=1.0, talk=1.0)
    for turn in (turn for index in range(20) for turn in talk.read(index).turns):
        assert turn.question in (None, (turn.question or "").upper())
    pictured = routes(tmp_path, pictured=1.0, tasks={"detection": 1})
    places = [named_picture(phrase, 4) for index in range(40) for phrase in pictured.read(index).turns[0].phrases]
    assert set(places) == {0, 1, 2, 3}


def test_a_look_for_an_invented_name_is_worded_as_a_question(tmp_path: Path) -> None:
    data = routes(tmp_path, tasks={"looking": 1})
    rng = np.random.default_rng(0)
    for index in range(20):
        sample = data.read(index)
        (name,) = sample.turns[0].phrases
        asked, said = "".join(piece.text for piece in render(sample, (), style=Style(rng=rng))).split("assistant\n")
        assert name in asked
        assert said.startswith(f"<ref>{name}</ref>[FIND]")


def test_glued_names_hold_words_of_questions_and_none_is_one() -> None:
    """What a reader must copy there and pass over elsewhere: in a good share of names, never as a word by itself."""
    parts = ("ga", "ig", "bb", "to", "all")
    rng = np.random.default_rng(0)
    names = [glued(rng, parts) for _ in range(2000)]
    asking = set(common_words().asking)
    for name in names:
        words = name.replace("-", " ").split(" ")
        assert not set(words) & (asking - set(parts)), name
    long = tuple(word for word in asking if len(word) > 3)
    assert 100 < sum(name.startswith(long) for name in names) < 300
    twice = sum(any(part + part in name for part in ("ga", "ig", "bb")) for name in names)
    assert twice > 50


def test_what_is_to_be_drawn_is_one_phrase() -> None:
    """With "and" in it, as lists have; two things at most, and words for a place."""
    data = open_dataset("phrases", "drawn")
    told = [turn.phrases for i in range(200) for turn in data.read(i).turns if turn.task == "generation"]
    assert len(told) > 60
    assert all(len(phrases) == 1 and not phrases[0].startswith(("a ", "an ")) for phrases in told)
    assert any(" and a" in phrase for (phrase,) in told)
    assert any(phrase.endswith(" on grass") for (phrase,) in told)
    again = [turn.phrases for i in range(200) for turn in data.read(i).turns if turn.task == "generation"]
    assert told == again


def test_a_change_keeps_its_verb() -> None:
    data = open_dataset("phrases", "changed")
    told = [turn.phrases for i in range(100) for turn in data.read(i).turns if turn.task == "editing"]
    assert len(told) > 60
    verbs = (
        "remove", "delete", "erase", "get rid", "take", "add", "insert", "make", "paint", "dye", "colo", "replace",
        "swap", "turn", "change", "move", "shift", "put", "place",
    )  # fmt: skip
    assert all(len(phrases) == 1 and phrases[0].startswith(verbs) for phrases in told)
    assert not any("{" in phrase for (phrase,) in told)


def test_a_change_may_speak_of_what_was_named_before() -> None:
    """ "Detect the cars and then make the red one blue"."""
    data = open_dataset("phrases", "mixed")
    joined = [turn for i in range(300) for turn in data.read(i).turns if turn.joined and turn.task == "editing"]
    assert len(joined) > 60
    assert any(" one " in f"{turn.phrases[0]} " for turn in joined)


def test_a_picture_is_called_one_thing_at_a_time() -> None:
    """Nobody asks for more pixels of a list; "make the car blue" is a change, for no car is made sharper."""
    data = open_dataset("phrases", "pixels")
    told = [turn.phrases for i in range(300) for turn in data.read(i).turns if turn.task == "super_resolution"]
    assert len(told) > 80
    assert all(len(phrases) == 1 for phrases in told)
    called = [phrases[0].split()[-1] for phrases in told]
    assert np.mean([word in ("picture", "image", "photo") for word in called]) > 0.4
