"""From what is known of a picture to a question and its truth, by task.

Everything a data set leaves open is drawn here: which categories are asked for, by which words, in which order, and how
many that are not in the picture. A task is served by the asker registered under its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from visionllm.core.errors import AnnotationError, ConfigError
from visionllm.core.poses import Skeleton
from visionllm.core.registry import Registry
from visionllm.core.sample import BoxTarget, Record, Sample, Turn
from visionllm.datasets.formats.inventing import nonsense
from visionllm.datasets.formats.reader import Wording

# A list longer than this is the work of known-task chunks; free replies keep to what a context holds.
MOST_PHRASES = 40
# Categories whose poses are asked for in one question, at most; share of these questions that leave the keypoints
# unsaid; share of the others that ask for a point that is not there.
MOST_POSES, USUAL, FOREIGN = 3, 0.4, 0.15
# Fields that say all of what is where: an asker of words needs them for the loss ``sight`` alone.
SEEN = frozenset({"masks", "stuff"})
# Share of questions that also ask for words without a meaning, and how many at most: nothing is called so. A part of
# these questions has as many as fit: what a picture shows is to be found in a long list as in a short one, and a data
# set of no more names than FEW has no long list of its own.
STRANGERS, MOST_STRANGERS, CROWDED = 0.2, 8, 0.25
FEW, STRANGERS_OF_FEW, CROWDED_OF_FEW = 8, 0.5, 0.5


class Asker:
    """Makes samples of one task.

    Args:
        task: registered task of its turns; None for plain words.
        metric: registered name of the metric its answers are scored by, where it is not the task's.
        needs: fields of ``Record`` beyond boxes that it asks the reader for, such as ``masks``.
        kinds: other askers whose turns it mixes.
        partners: how many further records a sample takes.
    """

    task: str | None = None
    metric: str | None = None
    needs: frozenset[str] = frozenset()
    kinds: tuple[str, ...] = ()
    partners: int = 0

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """A training sample, a pure function of ``rng``."""
        raise NotImplementedError

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Evaluation samples that ask for all there is, in a fixed order and by the data set's own names."""
        raise NotImplementedError


class RoutesAsker(Asker):
    """An asker of which an evaluation measures what is routed: of each record one sample, always the same."""

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        return (self.draw(record, wording, np.random.default_rng(record.source.index)),)


ASKERS: Registry[Asker] = Registry("task with an asker", group="visionllm.askers", builtin="visionllm.datasets.askers")


def register_asker(task: str) -> type:
    """Decorator of an asker's class; one instance serves the task."""

    def add(cls: type) -> type:
        ASKERS.add(task, cls())
        return cls

    return add  # type: ignore[return-value]


def tasks_asked(asker: str) -> set[str]:
    """Names of the registered tasks that an asker's turns may have."""
    own, kinds = ASKERS[asker].task, ASKERS[asker].kinds
    return ({own} if own is not None else set()).union(*map(tasks_asked, kinds))


@register_asker("detection")
class BoxAsker(Asker):
    """Phrases that name categories, and the boxes of each."""

    task = "detection"

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        found, absent = contents(record)
        asked = choose(found, absent if wording.negatives else [], rng)
        if not asked:
            raise AnnotationError(
                f"{record.source}: holds no object to ask for, and the card forbids negatives; remove it, "
                "or set negatives: true if every object of every category is annotated"
            )
        phrases = words_for([record.names[i] for i in asked], wording, rng)
        # Where not all objects are annotated, a word without a meaning is absent all the same.
        few = len(record.names) <= FEW
        if rng.random() < (STRANGERS_OF_FEW if few else STRANGERS):
            most = MOST_PHRASES if rng.random() < (CROWDED_OF_FEW if few else CROWDED) else MOST_STRANGERS
            asked, phrases = among_strangers(asked, phrases, wording, rng, most=most)
        return self.of(record, asked, phrases)

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        count = len(record.names)
        starts = range(0, count, chunk or max(1, count))
        groups = [list(range(start, min(count, start + (chunk or count)))) for start in starts]
        return tuple(self.of(record, asked, [record.names[i] for i in asked]) for asked in groups)

    def of(self, record: Record, asked: Sequence[int], phrases: Sequence[str]) -> Sample:
        """The sample that asks for these categories (indices of the record's names; -1 for what is none) by these
        phrases."""
        place = np.full(len(record.names), -1, np.int64)
        for at, category in enumerate(asked):
            if category >= 0:
                place[category] = at
        phrase = place[record.labels]
        kept = phrase >= 0
        target = BoxTarget(
            boxes_xyxy=record.boxes_xyxy[kept], phrase=phrase[kept], ignore=record.crowd[kept],
            masks=None if record.masks is None else record.masks[kept],
            poses=None if record.poses is None else record.poses[kept],
        )  # fmt: skip
        turn = Turn(task=self.task, phrases=tuple(phrases), target=target)
        return Sample(pictures=(record.picture,), turns=(turn,), source=record.source)


