"""How near pictures that were made come to those that should have been.

H x W = pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.sample import Picture, Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval

# Of the windows and constants of Wang et al. 2004, "Image quality assessment: from error visibility to structural
# similarity".
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03
# Of a smaller picture its pooling leaves nothing.
_ALEXNET = 31


def psnr(one_HW3: np.ndarray, other_HW3: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures, dB; infinite where they are equal."""
    lost = float(np.square(one_HW3.astype(np.float64) - other_HW3.astype(np.float64)).mean())
    return float("inf") if lost == 0 else float(10 * np.log10(255.0**2 / lost))


def ssim(one_HW3: np.ndarray, other_HW3: np.ndarray) -> float:
    """Structural similarity of two uint8 pictures of at least 11 x 11 pixels, mean over pixels and channels."""
    a, b = one_HW3.astype(np.float64), other_HW3.astype(np.float64)

    def local(values: np.ndarray) -> np.ndarray:
        half = _WINDOW // 2
        return cv2.GaussianBlur(values, (_WINDOW, _WINDOW), _SIGMA)[half:-half, half:-half]

    mean_a, mean_b = local(a), local(b)
    var_a, var_b, both = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    return float(
        (((2 * mean_a * mean_b + c1) * (2 * both + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()
    )


def lpips(one_HW3: np.ndarray, other_HW3: np.ndarray) -> float | None:
    """Distance of two uint8 pictures as people perceive it (Zhang et al. 2018, "The unreasonable effectiveness of deep
    features"), by the ``lpips`` package; None where it, or the features it downloads, cannot be had, and of pictures
    smaller than its network reads (31 pixels)."""
    network = _lpips()
    if network is None or min(one_HW3.shape[:2]) < _ALEXNET:
        return None
    import torch

    tensors = [torch.from_numpy(one).permute(2, 0, 1)[None].float() / 127.5 - 1 for one in (one_HW3, other_HW3)]
    with torch.no_grad():
        return float(network(*tensors))


@cache
def _lpips() -> Any:
    try:
        import lpips as package  # type: ignore[import-not-found]

        return package.LPIPS(net="alex", verbose=False)
    except (ImportError, OSError):  # its features are a download
        return None


@METRICS.register("images")
class ImageMetric:
    """Pictures against those they should have become, at the size of these; of an edit the background by itself, which
    should have stayed as it was. LPIPS (Zhang et al. 2018) where the ``lpips`` package is installed."""

    def __init__(self, categories: Sequence[str] = (), *, threshold: float | None = None) -> None:
        self._asked = 0
        self._values: dict[str, dict[Hashable, list[float]]] = {
            name: defaultdict(list) for name in ("PSNR", "SSIM", "background_PSNR", "LPIPS")
        }

    def add(self, turn: Turn, answer: Answer, *, key: Any) -> None:
        made = answer.results.get(turn.task) if turn.task else None
        self._asked += len(turn.phrases)
        changed = turn.target.changed or [None] * len(turn.phrases)
        for phrase, truth, mask in zip(turn.phrases, turn.target.pictures, changed, strict=True):
            found = None if made is None else next(iter(made.of(phrase)), None)
            if found is None:
                continue
            pixels = _sized(found, truth.size)
            # Equal to the last bit is as good as it gets in 8 bits; a mean of infinities says nothing.
            self._values["PSNR"][key].append(min(psnr(pixels, truth.pixels), 60.0))
            if mask is not None and 0 < mask.area < truth.size[0] * truth.size[1]:
                still = ~mask.dense()
                score = psnr(pixels[still][None], truth.pixels[still][None])
                self._values["background_PSNR"][key].append(min(score, 60.0))
            if min(truth.size) >= _WINDOW:
                self._values["SSIM"][key].append(ssim(pixels, truth.pixels))
            perceived = lpips(pixels, truth.pixels)
            if perceived is not None:
                self._values["LPIPS"][key].append(perceived)

    def compute(self) -> dict[str, Any]:
        """Mean ``PSNR`` (dB, at most 60), ``SSIM`` and ``background_PSNR`` of the pictures that were made, ``LPIPS``
        where it can be had, their 95 % intervals, ``made`` (share of the phrases that became a picture), number of
        ``phrases``."""
        report: dict[str, Any] = {}
        for name, by_key in self._values.items():
            values = [value for own in by_key.values() for value in own]
            if values or name != "LPIPS":
                report[name] = float(np.mean(values)) if values else None
                report[f"{name}_interval"] = interval(list(by_key.values()))
        made = sum(len(own) for own in self._values["PSNR"].values())
        return report | {"made": made / self._asked if self._asked else None, "phrases": self._asked}


def _sized(picture: Picture, size: tuple[int, int]) -> np.ndarray:
    if picture.size == size:
        return picture.pixels
    less = picture.size[0] > size[0]
    return np.asarray(cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA if less else cv2.INTER_CUBIC))
