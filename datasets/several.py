"""Askers about several pictures: where things are in which, and the same again as one that was shown.

A phrase says by its last words which picture it is about: "cars in picture 2".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visionllm.core.arrays import object_array
from visionllm.core.errors import AnnotationError
from visionllm.core.regions import PLACEHOLDER, Region, picture_name, region_name
from visionllm.core.sample import BoxTarget, Record, Sample, Turn
from visionllm.datasets.asking import Asker, choose, contents, register_asker, words_for
from visionllm.datasets.formats.reader import Wording
from visionllm.datasets.pointing import POINTERS, solid

# Names asked of one picture, at most.
MOST_NAMES = 4
_SAME = (
    "segment the same as {region} in {picture}", "find the same kind of thing as {region} in {picture} and mask it",
    "what looks like {region} in {picture}? outline it", "segment everything like {region} in {picture}",
    "mask in {picture} what is the same as {region}", "{region} is an example: segment the same in {picture}",
)  # fmt: skip


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

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """A thing whose kind the other picture has, four times of five where there is one."""
        known = solid(record)
        shared = [thing for thing in known if record.labels[thing] in partners[0].labels]
        pool = shared if shared and rng.random() < 0.8 else known
        thing = pool[int(rng.integers(len(pool)))]
        kinds = list(POINTERS.values())
        assert record.masks is not None
        region = kinds[int(rng.integers(len(kinds)))](record.masks[thing], rng)
        return self._sample(record, partners[0], thing, region, _SAME[int(rng.integers(len(_SAME)))])

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """The first thing of each kind, by its box."""
        first: dict[int, int] = {}
        for thing in solid(record, empty=True):
            first.setdefault(int(record.labels[thing]), thing)
        masks = record.masks if record.masks is not None else object_array([])
        return tuple(
            self._sample(record, partners[0], thing, POINTERS["box"](masks[thing], None), _SAME[0])
            for thing in first.values()
        )

    def _sample(self, shown: Record, record: Record, thing: int, region: Region, words: str) -> Sample:
        rows = record.labels == shown.labels[thing]
        target = BoxTarget(
            boxes_xyxy=record.boxes_xyxy[rows], phrase=np.zeros(int(rows.sum()), np.int64), ignore=record.crowd[rows],
            masks=None if record.masks is None else record.masks[rows],
        )  # fmt: skip
        question = words.replace("{region}", PLACEHOLDER).replace("{picture}", picture_name(1))
        phrase = f"the same as {region_name(0)} in {picture_name(1)}"
        turn = Turn(task=self.task, phrases=(phrase,), target=target, question=question, regions=(region,), whole=True)
        return Sample(pictures=(shown.picture, record.picture), turns=(turn,), source=shown.source)
