"""Askers whose questions or replies are free words: expressions for single objects, captions, questions.

What is said of a picture ("the leftmost tree", a number of cups) is true of the whole picture only, so all turns here
are ``whole``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from visionllm.core.errors import AnnotationError
from visionllm.core.sample import BoxTarget, Question, Record, Sample, Turn, WordsTarget
from visionllm.core.task import TASKS
from visionllm.datasets.asking import ASKERS, SEEN, Asker, RoutesAsker, register_asker
from visionllm.datasets.following import again, louder, more
from visionllm.datasets.formats.reader import Wording

# Expressions in one question, at most; turns of one conversation, at most; questions about one picture, at most: they
# cost little beside it, those that are looked for more.
MOST_EXPRESSIONS, MOST_TURNS, MOST_QUESTIONS, MOST_LOOKS = 8, 4, 24, 8
# In a conversation: share of turns behind a short list that ask for its things again, and of those that go on with
# other things; phrases of a short list, at most, and how often one is drawn anew for being long.
LEANING, LEANT, TRIES = 0.25, 6, 4
LOUD_TRIES = 64  # what is typed in capitals is short
_ARTICLE = re.compile(r"^(the|a|an) ", re.IGNORECASE)
_CAPTION_QUESTIONS = (
    "describe the picture", "describe the image", "describe this picture", "what is in the picture?",
    "what do you see?", "what can you see in this image?", "what does the picture show?", "caption the image",
    "give a caption for this picture", "write a caption", "tell me what you see", "summarise the scene",
)  # fmt: skip
_GROUNDED_QUESTIONS = (
    "describe the picture and show what you mean", "describe the image with boxes", "caption with boxes",
    "give a grounded caption", "write a caption and point at what it names", "describe what you see and where it is",
    "tell me what is in the picture, and where", "describe the scene and mark each thing you name",
)  # fmt: skip


@register_asker("grounding")
class GroundingAsker(Asker):
    """Expressions, and the box of each thing they mean.

    Args:
        alone: share of the questions for one expression.
        most: expressions of the others, at most.
    """

    task = "detection"
    metric = "grounding"
    needs = frozenset({"expressions"})

    def __init__(self, alone: float = 0.5, most: int = MOST_EXPRESSIONS) -> None:
        self.alone, self.most = alone, most

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """One to ``most`` expressions, one alone as often as ``alone`` says."""
        if not record.expressions:
            raise AnnotationError(f"{record.source}: nothing is said of any object; remove it")
        count = 1 if rng.random() < self.alone else 1 + int(rng.integers(self.most))
        return self._sample(record, [record.expressions[i] for i in rng.permutation(len(record.expressions))[:count]])

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """All expressions that mean one thing, ``chunk`` in a question (one if None)."""
        single = [expression for expression in record.expressions if len(expression[1]) == 1]
        step = chunk or 1
        return tuple(self._sample(record, single[i : i + step]) for i in range(0, len(single), step))

    def _sample(self, record: Record, expressions: Sequence[tuple[str, tuple[int, ...]]]) -> Sample:
        # Phrases stand without an article, as categories do; the wording of a question puts one where it likes.
        named = [(_ARTICLE.sub("", words), things) for words, things in expressions]
        phrases = tuple(dict.fromkeys(words for words, _ in named))
        pairs = sorted({(phrases.index(words), thing) for words, things in named for thing in things})
        rows = np.array([thing for _, thing in pairs], np.int64)
        target = BoxTarget(
            boxes_xyxy=record.boxes_xyxy[rows], phrase=np.array([p for p, _ in pairs], np.int64),
            ignore=record.crowd[rows], masks=None if record.masks is None else record.masks[rows],
        )  # fmt: skip
        turn = Turn(task=self.task, phrases=phrases, target=target, whole=True)
        return Sample(pictures=(record.picture,), turns=(turn,), source=record.source)


@register_asker("referring")
class ReferringAsker(GroundingAsker):
    """Expressions, and the mask of each thing they mean."""

    task = "segmentation"
    metric = "referring"
    needs = frozenset({"expressions", "masks"})


# Long lists of them, for what learns which of several things is meant: a picture is looked at once for all.
ASKERS.add("expressions", ReferringAsker(alone=0.1, most=16))


@register_asker("captions")
class CaptionAsker(Asker):
    """A request for a caption, and a caption."""

    metric = "captions"
    needs = frozenset({"captions"}) | SEEN

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Request and caption drawn."""
        if not record.captions:
            raise AnnotationError(f"{record.source}: no caption; remove it")
        question = _CAPTION_QUESTIONS[int(rng.integers(len(_CAPTION_QUESTIONS)))]
        return _talk(record, question, record.captions[int(rng.integers(len(record.captions)))])

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """The plainest request; any of the captions is right."""
        if not record.captions:
            return ()
        sample = _talk(record, _CAPTION_QUESTIONS[0], record.captions[0])
        return (sample.with_turns(replace(sample.turns[0], target=WordsTarget(references=record.captions))),)


