"""Warm seconds of a question on the embedded model, each path in turn. python tools/bench/ask.py [PICTURE]"""

import os
import statistics
import sys
import time

import numpy as np
import torch
from PIL import Image

from visionllm import VisionLLM

ROUNDS = 7


def main(picture: str = "examples/street.jpg") -> None:
    model = VisionLLM.from_pretrained()
    phrases = ["car", "truck", "person"]
    eighty = [f"thing {i}" for i in range(80)]
    eight = [np.array(Image.open(picture).convert("RGB")) for _ in range(8)]  # not one picture asked about eight times
    calls = {
        "ask, three phrases": lambda: model.ask(picture, "detect car, truck, person"),
        "detect, three phrases": lambda: model.detect(picture, phrases),
        "detect, three, verified": lambda: model.detect(picture, phrases, verify=True),
        "detect, eighty phrases": lambda: model.detect(picture, eighty),
        "ask_many, eight pictures": lambda: model.ask_many([(own, "detect car, truck, person") for own in eight]),
    }
    print(f"threads {torch.get_num_threads()}, load {os.getloadavg()[0]:.2f}")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(ROUNDS + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    base = statistics.median(seconds["detect, three phrases"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:26} min {min(values):6.3f} s   median {middle:6.3f} s   {middle / base:5.2f} x detect")


if __name__ == "__main__":
    main(*sys.argv[1:])
