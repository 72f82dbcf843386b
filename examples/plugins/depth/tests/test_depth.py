"""All that a decoder owes, a test each; `visionllm check-decoder depth` prints the same as a table."""

from collections.abc import Callable

import numpy as np
import pytest


@pytest.mark.decoder("depth")
def test_conformance(decoder_check: Callable[[], None]) -> None:
    decoder_check()


def test_the_truth_of_a_scene() -> None:
    """Nearer things have lower ranks, the sky is beyond, and a mirror moves all of it."""
    from visionllm import open_dataset
    from visionllm.core.geometry import Geometry

    (sample,) = open_dataset("scenes", "val", task="depth").ask_all(0)
    target = sample.turns[0].target
    assert target.ranks.shape == sample.pictures[0].pixels.shape[:2] == target.ground.shape
    assert {1, 2} <= set(np.unique(target.ranks).tolist())
    moved = target.transform(Geometry.hflip(sample.pictures[0].size))
    assert np.array_equal(moved.ranks, target.ranks[:, ::-1])
    assert np.array_equal(moved.ground, target.ground[:, ::-1])


def test_the_score_by_hand() -> None:
    from types import SimpleNamespace

    from visionllm_depth import OrderMetric, OrderTarget
    from visionllm_depth.result import Depths

    ranks = np.repeat(np.array([[255, 2, 1, 0]], np.uint8), 4, 0)
    turn = SimpleNamespace(target=OrderTarget(ranks=ranks, ground=np.zeros((4, 4), bool)))
    for near, share in (([0.0, 0.5, 1.0, 0.2], 1.0), ([0.5, 0.0, 1.0, 0.2], 2 / 3), ([1.0, 0.5, 0.0, 0.2], 0.0)):
        metric = OrderMetric()
        found = Depths(phrases=("picture",), maps=(np.repeat(np.array([near], np.float32), 4, 0),))
        metric.add(turn, SimpleNamespace(results={"depth": found}), key=0)
        assert metric.compute() == {"order": pytest.approx(share), "pairs": 3}
    metric = OrderMetric()
    metric.add(turn, SimpleNamespace(results={}), key=0)
    assert metric.compute()["order"] == 0
