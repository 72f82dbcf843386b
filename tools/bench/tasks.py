"""Five tasks asked of one picture: in one batch, and each alone; then a hundred masks drawn on a large picture.

python tools/bench/tasks.py [MODEL] [PICTURE]    (a task that the model has not loaded is left out)
"""

import os
import statistics
import sys
import time

import numpy as np
import torch
from PIL import Image

from visionllm import VisionLLM
from visionllm.core.arrays import object_array
from visionllm.core.instances import Masks
from visionllm.core.masks import Mask

ROUNDS = 7
QUESTIONS = {
    "detection": "detect car, truck, person",
    "segmentation": "segment car, truck, person",
    "pose": "find the pose of person (nose, left wrist, right wrist)",
    "caption": "describe the picture",
    "question": "how many cars are there?",
}


def main(name: str = "", picture: str = "examples/street.jpg") -> None:
    model = VisionLLM.from_pretrained(name or None)
    loaded = {task.name for task in model.tasks}
    asked = {task: words for task, words in QUESTIONS.items() if task in loaded or task in ("caption", "question")}
    calls = {task: lambda words=words: model.ask(picture, words) for task, words in asked.items()}
    calls["all in one batch"] = lambda: model.ask_many([(picture, words) for words in asked.values()])
    print(f"threads {torch.get_num_threads()}, load {os.getloadavg()[0]:.2f}")
    seconds: dict[str, list[float]] = {call: [] for call in calls}
    for round_ in range(ROUNDS + 1):
        for call, run in calls.items():
            started = time.perf_counter()
            run()
            if round_:
                seconds[call].append(time.perf_counter() - started)
    slowest = max(statistics.median(seconds[task]) for task in asked)
    for call, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{call:18} min {min(values):6.3f} s   median {middle:6.3f} s   {middle / slowest:5.2f} x the slowest alone"
        )
    masks, times = hundred(), []
    scene = Image.new("RGB", masks.size, "gray")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        masks.draw(scene)
        times.append(time.perf_counter() - started)
    print(f"{'100 masks, 1080p':18} min {min(times):6.3f} s   median {statistics.median(times):6.3f} s")


def hundred() -> Masks:
    """A hundred ellipses of all sizes in 1920 x 1080 pixels."""
    rng, size = np.random.default_rng(0), (1920, 1080)
    masks = []
    for _ in range(100):
        width, height = (int(side) for side in rng.integers(20, 400, 2))
        corner = (int(rng.integers(size[0] - width)), int(rng.integers(size[1] - height)))
        y, x = np.mgrid[:height, :width] + 0.5
        patch = (2 * x / width - 1) ** 2 + (2 * y / height - 1) ** 2 < 1
        masks.append(Mask(patch=patch, corner=corner, size=size))
    return Masks(
        boxes_xyxy=np.stack([mask.box_xyxy for mask in masks]), scores=np.full(100, 0.9, np.float32),
        labels=np.arange(100) % 5, phrases=tuple("abcde"), presence=np.ones(5, np.float32), size=size,
        masks=object_array(masks),
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
