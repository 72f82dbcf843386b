"""Names that no list holds, and what may be said with them: expressions, captions, changes, what a picture is called.

All is drawn from a generator of random numbers: syllables, compounds, codes, accents and scripts other than Latin, so
that every byte of a tokenizer is met, combinations of common English words (``words.yaml``), and names glued from
parts of words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from visionllm.core.config import Config, read_yaml, validate

# Of the parts of a glued name, those that are words of questions, and those that come once more.
_ASKING, _TWICE = 0.25, 0.08
_RELATIONS = (
    "left of", "right of", "above", "below", "in front of", "behind", "next to", "beside", "near", "on", "under",
    "to the left of", "to the right of", "on top of", "between", "facing", "holding",
)  # fmt: skip
_EXTREMES = (
    "leftmost", "rightmost", "largest", "smallest", "biggest", "nearest", "farthest", "tallest", "first", "second",
    "third", "last", "topmost", "lowest", "middle", "other",
)  # fmt: skip
_PLACES = (
    " on grass", " on a road", " on a table", " on grass", " on a road", " on a table", " in the rain", " at night",
    " in a room", " by the sea", " on a hill", " in the sky", " under a tree", " in winter",
)  # fmt: skip
_CHANGES = (
    "remove the {one}", "delete the {one}", "erase the {one}", "get rid of the {one}", "take the {one} away",
    "take out the {one}", "add {other}", "add {other}", "insert {other}", "put {other} into the picture",
    "place {other} here", "put {other} {relation} the {one}", "add {other} {relation} the {one}",
    "replace the {one} with {other}", "replace the {one} by {other}", "turn the {one} into {other}",
    "change the {one} into {other}", "swap the {one} for {other}", "make the {one} {other}",
    "move the {one} to the {side}", "shift the {one} to the {side}", "move the {one} {side}",
    "put the {one} further to the {side}",
)  # fmt: skip
_PAINTINGS = (
    "make the {one} {hue}", "make the {one} {hue}", "make the {one} {hue}", "paint the {one} {hue}",
    "turn the {one} {hue}", "colour the {one} {hue}", "color the {one} {hue}", "dye the {one} {hue}",
    "change the colour of the {one} to {hue}", "change the color of the {one} to {hue}",
)  # fmt: skip
_LIGHTS = (
    "make it {mood}", "make it look like {mood}", "turn {mood} into {other}", "change it to {mood}", "make it dark",
    "make it bright", "turn it into {mood}",
)  # fmt: skip
_COLOURS = (
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "gray", "grey",
)  # fmt: skip
_CALLED = (
    "picture", "picture", "picture", "image", "image", "image", "photo", "photo", "photograph", "shot", "snapshot",
    "screenshot", "drawing", "scan", "frame", "scene", "painting", "view",
)  # fmt: skip
_MOODS = ("night", "day", "winter", "summer", "rain", "a painting", "dawn", "a sketch")


class _Words(Config):
    adjectives: list[str]
    nouns: list[str]
    asking: list[str]
    onsets: list[str]
    vowels: list[str]
    codas: list[str]


@cache
def common_words() -> _Words:
    path = Path(__file__).with_name("words.yaml")
    return validate(_Words, read_yaml(path), source=str(path))


def plain(name: str) -> str:
    """A name without case, hyphens and doubled spaces: what decides whether two names are the same words."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("-", " ").split())


def invent(rng: np.random.Generator) -> str:
    """A class name, drawn from ``rng``."""
    kind = rng.random()
    for limit, make in _KINDS:
        if kind < limit:
            return unicodedata.normalize("NFC", make(rng))
    raise AssertionError("the last limit is above 1")


def expression(rng: np.random.Generator) -> str:
    """What tells one thing from others of its kind, without an article in front, drawn from ``rng``."""
    kind = rng.random()
    thing = _thing(rng)
    if kind < 0.4:
        return f"{thing} {pick(rng, _RELATIONS)} the {_thing(rng)}"
    if kind < 0.65:
        return f"{pick(rng, _EXTREMES)} {thing}"
    if kind < 0.75:
        return f"{thing} in {_adjective(rng)}"
    if kind < 0.85:
        return f"{thing} {pick(rng, ('with', 'with a', 'without', 'of', 'on a', 'that shows'))} {_thing(rng)}"
    if kind < 0.9:
        return f"{pick(rng, _EXTREMES)} {thing} {pick(rng, _RELATIONS)} the {_thing(rng)}"
    return thing


