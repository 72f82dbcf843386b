"""Askers whose replies end in a picture."""

from __future__ import annotations

import re

import cv2
import numpy as np

from visionllm.core.errors import AnnotationError
from visionllm.core.sample import Edit, Picture, PictureTarget, Record, Sample, Turn
from visionllm.datasets.asking import ASKERS, Asker, register_asker
from visionllm.datasets.formats.reader import Wording

_ARTICLE = re.compile(r"^an? ", re.IGNORECASE)
MOST_OFF = 3  # small pixels
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
