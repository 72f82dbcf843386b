"""Gain over a bicubic enlargement, after the best shift of each."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.images import Images, Recipe
from visionllm.core.sample import Picture, PictureTarget, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS
from visionllm.metrics.images import psnr
from visionllm.metrics.sharpness import best_shift, brightness


def drawn(seed: int = 0, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3)).astype(np.uint8)
    return cv2.resize(noise, size, interpolation=cv2.INTER_NEAREST)


def scored(made: np.ndarray | None, truth: np.ndarray) -> dict:
    small = cv2.resize(truth, (truth.shape[1] // 2, truth.shape[0] // 2), interpolation=cv2.INTER_AREA)
    metric = METRICS["sharpness"]()
    turn = Turn(task="super_resolution", phrases=("picture",),
                target=PictureTarget(pictures=(Picture(pixels=truth),)))  # fmt: skip
    links = ()
    if made is not None:
        size = (made.shape[1], made.shape[0])
        recipe = Recipe(task="super_resolution", phrase="picture", prompt=None, decoder="restoration", options={},
                        place=0, size=size, model=None)  # fmt: skip
        meta = LinkMeta(sample=0, turn=0, task="super_resolution", token="[SR]", phrase="picture")
        result = Images(pictures=(Picture(pixels=made),), recipes=(recipe,))
        links = (LinkResult(meta=meta, decoder="restoration", result=result),)
    metric.add(turn, Answer(text="", links=links, pictures=(Picture(pixels=small),)), key=0)
    return metric.compute()


def test_the_truth_gains_all_and_bicubic_gains_nothing() -> None:
    truth = drawn()
    small = cv2.resize(truth, (32, 24), interpolation=cv2.INTER_AREA)
    bicubic = cv2.resize(small, (64, 48), interpolation=cv2.INTER_CUBIC)
    best = scored(truth, truth)
    assert best["PSNR"] == 60
    assert best["SSIM"] == pytest.approx(1)
    assert best["gain"] == pytest.approx(60 - best["bicubic_PSNR"])
    same = scored(bicubic, truth)
    assert same["gain"] == 0
    assert same["PSNR"] == same["bicubic_PSNR"] < 40
    nothing = scored(None, truth)
    assert (nothing["made"], nothing["gain"]) == (0, None)


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-2, 1)])
def test_a_shift_is_forgiven(shift: tuple[int, int]) -> None:
    truth = drawn(1)
    moved = np.roll(truth, shift, (1, 0))
    assert scored(moved, truth)["PSNR"] == 60
    # One that is farther than lenses are apart is not.
    assert scored(np.roll(truth, 7, 1), truth)["PSNR"] < 30


def test_nothing_is_moved_without_gain() -> None:
    flat = np.full((24, 32), 100.0)
    made, still = best_shift(flat, flat)
    assert np.array_equal(made, still)
    assert made.shape == (16, 24)


def test_brightness_is_that_of_bt_601() -> None:
    pixels = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)
    np.testing.assert_allclose(brightness(pixels), [[16, 235, 16 + 65.481]], atol=1e-2)
    # As OpenCV's conversion, which rounds.
    noise = drawn(2)
    theirs = cv2.cvtColor(noise, cv2.COLOR_RGB2YCrCb)[..., 0].astype(float) * 219 / 255 + 16
    np.testing.assert_allclose(brightness(noise), theirs, atol=1)
    assert psnr(brightness(noise), brightness(noise)) == np.inf
