"""Askers whose replies end in a picture."""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np

from visionllm.core.errors import AnnotationError
from visionllm.core.sample import Edit, Picture, PictureTarget, Record, Sample, Turn
from visionllm.core.task import TASKS
from visionllm.datasets.asking import (
    ASKERS,
    SEEN,
    Asker,
    BoxAsker,
    RoutesAsker,
    choose,
    contents,
    register_asker,
    words_for,
)
from visionllm.datasets.formats.inventing import SAID, invent, pick
from visionllm.datasets.formats.reader import Wording

_ARTICLE = re.compile(r"^an? ", re.IGNORECASE)
MOST_OFF = 3  # small pixels
MOST_ASKED = 3  # categories of a question beside a change, at most
_OTHER = 0.5  # share of changes asked for in other words than the plainest
# What people call what they want more pixels of, the commoner words twice.
_CALLED = ("picture", "image", "photo", "picture", "image", "photograph")


@register_asker("generation")
class GenerationAsker(Asker):
    """A caption, and the picture that it is of. The picture is not shown: it is what is to be made."""

    task = "generation"
    needs = frozenset({"captions"})

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Any of the captions."""
        return _sample(record, int(rng.integers(len(_captions(record)))))

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """The first caption."""
        return (_sample(record, 0),)


@register_asker("editing")
class EditingAsker(Asker):
    """A picture, a change in words, and the picture so changed."""

    task = "editing"
    needs = frozenset({"edits"})

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Any of the changes, half of the time in other words."""
        edit = _edits(record)[int(rng.integers(len(record.edits)))]
        other = edit.wordings and rng.random() < _OTHER
        return _edited(record, edit, edit.wordings[int(rng.integers(len(edit.wordings)))] if other else edit.text)

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Every change, each by itself."""
        return tuple(_edited(record, edit, edit.text) for edit in _edits(record))


@register_asker("breath")
class BreathAsker(RoutesAsker):
    """Boxes or masks of some things and a change of the picture, asked in one breath: "detect cars and then make the
    red one blue". What was asked for by its name is "one" half of the time, where something tells it from others.

    An evaluation measures what is routed.
    """

    kinds = ("detection", "segmentation", "editing")
    needs = EditingAsker.needs | SEEN

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """One or two questions for up to three categories each, that of the thing to be changed in half of them, and
        one change, which is asked for last in three of four: of the very picture, or, where it has none, of the same
        things in other light."""
        usable = [edit for edit in _edits(record) if np.array_equal(edit.before.pixels, record.picture.pixels)]
        usable = usable or [edit for edit in record.edits if edit.shows.light]
        if not usable:
            raise AnnotationError(f"{record.source}: no edit of this very picture; remove it")
        edit = usable[int(rng.integers(len(usable)))]
        words = (edit.text, *edit.wordings)[int(rng.integers(1 + len(edit.wordings)))]
        changed = next((i for i, name in enumerate(record.names) if re.search(rf"\b{re.escape(name)}\b", words)), None)
        found, absent = contents(record)
        turns = []
        for kind in rng.choice(self.kinds[:2], 1 + int(rng.random() < 0.25)):
            asked = choose(found, absent if wording.negatives else [], rng)[: 1 + int(rng.integers(MOST_ASKED))]
            if changed in found and changed not in asked and rng.random() < 0.5:
                asked[int(rng.integers(len(asked)))] = changed
            phrases = words_for([record.names[i] for i in asked], wording, rng)
            asker = ASKERS[str(kind)]
            assert isinstance(asker, BoxAsker)
            turns.append(asker.of(record, asked, phrases).turns[0])
            if changed in asked and rng.random() < 0.5:
                words = re.sub(rf"\bthe (\w+) {re.escape(record.names[changed])}\b", r"the \1 one", words)
        change = _edited(record, edit, words).turns[0]
        turns.insert(len(turns) if rng.random() < 0.75 else 0, change)
        joined = tuple(replace(turn, joined=number > 0) for number, turn in enumerate(turns))
        return Sample(pictures=(edit.before,), turns=joined, source=record.source)


@register_asker("beside")
class BesideAsker(RoutesAsker):
    """A request for a picture that says nothing of the one it is asked beside: "draw a pale toga" about a street. So
    that the words decide which token answers, whatever there is to be seen. No picture is known for an answer.

    An evaluation measures what is routed.

    Args:
        kinds: askers whose tasks are asked.
    """

    def __init__(self, kinds: tuple[str, ...] = ("generation", "editing", "super_resolution")) -> None:
        self.kinds = kinds

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Of a task that answers with a picture, in invented words: about the data set's categories half of the
        time."""
        known = [record.names[i] for i in rng.permutation(len(record.names))[:2]]
        names = known if known and rng.random() < 0.5 else [invent(rng), invent(rng)]
        task = ASKERS[pick(rng, self.kinds)].task
        assert task is not None
        words = SAID[TASKS[task].says](rng, names)
        return Sample(pictures=(record.picture,), turns=(Turn(task=task, phrases=(words,)),), source=record.source)


# Changes alone: behind other turns they are easily taken for questions.
ASKERS.add("beside_changes", BesideAsker(("editing",)))


