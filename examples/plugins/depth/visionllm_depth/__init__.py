"""Which is nearer? Task, target, questions and score of a depth decoder that learns from order alone.

H x W = pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.errors import AnnotationError
from visionllm.core.sample import Picture, Record, Sample, Turn
from visionllm.datasets.asking import Asker, register_asker
from visionllm.metrics import METRICS

from .decoder import NAME, DepthDecoder
from .result import Depths

__all__ = ["DepthDecoder", "Depths", "OrderTarget"]

UNKNOWN, BEYOND = 0, 255


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class OrderTarget:
    """What stands before what.

    Args:
        ranks: (H, W) uint8: 1 for the pixels of the nearest thing, 2 for those of the next, ...; 255 for what lies
            beyond all of them (the sky), 0 where nobody knows.
        ground: (H, W) bool, level ground: of two of its pixels the lower one is nearer.
    """

    ranks: np.ndarray
    ground: np.ndarray

    def transform(self, geometry: Any) -> OrderTarget:
        """It moves with its picture."""
        width, height = geometry.output_size
        ranks = np.zeros((height, width), np.uint8)
        for rank in np.unique(self.ranks[self.ranks != UNKNOWN]).tolist():
            ranks[geometry.mask(self.ranks == rank)] = rank
        return OrderTarget(ranks=ranks, ground=geometry.mask(self.ground))


@register_asker(NAME)
class DepthAsker(Asker):
    """One question a picture, about pictures whose depth order is known: procedural scenes."""

    task = NAME

    def draw(self, record: Record, wording: Any, rng: np.random.Generator, *partners: Record) -> Sample:
        return self.every(record, wording)[0]

    def every(self, record: Record, wording: Any, *partners: Record, chunk: int | None = None) -> tuple[Sample, ...]:
        scene = record.extra.get("scene")
        if scene is None:
            raise AnnotationError(f"{record.source}: its depth order is not known; ask scenes")
        ranks = np.zeros(scene.id_map.shape, np.uint8)
        ranks[scene.stuff("sky")] = BEYOND
        for number, thing in enumerate(scene.objects):
            ranks[scene.mask(number)] = 1 + thing.depth
        ground = np.logical_or.reduce([scene.stuff(name) for name in ("road", "grass", "pavement", "table")])
        turn = Turn(task=NAME, phrases=("picture",), target=OrderTarget(ranks=ranks, ground=ground))
        return (Sample(pictures=(record.picture,), turns=(turn,), source=record.source),)


@METRICS.register(NAME)
class OrderMetric:
    """Of all pairs of things in a picture, how many it puts in the right order (by the median of their pixels)."""

    def __init__(self, names: Sequence[str] = (), *, threshold: float | None = None) -> None:
        self.right: list[bool] = []

    def add(self, turn: Turn, answer: Answer, *, key: Any) -> None:
        found = answer.results.get(NAME)
        ranks = turn.target.ranks
        known = [rank for rank in np.unique(ranks).tolist() if rank != UNKNOWN]
        near = None if found is None or not len(found.maps) else found.maps[0]
        places = {rank: 0.0 if near is None else float(np.median(near[ranks == rank])) for rank in known}
        self.right += [near is not None and places[a] > places[b] for a in known for b in known if a < b]

    def compute(self) -> dict[str, Any]:
        """``order``, the share of pairs, and their number."""
        return {"order": float(np.mean(self.right)) if self.right else None, "pairs": len(self.right)}


def contract_case(**config: Any) -> SimpleNamespace:
    """The decoder made small, and samples it can learn from: what ``visionllm check-decoder depth`` runs on.

    Args:
        config: settings of the decoder, in place of those of its own network made small.
    """

    def sample(
        phrases: tuple[str, ...], size: tuple[int, int] = (80, 60), seed: int = 0, empty: bool = False
    ) -> Sample:
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        ranks = np.zeros(size[::-1], np.uint8)
        if not empty:
            ranks[: size[1] // 3], ranks[size[1] // 3 : size[1] // 2], ranks[size[1] // 2 :] = BEYOND, 2, 1
        target = OrderTarget(ranks=ranks, ground=np.zeros(size[::-1], bool))
        turn = Turn(task=NAME, phrases=tuple(phrases), target=target)
        return Sample(pictures=(Picture(pixels=pixels),), turns=(turn,))

    return SimpleNamespace(config={"longest": 48, **(config or {"width": 8})}, sample=sample, options={})
