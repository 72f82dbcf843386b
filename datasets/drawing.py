"""Askers whose replies end in a picture."""

from __future__ import annotations

import numpy as np

from visionllm.core.errors import AnnotationError
from visionllm.core.sample import PictureTarget, Record, Sample, Turn
from visionllm.datasets.asking import Asker, register_asker
from visionllm.datasets.formats.reader import Wording


@register_asker("generation")
class GenerationAsker(Asker):
    """A caption, and the picture that it is of. The picture is not shown: it is what is to be made."""

    task = "generation"
    needs = frozenset({"captions"})

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Any of the captions."""
        return _sample(record, _phrase(_captions(record)[int(rng.integers(len(record.captions)))]))

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """The first caption."""
        return (_sample(record, _phrase(_captions(record)[0])),)


def _captions(record: Record) -> tuple[str, ...]:
    if not record.captions:
        raise AnnotationError(f"{record.source}: no caption; remove it")
    return record.captions


def _phrase(caption: str) -> str:
    """A caption as it stands in the middle of a question: "A red car." is "a red car"."""
    words = caption.strip().rstrip(".")
    # Only a plain word was capital for its place: "TV on a table" stays.
    return words[:1].lower() + words[1:] if words[1:2].islower() or words[1:2] == " " else words


def _sample(record: Record, phrase: str) -> Sample:
    turn = Turn(task="generation", phrases=(phrase,), target=PictureTarget(pictures=(record.picture,)))
    return Sample(turns=(turn,), source=record.source)
