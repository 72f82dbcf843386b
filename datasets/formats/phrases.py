"""Lists of class names without pictures: the model learns to copy what it is asked for, whatever the words.

Names are invented (syllables, compounds, codes, accents, scripts other than Latin, so that every byte of a tokenizer
is met), combined from common English words or glued from the parts in a file (a tokenizer's own, so that each of its
tokens is copied in every place); in some lists names share words, as classes do. Or names are drawn from a file, to
measure how well names never trained on are copied.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from visionllm.core.config import Config, read_yaml, validate
from visionllm.core.errors import AnnotationError, ConfigError
from visionllm.core.sample import Sample, Source, Turn
from visionllm.core.skeletons import load_skeleton, skeleton_names
from visionllm.core.task import TASKS, Task
from visionllm.datasets.formats.reader import Place, Wording, below, existing, read_bytes, register_format

MAX_BYTES = 16 * 1024**2
# Upper limits of short and of middling lists.
SHORT, MIDDLING = 5, 20
# Share of names that are glued from parts where there are any, and of lists in which names share words.
GLUED, KIN = 0.4, 0.25
# Phrases that own parts in one question, at most, and parts of one.
_MOST_OWNERS, _MOST_PARTS = 3, 20
_MOST_EXPRESSIONS = 4
# Of the parts of a glued name, those that are words of questions, and those that come once more.
_ASKING, _TWICE = 0.25, 0.08
# Share of several questions in one breath that name a thing or two each, as people do.
_CURT = 0.5
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
_TASKS = 1  # stream of random numbers that draws the tasks


class PhrasesSplit(Config):
    """A split of a phrases card: ``length`` lists of ``shortest`` to ``longest`` names."""

    length: PositiveInt
    seed: int = Field(0, ge=0)
    shortest: PositiveInt = 1
    longest: PositiveInt = 20
    file: str | None = Field(None, description="names to draw from, one a line, beside the card; None invents them")
    avoid: str | None = Field(None, description="names that are never invented, one a line, beside the card")
    parts: str | None = Field(None, description="parts of words that names are glued from, one a line, beside the card")
    tasks: dict[str, NonNegativeFloat] = Field(
        default_factory=lambda: {"detection": 1.0}, min_length=1, description="task -> its share of the questions"
    )
    breath: float = Field(0.0, ge=0, le=1, description="share of samples that ask two or three questions in one breath")
    expressions: float = Field(
        0.0, ge=0, le=1, description="share of questions, of tasks without parts, for single things told from others"
    )
    skeletons: dict[str, str] = Field(
        default_factory=dict, description="word -> skeleton; half the questions for keypoints ask for these, unsaid"
    )


@register_format("phrases")
class PhrasesReader:
    """Ready samples without picture and target: they train the text alone.

    Lists from a file are as often of one length as of another, and are cut from shuffled rounds through the file, so
    that each name comes equally often, too.
    """

    Split: ClassVar[type[Config]] = PhrasesSplit
    needs_root: ClassVar[bool] = False
    names: tuple[str, ...] = ()
    wording = Wording()

    def __init__(self, *, dataset: str, split: PhrasesSplit, names: tuple[str, ...] = (), avoid: tuple[str, ...] = (),
                 parts: tuple[str, ...] = ()) -> None:  # fmt: skip
        self.dataset, self._split, self._pool, self._parts = dataset, split, names, parts
        self._avoid = {plain(name) for name in avoid}
        self.tasks = tuple(split.tasks)
        self._words = {word: load_skeleton(name) for word, name in split.skeletons.items()}
        self._cuts = self._cut() if names else []

    @classmethod
    def open(cls, split: Any, place: Place) -> PhrasesReader:
        if split.shortest > split.longest:
            raise ConfigError(
                f"{place.dataset}: shortest {split.shortest} is more than longest {split.longest}; swap them"
            )
        names = read_names(place, split.file) if split.file else ()
        if names and len(names) < split.longest:
            raise ConfigError(
                f"{place.dataset}: longest {split.longest} is more than the {len(names)} names of {split.file}"
            )
        if split.breath and all(TASKS[name].told for name, share in split.tasks.items() if share):
            told = ", ".join(split.tasks)
            raise ConfigError(f"{place.dataset}: what {told} finds is told, and asked alone; set breath to 0")
        avoid = read_names(place, split.avoid) if split.avoid else ()
        parts = read_names(place, split.parts) if split.parts else ()
        return cls(dataset=place.dataset, split=split, names=names, avoid=avoid, parts=parts)

    def __len__(self) -> int:
        return self._split.length

    def read(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = _rng(self._split.seed, index, _TASKS)
        count = 1 if rng.random() >= self._split.breath else 2 + int(rng.integers(2))
        shares = np.array(list(self._split.tasks.values()))
        # What is told is asked alone.
        alone = shares * [not TASKS[name].told for name in self.tasks] if count > 1 else shares
        tasks = [TASKS[self.tasks[i]] for i in rng.choice(len(shares), count, p=alone / alone.sum())]
        phrases = self._cuts[index] if self._pool else self._invented(index)
        if count > 1 and not self._pool and rng.random() < _CURT:
            phrases = phrases[: count * (1 + int(rng.integers(2)))]
        each = -(-len(phrases) // count)
        turns = []
        for number, task in enumerate(tasks):
            own = phrases[number * each : (number + 1) * each] or phrases[:1]
            turns.append(replace(self._turn(task, own, rng), joined=number > 0))
        return Sample(turns=tuple(turns), source=Source(dataset=self.dataset, index=index))

    def _turn(self, task: Task, phrases: tuple[str, ...], rng: np.random.Generator) -> Turn:
        """A list; of a task with parts a short one, each phrase with some, or words whose parts go without saying; of
        one that is told a single phrase."""
        if task.told:
            return Turn(task=task.name, phrases=phrases[:1])
        if task.says != "things":
            # Told in one go, with "and" in it as in lists.
            return Turn(task=task.name, phrases=(_SAID[task.says](rng, phrases),))
        if task.parts_token is None:
            if self._split.expressions and rng.random() < self._split.expressions:
                phrases = self._expressions(rng)
            return Turn(task=task.name, phrases=phrases)
        if self._words and rng.random() < 0.5:
            words = list(self._words)
            chosen = tuple(words[i] for i in rng.permutation(len(words))[: 1 + int(rng.random() < 0.2)])
            parts = tuple(self._words[word].keypoints for word in chosen)
            return Turn(task=task.name, phrases=chosen, parts=parts, usual=True)
        chosen = phrases[: 1 + int(rng.integers(_MOST_OWNERS))]
        return Turn(task=task.name, phrases=chosen, parts=tuple(_parts_of(rng) for _ in chosen))

    def _expressions(self, rng: np.random.Generator) -> tuple[str, ...]:
        """One to four, one alone most of the time, as ``GroundingAsker`` asks for them."""
        count = 1 if rng.random() < 0.5 else 1 + int(rng.integers(_MOST_EXPRESSIONS))
        found: dict[str, str] = {}
        while len(found) < count:
            words = expression(rng)
            if plain(words) not in self._avoid:
                found.setdefault(plain(words), words)
        return tuple(found.values())

    def digest(self) -> str:
        words = f"phrases {self._split} {self._pool} {sorted(self._avoid)} {self._parts} {_words()}"
        return hashlib.sha256(words.encode()).hexdigest()

    def report(self) -> str:
        return ""

    def _invented(self, index: int) -> tuple[str, ...]:
        rng = _rng(self._split.seed, index)
        count = _length(rng, self._split)
        found: dict[str, str] = {}
        # Two names that begin alike can only be told apart by looking further than one token.
        kin = 0.5 * (rng.random() < KIN)
        while len(found) < count:
            if found and rng.random() < kin:
                name = _kin(rng, _pick(rng, tuple(found.values())))
            else:
                name = _glued(rng, self._parts) if self._parts and rng.random() < GLUED else invent(rng)
            if plain(name) not in self._avoid:
                found.setdefault(plain(name), name)
        return tuple(found.values())

    def _cut(self) -> list[tuple[str, ...]]:
        """All lists of a file, cut from shuffled rounds; no list holds a name twice."""
        rng = _rng(self._split.seed, 0)
        queue: list[str] = []
        cuts = []
        for _ in range(self._split.length):
            count = int(rng.integers(self._split.shortest, self._split.longest + 1))
            while len(set(queue)) < count:
                queue += [self._pool[i] for i in rng.permutation(len(self._pool))]
            cut = tuple(dict.fromkeys(queue))[:count]
            for name in cut:
                queue.remove(name)
            cuts.append(cut)
        return cuts


def _parts_of(rng: np.random.Generator) -> tuple[str, ...]:
    """Names of keypoints as a user may list them: of one known skeleton, a few of them, or invented."""
    names = skeleton_names()
    known = load_skeleton(names[int(rng.integers(len(names)))]).keypoints
    count = 1 + int(rng.random() ** 2 * min(len(known), _MOST_PARTS))
    if rng.random() < 0.2:
        return tuple(dict.fromkeys(invent(rng) for _ in range(min(count, 6))))
    return tuple(known[i] for i in rng.permutation(len(known))[:count])


class _Words(Config):
    adjectives: list[str]
    nouns: list[str]
    asking: list[str]
    onsets: list[str]
    vowels: list[str]
    codas: list[str]


@cache
def _words() -> _Words:
    path = Path(__file__).with_name("words.yaml")
    return validate(_Words, read_yaml(path), source=str(path))


def read_names(place: Place, file: str) -> tuple[str, ...]:
    """The names in a list file beside the card: one a line, ``#`` starts a comment line.

    Raises:
        AnnotationError: the file is not UTF-8, or a name stands twice.
    """
    assert place.card_folder is not None
    path: Path = existing(below(place.card_folder, file, source=place.dataset), source=place.dataset)
    try:
        lines = read_bytes(path, limit=MAX_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name in first:
            raise AnnotationError(f"{path}: {name!r} stands on line {first[name]} and on line {number}; remove one")
        first[name] = number
    return tuple(first)


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
        return f"{thing} {_pick(rng, _RELATIONS)} the {_thing(rng)}"
    if kind < 0.65:
        return f"{_pick(rng, _EXTREMES)} {thing}"
    if kind < 0.75:
        return f"{thing} in {_adjective(rng)}"
    if kind < 0.85:
        return f"{thing} {_pick(rng, ('with', 'with a', 'without', 'of', 'on a', 'that shows'))} {_thing(rng)}"
    if kind < 0.9:
        return f"{_pick(rng, _EXTREMES)} {thing} {_pick(rng, _RELATIONS)} the {_thing(rng)}"
    return thing


def caption(rng: np.random.Generator, names: Sequence[str]) -> str:
    """One or two of the names as what a picture shows, drawn from ``rng``: "pale toga left of a lynx on a table"."""

    def told(name: str) -> str:
        return f"{_adjective(rng)} {name}" if rng.random() < 0.5 else name

    words = told(names[0])
    if len(names) > 1 and rng.random() < 0.6:
        other = told(names[1])
        between = "and" if rng.random() < 0.3 else _pick(rng, _RELATIONS)
        words += f" {between} {'an' if other[0] in 'aeiou' else 'a'} {other}"
    return words + (_pick(rng, _PLACES) if rng.random() < 0.45 else "")


def change(rng: np.random.Generator, names: Sequence[str]) -> str:
    """A change of a picture in which some of the names occur, drawn from ``rng``: "add a pale toga"."""
    kind = rng.random()
    if kind < 0.12:
        return _pick(rng, _LIGHTS).replace("{mood}", _pick(rng, _MOODS)).replace("{other}", _pick(rng, _MOODS))
    # "detect the cars and then make the red one blue": a thing that was named before is "the red one".
    one = f"{_hue(rng)} one" if rng.random() < 0.12 else names[0]
    if kind < 0.4:
        return _pick(rng, _PAINTINGS).replace("{one}", one).replace("{hue}", _hue(rng))
    other = names[-1]
    if rng.random() < 0.4:
        other = f"{_hue(rng)} {other}"
    other = f"{'an' if other[0] in 'aeiou' else 'a'} {other}"
    relation, side = _pick(rng, _RELATIONS), _pick(rng, ("left", "right"))
    words = _pick(rng, _CHANGES).replace("{relation}", relation).replace("{side}", side)
    return words.replace("{one}", one).replace("{other}", other)


def _hue(rng: np.random.Generator) -> str:
    """A colour, or another adjective."""
    return _pick(rng, _COLOURS) if rng.random() < 0.7 else _adjective(rng)


def whole(rng: np.random.Generator, names: Sequence[str]) -> str:
    """What a picture itself is called, drawn from ``rng``: "picture", "blurry photo"; rarely by what is on it."""
    if rng.random() < 0.1:
        return names[0]
    word = _pick(rng, _CALLED)
    return f"{_adjective(rng)} {word}" if rng.random() < 0.15 else word


# What a phrase of a task says -> how one is invented.
_SAID = {"picture": caption, "change": change, "whole": whole}


def _thing(rng: np.random.Generator) -> str:
    adjective = f"{_adjective(rng)} " if rng.random() < 0.4 else ""
    return adjective + (_word(rng) if rng.random() < 0.8 else _noun_pair(rng)) + ("s" if rng.random() < 0.15 else "")


def nonsense(rng: np.random.Generator) -> str:
    """One or two words in lower case that mean nothing, as far as the lists of this module know."""
    known = {*_words().nouns, *_words().adjectives}
    words: list[str] = []
    count = 1 + int(rng.random() < 0.3)
    while len(words) < count:
        word = _syllables(rng)
        if len(word) > 3 and word not in known:
            words.append(word)
    return " ".join(words)


def _rng(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed + (stream << 48), index], np.uint64)))


def _length(rng: np.random.Generator, split: PhrasesSplit) -> int:
    """A third of lists is short (up to five), as users' are, a third middling, a third long: these are learned last."""
    kind = rng.random()
    low, limit = (1, SHORT) if kind < 0.35 else (1, MIDDLING) if kind < 0.67 else (MIDDLING + 1, split.longest)
    high = min(split.longest, max(split.shortest, limit))
    return int(rng.integers(min(high, max(split.shortest, low)), high + 1))


