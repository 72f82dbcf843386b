"""What a decoder has found, told to the language model: how many, where, and what they look like.

A small model that reads a picture through a few positions cannot count cups in it; its decoders can find them. So it
may look before it answers: the reply routes to what the question speaks of (a task that is ``told``), the findings come
back as the next message, and the answer is said with them in sight, as with the result of a tool (Yao et al. 2023,
"ReAct", section 2). Each thing is shown as a region, the way a user points at one: its embedding says what it looks
like (compare Ma et al. 2024, "Groma", section 3, where regions that were found are read with the picture).

A message of two phrases, the first found twice and the second nowhere: ``2 33,40<region> 71,38<region>; 0``. Places are
the middles of boxes in hundredths of width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from visionllm.core.regions import PLACEHOLDER, Box, Region
from visionllm.core.sample import BoxTarget, Sample, Turn

# Things of a phrase that are shown; the others are counted.
MOST_SHOWN = 3
# In training, of the phrases of a question about one thing each ("what colour is the car"): the share of which nothing
# is told, and of which another thing is told behind the right one; how far corners move, in sides of the box. Detectors
# miss things and find too many, and the answer hangs on neither.
MISSED, EXTRA, MOVED = 0.08, 0.25, 0.06


def tell(found: Sequence[np.ndarray], pictures: Sequence[int], sizes: Sequence[tuple[int, int]], *,
         regions: bool = True) -> tuple[str, tuple[Region, ...]]:  # fmt: skip
    """The message, with a placeholder for each thing that is shown, and these things as regions.

    Args:
        found: (N, 4) boxes of each phrase, xyxy in pixels of its picture, those to be shown first.
        pictures: the picture of each phrase, counted from 0.
        sizes: (width, height) of all pictures.
        regions: whether the model takes regions; without, it is told their places alone.
    """
    parts: list[str] = []
    framed: list[Region] = []
    for boxes, picture in zip(found, pictures, strict=True):
        limits = np.tile(np.array(sizes[picture], np.float64), 2)
        inside = np.clip(boxes.reshape(-1, 4), 0, limits)
        # A box on the rim of the picture may have no pixel inside: it counts, and there is nothing to show.
        shown = inside[(inside[:, 2:] - inside[:, :2]).min(1) > 0][:MOST_SHOWN]
        middles = ((shown[:, :2] + shown[:, 2:]) / 2 / limits[:2] * 100).clip(0, 99).astype(int)
        places = (f"{x:02d},{y:02d}" for x, y in middles)
        parts.append(" ".join([str(len(boxes)), *(place + PLACEHOLDER * regions for place in places)]))
        framed += [Box(*corners, picture=picture) for corners in shown.tolist() if regions]
    return "; ".join(parts), tuple(framed)


def told(sample: Sample, *, regions: bool = True, rng: np.random.Generator | None = None) -> Sample:
    """The sample in which every turn that looks is followed by what the truth says it finds, and the answer.

    The largest things are shown: a decoder is surest of those.

    Args:
        regions: see ``tell``.
        rng: draws mistakes into what is told, where the answer does not hang on it (``Turn.single``); without, the
            truth is told.
    """
    if all(turn.then is None for turn in sample.turns):
        return sample
    turns: list[Turn] = []
    for turn in sample.turns:
        turns.append(turn if turn.then is None else replace(turn, then=None))
        if turn.then is not None:
            assert not turn.joined, "a turn that looks is asked alone"
            found = _largest_first(turn.target, len(turn.phrases))
            pictures = [sample.picture_of(phrase) for phrase in turn.phrases]
            if turn.single and rng is not None:
                found = [_mistaken(boxes, sample, at, rng) for boxes, at in zip(found, pictures, strict=True)]
            text, framed = tell(found, pictures, [picture.size for picture in sample.pictures], regions=regions)
            turns.append(Turn(question=text, regions=framed, reply=turn.then, told=True, whole=True))
    return sample.with_turns(*turns)


def _largest_first(target: BoxTarget, phrases: int) -> list[np.ndarray]:
    areas = np.prod(target.boxes_xyxy[:, 2:] - target.boxes_xyxy[:, :2], axis=1)
    order = np.argsort(-areas, kind="stable")
    order = order[~target.ignored[order]]
    return [target.boxes_xyxy[order[target.phrase[order] == number]] for number in range(phrases)]


def _mistaken(boxes: np.ndarray, sample: Sample, picture: int, rng: np.random.Generator) -> np.ndarray:
    """As a detector might have found them; a corner that leaves the picture is cut when it is told."""
    draw = rng.random()
    if draw < MISSED:
        return boxes[:0]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + rng.uniform(-MOVED, MOVED, boxes.shape) * sides
    if draw < MISSED + EXTRA and sample.things:
        others = sample.things[picture].placed().boxes_xyxy
        return np.concatenate([moved, others[rng.permutation(len(others))[: 1 + int(rng.integers(2))]]])
    return moved