@register_asker("segmentation")
class MaskAsker(BoxAsker):
    """As for boxes, each with its mask where the data set has one; regions without number (the road) are one each."""

    task = "segmentation"
    needs = SEEN


@register_asker("pose")
class PoseAsker(BoxAsker):
    """Phrases that name categories with a skeleton, names of keypoints, and the pose of each thing."""

    task = "pose"
    needs = frozenset({"poses"})

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """All keypoints as they go without saying, or some by name, in any order, rarely one that is not there."""
        found, absent = _with_skeleton(record, wording)
        asked = choose(found, absent if wording.negatives else [], rng)[: 1 + int(rng.integers(MOST_POSES))]
        if not asked:
            raise AnnotationError(f"{record.source}: holds nothing with keypoints to ask for; remove it")
        phrases = words_for([record.names[i] for i in asked], wording, rng)
        skeletons = [wording.skeletons[record.names[i]] for i in asked]
        usual = rng.random() < USUAL
        strange = [name for other in wording.skeletons.values() for name in other.keypoints]
        parts = [one.keypoints if usual else _some_parts(one, strange, rng) for one in skeletons]
        return self._posed(record, asked, phrases, parts, usual=usual)

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Each category in a question of its own, or ``chunk`` in one, with all its keypoints unsaid."""
        found, absent = _with_skeleton(record, wording)
        asked = sorted([*found, *(absent if wording.negatives else [])])
        step = chunk or 1
        groups = [asked[i : i + step] for i in range(0, len(asked), step)]
        return tuple(
            self._posed(record, group, [record.names[i] for i in group],
                        [wording.skeletons[record.names[i]].keypoints for i in group], usual=True)
            for group in groups
        )  # fmt: skip

    def _posed(self, record: Record, asked: Sequence[int], phrases: Sequence[str], parts: Sequence[Sequence[str]], *,
               usual: bool) -> Sample:  # fmt: skip
        sample = self.of(record, asked, phrases)
        return sample.with_turns(replace(sample.turns[0], parts=tuple(map(tuple, parts)), usual=usual))


def _with_skeleton(record: Record, wording: Wording) -> tuple[list[int], list[int]]:
    """As ``contents``, of the categories that have keypoints."""
    found, absent = contents(record)
    return tuple([i for i in those if record.names[i] in wording.skeletons] for those in (found, absent))  # type: ignore[return-value]


def _some_parts(skeleton: Skeleton, strange: Sequence[str], rng: np.random.Generator) -> list[str]:
    count = 1 + int(rng.random() ** 2 * len(skeleton))
    names = [skeleton.keypoints[i] for i in rng.permutation(len(skeleton))[:count]]
    if rng.random() < FOREIGN:
        other = str(rng.choice(list(strange))) if rng.random() < 0.5 else nonsense(rng)
        if other not in skeleton.keypoints:
            names.insert(int(rng.integers(len(names) + 1)), other)
    return names


def contents(record: Record) -> tuple[list[int], list[int]]:
    """Categories with an object and categories without; one with nothing but a crowd is neither present nor absent."""
    found = set(record.labels[~record.crowd].tolist())
    absent = set(range(len(record.names))) - set(record.labels.tolist())
    return sorted(found), sorted(absent)


def choose(found: Sequence[int], absent: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Which categories to ask for, shuffled.

    A fifth of the draws ask for one category, as users do; a twelfth only for absent ones; a third for all that is
    there, because then every object of the picture teaches, and any number of absent ones, because lists of one length
    would teach a language model to count instead of reading where the list ends; the rest for a mixture of any length,
    short ones more often.
    """
    kind, length = rng.random(), rng.random() ** 2
    if kind < 0.2:
        return _some(found if found and (not absent or rng.random() < 0.75) else absent, 1, rng)
    if kind < 0.28 and absent:
        return _some(absent, 1 + int(length * min(len(absent), MOST_PHRASES)), rng)
    if kind < 0.6:
        # Mostly cut to what a reply holds comfortably.
        limit = 4 * MOST_PHRASES if rng.random() < 0.05 else MOST_PHRASES
        count = int(rng.integers(len(absent) + 1)) if found else 1 + int(rng.integers(max(1, len(absent))))
        more = _some(absent, min(count, max(0, limit - len(found))), rng)
        return _some([*found, *more], limit, rng)
    pool = len(found) + len(absent)
    asked = min(pool, 1 + int(length * min(pool, MOST_PHRASES)))
    chosen = _some(found, int(rng.binomial(asked, 0.6)) if absent else asked, rng)
    return _shuffled([*chosen, *_some(absent, asked - len(chosen), rng)], rng)


