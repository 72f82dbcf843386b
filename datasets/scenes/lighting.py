"""Time of day and camera: what happens to the finished colours. Shapes never move here."""

from __future__ import annotations

import random

import cv2
import numpy as np

from .palette import fine_noise

# Gain per channel, gamma, and how often: day, dusk, overcast, night, lamp light.
_MOODS: tuple[tuple[tuple[float, float, float], float, float], ...] = (
    ((1.0, 1.0, 1.0), 1.0, 5.0),
    ((1.06, 0.92, 0.80), 1.1, 1.2),
    ((0.88, 0.91, 0.96), 1.0, 2.0),
    ((0.46, 0.50, 0.62), 1.05, 0.8),
    ((0.72, 0.74, 0.84), 1.0, 1.6),
)

DAY, NIGHT = 0, 3  # of the moods


def cast_shadows(image: np.ndarray, shadows: list[np.ndarray], rng: random.Random) -> None:
    """Darken the ground under things, softly."""
    strength = rng.uniform(0.25, 0.5)
    if not shadows:
        return
    height, width = image.shape[:2]
    mask = np.full((height, width), 255, np.uint8)
    for shape in shadows:
        cv2.fillPoly(mask, [shape], int(255 * (1 - strength)), cv2.LINE_8, 4)
    soft = max(3, width // 107) | 1
    # Rows without shadow stay as they are. The blur reaches half its size; the margin keeps its border all light.
    _, y, _, tall = cv2.boundingRect(np.concatenate(shadows))
    top, bottom = max(0, y // 16 - 2 * soft), min(height, (y + tall) // 16 + 2 * soft)
    if top >= bottom:
        return
    dimmed, mask = image[top:bottom], mask[top:bottom]
    cv2.blur(mask, (soft, soft), dst=mask)
    cv2.multiply(dimmed, cv2.cvtColor(mask, cv2.COLOR_GRAY2RGB), dst=dimmed, scale=1.0 / 255.0)


def develop(image: np.ndarray, rng: random.Random, mood: int | None = None, *, calm: bool = False) -> np.ndarray:
    """Mood, a gradient of light, blur, grain, compression; returns a new picture. ``mood`` is ``DAY``, ``NIGHT``, or
    what chance says; a calm picture is taken by day, and by a perfect camera."""
    if calm:
        by_channel = np.arange(256)[:, None] * np.asarray(_MOODS[mood or DAY][0])
        return cv2.LUT(image, np.clip(by_channel, 0, 255).astype(np.uint8)[None])
    drawn = rng.choices(_MOODS, [one[2] for one in _MOODS])[0]
    gains, gamma, _ = drawn if mood is None else _MOODS[mood]
    gain = rng.uniform(0.85, 1.1)
    lift = rng.uniform(-6.0, 10.0)
    ramp = np.linspace(0.0, 1.0, 256)[:, None] ** gamma
    table = np.clip(ramp * np.asarray(gains) * gain * 255.0 + lift, 0, 255).astype(np.uint8)[None]
    if len(set(gains)) == 1:
        table = np.ascontiguousarray(table[..., :1])  # one table for all channels is looked up faster
    out = cv2.LUT(image, table)
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        corners = np.array([[rng.uniform(0.75, 1.0) for _ in range(2)] for _ in range(2)], np.float32) * 255.0
        field = cv2.resize(corners.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
        cv2.multiply(out, cv2.cvtColor(field, cv2.COLOR_GRAY2RGB), dst=out, scale=1.0 / 250.0)
    if rng.random() < 0.25:
        sigma = rng.uniform(0.4, 0.9) * width / 320.0
        out = cv2.GaussianBlur(out, (0, 0), sigma)
    amount = rng.choice((0.0, 0.06, 0.12, 0.26))
    if amount:
        y, x = rng.randrange(height), rng.randrange(width)
        grain = fine_noise(width, height)[y : y + height, x : x + width]
        cv2.addWeighted(out, 1.0, grain, amount, -128.0 * amount, dst=out)
    if rng.random() < 0.2:
        packed = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, rng.randint(45, 85)])[1]
        out = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return out