@register_asker("grounded_captions")
class GroundedCaptionAsker(Asker):
    """A request for a caption that points, and a caption whose phrases bring their boxes."""

    task = "detection"
    metric = "grounded_captions"
    needs = frozenset({"grounded"}) | SEEN

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Request and caption drawn."""
        if not record.grounded:
            raise AnnotationError(f"{record.source}: no caption that says which things it means; remove it")
        caption = record.grounded[int(rng.integers(len(record.grounded)))]
        return self._sample(record, caption, _GROUNDED_QUESTIONS[int(rng.integers(len(_GROUNDED_QUESTIONS)))])

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """The plainest request, and the first caption."""
        return tuple(self._sample(record, caption, _GROUNDED_QUESTIONS[0]) for caption in record.grounded[:1])

    def _sample(self, record: Record, caption: Sequence[tuple[str, tuple[int, ...]]], question: str) -> Sample:
        said = [(_ARTICLE.sub("", words), things) for words, things in caption if things]
        pairs = [(place, thing) for place, (_, things) in enumerate(said) for thing in things]
        rows = np.array([thing for _, thing in pairs], np.int64)
        target = BoxTarget(
            boxes_xyxy=record.boxes_xyxy[rows], phrase=np.array([place for place, _ in pairs], np.int64),
            ignore=record.crowd[rows],
        )  # fmt: skip
        turn = Turn(
            task=self.task, phrases=tuple(words for words, _ in said), target=target, question=question,
            reply="".join(words for words, _ in caption), whole=True,
        )  # fmt: skip
        return Sample(pictures=(record.picture,), turns=(turn,), source=record.source)


@register_asker("questions")
class QuestionAsker(Asker):
    """Questions about the picture, and their answers."""

    metric = "words"
    needs = frozenset({"questions"}) | SEEN
    most = MOST_QUESTIONS

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Some questions in a conversation."""
        if not record.questions:
            raise AnnotationError(f"{record.source}: no question; remove it")
        count = 1 + int(rng.integers(self.most))
        drawn = [record.questions[i] for i in rng.permutation(len(record.questions))[:count]]
        worded = [one._replace(text=(one.text, *one.other)[int(rng.integers(1 + len(one.other)))]) for one in drawn]
        return self._sample(record, worded)

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Each question in a conversation of its own."""
        return tuple(self._sample(record, [one]) for one in record.questions)

    def _sample(self, record: Record, questions: Sequence[Question]) -> Sample:
        turns = tuple(Turn(question=one.text, reply=one.answer, kind=one.kind, whole=True) for one in questions)
        return Sample(pictures=(record.picture,), turns=turns, source=record.source)


@register_asker("looking")
class LookingAsker(QuestionAsker):
    """Questions about the picture: what they speak of is looked for, and the answer said when it is found."""

    task = "looking"
    most = MOST_LOOKS

    def _sample(self, record: Record, questions: Sequence[Question]) -> Sample:
        """Of several questions about one thing the first: all looks of a sample share a pass, in which a thing that is
        looked for twice would have to be found twice."""
        turns: list[Turn] = []
        seen: set[int] = set()
        for one in questions:
            things = {thing for _, own in one.looks for thing in own}
            if not things & seen:
                turns.append(self._turn(record, one))
                seen |= things
        return Sample(pictures=(record.picture,), turns=tuple(turns), source=record.source)

    def _turn(self, record: Record, asked: Question) -> Turn:
        if not asked.looks:
            raise AnnotationError(f"{record.source}: nobody says what {asked.text!r} speaks of; ask for task questions")
        pairs = [(place, thing) for place, (_, things) in enumerate(asked.looks) for thing in things]
        rows = np.array([thing for _, thing in pairs], np.int64)
        target = BoxTarget(
            boxes_xyxy=record.boxes_xyxy[rows], phrase=np.array([place for place, _ in pairs], np.int64),
            ignore=record.crowd[rows],
        )  # fmt: skip
        return Turn(
            task=self.task, phrases=tuple(phrase for phrase, _ in asked.looks), target=target, question=asked.text,
            then=asked.answer, whole=True, kind=asked.kind, single=asked.single,
        )  # fmt: skip


@register_asker("conversation")
class ConversationAsker(RoutesAsker):
    """Two to four turns of any kind about one picture, some of them asked in one breath: the mixture of a user's day.

    An evaluation asks one question after the other and measures what is routed.

    Args:
        also: further kinds.
    """

    # Those that a turn may lean on, and what asks for the same things again.
    leans: ClassVar[Mapping[str, str]] = {"detection": "segmentation", "segmentation": "detection"}
    needs = frozenset({"poses", "expressions", "captions", "grounded", "questions"}) | SEEN

    def __init__(self, *also: str) -> None:
        self.kinds = (
            "detection", "segmentation", "pose", "grounding", "referring", "captions", "grounded_captions", "looking",
            *also,
        )  # fmt: skip

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Kinds for which the record has nothing to say are left out. Some turns lean on the one before ("and the
        dogs?", "now outline them"); what is looked for is asked alone."""
        known = [kind for kind in self.kinds if self._serves(kind, record)]
        turns: list[Turn] = []
        before = ""
        for drawn in rng.choice(known, 2 + int(rng.integers(MOST_TURNS - 1))):
            listed = before in self.leans and len(turns[-1].phrases) <= LEANT
            leaning, kind = rng.random() if listed else 1.0, str(drawn)
            if leaning < LEANING:
                turns.append(again(turns[-1], self.leans[before], rng))
                kind = self.leans[before]
            elif leaning < 2 * LEANING:
                turns.append(more(_short(before, record, wording, rng), rng))
                kind = before
            else:
                turn = _short(kind, record, wording, rng)
                turns.append(replace(turn, joined=_in_one_breath(turns, turn) and bool(rng.random() < 0.5)))
            before = kind
        return Sample(pictures=(record.picture,), turns=tuple(turns), source=record.source)

    def _serves(self, kind: str, record: Record) -> bool:
        wanted = ASKERS[kind].needs - SEEN
        held = [getattr(record, name) for name in wanted]
        return all(values is not None and any(value is not None for value in values) for values in held)


