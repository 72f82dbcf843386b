"""What the depth decoder gives back."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from visionllm.core.answer import RESULT_TYPES, save_as
from visionllm.core.sample import Picture

_GRID = 8


@RESULT_TYPES.register("depths")
@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Depths:
    """How near everything in a picture is, one map a phrase.

    Args:
        phrases: what was asked.
        maps: (H, W) float32 in [0, 1] at the size of the picture: 1 is nearest, 0 farthest. Order is what counts:
            twice the value is not half the way.
        scores: (N,) float32 ones.
    """

    phrases: tuple[str, ...] = ()
    maps: tuple[np.ndarray, ...] = ()
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    picture: Picture | None = field(default=None, repr=False)

    @classmethod
    def merge(cls, results: Sequence[Depths], picture: Picture | None = None) -> Depths:
        return cls(
            phrases=tuple(phrase for one in results for phrase in one.phrases),
            maps=tuple(near for one in results for near in one.maps),
            scores=np.ones(sum(len(one.maps) for one in results), np.float32),
            picture=results[0].picture if results else picture,
        )

    def statements(self) -> list[str]:
        return [
            f"{phrase}: depth of {near.shape[1]} x {near.shape[0]} pixels"
            for phrase, near in zip(self.phrases, self.maps, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Each map as a PNG file of 16 bits in base 64, and as the means of an 8 x 8 grid."""
        return {
            "depths": [
                {
                    "phrase": phrase,
                    "grid": cv2.resize(near, (_GRID, _GRID), interpolation=cv2.INTER_AREA).round(5).tolist(),
                    "png": b64encode(
                        cv2.imencode(".png", (near * 65535).round().astype(np.uint16))[1].tobytes()
                    ).decode(),
                }
                for phrase, near in zip(self.phrases, self.maps, strict=True)
            ]
        }

    def draw(self, picture: Picture | Image.Image | None = None) -> Image.Image:
        """The first map in colours, from dark (far) to light (near); the picture itself where there is none."""
        if self.maps:
            colours = cv2.applyColorMap((self.maps[0] * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
            return Image.fromarray(np.ascontiguousarray(colours[..., ::-1]))
        shown = self.picture if picture is None else picture
        return Image.fromarray(shown.pixels) if isinstance(shown, Picture) else shown

    def save(self, path: str | Path) -> None:
        save_as(path, values=self.to_dict, drawing=self.draw)
