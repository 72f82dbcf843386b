"""Askers that point: a region of the picture stands in the question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from visionllm.core.errors import AnnotationError
from visionllm.core.masks import Mask
from visionllm.core.regions import Box, Pixels, Point, Polygon, Region, Scribble, region_name
from visionllm.core.sample import BoxTarget, Record, Sample, Turn, WordsTarget
from visionllm.datasets.asking import Asker, register_asker
from visionllm.datasets.formats.reader import Wording

# Regions in one question, at most: to segment, and to name, which costs little beside the picture. Corners of a drawn
# box are off by up to this part of its sides.
MOST_REGIONS, MOST_NAMED, SLOPPY = 3, 8, 0.08
_SEGMENT = (
    "segment {regions}", "mask {regions}", "outline {regions}", "cut out {regions}", "give me the mask of {regions}",
    "segment the thing at {regions}", "segment the object in {regions}", "which pixels belong to {regions}?",
)  # fmt: skip
_NAME = (
    "what is {regions}?", "what is in {regions}?", "name {regions}", "what do you see in {regions}?",
    "what kind of thing is {regions}?", "which class is {regions}?", "recognise {regions}", "what is at {regions}?",
)  # fmt: skip
_DESCRIBE = (
    "describe {regions}", "caption {regions}", "which one is {regions}?", "say which thing {regions} is",
    "describe the thing at {regions}", "describe what is in {regions}", "what tells {regions} from the rest?",
    "give an expression for {regions}",
)  # fmt: skip


@register_asker("interactive")
class InteractiveAsker(Asker):
    """Regions drawn on things, and the mask of each thing."""

    task = "segmentation"
    metric = "interactive"
    needs = frozenset({"masks"})

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """One to three things, each pointed at in a drawn way."""
        things = _some(solid(record), MOST_REGIONS, rng)
        return self._sample(record, things, _pointed(record, things, rng), _one_of(_SEGMENT, rng))

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Each thing twice: framed, and pointed at in its innermost place. ``chunk`` things in a question."""
        step = chunk or 1
        known = solid(record, empty=True)
        made = []
        for kind in ("box", "point"):
            for start in range(0, len(known), step):
                things = known[start : start + step]
                regions = [POINTERS[kind](_mask_of(record, thing), None) for thing in things]
                made.append(self._sample(record, things, regions, _SEGMENT[0]))
        return tuple(made)

    def _sample(self, record: Record, things: Sequence[int], regions: Sequence[Region], words: str) -> Sample:
        assert record.masks is not None
        rows = list(things)
        target = BoxTarget(boxes_xyxy=record.boxes_xyxy[rows], phrase=np.arange(len(rows)), masks=record.masks[rows])
        turn = Turn(
            task=self.task, phrases=tuple(map(region_name, range(len(rows)))), target=target,
            question=_listed(words, len(regions)), regions=tuple(regions), whole=True,
        )  # fmt: skip
        return Sample(pictures=(record.picture,), turns=(turn,), source=record.source)


