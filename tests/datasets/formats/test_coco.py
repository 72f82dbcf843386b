"""COCO: exact conventions, and one line for every kind of bad file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visionllm.core.errors import AnnotationError, DatasetError, PictureError
from visionllm.core.masks import Mask
from visionllm.core.sample import Record
from visionllm.datasets.catalog import open_dataset
from visionllm.datasets.formats import CocoReader, Place
from visionllm.datasets.formats.coco import CocoSplit

Root = Callable[..., Path]


def open_coco(root: Path, names: tuple[str, ...] | None = None, **keys: str) -> CocoReader:
    split = CocoSplit(**{"images": "images", "annotations": "train.json", **keys})
    return CocoReader.open(split, Place(dataset="tiny", root=root.resolve(), names=names))


def test_boxes_are_edges_and_labels_follow_the_names(coco_root: Root) -> None:
    record = open_coco(coco_root()).read(0)
    assert record.names == ("dog", "cat")
    assert record.boxes_xyxy.tolist() == [[4, 5, 14, 13], [5, 5, 15, 13]]
    assert record.boxes_xyxy.dtype == np.float32
    assert [record.names[label] for label in record.labels] == ["cat", "dog"]
    assert record.labels.dtype == np.int64
    assert record.picture.size == (40, 30)
    assert str(record.source) == "tiny[0] (0.png)"
    assert record.extra["image_id"] == 100


def test_pictures_without_annotations_stay(coco_root: Root) -> None:
    reader = open_coco(coco_root())
    assert len(reader) == 3
    assert reader.read(2).boxes_xyxy.shape == (0, 4)
    assert reader.report() == ""


def test_no_annotations_at_all(coco_root: Root) -> None:
    reader = open_coco(coco_root(lambda c: c.update(annotations=[])))
    assert [len(reader.read(i).labels) for i in range(3)] == [0, 0, 0]


def test_annotations_in_any_order_find_their_picture(coco_root: Root) -> None:
    def shuffle(content: dict[str, Any]) -> None:
        content["annotations"].reverse()
        content["annotations"][0]["bbox"] = [1, 2, 3, 4]  # now the second box of picture 1

    record = open_coco(coco_root(shuffle)).read(1)
    assert sorted(record.boxes_xyxy.tolist()) == [[1, 2, 4, 6], [4, 5, 14, 13]]


def test_crowd_is_kept_and_marked(coco_root: Root) -> None:
    record = open_coco(coco_root(lambda c: c["annotations"][1].update(iscrowd=1))).read(0)
    assert record.crowd.tolist() == [False, True]


def test_clipped_dropped_and_counted(coco_root: Root) -> None:
    def spoil(content: dict[str, Any]) -> None:
        boxes = [[-5, 5, 10, 8], [35, 25, 10, 10], [100, 100, 5, 5], [3, 3, 0, 5]]
        for entry, box in zip(content["annotations"], boxes, strict=True):
            entry["bbox"] = box

    reader = open_coco(coco_root(spoil))
    assert reader.read(0).boxes_xyxy.tolist() == [[0, 5, 5, 13], [35, 25, 40, 30]]
    assert len(reader.read(1).boxes_xyxy) == 0
    assert reader.report() == ("tiny: of 4 boxes 1 dropped (no area), 1 dropped (outside the picture), 2 clipped")


def test_negative_sides_are_dropped(coco_root: Root) -> None:
    reader = open_coco(coco_root(lambda c: c["annotations"][0].update(bbox=[20, 20, -5, 4])))
    assert len(reader.read(0).labels) == 1
    assert "1 dropped (no area)" in reader.report()


def test_a_box_that_is_not_finite_spoils_its_picture_only(coco_root: Root) -> None:
    text = json.dumps(_content(coco_root)).replace("[5, 5, 10, 8]", "[5, 5, 1e999, 8]", 1)
    reader = open_coco(coco_root(text=text))
    with pytest.raises(AnnotationError, match=r"tiny\[0\] \(0.png\): .*annotations\[1\].bbox is not finite"):
        reader.read(0)
    assert len(reader.read(1).labels) == 2
    assert "1 not finite" in reader.report()


def _content(coco_root: Root) -> dict[str, Any]:
    return json.loads((coco_root() / "train.json").read_text())


def _set(key: str, index: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[key][index].update(values)


def _without(key: str, index: int, field: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[key][index].pop(field)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("annotations", 2, category_id=5), r"annotations\[2\].category_id.*\(90, 7\).*got 5"),
        (_set("annotations", 2, image_id=5), r"annotations\[2\].image_id.*got 5"),
        (_set("annotations", 2, id=0), r"annotations\[0\] and annotations\[2\] share the id 0"),
        (_set("images", 1, id=100), r"images\[0\] and images\[1\] share the id 100"),
        (_set("categories", 1, id=90), r"categories\[0\] and categories\[1\] share the id 90"),
        (_set("categories", 1, name="dog"), r"category 'dog' stands at 0 and at 1"),
        (_set("categories", 1, name=" "), r"categories\[1\].name: expected a word"),
        (_set("annotations", 0, bbox=[1, 2, 3]), r"annotations\[0\].bbox: expected four numbers"),
        (_set("annotations", 0, bbox=["1", 2, 3, 4]), r"annotations\[0\].bbox: expected four numbers"),
        (_set("annotations", 0, bbox=[None, 2, 3, 4]), r"annotations\[0\].bbox: expected four numbers"),
        (_set("annotations", 0, bbox=[True, 2, 3, 4]), r"annotations\[0\].bbox: expected four numbers"),
        (_without("annotations", 0, "bbox"), r"annotations\[0\].bbox: .*got nothing"),
        (_without("annotations", 0, "id"), r"annotations\[0\].id: .*got nothing"),
        (_set("annotations", 0, iscrowd=2), r"annotations\[0\].iscrowd: expected 0 or 1, got 2"),
        (_set("annotations", 0, area="big"), r"annotations\[0\].area: expected a number"),
        (_set("annotations", 0, category_id=[7]), r"annotations\[0\].category_id"),
        (_without("images", 0, "width"), r"images\[0\].width: expected a positive whole number"),
        (_set("images", 0, height=0), r"images\[0\].height: expected a positive whole number.*got 0"),
        (_without("images", 0, "file_name"), r"images\[0\].file_name: expected a word"),
        (lambda c: c.pop("images"), r"images: expected a list, got nothing"),
        (lambda c: c.update(annotations={}), r"annotations: expected a list"),
        (lambda c: c["images"].append(3), r"images\[3\]: expected an object, got 3"),
    ],
)
def test_broken_structure_is_one_line(coco_root: Root, change: Callable[..., object], words: str) -> None:
    with pytest.raises(AnnotationError, match=words) as caught:
        open_coco(coco_root(change))
    assert "train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', r"not valid JSON at line 1, column 13"),  # truncated
        ("", r"not valid JSON at line 1"),
        (b'\xef\xbb\xbf{"images": []}', r"byte order mark"),
        ('{"images": [],\n "images": []}', r"the key 'images' twice \(line 1\)"),
        ('{"images": [],\n "annotations": [{"bbox": [NaN, 1, 2, 3]}]}', r"NaN is not a JSON number \(line 2\)"),
        ('{"a": -Infinity}', r"-Infinity is not a JSON number"),
        ("[" * 200_000, r"nested too deeply"),
        (b'{"a": "\xff"}', r"not UTF-8 at byte 7"),
        ("[1, 2]", r"expected an object with images, annotations, categories"),
        ('{"a": ' + "9" * 10_000 + "}", r"train.json"),  # an absurd number
    ],
)
def test_what_is_not_json_is_one_line(coco_root: Root, text: str | bytes, words: str) -> None:
    with pytest.raises(AnnotationError, match=words) as caught:
        open_coco(coco_root(text=text))
    assert "\n" not in str(caught.value)


def test_a_file_over_the_limit_is_refused_unread(coco_root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionllm.datasets.formats.coco.MAX_BYTES", 10)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("was read"))
    with pytest.raises(AnnotationError, match=r"bytes, over the limit of 10"):
        open_coco(coco_root())


def test_a_pipe_does_not_hang(coco_root: Root) -> None:
    root = coco_root()
    (root / "train.json").unlink()
    os.mkfifo(root / "train.json")
    with pytest.raises(DatasetError, match=r"no file .*train.json"):
        open_coco(root)


@pytest.mark.parametrize(
    "name", ["../0.png", "/etc/passwd", "a/../../b", "file:///etc/passwd", "C:\\a.png", "..\\a.png", "a\0.png"]
)
def test_a_file_name_that_leads_away_is_refused(coco_root: Root, name: str) -> None:
    with pytest.raises(AnnotationError, match=r"images\[0\].file_name.*relative path"):
        open_coco(coco_root(_set("images", 0, file_name=name)))


def test_a_link_that_leads_away_is_refused(coco_root: Root, tmp_path: Path) -> None:
    root = coco_root()
    outside = tmp_path / "secret.png"
    (root / "images" / "0.png").rename(outside)
    (root / "images" / "0.png").symlink_to(outside)
    with pytest.raises(AnnotationError, match="through a link"):
        open_coco(root).read(0)
    assert len(open_coco(root).read(1).labels) == 2


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_the_card_cannot_lead_away_either(coco_root: Root, key: str) -> None:
    with pytest.raises(AnnotationError, match="relative path"):
        open_coco(coco_root(), **{key: "../elsewhere"})


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_missing_parts_are_named(coco_root: Root, key: str) -> None:
    with pytest.raises(DatasetError, match=f"tiny: {key}: no (file|folder) .*nowhere"):
        open_coco(coco_root(), **{key: "nowhere"})


def test_a_missing_picture_is_a_bad_sample(coco_root: Root) -> None:
    root = coco_root()
    (root / "images" / "1.png").unlink()
    with pytest.raises(PictureError, match="no such file"):
        open_coco(root).read(1)


def test_a_picture_of_another_size_is_a_bad_sample(coco_root: Root) -> None:
    reader = open_coco(coco_root(_set("images", 0, width=30, height=40)))
    with pytest.raises(AnnotationError, match=r"annotated as 30x40, but the upright picture is 40x30"):
        reader.read(0)


def test_the_digest_is_that_of_the_annotations(coco_root: Root) -> None:
    before = open_coco(coco_root()).digest()
    assert open_coco(coco_root()).digest() == before
    assert open_coco(coco_root(_set("annotations", 0, bbox=[4, 5, 10, 9]))).digest() != before


def test_declared_names_fix_the_order(coco_root: Root) -> None:
    record = open_coco(coco_root(), names=("cat", "cow", "dog")).read(0)
    assert record.labels.tolist() == [0, 2]
    with pytest.raises(AnnotationError, match=r"categories\[0\].name: 'dog' is not among the card's names \(cat\)"):
        open_coco(coco_root(), names=("cat",))


# --- masks ------------------------------------------------------------------------------------------------------------


def open_masks(root: Path) -> CocoReader:
    split = CocoSplit(images="images", annotations="train.json")
    return CocoReader.open(split, Place(dataset="tiny", root=root.resolve(), needs=frozenset({"masks"})))


def outlines(content: dict[str, Any]) -> None:
    """A polygon, a run-length code as COCO writes crowds, a compressed one, and none."""
    code = {"size": [30, 40], "counts": [0, 60, 1140]}
    for entry, outline in zip(
        content["annotations"], [[[4, 5, 14, 5, 14, 13, 4, 13]], code, Mask.from_rle(code).rle(), []], strict=True
    ):
        entry["segmentation"] = outline


def test_masks_are_read_where_the_task_needs_them(coco_root: Root) -> None:
    root = coco_root(outlines)
    assert open_coco(root).read(0).masks is None
    reader = open_masks(root)
    first, second = reader.read(0).masks, reader.read(1).masks
    whole = np.zeros((30, 40), bool)
    whole[5:13, 4:14] = True
    assert (first[0].dense() == whole).all()
    columns = np.zeros((30, 40), bool)
    columns[:, :2] = True
    assert (first[1].dense() == columns).all()
    assert (second[0].dense() == columns).all()
    assert second[1] is None


@pytest.mark.parametrize(
    ("outline", "words"),
    [
        ([[1, 2, 3, 4]], r"annotations\[1\]\.segmentation\[0\]: 4 values; a polygon needs three points"),
        ([[1, 2, 3, 4, 5, "x"]], r"annotations\[1\]\.segmentation\[0\]: value 5 is 'x'"),
        ({"size": [30, 40], "counts": [0, 60]}, r"annotations\[1\]\.segmentation\.counts: too short"),
        ({"size": [30, 40], "counts": [0, 60, 1141]}, r"annotations\[1\]\.segmentation\.counts: too long"),
        ({"size": [40, 30], "counts": [0, 1200]}, r"annotations\[1\]\.segmentation\.size: .*the picture is 30 high"),
        ({"counts": [0, 1200]}, r"annotations\[1\]\.segmentation: a run-length code has size and counts"),
        ("mask", r"annotations\[1\]\.segmentation: a run-length code has size and counts"),
    ],
)
def test_a_bad_mask_names_file_record_and_field(coco_root: Root, outline: Any, words: str) -> None:
    root = coco_root(lambda content: content["annotations"][1].update(segmentation=outline))
    with pytest.raises(AnnotationError, match=r"tiny\[0\] \(0\.png\): .*train\.json: " + words) as caught:
        open_masks(root).read(0)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("VISIONLLM_DATA" not in os.environ, reason="needs VISIONLLM_DATA")
def test_masks_of_photographs_fill_their_boxes_and_areas() -> None:
    """Polygons and crowds of COCO itself: area and box as annotated, within the pixels of an edge."""
    dataset = open_dataset("coco_tiny", "train")
    seen = crowds = near = 0
    for index in range(len(dataset)):
        record = dataset.read(index)
        assert isinstance(record, Record)
        for mask, box, area, crowd in zip(
            record.masks, record.boxes_xyxy, record.extra["area"], record.crowd, strict=True
        ):
            edge = 2 * (box[2:] - box[:2]).sum() + 4
            assert crowd or abs(mask.area - area) <= edge
            near += np.abs(mask.box_xyxy - box).max() <= 2
            seen, crowds = seen + 1, crowds + int(crowd)
    assert (seen, crowds) == (333, 5)
    assert near > 0.95 * seen  # a sharp corner of a polygon may hold no pixel


# --- captions ---------------------------------------------------------------------------------------------------------


def with_captions(root: Path, entries: list[dict[str, Any]]) -> CocoReader:
    content = json.loads((root / "train.json").read_text())
    text = json.dumps({"images": content["images"], "annotations": entries})
    (root / "captions.json").write_text(text)
    split = CocoSplit(images="images", annotations="train.json", captions="captions.json")
    return CocoReader.open(split, Place(dataset="tiny", root=root.resolve(), needs=frozenset({"captions"})))


def test_captions_find_their_picture(coco_root: Root) -> None:
    entries = [
        {"id": 1, "image_id": 101, "caption": "Two cats."},
        {"id": 2, "image_id": 100, "caption": " A cat\n and a dog. "},
        {"id": 3, "image_id": 101, "caption": "Cats, mostly."},
    ]  # fmt: skip
    root = coco_root()
    reader = with_captions(root, entries)
    assert [reader.read(i).captions for i in range(3)] == [
        ("A cat and a dog.",), ("Two cats.", "Cats, mostly."), ()
    ]  # fmt: skip
    assert open_coco(root).read(1).captions == ()
    assert reader.digest() != open_coco(root).digest()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"id": 1, "image_id": 7, "caption": "x"}, r"captions\.json: annotations\[0\]\.image_id"),
        ({"id": 1, "image_id": 100, "caption": " "}, r"captions\.json: annotations\[0\]\.caption"),
        ({"id": 1, "image_id": 100}, r"captions\.json: annotations\[0\]\.caption"),
    ],
)
def test_a_bad_caption_names_file_and_record(coco_root: Root, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(AnnotationError, match=words):
        with_captions(coco_root(), [entry])


@pytest.mark.skipif("VISIONLLM_DATA" not in os.environ, reason="needs VISIONLLM_DATA")
def test_photographs_bring_captions_and_people() -> None:
    talk = open_dataset("coco_tiny", "train", task="captions")
    captions = [sample.turns[0].reply for index in range(len(talk)) for sample in talk.ask_all(index)]
    assert len(captions) == 26
    assert all(caption and len(caption) > 20 for caption in captions)
