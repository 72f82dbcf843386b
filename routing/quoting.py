"""Phrases that a reply lists are quoted: while one is written, only what the prompt says next may follow."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import groupby

from visionllm.routing.vocabulary import IMAGE, REF, REF_END, START, Vocabulary
from visionllm.routing.wording import leads, load_templates

# No piece of a phrase is longer, in bytes; vocabularies of large models hold whole lines of blanks.
_LONGEST = 48


class Quoting:
    """Which ids may follow in one reply.

    A reply that lists what was asked for names it as the user did, and a language model copies: where each piece is the
    likeliest, a small one puts in a letter or a word of its own once in some hundred names, and then another thing is
    looked for than the one that was asked. So a phrase is written from the words of the prompt: it begins where a word
    of them begins, goes on as they do, and ends where a word ends (De Cao et al. 2021, "Autoregressive entity
    retrieval", section 3.2, where the names of a collection are what may be written); behind the phrase before it,
    while words are left there. It does not begin with what only leads to names ("every", "all the", "and": the
    quantifiers and joins of all tasks' wordings), nor with a comma; who would begin there begins with the name. It
    does not hold what closes a request ("please", "in the image"). Which words, which token and where the list ends
    stays with the model.

    Not quoted are the phrases of a reply that has words of its own, such as a caption that says where its things are,
    and names of parts: a person's keypoints go without saying.

    Args:
        vocabulary: of the model.
        prompt: the ids it has read.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._ref, self._ref_end = vocabulary.control(REF), vocabulary.control(REF_END)
        self._ids = prompt
        self._free = False  # the reply has words of its own
        self._last: int | None = None  # the routing token before
        self._between = b""  # what was written since
        # Texts and places in them that the phrase may go on from; None where anything may follow.
        self._at: list[tuple[int, int]] | None = None
        self._written = b""
        self._behind = (0, 0)  # the first place where the last quoted phrase may have ended

    @cached_property
    def _texts(self) -> list[tuple[bytes, list[int], set[int], list[tuple[int, int]]]]:
        """The words between two control tokens of the prompt, across a region that is behind its name: bytes, where a
        phrase may begin, where a word ends, and of each word that only leads to a phrase, where it and the phrase
        begin."""
        found = []
        for text in self._said:
            text = _closing(self._named).sub("", text) or text
            words, starts, ends, place, before = list[int](), list[int](), set[int](), 0, " "
            leading, waiting, led = self._leading(text), list[int](), list[tuple[int, int]]()
            for i, letter in enumerate((*text, " ")):
                if _apart(before, letter):
                    ends |= set() if before.isspace() else {place}
                    if not letter.isspace():
                        words.append(place)
                        if i in leading:
                            waiting += [place] if letter.isalnum() else []
                        else:
                            starts.append(place)
                            led += [(one, place) for one in waiting]
                            waiting = []
                place, before = place + len(_bytes(letter)), letter
            found.append((_bytes(text), starts or words, ends, led))
        return found

    @cached_property
    def _said(self) -> list[str]:
        spelled, texts, gap = self._vocabulary.spelled, list[str](), list[int]()
        start, image = self._vocabulary.control(START), self._vocabulary.control(IMAGE)
        for plain, group in groupby(self._ids, key=lambda token: token in spelled):
            if not plain:
                gap = list(group)
                continue
            # A reply of an earlier turn may hold half a letter; behind blanks at the end nothing would follow.
            text = b"".join(spelled[token] for token in group).decode("utf-8", "surrogateescape").rstrip()
            if gap and gap[-1] == start:  # who speaks is no word of theirs
                text = text.partition("\n")[2]
            if gap == [image] and texts:  # a region; a picture has marks around it
                texts[-1] += text
            else:
                texts.append(text)
        return texts

    @cached_property
    def _named(self) -> tuple[str, ...]:
        return tuple(sorted({task.templates for task, _ in self._vocabulary.tokens.values()}))

    def _leading(self, text: str) -> set[int]:
        """Letters of a text that no phrase begins with."""
        found = {
            i for i, letter in enumerate(text)
            if unicodedata.category(letter)[0] == "P" and (i + 1 == len(text) or text[i + 1].isspace())
        }  # fmt: skip
        for match in _leading(self._named).finditer(text):
            found |= set(range(*match.span()))
        return found

    def allowed(self) -> list[int] | None:
        """Ids that may follow; None where all may."""
        if self._at is None:
            return None
        found = set[int]()
        for number, place in self._at:
            if self._written and place in self._texts[number][2]:
                found.add(self._ref_end)
            found.update(*self._pieces(number, place))
        # A letter that no piece spells ends the phrase.
        return sorted(found) or [self._ref_end]

    def led(self) -> list[tuple[int, list[int]]]:
        """Where a phrase begins: ids of words that only lead to one, each with the ids that begin the nearest of them.
        A model that would write "every" means the cat behind it."""
        found: dict[int, list[int]] = {}
        if self._at is None or self._written:
            return []
        for number, (_, _, _, led) in enumerate(self._texts):
            for word, place in led:
                if (number, word) >= self._behind:
                    # Of the pieces that spell it, the longest: a letter may begin much else.
                    for longest in self._pieces(number, word)[-1:]:
                        found |= {one: self._flat(number, place) for one in longest if one not in found}
        return list(found.items())

    def _flat(self, number: int, place: int) -> list[int]:
        return sorted(set[int]().union(*self._pieces(number, place)))

    def _pieces(self, number: int, place: int) -> list[tuple[int, ...]]:
        """Ids of the pieces that the words at a place go on with, the shortest first."""
        text, found = self._texts[number][0], list[tuple[int, ...]]()
        by_piece, lead = self._vocabulary.by_piece, b" " if self._vocabulary.leads else b""
        for end in range(place + 1, min(len(text), place + _LONGEST) + 1):
            piece = text[place:end]
            spellings = (lead + piece, piece) if lead and not self._written else (piece,)
            ids = tuple(one for spelling in spellings for one in by_piece.get(spelling, ()))
            found += [ids] if ids else []
        return found

    def wrote(self, token: int) -> None:
        """Take the next id of the reply."""
        if token == self._ref:
            self._at, self._written = self._begun(), b""
        elif token == self._ref_end:
            self._behind = min(self._at) if self._at else self._behind
            self._at, self._between = None, b""
        elif token in self._vocabulary.routing:
            self._last, self._between = token, b""
        elif self._at is None:
            self._between += self._vocabulary.spelled.get(token, b"")
        else:
            piece = self._vocabulary.spelled.get(token, b"")
            if not self._written and self._vocabulary.leads:
                piece = piece.removeprefix(b" ")
            self._at = [
                (number, place + len(piece)) for number, place in self._at
                if self._texts[number][0].startswith(piece, place)
            ]  # fmt: skip
            self._written += piece

    def _begun(self) -> list[tuple[int, int]] | None:
        """Where the phrase that begins now may stand in the prompt."""
        between = self._between.decode("utf-8", "replace")
        if self._last is not None:
            task, _ = self._vocabulary.tokens[self._vocabulary.routing[self._last].text]
            templates = load_templates(task.templates)
            if task.parts_token is not None and between in (templates.opens, templates.parts_join):
                return None
            between = "" if between == templates.join else between
        self._free = self._free or any(letter.isalnum() for letter in between)
        starts = [(number, place) for number, (_, own, _, _) in enumerate(self._texts) for place in own]
        if self._free or not starts:
            return None
        return [place for place in starts if place >= self._behind] or starts


@cache
def _leading(named: tuple[str, ...]) -> re.Pattern[str]:
    """What leads to phrases in the templates of these names: quantifiers, and what joins one phrase to the next. "A and
    B" are names, so a word has to follow that joins nothing."""
    templates = [load_templates(name) for name in named]
    joins = set().union(*(one.joining() for one in templates))
    words = joins.union(*(one.leading() for one in templates))
    return re.compile(leads(words, {join.split()[0] for join in joins}), re.IGNORECASE)


@cache
def _closing(named: tuple[str, ...]) -> re.Pattern[str]:
    """What closes a request and says nothing of it, at the end of a text: in all templates of these names that close
    one ("please"), and in any of them what says that the picture is meant ("in the image")."""
    closings = [
        {end.rstrip(".!?") for end in load_templates(name).suffixes if any(map(str.isalnum, end))} for name in named
    ]
    shared = set.intersection(*filter(None, closings)) if any(closings) else set()
    shared |= {end for end in set().union(*closings) if end.startswith(" in ")}
    ends = "|".join(re.escape(end) for end in sorted(shared)) or "(?!)"
    return re.compile(rf"(?:(?:{ends})[.!?]?)+$", re.IGNORECASE)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _apart(one: str, other: str) -> bool:
    """Whether a word may end between two letters: scripts without blanks (Thai and all behind it) are cut anywhere."""
    return not (one.isalnum() and other.isalnum()) or max(one, other) >= "\u0e00"
