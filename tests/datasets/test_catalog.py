"""Cards: found by name or path, every wrong key told with its path, data found below the data root."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from visionllm.core.errors import ConfigError, DatasetError, UnknownNameError, VisionLLMError
from visionllm.datasets.catalog import catalogue, catalogue_folder, load_card, open_dataset

CARD = """
name: tiny
task: detection
format: coco
root: coco
splits: {train: {images: images, annotations: train.json}, val: {images: images, annotations: train.json}}
synonyms: {cat: [kitty], dog: [hound]}
license: MIT
"""


def write_card(folder: Path, text: str = CARD) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", catalogue())
def test_every_card_of_the_catalogue_loads_under_its_name(name: str) -> None:
    assert load_card(name).name == name


def test_the_catalogue_holds_the_first_data_sets() -> None:
    assert {"bccd", "carla_streets", "phrases", "scenes", "unseen_names"} <= set(catalogue())
    assert catalogue_folder().is_dir()


def test_a_card_opens_below_the_data_root(coco_root: Callable[..., Path], tmp_path: Path) -> None:
    coco_root()
    dataset = open_dataset(write_card(tmp_path), "train", tmp_path)
    assert (dataset.name, dataset.key, len(dataset)) == ("tiny", "tiny/train", 3)
    assert dataset.names == ("dog", "cat")
    assert dataset.wording.synonyms == {"cat": ("kitty",), "dog": ("hound",)}


def test_the_data_root_may_come_from_the_environment(
    coco_root: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco_root()
    card = write_card(tmp_path)
    monkeypatch.setenv("VISIONLLM_DATA", str(tmp_path))
    assert len(open_dataset(str(card), "val")) == 3
    monkeypatch.setenv("VISIONLLM_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(
        DatasetError, match=r"tiny: root: no folder .*elsewhere/coco; set VISIONLLM_DATA or --data-root"
    ):
        open_dataset(card, "val")
    monkeypatch.delenv("VISIONLLM_DATA")
    with pytest.raises(DatasetError, match=r"no data root is known; set VISIONLLM_DATA"):
        open_dataset(card, "val")


def test_an_absolute_root_needs_no_data_root(coco_root: Callable[..., Path], tmp_path: Path) -> None:
    root = coco_root()
    card = write_card(tmp_path, CARD.replace("root: coco", f"root: {root}"))
    assert len(open_dataset(card, "train")) == 3


def test_unknown_names_list_what_exists() -> None:
    with pytest.raises(DatasetError, match=r"no data set 'bcdd' \(did you mean 'bccd'\?\). Known: bccd, carla_streets"):
        load_card("bcdd")
    with pytest.raises(
        DatasetError,
        match=r"scenes: no split 'test'; it has train, crowds, .*, val",
    ):
        open_dataset("scenes", "test")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("synonyms:", "synonym:", r"synonym: unknown key \(did you mean synonyms\?\)"),
        ("name: tiny", "names: tiny", r"name: missing|names: "),
        ("name: tiny", "name: ../tiny", r"name: "),
        ("task: detection\n", "", r"task: missing"),
        (
            "train: {images: images, annotations",
            "train: {images: images, anotations",
            r"splits.train: anotations: unknown",
        ),
        (
            "{images: images, annotations: train.json}, val",
            "{images: images}, val",
            r"splits.train: annotations: missing",
        ),
        ("splits: {train", "splits: {no", r"splits: .*the key False is not text; quote it"),
        ("[kitty]", "kitty", r"synonyms.cat: "),
        (CARD, "[1, 2]", r"expected keys and values, got list"),
        (CARD, "a: [", r"not valid YAML"),
        (CARD, "name: !!python/object/apply:os.system ['true']", r"not valid YAML"),
    ],
)
def test_a_wrong_card_is_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in CARD
    with pytest.raises(ConfigError, match=words) as caught:
        load_card(write_card(tmp_path, CARD.replace(old, new)))
    assert "tiny.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_card_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
        load_card(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("format: coco", "format: cocoa", UnknownNameError, r"no data set format 'cocoa' \(did you mean 'coco'\?\)"),
        ("task: detection", "task: detecting", UnknownNameError, r"no task with an asker 'detecting'.*detection"),
        ("root: coco", "root: ../coco", ConfigError, r"root: '../coco' must not climb"),
        ("root: coco\n", "", ConfigError, r"root: missing"),
        ("cat: [kitty]", "cot: [kitty]", ConfigError, r"synonyms.cot: no such category \(it has: dog, cat\)"),
        ("cat: [kitty]", "cat: [Hound]", ConfigError, r"already stands for"),
        ("cat: [kitty]", "cat: [dog]", ConfigError, r"synonyms.cat: 'dog' already stands for 'dog'"),
        ("license", "plurals: {cow: cows}\nlicense", ConfigError, r"plurals.cow: neither a category nor a synonym"),
    ],
)
def test_a_card_that_does_not_fit_its_data_is_one_line(
    coco_root: Callable[..., Path], tmp_path: Path, old: str, new: str, error: type[VisionLLMError], words: str
) -> None:
    coco_root()
    assert old in CARD
    with pytest.raises(error, match=words):
        open_dataset(write_card(tmp_path, CARD.replace(old, new)), "train", tmp_path)


def test_the_digest_covers_annotations_and_words(coco_root: Callable[..., Path], tmp_path: Path) -> None:
    coco_root()
    before = open_dataset(write_card(tmp_path), "train", tmp_path).digest()
    assert open_dataset(write_card(tmp_path), "train", tmp_path).digest() == before
    changed = write_card(tmp_path, CARD.replace("kitty", "puss"))
    assert open_dataset(changed, "train", tmp_path).digest() != before
    coco_root(lambda content: content["annotations"].pop())
    assert open_dataset(write_card(tmp_path), "train", tmp_path).digest() != before


def balanced_card(folder: Path, shows: list[list[int]], crowd: int | None = None) -> Path:
    """A COCO card whose pictures show these categories of three; the object ``crowd`` is one."""
    (folder / "coco/images").mkdir(parents=True)
    rows = [(i, label) for i, labels in enumerate(shows) for label in labels]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in range(len(shows))],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("dog", "cat", "emu"))],
        "annotations": [
            {"id": n, "image_id": i, "category_id": label, "bbox": [1, 1, 4, 4], "iscrowd": int(n == crowd)}
            for n, (i, label) in enumerate(rows)
        ],
    }
    (folder / "coco/train.json").write_text(json.dumps(content))
    return write_card(folder)


def test_pictures_of_rare_categories_come_as_often_as_their_factor_says(tmp_path: Path) -> None:
    # Dogs are in all 16 pictures, cats in four (factor 1 at 0.25), an emu in one (factor sqrt(0.25 * 16) = 2).
    shows = [[0, 0], *[[0, 1]] * 4, *[[0]] * 10, [0, 2]]
    data = open_dataset(balanced_card(tmp_path, shows), "train", tmp_path)
    assert data.balanced(0.01).order.tolist() == list(range(16))
    same = data.balanced(0.25)
    assert same.order.tolist() == [*range(15), 15, 15]
    assert len(same) == 17
    assert same.digest() != data.digest()
    # At 0.5625 a cat's factor is 1.5, an emu's 3: halves are carried on.
    more = data.balanced(0.5625).order.tolist()
    assert [more.count(i) for i in range(16)] == [1, 1, 2, 1, 2, *[1] * 10, 3]


def test_what_is_read_follows_the_order(coco_root: Callable[..., Path], tmp_path: Path) -> None:
    coco_root()
    data = open_dataset(write_card(tmp_path), "train", tmp_path)
    turned = replace(data, order=np.array([2, 0, 2]))
    assert [turned.read(i).source.index for i in range(3)] == [2, 0, 2]
    assert turned.ask_all(0)[0].source.index == 2


def test_a_crowd_is_not_shown_and_an_empty_picture_comes_once(tmp_path: Path) -> None:
    data = open_dataset(balanced_card(tmp_path, [[0], [0], [0, 2], []], crowd=3), "train", tmp_path)
    assert data.balanced(1.0).order.tolist() == [0, 1, 2, 3], "the emu is a crowd; dogs are in three of four"


def test_what_cannot_be_balanced_says_so() -> None:
    with pytest.raises(ConfigError, match="scenes/train: balance: format scenes does not tell") as caught:
        open_dataset("scenes", "train").balanced(0.1)
    assert "\n" not in str(caught.value)
