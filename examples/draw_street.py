"""Draw examples/street.jpg, the picture the other examples look at: python examples/draw_street.py [SEED]."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

from visionllm.datasets.scenes import draw_scene

SEED = 1667  # a bright day: cars near and far, some half hidden, riders, a truck, trees


def main() -> None:
    scene = draw_scene(int(sys.argv[1]) if len(sys.argv) > 1 else SEED, size=(640, 480), world="street")
    path = Path(__file__).with_name("street.jpg")
    cv2.imwrite(str(path), scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    print(f"{path.name}: {scene.caption()}")


if __name__ == "__main__":
    main()