@register_asker("recognition")
class RecognitionAsker(Asker):
    """Regions drawn on things, and the names of their categories."""

    metric = "words"
    needs = frozenset({"masks"})

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """Some things, each pointed at in a drawn way; one alone in half of the questions."""
        things = _some(solid(record), MOST_NAMED, rng)
        return _told(record, _names(record, things), _pointed(record, things, rng), _one_of(_NAME, rng))

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Each thing by its box."""
        return tuple(
            _told(record, _names(record, [thing]), [POINTERS["box"](_mask_of(record, thing), None)], _NAME[0])
            for thing in solid(record, empty=True)
        )


@register_asker("region_captions")
class RegionCaptionAsker(Asker):
    """A region drawn on a thing, and an expression that means this thing and no other."""

    metric = "captions"
    needs = frozenset({"expressions", "masks"})

    def draw(self, record: Record, wording: Wording, rng: np.random.Generator, *partners: Record) -> Sample:
        """A thing of which something is said, an expression of it, a way to point."""
        said = self._said(record)
        if not said:
            raise AnnotationError(f"{record.source}: nothing is said of any single object with a mask; remove it")
        thing = list(said)[int(rng.integers(len(said)))]
        return _told(record, _one_of(said[thing], rng), _pointed(record, [thing], rng), _one_of(_DESCRIBE, rng))

    def every(
        self, record: Record, wording: Wording, *partners: Record, chunk: int | None = None
    ) -> tuple[Sample, ...]:
        """Each thing by its box; any of its expressions is right."""
        made = []
        for thing, texts in self._said(record).items():
            sample = _told(record, texts[0], [POINTERS["box"](_mask_of(record, thing), None)], _DESCRIBE[0])
            made.append(sample.with_turns(replace(sample.turns[0], target=WordsTarget(references=tuple(texts)))))
        return tuple(made)

    @staticmethod
    def _said(record: Record) -> dict[int, list[str]]:
        known = set(solid(record, empty=True))
        said: dict[int, list[str]] = {}
        for text, things in record.expressions:
            if len(things) == 1 and things[0] in known:
                said.setdefault(things[0], []).append(text)
        return said


def _some(things: Sequence[int], most: int, rng: np.random.Generator) -> list[int]:
    count = 1 if rng.random() < 0.5 else 1 + int(rng.integers(most))
    return [things[i] for i in rng.permutation(len(things))[:count]]


def _pointed(record: Record, things: Sequence[int], rng: np.random.Generator) -> list[Region]:
    kinds = list(POINTERS.values())
    return [kinds[int(rng.integers(len(kinds)))](_mask_of(record, thing), rng) for thing in things]


def _one_of(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _names(record: Record, things: Sequence[int]) -> str:
    return ", ".join(record.names[int(record.labels[thing])] for thing in things)


def _told(record: Record, reply: str, regions: Sequence[Region], words: str) -> Sample:
    turn = Turn(question=_listed(words, len(regions)), reply=reply, regions=tuple(regions), whole=True)
    return Sample(pictures=(record.picture,), turns=(turn,), source=record.source)


def _boxed(mask: Mask, rng: np.random.Generator | None) -> Region:
    """The box of a mask, drawn as people draw one; exact without ``rng``."""
    box = mask.box_xyxy.astype(np.float64)
    if rng is not None:
        sides = np.tile(box[2:] - box[:2], 2)
        moved = np.clip(box + rng.uniform(-SLOPPY, SLOPPY, 4) * sides, 0, np.tile(mask.size, 2))
        box = np.where(np.tile(moved[2:] - moved[:2] >= 1, 2), moved, box)
    return Box(*box.tolist())


def _dotted(mask: Mask, rng: np.random.Generator | None) -> Region:
    """A pixel of a mask, the deeper inside the likelier; the deepest without ``rng``."""
    depth = cv2.distanceTransform(np.pad(mask.patch, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    share = depth.ravel().astype(np.float64)
    at = int(share.argmax()) if rng is None else int(rng.choice(len(share), p=share / share.sum()))
    y, x = divmod(at, mask.patch.shape[1])
    return Point(mask.corner[0] + x + 0.5, mask.corner[1] + y + 0.5)


def _scribbled(mask: Mask, rng: np.random.Generator | None) -> Region:
    rng = rng or np.random.default_rng(0)
    dots = [_dotted(mask, rng) for _ in range(3)]
    places = sorted({(dot.x, dot.y) for dot in dots if isinstance(dot, Point)})
    return Scribble(places) if len(places) > 1 else dots[0]


def _outlined(mask: Mask, rng: np.random.Generator | None) -> Region:
    """The outline of the largest part, with few corners."""
    outlines, _ = cv2.findContours(mask.patch.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=cv2.contourArea)
    few = cv2.approxPolyDP(outline, 0.01 * cv2.arcLength(outline, True), True)[:, 0] + np.array(mask.corner) + 0.5
    polygon = Polygon(tuple((float(x), float(y)) for x, y in few))
    return polygon if len(few) > 2 and cv2.contourArea(few.astype(np.float32)) > 2 else Pixels(mask)


def _filled(mask: Mask, rng: np.random.Generator | None) -> Region:
    return Pixels(mask)


# Ways to point at a thing. Boxes and points are what people give most.
POINTERS: dict[str, Callable[[Mask, np.random.Generator | None], Region]] = {
    "box": _boxed, "point": _dotted, "scribble": _scribbled, "polygon": _outlined, "pixels": _filled,
}  # fmt: skip


def solid(record: Record, *, empty: bool = False) -> list[int]:
    """Things with a mask.

    Raises:
        AnnotationError: there are none, and ``empty`` is not allowed.
    """
    masks = () if record.masks is None else record.masks
    found = [i for i, mask in enumerate(masks) if mask is not None and mask.area and not record.crowd[i]]
    if not found and not empty:
        raise AnnotationError(f"{record.source}: nothing in it has a mask to point at; remove it")
    return found


def _mask_of(record: Record, thing: int) -> Mask:
    assert record.masks is not None
    return record.masks[thing]


def _listed(words: str, count: int) -> str:
    return words.replace("{regions}", ", ".join(["<region>"] * count))