def _pick(rng: np.random.Generator, pool: Any) -> str:
    return pool[int(rng.integers(len(pool)))]


def _noun(rng: np.random.Generator) -> str:
    return _pick(rng, _words().nouns)


def _adjective(rng: np.random.Generator) -> str:
    return _pick(rng, _words().adjectives)


def _syllables(rng: np.random.Generator) -> str:
    parts = _words()
    word = ""
    for _ in range(1 + int(rng.integers(4))):
        # One syllable in forty has no consonant before its vowel; vowels of one letter are commoner than pairs.
        onset = _pick(rng, parts.onsets) if rng.random() < 0.975 else ""
        word += onset + (_pick(rng, "aeiou") if rng.random() < 0.5 else _pick(rng, parts.vowels))
    return word + (_pick(rng, parts.codas) if len(word) < 3 or rng.random() < 0.8 else "")


def _letters(rng: np.random.Generator) -> str:
    """Letters without any rule, so that copying cannot lean on how words usually look."""
    return "".join(_pick(rng, "abcdefghijklmnopqrstuvwxyz") for _ in range(3 + int(rng.integers(8))))


def _glued(rng: np.random.Generator, parts: tuple[str, ...]) -> str:
    """Parts of words in a row, each as likely as any other, but for two kinds that a list is easily lost at: those that
    are words of questions elsewhere ("all" of an alligator, "to" of a toga), and one that comes twice ("c" of a
    moccasin)."""
    count, asking = 1 + int(rng.integers(4)), _words().asking

    def draw() -> str:
        # Alone, or as a word of its own, it would be one of the question's.
        return _pick(rng, asking if count > 1 and rng.random() < _ASKING else parts)

    part = name = draw()
    for _ in range(count - 1):
        before, part = part, part if rng.random() < _TWICE else draw()
        between = _pick(rng, ("", "", "", "", " ", "-"))
        name += ("" if {before, part} & set(asking) else between) + part
    return name


