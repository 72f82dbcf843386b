"""Nameable colours, and the noise and material textures that are made once and cropped at random."""

from __future__ import annotations

import random
from functools import cache

import cv2
import numpy as np

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (200, 34, 34),
    "orange": (236, 130, 28),
    "yellow": (238, 208, 50),
    "green": (48, 142, 62),
    "blue": (42, 84, 190),
    "purple": (120, 58, 158),
    "pink": (236, 138, 178),
    "brown": (116, 72, 40),
    "black": (28, 28, 32),
    "white": (234, 234, 232),
    "gray": (130, 133, 138),
}

SKIN: tuple[RGB, ...] = ((240, 205, 178), (222, 178, 142), (190, 138, 100), (142, 96, 66), (96, 64, 46))
HAIR: tuple[RGB, ...] = ((30, 26, 24), (72, 46, 28), (128, 86, 44), (206, 170, 100), (150, 148, 146))


def jitter(rng: random.Random, rgb: RGB, spread: float = 12.0) -> RGB:
    """A colour near rgb: a common change of brightness and a small one per channel."""
    gain, random_ = rng.uniform(-spread, spread), rng.random
    r = rgb[0] + gain + (random_() - 0.5) * spread
    g = rgb[1] + gain + (random_() - 0.5) * spread
    b = rgb[2] + gain + (random_() - 0.5) * spread
    return _held(r), _held(g), _held(b)


def _held(channel: float) -> int:
    return 6 if channel < 6 else 250 if channel > 250 else int(channel)


def named(rng: random.Random, name: str) -> RGB:
    return jitter(rng, COLOURS[name])


def shade(rgb: RGB, gain: float) -> RGB:
    r, g, b = int(rgb[0] * gain), int(rgb[1] * gain), int(rgb[2] * gain)
    return (r if r < 255 else 255, g if g < 255 else 255, b if b < 255 else 255)


def mix(rgb: RGB, other: RGB, share: float) -> RGB:
    """share = 0 gives rgb, 1 gives other."""
    keep = 1.0 - share
    return (
        int(rgb[0] * keep + other[0] * share),
        int(rgb[1] * keep + other[1] * share),
        int(rgb[2] * keep + other[2] * share),
    )


@cache
def fine_noise(width: int, height: int) -> np.ndarray:
    """(2H, 2W, 3) uint8 around 128: sensor grain, cropped at a random place for every picture."""
    generator = np.random.Generator(np.random.PCG64(11))
    grain = generator.normal(128.0, 22.0, (2 * height, 2 * width, 1)) + generator.normal(
        0.0, 12.0, (2 * height, 2 * width, 3)
    )
    return np.clip(grain, 0, 255).astype(np.uint8)


def _cloud(generator: np.random.Generator, width: int, height: int, octaves: tuple[int, ...]) -> np.ndarray:
    total = np.zeros((height, width), np.float32)
    for cells in octaves:
        coarse = generator.normal(0.0, 1.0, (max(2, cells * height // width + 2), cells)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return total / max(1e-6, float(np.abs(total).max()))


@cache
def texture(kind: str, width: int, height: int) -> np.ndarray:
    """(2H, 2W) uint8 around 128, to be added to a plain colour; the pattern scales with the picture."""
    wide, tall = 2 * width, 2 * height
    generator = np.random.Generator(np.random.PCG64(sum(map(ord, kind))))
    unit = width / 320.0
    if kind == "asphalt":
        field = 14 * _cloud(generator, wide, tall, (12, 40)) + 9 * _cloud(generator, wide, tall, (320,))
    elif kind == "grass":
        field = 22 * _cloud(generator, wide, tall, (20, 80)) + 22 * _cloud(generator, wide, tall, (420,))
    elif kind == "wood":
        y = np.arange(tall, dtype=np.float32)[:, None] / unit
        bend = 9 * _cloud(generator, wide, tall, (6, 14))
        plank = ((y % 36) < 1.4) * -38.0
        field = 14 * np.sin((y + bend) * 0.9) + 10 * np.sin((y + 2 * bend) * 0.31) + plank
    elif kind == "cloth":
        y, x = np.mgrid[0:tall, 0:wide].astype(np.float32) / unit
        field = 12 * ((x % 24 < 12) * 1.0 + (y % 24 < 12) * 1.0 - 1.0)
    elif kind == "tiles":
        y, x = np.mgrid[0:tall, 0:wide].astype(np.float32) / unit
        field = -30.0 * ((x % 30 < 1.5) | (y % 30 < 1.5)) + 8 * _cloud(generator, wide, tall, (30,))
    elif kind == "bricks":
        y, x = np.mgrid[0:tall, 0:wide].astype(np.float32) / unit
        course = np.floor(y / 6)
        field = 26.0 * ((y % 6 < 1) | ((x + 7 * (course % 2)) % 14 < 1)) + 10 * _cloud(generator, wide, tall, (60, 200))
    elif kind == "stripes":
        x = np.arange(wide, dtype=np.float32)[None, :] / unit
        field = np.broadcast_to(12.0 * np.sign(np.sin(x * 0.35)), (tall, wide))
    elif kind == "sky":
        field = 30 * np.maximum(0.0, _cloud(generator, wide, tall, (5, 9, 20)))
    else:
        assert kind == "plain", kind
        field = 8 * _cloud(generator, wide, tall, (6, 30))
    return np.clip(128.0 + field, 0, 255).astype(np.uint8)
