"""Lists of class names without pictures: the model learns to copy what it is asked for, whatever the words.

Names are invented (``inventing``), some glued from the parts in a file (a tokenizer's own, so that each of its tokens
is copied in every place); in some lists names share words, as classes do. Or names are drawn from a file, to measure
how well names never trained on are copied.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from visionllm.core.config import Config
from visionllm.core.errors import AnnotationError, ConfigError
from visionllm.core.regions import picture_name
from visionllm.core.sample import Sample, Source, Turn
from visionllm.core.skeletons import load_skeleton, skeleton_names
from visionllm.core.task import TASKS, Task
from visionllm.datasets.following import again, louder, more
from visionllm.datasets.formats.inventing import SAID, akin, common_words, expression, glued, invent, pick, plain
from visionllm.datasets.formats.reader import Place, Wording, below, existing, read_bytes, register_format

MAX_BYTES = 16 * 1024**2
# Upper limits of short and of middling lists.
SHORT, MIDDLING = 5, 20
# Share of names that are glued from parts where there are any, and of lists in which names share words.
GLUED, KIN = 0.4, 0.25
# Phrases that own parts in one question, at most, and parts of one.
_MOST_OWNERS, _MOST_PARTS = 3, 20
_MOST_EXPRESSIONS = 4
# Share of several questions in one breath that name a thing or two each, as people do.
_CURT = 0.5
# Turns of a conversation, at most; how many of them go on with the task before, or come back to what was named.
_MOST_TURNS, _MORE, _AGAIN = 4, 0.25, 0.2
_MOST_PICTURES, _MOST_NAMES = 4, 6
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
    talk: float = Field(
        0.0, ge=0, le=1, description="share of samples that are conversations, in which turns lean on those before"
    )
    loud: float = Field(0.0, ge=0, le=1, description="share of samples in capitals")
    pictured: float = Field(
        0.0, ge=0, le=1, description="share of lists that say of each name in which of several pictures it is meant"
    )
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
        phrases = self._cuts[index] if self._pool else self._invented(index)
        talk = self._split.talk and rng.random() < self._split.talk
        turns = self._talk(phrases, rng) if talk else self._asked(phrases, rng)
        if self._split.loud and rng.random() < self._split.loud:
            # What is invented means nothing: no link is to be that of its small letters.
            turns = [replace(louder(turn), means=()) for turn in turns]
        return Sample(turns=tuple(turns), source=Source(dataset=self.dataset, index=index))

    def _asked(self, phrases: tuple[str, ...], rng: np.random.Generator) -> list[Turn]:
        """One question, or two or three in one breath."""
        count = 1 if rng.random() >= self._split.breath else 2 + int(rng.integers(2))
        # What is told is asked alone.
        tasks = self._tasks(rng, count, told=count == 1)
        if count > 1 and not self._pool and rng.random() < _CURT:
            phrases = phrases[: count * (1 + int(rng.integers(2)))]
        each = -(-len(phrases) // count)
        turns = []
        for number, task in enumerate(tasks):
            own = phrases[number * each : (number + 1) * each] or phrases[:1]
            turns.append(replace(self._turn(task, own, rng), joined=number > 0))
        return turns

    def _talk(self, phrases: tuple[str, ...], rng: np.random.Generator) -> list[Turn]:
        """Two to four questions, each in its own turn, of a name or two mostly; some lean on the one before."""
        lists = [name for name in self.tasks if _plain_list(TASKS[name])]
        turns: list[Turn] = []
        for _ in range(2 + int(rng.integers(_MOST_TURNS - 1))):
            count, kind = 1 + int(4 * rng.random() ** 3), rng.random()
            own, phrases = phrases[:count], phrases[count:] + phrases[:count]
            before = turns[-1].task if turns else None
            other = [name for name in lists if name != before]
            if before in lists and kind < _MORE:
                turns.append(more(Turn(task=before, phrases=own), rng))
            elif before in lists and other and kind < _MORE + _AGAIN:
                turns.append(again(turns[-1], pick(rng, other), rng))
            else:
                turns.append(self._turn(self._tasks(rng, 1, told=True)[0], own, rng))
        return turns

    def _tasks(self, rng: np.random.Generator, count: int, *, told: bool) -> list[Task]:
        """``count`` of them by their shares; what is told only where that may be."""
        known = [TASKS[name] for name in self.tasks]
        shares = np.array(list(self._split.tasks.values()))
        shares = shares if told else shares * [not task.told for task in known]
        return [known[i] for i in rng.choice(len(shares), count, p=shares / shares.sum())]

    def _turn(self, task: Task, phrases: tuple[str, ...], rng: np.random.Generator) -> Turn:
        """A list; of a task with parts a short one, each phrase with some, or words whose parts go without saying; of
        one that is told a single phrase."""
        if task.told:
            return Turn(task=task.name, phrases=phrases[:1])
        if task.says != "things":
            # Told in one go, with "and" in it as in lists.
            return Turn(task=task.name, phrases=(SAID[task.says](rng, phrases),))
        if task.parts_token is None:
            if self._split.expressions and rng.random() < self._split.expressions:
                phrases = self._expressions(rng)
            if self._split.pictured and rng.random() < self._split.pictured:
                phrases = _pictured(phrases[:_MOST_NAMES], rng)
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
        words = f"phrases {self._split} {self._pool} {sorted(self._avoid)} {self._parts} {common_words()}"
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
                name = akin(rng, pick(rng, tuple(found.values())))
            else:
                name = glued(rng, self._parts) if self._parts and rng.random() < GLUED else invent(rng)
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


def _plain_list(task: Task) -> bool:
    """A task that is asked for things by a list of their names, and says nothing else of them."""
    return task.says == "things" and task.parts_token is None and not task.told


def _pictured(phrases: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """Each name with the picture in which it is meant, all of them in one as often as not."""
    count = 2 + int(rng.integers(_MOST_PICTURES - 1))
    only = int(rng.integers(count)) if rng.random() < 0.5 else None
    return tuple(
        f"{phrase} in {picture_name(int(rng.integers(count)) if only is None else only)}" for phrase in phrases
    )


def _parts_of(rng: np.random.Generator) -> tuple[str, ...]:
    """Names of keypoints as a user may list them: of one known skeleton, a few of them, or invented."""
    names = skeleton_names()
    known = load_skeleton(names[int(rng.integers(len(names)))]).keypoints
    count = 1 + int(rng.random() ** 2 * min(len(known), _MOST_PARTS))
    if rng.random() < 0.2:
        return tuple(dict.fromkeys(invent(rng) for _ in range(min(count, 6))))
    return tuple(known[i] for i in rng.permutation(len(known))[:count])


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


def _rng(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed + (stream << 48), index], np.uint64)))


def _length(rng: np.random.Generator, split: PhrasesSplit) -> int:
    """A third of lists is short (up to five), as users' are, a third middling, a third long: these are learned last."""
    kind = rng.random()
    low, limit = (1, SHORT) if kind < 0.35 else (1, MIDDLING) if kind < 0.67 else (MIDDLING + 1, split.longest)
    high = min(split.longest, max(split.shortest, limit))
    return int(rng.integers(min(high, max(split.shortest, low)), high + 1))
