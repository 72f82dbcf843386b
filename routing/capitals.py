"""Words in capitals: read in small letters, given back as they were typed.

A vocabulary cuts "CARS" into other pieces than "cars". A large language model has met both; a small one that learned
its words in small letters reads capitals as a string of letters, and may answer anything. Such a model reads "DETECT
ALL CARS" as "detect all cars" (``VisionLLMConfig.lower_capitals``), and the phrase of what it finds is "CARS".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from visionllm.core.sample import Sample
from visionllm.core.superlink import LinkMeta

# An apostrophe is in a word: "DON'T" is one.
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Letters of the longest acronym ("RBC", "SUV").
_ACRONYM = 4


def lowered(text: str) -> str:
    """A text with its words in capitals in small letters, of the same length.

    Words in capitals that stand together are, where one is longer than an acronym, or where the text has two words or
    more and no other. Acronyms ("RBC", "a TV and an SUV") and capitals within a word ("Kestrel", "iPhone") stay.
    """
    words = list(_WORD.finditer(text))
    for capitals, group in groupby(words, key=lambda word: word[0].isupper()):
        run = list(group)
        whole = 1 < len(run) == len(words) and any(len(word[0]) > 1 for word in run)
        if capitals and (whole or any(len(word[0]) > _ACRONYM for word in run)):
            start, end = run[0].start(), run[-1].end()
            text = text[:start] + _small(text[start:end]) + text[end:]
    return text


def typed(links: Sequence[LinkMeta], samples: Sequence[Sample]) -> tuple[LinkMeta, ...]:
    """Links, each with its phrase as the user typed it."""
    said = [[turn.question for turn in sample.turns if turn.question and not turn.told] for sample in samples]
    return tuple(replace(link, phrase=as_typed(link.phrase, said[link.sample])) for link in links)


def as_typed(phrase: str, texts: Sequence[str]) -> str:
    """A phrase as the last of some texts that holds it has it, letter for letter where it can; itself where none
    does."""
    pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    for text in reversed(texts if phrase else ()):
        if found := re.search(pattern, text) or re.search(pattern, text, re.IGNORECASE):
            return found[0]
    return phrase


def _small(text: str) -> str:
    # The small letter of some capitals is two ("\u0130"); those stay, so that places in a text stay.
    return "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
