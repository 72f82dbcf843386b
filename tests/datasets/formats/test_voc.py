"""Pascal VOC: counted from one and inclusive, and one line for every kind of bad file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from visionllm.core.errors import AnnotationError, DatasetError
from visionllm.datasets.formats import Place, VocReader
from visionllm.datasets.formats.voc import VocSplit

Root = Callable[..., Path]
Page = Callable[..., str]


def open_voc(root: Path, names: tuple[str, ...] | None = None, **keys: str) -> VocReader:
    values = {"images": "JPEGImages", "annotations": "Annotations", "list": "ImageSets/train.txt", **keys}
    return VocReader.open(VocSplit(**values), Place(dataset="tiny", root=root.resolve(), names=names))


def test_whole_picture_and_first_pixel(voc_root: Root, voc_page: Page) -> None:
    page = voc_page([{"box": (1, 1, 40, 30)}, {"box": (1, 1, 2, 1), "name": "dog"}])
    record = open_voc(voc_root({"a": page})).read(0)
    assert record.boxes_xyxy.tolist() == [[0, 0, 40, 30], [0, 0, 2, 1]]
    assert [record.names[label] for label in record.labels] == ["cat", "dog"]


def test_difficult_is_crowd(voc_root: Root, voc_page: Page) -> None:
    page = voc_page([{"box": (1, 1, 4, 4), "difficult": 1}, {"box": (1, 1, 9, 9)}])
    assert open_voc(voc_root({"a": page})).read(0).crowd.tolist() == [True, False]


def test_points_are_dropped_and_outsiders_clipped(voc_root: Root, voc_page: Page) -> None:
    boxes = [(5, 5, 5, 5), (0, 0, 10, 10), (30, 20, 90, 90), (9, 9, 3, 3), (50, 40, 60, 60)]
    reader = open_voc(voc_root({"a": voc_page([{"box": box} for box in boxes])}))
    assert reader.read(0).boxes_xyxy.tolist() == [[0, 0, 10, 10], [29, 19, 40, 30]]
    assert reader.report() == ("tiny: of 5 boxes 2 dropped (no area), 1 dropped (outside the picture), 2 clipped")


def test_a_line_of_one_pixel_is_a_box(voc_root: Root, voc_page: Page) -> None:
    reader = open_voc(voc_root({"a": voc_page([{"box": (5, 5, 5, 20)}])}))
    assert reader.read(0).boxes_xyxy.tolist() == [[4, 4, 5, 20]]


def test_decimals_are_read(voc_root: Root, voc_page: Page) -> None:
    reader = open_voc(voc_root({"a": voc_page([{"box": (1.5, 2.0, 4.25, 8)}])}))
    assert reader.read(0).boxes_xyxy.tolist() == [[0.5, 1.0, 4.25, 8.0]]


def test_a_picture_without_objects_stays(voc_root: Root, voc_page: Page) -> None:
    reader = open_voc(voc_root({"a": voc_page([]), "b": voc_page([{"box": (1, 1, 4, 4)}])}))
    assert [len(reader.read(i).labels) for i in range(2)] == [0, 1]
    assert reader.names == ("cat",)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPG", ".jpeg", ".bmp"])
def test_the_picture_is_found_by_its_name(voc_root: Root, voc_page: Page, suffix: str) -> None:
    assert open_voc(voc_root({"a.b": voc_page([])}, suffix=suffix)).read(0).picture.size == (40, 30)


def test_no_picture_or_two_is_a_bad_sample(voc_root: Root, voc_page: Page) -> None:
    root = voc_root({"a": voc_page([]), "b": voc_page([])})
    (root / "JPEGImages" / "a.jpg").write_bytes((root / "JPEGImages" / "a.png").read_bytes())
    (root / "JPEGImages" / "b.png").unlink()
    reader = open_voc(root)
    with pytest.raises(AnnotationError, match=r"one picture a\.\* .*found a.jpg, a.png"):
        reader.read(0)
    with pytest.raises(AnnotationError, match=r"one picture b\.\* .*found none"):
        reader.read(1)


def test_nan_spoils_its_picture_only(voc_root: Root, voc_page: Page) -> None:
    reader = open_voc(voc_root({"a": voc_page([{"box": ("nan", 1, 4, 4)}]), "b": voc_page([{"box": (1, 1, 4, 4)}])}))
    with pytest.raises(AnnotationError, match=r"tiny\[0\] \(a.xml\): object 0: bndbox is not finite"):
        reader.read(0)
    assert len(reader.read(1).labels) == 1
    assert "1 not finite" in reader.report()


def test_names_are_the_same_in_all_splits(voc_root: Root, voc_page: Page) -> None:
    pages = {"a": voc_page([{"box": (1, 1, 4, 4), "name": "dog"}]), "b": voc_page([{"box": (1, 1, 4, 4)}])}
    assert open_voc(voc_root(pages, listed="a\n")).names == ("cat", "dog")


def test_an_unknown_category_is_named(voc_root: Root, voc_page: Page) -> None:
    root = voc_root({"a": voc_page([{"box": (1, 1, 4, 4), "name": "cot"}])})
    with pytest.raises(
        AnnotationError, match=r"a.xml: object 0: name: 'cot' is not among the card's names \(cat, dog\)"
    ):
        open_voc(root, names=("cat", "dog"))


def test_flags_of_a_class_list_are_no_part_of_the_name(voc_root: Root, voc_page: Page) -> None:
    root = voc_root({"a": voc_page([]), "b c": voc_page([])}, listed="a  1\n\nb c -1\n")
    assert len(open_voc(root)) == 2


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("a\na\n", r"'a' stands on line 1 and on line 2"),
        ("a\nnone\n", r"train.txt: 'none' has no annotation file"),
        ("../a\n", r"line 1: '../a' must be a relative path"),
        ("/etc/passwd\n", r"must be a relative path"),
    ],
)
def test_a_bad_list_is_one_line(voc_root: Root, voc_page: Page, listed: str, words: str) -> None:
    with pytest.raises(AnnotationError, match=words):
        open_voc(voc_root({"a": voc_page([])}, listed=listed))


BOX = {"box": (1, 1, 4, 4)}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda page: page([BOX])[:-20], r"not valid XML"),  # truncated
        (lambda page: "", r"not valid XML"),
        (lambda page: b"\xef\xbb\xbf" + page([BOX]).encode(), r"byte order mark"),
        (lambda page: "<!DOCTYPE a [<!ENTITY x 'y'>]>" + page([BOX]), r"declares a document type"),
        (lambda page: page([BOX], size=(0, 30)), r"size: expected whole positive"),
        (lambda page: page([BOX], size=("wide", 30)), r"size/width: expected a number, got 'wide'"),
        (lambda page: page([BOX], size=("nan", 30)), r"size: expected whole positive"),
        (lambda page: page([{"box": ("x", 1, 4, 4)}]), r"object 0: bndbox/xmin: expected a number, got 'x'"),
        (lambda page: page([BOX]).replace("<ymax>4</ymax>", ""), r"object 0: bndbox/ymax: expected a number, got None"),
        (lambda page: page([{**BOX, "name": ""}]), r"object 0: name is missing"),
        (lambda page: page([{**BOX, "difficult": "maybe"}]), r"object 0: difficult: expected 0 or 1"),
    ],
)
def test_a_bad_page_is_one_line(voc_root: Root, voc_page: Page, make: Callable[..., str], words: str) -> None:
    with pytest.raises(AnnotationError, match=words) as caught:
        open_voc(voc_root({"a": make(voc_page)}))
    assert "a.xml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folders_are_named(voc_root: Root, voc_page: Page) -> None:
    with pytest.raises(DatasetError, match="tiny: annotations: no folder"):
        open_voc(voc_root({"a": voc_page([])}), annotations="XML")


def test_the_digest_is_that_of_the_listed_pages(voc_root: Root, voc_page: Page, tmp_path: Path) -> None:
    root = voc_root({"a": voc_page([BOX]), "b": voc_page([BOX])}, listed="a\n")
    before = open_voc(root).digest()
    (root / "Annotations" / "b.xml").write_text(voc_page([]))
    assert open_voc(root).digest() == before
    (root / "Annotations" / "a.xml").write_text(voc_page([]))
    assert open_voc(root).digest() != before


def test_what_a_page_shows_is_told_without_its_picture(voc_root: Root, voc_page: Page) -> None:
    shown = voc_page([{"box": (1, 1, 9, 9), "name": "dog"}, {"box": (1, 1, 4, 4)}, {"box": (5, 5, 5, 5)}])
    hard = voc_page([{"box": (1, 1, 9, 9), "difficult": 1}])
    reader = open_voc(voc_root({"a": shown, "b": hard}))
    assert [[reader.names[label] for label in reader.labels_of(i)] for i in (0, 1)] == [["dog", "cat"], []]
