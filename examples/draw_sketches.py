"""Draw examples/drawn.jpg and examples/edited.jpg: the first captions and changes of the sketches' validation split, as
the embedded model draws them, each asked for in free words.

    python examples/draw_sketches.py
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import cv2
import numpy as np

from visionllm import VisionLLM, open_dataset

COLUMNS, ROWS, SIDE, GAP, WORDS = 6, 2, 128, 10, 44


def main() -> None:
    model = VisionLLM.from_pretrained()
    captions, changes = (open_dataset("scenes", "sketches_val", task=task) for task in ("generation", "editing"))
    drawn = []
    for number in range(ROWS * COLUMNS):
        caption = captions.ask_all(number)[0].turns[0].phrases[0]
        drawn.append((caption, made(model, None, f"draw {caption}")))
    write("drawn.jpg", drawn)
    edited = []
    for number in range(ROWS * COLUMNS // 2):
        # Of each sketch another kind of change.
        asked = changes.ask_all(number)
        sample = asked[number % len(asked)]
        change, before = sample.turns[0].phrases[0], sample.pictures[0].pixels
        edited += [(change, before), ("", made(model, before, change))]
    write("edited.jpg", edited)


def made(model: VisionLLM, picture: np.ndarray | None, prompt: str) -> np.ndarray:
    """The picture of an answer, white where there is none."""
    found = model(picture, prompt).images
    return found.pictures[0].pixels if found else np.full((SIDE, SIDE, 3), 255, np.uint8)


def write(name: str, cells: Sequence[tuple[str, np.ndarray]]) -> None:
    """A page of pictures over their words."""
    tall, wide = SIDE + WORDS, SIDE + GAP
    page = np.full((-(-len(cells) // COLUMNS) * tall, COLUMNS * wide, 3), 255, np.uint8)
    for number, (words, pixels) in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        top, left = row * tall, column * wide + GAP // 2
        page[top : top + SIDE, left : left + SIDE] = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        for line, part in enumerate(wrap(words, 22)[:3]):
            at = (left, top + SIDE + 12 + 13 * line)
            cv2.putText(page, part, at, cv2.FONT_HERSHEY_SIMPLEX, 0.34, (40, 40, 40), 1, cv2.LINE_AA)
    out = Path(__file__).with_name(name)
    cv2.imwrite(str(out), cv2.cvtColor(page, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    print(out)


if __name__ == "__main__":
    main()
