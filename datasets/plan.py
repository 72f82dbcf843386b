"""Which sample trains at which position: a pure function of the seed, the mixture and the position.

No part of it depends on how many processes or workers read it, and none has state, so a run resumes from one integer.

Blend: with shares w_i, data set i takes its m-th turn within positions (m - 1) / w_i < n <= ceil(m / w_i), the earliest
deadline first. These are the windows of proportionate-fair scheduling (Baruah, Cohen, Plaxton, Varvel 1996): with one
machine and shares that sum to one every deadline is met, so after every prefix each data set is less than one sample
off its share. Shares are fractions with a common denominator, so the blend repeats, and a table of one period seeks in
O(1).

Order: within an epoch a data set is read in the order of a keyed Feistel permutation with cycle walking.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from visionllm.core.errors import ConfigError, DatasetError

# Shares finer than this are rounded to it (0.0015 % of the mixture).
MAX_PERIOD = 65_536
_MASK = (1 << 64) - 1
_ROUNDS = 6


@dataclass(kw_only=True, slots=True, frozen=True)
class Part:
    """One data set of a mixture.

    Args:
        name: of the data set and its split; the key of its order.
        length: number of samples.
        weight: share of the mixture, relative to the other parts; 0 leaves the part out.
        digest: of its content, compared when a run resumes.
    """

    name: str
    length: int
    weight: float
    digest: str = ""


@dataclass(kw_only=True, slots=True, frozen=True)
class PlanItem:
    """What trains at one position. ``dataset`` is the index of the part, ``index`` the sample in it."""

    dataset: int
    index: int
    epoch: int
    position: int


class Plan:
    """The endless sequence of samples of a mixture.

    Raises:
        ConfigError: a weight is negative or not a number, no weight is positive, or a name stands twice.
        DatasetError: a part with a weight is empty.
    """

    def __init__(self, mixture: Sequence[Part], *, seed: int) -> None:
        _check(mixture)
        self.mixture, self.seed = tuple(mixture), seed
        shares = _shares([part.weight for part in mixture])
        self._period = sum(shares)
        self._choice = _blend(shares)
        self._turn = np.zeros(self._period, np.int64)
        for i, share in enumerate(shares):
            self._turn[self._choice == i] = np.arange(share)
        self._shares = shares
        self._keys = [_word_of(f"{seed}/{part.name}") for part in mixture]

    def __getitem__(self, position: int) -> PlanItem:
        return self.candidate(position, 0)

    def candidate(self, position: int, attempt: int) -> PlanItem:
        """The sample at ``position``, or the ``attempt``-th that takes its place when those before it are bad."""
        if position < 0:
            raise IndexError(position)
        period, place = divmod(position, self._period)
        part = int(self._choice[place])
        turn = period * self._shares[part] + int(self._turn[place])
        length = self.mixture[part].length
        epoch, rank = divmod(turn, length)
        index = permuted((rank + attempt) % length, length, key=_mix(self._keys[part] ^ _mix(epoch)))
        return PlanItem(dataset=part, index=index, epoch=epoch, position=position)

    def items(self, start: int, stop: int) -> Iterator[PlanItem]:
        """The items at positions [start, stop)."""
        return (self[position] for position in range(start, stop))

    def share(self, part: int) -> Fraction:
        """The share that the blend keeps of a part: its weight, rounded where the period would grow too long."""
        return Fraction(self._shares[part], self._period)

    def digest(self, count: int) -> str:
        """Hash of the first ``count`` items."""
        return digest_of(self.items(0, count))

    def state(self) -> dict[str, Any]:
        """Plain values that fix the plan; a checkpoint keeps them beside its step."""
        parts = [{"name": p.name, "length": p.length, "weight": p.weight, "digest": p.digest} for p in self.mixture]
        return {"seed": self.seed, "mixture": parts}

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse to resume a run whose data have changed since ``state`` was saved.

        Raises:
            DatasetError: it names the first difference.
        """
        mine = self.state()
        if mine == state:
            return
        if mine["seed"] != state["seed"]:
            raise DatasetError(f"the run was started with seed {state['seed']}, not {mine['seed']}; resume with it")
        was, now = ([part["name"] for part in s["mixture"]] for s in (state, mine))
        if was != now:
            raise DatasetError(f"the run was started on {', '.join(was)}, not on {', '.join(now)}; resume with those")
        for old, new in zip(state["mixture"], mine["mixture"], strict=True):
            for key in old:
                if old[key] != new[key]:
                    raise DatasetError(
                        f"{old['name']}: its {key} was {old[key]!r} when the run was started and is {new[key]!r} now; "
                        "restore it, or start a new run from the checkpoint's weights"
                    )


def digest_of(items: Iterator[PlanItem]) -> str:
    """Hash of a sequence of items."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.position} {item.dataset} {item.index} {item.epoch}\n".encode())
    return digest.hexdigest()


def item_rng(seed: int, position: int, purpose: int = 0) -> np.random.Generator:
    """The random numbers of one position: the same in every process, independent of every other position's.

    Args:
        purpose: separates draws that must not follow each other, such as questions and augmentation.
    """
    key = np.array([_mix(seed & _MASK), position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, purpose], np.uint64)))


def permuted(rank: int, length: int, *, key: int) -> int:
    """Where a keyed permutation of range(length) sends ``rank``.

    A Feistel network over the next power of four permutes; ranks that land outside walk on until they are inside.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    value = rank
    while True:
        left, right = value >> half, value & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(key ^ (number << 58) ^ right) & mask)
        value = left << half | right
        if value < length:
            return value


def _mix(value: int) -> int:
    """A bijective hash of 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _word_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _check(mixture: Sequence[Part]) -> None:
    names = [part.name for part in mixture]
    for part in mixture:
        if names.count(part.name) > 1:
            raise ConfigError(f"mixture: {part.name!r} stands twice; add up the weights")
        if not math.isfinite(part.weight) or part.weight < 0:
            raise ConfigError(f"mixture: {part.name}: weight {part.weight} must be a number from 0 up")
        if part.weight and part.length <= 0:
            raise DatasetError(f"mixture: {part.name} holds no samples; give it weight 0 or mend its card")
    if not any(part.weight for part in mixture):
        raise ConfigError("mixture: no data set has a weight above 0")


def _shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights (as their decimals read), summing to at most MAX_PERIOD."""
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= MAX_PERIOD:
        return [weight // divisor for weight in whole]
    return [max(1, round(weight / total * (MAX_PERIOD - len(exact)))) if weight else 0 for weight in exact]


def _blend(shares: Sequence[int]) -> np.ndarray:
    """(period,) the part whose turn it is at each position of one period."""
    period = sum(shares)
    # Entries (first position at which the next turn may be taken, part) and (position by which it must be, part).
    waiting = [(1, part) for part, share in enumerate(shares) if share]
    ready: list[tuple[int, int]] = []
    taken = [0] * len(shares)
    choice = np.zeros(period, np.int32)
    for n in range(1, period + 1):
        while waiting and waiting[0][0] <= n:
            _, part = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(taken[part] + 1) * period // shares[part]), part))
        _, part = heapq.heappop(ready)
        choice[n - 1] = part
        taken[part] += 1
        heapq.heappush(waiting, (taken[part] * period // shares[part] + 1, part))
    return choice
