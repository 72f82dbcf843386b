"""Routing: exact or one kind of failure."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionllm.metrics.routing import RoutingCounter, failure, routing_exact

CAR, BUS, DOG = ("[DET]", "car"), ("[DET]", "bus"), ("[DET]", "dog")

CASES = [
    ([CAR, BUS], [CAR, BUS], None),
    ([], [], None),
    ([CAR, BUS], [CAR], "missing"),
    ([CAR], [], "missing"),
    ([CAR, BUS, DOG], [CAR, ("[DET]", "buses")], "missing"),
    ([CAR], [CAR, BUS], "extra"),
    ([], [CAR], "extra"),
    ([CAR], [CAR, CAR], "extra"),
    ([CAR, BUS], [CAR, DOG], "wrong phrase"),
    ([CAR], [("[DET]", "Car")], "wrong phrase"),
    ([CAR, BUS], [BUS, CAR], "wrong order"),
    ([CAR], [("[SEG]", "car")], "wrong token"),
    ([CAR, BUS], [("[SEG]", "car"), BUS], "wrong token"),
]


@pytest.mark.parametrize(("expected", "got", "kind"), CASES)
def test_kinds(expected: list[tuple[str, str]], got: list[tuple[str, str]], kind: str | None) -> None:
    assert failure(expected, got) == kind
    assert routing_exact(tuple(expected), tuple(got)) == (kind is None)


def test_counting() -> None:
    counter = RoutingCounter(keep=2)
    for expected, got, _ in CASES:
        counter.add(expected, got)
    report = json.loads(json.dumps(counter.compute()))
    assert report["replies"] == len(CASES)
    assert report["exact"] == 2 / len(CASES)
    assert report["failures"] == {"missing": 3, "extra": 3, "wrong phrase": 2, "wrong token": 2, "wrong order": 1}
    assert report["examples"][0] == {"kind": "missing", "expected": "car[DET], bus[DET]", "got": "car[DET]"}
    assert len(report["examples"]) == 2


def test_nothing_counted() -> None:
    report = RoutingCounter().compute()
    assert report["exact"] is report["exact_interval"] is None


def test_the_interval_is_that_of_a_share() -> None:
    """Nine of ten replies of 400: the normal approximation gives .9 +- .029."""
    counter = RoutingCounter()
    for number in range(400):
        counter.add([("[DET]", "car")], [("[DET]", "car" if number % 10 else "bus")])
    report = counter.compute()
    assert report["exact"] == 0.9
    assert report["exact_interval"] == pytest.approx([0.871, 0.929], abs=0.008)


routes = st.lists(st.tuples(st.sampled_from(["[DET]", "[SEG]"]), st.sampled_from(["car", "bus", "dog"])), max_size=4)


@given(routes, routes)
def test_every_difference_has_one_kind(expected: list[tuple[str, str]], got: list[tuple[str, str]]) -> None:
    assert (failure(expected, got) is None) == (expected == got)
