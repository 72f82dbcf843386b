"""How many scenes one core draws in a second: python tools/bench/scenes.py [--size 320x240] [--world street]."""

from __future__ import annotations

import argparse
import statistics
import time

import cv2

from visionllm.datasets.scenes import WORLDS, draw_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--world", choices=WORLDS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=100)
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    cv2.setNumThreads(1)
    for seed in range(5):  # textures are made once
        draw_scene(seed, size=(width, height), world=asked.world)
    rates = []
    for round_ in range(asked.rounds):
        start = time.perf_counter()
        for seed in range(round_ * asked.pictures, (round_ + 1) * asked.pictures):
            draw_scene(seed, size=(width, height), world=asked.world)
        rates.append(asked.pictures / (time.perf_counter() - start))
    print(
        f"{width}x{height} {asked.world or 'all worlds'}, {cv2.getNumThreads()} OpenCV thread: "
        f"min {min(rates):.0f}, median {statistics.median(rates):.0f} pictures/s "
        f"({asked.rounds} rounds of {asked.pictures})"
    )


if __name__ == "__main__":
    main()
