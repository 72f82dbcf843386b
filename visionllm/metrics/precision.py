"""Average precision as the COCO protocol counts it, from matches that are made once a picture.

They give an interval by resampling pictures, which would take minutes with a run of the protocol for each resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from visionllm.metrics.bootstrap import bounds

LEVELS = np.linspace(0.5, 0.95, 10)  # of overlap, from which on something is found
HIT, FALSE, IGNORED = 1, 0, -1
_RECALLS = np.linspace(0, 1, 101)


class Ranked(Protocol):
    """What was found of one category in one picture.

    ``scores`` (N,) fall, ``match`` (T, N) is hit, false or ignored at each of the levels, ``objects`` is the number of
    things that are there to be found.
    """

    @property
    def scores(self) -> np.ndarray: ...

    @property
    def match(self) -> np.ndarray: ...

    @property
    def objects(self) -> int: ...


def greedy_match(overlap: np.ndarray, inside: np.ndarray, crowd: np.ndarray, levels: np.ndarray = LEVELS, *,
                 once: bool = False) -> np.ndarray:  # fmt: skip
    """Greedy matching as COCO does it: what was found takes, best score first, the free object it fits best, or
    vanishes in a crowd.

    Args:
        overlap: (N, M) IoU, or another likeness.
        inside: (N, M) part of each found thing inside each true one, or what else is asked of crowds.
        crowd: (M,) bool; a crowd takes any number of things.
        levels: (T,) least overlap of a match.
        once: a crowd is one thing that does not count, and takes one.

    Returns:
        (T, N) int8: 1 hit, 0 false, -1 ignored.
    """
    count, things = overlap.shape
    match = np.full((len(levels), count), FALSE, np.int8)
    if not things or not count:
        return match
    rows = np.arange(len(levels))
    free, swallows = (np.repeat(own[None], len(levels), 0) for own in (~crowd, crowd))

    def best(values: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fits = np.where(allowed, values, -1.0)
        # The last of equally good ones, as in COCO's loop.
        place = things - 1 - fits[:, ::-1].argmax(1)
        return place, fits[rows, place] >= levels

    near = np.where(crowd, inside, overlap).max(1) >= levels.min()
    for i in np.flatnonzero(near).tolist():
        place, hit = best(overlap[i], free)
        free[rows[hit], place[hit]] = False
        match[hit, i] = HIT
        place, taken = best(inside[i], swallows)
        taken &= ~hit
        match[taken, i] = IGNORED
        if once:
            swallows[rows[taken], place[taken]] = False
    return match


def weighted_ap(entries: Sequence[tuple[int, Ranked]], weights: np.ndarray) -> np.ndarray:
    """(T, R) average precision of one category at each level, where picture p counts ``weights[r, p]`` times; NaN
    where no object is drawn."""
    pictures = np.concatenate([np.full(len(one.scores), p) for p, one in entries]).astype(int)
    scores = np.concatenate([one.scores for _, one in entries])
    match = np.concatenate([one.match for _, one in entries], 1)
    objects = weights[:, [p for p, _ in entries]] @ np.array([one.objects for _, one in entries])
    order = np.argsort(-scores, kind="stable")
    return np.stack([_at_level(match[t][order], pictures[order], weights, objects) for t in range(len(match))])


def intervals(values: np.ndarray) -> dict[str, list[float] | None]:
    """``AP_interval``, ``AP50_interval`` and ``AP75_interval`` of (T, R) resampled precisions."""
    return {"AP_interval": bounds(values.mean(0)), "AP50_interval": bounds(values[0]),
            "AP75_interval": bounds(values[5])}  # fmt: skip


def _at_level(match: np.ndarray, pictures: np.ndarray, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(R,) mean of the interpolated precision at 101 recalls, of what was found in order of falling score."""
    kept = match != IGNORED
    hits, pictures = np.flatnonzero(match[kept] == HIT), pictures[kept]
    # Recall grows at hits alone, and precision falls between them: nothing else is looked at.
    if not len(hits):
        return np.where(objects > 0, 0.0, np.nan)
    times = weights[:, pictures[: hits[-1] + 1]]
    between = np.add.reduceat(times, np.concatenate([[0], hits[:-1] + 1]), axis=1)
    true, found = np.cumsum(times[:, hits], 1), np.cumsum(between, 1)
    precision = true / np.maximum(found, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(weights), 1))], 1)
    values = [
        row[np.searchsorted(own / total, _RECALLS, side="left")].sum() / len(_RECALLS) if total else np.nan
        for row, own, total in zip(envelope, true, objects, strict=True)
    ]
    return np.array(values, np.float64)
