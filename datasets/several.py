"""Askers about several pictures: where things are in which, and the same again as what was shown as an example.

A phrase says by its last words which picture it is about: "cars in picture 2".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from visionllm.core.errors import AnnotationError
from visionllm.core.regions import PLACEHOLDER, Region, picture_name, region_name
from visionllm.core.sample import BoxTarget, Record, Sample, Turn
from visionllm.datasets.asking import Asker, choose, contents, register_asker, words_for
from visionllm.datasets.formats.inventing import invent
from visionllm.datasets.formats.reader import Wording
from visionllm.datasets.pointing import POINTERS, solid

# Names asked of one picture, at most.
MOST_NAMES = 4
# What stands in brackets is what the reply says again: it names what the user named, without an article.
_SAME = (
    "segment the [same as {region} in {picture}]", "find and mask the [same kind of thing as {region} in {picture}]",
    "outline [what looks like {region} in {picture}]", "segment [everything like {region} in {picture}]",
    "mask [what is the same as {region} in {picture}]", "{region} is an example: segment the [same in {picture}]",
)  # fmt: skip
_FIND = (
    "find the [same as {region} in {picture}]", "detect the [same kind of thing as {region} in {picture}]",
    "where is [something like {region} in {picture}]?", "draw boxes around [everything like {region} in {picture}]",
    "box [what is the same as {region} in {picture}]", "{region} is an example: find the [same in {picture}]",
)  # fmt: skip
_IS, _WHAT = ("{region} is a {name}.", "this is a {name}: {region}."), ("what is {region}?", "then what is {region}?",
                                                                        "name {region}")  # fmt: skip


@register_asker("several")
class SeveralAsker(Asker):
    """Categories, each in one of two pictures, and the boxes there."""

    task = "detection"
    partners = 1

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """One to four names of each picture, or of one of them, in any order."""
        records = (record, *partners)
        asked: list[tuple[int, int, str]] = []
        for number, one in enumerate(records):
            found, absent = contents(one)
            chosen = choose(found, absent if wording.negatives else [], rng)[: 1 + int(rng.integers(MOST_NAMES))]
            words = words_for([one.names[i] for i in chosen], wording, rng)
            asked += [(number, category, word) for category, word in zip(chosen, words, strict=True)]
        if not asked:
            raise AnnotationError(f"{record.source}: holds no object to ask for; remove it")
        if rng.random() < 0.3:
            only = asked[int(rng.integers(len(asked)))][0]
            asked = [entry for entry in asked if entry[0] == only]
        return self._sample(records, [asked[i] for i in rng.permutation(len(asked))])

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Whatever is in one of the pictures, asked of each; ``chunk`` phrases in a question."""
        records = (record, *partners)
        there = sorted({int(label) for one in records for label in one.labels})
        asked = [(number, category, record.names[category]) for number in range(len(records)) for category in there]
        step = chunk or max(1, len(asked))
        return tuple(self._sample(records, asked[i : i + step]) for i in range(0, len(asked), step))

    def _sample(self, records: Sequence[Record], asked: Sequence[tuple[int, int, str]]) -> Sample:
        boxes, phrase, ignore = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)], [np.zeros(0, bool)]
        for place, (number, category, _) in enumerate(asked):
            rows = records[number].labels == category
            boxes.append(records[number].boxes_xyxy[rows])
            ignore.append(records[number].crowd[rows])
            phrase.append(np.full(int(rows.sum()), place, np.int64))
        target = BoxTarget(
            boxes_xyxy=np.concatenate(boxes), phrase=np.concatenate(phrase), ignore=np.concatenate(ignore)
        )
        phrases = tuple(f"{word} in {picture_name(number)}" for number, _, word in asked)
        turn = Turn(task=self.task, phrases=phrases, target=target, whole=True)
        return Sample(pictures=tuple(one.picture for one in records), turns=(turn,), source=records[0].source)


@register_asker("in_context")
class InContextAsker(Asker):
    """A region drawn on a thing of one picture, and the masks of its kind in another (VisionLLM v2's in-context
    segmentation)."""

    task = "segmentation"
    needs = frozenset({"masks"})
    partners = 1
    words: tuple[str, ...] = _SAME

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """A thing whose kind the last picture has, four times of five where there is one; pictures between them that
        have one of its kind too are further examples."""
        known = solid(record)
        shared = [thing for thing in known if record.labels[thing] in partners[-1].labels]
        pool = shared if shared and rng.random() < 0.8 else known
        thing = pool[int(rng.integers(len(pool)))]
        shown = [(record, _drawn(record, thing, rng))]
        for other in partners[:-1]:
            alike = _alike(other, int(record.labels[thing]))
            if alike:
                shown.append((other, _drawn(other, alike[int(rng.integers(len(alike)))], rng)))
        words = self.words[int(rng.integers(len(self.words)))]
        return self._sample(shown, partners[-1], int(record.labels[thing]), words)

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """The first thing of each kind, by its box, in each of the pictures that are examples."""
        samples = []
        for label in dict.fromkeys(int(record.labels[thing]) for thing in solid(record, empty=True)):
            shown = [(one, _boxed(one, alike[0])) for one in (record, *partners[:-1]) if (alike := _alike(one, label))]
            samples.append(self._sample(shown, partners[-1], label, self.words[0]))
        return tuple(samples)

    def _sample(self, shown: Sequence[tuple[Record, Region]], record: Record, label: int, words: str) -> Sample:
        rows = record.labels == label
        target = BoxTarget(
            boxes_xyxy=record.boxes_xyxy[rows], phrase=np.zeros(int(rows.sum()), np.int64), ignore=record.crowd[rows],
            masks=None if record.masks is None else record.masks[rows],
        )  # fmt: skip
        regions = tuple(replace(region, picture=number) for number, (_, region) in enumerate(shown))
        words = words.replace("{picture}", picture_name(len(shown)))
        phrase = words[words.index("[") + 1 : words.index("]")]
        names = " and ".join(region_name(number) for number in range(len(shown)))
        question = words.replace("[", "").replace("]", "").replace("{region}", " and ".join([PLACEHOLDER] * len(shown)))
        means = f"{record.names[label]} in {picture_name(len(shown))}"
        turn = Turn(task=self.task, phrases=(phrase.replace("{region}", names),), means=(means,), target=target,
                    question=question, regions=regions, whole=True)  # fmt: skip
        pictures = (*(one.picture for one, _ in shown), record.picture)
        return Sample(pictures=pictures, turns=(turn,), source=shown[0][0].source)


