"""Tiny data sets written to a folder of the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def write_picture(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco_content(count: int = 3) -> dict[str, Any]:
    """``count`` pictures of 40x30, two boxes in each but the last, which has none. Category ids are arbitrary."""
    images = [{"id": 100 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(count)]
    annotations = [
        {"id": 10 * i + k, "image_id": 100 + i, "category_id": (7, 90)[k], "bbox": [4 + k, 5, 10, 8], "iscrowd": 0}
        for i in range(count - 1)
        for k in range(2)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}],
    }


@pytest.fixture
def coco_root(tmp_path: Path) -> Callable[..., Path]:
    """Write a COCO data set, ``change`` applied to its content, or ``text`` as its file; returns its root."""

    def write(
        change: Callable[[dict[str, Any]], object] | None = None, *, text: str | bytes | None = None, count: int = 3
    ) -> Path:
        root = tmp_path / "coco"
        content = coco_content(count)
        for i in range(count):
            write_picture(root / "images" / f"{i}.png", seed=i)
        if change:
            change(content)
        text = json.dumps(content) if text is None else text
        (root / "train.json").write_bytes(text.encode() if isinstance(text, str) else text)
        return root

    return write


VOC_OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def voc_text(
    objects: list[dict[str, Any]], size: tuple[Any, Any] = (40, 30), head: str = "<filename>x.jpg</filename>"
) -> str:
    body = "".join(VOC_OBJECT.format(**{"name": "cat", "difficult": 0, **entry}) for entry in objects)
    return f"<annotation>{head}<size><width>{size[0]}</width><height>{size[1]}</height></size>{body}</annotation>"


@pytest.fixture
def voc_root(tmp_path: Path) -> Callable[..., Path]:
    """Write a VOC data set from the text of each XML file; returns its root."""

    def write(pages: dict[str, str | bytes], *, listed: str | None = None, suffix: str = ".png") -> Path:
        root = tmp_path / "voc"
        (root / "Annotations").mkdir(parents=True)
        (root / "ImageSets").mkdir()
        for i, (name, text) in enumerate(pages.items()):
            write_picture(root / "JPEGImages" / f"{name}{suffix}", seed=i)
            (root / "Annotations" / f"{name}.xml").write_bytes(text.encode() if isinstance(text, str) else text)
        (root / "ImageSets" / "train.txt").write_text("\n".join(pages) + "\n" if listed is None else listed)
        return root

    return write


@pytest.fixture
def voc_page() -> Callable[..., str]:
    return voc_text
