"""The plan: pure, seekable, never a sample off its shares, each epoch a permutation, the same under any layout."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionllm.core.errors import ConfigError, DatasetError
from visionllm.datasets.plan import MAX_PERIOD, Part, Plan, digest_of, item_rng, permuted


def plan_of(weights: list[float], lengths: list[int] | None = None, seed: int = 0) -> Plan:
    lengths = lengths or [10] * len(weights)
    parts = [Part(name=f"part{i}", length=n, weight=w) for i, (n, w) in enumerate(zip(lengths, weights, strict=True))]
    return Plan(parts, seed=seed)


WEIGHTS = st.lists(st.sampled_from([0.01, 0.1, 0.2, 0.25, 0.3, 0.5, 1, 1.5, 2, 3, 7, 10, 100]), min_size=1, max_size=12)


@settings(max_examples=40)
@given(weights=WEIGHTS)
def test_no_prefix_is_a_sample_off_its_shares(weights: list[float]) -> None:
    plan = plan_of(weights)
    total = sum(Fraction(str(weight)) for weight in weights)
    counts = [0] * len(weights)
    for position in range(600):
        counts[plan[position].dataset] += 1
        for i, weight in enumerate(weights):
            share = Fraction(str(weight)) / total
            assert plan.share(i) == share
            assert abs(counts[i] - share * (position + 1)) < 1


def test_shares_too_fine_are_rounded_but_kept() -> None:
    weights = [math.pi, 1e-9, 1.0]
    plan = plan_of(weights)
    assert sum(plan.share(i) for i in range(3)) == 1
    assert plan.share(1) > 0
    assert abs(float(plan.share(0)) - math.pi / (math.pi + 1)) < 4 / MAX_PERIOD


def test_many_parts_of_uneven_lengths() -> None:
    lengths = [int(length) for length in np.random.default_rng(0).integers(100, 2_000_000, 300)]
    plan = plan_of([float(length) for length in lengths], lengths)
    counts = Counter(item.dataset for item in plan.items(0, 30_000))
    for i in range(300):
        assert abs(counts[i] - plan.share(i) * 30_000) < 1


def test_weight_zero_is_left_out_even_when_empty() -> None:
    plan = plan_of([1, 0, 1], [5, 0, 5])
    assert {item.dataset for item in plan.items(0, 100)} == {0, 2}


@pytest.mark.parametrize(
    ("weights", "lengths", "error", "words"),
    [
        ([1, -1], [5, 5], ConfigError, r"part1: weight -1 must be a number from 0 up"),
        ([1, math.nan], [5, 5], ConfigError, r"part1: weight nan"),
        ([1, math.inf], [5, 5], ConfigError, r"part1: weight inf"),
        ([0, 0], [5, 5], ConfigError, r"no data set has a weight above 0"),
        ([], [], ConfigError, r"no data set has a weight above 0"),
        ([1, 1], [5, 0], DatasetError, r"part1 holds no samples"),
    ],
)
def test_bad_mixtures(weights: list[float], lengths: list[int], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plan_of(weights, lengths)


def test_a_name_twice_is_refused() -> None:
    part = Part(name="a", length=3, weight=1)
    with pytest.raises(ConfigError, match="'a' stands twice"):
        Plan([part, part], seed=0)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 100, 595, 1024, 1025])
def test_a_permutation_at_any_length_and_key(length: int) -> None:
    orders = [tuple(permuted(rank, length, key=key) for rank in range(length)) for key in range(5)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    if length > 50:
        assert len(set(orders)) == 5


def test_a_permutation_looks_random() -> None:
    """Displacements and neighbours of 1,000 ranks are as spread as a shuffle's."""
    orders = np.array([[permuted(rank, 1000, key=key) for rank in range(1000)] for key in range(40)])
    # Each rank's mean over keys is near the middle: standard error 289 / sqrt(40) = 46.
    assert np.abs(orders.mean(0) - 499.5).max() < 46 * 5
    neighbours = np.abs(np.diff(orders, axis=1))
    assert abs(neighbours.mean() - 1000 / 3) < 15
    assert 0 < (neighbours == 1).mean() < 0.004