def caption(rng: np.random.Generator, names: Sequence[str]) -> str:
    """One or two of the names as what a picture shows, drawn from ``rng``: "pale toga left of a lynx on a table"."""

    def told(name: str) -> str:
        return f"{_adjective(rng)} {name}" if rng.random() < 0.5 else name

    words = told(names[0])
    if len(names) > 1 and rng.random() < 0.6:
        other = told(names[1])
        between = "and" if rng.random() < 0.3 else pick(rng, _RELATIONS)
        words += f" {between} {'an' if other[0] in 'aeiou' else 'a'} {other}"
    return words + (pick(rng, _PLACES) if rng.random() < 0.45 else "")


def change(rng: np.random.Generator, names: Sequence[str]) -> str:
    """A change of a picture in which some of the names occur, drawn from ``rng``: "add a pale toga"."""
    kind = rng.random()
    if kind < 0.12:
        return pick(rng, _LIGHTS).replace("{mood}", pick(rng, _MOODS)).replace("{other}", pick(rng, _MOODS))
    # "detect the cars and then make the red one blue": a thing that was named before is "the red one".
    one = f"{_hue(rng)} one" if rng.random() < 0.12 else names[0]
    if kind < 0.4:
        return pick(rng, _PAINTINGS).replace("{one}", one).replace("{hue}", _hue(rng))
    other = names[-1]
    if rng.random() < 0.4:
        other = f"{_hue(rng)} {other}"
    other = f"{'an' if other[0] in 'aeiou' else 'a'} {other}"
    relation, side = pick(rng, _RELATIONS), pick(rng, ("left", "right"))
    words = pick(rng, _CHANGES).replace("{relation}", relation).replace("{side}", side)
    return words.replace("{one}", one).replace("{other}", other)


def _hue(rng: np.random.Generator) -> str:
    """A colour, or another adjective."""
    return pick(rng, _COLOURS) if rng.random() < 0.7 else _adjective(rng)


def whole(rng: np.random.Generator, names: Sequence[str]) -> str:
    """What a picture itself is called, drawn from ``rng``: "picture", "blurry photo"; rarely by what is on it."""
    if rng.random() < 0.1:
        return names[0]
    word = pick(rng, _CALLED)
    return f"{_adjective(rng)} {word}" if rng.random() < 0.15 else word


# What a phrase of a task says -> how one is invented.
SAID = {"picture": caption, "change": change, "whole": whole}


def _thing(rng: np.random.Generator) -> str:
    adjective = f"{_adjective(rng)} " if rng.random() < 0.4 else ""
    return adjective + (_word(rng) if rng.random() < 0.8 else _noun_pair(rng)) + ("s" if rng.random() < 0.15 else "")


def nonsense(rng: np.random.Generator) -> str:
    """One or two words in lower case that mean nothing, as far as the lists of this module know."""
    known = {*common_words().nouns, *common_words().adjectives}
    words: list[str] = []
    count = 1 + int(rng.random() < 0.3)
    while len(words) < count:
        word = _syllables(rng)
        if len(word) > 3 and word not in known:
            words.append(word)
    return " ".join(words)


def pick(rng: np.random.Generator, pool: Any) -> str:
    return pool[int(rng.integers(len(pool)))]


def _noun(rng: np.random.Generator) -> str:
    return pick(rng, common_words().nouns)


def _adjective(rng: np.random.Generator) -> str:
    return pick(rng, common_words().adjectives)


def _syllables(rng: np.random.Generator) -> str:
    parts = common_words()
    word = ""
    for _ in range(1 + int(rng.integers(4))):
        # One syllable in forty has no consonant before its vowel; vowels of one letter are commoner than pairs.
        onset = pick(rng, parts.onsets) if rng.random() < 0.975 else ""
        word += onset + (pick(rng, "aeiou") if rng.random() < 0.5 else pick(rng, parts.vowels))
    return word + (pick(rng, parts.codas) if len(word) < 3 or rng.random() < 0.8 else "")


def _letters(rng: np.random.Generator) -> str:
    """Letters without any rule, so that copying cannot lean on how words usually look."""
    return "".join(pick(rng, "abcdefghijklmnopqrstuvwxyz") for _ in range(3 + int(rng.integers(8))))


def glued(rng: np.random.Generator, parts: tuple[str, ...]) -> str:
    """Parts of words in a row, each as likely as any other, but for two kinds that a list is easily lost at: those that
    are words of questions elsewhere ("all" of an alligator, "to" of a toga), and one that comes twice ("c" of a
    moccasin)."""
    count, asking = 1 + int(rng.integers(4)), common_words().asking

    def draw() -> str:
        # Alone, or as a word of its own, it would be one of the question's.
        return pick(rng, asking if count > 1 and rng.random() < _ASKING else parts)

    part = name = draw()
    for _ in range(count - 1):
        before, part = part, part if rng.random() < _TWICE else draw()
        between = pick(rng, ("", "", "", "", " ", "-"))
        name += ("" if {before, part} & set(asking) else between) + part
    return name


