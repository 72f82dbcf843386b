"""COCO's panoptic files are read as they are written, and told in one line where they are broken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionllm.core.errors import AnnotationError, ConfigError, DatasetError
from visionllm.core.panoptic import Panoptic, Segment
from visionllm.datasets.catalog import open_dataset
from visionllm.datasets.formats import PanopticReader, Place
from visionllm.datasets.formats.panoptic import PanopticSplit
from visionllm.datasets.owning import PanopticAsker

ALL = frozenset({"masks", "stuff"})
Root = Callable[..., Path]


def segmentation() -> Panoptic:
    """Two cars, one of them all of a crowd, on a road under a strip that is nobody's."""
    ids = np.zeros((30, 40), np.int32)
    ids[10:], ids[12:20, 5:15], ids[22:28, 20:36] = 3, 70000, 300
    areas = {i: int((ids == i).sum()) for i in (3, 300, 70000)}
    phrases = {3: ("road", False), 300: ("car", True), 70000: ("car", True)}
    return Panoptic(ids=ids, segments=tuple(
        Segment(id=i, phrase=phrases[i][0], thing=phrases[i][1], score=1.0, area=area) for i, area in areas.items()
    ))  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Write a data set with COCO's own files, as ``Panoptic.save`` makes them, ``change`` applied to its content."""

    def write(change: Callable[[dict[str, Any]], object] | None = None) -> Path:
        ids = {"car": 7, "road": 90}
        (tmp_path / "images").mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "a.jpg")
        segmentation().save(tmp_path / "pngs" / "a.png", ids, image_id=5)
        entry = json.loads((tmp_path / "pngs" / "a.json").read_text())
        next(info for info in entry["segments_info"] if info["id"] == 300)["iscrowd"] = 1
        content = {
            "images": [{"id": 5, "file_name": "a.jpg", "width": 40, "height": 30}],
            "annotations": [entry],
            "categories": [{"id": 90, "name": "road", "isthing": 0}, {"id": 7, "name": "car", "isthing": 1}],
        }
        if change is not None:
            change(content)
        (tmp_path / "a.json").write_text(json.dumps(content))
        return tmp_path

    return write


def opened(root: Path, needs: frozenset[str] = ALL) -> PanopticReader:
    split = PanopticSplit(images="images", annotations="a.json", segments="pngs")
    return PanopticReader.open(split, Place(dataset="set", root=root.resolve(), needs=needs))


def test_segments_are_objects_with_masks(root: Root) -> None:
    reader = opened(root())
    record = reader.read(0)
    assert (record.names, reader.wording.stuff) == (("road", "car"), {"road"})
    assert [record.names[label] for label in record.labels] == ["road", "car", "car"]
    assert record.crowd.tolist() == [False, True, False]
    assert record.boxes_xyxy.tolist() == [[0, 10, 40, 30], [20, 22, 36, 28], [5, 12, 15, 20]]
    for mask, segment in zip(record.masks, segmentation().segments, strict=True):
        assert (mask.dense() == (segmentation().ids == segment.id)).all()
    assert (record.extra["image_id"], record.extra["segment_id"].tolist()) == (5, [3, 300, 70000])
    assert reader.labels_of(0).tolist() == [0, 1]


def test_who_asks_for_things_gets_things(root: Root) -> None:
    reader = opened(root(), frozenset())
    record = reader.read(0)
    assert (record.names, record.labels.tolist(), reader.wording.stuff) == (("car",), [0, 0], frozenset())


def test_an_evaluation_asks_for_everything_at_once(root: Root) -> None:
    reader = opened(root())
    (sample,) = PanopticAsker().every(reader.read(0), reader.wording)
    (turn,) = sample.turns
    assert (turn.task, turn.phrases, turn.target.stuff) == ("segmentation", ("road", "car"), {"road"})
    # The crowd is nobody's.
    found = {(segment.phrase, segment.thing, segment.area) for segment in turn.target.whole.segments}
    assert found == {(s.phrase, s.thing, s.area) for s in segmentation().segments if s.id != 300}
    with pytest.raises(ConfigError, match="chunk: all 2 names compete"):
        PanopticAsker().every(reader.read(0), reader.wording, chunk=1)


@pytest.mark.skipif("VISIONLLM_DATA" not in os.environ, reason="needs VISIONLLM_DATA")
def test_photographs_are_read() -> None:
    data = open_dataset("coco_tiny_panoptic", "train")
    assert (len(data), len(data.names), len(data.wording.stuff)) == (26, 133, 53)
    for index in range(0, 26, 5):
        (sample,) = data.ask_all(index)
        truth = sample.turns[0].target.whole
        record = data.read(index)
        assert (truth.ids > 0).mean() > 0.5
        for mask, crowd in zip(record.masks, record.crowd.tolist(), strict=True):
            assert len(np.unique(truth.ids[mask.dense()])) == 1  # each segment has one owner
            assert (truth.ids[mask.dense()] == 0).all() == crowd
    # Instances may lie on each other: no truth of whose a pixel is.
    with pytest.raises(AnnotationError, match="claim the same pixels; give a data set with panoptic masks"):
        open_dataset("coco_tiny", "train", task="panoptic").ask_all(0)


def info(content: dict[str, Any]) -> dict[str, Any]:
    return content["annotations"][0]["segments_info"][1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["categories"][0].pop("isthing"), r"categories\[0\]\.isthing: expected 0 or 1, got nothing"),
        (lambda c: c["annotations"][0].update(file_name=3), r"annotations\[0\]\.file_name: expected a word"),
        (lambda c: c["annotations"][0].update(file_name="../a.png"), r"annotations\[0\]\.file_name: .* relative path"),
        (lambda c: c["annotations"][0].update(segments_info=[3]), r"annotations\[0\]\.segments_info: expected a list"),
        (
            lambda c: info(c).update(id=0),
            r"segments_info\[1\]\.id: expected a whole number that three bytes hold, got 0",
        ),
        (lambda c: info(c).update(id=3), r"segments_info\[1\]\.id: 3 stands twice"),
        (lambda c: info(c).update(category_id=8), r"segments_info\[1\]\.category_id: 8 is no category"),
        (lambda c: info(c).update(iscrowd="no"), r"segments_info\[1\]\.iscrowd: expected 0 or 1, got 'no'"),
        (lambda c: c["annotations"].clear(), r"images\[0\]: no annotation has its id 5"),
    ],
)
def test_a_broken_file_is_told_on_opening(root: Root, change: Callable[[Any], object], words: str) -> None:
    with pytest.raises(AnnotationError, match=rf"a\.json: .*{words}") as caught:
        opened(root(change))
    assert "\n" not in str(caught.value)


def test_a_broken_png_is_told_on_reading(root: Root) -> None:
    folder = root(lambda content: content["annotations"][0]["segments_info"].pop())
    with pytest.raises(AnnotationError, match=r"set\[0\] .*annotations\[0\]: a\.png: segment 70000 is not in"):
        opened(folder).read(0)
    Image.new("RGB", (20, 20)).save(folder / "pngs" / "a.png")
    with pytest.raises(AnnotationError, match=r"a\.png is 20x20, the picture 40x30"):
        opened(folder).read(0)
    (folder / "pngs" / "a.png").write_bytes(b"none")
    with pytest.raises(AnnotationError, match=r"a\.png is not a picture that can be read"):
        opened(folder).read(0)
    (folder / "pngs" / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"annotations\[0\]: no file .*a\.png"):
        opened(folder).read(0)
