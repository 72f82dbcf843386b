"""Detections: checked when made, cut and joined without losing their phrases, exported and drawn."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from visionllm.core.detections import Detections
from visionllm.core.errors import PictureError, ShapeError, UnknownNameError, VisionLLMError
from visionllm.core.sample import Picture

PICTURE = Picture(pixels=np.full((120, 200, 3), 90, np.uint8), name="street.jpg")


def values(**changes: Any) -> dict[str, Any]:
    """Three boxes: car, car, truck; no bus."""
    return {
        "boxes_xyxy": np.array([[10, 20, 60, 80], [70, 20, 120, 80], [0, 0, 200, 120]], np.float32),
        "scores": np.array([0.9, 0.5, 0.25], np.float32),
        "labels": np.array([0, 0, 1]),
        "phrases": ("car", "truck", "bus"),
        "presence": np.array([0.99, 0.5, 0.01], np.float32),
        "size": (200, 120),
        "threshold": 0.2,
        "picture": PICTURE,
        "picture_name": "street.jpg",
        **changes,
    }


def three(**changes: Any) -> Detections:
    return Detections(**values(**changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes_xyxy": np.zeros((3, 5), np.float32)}, r"boxes_xyxy must have shape \(3, 4\).*got \(3, 5\)"),
        ({"boxes_xyxy": np.zeros((2, 4), np.float32)}, r"got \(2, 4\)"),
        ({"boxes_xyxy": np.zeros((3, 4))}, "type float32.*float64"),
        ({"boxes_xyxy": [[0, 0, 1, 1]] * 3}, "got list"),
        ({"boxes_xyxy": np.array([[5, 0, 1, 1]] * 3, np.float32)}, "x1 <= x2"),
        ({"boxes_xyxy": np.full((3, 4), np.nan, np.float32)}, "finite"),
        ({"scores": np.zeros((3, 1), np.float32)}, r"scores must have shape \(3,\)"),
        ({"scores": np.array([0.5, 0.5, 1.5], np.float32)}, r"scores must lie in \[0, 1\]"),
        ({"scores": np.array([0.5, 0.5, np.nan], np.float32)}, "scores must lie in"),
        ({"labels": np.array([0, 0, 3])}, r"labels must lie in 0\.\.2, got \[0, 3\]"),
        ({"labels": np.array([0, 0, -1])}, "labels must lie"),
        ({"labels": np.array([0.0, 0.0, 1.0])}, "type int64"),
        ({"presence": np.zeros(2, np.float32)}, r"presence must have shape \(3,\)"),
        ({"presence": np.array([0, 0, -0.1], np.float32)}, "presence must lie in"),
        ({"size": (120, 200)}, "street.jpg"),  # height first
    ],
)
def test_checked_when_made(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        three(**change)


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        three().threshold = 0.9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        (slice(0, 0), []),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        (np.zeros(3, bool), []),
        (np.array([1, 1]), [1, 1]),
    ],
)
def test_indexing_keeps_the_phrases(index: Any, expected: list[int]) -> None:
    whole, part = three(), three()[index]
    assert (part.boxes_xyxy == whole.boxes_xyxy[expected]).all()
    assert (part.scores == whole.scores[expected]).all()
    assert part.phrases == whole.phrases
    assert len(part) == len(expected)


def test_indexing_beyond_the_end() -> None:
    with pytest.raises(IndexError):
        three()[3]


def test_iteration_gives_single_boxes() -> None:
    assert [len(one) for one in three()] == [1, 1, 1]
    assert [one.scores[0] for one in three()] == three().scores.tolist()


def test_of_a_phrase() -> None:
    cars, buses = three().of("car"), three().of("bus")
    assert len(cars) == 2
    assert cars.phrases == ("car",)
    assert cars.labels.tolist() == [0, 0]
    assert cars.presence == pytest.approx([0.99])
    assert len(buses) == 0
    with pytest.raises(UnknownNameError, match="did you mean 'truck'"):
        three().of("truk")


def test_of_takes_every_equal_phrase() -> None:
    twice = Detections.merge([three(), three()])
    assert len(twice.of("car")) == 4
    assert twice.of("car").phrases == ("car", "car")
    assert twice.of("car").labels.tolist() == [0, 0, 1, 1]


def test_above_and_found() -> None:
    high = three().above(0.5)
    assert len(high) == 2
    assert high.threshold == 0.5
    assert high.found.tolist() == [True, False, False]
    assert three().above(0.1).threshold == 0.2
    assert three().counts.tolist() == [2, 1, 0]


@given(st.lists(st.integers(0, 4), max_size=4))
def test_merging_keeps_every_box_with_its_phrase(sizes: list[int]) -> None:
    rng = np.random.default_rng(len(sizes))
    parts = [
        Detections(
            boxes_xyxy=np.tile(np.array([[0, 0, 9, 9]], np.float32), (n, 1)),
            scores=rng.random(n).astype(np.float32),
            labels=rng.integers(0, 2, n),
            phrases=(f"a{i}", "same"),
            presence=rng.random(2).astype(np.float32),
            size=(200, 120),
            threshold=0.1 * i,
        )
        for i, n in enumerate(sizes)
    ]
    merged = Detections.merge(parts)
    assert len(merged) == sum(sizes)
    assert merged.phrases == tuple(phrase for part in parts for phrase in part.phrases)
    pairs = [(part.phrases[k], s) for part in parts for k, s in zip(part.labels, part.scores, strict=True)]
    assert [(merged.phrases[k], s) for k, s in zip(merged.labels, merged.scores, strict=True)] == pairs
    assert merged.threshold == 0.0


def test_merging_different_pictures_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"answer\.on"):
        Detections.merge([three(), Detections.empty(["car"], (10, 10))])


def test_empty_is_normal(tmp_path: Path) -> None:
    for empty in (
        Detections.empty(["car"], picture=PICTURE),
        Detections.merge([], picture=PICTURE),
        three()[:0],
        three().above(1.0),
    ):
        assert len(empty) == 0
        assert empty.boxes_xyxy.shape == (0, 4)
        assert empty.size == (200, 120)
        assert empty[empty.scores > 0.5].to_coco() == []
        assert empty.to_dict()["boxes"] == []
        assert empty.draw().size == (200, 120)
        assert len(empty.to_supervision()) == 0
        assert (np.asarray(empty.draw()) == 90).all()
        empty.save(tmp_path / "empty.json")
        assert "<img" in empty._repr_html_()
        json.dumps(empty.to_dict(), allow_nan=False)
    assert Detections.merge([]).size == (0, 0)
    assert repr(Detections.merge([])) == "Detections(0 boxes)"


def test_words() -> None:
    assert repr(three()) == "Detections(3 boxes: car 2, truck 1, bus none)"
    assert repr(three().of("truck")) == "Detections(1 box: truck 1)"
    assert three().statements()[2] == "bus: none found (presence 0.01)"


def test_to_dict_is_plain_json() -> None:
    plain = json.loads(json.dumps(three().to_dict(), allow_nan=False))
    assert plain["boxes"][2] == {"phrase": "truck", "label": 1, "score": 0.25, "box_xyxy": [0, 0, 200, 120]}
    assert [p["found"] for p in plain["phrases"]] == [2, 1, 0]
    assert (plain["width"], plain["height"], plain["picture"]) == (200, 120, "street.jpg")


def test_to_coco() -> None:
    entries = three().to_coco(image_id=7, category_ids={"car": 3, "truck": 8})  # no bus was found
    assert [entry["category_id"] for entry in entries] == [3, 3, 8]
    assert entries[1] == {"image_id": 7, "category_id": 3, "bbox": [70, 20, 50, 60], "score": 0.5}
    assert [entry["category_id"] for entry in three().to_coco()] == [0, 0, 1]
    with pytest.raises(UnknownNameError, match="truck"):
        three().to_coco(category_ids={"car": 3, "bus": 6})


def test_to_supervision() -> None:
    boxes = three().to_supervision()
    assert (boxes.xyxy == three().boxes_xyxy).all()
    assert boxes.data["class_name"].tolist() == ["car", "car", "truck"]


def test_drawing_shows_the_boxes_in_the_colour_of_their_phrase() -> None:
    found = three()
    drawn = np.asarray(found.draw())
    assert drawn.shape == PICTURE.pixels.shape
    assert (PICTURE.pixels == 90).all()
    first, second, other = drawn[79, 30], drawn[79, 100], drawn[119, 150]
    assert (first == second).all()
    assert (first != other).any()
    assert (first != 90).any()
    assert (np.asarray(found.draw(Image.fromarray(PICTURE.pixels))) == drawn).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (30, 20), (1600, 1200)])
def test_drawing_fits_any_picture(size: tuple[int, int]) -> None:
    picture = Picture(pixels=np.zeros((size[1], size[0], 3), np.uint8))
    box = np.array([[0, 0, *size]], np.float32)
    found = three(boxes_xyxy=box.repeat(3, 0), size=size, picture=picture, phrases=("車", "a\nb", "ß"))
    assert found.draw().size == size


def test_drawing_needs_the_right_picture() -> None:
    with pytest.raises(PictureError, match="keep no picture"):
        three(picture=None).draw()
    with pytest.raises(ShapeError):
        three().draw(Image.new("RGB", (10, 10)))
    assert three(picture=None).draw(PICTURE).size == (200, 120)


@pytest.mark.parametrize("name", ["out.png", "out.JPG", "out.webp", "out.json"])
def test_save(name: str, tmp_path: Path) -> None:
    three().save(tmp_path / name)
    if name.endswith("json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads(json.dumps(three().to_dict()))
    else:
        assert Image.open(tmp_path / name).size == (200, 120)


@pytest.mark.parametrize("name", ["out", "out.exe", "missing/out.png", "missing/out.json"])
def test_save_refuses_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(VisionLLMError) as caught:
        three().save(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_html_escapes_words_and_holds_its_picture() -> None:
    html = three(phrases=("<script>alert(1)</script>", "a&b", "<b>bus</b>"))._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "a&amp;b" in html
    assert "data:image/png;base64," in html
    assert "none found" in html
    assert "<img" not in three(picture=None)._repr_html_()
