"""Views through several lenses, in SR-RAW's layout: written here, with a known truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from visionllm.core.errors import AnnotationError, DatasetError
from visionllm.datasets.catalog import open_dataset

FOCAL = (240, 150, 100, 70, 50, 35, 24)
SIZE = (240, 160)


def view() -> np.ndarray:
    """All that the shortest lens sees, ten times as fine."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    return cv2.resize(noise, (SIZE[0] * 10, SIZE[1] * 10), interpolation=cv2.INTER_CUBIC)


def write(folder: Path, focal: tuple[float, ...] = FOCAL, *, told: bool = True) -> None:
    folder.mkdir(parents=True)
    whole = view()
    for number, length in enumerate(focal, 1):
        width, height = (int(side * min(focal) / length) for side in whole.shape[1::-1])
        x, y = (whole.shape[1] - width) // 2, (whole.shape[0] - height) // 2
        seen = cv2.resize(whole[y : y + height, x : x + width], SIZE, interpolation=cv2.INTER_AREA)
        exif = Image.Exif()
        if told:
            exif.get_ifd(0x8769)[0x920A] = float(length)
        Image.fromarray(seen).save(folder / f"{number:05}.JPG", exif=exif, quality=98)


def card(folder: Path, **split: object) -> Path:
    keys = ", ".join(f"{key}: {value}" for key, value in {"scenes": "train", **split}.items())
    path = folder / "zoom.yaml"
    path.write_text(
        f"name: zoom\ntask: super_resolution\nformat: sr_raw\nroot: {folder}\nsplits: {{train: {{{keys}}}}}\n"
        "license: unknown\n"
    )
    return path


@pytest.mark.parametrize(("scale", "pairs"), [(2, 5), (4, 3)])
@pytest.mark.parametrize("told", [True, False])
def test_the_part_that_the_longer_lens_sees(tmp_path: Path, scale: int, pairs: int, told: bool) -> None:
    write(tmp_path / "train" / "00001", told=told)
    task = "super_resolution" if scale == 2 else "super_resolution_x4"
    data = open_dataset(card(tmp_path, scale=scale), "train", task=task)
    assert len(data) == pairs
    for index in range(pairs):
        (sample,) = data.ask_all(index)
        small, sharp = sample.pictures[0], sample.turns[0].target.pictures[0]
        assert sharp.size == (scale * small.size[0], scale * small.size[1])
        times = FOCAL[index] / FOCAL[index + {2: 2, 4: 4}[scale]]
        assert small.size == (int(SIZE[0] / times), int(SIZE[1] / times))
        # The same view: shrunk, the sharp one is the small one but for the grain of JPEG and half a pixel.
        alike = cv2.resize(sharp.pixels, small.size, interpolation=cv2.INTER_AREA).astype(float)
        inner = (slice(3, -3), slice(3, -3))
        found = np.corrcoef(alike[inner].ravel(), small.pixels[inner].astype(float).ravel())[0, 1]
        assert found > 0.9, (index, found)


def test_tiles_cover_a_pair(tmp_path: Path) -> None:
    write(tmp_path / "train" / "00001")
    whole = open_dataset(card(tmp_path), "train")
    tiles = open_dataset(card(tmp_path, tile=32), "train")
    width, height = whole.read(0).smaller.size
    count = (width // 32) * (height // 32)
    assert len(tiles) > len(whole)
    again = np.zeros_like(whole.read(0).smaller.pixels)
    for index in range(count):
        record = tiles.read(index)
        assert (record.smaller.size, record.picture.size) == ((32, 32), (64, 64))
        x, y = 32 * (index % (width // 32)), 32 * (index // (width // 32))
        again[y : y + 32, x : x + 32] = record.smaller.pixels
    np.testing.assert_array_equal(again[:32, :32], whole.read(0).smaller.pixels[:32, :32])
    assert tiles.digest != whole.digest


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match="holds no scene with 3 pictures"):
        open_dataset(card(tmp_path), "train")
    write(tmp_path / "train" / "00001", FOCAL[::-1])
    with pytest.raises(AnnotationError, match=r"00003.JPG: its lens is longer than that of 00001.JPG"):
        open_dataset(card(tmp_path), "train")
    write(tmp_path / "other" / "00001", told=False)
    with pytest.raises(AnnotationError, match="the split's focal_lengths are of 2 pictures"):
        open_dataset(card(tmp_path, scenes="other", focal_lengths=[50, 25]), "train")
    with pytest.raises(AnnotationError, match=r"tile is 500"):
        open_dataset(card(tmp_path, scenes="other", tile=500), "train")
    (tmp_path / "other" / "00001" / "00002.JPG").write_bytes(b"no picture")
    with pytest.raises(AnnotationError, match=r"00002.JPG: not a picture that can be read"):
        open_dataset(card(tmp_path, scenes="other", scale=4), "train").read(1)


def test_the_scale_of_the_task_is_that_of_the_split(tmp_path: Path) -> None:
    write(tmp_path / "train" / "00001")
    data = open_dataset(card(tmp_path), "train", task="super_resolution_x4")
    with pytest.raises(AnnotationError, match="is not 4 times"):
        data.ask_all(0)
