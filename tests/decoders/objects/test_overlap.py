"""Weaker boxes of a phrase over stronger ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from visionllm.core.sample import Picture
from visionllm.decoders.objects.config import ObjectsConfig
from visionllm.decoders.objects.found import find, in_picture

PICTURE = Picture(pixels=np.zeros((50, 100, 3), np.uint8))
BOXES = torch.tensor([[0.2, 0.5, 0.2, 0.4], [0.21, 0.5, 0.2, 0.4], [0.7, 0.5, 0.2, 0.4], [0.5, 0.5, 1.0, 1.0]])
SCORES = torch.tensor([0.6, 0.9, 0.5, 0.1])


def scores(threshold: float, limit: int, overlap: float | None) -> list[float]:
    fields = find("car", PICTURE, in_picture(BOXES, PICTURE), SCORES, 0.5, threshold, limit, overlap).fields
    return [round(float(score), 3) for score in fields["scores"]]


def test_the_weaker_of_two_alike_goes_and_the_rest_stay() -> None:
    assert scores(0.0, 100, 0.6) == [0.9, 0.5, 0.1]
    assert scores(0.0, 100, None) == [0.9, 0.6, 0.5, 0.1]


def test_threshold_and_limit_hold_beside_it() -> None:
    assert scores(0.3, 100, 0.6) == [0.9, 0.5]
    assert scores(0.0, 2, 0.6) == [0.9, 0.5]  # the dropped one does not take a place


def test_boxes_are_in_pixels_of_the_picture() -> None:
    fields = find("car", PICTURE, in_picture(BOXES, PICTURE), SCORES, 0.5, 0.8, 100, 0.6).fields
    np.testing.assert_allclose(fields["boxes_xyxy"], [[11, 15, 31, 35]], atol=1e-4)


def test_a_task_may_have_a_threshold_of_its_own() -> None:
    assert ObjectsConfig(network={}, threshold=0.4, thresholds={"segmentation": 0.25}).thresholds == {
        "segmentation": 0.25
    }
    for values, words in (({"masks": 0.2}, "no task 'masks' .it has: detection"), ({"pose": 1.5}, "pose must be from")):
        with pytest.raises(ValidationError, match=words):
            ObjectsConfig(network={}, thresholds=values)