# Pictures are made in it, too.
ASKERS.add("conversation_and_pictures", ConversationAsker("beside", "beside", "beside_changes"))


@register_asker("loud")
class LoudAsker(RoutesAsker):
    """Boxes, masks and pictures, asked for in capitals: "DETECT ALL CARS"."""

    kinds = ("detection", "segmentation", "beside")
    needs = SEEN

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """A question of any kind, of few names."""
        turn = louder(_short(str(rng.choice(self.kinds)), record, wording, rng, LOUD_TRIES))
        return Sample(pictures=(record.picture,), turns=(turn,), source=record.source)


def _short(kind: str, record: Record, wording: Wording, rng: np.random.Generator, tries: int = TRIES) -> Turn:
    """The first turn of a kind that is drawn with a short list, or the last that is drawn."""
    for _ in range(tries):
        turn = ASKERS[kind].draw(record, wording, rng).turns[0]
        if len(turn.phrases) <= LEANT:
            break
    return turn


def _in_one_breath(turns: Sequence[Turn], turn: Turn) -> bool:
    """Whether a turn can be asked with the one before it: what is told what was found is asked alone."""
    return bool(turns) and not any(one.task and TASKS[one.task].told for one in (turns[-1], turn))


def _talk(record: Record, question: str, reply: str) -> Sample:
    turn = Turn(question=question, reply=reply, whole=True)
    return Sample(pictures=(record.picture,), turns=(turn,), source=record.source)
