"""The transform object: what happens to the pixels happens to boxes, points and masks, and can be undone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionllm.core.geometry import Geometry

sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@st.composite
def steps(draw: st.DrawFn, size: tuple[int, int]) -> Geometry:
    """One random step on a picture of ``size``."""
    kind = draw(st.sampled_from(["resize", "longest", "box", "crop", "pad", "hflip", "identity"]))
    w, h = size
    if kind == "resize":
        return Geometry.resize(size, draw(sizes))
    if kind == "longest":
        return Geometry.fit(size, draw(st.integers(1, 300)), multiple=draw(st.sampled_from([1, 16, 32])))
    if kind == "box":
        return Geometry.fit(size, draw(sizes))
    if kind == "crop":
        x1, y1 = draw(st.integers(0, w - 1)), draw(st.integers(0, h - 1))
        return Geometry.crop(size, (x1, y1, draw(st.integers(x1 + 1, w)), draw(st.integers(y1 + 1, h))))
    if kind == "pad":
        left, top, right, bottom = (draw(st.integers(0, 40)) for _ in range(4))
        return Geometry.crop(size, (-left, -top, w + right, h + bottom))
    return Geometry.hflip(size) if kind == "hflip" else Geometry.identity(size)


@st.composite
def geometries(draw: st.DrawFn, most: int = 3) -> Geometry:
    geometry = draw(steps(draw(sizes)))
    for _ in range(draw(st.integers(0, most - 1))):
        geometry = geometry.then(draw(steps(geometry.output_size)))
    return geometry


@st.composite
def boxes_in(draw: st.DrawFn, size: tuple[int, int]) -> np.ndarray:
    xs = sorted(draw(st.tuples(st.floats(0, size[0]), st.floats(0, size[0]))))
    ys = sorted(draw(st.tuples(st.floats(0, size[1]), st.floats(0, size[1]))))
    return np.array([[xs[0], ys[0], xs[1], ys[1]]])


@given(st.data())
def test_there_and_back(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    boxes = data.draw(boxes_in(geometry.input_size))
    there = geometry.boxes_exact(boxes)
    # float32 in between: a pixel of the output may be hundreds of the input.
    scale = 1 / np.abs(np.diag(geometry.matrix[:, :2])).min()
    assert np.abs(geometry.undo_boxes(there) - boxes).max() <= 1e-3 * max(1.0, scale)
    points = boxes.reshape(2, 2)
    assert np.abs(geometry.inverse().points(geometry.points(points)) - points).max() <= 1e-3 * max(1.0, scale)


@given(st.data())
def test_composition_is_one_after_the_other(data: st.DataObject) -> None:
    first = data.draw(geometries(most=2))
    second = data.draw(steps(first.output_size))
    boxes = data.draw(boxes_in(first.input_size))
    both = first.then(second)
    assert both.output_size == second.output_size
    assert np.allclose(both.boxes_exact(boxes), second.boxes_exact(first.boxes_exact(boxes)), atol=1e-2)
    assert both.mirrors == (first.mirrors != second.mirrors)


def white(pixels: np.ndarray) -> np.ndarray:
    """Extent of what is brighter than half."""
    mask = pixels[..., 0] >= 128 if pixels.ndim == 3 else pixels
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def placed(geometry: Geometry, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A white rectangle on black, and what the geometry makes of its box."""
    pixels = np.zeros((geometry.input_size[1], geometry.input_size[0], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    clipped, kept = geometry.boxes(np.array([box]), min_visible=0.0)
    assert kept.all()
    return pixels, clipped[0]


@given(st.data())
def test_picture_and_mask_agree_with_the_box(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(60, 200), st.integers(60, 200)))
    geometry = data.draw(st.sampled_from([Geometry.identity(size), Geometry.hflip(size)]))
    scale = data.draw(st.floats(0.4, 3))
    geometry = geometry.then(Geometry.resize(size, (round(size[0] * scale), round(size[1] * scale))))
    w, h = geometry.output_size
    geometry = geometry.then(Geometry.crop((w, h), (w // 8, -7, w + 5, h - h // 8)))
    pixels, box = placed(geometry, (size[0] // 4, size[1] // 3, size[0] // 4 + 24, size[1] // 3 + 20))
    moved = geometry.picture(pixels)
    assert moved.shape == (geometry.output_size[1], geometry.output_size[0], 3)
    assert np.abs(white(moved) - box).max() <= 1
    assert np.abs(white(geometry.mask(pixels[..., 0] > 0)) - box).max() <= 1


TABLE = [
    ("crop and fit", Geometry.crop((200, 120), (10, 10, 190, 110)).then(Geometry.fit((180, 100), 96, multiple=32))),
    ("letterbox", Geometry.fit((200, 120), (128, 128))),
    ("letterbox, enlarged", Geometry.fit((200, 120), (512, 700))),
    ("fractional shift", Geometry(matrix=np.array([[1.3, 0, -9.7], [0, 0.9, 4.4]]), input_size=(200, 120),
                                  output_size=(220, 110))),
    ("strong fractional shrink", Geometry(matrix=np.array([[0.21, 0, 3.3], [0, 0.19, 2.6]]), input_size=(200, 120),
                                          output_size=(60, 40))),
    ("upside down", Geometry(matrix=np.array([[1.0, 0, 0], [0, -1, 120]]), input_size=(200, 120),
                             output_size=(200, 120))),
    ("quarter turn", Geometry(matrix=np.array([[0, 1.0, 0], [-1, 0, 200]]), input_size=(200, 120),
                              output_size=(120, 200))),
]  # fmt: skip


@pytest.mark.parametrize("geometry", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_pixels_and_boxes_agree(geometry: Geometry) -> None:
    pixels, box = placed(geometry, (60, 40, 130, 90))
    assert np.abs(white(geometry.picture(pixels)) - box).max() <= 1
    assert np.abs(white(geometry.mask(pixels[..., 0] > 0)) - box).max() <= 1


def test_no_half_pixel_shift() -> None:
    # A ramp is linear, so every correct resampling keeps its values at pixel centres.
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 8, 0).repeat(3, 2)
    for geometry in (
        Geometry.resize((64, 8), (128, 16)),
        Geometry.resize((64, 8), (32, 4)),
        Geometry(matrix=np.array([[2.0, 0, 0.5], [0, 2, 0]]), input_size=(64, 8), output_size=(128, 16)),
        Geometry(matrix=np.array([[1.0, 0, 0.25], [0, 1, 0]]), input_size=(64, 8), output_size=(64, 8)),
    ):
        row = geometry.picture(ramp)[2, :, 0].astype(float)
        centres = geometry.inverse().points(np.stack([np.arange(len(row)) + 0.5, np.full(len(row), 2.5)], 1))
        inner = slice(4, -4)
        assert np.abs(row - (centres[:, 0] - 0.5) * 4)[inner].max() <= 0.8


def test_shrinking_averages() -> None:
    checker = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    for geometry in (
        Geometry.resize((256, 256), (31, 37)),
        Geometry(matrix=np.array([[0.13, 0, 0.4], [0, 0.13, 0.3]]), input_size=(256, 256), output_size=(33, 33)),
    ):
        inner = geometry.picture(checker)[3:-3, 3:-3]
        assert np.abs(inner.astype(int) - 127).max() <= 12


def test_identity_and_flip_are_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    assert (Geometry.identity((17, 13)).picture(pixels) == pixels).all()
    assert (Geometry.hflip((17, 13)).picture(pixels) == pixels[:, ::-1]).all()
    assert (Geometry.crop((17, 13), (3, 2, 10, 9)).picture(pixels) == pixels[2:9, 3:10]).all()


def test_padding_colour_and_place() -> None:
    pixels = np.full((50, 100, 3), 255, np.uint8)
    out = Geometry.fit((100, 50), (64, 64)).picture(pixels, padding=(1, 2, 3))
    assert (out[:32] == 255).all()
    assert (out[32:] == (1, 2, 3)).all()
    away = Geometry.crop((100, 50), (200, 0, 210, 10)).picture(pixels, padding=(9, 9, 9))
    assert (away == 9).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (40_000, 3)])
def test_extreme_pictures_survive(size: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), 200, np.uint8)
    for geometry in (
        Geometry.fit(size, 448, multiple=32),
        Geometry.resize(size, (448, 448)),
        Geometry.fit(size, (64, 48)),
    ):
        out = geometry.picture(pixels)
        assert out.shape[:2] == geometry.output_size[::-1]
        assert min(geometry.output_size) >= 1
        assert (out[0, 0] == 200).all()


BOXES = [
    # box before a crop to (50, 0, 100, 100), expected after, kept
    ((60, 10, 80, 30), (10, 10, 30, 30), True),
    ((40, 10, 60, 30), (0, 10, 10, 30), True),  # half of it stays
    ((10, 10, 52, 30), (0, 10, 2, 30), False),  # a twentieth stays
    ((0, 10, 40, 30), (0, 10, 0, 30), False),  # gone
    ((60, 10, 60.4, 30), (10, 10, 10.4, 30), False),  # thinner than a pixel
    ((60, 10, 61, 11), (10, 10, 11, 11), True),
]


@pytest.mark.parametrize(("box", "expected", "kept"), BOXES)
def test_boxes_are_clipped_and_judged(box: tuple[float, ...], expected: tuple[float, ...], kept: bool) -> None:
    clipped, keep = Geometry.crop((200, 100), (50, 0, 100, 100)).boxes(np.array([box]))
    assert clipped.dtype == np.float32
    assert np.allclose(clipped, [expected])
    assert keep.tolist() == [kept]


def test_no_boxes() -> None:
    clipped, keep = Geometry.hflip((10, 10)).boxes(np.zeros((0, 4), np.float32))
    assert clipped.shape == (0, 4)
    assert keep.shape == (0,)
    assert keep.dtype == bool


def test_undo_stays_inside_the_picture() -> None:
    geometry = Geometry.fit((100, 50), (64, 64))
    assert geometry.undo_boxes(np.array([[0, 0, 64, 64]])).tolist() == [[0, 0, 100, 50]]


def test_fit_keeps_the_aspect_and_rounds_up() -> None:
    geometry = Geometry.fit((640, 380), 448, multiple=32)
    assert geometry.output_size == (448, 288)
    assert geometry.boxes_exact(np.array([0, 0, 640, 380])).tolist() == [0, 0, 448, 266]


def test_sizes_must_meet() -> None:
    with pytest.raises(AssertionError):
        Geometry.hflip((10, 10)).then(Geometry.hflip((11, 10)))
