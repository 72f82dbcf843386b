"""What a picture that was made larger gains over a bicubic enlargement.

H x W = pixels of the true picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import cv2
import numpy as np

from visionllm.core.answer import Answer
from visionllm.core.sample import Turn
from visionllm.metrics import METRICS
from visionllm.metrics.bootstrap import interval
from visionllm.metrics.images import lpips, psnr, ssim

# Pixels a picture may be moved by, in each direction, and left out along the edges.
_FARTHEST, _EDGE = 2, 4


@METRICS.register("sharpness")
class SharpnessMetric:
    """PSNR and SSIM of brightness (Y of BT.601), each picture after its best global shift, in-bounds pixels only: two
    lenses never look at quite the same place. LPIPS (Zhang et al. 2018) where the ``lpips`` package is installed."""

    def __init__(self, categories: Sequence[str] = (), *, threshold: float | None = None) -> None:
        self._asked = 0
        self._values: dict[str, dict[Hashable, list[float]]] = {
            name: defaultdict(list) for name in ("PSNR", "SSIM", "bicubic_PSNR", "bicubic_SSIM", "gain", "LPIPS")
        }

    def add(self, turn: Turn, answer: Answer, *, key: Any) -> None:
        made = answer.results.get(turn.task) if turn.task else None
        self._asked += len(turn.phrases)
        for phrase, truth in zip(turn.phrases, turn.target.pictures, strict=True):
            found = None if made is None else next(iter(made.of(phrase)), None)
            if found is None or not answer.pictures:
                continue
            plain = cv2.resize(answer.pictures[0].pixels, truth.size, interpolation=cv2.INTER_CUBIC)
            own = cv2.resize(found.pixels, truth.size, interpolation=cv2.INTER_CUBIC)
            scores = []
            for name, pixels in (("", own), ("bicubic_", plain)):
                moved, still = best_shift(brightness(pixels), brightness(truth.pixels))
                scores.append(min(psnr(moved, still), 60.0))
                self._values[f"{name}PSNR"][key].append(scores[-1])
                self._values[f"{name}SSIM"][key].append(ssim(moved[..., None], still[..., None]))
            self._values["gain"][key].append(scores[0] - scores[1])
            perceived = lpips(own, truth.pixels)
            if perceived is not None:
                self._values["LPIPS"][key].append(perceived)

    def compute(self) -> dict[str, Any]:
        """Mean ``PSNR`` (dB) and ``SSIM``, the same of a bicubic enlargement, ``gain`` over it in dB, ``LPIPS`` where
        it can be had, their 95 % intervals, ``made`` (share of the phrases), number of ``phrases``."""
        report: dict[str, Any] = {}
        for name, by_key in self._values.items():
            values = [value for own in by_key.values() for value in own]
            if values or name != "LPIPS":
                report[name] = float(np.mean(values)) if values else None
                report[f"{name}_interval"] = interval(list(by_key.values()))
        made = sum(len(own) for own in self._values["PSNR"].values())
        return report | {"made": made / self._asked if self._asked else None, "phrases": self._asked}


def brightness(pixels_HW3: np.ndarray) -> np.ndarray:
    """(H, W) float64: Y of BT.601 in [16, 235], as super-resolution is measured by."""
    return np.asarray(16 + pixels_HW3.astype(np.float64) @ (65.481, 128.553, 24.966) / 255)


def best_shift(made_HW: np.ndarray, truth_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is inside both of a picture, moved by the half pixels that bring it nearest to the true one, and of that.

    Args:
        made_HW, truth_HW: float, of one size.
    """
    height, width = truth_HW.shape
    still = truth_HW[_EDGE : height - _EDGE, _EDGE : width - _EDGE]

    def moved(dx: float, dy: float) -> np.ndarray:
        matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
        whole = cv2.warpAffine(made_HW, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(whole[_EDGE : height - _EDGE, _EDGE : width - _EDGE])

    def lost(shift: tuple[float, float]) -> float:
        return float(np.square(moved(*shift) - still).mean())

    steps = range(-_FARTHEST, _FARTHEST + 1)
    # Nothing moves where nothing is gained.
    x, y = min(((dx, dy) for dx in steps for dy in steps), key=lambda one: (lost(one), abs(one[0]) + abs(one[1])))
    around = [(x + dx / 2, y + dy / 2) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    return moved(*min(around, key=lambda one: (lost(one), abs(one[0]) + abs(one[1])))), still
