"""Draw examples/drawn.jpg: the first captions of the sketches' validation split, as the embedded model draws them.

    python examples/draw_sketches.py
"""

from pathlib import Path
from textwrap import wrap

import cv2
import numpy as np

from visionllm import VisionLLM, open_dataset

COLUMNS, ROWS, SIDE, GAP, WORDS = 6, 2, 128, 10, 44


def main() -> None:
    model, data = VisionLLM.from_pretrained(), open_dataset("scenes", "sketches_val", task="generation")
    tall, wide = SIDE + WORDS, SIDE + GAP
    page = np.full((ROWS * tall, COLUMNS * wide, 3), 255, np.uint8)
    for number in range(ROWS * COLUMNS):
        caption = data.ask_all(number)[0].turns[0].phrases[0]
        found = model(None, f"draw {caption}").images
        row, column = divmod(number, COLUMNS)
        top, left = row * tall, column * wide + GAP // 2
        if found:
            drawn = cv2.resize(found.pictures[0].pixels, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
            page[top : top + SIDE, left : left + SIDE] = drawn
        for line, words in enumerate(wrap(caption, 22)[:3]):
            at = (left, top + SIDE + 12 + 13 * line)
            cv2.putText(page, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.34, (40, 40, 40), 1, cv2.LINE_AA)
    out = Path(__file__).with_name("drawn.jpg")
    cv2.imwrite(str(out), cv2.cvtColor(page, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    print(out)


if __name__ == "__main__":
    main()