@register_asker("in_context_masks")
class ExamplesAsker(InContextAsker):
    """The same after one example or two, each in a picture of its own."""

    partners = 2


@register_asker("in_context_boxes")
class InContextBoxAsker(ExamplesAsker):
    """The boxes of what is the same as one example or two."""

    task = "detection"
    words = _FIND


@register_asker("in_context_names")
class InContextNameAsker(Asker):
    """A region of one picture or of each of two is named, and one of a further picture is to be named likewise. Names
    are invented, so that nothing but the examples tells them."""

    metric = "words"
    needs = frozenset({"masks"})
    partners = 2

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """A thing of each picture, in any order; one time of three by the names of their categories."""
        first, second, last = solid(record), *(solid(one, empty=True) for one in partners)
        thing = first[int(rng.integers(len(first)))]
        label = int(record.labels[thing])
        shown = [(record, _drawn(record, thing, rng), label)]
        different = [i for i in second if partners[0].labels[i] != label]
        if different:
            other = different[int(rng.integers(len(different)))]
            shown.append((partners[0], _drawn(partners[0], other, rng), int(partners[0].labels[other])))
        own = rng.random() < 1 / 3
        names = {kind: record.names[kind] if own else invent(rng) for _, _, kind in shown}
        known = [i for i in last if int(partners[1].labels[i]) in names]
        # Where the new picture has neither, a thing that was shown is asked for again, pointed at anew.
        asked, place = (partners[1], known[int(rng.integers(len(known)))]) if known else (record, thing)
        region = _drawn(asked, place, rng)
        shown = [shown[i] for i in rng.permutation(len(shown))]
        words = (_IS[int(rng.integers(len(_IS)))], _WHAT[int(rng.integers(len(_WHAT)))])
        return self._sample(shown, names, (asked, region, int(asked.labels[place])), words)

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Of each kind that is in the new picture and among the examples, the first thing, by its box."""
        samples = []
        rng = np.random.default_rng(record.source.index)
        for label in dict.fromkeys(int(record.labels[thing]) for thing in solid(record, empty=True)):
            other = [i for i in solid(partners[0], empty=True) if partners[0].labels[i] != label]
            there = _alike(partners[1], label)
            if not other or not there:
                continue
            shown = [(record, _boxed(record, _alike(record, label)[0]), label),
                     (partners[0], _boxed(partners[0], other[0]), int(partners[0].labels[other[0]]))]  # fmt: skip
            names = {kind: invent(rng) for _, _, kind in shown}
            asked = (partners[1], _boxed(partners[1], there[0]), label)
            samples.append(self._sample(shown, names, asked, (_IS[0], _WHAT[0])))
        return tuple(samples)

    def _sample(self, shown: Sequence[tuple[Record, Region, int]], names: Mapping[int, str],
                asked: tuple[Record, Region, int], words: tuple[str, str]) -> Sample:  # fmt: skip
        said = [words[0].replace("{name}", names[label]) for _, _, label in shown]
        question = " ".join([*said, words[1]]).replace("{region}", PLACEHOLDER)
        whole = (*shown, asked)
        regions = tuple(replace(region, picture=number) for number, (_, region, _) in enumerate(whole))
        turn = Turn(question=question, reply=names[asked[2]], regions=regions, whole=True)
        return Sample(pictures=tuple(one.picture for one, _, _ in whole), turns=(turn,), source=shown[0][0].source)


def _alike(record: Record, label: int) -> list[int]:
    """Things of a kind that have a mask."""
    return [thing for thing in solid(record, empty=True) if record.labels[thing] == label]


def _drawn(record: Record, thing: int, rng: np.random.Generator) -> Region:
    """A thing pointed at in a drawn way."""
    kinds = list(POINTERS.values())
    assert record.masks is not None
    return kinds[int(rng.integers(len(kinds)))](record.masks[thing], rng)


def _boxed(record: Record, thing: int) -> Region:
    assert record.masks is not None
    return POINTERS["box"](record.masks[thing], None)
