"""Pictures of one view through several lenses, in the layout of SR-RAW (Zhang et al. 2019, "Zoom to learn, learn to
zoom"): a folder a scene, pictures ``00001.JPG`` to ``00007.JPG`` from the longest lens to the shortest.

A sample is two of them: the one of the longer lens, and the part of the other that shows the same. They do not lie on
each other: lenses breathe, hands move, and things near and far shift against each other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt

from visionllm.core.config import Config
from visionllm.core.errors import AnnotationError, DatasetError
from visionllm.core.media import load_picture
from visionllm.core.sample import Picture, Record, Source
from visionllm.datasets.formats.reader import Place, Wording, located, register_format

_SUFFIXES = (".jpg", ".jpeg", ".png")
_EXIF, _FOCAL_LENGTH = 0x8769, 0x920A
# Places between two lenses of which the longer shows things about so many times as large.
_APART = {2: 2, 4: 4}


class ZoomSplit(Config):
    """A split of an SR-RAW card: the folder of scenes, below the root."""

    scenes: str
    scale: Literal[2, 4] = Field(2, description="how many times as large the sharp picture is")
    focal_lengths: tuple[PositiveFloat, ...] = Field(
        (240, 150, 100, 70, 50, 35, 24), description="of the pictures of a scene that do not tell their own"
    )
    tile: PositiveInt | None = Field(
        None, description="side of the small pictures in pixels; each pair gives as many as fit; None gives it whole"
    )


@register_format("sr_raw")
class ZoomReader:
    """Every pair of lenses ``scale`` apart, scene by scene, tile by tile."""

    Split: ClassVar[type[Config]] = ZoomSplit
    needs_root: ClassVar[bool] = True
    names: tuple[str, ...] = ()
    wording = Wording(negatives=False)

    def __init__(self, *, dataset: str, folder: Path, split: ZoomSplit) -> None:
        self.dataset, self._folder, self._split = dataset, folder, split
        # (picture of the longer lens, of the shorter, focal lengths of both, tile).
        self._rows: list[tuple[Path, Path, float, tuple[int, int] | None]] = []
        for scene in sorted(path for path in folder.iterdir() if path.is_dir()):
            pictures = sorted(path for path in scene.iterdir() if path.suffix.lower() in _SUFFIXES)
            apart = _APART[split.scale]
            for long, short in zip(pictures, pictures[apart:], strict=False):
                times = self._focal(long, pictures) / self._focal(short, pictures)
                if times < 1:
                    raise AnnotationError(
                        f"{short}: its lens is longer than that of {long.name}; name the pictures of a scene from the "
                        "longest lens to the shortest"
                    )
                self._rows += [(long, short, times, tile) for tile in self._tiles(short, times)]
        if not self._rows:
            raise DatasetError(
                f"{dataset}: {folder} holds no scene with {_APART[split.scale] + 1} pictures; check the split's scenes"
            )

    @classmethod
    def open(cls, split: Any, place: Place) -> ZoomReader:
        return cls(dataset=place.dataset, folder=located(place, "scenes", split.scenes, folder=True), split=split)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Record:
        long, short, times, tile = self._rows[index]
        scale, wide, near = self._split.scale, load_picture(short), load_picture(long)
        size = _seen(wide.size, times)
        x, y = ((whole - part) // 2 for whole, part in zip(wide.size, size, strict=True))
        small = wide.pixels[y : y + size[1], x : x + size[0]]
        large = (size[0] * scale, size[1] * scale)
        way = cv2.INTER_AREA if near.size[0] > large[0] else cv2.INTER_CUBIC
        sharp = cv2.resize(near.pixels, large, interpolation=way)
        if tile is not None:
            side = self._split.tile or 0
            left, top = tile
            small = small[top : top + side, left : left + side]
            sharp = sharp[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        name = f"{long.parent.name}/{long.name}"
        return Record(
            picture=Picture(pixels=np.ascontiguousarray(sharp), name=name), names=(),
            boxes_xyxy=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), crowd=np.zeros(0, bool),
            source=Source(dataset=self.dataset, index=index, file=name),
            smaller=Picture(pixels=np.ascontiguousarray(small), name=f"{short.parent.name}/{short.name}"),
        )  # fmt: skip

    def digest(self) -> str:
        rows = [(str(long.relative_to(self._folder)), short.name, round(times, 4), tile)
                for long, short, times, tile in self._rows]  # fmt: skip
        return hashlib.sha256(f"sr_raw {self._split} {rows}".encode()).hexdigest()

    def report(self) -> str:
        return ""

    def _focal(self, picture: Path, scene: list[Path]) -> float:
        """Millimetres, as the picture tells, or the card."""
        place = scene.index(picture)
        try:
            with Image.open(picture) as image:
                told = float(image.getexif().get_ifd(_EXIF).get(_FOCAL_LENGTH, 0))
        except (OSError, SyntaxError, ValueError, TypeError, ZeroDivisionError, Image.DecompressionBombError):
            raise AnnotationError(f"{picture}: not a picture that can be read; remove its scene, or mend it") from None
        if told > 0:
            return told
        if place >= len(self._split.focal_lengths):
            raise AnnotationError(
                f"{picture}: tells no focal length, and the split's focal_lengths are of {place} pictures; name all"
            )
        return float(self._split.focal_lengths[place])

    def _tiles(self, short: Path, times: float) -> list[tuple[int, int] | None]:
        """Upper left corners in the small picture; None for all of it."""
        side = self._split.tile
        if side is None:
            return [None]
        with Image.open(short) as image:
            width, height = _seen(image.size, times)
        found: list[tuple[int, int] | None] = [
            (x, y) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)
        ]
        if not found:
            raise AnnotationError(
                f"{short}: only {width} x {height} pixels show what the longer lens does; tile is {side}"
            )
        return found


def _seen(size: tuple[int, int], times: float) -> tuple[int, int]:
    """(width, height) of the middle of a picture that a lens so many times as long shows."""
    return max(1, int(size[0] / times)), max(1, int(size[1] / times))