def _kin(rng: np.random.Generator, name: str) -> str:
    """A name that shares words or letters with another one."""
    words = name.split(" ")
    shapes = (
        " ".join((words[0], _word(rng))), " ".join((_word(rng), words[-1])), f"{_adjective(rng)} {name}",
        f"{name} {_noun(rng)}", f"{name}{_pick(rng, 'abdegiklmnoprstuwy')}", name[: 1 + int(rng.integers(len(name)))],
    )  # fmt: skip
    return unicodedata.normalize("NFC", _pick(rng, shapes).strip())


def _compound(rng: np.random.Generator) -> str:
    return _pick(rng, (" ", "-", "")).join((_word(rng), _word(rng)))


def _word(rng: np.random.Generator) -> str:
    return _noun(rng) if rng.random() < 0.5 else _syllables(rng)


def _described(rng: np.random.Generator) -> str:
    adjectives = [_adjective(rng) for _ in range(1 + int(rng.random() < 0.2))]
    return " ".join((*dict.fromkeys(adjectives), _word(rng)))


def _noun_pair(rng: np.random.Generator) -> str:
    return f"{_noun(rng)} {_noun(rng)}"


def _related(rng: np.random.Generator) -> str:
    middle = _pick(rng, ("with a", "on a", "in a", "of", "near the", "without", "for"))
    return f"{_word(rng)} {middle} {_word(rng)}"