@register_asker("described")
class DescribedAsker(RoutesAsker):
    """Boxes or masks of some things and a caption of the picture, asked in one breath: "detect all cars and describe
    the picture".

    An evaluation measures what is routed.
    """

    kinds = ("detection", "segmentation", "captions")
    needs = frozenset({"captions"}) | SEEN

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """One to three categories; the caption is asked for last in three of four."""
        found, absent = contents(record)
        asked = choose(found, absent if wording.negatives else [], rng)[: 1 + int(rng.integers(MOST_ASKED))]
        asker = ASKERS[str(rng.choice(self.kinds[:2]))]
        assert isinstance(asker, BoxAsker)
        listed = asker.of(record, asked, words_for([record.names[i] for i in asked], wording, rng)).turns[0]
        turns = [listed, *ASKERS["captions"].draw(record, wording, rng).turns]
        turns = turns if rng.random() < 0.75 else turns[::-1]
        turns[1] = replace(turns[1], joined=True)
        return Sample(pictures=(record.picture,), turns=tuple(turns), source=record.source)


class SharpeningAsker(Asker):
    """A picture made smaller, and the picture; or two of one view, where a data set has them. In training the small one
    is a little off, as the same thing taken with two lenses is: what is learned from must be aligned first. In an
    evaluation they lie on each other.

    Args:
        scale: how many times as large the picture is.
        most_off: how far, at most, in small pixels.
    """

    task = "super_resolution"

    def __init__(self, scale: int, most_off: float = MOST_OFF) -> None:
        self.scale, self.most_off = scale, most_off

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Off by up to ``most_off`` small pixels in each direction."""
        off = rng.uniform(-self.most_off, self.most_off, 2)
        return self._sample(record, off, _CALLED[int(rng.integers(len(_CALLED)))])

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """One question a picture."""
        return (self._sample(record, np.zeros(2)),)

    def _sample(self, record: Record, off_xy: np.ndarray, called: str = _CALLED[0]) -> Sample:
        if record.smaller is not None:
            width, height = record.smaller.size
            if record.picture.size != (width * self.scale, height * self.scale):
                raise AnnotationError(
                    f"{record.source}: {record.picture.size[0]} x {record.picture.size[1]} is not {self.scale} times "
                    f"{width} x {height}; ask for the task of the split's scale"
                )
            return self._paired(record.smaller, record.picture, record, called)
        # What a shift brings in at an edge is cut off: nobody took it.
        edge = (MOST_OFF + 1) * self.scale
        whole = record.picture
        width, height = ((side - 2 * edge) // self.scale for side in whole.size)
        if min(width, height) < 1:
            raise AnnotationError(f"{record.source}: {whole.size[0]} x {whole.size[1]} is too small to be made smaller")
        matrix = np.array([[1, 0, off_xy[0] * self.scale], [0, 1, off_xy[1] * self.scale]], np.float64)
        shifted = cv2.warpAffine(whole.pixels, matrix, whole.size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        inner = (slice(edge, edge + height * self.scale), slice(edge, edge + width * self.scale))
        small = cv2.resize(shifted[inner], (width, height), interpolation=cv2.INTER_AREA)
        sharp = Picture(pixels=np.ascontiguousarray(whole.pixels[inner]), name=whole.name)
        return self._paired(Picture(pixels=small, name=whole.name), sharp, record, called)

    def _paired(self, small: Picture, sharp: Picture, record: Record, called: str) -> Sample:
        turn = Turn(task=self.task, phrases=(called,), target=PictureTarget(pictures=(sharp,)))
        return Sample(pictures=(small,), turns=(turn,), source=record.source)


ASKERS.add("super_resolution", SharpeningAsker(2))
ASKERS.add("super_resolution_x4", SharpeningAsker(4))
# What enlarges is learned before what aligns: to one that aligns nothing yet, a pair that is off teaches a blur.
ASKERS.add("super_resolution_aligned", SharpeningAsker(2, 0))


def _captions(record: Record) -> tuple[str, ...]:
    if not record.captions:
        raise AnnotationError(f"{record.source}: no caption; remove it")
    return record.captions


def _edits(record: Record) -> tuple[Edit, ...]:
    if not record.edits:
        raise AnnotationError(f"{record.source}: no edit; remove it")
    return record.edits


def _edited(record: Record, edit: Edit, words: str) -> Sample:
    target = PictureTarget(pictures=(edit.after,), changed=(edit.changed,), shows=(edit.shows,))
    # What is named must not be cut off, nor "the rightmost tree" another.
    turn = Turn(task="editing", phrases=(words,), target=target, whole=True)
    return Sample(pictures=(edit.before,), turns=(turn,), source=record.source)


def _phrase(caption: str) -> str:
    """A caption as a phrase: "A red car." is "red car"."""
    words = _ARTICLE.sub("", caption.strip().rstrip("."))
    # Only a plain word was capital for its place: "TV on a table" stays.
    return words[:1].lower() + words[1:] if words[1:2].islower() or words[1:2] == " " else words


def _sample(record: Record, number: int) -> Sample:
    target = PictureTarget(pictures=(record.picture,), shows=record.shows[number : number + 1])
    turn = Turn(task="generation", phrases=(_phrase(_captions(record)[number]),), target=target)
    return Sample(turns=(turn,), source=record.source)