def test_each_epoch_of_each_part_is_a_permutation_of_its_own() -> None:
    plan = plan_of([0.7, 0.3], [37, 11])
    seen: dict[tuple[int, int], list[int]] = {}
    for item in plan.items(0, 1000):
        seen.setdefault((item.dataset, item.epoch), []).append(item.index)
    full = {key: order for key, order in seen.items() if (key[0], key[1] + 1) in seen}
    assert len(full) > 20
    for (part, _), order in full.items():
        assert sorted(order) == list(range([37, 11][part]))
    assert seen[0, 0] != seen[0, 1]


@given(st.integers(0, 10**12))
def test_seek_is_the_sequence(position: int) -> None:
    plan = plan_of([0.5, 0.3, 0.2], [10**7, 123, 7])
    assert plan[position] == next(plan.items(position, position + 1))
    assert plan[position].position == position


def test_turns_go_on_over_periods() -> None:
    """The k-th item of a part has rank k, wherever the period of the blend ends."""
    plan = plan_of([0.6, 0.4], [10**6, 10**6])
    for part in range(2):
        epochs = [item for item in plan.items(0, 500) if item.dataset == part]
        assert len({item.index for item in epochs}) == len(epochs)


def test_seed_names_and_lengths_decide_and_nothing_else() -> None:
    digest = plan_of([0.5, 0.5]).digest(500)
    assert plan_of([0.5, 0.5]).digest(500) == digest
    assert plan_of([1, 1]).digest(500) == digest
    assert plan_of([0.5, 0.5], seed=1).digest(500) != digest
    assert plan_of([0.5, 0.5], [10, 11]).digest(500) != digest
    assert plan_of([0.6, 0.4]).digest(500) != digest


def test_resume_under_any_layout_is_the_same_global_stream() -> None:
    batch, steps = 12, 30
    whole = plan_of([0.6, 0.3, 0.1], [50, 20, 7]).digest(batch * steps)
    for layout in ([1], [2], [3], [4], [1, 2, 4, 3]):
        items = []
        for step in range(steps):
            world = layout[step * len(layout) // steps]
            plan = plan_of([0.6, 0.3, 0.1], [50, 20, 7])  # each process, and each restart, makes its own
            for rank in range(world):
                start = step * batch + batch * rank // world
                items += list(plan.items(start, step * batch + batch * (rank + 1) // world))
        assert digest_of(iter(items)) == whole


def test_a_start_deep_in_a_huge_plan_costs_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(rank: int, length: int, *, key: int) -> int:
        nonlocal calls
        calls += 1
        return permuted(rank, length, key=key)

    monkeypatch.setattr("visionllm.datasets.plan.permuted", counted)
    plan = plan_of([0.5, 0.5], [10**7, 10**7])
    list(plan.items(10**7, 10**7 + 8))
    assert calls == 8
    assert len(plan._choice) <= MAX_PERIOD


def test_candidates_walk_the_same_part_without_repeating() -> None:
    plan = plan_of([0.5, 0.5], [20, 30])
    for position in (0, 1, 77):
        items = [plan.candidate(position, attempt) for attempt in range(20)]
        assert len({item.dataset for item in items}) == 1
        assert len({item.index for item in items}) == 20
        assert items[0] == plan[position]


def test_random_numbers_belong_to_seed_position_and_purpose() -> None:
    draws = {
        (seed, position, purpose): item_rng(seed, position, purpose).integers(2**62)
        for seed in (0, 1) for position in (0, 1, 10**12) for purpose in (0, 1)
    }  # fmt: skip
    assert len(set(draws.values())) == len(draws)
    assert item_rng(1, 10**12, 1).integers(2**62) == draws[1, 10**12, 1]


def test_a_changed_mixture_is_told_on_resume() -> None:
    plan = Plan([Part(name="a", length=5, weight=1, digest="x")], seed=0)
    state = plan.state()
    Plan([Part(name="a", length=5, weight=1, digest="x")], seed=0).check_state(state)
    for parts, seed, words in [
        ([Part(name="a", length=6, weight=1, digest="x")], 0, "a: its length was 5"),
        ([Part(name="a", length=5, weight=1, digest="y")], 0, "a: its digest was 'x'"),
        ([Part(name="a", length=5, weight=2, digest="x")], 0, "a: its weight was 1"),
        ([Part(name="b", length=5, weight=1, digest="x")], 0, "started on a, not on b"),
        ([Part(name="a", length=5, weight=1, digest="x")], 1, "seed 0, not 1"),
    ]:
        with pytest.raises(DatasetError, match=words):
            Plan(parts, seed=seed).check_state(state)
