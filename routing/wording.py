"""Wordings of questions and replies, read from YAML.

A file holds ``groups``; each pairs question wordings with the one reply that answers them, so that the reply follows
from the question and a trained model's greedy reply is predictable word for word. The first group is canonical: the
known-task path renders it. ``{phrases}`` in a question is the list of what is asked, ``{links}`` in a reply the routed
list. With ``base: other.yaml`` everything but ``groups`` and ``branches`` is taken from there, unless the file says it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

import yaml
from pydantic import Field, field_validator

from visionllm.core.config import Config, validate

# Between questions asked in one breath; the first stands between their replies.
BREATHS = ("; ", "; ", ", then ", " and then ", ". ", " and ", ", and ", "\n")


class Group(Config):
    """Questions that share a reply. Each says ``{phrases}``, from which the reply quotes them (``quoting``)."""

    questions: tuple[str, ...] = Field(min_length=1)
    reply: str

    @field_validator("questions")
    @classmethod
    def _said(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        for question in questions:
            if "{phrases}" not in question:
                raise ValueError(f"{question!r} does not say {{phrases}}, which a reply quotes; put it in")
        return questions


class Templates(Config):
    """All wordings of a task.

    Args:
        groups: the first is canonical.
        branches: questions that name no phrase, for the tree layout.
        quantifiers: words before a phrase, by number (``plural``, ``singular``); an empty string is allowed, and
            ``a(n)`` is "an" before a vowel. They are no part of the phrase: a reply says "bus" of "the bus".
        joins: (between, before the last) pairs that join the phrases of a question.
        join: joins the links of a reply.
        owns: in a question, a phrase and its parts: ``{phrase}`` and ``{parts}``; the first is canonical.
        opens: in a reply, stands between a phrase's link and those of its parts.
        parts_join: joins the links of parts.
        prefixes, suffixes: politeness around a question.
    """

    groups: tuple[Group, ...] = Field(min_length=1)
    branches: tuple[str, ...] = ()
    quantifiers: dict[str, tuple[str, ...]] = Field(default={"plural": ("",), "singular": ("",)})
    joins: tuple[tuple[str, str], ...] = ((", ", ", "),)
    join: str = ", "
    owns: tuple[str, ...] = ("{phrase} ({parts})",)
    opens: str = ": "
    parts_join: str = " "
    prefixes: tuple[str, ...] = ("",)
    suffixes: tuple[str, ...] = ("",)

    def leading(self) -> set[str]:
        """What quantifiers are written as, without blanks around."""
        written = {one for many in self.quantifiers.values() for one in many}
        return {one.replace("(n)", form).strip() for one in written for form in ("", "n")} - {""}

    def joining(self) -> set[str]:
        """The words that join phrases, or what is asked in one breath, without marks."""
        written = {join.strip(", ") for pair in (*self.joins, BREATHS) for join in pair}
        return {join for join in written if join.replace(" ", "").isalpha()}


def bare(phrase: str, template: str) -> str:
    """A phrase as replies say it: without a quantifier of the template in front of it."""
    return _quantifier(template).sub("", phrase)


@cache
def _quantifier(template: str) -> re.Pattern[str]:
    return re.compile(rf"^{leads(load_templates(template).leading())}\s+", re.IGNORECASE)


def leads(words: Iterable[str], joins: Iterable[str] = ()) -> str:
    """Pattern of any of these words, the longest first, where a word follows that is none of ``joins``."""
    return rf"(?<!\w)(?:{_any_of(words)})(?=\s+(?!(?:{_any_of(joins)})\b)\w)"


def _any_of(words: Iterable[str]) -> str:
    """Pattern of any of them; of none of them, one that nothing fits."""
    ordered = sorted(set(words), key=lambda word: (-len(word), word))
    return "|".join(r"\s+".join(map(re.escape, word.split())) for word in ordered) or "(?!)"


@cache
def load_templates(name: str) -> Templates:
    """Templates of a task from ``routing/templates/<name>``, or ``package:file`` for a plugin's own."""
    package, _, file = name.rpartition(":")
    folder = resources.files(package) if package else resources.files("visionllm.routing") / "templates"
    values = yaml.safe_load((folder / file).read_text(encoding="utf-8"))
    if isinstance(values, dict) and "base" in values:
        base = load_templates(values["base"])
        kept = {key: getattr(base, key) for key in Templates.model_fields if key not in ("groups", "branches")}
        values = kept | {key: value for key, value in values.items() if key != "base"}
    return validate(Templates, values, source=name)