def akin(rng: np.random.Generator, name: str) -> str:
    """A name that shares words or letters with another one."""
    words = name.split(" ")
    shapes = (
        " ".join((words[0], _word(rng))), " ".join((_word(rng), words[-1])), f"{_adjective(rng)} {name}",
        f"{name} {_noun(rng)}", f"{name}{pick(rng, 'abdegiklmnoprstuwy')}", name[: 1 + int(rng.integers(len(name)))],
    )  # fmt: skip
    return unicodedata.normalize("NFC", pick(rng, shapes).strip())


def _compound(rng: np.random.Generator) -> str:
    return pick(rng, (" ", "-", "")).join((_word(rng), _word(rng)))


def _word(rng: np.random.Generator) -> str:
    return _noun(rng) if rng.random() < 0.5 else _syllables(rng)


def _described(rng: np.random.Generator) -> str:
    adjectives = [_adjective(rng) for _ in range(1 + int(rng.random() < 0.2))]
    return " ".join((*dict.fromkeys(adjectives), _word(rng)))


def _noun_pair(rng: np.random.Generator) -> str:
    return f"{_noun(rng)} {_noun(rng)}"


def _related(rng: np.random.Generator) -> str:
    middle = pick(rng, ("with a", "on a", "in a", "of", "near the", "without", "for"))
    return f"{_word(rng)} {middle} {_word(rng)}"


def _plural(rng: np.random.Generator) -> str:
    return (f"{_adjective(rng)} " if rng.random() < 0.3 else "") + _word(rng) + "s"


def _coded(rng: np.random.Generator) -> str:
    number = str(int(rng.integers(10 ** int(rng.integers(1, 5)))))
    letters = "".join(pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(1 + int(rng.integers(3))))
    shapes = (f"{letters}-{number}", f"{letters}{number}", f"{_word(rng)} {number}", f"{number} {_word(rng)}",
              f"type {letters} {_word(rng)}", f"{_word(rng)} {letters}")  # fmt: skip
    return pick(rng, shapes)


def _capital(rng: np.random.Generator) -> str:
    words = pick(rng, (_word(rng), _described(rng), _compound(rng)))
    return pick(rng, (words.upper(), words.title(), words[:1].upper() + words[1:]))


def _marked(rng: np.random.Generator) -> str:
    """Punctuation as it occurs in names."""
    one, two = _word(rng), _word(rng)
    return pick(rng, (f"{one}'s {two}", f"{one}/{two}", f"{one} ({two})", f"{one} & {two}", f"{one}_{two}", f"{one}."))


def _accented(rng: np.random.Generator) -> str:
    word = list(_word(rng))
    for _ in range(1 + int(rng.integers(2))):
        at = int(rng.integers(len(word)))
        word[at] = pick(rng, _ACCENTS.get(word[at], word[at]))
    return "".join(word)


def _foreign(rng: np.random.Generator) -> str:
    first, last = _SCRIPTS[int(rng.integers(len(_SCRIPTS)))]
    count = 1 + int(rng.integers(1, 5))
    word = "".join(chr(int(rng.integers(first, last + 1))) for _ in range(count))
    return word if rng.random() < 0.8 else f"{word} {_word(rng)}"


# Upper limits of a number drawn from [0, 1), and what is made below each.
_KINDS = (
    (0.14, _noun),
    (0.26, _syllables),
    (0.34, _letters),
    (0.43, _compound),
    (0.55, _described),
    (0.65, _noun_pair),
    (0.72, _related),
    (0.77, _plural),
    (0.83, _coded),
    (0.89, _capital),
    (0.915, _marked),
    (0.95, _accented),
    (1.01, _foreign),
)

_ACCENTS = {
    "a": "áàâäãåā", "c": "çćč", "d": "ďð", "e": "éèêëēę", "g": "ğ", "i": "íìîïı", "l": "łĺ", "n": "ñńň", "o": "óòôöõøő",
    "r": "řŕ", "s": "śšşß", "t": "ťţ", "u": "úùûüůű", "y": "ýÿ", "z": "źżž",
}  # fmt: skip
# Blocks of assigned letters: Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, Hiragana, Katakana, CJK, Hangul.
_SCRIPTS = (
    (0x03B1, 0x03C9), (0x0430, 0x044F), (0x05D0, 0x05EA), (0x0627, 0x063A), (0x0905, 0x0939), (0x0E01, 0x0E2E),
    (0x3042, 0x3093), (0x30A2, 0x30F3), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
)  # fmt: skip
