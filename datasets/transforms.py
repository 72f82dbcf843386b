"""Training augmentation: a pure function of a sample and a random generator.

Geometry acts on pictures and targets at once, before the sample is rendered to text. A sample whose words speak of
sides is never mirrored.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import cv2
import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from visionllm.core.arrays import move_all, object_array
from visionllm.core.config import Config
from visionllm.core.geometry import Geometry
from visionllm.core.masks import Mask
from visionllm.core.poses import Pose
from visionllm.core.sample import Edit, Picture, Record, Sample

_SIDES = re.compile(r"\b(left|right|leftmost|rightmost|lefthand|righthand|clockwise|west|east)\b", re.IGNORECASE)


class Augment(Config):
    """How strongly training samples are changed; every strength at zero leaves them alone."""

    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (),
        description="(width, height) of the output; of several, the one of nearest shape, of these the one of nearest "
        "size; none keeps the crop's",
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of swapping left and right")
    crop: float = Field(0.7, ge=0, le=1, description="probability of cutting out a part")
    scale: tuple[PositiveFloat, PositiveFloat] = Field((0.35, 1.0), description="area of the part, of the whole")
    aspect: PositiveFloat = Field(1.25, ge=1, description="largest change of the width to height ratio")
    out: float = Field(0.15, ge=0, le=1, description="probability of zooming out instead of cropping")
    light: float = Field(0.8, ge=0, le=1, description="probability of each change of light and colour")
    brightness: float = Field(0.2, ge=0, description="of the full range")
    contrast: float = Field(0.3, ge=0, lt=1)
    saturation: float = Field(0.4, ge=0, le=1)
    hue: float = Field(8.0, ge=0, le=180, description="degrees")
    gamma: float = Field(0.25, ge=0, lt=1)
    blur: float = Field(0.1, ge=0, le=1, description="probability")
    noise: float = Field(0.15, ge=0, le=1, description="probability")
    mosaic: float = Field(0.0, ge=0, le=1, description="probability of making one picture of four of the same data set")

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] <= value[1] <= 1:
            raise ValueError("the smaller comes first and neither is above 1")
        return value

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The changed sample; samples of no or several pictures keep their geometry, those that become other pictures
        their light."""
        if len(sample.pictures) == 1:
            whole = any(turn.whole for turn in sample.turns)
            size = sample.pictures[0].size
            geometry = self.draw_geometry(size, rng, flip=not speaks_of_sides(sample), crop=not whole)
            sample = transformed(sample, geometry)
        if any(getattr(turn.target, "pixelwise", False) for turn in sample.turns):
            return sample
        pictures = [replace(picture, pixels=self.relight(picture.pixels, rng)) for picture in sample.pictures]
        return replace(sample, pictures=tuple(pictures))

    def draw_geometry(
        self, size: tuple[int, int], rng: np.random.Generator, *, flip: bool = True, crop: bool = True
    ) -> Geometry:
        """A crop or a zoom out, a flip, and the resize to the output; ``flip`` and ``crop`` may be forbidden."""
        # The number of draws does not depend on what they decide: a flip forbidden here changes nothing after it.
        kind, mirrored = rng.random(), rng.random() < self.flip
        area, ratio, left, top = rng.uniform(*self.scale), rng.uniform(-1, 1), rng.random(), rng.random()
        box_xyxy = (0, 0, *size)
        if kind < self.crop and crop:
            box_xyxy = _window(size, area, self.aspect**ratio, (left, top))
        elif self.crop <= kind < self.crop + self.out * (1 - self.crop):
            box_xyxy = _window(size, 1 + area, self.aspect**ratio, (left, top))
        geometry = Geometry.crop(size, box_xyxy)
        if mirrored and flip:
            geometry = geometry.then(Geometry.hflip(geometry.output_size))
        if not self.sizes:
            return geometry
        width, height = geometry.output_size

        def far(size: tuple[int, int]) -> tuple[float, float]:
            shape, scale = (size[0] / size[1]) / (width / height), size[0] * size[1] / (width * height)
            return round(abs(math.log(shape)), 6), abs(math.log(scale))

        nearest = min(self.sizes, key=far)
        return geometry.then(Geometry.resize(geometry.output_size, nearest))

    def relight(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(H, W, 3) uint8 -> the same: light, colour, blur, noise."""
        happens = rng.random(6)
        strength = rng.uniform(-1, 1, 6)
        on = happens[:3] < self.light
        if on[0]:
            pixels = cv2.LUT(pixels, self._curve(strength[0], strength[1], strength[2]))
        if on[1] and (self.saturation or self.hue):
            pixels = _recolour(pixels, 1 + self.saturation * strength[3], math.radians(self.hue) * strength[4])
        if happens[3] < self.blur:
            pixels = cv2.GaussianBlur(pixels, (0, 0), 0.4 + 0.8 * abs(strength[5]))
        if happens[4] < self.noise:
            pixels = _noisy(pixels, 2 + 8 * abs(strength[5]), rng)
        return pixels

    def _curve(self, brightness: float, contrast: float, gamma: float) -> np.ndarray:
        """(256,) uint8: gamma, then contrast around the middle, then brightness."""
        values = np.linspace(0, 1, 256) ** (1 + self.gamma * gamma)
        values = (values - 0.5) * (1 + self.contrast * contrast) + 0.5 + self.brightness * brightness
        return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)


def transformed(sample: Sample, geometry: Geometry) -> Sample:
    """Carry the pictures and all targets of a sample through one geometry."""
    pictures = tuple(replace(p, pixels=geometry.picture(p.pixels, padding=_GRAY)) for p in sample.pictures)
    turns = tuple(
        replace(
            turn,
            target=None if turn.target is None else turn.target.transform(geometry),
            regions=tuple(region.moved(geometry) for region in turn.regions),
        )
        for turn in sample.turns
    )
    things = tuple(known.transform(geometry) for known in sample.things)
    return replace(sample, pictures=pictures, turns=turns, things=things)


def speaks_of_sides(sample: Sample) -> bool:
    """Whether a word of the sample would be wrong in a mirror."""
    words = [word for turn in sample.turns for word in (*turn.phrases, turn.question or "", turn.words or "")]
    return any(_SIDES.search(word.replace("-", " ").replace("_", " ")) for word in words)


def shrunk(record: Record, longest: int) -> Record:
    """The record at most ``longest`` pixels long; ``extra`` is left out, as it no longer fits."""
    size = record.picture.size
    if max(size) <= longest:
        return record
    scale = longest / max(size)
    geometry = Geometry.resize(size, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
    return replace(
        record,
        picture=replace(record.picture, pixels=geometry.picture(record.picture.pixels)),
        boxes_xyxy=geometry.boxes_exact(record.boxes_xyxy).reshape(-1, 4),
        masks=None if record.masks is None else move_all(record.masks, geometry),
        poses=None if record.poses is None else move_all(record.poses, geometry),
        edits=tuple(_shrunk_edit(edit, geometry) for edit in record.edits),
        extra={},
    )


def _shrunk_edit(edit: Edit, geometry: Geometry) -> Edit:
    before, after = (replace(picture, pixels=geometry.picture(picture.pixels)) for picture in (edit.before, edit.after))
    return edit._replace(before=before, after=after, changed=edit.changed.moved(geometry))


def mosaic(records: list[Record], rng: np.random.Generator) -> Record:
    """One record of the first one's size made of four of the same data set (Bochkovskiy et al. 2020, YOLOv4).

    Each fills a quadrant around a random centre, at a random scale between half and its full size.
    """
    assert len(records) == 4
    width, height = records[0].picture.size
    centre_x, centre_y = (int(side * rng.uniform(0.35, 0.65)) for side in (width, height))
    canvas = np.empty((height, width, 3), np.uint8)
    boxes_xyxy, labels, crowd = [], [], []
    masks: list[Mask | None] = []
    poses: list[Pose | None] = []
    for number, record in enumerate(records):
        x1, x2 = ((0, centre_x), (centre_x, width))[number % 2]
        y1, y2 = ((0, centre_y), (centre_y, height))[number // 2]
        geometry = _quadrant(record.picture.size, (x2 - x1, y2 - y1), rng)
        canvas[y1:y2, x1:x2] = geometry.picture(record.picture.pixels, padding=_GRAY)
        moved, kept = geometry.boxes(record.boxes_xyxy)
        boxes_xyxy.append(moved[kept] + np.array([x1, y1, x1, y1], np.float32))
        labels.append(record.labels[kept])
        crowd.append(record.crowd[kept])
        # In two steps: one geometry of both would not cut at the edge of the quadrant.
        place = Geometry.crop(geometry.output_size, (-x1, -y1, width - x1, height - y1))
        if record.masks is not None:
            masks += move_all(move_all(record.masks[kept], geometry), place).tolist()
        if record.poses is not None:
            poses += move_all(move_all(record.poses[kept], geometry), place).tolist()
    return replace(
        records[0],
        picture=Picture(pixels=canvas, name=f"mosaic of {', '.join(record.picture.name for record in records)}"),
        boxes_xyxy=np.concatenate(boxes_xyxy).astype(np.float32),
        labels=np.concatenate(labels),
        crowd=np.concatenate(crowd),
        masks=None if records[0].masks is None else object_array(masks),
        poses=None if records[0].poses is None else object_array(poses),
        expressions=(),
        captions=(),
        grounded=(),
        questions=(),
        edits=(),
        extra={},
    )


_GRAY = (114, 114, 114)
# To brightness and two colour axes, and back (NTSC): hue is a rotation there, saturation a factor.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def _window(size: tuple[int, int], area: float, ratio: float, place: tuple[float, float]) -> tuple[int, int, int, int]:
    """A box of ``area`` times the picture's, placed at random; larger than the picture when ``area`` is above one."""
    width = max(1, round(size[0] * math.sqrt(area * ratio)))
    height = max(1, round(size[1] * math.sqrt(area / ratio)))
    if area <= 1:
        width, height = min(size[0], width), min(size[1], height)
    x, y = round((size[0] - width) * place[0]), round((size[1] - height) * place[1])
    return x, y, x + width, y + height


def _quadrant(size: tuple[int, int], quadrant: tuple[int, int], rng: np.random.Generator) -> Geometry:
    """A random part of the picture that fills the quadrant without a change of aspect."""
    cover = max(quadrant[0] / size[0], quadrant[1] / size[1])
    scale = max(cover, rng.uniform(0.5, 1.0))
    window = (min(size[0], round(quadrant[0] / scale)), min(size[1], round(quadrant[1] / scale)))
    x, y = (int(rng.integers(side - part + 1)) for side, part in zip(size, window, strict=True))
    return Geometry.crop(size, (x, y, x + max(1, window[0]), y + max(1, window[1]))).then(
        Geometry.resize((max(1, window[0]), max(1, window[1])), quadrant)
    )


def _recolour(pixels: np.ndarray, saturation: float, angle: float) -> np.ndarray:
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return cv2.transform(pixels, np.linalg.inv(_YIQ) @ turn @ _YIQ)


def _noisy(pixels: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise of standard deviation ``sigma``, near enough to normal: the sum of the nibbles of random bytes."""
    grain = np.frombuffer(rng.bytes(pixels.size), np.uint8).reshape(pixels.shape)
    steps = np.arange(256)
    # Two nibbles, each uniform on 0..15: a triangular distribution of variance 2 * (256 - 1) / 12.
    values = ((steps >> 4) + (steps & 15) - 15) * sigma / math.sqrt(2 * 255 / 12)
    rise, fall = (np.clip(side + 0.5, 0, 255).astype(np.uint8) for side in (values, -values))
    return cv2.subtract(cv2.add(pixels, cv2.LUT(grain, rise)), cv2.LUT(grain, fall))
