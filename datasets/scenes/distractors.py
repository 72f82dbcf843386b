"""Upright things without a name: what a detector must not take for an object."""

from __future__ import annotations

import math
import random

import numpy as np

from .canvas import OCTAGON, Sprite, box
from .palette import COLOURS, jitter, mix, named, shade

KINDS = ("bollard", "mast", "box", "bush", "poster", "rock")


def draw(sprite: Sprite, rng: random.Random, kinds: tuple[str, ...] = KINDS) -> str:
    """Draw one at the sprite's foot; returns the stuff its pixels are."""
    kind = rng.choice(kinds)
    if kind == "bollard":
        colour = jitter(rng, rng.choice(((60, 60, 64), (150, 150, 150), (170, 140, 60))))
        sprite.fill(box(-0.09, 0, 0.09, 0.8), colour)
        sprite.fill(box(-0.09, 0.6, 0.09, 0.7), mix(colour, (240, 240, 240), 0.7))
        return "pole"
    if kind == "mast":
        colour = jitter(rng, (112, 98, 86))
        height = rng.uniform(5.0, 9.0)
        sprite.fill([(-0.11, 0), (0.11, 0), (0.08, height), (-0.08, height)], colour)
        if rng.random() < 0.6:
            sprite.fill(box(-0.9, height - 0.7, 0.9, height - 0.55), shade(colour, 0.8))
        return "pole"
    if kind == "box":
        colour = jitter(rng, rng.choice(((120, 126, 120), (150, 148, 140), (96, 104, 112))))
        width, height = rng.uniform(0.3, 0.6), rng.uniform(0.8, 1.5)
        sprite.fill(box(-width, 0, width, height), colour)
        sprite.fill(box(-width, height - 0.08, width, height), shade(colour, 0.75))
        sprite.fill(box(-0.02, 0.05, 0.02, height - 0.1), shade(colour, 0.7))
        return "wall"
    if kind == "poster":
        colour = named(rng, rng.choice(tuple(COLOURS)))
        sprite.fill(box(-0.7, 0.2, 0.7, 2.3), (70, 72, 76))
        sprite.fill(box(-0.6, 0.4, 0.6, 2.2), mix(colour, (220, 220, 215), 0.4))
        for _ in range(3):
            x, y = rng.uniform(-0.35, 0.35), rng.uniform(0.7, 1.9)
            sprite.fill(
                OCTAGON * (rng.uniform(0.1, 0.25), rng.uniform(0.08, 0.25)) + (x, y),
                named(rng, rng.choice(tuple(COLOURS))),
            )
        return "wall"
    if kind == "bush":
        leaf = jitter(rng, (62, 96, 50))
        reach, tall = rng.uniform(0.5, 1.1), rng.uniform(0.35, 0.6)
        angle = np.linspace(0.15, math.pi - 0.15, 7)
        middles = np.stack([reach * np.cos(angle), tall * (0.4 + 0.8 * np.sin(angle))], 1)
        sprite.fill(np.concatenate([middles, [(-reach, 0.0), (reach, 0.0)]]), shade(leaf, 0.7))
        for gain, size in ((0.7, 0.34), (0.9, 0.22)):
            blobs = OCTAGON * (size, size) + (middles * (1.0, 0.9 if gain < 0.8 else 0.75))[:, None]
            sprite.fill_each(blobs, [shade(leaf, gain * rng.uniform(0.92, 1.08)) for _ in range(7)])
        return "vegetation"
    if kind == "bale":
        straw = jitter(rng, (196, 168, 96))
        sprite.fill(box(-0.8, 0, 0.8, 0.8), straw)
        sprite.fill_all([box(-0.8, y, 0.8, y + 0.05) for y in (0.2, 0.4, 0.6)], shade(straw, 0.8))
        return "grass"
    assert kind == "rock", kind
    stone = jitter(rng, (124, 120, 112))
    outline = (
        OCTAGON
        * (rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.5))
        * np.array([[rng.uniform(0.8, 1.15)] for _ in range(8)])
    )
    outline[:, 1] = np.maximum(outline[:, 1] + 0.2, 0.0)
    sprite.fill(outline, stone)
    sprite.fill(outline * (0.5, 0.55) + (-0.08, 0.14), shade(stone, 1.15))
    return "hill"
