"""Phrases of a list are the prompt's own words: what is right is never shut, what is left is never another word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from visionllm.core.config import validate
from visionllm.core.errors import ConfigError
from visionllm.core.regions import PLACEHOLDER, Point, region_name
from visionllm.core.sample import Picture, Sample, Turn
from visionllm.core.task import TASKS
from visionllm.datasets.catalog import Dataset, open_dataset
from visionllm.datasets.plan import item_rng
from visionllm.decoders import DECODERS
from visionllm.routing.generate import restrict
from visionllm.routing.quoting import Quoting
from visionllm.routing.render import Style, render
from visionllm.routing.vocabulary import END, REF, REF_END, START, Vocabulary
from visionllm.routing.wording import Templates

NANO = Path(__file__).resolve().parents[2] / "configs" / "models" / "nano" / "tokenizer.json"
list(DECODERS)  # a task is known once its decoder is


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """That of the nano model, with the tokens of every task."""
    return Vocabulary(Tokenizer.from_file(str(NANO)), [TASKS[name] for name in TASKS])


def prompt_of(vocabulary: Vocabulary, words: str) -> list[int]:
    start, end = vocabulary.control(START), vocabulary.control(END)
    return [start, *vocabulary.plain(f"user\n{words}"), end, *vocabulary.plain("\n"), start,
            *vocabulary.plain("assistant\n")]  # fmt: skip


def began(vocabulary: Vocabulary, words: str, reply: Sequence[int] = ()) -> Quoting:
    """Inside a phrase of a reply to some words."""
    rule = Quoting(vocabulary, prompt_of(vocabulary, words))
    for token in (*reply, vocabulary.control(REF)):
        rule.wrote(token)
    return rule


def phrases_left(vocabulary: Vocabulary, rule: Quoting, rng: np.random.Generator) -> str:
    """A phrase that could be written from here, drawn."""
    written: list[int] = []
    while True:
        allowed = rule.allowed()
        assert allowed
        token = allowed[int(rng.integers(len(allowed)))]
        rule.wrote(token)
        if token == vocabulary.control(REF_END):
            return vocabulary.text(written)
        written.append(token)


def routed(vocabulary: Vocabulary, phrase: str, token: str) -> list[int]:
    return [vocabulary.control(REF), *vocabulary.plain(phrase), vocabulary.control(REF_END), vocabulary.control(token)]


@pytest.mark.parametrize("split", ["train", "expressions", "mixed", "drawn", "pixels", "changed", "looks",
                                   "talks"])  # fmt: skip
def test_the_right_reply_is_never_shut(vocabulary: Vocabulary, split: str) -> None:
    """Of invented names in every script, all wordings, all tasks, several in one breath."""
    dataset = open_dataset("phrases", split)
    assert sum(quoted(vocabulary, dataset, index, lengths=()) for index in range(60)) > 200


@pytest.mark.parametrize("task", ["detection", "pose", "interactive", "breath", "several", "in_context_masks",
                                  "in_context_boxes", "expressions", "super_resolution", "conversation"])  # fmt: skip
def test_what_askers_teach_may_be_written(vocabulary: Vocabulary, task: str) -> None:
    """About pictures, with regions in the question: a reply that was shut could be learned and never said."""
    dataset = open_dataset("scenes", "train", task=task)
    assert sum(quoted(vocabulary, dataset, index, lengths=(4, 4, 4)) for index in range(12)) > 20


def quoted(vocabulary: Vocabulary, dataset: Dataset, index: int, *, lengths: tuple[int, ...]) -> int:
    """Tokens of all replies that were quoted; none of them may be shut."""
    rng, count = item_rng(7, index), 0
    sample = dataset.ask(index, rng)
    pieces = render(sample, lengths[: len(sample.pictures)], style=Style(rng=rng))
    read = list[int]()
    for supervised, group in groupby(pieces, key=lambda piece: piece.supervised):
        ids = list[int]()
        for piece in group:
            ids += [vocabulary.control(piece.text)] * piece.repeat if piece.control else vocabulary.plain(piece.text)
        rule = Quoting(vocabulary, read)
        for token in ids if supervised else []:
            allowed = rule.allowed()
            assert allowed is None or token in allowed, (dataset.name, index, vocabulary.text(ids))
            count += allowed is not None
            rule.wrote(token)
        read = read + ids
    return count


@pytest.mark.parametrize("words", [
    "detect all the cars, a red-brown dog and Émile's 2nd hat!", "find\u00a0 naïve cafés; 検出して 汽车", "x",
    "find red cars \u00a0 \n\n",
])  # fmt: skip
def test_whatever_is_written_is_said_in_the_prompt(vocabulary: Vocabulary, words: str) -> None:
    """Whole words of it, in scripts without blanks any run of letters; never who speaks."""
    rng = np.random.default_rng(0)
    found = {phrases_left(vocabulary, began(vocabulary, words), rng) for _ in range(300)}
    for phrase in found:
        assert phrase
        assert phrase == phrase.strip()
        place = words.find(phrase)
        while place >= 0:
            around = words[place - 1 : place], words[place + len(phrase) : place + len(phrase) + 1]
            cut = [one.isalnum() and other.isalnum() and max(one, other) < "\u0e00"
                   for one, other in ((around[0], phrase[0]), (phrase[-1], around[1]))]  # fmt: skip
            if not any(cut):
                break
            place = words.find(phrase, place + 1)
        assert place >= 0, phrase
    assert len(found) > (0 if words == "x" else 5)
    assert not found & {"user", "assistant"}


def test_phrases_follow_each_other(vocabulary: Vocabulary) -> None:
    """Behind the first place where the last may have ended; from the beginning where nothing is left."""
    rng = np.random.default_rng(0)
    words = "detect car, dog, car, tree"
    after = [routed(vocabulary, phrase, "[DET]") for phrase in ("dog", "tree", "car")]
    left = [{phrases_left(vocabulary, began(vocabulary, words, reply), rng) for _ in range(200)} for reply in after]
    assert "car" in left[0]
    assert not any("dog" in phrase for phrase in left[0])
    assert "detect" in left[1]
    assert {"dog", "car", "tree"} <= left[2]
    assert not any("detect" in phrase for phrase in left[2])


def begins(vocabulary: Vocabulary, words: str) -> set[str]:
    """First words of all phrases that a reply to some words could list."""
    rng = np.random.default_rng(0)
    return {phrases_left(vocabulary, began(vocabulary, words), rng).split()[0] for _ in range(300)}


@pytest.mark.parametrize(("words", "none", "some"), [
    ("detect all the scissors and every one of the cups", {"all", "every", "one", "of", "the"}, {"scissors", "cups"}),
    ("Draw some blue buses on a road", {"some", "a"}, {"blue", "buses", "on", "road"}),
    ("draw an owl, one eagle and then every cat", {"an", "one", ",", "and", "then", "every"}, {"owl,", "eagle", "cat"}),
    ("detect A and B, a, small all-terrain car", {"and"}, {"A", "B", "a", "B,", "all-terrain"}),
    ("find anyone at the installation", {"the"}, {"anyone", "at", "installation"}),
    ("find every", set(), {"every"}),
    ("?", set(), {"?"}),
])  # fmt: skip
def test_no_phrase_begins_with_what_leads_to_it(
    vocabulary: Vocabulary, words: str, none: set[str], some: set[str]
) -> None:
    """Quantifiers and joins of the wordings, and commas; what only looks like one may."""
    found = begins(vocabulary, words)
    assert not found & none
    assert some <= found | {word.rstrip(",") for word in found}


@pytest.mark.parametrize(("words", "end"), [
    ("add a bicycle please", "bicycle"),
    ("add a bicycle. Thanks!", "bicycle"),
    ("add a bicycle here", "here"),  # says where
    ("add a sign please that says bicycle", "bicycle"),
    ("please", "please"),
    ("find a bicycle in the image", "bicycle"),
    ("find a bicycle in this picture please.", "bicycle"),
    ("find a bicycle in picture 2", "2"),
])  # fmt: skip
def test_no_phrase_holds_what_closes_a_request(vocabulary: Vocabulary, words: str, end: str) -> None:
    rng, last = np.random.default_rng(0), set[str]()
    for _ in range(100):
        last.add(phrases_left(vocabulary, began(vocabulary, words), rng).rstrip(".!").split()[-1])
    assert last == set(words[: words.index(end) + len(end)].replace(".", "").split())


def liked(vocabulary: Vocabulary, words: str, wish: str, reply: Sequence[int] = ()) -> str:
    """What a model writes first that would begin its phrase with ``wish``, and next with "cat"."""
    logits = torch.zeros(len(vocabulary))
    logits[vocabulary.plain("cat")[0]], logits[vocabulary.plain(wish)[0]] = 1.0, 2.0
    restrict(logits, began(vocabulary, words, reply))
    return vocabulary.text([int(logits.argmax())])


@pytest.mark.parametrize(("words", "wish", "first"), [
    ("detect every dog, all the cups and a cat", "every", "dog"),
    ("detect every dog, all the cups and a cat", "all", "cup"),
    ("detect every dog, all the cups and a cat", "and", "cat"),
    ("detect every dog and every cup", "every", "dog"),  # the nearest
    ("detect every dog, all the cups and a cat", "cat", "cat"),
    ("detect every dog and a cat", "zebra", "cat"),
])  # fmt: skip
def test_what_leads_to_a_phrase_speaks_for_it(vocabulary: Vocabulary, words: str, wish: str, first: str) -> None:
    assert first.startswith(liked(vocabulary, words, wish))


def test_the_nearest_is_behind_the_phrase_before(vocabulary: Vocabulary) -> None:
    words = "detect every dog and every cup"
    assert "cup".startswith(liked(vocabulary, words, "every", routed(vocabulary, "dog", "[DET]")))


def test_half_a_letter_of_an_earlier_reply_moves_nothing(vocabulary: Vocabulary) -> None:
    """What stands behind it is found where it stands."""
    half = next(token for token, piece in vocabulary.spelled.items() if piece == b"\xe6")
    rule = Quoting(vocabulary, [half, *vocabulary.plain(" cars")])
    rule.wrote(vocabulary.control(REF))
    for token in vocabulary.plain("cars"):
        assert token in (rule.allowed() or ())
        rule.wrote(token)
    assert vocabulary.control(REF_END) in (rule.allowed() or ())


def test_words_of_its_own_and_parts_are_free(vocabulary: Vocabulary) -> None:
    """A caption that points, and keypoints that go without saying; the next thing with keypoints is quoted again."""
    assert began(vocabulary, "describe the picture").allowed()
    said = vocabulary.plain("A street with ")
    assert began(vocabulary, "describe the picture", said).allowed() is None
    more = [*said, *routed(vocabulary, "two cars", "[DET]"), *vocabulary.plain(", ")]
    assert began(vocabulary, "describe the picture", more).allowed() is None
    person = routed(vocabulary, "person", "[POSE]")
    assert began(vocabulary, "pose of a person", [*person, *vocabulary.plain(": ")]).allowed() is None
    nose = [*person, *vocabulary.plain(": "), *routed(vocabulary, "nose", "[KPT]")]
    assert began(vocabulary, "pose of a person and a dog", [*nose, *vocabulary.plain(" ")]).allowed() is None
    assert began(vocabulary, "pose of a person and a dog", [*nose, *vocabulary.plain(", ")]).allowed()
    assert Quoting(vocabulary, prompt_of(vocabulary, "x")).allowed() is None
    assert began(vocabulary, "?").allowed() is not None


def test_a_vocabulary_of_marked_blanks() -> None:
    """As SentencePiece writes them: a blank leads, and what has no piece is written in bytes."""
    pieces = ["▁", "▁car", "s", "▁red", "▁d", "og", "▁a", "▁the", ",", "x"]
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {piece: 256 + n for n, piece in enumerate(pieces)}
    bare = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token=None))
    bare.pre_tokenizer = pre_tokenizers.Metaspace()
    bare.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    words = json.loads(bare.to_str())
    words["model"]["merges"] = []
    vocabulary = Vocabulary(Tokenizer.from_str(json.dumps(words)), [TASKS["detection"]])
    assert vocabulary.spelled[vocab["▁car"]] == b" car"
    assert vocabulary.spelled[7] == b"\x07"
    prompt = [vocab[piece] for piece in ("▁the", "▁red", "▁car", "s", ",", "▁d", "og")]
    rule = Quoting(vocabulary, prompt)
    rule.wrote(vocabulary.control(REF))
    assert {vocab["▁red"], vocab["▁car"], vocab["▁d"]} <= set(rule.allowed() or ()) if vocabulary.leads else True
    rule.wrote(vocab["▁car"])
    assert vocab["s"] in (rule.allowed() or ())
    assert vocabulary.control(REF_END) not in (rule.allowed() or ())
    rule.wrote(vocab["s"])
    assert vocabulary.control(REF_END) in (rule.allowed() or ())


def test_a_region_is_named_as_it_is_read(vocabulary: Vocabulary) -> None:
    """By the name that stands before it in the prompt."""
    turn = Turn(question=f"segment {PLACEHOLDER}", regions=(Point(3, 3),))
    pieces = render(Sample(pictures=(Picture(pixels=np.zeros((8, 8, 3), np.uint8)),), turns=(turn,)), (4,), reply=False)
    prompt = list[int]()
    for piece in pieces:
        prompt += [vocabulary.control(piece.text)] * piece.repeat if piece.control else vocabulary.plain(piece.text)
    rule = Quoting(vocabulary, prompt)
    for token in routed(vocabulary, region_name(0), "[SEG]")[:-1]:
        allowed = rule.allowed()
        assert allowed is None or token in allowed
        rule.wrote(token)


def test_a_wording_says_what_is_asked() -> None:
    """A reply to one that did not would have nothing to quote."""
    group = {"reply": "{links}", "questions": ["how deep is {phrases}", "how deep is it"]}
    with pytest.raises(ConfigError, match=r"depth\.yaml: groups\.0\.questions: .*'how deep is it' does not say"):
        validate(Templates, {"groups": [group]}, source="depth.yaml")
