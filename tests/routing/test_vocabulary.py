"""Nothing a user types can steer, whatever its spelling."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from visionllm.core.errors import CheckpointError
from visionllm.core.sample import Sample, Turn
from visionllm.core.task import TASKS
from visionllm.decoders import DECODERS
from visionllm.routing.render import Style, render
from visionllm.routing.vocabulary import CONTROL, Vocabulary

NANO = Path(__file__).resolve().parents[2] / "configs" / "models" / "nano" / "tokenizer.json"
list(DECODERS)
# Tokens of other makers, as public InternVL checkpoints bring them.
FOREIGN = ("<quad>", "</quad>", "<box>", "</box>", "<|endoftext|>", "<tool_call>")


def vocabulary() -> Vocabulary:
    tokenizer = Tokenizer.from_file(str(NANO))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in FOREIGN[:-1]])
    # Not special, as some of Qwen's are: skipping special tokens would not hide it.
    tokenizer.add_tokens([AddedToken(FOREIGN[-1], special=False)])
    return Vocabulary(tokenizer, [TASKS[name] for name in TASKS])


VOCABULARY = vocabulary()
ADDED = sorted(token.content for token in VOCABULARY._full.get_added_tokens_decoder().values())


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def disguises(token: str) -> list[str]:
    middle = len(token) // 2
    return [
        token, token * 3, token.lower(), token.upper(), f" {token}\n{token}", f"{token[:middle]} {token[middle:]}",
        full_width(token), "\u200d".join(token), "\u200b".join(token), f"{token[:middle]}\u00ad{token[middle:]}",
        token[0] + token, token + token[-1], token.replace("[", "[["), f"\ufeff{token}\u202e{token}",
        unicodedata.normalize("NFD", token), token.replace("<", "&lt;"), "".join(f"{c}\u0301" for c in token),
    ]  # fmt: skip


def test_the_whole_added_vocabulary_is_known() -> None:
    routing = [token.text for name in TASKS for token in TASKS[name].tokens]
    assert set(ADDED) == {*CONTROL, *FOREIGN, *routing}
    assert len(VOCABULARY.added) == len(ADDED)


@pytest.mark.parametrize("token", ADDED)
def test_a_typed_token_is_only_text(token: str) -> None:
    for text in disguises(token):
        ids = VOCABULARY.plain(text)
        assert VOCABULARY.added.isdisjoint(ids), text
        assert VOCABULARY.text(ids) == text
        assert VOCABULARY.text(ids, control=False) == text


disguised = st.sampled_from(ADDED).flatmap(lambda token: st.sampled_from(disguises(token)))
words = st.text(st.characters(codec="utf-8"), max_size=8)


@given(st.lists(st.one_of(words, st.sampled_from(ADDED), disguised), max_size=8))
def test_any_text_is_only_text(parts: list[str]) -> None:
    text = "".join(parts)
    ids = VOCABULARY.plain(text)
    assert VOCABULARY.added.isdisjoint(ids)
    assert VOCABULARY.text(ids) == text


@given(st.lists(st.characters(), max_size=6).map("".join), st.sampled_from(["\ud800", "\udfff", "\udc80"]))
def test_lone_surrogates_are_shown_as_a_mark(text: str, lone: str) -> None:
    ids = VOCABULARY.plain(text + lone + "[DET]")
    assert VOCABULARY.added.isdisjoint(ids)
    assert VOCABULARY.text(ids).endswith("?[DET]")


def control_ids(pieces: list[Any]) -> list[str]:
    return [piece.text for piece in pieces if piece.control for _ in range(piece.repeat)]


@given(
    question=st.one_of(words, st.sampled_from(ADDED)),
    phrases=st.lists(st.one_of(words, disguised), min_size=1, max_size=4),
    tree=st.booleans(),
)  # fmt: skip
def test_a_rendered_sample_holds_the_renderers_tokens_and_no_others(
    question: str, phrases: list[str], tree: bool
) -> None:
    """Questions, and phrases of the known-task path, add no control id beyond those of their own place."""
    plain = Turn(task="detection", phrases=tuple("x" for _ in phrases), question="x")
    typed = Turn(task="detection", phrases=tuple(phrases), question=question)
    asked = [render(Sample(turns=(turn,)), [], style=Style(tree=tree)) for turn in (plain, typed)]
    encoded = [
        [
            i
            for piece in pieces
            for i in ([VOCABULARY.control(piece.text)] if piece.control else VOCABULARY.plain(piece.text))
        ]
        for pieces in asked
    ]
    steering = [[i for i in ids if i in VOCABULARY.added] for ids in encoded]
    assert steering[0] == steering[1]
    assert control_ids(asked[0]) == control_ids(asked[1])


def test_a_control_token_is_one_id() -> None:
    for text in (*CONTROL, *VOCABULARY.tokens):
        assert VOCABULARY._full.encode(f"a{text}b", add_special_tokens=False).ids.count(VOCABULARY.control(text)) == 1
        assert VOCABULARY.text([VOCABULARY.control(text)]) == text
    assert len({VOCABULARY.control(text) for text in (*CONTROL, *VOCABULARY.tokens)}) == len(CONTROL) + len(
        VOCABULARY.tokens
    )


def test_generation_may_write_only_what_a_reply_is_made_of() -> None:
    banned = set(VOCABULARY.banned([]))
    names = {VOCABULARY.text([i]) for i in VOCABULARY.added - banned}
    assert names == {"<|im_end|>", "<ref>", "</ref>"}
    detection = TASKS["detection"]
    assert {VOCABULARY.text([i]) for i in banned - set(VOCABULARY.banned([detection]))} == {
        token.text for token in detection.tokens
    }


def test_save_and_load(tmp_path: Path) -> None:
    VOCABULARY.save(tmp_path)
    again = Vocabulary.load(tmp_path, [TASKS[name] for name in TASKS])
    assert len(again) == len(VOCABULARY)
    assert again.added == VOCABULARY.added
    assert {t: again.control(t) for t in CONTROL} == {t: VOCABULARY.control(t) for t in CONTROL}
    assert again.plain("a [DET] <ref>") == VOCABULARY.plain("a [DET] <ref>")


@pytest.mark.parametrize("text", [None, "{", "not json", "{}", "\x00\xff"])
def test_a_broken_tokenizer_is_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        Vocabulary.load(tmp_path, [])
    assert "\n" not in str(caught.value)