def among_strangers(
    asked: Sequence[int], phrases: Sequence[str], wording: Wording, rng: np.random.Generator, *, most: int
) -> tuple[list[int], list[str]]:
    """The question with ``most`` words at most that mean nothing strewn in, of category -1."""
    pairs = list(zip(asked, phrases, strict=True))
    taken = {phrase.casefold() for phrase in phrases} | {word.casefold() for word in wording.plurals.values()}
    taken |= {word.casefold() for name, words in wording.synonyms.items() for word in (name, *words)}
    for _ in range(min(1 + int(rng.integers(most)), MOST_PHRASES - len(pairs))):
        word = nonsense(rng)
        if word not in taken:
            taken.add(word)
            pairs.insert(int(rng.integers(len(pairs) + 1)), (-1, word))
    return [category for category, _ in pairs], [phrase for _, phrase in pairs]


def words_for(names: Sequence[str], wording: Wording, rng: np.random.Generator) -> list[str]:
    """One wording for each name, no two alike: a synonym or the name, singular or plural, rarely in other case."""
    plural = rng.random() < 0.4
    style = rng.random()
    taken = {name.casefold() for name in names}
    phrases = []
    for name in names:
        words = (name, *wording.synonyms.get(name, ()))
        word = words[0] if len(words) == 1 or rng.random() < 0.5 else words[int(rng.integers(len(words)))]
        # Mostly one number in a question, sometimes mixed, as people write.
        if plural != (rng.random() < 0.1):
            word = plural_of(word, wording)
        if word.casefold() in taken and word != name:
            word = name
        taken.add(word.casefold())
        phrases.append(_styled(word, style))
    return phrases


def plural_of(phrase: str, wording: Wording) -> str:
    """The plural of a phrase by the card, or by the rules of English; an acronym or a plural stays as it is."""
    if phrase in wording.plurals:
        return wording.plurals[phrase]
    words = phrase.split(" ")
    # "glass of water": the noun before the preposition takes the plural.
    head = next((i for i, word in enumerate(words) if i and word in ("of", "in", "on", "with", "for")), len(words)) - 1
    words[head] = _plural_word(words[head])
    return " ".join(words)


def check_wording(wording: Wording, names: Sequence[str], *, source: str) -> None:
    """Refuse words for categories that do not exist, and words that could mean two of them.

    Raises:
        ConfigError: it names the word and both its meanings.
    """
    owner = {name.casefold(): name for name in names}
    for name, words in wording.synonyms.items():
        if name not in names:
            raise ConfigError(f"{source}: synonyms.{name}: no such category (it has: {', '.join(names)})")
        for word in words:
            other = owner.setdefault(word.casefold(), name)
            if other != name:
                raise ConfigError(f"{source}: synonyms.{name}: {word!r} already stands for {other!r}; remove one")
    for word in wording.plurals:
        if word.casefold() not in owner:
            raise ConfigError(f"{source}: plurals.{word}: neither a category nor a synonym; remove it")


_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "ox": "oxen", "knife": "knives", "leaf": "leaves", "loaf": "loaves",
    "shelf": "shelves", "wolf": "wolves", "calf": "calves", "half": "halves", "potato": "potatoes",
    "tomato": "tomatoes", "nucleus": "nuclei", "bacterium": "bacteria", "cactus": "cacti",
}  # fmt: skip
_UNCHANGED = frozenset(
    (
        "sheep",
        "deer",
        "fish",
        "aircraft",
        "scissors",
        "glasses",
        "trousers",
        "pants",
        "jeans",
        "skis",
        "people",
        "cattle",
    )
)


def _plural_word(word: str) -> str:
    lower = word.lower()
    if not word.isascii() or not lower.isalpha() or lower in _UNCHANGED or lower.endswith(("ware", "wear")):
        return word
    for one, many in _IRREGULAR.items():
        # "policeman", but not "human": the part before the irregular word must itself look like one.
        if lower == one or (one in ("man", "woman", "person", "child") and lower.endswith(one) and lower != "human"):
            return word[: len(word) - len(one)] + many
    if word.isupper() and len(word) > 1:
        return word + "s"
    if lower.endswith("y") and lower[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    if lower.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word + "s"


def _styled(phrase: str, style: float) -> str:
    if style < 0.03:
        return phrase.upper()
    if style < 0.08:
        return phrase[:1].upper() + phrase[1:]
    return phrase


def _some(pool: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """Up to ``count`` of the pool, in random order."""
    return _shuffled(pool, rng)[:count]


def _shuffled(items: Sequence[int], rng: np.random.Generator) -> list[int]:
    return [items[i] for i in rng.permutation(len(items))]
