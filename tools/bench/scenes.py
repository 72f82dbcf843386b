"""How fast one core draws scenes: python tools/bench/scenes.py [--size 320x240] [--world street].

CPU time is what this process used, wall time what passed: on a busy machine only the first says something.
"""

from __future__ import annotations

import argparse
import statistics
import time

import cv2

from visionllm.datasets.scenes import WORLDS, draw_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--world", choices=WORLDS, help="one world only; else each, and the mix a seed chooses")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=100)
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    cv2.setNumThreads(1)
    print(f"{width}x{height}, {asked.rounds} rounds of {asked.pictures} pictures, {cv2.getNumThreads()} OpenCV thread")
    print(f"{'':8}{'CPU ms a picture':>22}{'wall ms a picture':>22}{'pictures / CPU s':>22}")
    for world in (asked.world,) if asked.world else (*WORLDS, None):
        cpu, wall = _measure((width, height), world, asked.rounds, asked.pictures)
        columns = [_low_and_middle(cpu, 2), _low_and_middle(wall, 2), _low_and_middle([1e3 / ms for ms in cpu], 0)]
        print(f"{world or 'mix':8}" + "".join(f"{column:>22}" for column in columns), flush=True)


def _measure(size: tuple[int, int], world: str | None, rounds: int, pictures: int) -> tuple[list[float], list[float]]:
    """Milliseconds of CPU and of wall time a picture, of every round."""
    for seed in range(5):  # textures are made once
        draw_scene(seed, size=size, world=world)
    cpu, wall = [], []
    for round_ in range(rounds):
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        for seed in range(round_ * pictures, (round_ + 1) * pictures):
            draw_scene(seed, size=size, world=world)
        cpu.append((time.process_time() - cpu_start) / pictures * 1e3)
        wall.append((time.perf_counter() - wall_start) / pictures * 1e3)
    return cpu, wall


def _low_and_middle(values: list[float], digits: int) -> str:
    return f"min {min(values):.{digits}f} med {statistics.median(values):.{digits}f}"


if __name__ == "__main__":
    main()
