"""The samples of every step: plan -> read -> ask -> augment.

What a step holds depends on nothing but the plan: ranks take slices of it and workers take steps of it, so a run
resumes from its step number under any layout. A bad sample is quarantined, counted and replaced by the next one of its
data set; a data set with too many of them stops the run, and so does every other error at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from visionllm.core.errors import AnnotationError, DatasetError, PictureError, VisionLLMError
from visionllm.core.sample import Record, Sample
from visionllm.datasets.catalog import Dataset
from visionllm.datasets.plan import Part, Plan, item_rng
from visionllm.datasets.transforms import Augment, mosaic, shrunk

# How far the candidates of one position are tried.
MOST_CANDIDATES = 100
# Streams of random numbers of one position.
_ASKING, _AUGMENTING, _MIXING = 0, 1, 2
_PARTNERS = 100  # and one more for each further attempt


@dataclass(kw_only=True, slots=True, frozen=True)
class Fault:
    """A sample that could not be used, and why."""

    dataset: str
    index: int
    reason: str


@dataclass(kw_only=True, slots=True)
class LoadReport:
    """How many samples were read from each data set, and which of them were bad.

    Args:
        limit: share of bad samples above which a data set is refused...
        patience: ...once it has shown this many.
    """

    limit: float = 0.05
    patience: int = 20
    read: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    faults: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, read: Counter[str], faults: Sequence[Fault]) -> None:
        """Count a step.

        Raises:
            DatasetError: too large a share of a data set is bad.
        """
        self.read.update(read)
        for fault in faults:
            self.bad[fault.dataset] += 1
            self.faults.setdefault((fault.dataset, fault.index), fault.reason)
        for name in {fault.dataset for fault in faults}:
            bad, tried = self.bad[name], self.read[name] + self.bad[name]
            if bad >= self.patience and bad > self.limit * tried:
                last = next(fault.reason for fault in reversed(faults) if fault.dataset == name)
                raise DatasetError(
                    f"{name}: {bad} of {tried} samples are bad, more than {self.limit:.0%}; mend it. The last: {last}"
                )

    def __str__(self) -> str:
        """``skipped 3 of 12,800 (coco/train: 3)``."""
        tried = sum(self.read.values()) + sum(self.bad.values())
        each = ", ".join(f"{name}: {count:,}" for name, count in sorted(self.bad.items()))
        return f"skipped {sum(self.bad.values()):,} of {tried:,}" + (f" ({each})" if each else "")

    def reasons(self, most: int = 10) -> list[str]:
        """One line for each bad sample that was met, of at most so many, and one that counts the rest."""
        lines = [f"{name}[{index}]: {reason}" for (name, index), reason in sorted(self.faults.items())]
        return lines[:most] + [f"... and {len(lines) - most:,} more"] * (len(lines) > most)


class Loader:
    """The samples of a run, step by step.

    Args:
        datasets: what is read; each data set and split once.
        weights: of the data sets in the mixture.
        batch_size: samples of a global step, over all ranks.
        seed: of order, questions and augmentation.
        augment: applied to every sample, or one for each data set; None for none.
        rank, world_size: this process's part of each step.
        max_side: pictures are shrunk to this length as soon as they are read.
        cache_bytes: memory for decoded pictures, given to whole data sets, the smallest first, as far as it goes.
        bad_limit, bad_patience: see ``LoadReport``.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float],
        *,
        batch_size: int,
        seed: int,
        augment: Augment | Sequence[Augment | None] | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_side: int | None = None,
        cache_bytes: int = 0,
        bad_limit: float = 0.05,
        bad_patience: int = 20,
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        assert batch_size > 0, batch_size
        parts = [
            Part(name=dataset.key, length=len(dataset), weight=weight, digest=dataset.digest())
            for dataset, weight in zip(datasets, weights, strict=True)
        ]
        self.datasets, self.plan = tuple(datasets), Plan(parts, seed=seed)
        self.batch_size, self.seed = batch_size, seed
        of_each = augment if isinstance(augment, Sequence) else [augment] * len(self.datasets)
        self.augments: tuple[Augment | None, ...] = tuple(of_each)
        assert len(self.augments) == len(self.datasets), (len(self.augments), len(self.datasets))
        self.report = LoadReport(limit=bad_limit, patience=bad_patience)
        self._slice = (batch_size * rank // world_size, batch_size * (rank + 1) // world_size)
        self._max_side = max_side
        self._caches = _caches(datasets, max_side or 640, cache_bytes)
        self._broken: dict[tuple[int, int], Fault] = {}

    def batch(self, step: int) -> list[Sample]:
        """This rank's samples of global step ``step``.

        Raises:
            DatasetError: too many samples of a data set are bad.
        """
        return self._counted(self._make(step))

    def steps(self, start: int, stop: int, *, workers: int = 0) -> Iterator[list[Sample]]:
        """The batches of steps [start, stop), in order, made ahead by ``workers`` processes."""
        if workers == 0:
            yield from (self.batch(step) for step in range(start, stop))
            return
        from torch.utils.data import DataLoader

        stream = DataLoader(
            _Steps(self), batch_size=None, sampler=range(start, stop), num_workers=workers, prefetch_factor=2
        )
        for made in stream:
            if isinstance(made, VisionLLMError):
                raise made
            yield self._counted(made)

    def positions(self, step: int) -> range:
        """Positions of the plan that this rank takes at ``step``."""
        first = step * self.batch_size
        return range(first + self._slice[0], first + self._slice[1])

    def owner(self, position: int) -> str:
        """Key of the data set that the plan reads at a position."""
        return self.datasets[self.plan[position].dataset].key

    def sample(self, position: int) -> Sample:
        """The sample at one position of the plan, for looking at; faults are not counted."""
        return self._sample(position, _Made())

    def _counted(self, made: _Made) -> list[Sample]:
        self.report.add(made.read, made.faults)
        return made.samples

    def _make(self, step: int) -> _Made:
        made = _Made()
        for position in self.positions(step):
            made.samples.append(self._sample(position, made))
        return made

    def _sample(self, position: int, made: _Made) -> Sample:
        """The first sound candidate of a position; the bad ones before it are noted in ``made``."""
        part = self.plan[position].dataset
        dataset = self.datasets[part]
        tried = min(len(dataset), MOST_CANDIDATES)
        for attempt in range(tried):
            index = self.plan.candidate(position, attempt).index
            item = self._read(part, index, made)
            if item is None:
                continue
            item = self._mixed(item, part, position, made)
            others = self._others(part, item_rng(self.seed, position, _PARTNERS + attempt), made)
            if others is None:
                continue
            try:
                sample = dataset.ask_about(item, item_rng(self.seed, position, _ASKING), others)
            except AnnotationError as error:
                made.faults.append(Fault(dataset=dataset.key, index=index, reason=str(error)))
                continue
            made.read[dataset.key] += 1
            augment = self.augments[part]
            return augment(sample, item_rng(self.seed, position, _AUGMENTING)) if augment else sample
        last = made.faults[-1].reason
        raise DatasetError(f"{dataset.key}: {tried} samples in a row are bad; mend it. The last: {last}")

    def _others(self, part: int, rng: np.random.Generator, made: _Made) -> list[Record | Sample] | None:
        """The further records a sample takes; None if one of them is bad."""
        dataset = self.datasets[part]
        read = [self._read(part, int(i), made) for i in rng.integers(len(dataset), size=dataset.partners)]
        found = [other for other in read if other is not None]
        return found if len(found) == len(read) else None

    def _mixed(self, item: Record | Sample, part: int, position: int, made: _Made) -> Record | Sample:
        """A mosaic, as often as the augmentation asks for it and its four parts are sound."""
        augment = self.augments[part]
        # Drawn pictures never run out: a fresh one is worth more than a mosaic, and costs a quarter.
        if not isinstance(item, Record) or not augment or not self.datasets[part].reader.needs_root:
            return item
        rng = item_rng(self.seed, position, _MIXING)
        if rng.random() >= augment.mosaic:
            return item
        others = [self._read(part, int(i), made) for i in rng.integers(len(self.datasets[part]), size=3)]
        records = [item, *(other for other in others if isinstance(other, Record))]
        return mosaic(records, rng) if len(records) == 4 else item

    def _read(self, part: int, index: int, made: _Made) -> Record | Sample | None:
        """What the data set holds at ``index``, shrunk; None and a fault in ``made`` if that is bad."""
        cache, dataset = self._caches[part], self.datasets[part]
        item: Record | Sample | None = cache.get(index) if cache else None
        if item is not None:
            return item
        # Only what reading says is remembered: it is the same at every position, so no layout can tell the difference.
        fault = self._broken.get((part, index))
        try:
            item = dataset.read(index) if fault is None else None
        except (AnnotationError, PictureError) as error:
            fault = self._broken[part, index] = Fault(dataset=dataset.key, index=index, reason=str(error))
        if fault is not None:
            made.faults.append(fault)
            return None
        if isinstance(item, Record) and self._max_side:
            item = shrunk(item, self._max_side)
        if cache and isinstance(item, Record):
            cache.put(index, item)
        return item


@dataclass(kw_only=True, slots=True)
class _Made:
    """A step as a worker hands it over: its samples, and what the report counts."""

    samples: list[Sample] = field(default_factory=list)
    read: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)


class _Steps:
    """A map-style data set of steps, so that worker processes cannot change the order."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getitem__(self, step: int) -> _Made | VisionLLMError:
        try:
            return self._loader._make(step)
        except VisionLLMError as error:
            # Raised here it would reach the user as a page of two tracebacks instead of its one line.
            return error


class _Cache:
    """Records by index, up to a number of bytes; what is in stays in."""

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._records: dict[int, Record] = {}

    def get(self, index: int) -> Record | None:
        return self._records.get(index)

    def put(self, index: int, record: Record) -> None:
        size = record.picture.pixels.nbytes
        if size <= self._left:
            self._left -= size
            self._records[index] = record


def _caches(datasets: Sequence[Dataset], side: int, budget: int) -> list[_Cache | None]:
    """A cache for each data set that fits whole, taken at four to three, the commonest shape; a part would not pay."""
    caches: list[_Cache | None] = [None] * len(datasets)
    for i in sorted(range(len(datasets)), key=lambda i: len(datasets[i])):
        need = len(datasets[i]) * side * side * 3 * 3 // 4
        if need <= budget:
            budget -= need
            caches[i] = _Cache(need)
    return caches