def _plural(rng: np.random.Generator) -> str:
    return (f"{_adjective(rng)} " if rng.random() < 0.3 else "") + _word(rng) + "s"


def _coded(rng: np.random.Generator) -> str:
    number = str(int(rng.integers(10 ** int(rng.integers(1, 5)))))
    letters = "".join(_pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(1 + int(rng.integers(3))))
    shapes = (f"{letters}-{number}", f"{letters}{number}", f"{_word(rng)} {number}", f"{number} {_word(rng)}",
              f"type {letters} {_word(rng)}", f"{_word(rng)} {letters}")  # fmt: skip
    return _pick(rng, shapes)


def _capital(rng: np.random.Generator) -> str:
    words = _pick(rng, (_word(rng), _described(rng), _compound(rng)))
    return _pick(rng, (words.upper(), words.title(), words[:1].upper() + words[1:]))


def _marked(rng: np.random.Generator) -> str:
    """Punctuation as it occurs in names."""
    one, two = _word(rng), _word(rng)
    return _pick(rng, (f"{one}'s {two}", f"{one}/{two}", f"{one} ({two})", f"{one} & {two}", f"{one}_{two}", f"{one}."))


def _accented(rng: np.random.Generator) -> str:
    word = list(_word(rng))
    for _ in range(1 + int(rng.integers(2))):
        at = int(rng.integers(len(word)))
        word[at] = _pick(rng, _ACCENTS.get(word[at], word[at]))
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
