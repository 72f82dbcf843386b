"""PSNR and SSIM by hand, and of pictures that were made."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.images import Images, Recipe
from visionllm.core.masks import Mask
from visionllm.core.sample import Picture, PictureTarget, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS, images
from visionllm.metrics.images import psnr, ssim


def flat(value: int, size: tuple[int, int] = (16, 12)) -> np.ndarray:
    return np.full((size[1], size[0], 3), value, np.uint8)


def test_psnr_by_hand() -> None:
    assert psnr(flat(10), flat(15)) == pytest.approx(20 * math.log10(255 / 5))
    half = flat(10)
    half[:6] = 15
    assert psnr(half, flat(10)) == pytest.approx(20 * math.log10(255 / 5) + 10 * math.log10(2))
    assert psnr(flat(3), flat(3)) == math.inf


def test_ssim_by_hand() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    assert ssim(noise, noise) == pytest.approx(1)
    # Nothing varies: only the means count.
    c1 = (0.01 * 255) ** 2
    assert ssim(flat(100), flat(50)) == pytest.approx((2 * 100 * 50 + c1) / (100**2 + 50**2 + c1))
    # The mirror image of noise around its mean: every window agrees in its mean at best and in nothing else.
    assert ssim(noise, 255 - noise) < 0


def ssim_of_windows(one: np.ndarray, other: np.ndarray) -> float:
    """Of one channel, window by window, as Wang et al. 2004 write it."""
    bell = np.exp(-np.square(np.arange(11) - 5) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for y, x in np.ndindex(one.shape[0] - 10, one.shape[1] - 10):
        a, b = (values[y : y + 11, x : x + 11].astype(float) for values in (one, other))
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        both = (weights * (a - mean_a) * (b - mean_b)).sum()
        light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        found.append(light * (2 * both + c2) / (var_a + var_b + c2))
    return float(np.mean(found))


def test_ssim_by_its_definition() -> None:
    """Of colours, which is the mean of their channels, and of brightness alone."""
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (20, 26, 3)).astype(np.uint8)
    other = np.clip(one + rng.normal(0, 30, one.shape), 0, 255).astype(np.uint8)
    channels = [ssim_of_windows(one[..., i], other[..., i]) for i in range(3)]
    assert ssim(one, other) == pytest.approx(np.mean(channels), abs=1e-9)
    assert ssim(one[..., :1], other[..., :1]) == pytest.approx(channels[0], abs=1e-9)


def made(phrase: str, pixels: np.ndarray) -> LinkResult:
    size = (pixels.shape[1], pixels.shape[0])
    recipe = Recipe(
        task="generation", phrase=phrase, prompt=None, decoder="generation", options={}, place=0, size=size, model=None
    )
    meta = LinkMeta(sample=0, turn=0, task="generation", token="[GEN]", phrase=phrase)
    result = Images(pictures=(Picture(pixels=pixels),), recipes=(recipe,))
    return LinkResult(meta=meta, decoder="generation", result=result)


def test_made_pictures_against_wanted_ones() -> None:
    metric = METRICS["images"]([])
    wanted = (Picture(pixels=flat(10)), Picture(pixels=flat(20)), Picture(pixels=flat(30)))
    turn = Turn(task="generation", phrases=("a", "b", "c"), target=PictureTarget(pictures=wanted))
    # One off by five, one equal but twice as large, one not made.
    links = (made("a", flat(15)), made("b", flat(20, (32, 24))))
    metric.add(turn, Answer(text="", links=links), key=0)
    report = metric.compute()
    assert report["made"] == pytest.approx(2 / 3)
    assert report["phrases"] == 3
    assert report["PSNR"] == pytest.approx((20 * math.log10(255 / 5) + 60) / 2)
    assert 0.9 < report["SSIM"] < 1
    empty = METRICS["images"]([])
    empty.add(turn, Answer(text=""), key=0)
    assert empty.compute()["made"] == 0
    assert empty.compute()["PSNR"] is None


def test_the_background_of_an_edit_counts_by_itself() -> None:
    """The change is wrong, all else is off by five; of a change of everything there is no background."""
    changed = np.zeros((12, 16), bool)
    changed[:6] = True
    found = flat(10)
    found[:6] = 200
    wanted = Picture(pixels=flat(15))
    for mask, expected in ((changed, 20 * math.log10(255 / 5)), (np.ones((12, 16), bool), None)):
        metric = METRICS["images"]([])
        target = PictureTarget(pictures=(wanted,), changed=(Mask.of(mask),))
        metric.add(Turn(task="generation", phrases=("a",), target=target),
                   Answer(text="", links=(made("a", found),)), key=0)  # fmt: skip
        report = metric.compute()
        assert report["background_PSNR"] == (None if expected is None else pytest.approx(expected))
        assert report["PSNR"] < 10


def test_perceived_distance_where_its_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(torch.nn.Module):
        """Tells how far apart two pictures in [-1, 1] are, and half as far."""

        def __init__(self, **_: object) -> None:
            super().__init__()

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            assert one.shape == other.shape == (1, 3, 31, 40)  # AlexNet reads no less
            return (one - other).abs().mean() / 2

    fine, small = (40, 31), (40, 30)
    for package, size, wanted in ((None, fine, None), (SimpleNamespace(LPIPS=Half), fine, 5 / 255),
                                  (SimpleNamespace(LPIPS=Half), small, None)):  # fmt: skip
        target = PictureTarget(pictures=(Picture(pixels=flat(10, size)),))
        turn = Turn(task="generation", phrases=("a",), target=target)
        images._lpips.cache_clear()
        monkeypatch.setitem(sys.modules, "lpips", package)
        metric = METRICS["images"]([])
        metric.add(turn, Answer(text="", links=(made("a", flat(15, size)),)), key=0)
        assert metric.compute().get("LPIPS") == (None if wanted is None else pytest.approx(wanted, rel=1e-4))
    images._lpips.cache_clear()
